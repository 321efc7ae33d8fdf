"""The cells that the byte path counts into: a counter, a gauge, a histogram, each one C struct behind one call.

A cell knows neither its name nor its labels; ``proxy.metrics`` resolves those once and the caller keeps the cell.
``change()`` hands over what happened since it was last called, in the shape that travels to the supervisor:
a counter its increase, a gauge its value, a histogram ``[sum, bucket, count, bucket, count, ...]`` with only
the buckets that grew. A cell nothing happened to answers None. No cell ever raises: a number that is no duration
is counted as zero rather than lost.
"""

cimport cython

# Ten bounds per decade from 100 us to 100 s (the R10 series of ISO 3, to three digits): a quantile read from them is
# off by at most 12 %. They are written out because the rounded series is not what 10 ** (n / 10) prints.
cdef double[10] DECADE = [1.00, 1.26, 1.58, 2.00, 2.51, 3.16, 3.98, 5.01, 6.31, 7.94]
cdef double[BUCKETS - 1] bounds


def _fill():
    for i in range(BUCKETS - 1):
        bounds[i] = float(f"{DECADE[i % 10]:.2f}e{i // 10 - 4}")
    return tuple([bounds[i] for i in range(BUCKETS - 1)])


BOUNDS = _fill()


@cython.final
cdef class Counter:
    """Only grows."""

    cpdef void add(self, double n) noexcept:
        self.value += n

    cpdef object change(self):
        cdef double increase = self.value - self.taken
        if increase == 0:
            return None
        self.taken = self.value
        return increase


@cython.final
cdef class Gauge:
    """Goes up and down; what travels is its value, not its change, so a lost message heals itself."""

    cpdef void add(self, double n) noexcept:
        self.value += n

    cpdef void set(self, double value) noexcept:
        self.value = value

    cpdef object change(self):
        if self.value == self.taken:
            return None
        self.taken = self.value
        return self.value


@cython.final
cdef class Histogram:
    """Durations in seconds, counted into BOUNDS (a value on a bound belongs to that bound) and one bucket above them."""

    cpdef void observe(self, double seconds) noexcept:
        cdef int low = 0, high = BUCKETS - 1, middle
        if not seconds > 0:  # zero, negative or NaN
            seconds = 0
        while low < high:
            middle = (low + high) >> 1
            if bounds[middle] < seconds:
                low = middle + 1
            else:
                high = middle
        self.counts[low] += 1
        self.sum += seconds
        self.touched = True

    cpdef object change(self):
        cdef int i
        if not self.touched:
            return None
        cdef list grown = [self.sum]
        for i in range(BUCKETS):
            if self.counts[i]:
                grown.append(<double>i)
                grown.append(<double>self.counts[i])
                self.counts[i] = 0
        self.sum = 0
        self.touched = False
        return grown

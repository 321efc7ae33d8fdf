cimport cython

cdef enum:
    BUCKETS = 62

@cython.final
cdef class Counter:
    cdef public double value
    cdef double taken
    cpdef void add(self, double n) noexcept
    cpdef object change(self)

@cython.final
cdef class Gauge:
    cdef public double value
    cdef double taken
    cpdef void add(self, double n) noexcept
    cpdef void set(self, double value) noexcept
    cpdef object change(self)

@cython.final
cdef class Histogram:
    cdef unsigned int counts[BUCKETS]
    cdef double sum
    cdef bint touched
    cpdef void observe(self, double seconds) noexcept
    cpdef object change(self)

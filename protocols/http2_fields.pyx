"""Header blocks on their way to a receiver whose dynamic table is not quite the sender's.

Trace headers are continued, and some fields, or whole blocks, do not go on at all. A literal that its sender indexes
is replaced by one of as many octets (RFC 7541 section 4.1), indexed alike: the receiver's entry then only reads
otherwise, and what refers to it is spelled out. Where that cannot be, the receiver gets no such entry: it has fewer
than the sender has, in the same order, and every index that passes is made its own. An entry that the sender
still has, the receiver still has too, for it was given no more to keep.
"""

from bisect import bisect_right

from cpython.bytes cimport PyBytes_AS_STRING

from protocols.assembly cimport Assembly
from protocols.hpack cimport Decoder, HpackField, INDEXED, INDEXING, NEVER, write_integer
from protocols.trace_context cimport Ids, TraceContext, continue_trace, gather

cdef enum:
    STATIC = 61  # entries of the static table (RFC 7541 Appendix A); dynamic ones are numbered from there on


cdef int _write_string(Assembly out, const unsigned char* text, Py_ssize_t n) except -1:
    """A string literal as it is, without Huffman (RFC 7541 section 5.2)."""
    cdef unsigned char prefix[16]
    out.add(prefix, write_integer(prefix, 7, 0, n))
    return out.add(text, n)


cdef int write_plain(Assembly out, bytes name, bytes value) except -1:
    """A literal without indexing, its name spelled out (RFC 7541 section 6.2.2)."""
    out.add(b"\x00", 1)
    _write_string(out, <const unsigned char*>PyBytes_AS_STRING(name), len(name))
    return _write_string(out, <const unsigned char*>PyBytes_AS_STRING(value), len(value))


cdef class Rewriter:
    """One direction's: works on the block that ``decoder`` has just read, and writes it to ``out``.

    ``otherwise`` are the numbers of the sender's entries that the receiver has with another value, ``missing`` of those
    that it has not, both in ascending order. No more than ``allowance`` octets in all are spelled out where the sender
    sent an index; once that is used up, ``exhausted`` is set and the block in ``out`` is not whole.
    """

    def __init__(self, Decoder decoder):
        self.decoder = decoder
        self.otherwise = []
        self.missing = []

    cdef bint differs(self):
        """Whether blocks that pass as they came may mean something else to the receiver."""
        return bool(self.otherwise or self.missing or self.resized)

    cdef bint translate(self, const unsigned char* block, Py_ssize_t n, Assembly out) except -1:
        """Make the block say to the receiver what it says to the sender; False, and nothing written, where it does."""
        cdef HpackField* field
        cdef Py_ssize_t copied, i
        if not self.differs():
            return False
        copied = self._begin(block, n, out)
        for i in range(self.decoder.count):
            field = &self.decoder.fields[i]
            self._count(field)
            if field.entry:
                out.add(block + copied, field.start - copied)
                copied = field.end
                self._write_same(block, field, out)
        out.add(block + copied, n - copied)
        self._forget_evicted()
        return True

    cdef TraceContext continued(self, Ids ids, const unsigned char* block, Py_ssize_t n, Assembly out):
        """The same with the request's trace headers continued; always written."""
        cdef list traceparents = [], tracestates = []
        cdef dict b3 = {}
        cdef bytes name, value, became
        cdef HpackField* field
        cdef Py_ssize_t copied, i
        cdef TraceContext trace
        for i in range(self.decoder.count):
            field = &self.decoder.fields[i]
            if not _may_be_trace(field):
                continue
            gather(
                field.name[:field.name_length], field.value[:field.value_length], traceparents, tracestates, b3
            )
        trace = continue_trace(ids, traceparents, tracestates, b3)
        copied = self._begin(block, n, out)
        for i in range(self.decoder.count):
            field = &self.decoder.fields[i]
            self._count(field)
            if not field.entry and not _may_be_trace(field):
                continue
            out.add(block + copied, field.start - copied)
            copied = field.end
            if not _may_be_trace(field):
                self._write_same(block, field, out)
                continue
            name = field.name[:field.name_length]
            value = field.value[:field.value_length]
            became = trace.becomes(name, value)
            if became == value:
                self._write_same(block, field, out)
            else:
                self._write_other(block, field, name, became, out)
        out.add(block + copied, n - copied)
        self._forget_evicted()
        return trace

    cdef swallow(self, unsigned long long before, const unsigned char* block, Py_ssize_t n):
        """The block does not go on. ``before`` was the number of the newest entry before it was read."""
        self.missing.extend(range(max(before + 1, self.decoder.oldest()), self.decoder.inserted + 1))
        self._note_sizes(block, self.decoder.fields[0].start if self.decoder.count else n)
        self._forget_evicted()

    cdef _note_sizes(self, const unsigned char* updates, Py_ssize_t n):
        """Changes of the table's size that the receiver is still to be told: the smallest and the last (RFC 7541
        section 4.2)."""
        cdef Py_ssize_t at = 0, size
        cdef int shift
        while at < n:
            size = updates[at] & 0x1F
            at += 1
            if size == 0x1F:
                shift = 0
                while updates[at] & 0x80:
                    size += <Py_ssize_t>(updates[at] & 0x7F) << shift
                    shift += 7
                    at += 1
                size += <Py_ssize_t>updates[at] << shift
                at += 1
            self.smallest_size = size if not self.resized else min(size, self.smallest_size)
            self.resized = True

    cdef Py_ssize_t _begin(self, const unsigned char* block, Py_ssize_t n, Assembly out) except -1:
        """Write what comes before the fields; answers how many of the block's ``n`` octets that was."""
        cdef unsigned char update[16]
        cdef Py_ssize_t i
        out.length = 0
        self.newest = self.decoder.inserted
        for i in range(self.decoder.count):
            self.newest -= self.decoder.fields[i].added != 0
        if not self.resized:
            return 0
        # Where the block has some of its own, the last of them is the last of all.
        n = self.decoder.fields[0].start if self.decoder.count else n
        self._note_sizes(block, n)
        self.resized = False
        if self.smallest_size < <Py_ssize_t>self.decoder.max_size:
            out.add(update, write_integer(update, 5, 0x20, self.smallest_size))
        out.add(update, write_integer(update, 5, 0x20, self.decoder.max_size))
        return n

    cdef inline void _count(self, HpackField* field) noexcept:
        """An index counts from the newest entry that there was before its own field."""
        self.before = self.newest
        if field.added:
            self.newest = field.added

    cdef Py_ssize_t _index(self, unsigned long long entry) except -1:
        """The receiver's index of the sender's ``entry`` at the field being written; 0 where it has no such entry."""
        cdef Py_ssize_t index = STATIC + 1 + <Py_ssize_t>(self.before - entry)
        if not self.missing:
            return index
        if _holds(self.missing, entry):
            return 0
        return index - (len(self.missing) - <Py_ssize_t>bisect_right(self.missing, entry))

    cdef int _write_same(self, const unsigned char* block, HpackField* field, Assembly out) except -1:
        """The field as it came, but for what it refers to."""
        cdef unsigned char integer[16]
        cdef Py_ssize_t index
        if field.kind != INDEXED:
            self._write_name(block, field, out)
            return out.add(block + field.value_start, field.end - field.value_start)
        if field.entry:
            index = self._index(field.entry)
            if index == 0 or _holds(self.otherwise, field.entry):
                return self._spell_out(field.name[:field.name_length], field.value[:field.value_length], out)
            if not self.missing:
                return out.add(block + field.start, field.end - field.start)
            return out.add(integer, write_integer(integer, 7, 0x80, index))
        return out.add(block + field.start, field.end - field.start)

    cdef int _write_other(
        self, const unsigned char* block, HpackField* field, bytes name, bytes became, Assembly out
    ) except -1:
        """The field with the value ``became``, or without a trace of it (None)."""
        if field.kind == INDEXED:
            return 0 if became is None else self._spell_out(name, became, out)
        if field.kind == INDEXING:
            if became is None or len(became) != field.value_length:
                if field.added:
                    self.missing.append(field.added)
                return 0 if became is None else write_plain(out, name, became)
            if field.added:
                self.otherwise.append(field.added)
        elif became is None:
            return 0
        self._write_name(block, field, out)
        return _write_string(out, <const unsigned char*>PyBytes_AS_STRING(became), len(became))

    cdef int _write_name(self, const unsigned char* block, HpackField* field, Assembly out) except -1:
        """The beginning of a literal, in the representation that it came in."""
        cdef unsigned char integer[16]
        cdef unsigned char kind = 0x40 if field.kind == INDEXING else 0x10 if field.kind == NEVER else 0
        cdef Py_ssize_t index
        if not field.entry or not self.missing:
            return out.add(block + field.start, field.value_start - field.start)
        index = self._index(field.entry)
        out.add(integer, write_integer(integer, 6 if field.kind == INDEXING else 4, kind, index))
        if index == 0:
            self.spelled += field.name_length
            self.exhausted = self.spelled > self.allowance
            return 0 if self.exhausted else _write_string(out, field.name, field.name_length)
        return 0

    cdef int _spell_out(self, bytes name, bytes value, Assembly out) except -1:
        """What its sender said by an index alone."""
        self.spelled += len(name) + len(value)
        self.exhausted = self.spelled > self.allowance
        return 0 if self.exhausted else write_plain(out, name, value)

    cdef _forget_evicted(self):
        cdef unsigned long long oldest = self.decoder.oldest()
        if self.otherwise and self.otherwise[0] < oldest:
            del self.otherwise[:bisect_right(self.otherwise, oldest - 1)]
        if self.missing and self.missing[0] < oldest:
            del self.missing[:bisect_right(self.missing, oldest - 1)]


cdef bint _holds(list numbers, unsigned long long number) except -1:
    """Whether ``number`` is one of ``numbers``, which are in ascending order."""
    cdef Py_ssize_t at
    if not numbers:
        return False
    at = bisect_right(numbers, number)
    return at > 0 and numbers[at - 1] == number


cdef inline bint _may_be_trace(HpackField* field) noexcept nogil:
    """Whether the name can be traceparent, tracestate, b3 or one of x-b3-*, by its first octet and its length."""
    return 1 < field.name_length < 18 and (
        field.name[0] == c"t" or field.name[0] == c"b" or field.name[0] == c"x"
    )

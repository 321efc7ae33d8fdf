from protocols.assembly cimport Assembly
from protocols.hpack cimport Decoder, HpackField
from protocols.trace_context cimport Ids, TraceContext


cdef class Rewriter:
    cdef Decoder decoder
    cdef list otherwise
    cdef list missing
    cdef long long allowance
    cdef long long spelled
    cdef bint exhausted
    cdef bint resized                # the receiver was not told that the table's size changed
    cdef Py_ssize_t smallest_size    # that it had since
    cdef unsigned long long newest   # entry that there is when the next field is read
    cdef unsigned long long before   # and when the current one was

    cdef bint differs(self)
    cdef bint translate(self, const unsigned char* block, Py_ssize_t n, Assembly out) except -1
    cdef TraceContext continued(self, Ids ids, const unsigned char* block, Py_ssize_t n, Assembly out)
    cdef swallow(self, unsigned long long before, const unsigned char* block, Py_ssize_t n)
    cdef _note_sizes(self, const unsigned char* updates, Py_ssize_t n)
    cdef Py_ssize_t _begin(self, const unsigned char* block, Py_ssize_t n, Assembly out) except -1
    cdef void _count(self, HpackField* field) noexcept
    cdef Py_ssize_t _index(self, unsigned long long entry) except -1
    cdef int _write_same(self, const unsigned char* block, HpackField* field, Assembly out) except -1
    cdef int _write_other(
        self, const unsigned char* block, HpackField* field, bytes name, bytes became, Assembly out
    ) except -1
    cdef int _write_name(self, const unsigned char* block, HpackField* field, Assembly out) except -1
    cdef int _spell_out(self, bytes name, bytes value, Assembly out) except -1
    cdef _forget_evicted(self)

cdef int write_plain(Assembly out, bytes name, bytes value) except -1

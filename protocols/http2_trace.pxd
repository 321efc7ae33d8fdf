from protocols.assembly cimport Assembly
from protocols.hpack cimport Decoder, HpackField
from protocols.trace_context cimport Ids, TraceContext


cdef class TraceRewriter:
    cdef Decoder decoder
    cdef dict diverged             # number of the sender's entry -> what of it the receiver has otherwise; or None

    cdef TraceContext rewrite(self, Ids ids, const unsigned char* block, Py_ssize_t n, Assembly out)
    cdef bint translate(self, const unsigned char* block, Py_ssize_t n, Assembly out) except -1
    cdef _forget_evicted(self)
    cdef _write_field(
        self, const unsigned char* block, HpackField* field, bytes name, bytes value, bytes became, Assembly out
    )
    cdef _diverge(self, HpackField* field, int how)

cdef int write_plain(Assembly out, bytes name, bytes value) except -1

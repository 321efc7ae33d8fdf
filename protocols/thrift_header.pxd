from protocols.trace_context cimport Ids, TraceContext

cdef enum:
    HEADER_PREFIX = 14           # frame length, magic, flags, sequence id, size of the header in words
    MIN_HEADER_FRAME = 10        # of them, those that the frame length counts
    MAX_HEADER = 60 * 1024       # of which more is neither collected nor changed; that of HTTP/1's heads

cdef enum Transform:
    PLAIN
    ZLIB
    OTHER        # something that is not read
    BROKEN


# The head of one frame of the header transport, collected: what it says, and what it becomes.
cdef class HeaderBlock:
    cdef Transform transform
    cdef bytes request_id
    cdef TraceContext trace      # None where no trace headers could be read
    cdef bytes became            # the bytes that are to go on instead; None where those that came do

    cdef int read(
        self, const unsigned char* p, Py_ssize_t n, Ids ids, bint may_change, unsigned int frame_limit
    ) except -1
    cdef int _continue(
        self, const unsigned char* p, Py_ssize_t n, Py_ssize_t infos, Ids ids, bint may_change,
        unsigned int frame_limit
    ) except -1
    cdef bytes _named(self, const unsigned char* p, Py_ssize_t pair)

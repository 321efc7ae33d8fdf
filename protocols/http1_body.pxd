from protocols.http1_head cimport Fault

cdef enum Framing:
    EMPTY = 0
    SIZED
    CHUNKED
    UNTIL_CLOSE

cdef struct Body:
    Framing framing
    bint complete
    unsigned long long remaining
    int state
    int digits
    int fields
    Py_ssize_t line
    Py_ssize_t trailers

cdef void begin_body(Body* body, Framing framing, unsigned long long length) noexcept nogil
cdef Py_ssize_t payload(const Body* body, Py_ssize_t n) noexcept nogil
cdef Fault advance(Body* body, const unsigned char* p, Py_ssize_t n, Py_ssize_t* used) noexcept nogil

cpdef enum ContentType:
    OTHER = 0
    RPC = 1       # application/grpc: messages are DATA, trailers are trailers
    WEB = 2       # application/grpc-web: trailers are the last frame of the body
    WEB_TEXT = 3  # application/grpc-web-text: the same in base64

# Where one direction of one call stands among its messages; all zero at its beginning.
cdef struct Messages:
    int prefix               # octets read of the prefix that is being read
    unsigned char flags      # its first octet
    unsigned int length      # what was read of the other four
    unsigned int remaining   # octets to come of the current message


cdef class WebMessages:
    cdef readonly unsigned long long count
    cdef readonly bint compressed
    cdef readonly int status
    cdef readonly bytes message
    cdef bint text
    cdef unsigned int bits
    cdef int bit_count
    cdef Messages frames
    cdef bytearray trailers
    cdef bint trailers_read

    cdef int read(self, const unsigned char* p, Py_ssize_t n) except -1
    cdef int _read_base64(self, const unsigned char* p, Py_ssize_t n) except -1
    cdef int _read_frames(self, const unsigned char* p, Py_ssize_t n) except -1
    cdef int _read_trailers(self) except -1


cdef ContentType content_type(const unsigned char* p, Py_ssize_t n) noexcept nogil
cdef int count_messages(Messages* m, const unsigned char* p, Py_ssize_t n, bint* compressed) noexcept nogil
cpdef double timeout_seconds(bytes value)
cpdef bytes percent_decoded(bytes message)
cpdef int status_of(bytes value)
cpdef str status_name(int status)

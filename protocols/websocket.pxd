from protocols.assembly cimport Assembly
from protocols.codec cimport Codec
from protocols.exchange cimport End

# Where the reading of one direction's frames stands.
cdef struct Frames:
    unsigned char header[14]       # of the frame that is being read, as far as it came
    int have
    bint in_payload
    unsigned char opcode
    bint masked                    # this direction's frames must be
    unsigned long long remaining   # bytes of payload still to come
    unsigned int mask_at           # how many of them were unmasked, modulo 4
    bint in_message                # a message began and its last frame did not come yet
    bint closed                    # Close was said: what follows is not read


cdef class WebSocket(Codec):
    cdef Codec inner
    cdef bint strict
    cdef bint over
    cdef bint framing_lost
    cdef Frames downstream
    cdef Frames upstream

    cdef bytes _read(self, Frames* frames, bytes data, double now)
    cdef str _take(self, Frames* frames, const unsigned char* p, Py_ssize_t n, Assembly out)
    cdef _follow(self, double now)
    cdef _give_up(self, str reason, double now)
    cdef bint _hand_over(self, str reason, double now)

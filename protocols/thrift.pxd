from protocols.assembly cimport Assembly
from protocols.codec cimport Codec
from protocols.exchange cimport End, Exchange
from protocols.thrift_messages cimport Reader, Step
from protocols.trace_context cimport Ids

cdef enum Transport:
    UNKNOWN
    BUFFERED     # messages one after the other
    FRAMED       # each in a frame
    HEADER       # each in a frame with a head of its own

cdef enum Stage:
    BETWEEN
    PREFIX       # the first bytes, which say what the message comes in
    HEAD         # the head of a frame of the header transport
    BEYOND       # what of it is too long to be collected
    INFLATING    # a payload that is read through its transform
    MESSAGE
    REST         # of a frame: passes by count

# What the first bytes are.
cdef enum Look:
    WAIT
    READ
    READ_HEADER
    NO_THRIFT
    EMPTY
    TOO_LARGE

cdef enum:
    LONGEST_PREFIX = 6           # a frame's length, and the magic of the header transport


# One direction.
cdef class Lane:
    cdef bint downstream
    cdef Transport transport
    cdef Transport coming_in           # of the current message
    cdef Stage stage
    cdef bint head_read
    cdef bint closed
    cdef double began                  # when the first byte of the current message came
    cdef unsigned long long uncounted  # bytes of it that its exchange has not been told of
    cdef Exchange exchange             # what it belongs to; None before its head is read, and when nobody asked
    cdef Reader reader
    cdef int prefix_length
    cdef unsigned char[LONGEST_PREFIX] prefix
    cdef unsigned int frame_length
    cdef Py_ssize_t frame_left

    # The bytes of the message so far, in `head` or `prefix`, have not gone on; some of them came in an earlier piece.
    cdef bint holding
    cdef bint held_before
    cdef bytes instead                 # what goes on now instead of them
    cdef bytes left                    # what was not passed on when the engine gave up

    # The header transport.
    cdef bytearray head                # of a frame, which is being collected
    cdef Py_ssize_t head_size          # how much of it is to be
    cdef Py_ssize_t beyond             # what will not be
    cdef object inflater
    cdef Py_ssize_t inflated
    cdef bytes request_id
    cdef bytes trace_id
    cdef bytes span_id
    cdef bytes parent_id
    cdef bint sampled

    cdef bytes held(self)


cdef class Thrift(Codec):
    cdef public unsigned int frame_limit
    cdef Ids ids
    cdef bint strict
    cdef bint over
    cdef bint looking_on               # what is read has gone on already
    cdef bint exceeding
    cdef bint proven                   # a whole call was read
    cdef bint echoes                   # the server gave back a sequence id
    cdef Lane down
    cdef Lane up
    cdef dict asked                    # by sequence id: the call that awaits its reply, or a deque of several
    cdef Py_ssize_t kept
    cdef Py_ssize_t read_at_once       # of what was inflated
    cdef bytes last_method
    cdef int no_upstream               # errno of the dial that failed, 0 if none did

    cdef bytes _relay(self, Lane lane, bytes data, double now)
    cdef _begin(self, Lane lane, double now)
    cdef Py_ssize_t _prefix(self, Lane lane, const unsigned char* p, Py_ssize_t n, double now) except -1
    cdef Look _look(self, Lane lane, const unsigned char* p, Py_ssize_t n, Py_ssize_t* used)
    cdef _let_go(self, Lane lane, bytes instead)
    cdef Py_ssize_t _read(self, Lane lane, const unsigned char* p, Py_ssize_t n, double now) except -1
    cdef Py_ssize_t _pass(self, Lane lane, Py_ssize_t n, double now) except -1
    cdef Py_ssize_t _head(self, Lane lane, const unsigned char* p, Py_ssize_t n, double now) except -1
    cdef Py_ssize_t _beyond(self, Lane lane, Py_ssize_t n) except -1
    cdef Py_ssize_t _inflate(self, Lane lane, const unsigned char* p, Py_ssize_t n, double now) except -1
    cdef bint _may_inflate(self, Lane lane) noexcept
    cdef Step _message_head(self, Lane lane, double now) except *
    cdef _begin_call(self, Lane lane, double now)
    cdef _await(self, Exchange exchange)
    cdef Exchange _take_asked(self, Lane lane)
    cdef Exchange _answered(self, Lane lane, object sequence, object waiting)
    cdef _note_result(self, Lane lane)
    cdef _count(self, Lane lane)
    cdef _message_over(self, Lane lane, double now)
    cdef _forget(self, Exchange exchange)
    cdef list _in_flight(self)
    cdef _take_out(self, Exchange exchange)
    cdef _finish(self, Exchange exchange, End how, double now)
    cdef _end_all(self, End how, int error, double now)
    cdef Exchange _unread_reply(self)
    cdef Exchange _unread_call(self)
    cdef _fault(self, Lane lane, str reason, str text, double now, bint of_peer=*)
    cdef _message_fault(self, Lane lane, double now)
    cdef _give_up(self, str reason, double now)
    cdef _refuse(self, End how, int error, double now)

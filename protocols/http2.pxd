from protocols.codec cimport Codec
from protocols.exchange cimport End, Exchange
from protocols.grpc cimport ContentType, Messages, WebMessages
from protocols.hpack cimport Decoder, HpackField
from protocols.http2_frames cimport Block
from protocols.http2_trace cimport TraceRewriter
from protocols.trace_context cimport Ids


cdef class Stream:
    cdef Exchange exchange
    cdef unsigned int id
    cdef bint response_begun
    cdef bint id_cut               # its request id is longer than what is kept of it
    cdef Messages request
    cdef Messages response
    cdef WebMessages web_request
    cdef WebMessages web_response


# One direction: where the reading of its frames stands, what it keeps, and what was counted against its limits.
cdef class Lane:
    cdef bint downstream
    cdef Lane other
    cdef bytearray held            # from the first byte of a frame, or of a header block, that is not complete
    cdef double held_since
    cdef double block_began        # when the first octet came of the header block that is being read
    cdef Py_ssize_t preface        # octets of the client's preface still to come
    cdef bint settled              # its first SETTINGS frame was seen
    cdef Decoder decoder
    cdef bint trace_fields          # the list just decoded has some
    cdef TraceRewriter trace

    # The frame whose payload goes on as it comes.
    cdef Py_ssize_t passing
    cdef Py_ssize_t padding
    cdef bint padded
    cdef bint dropping
    cdef bint ends_stream
    cdef Py_ssize_t dropped
    cdef Stream stream
    cdef bytes pending             # frames of ours that wait for the end of that frame

    cdef Py_ssize_t max_frame      # what the receiver allows
    cdef long long data_frames
    cdef long long window_updates
    cdef long long priorities
    cdef int empty_frames
    cdef int pings
    cdef int settings


cdef class Http2(Codec):
    cdef Ids ids
    cdef bint strict
    cdef bint over
    cdef Lane down
    cdef Lane up
    cdef dict streams
    cdef dict cut                  # an ordered set
    cdef unsigned int last_stream
    cdef unsigned int last_promised
    cdef long long opened
    cdef long long goaway_last
    cdef unsigned int goaway_code
    cdef int closed
    cdef int premature
    cdef unsigned int initial_window
    cdef tuple no_upstream
    cdef bint downstream_closed
    cdef bytes last_authority
    cdef bytearray reply
    cdef Py_ssize_t kept

    cdef upgraded(self, Exchange exchange)
    cdef bytes _relay(self, Lane lane, bytes data, double now)
    cdef Py_ssize_t _preface(self, Lane lane, const unsigned char* p, Py_ssize_t n, double now)
    cdef _count_bytes(self, Lane lane, Py_ssize_t n)
    cdef bint _count_empty(self, Lane lane, double now) except -1
    cdef _data(self, Lane lane, const unsigned char* p, Py_ssize_t n, double now)
    cdef _data_over(self, Lane lane, double now)
    cdef bint _control(
        self, Lane lane, const unsigned char* p, Py_ssize_t length, int kind, int flags, unsigned int stream, double now
    ) except -1
    cdef bint _settings(self, Lane lane, const unsigned char* p, Py_ssize_t length, int flags, double now) except -1
    cdef _goaway(self, const unsigned char* p, double now)
    cdef _end_if_given_up(self, Stream stream, double now)
    cdef bint _rst_stream(self, Lane lane, unsigned int id, unsigned int code, double now) except -1
    cdef bint _headers(self, Lane lane, const unsigned char* f, Block* block, double now) except -1
    cdef _open(self, unsigned int id, Py_ssize_t size, double now)
    cdef tuple _read_request(self, Stream stream, Lane lane)
    cdef _note_authority(self, Exchange exchange, HpackField* field)
    cdef _is_grpc(self, Stream stream, ContentType announced, bytes timeout)
    cdef bint _within_limits(
        self, Lane lane, Stream stream, int own_fields, Py_ssize_t own_octets, double now
    ) except -1
    cdef bint _identify(self, Stream stream, Lane lane, const unsigned char* block, Py_ssize_t n) except -1
    cdef bint _read_response(
        self, Stream stream, Lane lane, const unsigned char* block, Py_ssize_t n, double now
    ) except -1
    cdef _read_status(self, Stream stream, Lane lane)
    cdef _side_ended(self, Lane lane, Stream stream, double now)
    cdef _finish(self, Stream stream, End how, double now)
    cdef _end_all(self, End how, int error, str fault, double now)
    cdef _end_connection(self, End how, int error, str fault, double now)
    cdef bytes _let_go(self, Lane lane)
    cdef _inject(self, Lane lane, bytes frames)
    cdef _queue(self, Lane lane, bytes frames)
    cdef _cut_stream(self, Lane lane, Stream stream, str fault, double now)
    cdef _refuse_block(self, Lane lane, int found, double now)
    cdef _exceed(self, Lane lane, str limit, str text, double now)
    cdef _fault(self, Lane lane, str reason, str text, double now)
    cdef _refuse(self, Lane lane, int code, str text, double now)
    cdef _fall_open(self, str reason, double now)
    cdef _answer_unreachable(self, double now)

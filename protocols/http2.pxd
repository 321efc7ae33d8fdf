from protocols.assembly cimport Assembly
from protocols.codec cimport Codec
from protocols.exchange cimport End, Exchange
from protocols.grpc cimport ContentType, Messages, WebMessages
from protocols.hpack cimport Decoder, HpackField
from protocols.http2_fields cimport Rewriter
from protocols.http2_frames cimport Block
from protocols.trace_context cimport Ids


# What becomes of a header block.
cdef enum Passage:
    AS_IT_CAME
    EDITED      # it goes on as `edited` says
    SWALLOWED   # it does not go on


cdef class Stream:
    cdef Exchange exchange
    cdef unsigned int id
    cdef bint response_begun
    cdef Py_ssize_t kept           # octets of text
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
    cdef Rewriter rewriter

    # The frame whose payload goes on as it comes.
    cdef Py_ssize_t passing
    cdef Py_ssize_t padding
    cdef bint padded
    cdef bint dropping
    cdef bint ends_stream
    cdef Py_ssize_t dropped
    cdef Py_ssize_t to_give_back   # of the connection's window, to the sender
    cdef Stream stream
    cdef bytes pending             # frames of ours that wait for the end of that frame

    cdef Py_ssize_t max_frame      # what the receiver allows
    cdef long long goaway_code     # of its last GOAWAY, or -1
    cdef long long octets          # all that came
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
    cdef set cut
    cdef unsigned int last_stream
    cdef unsigned int last_promised
    cdef long long opened
    cdef long long goaway_last
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
    cdef Py_ssize_t _say_pending(
        self, Lane lane, Assembly out, const unsigned char* p, Py_ssize_t copied, Py_ssize_t position
    ) except -1
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
    cdef Passage _headers(self, Lane lane, const unsigned char* f, Block* block, double now) except *
    cdef Passage _as_it_was(self, Lane lane, const unsigned char* p, Py_ssize_t n) except *
    cdef Passage _request_block(
        self, Lane lane, Block* block, const unsigned char* p, Py_ssize_t n, double now
    ) except *
    cdef Passage _response_block(
        self, Lane lane, Block* block, const unsigned char* p, Py_ssize_t n, double now
    ) except *
    cdef Passage _promise(self, Lane lane, Block* block, const unsigned char* p, Py_ssize_t n, double now) except *
    cdef Stream _open(self, unsigned int id, Py_ssize_t size, double began, double now)
    cdef tuple _read_request(self, Stream stream, Lane lane)
    cdef _note_authority(self, Exchange exchange, HpackField* field, Py_ssize_t room)
    cdef _is_grpc(self, Stream stream, ContentType announced, bytes timeout)
    cdef str _over_limit(self, Lane lane, int own_fields, Py_ssize_t own_octets)
    cdef Passage _identify(self, Stream stream, Lane lane, const unsigned char* block, Py_ssize_t n) except *
    cdef _edit(self, Lane lane, const unsigned char* block, Py_ssize_t n)
    cdef Passage _read_response(
        self, Stream stream, Lane lane, const unsigned char* block, Py_ssize_t n, double now
    ) except *
    cdef _read_status(self, Stream stream, Lane lane)
    cdef _side_ended(self, Lane lane, Stream stream, double now)
    cdef _finish(self, Stream stream, End how, double now)
    cdef _end_all(self, End how, int error, str fault, double now)
    cdef _end_connection(self, End how, int error, str fault, double now)
    cdef bytes _let_go(self, Lane lane)
    cdef _inject(self, Lane lane, bytes frames)
    cdef _queue(self, Lane lane, bytes frames)
    cdef _refuse_request(self, Lane lane, Stream stream, bint head, str fault, double now)
    cdef _refuse_response(self, Lane lane, Stream stream, str fault, double now)
    cdef _cut(self, Lane lane, Stream stream, End how, str fault, double now)
    cdef _refuse_block(self, Lane lane, int found, double now)
    cdef _exceed(self, Lane lane, str limit, str text, double now)
    cdef _fault(self, Lane lane, str reason, str text, double now)
    cdef _refuse(self, Lane lane, int code, str text, double now)
    cdef _fall_open(self, Lane lane, str reason, double now)
    cdef _answer_if_asked(self, double now)

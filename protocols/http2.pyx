"""HTTP/2 and the gRPC on it, as a relay of frames.

Frames go on as they came, each stream with its own id, and flow control stays the business of the two ends.
Both directions' header blocks are decoded in the order of the wire; two kinds of block change on the way: the
head of a request, to which ids are appended and in which trace headers are continued, and the head of its final
response, which gives the request id back. How that leaves the dynamic tables of the two ends each other's is said
in ``http2_fields``.

Never held back: anything but a frame or a header block that is not complete. Never refused: what could be a peer's
own way of doing HTTP/2; what cannot be followed is carried untouched from there. Floods are (see ``_exceed``), and
header lists that are too long, of which the other side never hears.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING
from libc.string cimport memcmp

from protocols.assembly cimport Assembly
from protocols.codec cimport EXCEEDED, FINISHED, Opaque, REFUSED, REPLY, Refusal, SUCCEEDED
from protocols.exchange cimport (
    COMPLETE, DIAL_FAILED, DOWNSTREAM_FAULT, DOWNSTREAM_FIN, DOWNSTREAM_RST, DOWNSTREAM_RST_STREAM, End, Exchange,
    GRPC, HEAD_TIMEOUT, HTTP_2, Rpc, TCP, UNREADABLE, UPSTREAM_FAULT, UPSTREAM_FIN, UPSTREAM_GOAWAY, UPSTREAM_RST,
    UPSTREAM_RST_STREAM,
)
from protocols.grpc cimport (
    ContentType, OTHER, WEB, WEB_TEXT, WebMessages, content_type, count_messages, percent_decoded, status_name,
    status_of, timeout_seconds,
)
from protocols.hpack cimport Decoder, HpackFault, HpackField, SOUND, TABLE_TOO_LARGE
from protocols.http1_head cimport MAX_FIELDS, MAX_OWN, OWN_LINE
from protocols.http2_fields cimport Rewriter, write_plain
from protocols.http2_frames cimport (
    ACK, Block, COMPLETE_BLOCK, CONTINUATION, DATA, END_STREAM, FRAME_HEADER, Found, GOAWAY, HEADERS, INCOMPLETE,
    MAX_BLOCK, MAX_CONTINUATIONS, MAX_EMPTY, PADDED, PING, PUSH_PROMISE, RST_STREAM, SETTINGS, SMALLEST_MAX_FRAME,
    TOO_LARGE, TOO_MANY_EMPTY, TOO_MANY_FRAMES, WINDOW_UPDATE, find_block, join_fragments, u24, u31, u32,
    well_formed, write_block,
)
from protocols.trace_context cimport Ids, TraceContext, new_trace

from protocols import http2_answers as answers
from protocols.detect import HTTP_2_PREFACE
from protocols.hpack import FAULTS as HPACK_FAULTS
from protocols.http2_codes import ErrorCode

# RFC 9113 section 6.5.2
cdef enum:
    SETTINGS_INITIAL_WINDOW_SIZE = 4
    SETTINGS_MAX_FRAME_SIZE = 5
    LAST_STREAM = 0x7FFFFFFF

cdef enum:
    PREFACE_LENGTH = 24

# Envoy's defaults (transparency.md).
cdef enum:
    MAX_LIST = 60 * 1024          # names and values of one header list
    # Not counted as fields, for HTTP/1 has them in its first line: :method, :scheme, :authority, :path, :protocol.
    MAX_PSEUDO = 5
    PRIORITIES_PER_STREAM = 100
    UNANSWERED = 1000
    RESET_WINDOW = 500
cdef double PREMATURE_SECONDS = 1.0

# Our own limits of what is kept.
cdef enum:
    MAX_STREAMS = 4096            # in flight on one connection, 1 to 2 KB each
    MAX_CUT = 100                 # streams of a connection that we ended, and whose frames are dropped
    MAX_PENDING = 16 * 1024
    MAX_KEPT = 1024 * 1024        # texts of the streams in flight; beyond, MAX_KEPT_TEXT of each
    MAX_KEPT_TEXT = 256
    MAX_TARGET = 8 * 1024
    MAX_TEXT = 1024
    # What may be spelled out instead of being referred to: a repeated traceparent takes 1 octet as it came, 70
    # spelled out, and comes with at least 16 others.
    FREE_SPELLING = 64 * 1024
    SPELLED_PER_OCTET = 16

cdef bytes PREFACE = HTTP_2_PREFACE
_METHODS = {m: m for m in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH")}

# Each is used up within one call.
cdef Assembly assembly = Assembly()
cdef Assembly edited = Assembly()     # a header block that goes on in another form
cdef Assembly fragments = Assembly()  # a header block that came in several frames


cdef class Stream:
    """One request with its response, while either is under way."""


cdef class Lane:
    def __cinit__(self, bint downstream):
        self.downstream = downstream
        self.decoder = Decoder()
        # What the receiver allows is the receiver's to enforce: an encoder may only take what it knows is allowed.
        self.decoder.set_limit(0xFFFFFFFF)
        self.rewriter = Rewriter(self.decoder)
        self.max_frame = SMALLEST_MAX_FRAME
        self.goaway_code = -1
        self.preface = PREFACE_LENGTH if downstream else 0


cdef inline bint _is(
    const unsigned char* name, Py_ssize_t length, const char* text, Py_ssize_t text_length
) noexcept nogil:
    return length == text_length and memcmp(name, text, length) == 0


cdef _answer(Exchange exchange, int status, int grpc_status, str text):
    """Note that ARCA itself answers so."""
    exchange.status = status if exchange.rpc is None else 200
    if exchange.rpc is not None:
        exchange.rpc.status = grpc_status
        exchange.rpc.message = text.encode()


cdef object _asked(Stream stream):
    cdef Exchange exchange = stream.exchange
    grpc = None
    if exchange.rpc is not None:
        grpc = "application/grpc-web" if exchange.rpc.web else "application/grpc"
    return answers.Asked(stream.id, exchange.method, exchange.request_id, grpc, exchange.request_complete)


cdef class Http2(Codec):
    """The engine of one connection; see ``codec.pyi`` for its methods.

    ``ids`` gives new ids and the sampling rate. With ``strict`` what cannot be followed is refused, not carried.
    """

    def __init__(self, Ids ids, bint strict = False):
        self.ids = ids
        self.strict = strict
        self.down = Lane(True)
        self.up = Lane(False)
        self.down.other = self.up
        self.up.other = self.down
        self.streams = {}
        self.cut = set()
        self.goaway_last = -1
        self.initial_window = 65535

    cdef upgraded(self, Exchange exchange):
        """The request that came as HTTP/1 with ``Upgrade: h2c`` is stream 1 (RFC 7540 section 3.2)."""
        cdef Stream stream = Stream.__new__(Stream)
        stream.id = self.last_stream = 1
        stream.exchange = exchange
        exchange.stream = 1
        exchange.request_complete = True
        exchange.protocol = HTTP_2
        if exchange.rpc is not None:
            # gRPC-Web, of which there is no need here: it has HTTP/2 without an upgrade.
            exchange.rpc = None
            exchange.method = b"POST"
        # The request's HTTP2-Settings may have raised it already.
        self.up.max_frame = 0xFFFFFF
        self.opened = 1
        self.streams[1] = stream
        self.in_flight = 1
        stream.kept = self.kept = _kept(exchange)

    cpdef str protocol_name(self):
        return "http/2"

    cpdef bytes from_downstream(self, bytes data, double now):
        cdef bytes out = self._relay(self.down, data, now)
        if self.no_upstream is not None and not self.over:
            self._answer_if_asked(now)
        return out

    cpdef bytes from_upstream(self, bytes data, double now):
        return self._relay(self.up, data, now)

    # -- frames --------------------------------------------------------------------------------------------

    cdef bytes _relay(self, Lane lane, bytes data, double now):
        cdef const unsigned char* p
        cdef const unsigned char* f
        cdef Py_ssize_t n, position = 0, copied = 0, used, length
        cdef int kind, flags
        cdef unsigned int stream
        cdef bytearray owner = lane.held
        cdef Assembly out = assembly
        cdef Block block
        cdef Found found
        cdef Passage passage

        if self.over:
            return b""
        lane.octets += len(data)
        if owner is None:
            p = <const unsigned char*>PyBytes_AS_STRING(data)
            n = len(data)
        else:
            owner.extend(data)
            p = <const unsigned char*>PyByteArray_AS_STRING(owner)
            n = len(owner)
        out.length = 0
        if lane.preface:
            position = self._preface(lane, p, n, now)

        while position < n and not self.over:
            if lane.passing:
                if lane.padded:
                    # The first octet of the payload says how much padding is at its end (section 6.1).
                    lane.padded = False
                    lane.padding = p[position]
                    if lane.padding >= lane.passing:
                        self._fault(lane, "frame", "padding longer than its DATA frame", now)
                        break
                    if lane.padding < lane.passing - 1:
                        lane.empty_frames = 0
                    elif not lane.ends_stream and not self._count_empty(lane, now):
                        break
                    used = 1
                    if lane.stream is not None:
                        self._count_bytes(lane, 1)
                else:
                    used = min(lane.passing, n - position)
                    if lane.stream is not None:
                        self._data(lane, p + position, used, now)
                if lane.dropping:
                    out.add(p + copied, position - copied)
                    copied = position + used
                lane.passing -= used
                position += used
                if lane.passing == 0:
                    self._data_over(lane, now)
                continue
            if lane.pending is not None and lane.settled:
                copied = self._say_pending(lane, out, p, copied, position)
            if n - position < FRAME_HEADER:
                break
            f = p + position
            length = u24(f)
            kind = f[3]
            flags = f[4]
            stream = u31(f + 5)
            if not lane.settled and (kind != SETTINGS or stream or flags & ACK or length % 6):
                self._fault(lane, "not_http2", "the first frame is not SETTINGS", now)
                break
            if length > lane.max_frame:
                self._fault(lane, "frame", f"a frame of {length} octets, {lane.max_frame} are allowed", now)
                break

            if kind == DATA:
                if stream == 0 or flags & PADDED and length == 0:
                    self._fault(lane, "frame", "a DATA frame without a stream, or without its padding", now)
                    break
                lane.data_frames += 1
                lane.ends_stream = flags & END_STREAM
                lane.padded = flags & PADDED
                lane.padding = 0
                lane.passing = length
                lane.stream = self.streams.get(stream)
                if length:
                    if not lane.padded:
                        lane.empty_frames = 0
                elif not lane.ends_stream and not self._count_empty(lane, now):
                    break
                if lane.stream is not None:
                    self._count_bytes(lane, FRAME_HEADER)
                elif stream in self.cut:
                    lane.dropping = True
                    lane.dropped = length
                    out.add(p + copied, position - copied)
                    copied = position + FRAME_HEADER
                elif lane.downstream and stream > self.last_stream:
                    self._fault(lane, "frame", "DATA on a stream that was never opened", now)
                    break
                position += FRAME_HEADER
                if length == 0:
                    self._data_over(lane, now)
            elif kind == HEADERS or kind == PUSH_PROMISE:
                if stream == 0 or kind == PUSH_PROMISE and lane.downstream:
                    self._fault(lane, "frame", "a header block without a stream, or promised by a client", now)
                    break
                found = find_block(f, n - position, lane.max_frame, lane.empty_frames, &block)
                if found == INCOMPLETE:
                    break
                if found != COMPLETE_BLOCK:
                    self._refuse_block(lane, found, now)
                    break
                lane.empty_frames = block.empty_frames
                lane.block_began = now if owner is None or position else lane.held_since
                # By what has come up to the end of this block, however much more was read with it.
                lane.rewriter.allowance = FREE_SPELLING + SPELLED_PER_OCTET * (
                    lane.octets - (n - position - block.size)
                )
                passage = self._headers(lane, f, &block, now)
                if self.over:
                    # Whatever ended the connection, the block that did so goes no further; or all is carried on.
                    break
                if passage != AS_IT_CAME:
                    out.add(p + copied, position - copied)
                    copied = position + block.size
                    if passage == EDITED:
                        write_block(out, f, &block, edited)
                position += block.size
            elif kind > CONTINUATION:
                # Of an extension: "implementations MUST ignore" (section 5.5), so both ends can have it.
                lane.ends_stream = False
                lane.passing = length
                position += FRAME_HEADER
            else:
                if not well_formed(kind, length, stream):
                    self._fault(lane, "frame", "a frame of the wrong length, or on the wrong stream", now)
                    break
                if length > MAX_BLOCK and kind == SETTINGS:
                    self._exceed(lane, "settings", f"a SETTINGS frame of more than {MAX_BLOCK // 1024} KiB", now)
                    break
                # What follows the code of a GOAWAY is text, of any length, and for the receiver alone.
                used = 8 if kind == GOAWAY else length
                if n - position < FRAME_HEADER + used:
                    break
                if not self._control(lane, f + FRAME_HEADER, length, kind, flags, stream, now):
                    if self.over:
                        break
                    out.add(p + copied, position - copied)
                    copied = position + FRAME_HEADER + length
                position += FRAME_HEADER + used
                lane.ends_stream = False
                lane.passing = length - used

        if lane.to_give_back and not self.over:
            self._inject(lane.other, answers.window_update(min(lane.to_give_back, <Py_ssize_t>LAST_STREAM)))
            lane.to_give_back = 0
        if self.over and self.successor is None:
            lane.held = None
        elif position < n:
            if owner is None or position:
                lane.held = bytearray(p[position:n])
                lane.held_since = now
        elif owner is not None:
            lane.held = None
        if lane.pending is not None and lane.settled and lane.passing == 0 and not self.over:
            copied = self._say_pending(lane, out, p, copied, position)
        return out.passed(data if owner is None and position == n else None, p, copied, position)

    cdef Py_ssize_t _say_pending(
        self, Lane lane, Assembly out, const unsigned char* p, Py_ssize_t copied, Py_ssize_t position
    ) except -1:
        """Put our own frames here, between two that pass; answers what is written of ``p`` now."""
        out.add(p + copied, position - copied)
        out.add(PyBytes_AS_STRING(lane.pending), len(lane.pending))
        lane.pending = None
        return position

    cdef Py_ssize_t _preface(self, Lane lane, const unsigned char* p, Py_ssize_t n, double now):
        """The client's first octets (section 3.4); answers how many of the ``n`` they are."""
        cdef const char* expected = PyBytes_AS_STRING(PREFACE) + PREFACE_LENGTH - lane.preface
        cdef Py_ssize_t used = 0
        while used < min(n, lane.preface):
            if p[used] != <unsigned char>expected[used]:
                self._fault(lane, "not_http2", "the connection does not begin with the preface of HTTP/2", now)
                return used
            used += 1
        lane.preface -= used
        return used

    cdef inline _count_bytes(self, Lane lane, Py_ssize_t n):
        if lane.downstream:
            lane.stream.exchange.request_bytes += n
        else:
            lane.stream.exchange.response_bytes += n

    cdef bint _count_empty(self, Lane lane, double now) except -1:
        """An empty frame that ends nothing; answers whether that may be."""
        lane.empty_frames += 1
        if lane.empty_frames <= MAX_EMPTY:
            return True
        self._exceed(lane, "empty_frames", f"more than {MAX_EMPTY} empty frame in a row", now)
        return False

    cdef _data(self, Lane lane, const unsigned char* p, Py_ssize_t n, double now):
        """``n`` octets of a DATA frame's payload, without the octet that tells its padding."""
        cdef Stream stream = lane.stream
        cdef Rpc rpc = stream.exchange.rpc
        cdef Py_ssize_t content = min(n, lane.passing - lane.padding)
        cdef int begun
        cdef bint compressed = False
        self._count_bytes(lane, n)
        if rpc is None or content <= 0:
            return
        if lane.downstream:
            if stream.web_request is not None:
                begun = stream.web_request.read(p, content)
                compressed = stream.web_request.compressed
            else:
                begun = count_messages(&stream.request, p, content, &compressed)
            rpc.request_messages += begun
        else:
            if stream.web_response is not None:
                begun = stream.web_response.read(p, content)
                compressed = stream.web_response.compressed
                if stream.web_response.status >= 0:
                    rpc.status = stream.web_response.status
                    rpc.message = stream.web_response.message
            else:
                begun = count_messages(&stream.response, p, content, &compressed)
            if begun and rpc.first_message < 0:
                rpc.first_message = now
            rpc.response_messages += begun
        if compressed:
            rpc.compressed = True

    cdef _data_over(self, Lane lane, double now):
        """The frame whose payload was passed on is at its end."""
        cdef Stream stream = lane.stream
        lane.stream = None
        if lane.dropping:
            lane.dropping = False
            # The receiver never saw it, so only we can give its sender the connection's window back.
            lane.to_give_back += lane.dropped
        elif lane.ends_stream and stream is not None:
            self._side_ended(lane, stream, now)

    cdef bint _control(
        self, Lane lane, const unsigned char* p, Py_ssize_t length, int kind, int flags, unsigned int stream, double now
    ) except -1:
        """A complete frame that is not part of a message; answers whether it goes on."""
        if kind == WINDOW_UPDATE:
            lane.window_updates += 1
            if lane.window_updates > 5 + 2 * (self.opened + 10 * lane.other.data_frames):
                self._exceed(lane, "window_update", "WINDOW_UPDATE frames out of proportion to what they answer", now)
                return False
            return stream not in self.cut
        elif kind == RST_STREAM:
            return self._rst_stream(lane, stream, u32(p), now)
        elif kind == PING:
            if flags & ACK:
                lane.other.pings = max(0, lane.other.pings - 1)
            else:
                lane.pings += 1
                if lane.pings > UNANSWERED:
                    self._exceed(lane, "ping", f"more than {UNANSWERED} PING frames that wait for an answer", now)
                    return False
        elif kind == SETTINGS:
            return self._settings(lane, p, length, flags, now)
        elif kind == GOAWAY:
            lane.goaway_code = u32(p + 4)
            if not lane.downstream:
                self._goaway(p, now)
        else:
            lane.priorities += 1
            if lane.priorities > PRIORITIES_PER_STREAM * (1 + self.opened):
                self._exceed(lane, "priority", f"more than {PRIORITIES_PER_STREAM} PRIORITY frames per stream", now)
                return False
        return True

    cdef bint _settings(self, Lane lane, const unsigned char* p, Py_ssize_t length, int flags, double now) except -1:
        cdef Py_ssize_t at
        cdef int name
        lane.settled = True
        if flags & ACK:
            lane.other.settings = max(0, lane.other.settings - 1)
            return True
        lane.settings += 1
        if lane.settings > UNANSWERED:
            self._exceed(lane, "settings", f"more than {UNANSWERED} SETTINGS frames that wait for an answer", now)
            return False
        for at in range(0, length, 6):
            name = (p[at] << 8) | p[at + 1]
            if name == SETTINGS_MAX_FRAME_SIZE:
                # A smaller value counts for the other end only when it has heard of it: keep the larger one.
                lane.other.max_frame = max(lane.other.max_frame, <Py_ssize_t>min(u32(p + at + 2), <unsigned>0xFFFFFF))
            elif name == SETTINGS_INITIAL_WINDOW_SIZE and lane.downstream:
                self.initial_window = min(u32(p + at + 2), <unsigned>0x7FFFFFFF)
        return True

    cdef _goaway(self, const unsigned char* p, double now):
        """Upstream says which streams it has not looked at and never will (section 6.8)."""
        cdef Stream stream
        self.goaway_last = u31(p)
        for stream in list(self.streams.values()):
            self._end_if_given_up(stream, now)

    cdef _end_if_given_up(self, Stream stream, double now):
        if 0 <= self.goaway_last < stream.id and stream.id & 1 and not stream.response_begun:
            stream.exchange.stream_error = self.up.goaway_code
            self._finish(stream, UPSTREAM_GOAWAY, now)

    cdef bint _rst_stream(self, Lane lane, unsigned int id, unsigned int code, double now) except -1:
        cdef Stream stream = self.streams.get(id)
        cdef bint premature
        if stream is None:
            # Both ends of a stream that we cut were told already.
            return id not in self.cut
        if stream.exchange.response_complete or lane.downstream and not id & 1:
            # RFC 9113 section 8.1: what is left of the request is not wanted any more. Nor is what was pushed.
            self._finish(stream, COMPLETE, now)
            return True
        # To decline what was pushed is no attack: the server asked for it.
        premature = (
            lane.downstream and id & 1 and not stream.response_begun
            and now - stream.exchange.started < PREMATURE_SECONDS
        )
        stream.exchange.stream_error = code
        self._finish(stream, DOWNSTREAM_RST_STREAM if lane.downstream else UPSTREAM_RST_STREAM, now)
        if premature:
            self.premature += 1
            if 2 * self.premature >= RESET_WINDOW:
                self._exceed(lane, "rapid_reset", "too many requests reset before they could be answered", now)
                return False
        return True

    # -- header blocks -------------------------------------------------------------------------------------

    cdef Passage _headers(self, Lane lane, const unsigned char* f, Block* block, double now) except *:
        """A complete header block: read, and its stream begun, continued or ended by it."""
        cdef const unsigned char* p = f + FRAME_HEADER + block.prefix
        cdef Py_ssize_t n = u24(f) - block.prefix - block.padding
        cdef unsigned long long before = lane.decoder.inserted
        cdef HpackFault fault
        cdef Passage passage
        if block.frames > 1:
            join_fragments(f, block, fragments)
            p = <const unsigned char*>fragments.bytes
            n = fragments.length
        fault = lane.decoder.decode(p, n)
        if fault != SOUND:
            self._fault(lane, "table_too_large" if fault == TABLE_TOO_LARGE else "hpack", HPACK_FAULTS[fault], now)
            return AS_IT_CAME
        if block.type == PUSH_PROMISE:
            passage = self._promise(lane, block, p, n, now)
        elif lane.downstream:
            passage = self._request_block(lane, block, p, n, now)
        else:
            passage = self._response_block(lane, block, p, n, now)
        if passage == SWALLOWED:
            lane.rewriter.swallow(before, p, n)
        elif lane.rewriter.exhausted:
            self._exceed(lane, "expansion", "references to trace headers that take too much to spell out", now)
            return SWALLOWED  # what was written of it is not whole
        return passage

    cdef Passage _as_it_was(self, Lane lane, const unsigned char* p, Py_ssize_t n) except *:
        """A block of which nothing is to change, unless the receiver would understand it otherwise."""
        if lane.decoder.count < lane.decoder.total and lane.rewriter.differs():
            return SWALLOWED  # fields that were not kept cannot be translated
        return EDITED if lane.rewriter.translate(p, n, edited) else AS_IT_CAME

    cdef Passage _request_block(
        self, Lane lane, Block* block, const unsigned char* p, Py_ssize_t n, double now
    ) except *:
        cdef Stream stream = self.streams.get(block.stream)
        cdef Passage passage
        if stream is None:
            if block.stream <= self.last_stream:
                # Behind the end of a stream that is over already, or was never begun upstream.
                return SWALLOWED if block.stream in self.cut else self._as_it_was(lane, p, n)
            if not block.stream & 1:
                self._fault(lane, "frame", "a stream that is not the client's to open", now)
                return AS_IT_CAME
            self.last_stream = block.stream
            stream = self._open(block.stream, block.size, lane.block_began, now)
            if self.over:
                return AS_IT_CAME
            own_fields, own_octets = self._read_request(stream, lane)
            stream.exchange.request_complete = block.flags & END_STREAM
            fault = self._over_limit(lane, own_fields, own_octets)
            if fault is not None:
                self._refuse_request(lane, stream, True, fault, now)
                return SWALLOWED
            passage = self._identify(stream, lane, p, n)
        else:
            stream.exchange.request_bytes += block.size
            if block.flags & END_STREAM:
                stream.exchange.request_complete = True
            fault = self._over_limit(lane, 0, 0)
            if fault is not None:
                self._refuse_request(lane, stream, False, fault, now)
                return SWALLOWED
            passage = self._as_it_was(lane, p, n)
        if block.flags & END_STREAM:
            self._side_ended(lane, stream, now)
        else:
            self._end_if_given_up(stream, now)
        return passage

    cdef Passage _response_block(
        self, Lane lane, Block* block, const unsigned char* p, Py_ssize_t n, double now
    ) except *:
        cdef Stream stream = self.streams.get(block.stream)
        cdef Passage passage
        if stream is None:
            return SWALLOWED if block.stream in self.cut else self._as_it_was(lane, p, n)
        stream.exchange.response_bytes += block.size
        # Neither :status nor the id that another ARCA gave back is the server's to answer for.
        fault = self._over_limit(lane, 1 if stream.response_begun else 2, OWN_LINE)
        if fault is not None:
            self._refuse_response(lane, stream, fault, now)
            return SWALLOWED
        if stream.response_begun:
            self._read_status(stream, lane)
            passage = self._as_it_was(lane, p, n)
        else:
            passage = self._read_response(stream, lane, p, n, now)
        if block.flags & END_STREAM:
            self._side_ended(lane, stream, now)
        return passage

    cdef Passage _promise(self, Lane lane, Block* block, const unsigned char* p, Py_ssize_t n, double now) except *:
        """PUSH_PROMISE: a request that the server makes up, whose response it sends unasked (section 8.4)."""
        cdef Stream stream
        if block.promised & 1 or block.promised <= self.last_promised:
            self._fault(lane, "frame", "a promise of a stream that is not the server's to open", now)
            return AS_IT_CAME
        self.last_promised = block.promised
        stream = self._open(block.promised, block.size, now, now)
        if self.over:
            return AS_IT_CAME
        own_fields, own_octets = self._read_request(stream, lane)
        stream.exchange.request_complete = True
        fault = self._over_limit(lane, own_fields, own_octets)
        if fault is not None:
            self._inject(lane.other, answers.rst_stream(stream.id, ErrorCode.CANCEL))
            self._cut(lane, stream, UPSTREAM_FAULT, fault, now)
            return SWALLOWED
        return self._as_it_was(lane, p, n)

    cdef Stream _open(self, unsigned int id, Py_ssize_t size, double began, double now):
        """A new stream, begun by a header block of ``size`` octets with its frames' headers; None if it is one
        too many to follow."""
        cdef Stream stream
        cdef Exchange exchange
        if self.in_flight >= MAX_STREAMS:
            self._fall_open(self.down, "too_many_streams", now)
            return None
        stream = Stream.__new__(Stream)
        exchange = Exchange.__new__(Exchange, HTTP_2, began)
        stream.id = exchange.stream = id
        stream.exchange = exchange
        exchange.request_bytes = size
        self.streams[id] = stream
        self.opened += 1
        self.in_flight += 1
        return stream

    cdef tuple _read_request(self, Stream stream, Lane lane):
        """Note what a request's header list says. Answers how many of its fields, and of their octets, an ARCA
        may have put there."""
        cdef Exchange exchange = stream.exchange
        cdef HpackField* field
        cdef const unsigned char* name
        cdef Py_ssize_t length, i, room, own_octets = 0
        cdef int own_fields = 0, pseudo = 0
        cdef bint traceparent = False, request_id = False
        cdef ContentType announced = OTHER
        cdef bytes timeout = None
        room = MAX_TARGET if self.kept < MAX_KEPT else MAX_KEPT_TEXT
        lane.trace_fields = False
        for i in range(lane.decoder.count):
            field = &lane.decoder.fields[i]
            name = field.name
            length = field.name_length
            if length == 0:
                continue
            if name[0] == c":":
                pseudo += 1
                if _is(name, length, b":method", 7):
                    exchange.method = field.value[:min(field.value_length, <Py_ssize_t>MAX_KEPT_TEXT)]
                    exchange.method = _METHODS.get(exchange.method, exchange.method)
                elif _is(name, length, b":path", 5):
                    exchange.target = field.value[:min(field.value_length, room)]
                elif _is(name, length, b":authority", 10):
                    self._note_authority(exchange, field, room)
                elif _is(name, length, b":protocol", 9):
                    exchange.tunnel = True
            elif _is(name, length, b"b3", 2) or length > 5 and memcmp(name, b"x-b3-", 5) == 0:
                lane.trace_fields = True
                own_octets += min(length + field.value_length, <Py_ssize_t>OWN_LINE)
            elif length == 12:
                if memcmp(name, b"x-request-id", 12) == 0:
                    if not request_id:
                        request_id = True
                        exchange.request_id = field.value[:min(field.value_length, <Py_ssize_t>MAX_TEXT, room)]
                        stream.id_cut = len(exchange.request_id) < field.value_length
                        own_fields += 1
                        own_octets += min(length + field.value_length, <Py_ssize_t>OWN_LINE)
                elif memcmp(name, b"content-type", 12) == 0:
                    announced = content_type(field.value, field.value_length)
                elif memcmp(name, b"grpc-timeout", 12) == 0 and field.value_length < 16:
                    timeout = field.value[:field.value_length]
            elif length == 11 and memcmp(name, b"traceparent", 11) == 0:
                lane.trace_fields = True
                if not traceparent:
                    traceparent = True
                    own_fields += 1
                    own_octets += min(length + field.value_length, <Py_ssize_t>OWN_LINE)
            elif _is(name, length, b"tracestate", 10):
                lane.trace_fields = True
            elif length == 4 and exchange.authority is None and memcmp(name, b"host", 4) == 0:
                self._note_authority(exchange, field, room)
        exchange.tunnel = exchange.tunnel or exchange.method == b"CONNECT"
        if announced != OTHER:
            self._is_grpc(stream, announced, timeout)
        stream.kept = _kept(exchange)
        self.kept += stream.kept
        return own_fields + min(pseudo, <int>MAX_PSEUDO), min(own_octets, <Py_ssize_t>MAX_OWN)

    cdef _note_authority(self, Exchange exchange, HpackField* field, Py_ssize_t room):
        cdef Py_ssize_t length = min(field.value_length, <Py_ssize_t>MAX_TEXT, room)
        if self.last_authority is None or not _is(
            field.value, length, PyBytes_AS_STRING(self.last_authority), len(self.last_authority)
        ):
            self.last_authority = field.value[:length]
        exchange.authority = self.last_authority

    cdef _is_grpc(self, Stream stream, ContentType announced, bytes timeout):
        cdef Exchange exchange = stream.exchange
        exchange.protocol = GRPC
        exchange.rpc = Rpc()
        exchange.rpc.web = announced == WEB or announced == WEB_TEXT
        if exchange.rpc.web:
            stream.web_request = WebMessages(announced == WEB_TEXT)
            stream.web_response = WebMessages(announced == WEB_TEXT)
        if timeout is not None:
            exchange.rpc.timeout = timeout_seconds(timeout)
        if exchange.target is not None:
            exchange.method = exchange.target[1:] if exchange.target.startswith(b"/") else exchange.target
        self.in_flight_grpc += 1

    cdef str _over_limit(self, Lane lane, int own_fields, Py_ssize_t own_octets):
        """What is too much of the list just decoded; None where nothing is."""
        if lane.decoder.total - own_fields > MAX_FIELDS:
            return f"more than {MAX_FIELDS} header fields"
        if <long long>lane.decoder.list_size - own_octets > MAX_LIST:
            return f"a header list of more than {MAX_LIST // 1024} KiB"
        return None

    cdef Passage _identify(self, Stream stream, Lane lane, const unsigned char* block, Py_ssize_t n) except *:
        """Give the request its ids, in ``edited``."""
        cdef Exchange exchange = stream.exchange
        cdef TraceContext trace
        if lane.trace_fields:
            trace = lane.rewriter.continued(self.ids, block, n, edited)
        else:
            trace = new_trace(self.ids)
            self._edit(lane, block, n)
        if trace.traceparent is not None and not trace.in_place:
            write_plain(edited, b"traceparent", trace.traceparent)
        exchange.trace_id = trace.trace_id
        exchange.span_id = trace.span_id
        exchange.parent_id = trace.parent_id
        exchange.sampled = trace.sampled
        if exchange.request_id is None:
            exchange.request_id = self.ids.uuid()
            write_plain(edited, b"x-request-id", exchange.request_id)
        return AS_IT_CAME if edited.length == n and memcmp(edited.bytes, block, n) == 0 else EDITED

    cdef _edit(self, Lane lane, const unsigned char* block, Py_ssize_t n):
        """Put the block as the receiver must have it into ``edited``, for more to be added."""
        if not lane.rewriter.translate(block, n, edited):
            edited.length = 0
            edited.add(block, n)

    cdef Passage _read_response(
        self, Stream stream, Lane lane, const unsigned char* block, Py_ssize_t n, double now
    ) except *:
        """The head of a response, interim or final."""
        cdef Exchange exchange = stream.exchange
        cdef HpackField* field
        cdef Py_ssize_t i, room
        cdef int status = 0
        cdef bint identified = False
        for i in range(lane.decoder.count):
            field = &lane.decoder.fields[i]
            if field.name_length == 7 and memcmp(field.name, b":status", 7) == 0:
                if field.value_length == 3:
                    status = (field.value[0] - c"0") * 100 + (field.value[1] - c"0") * 10 + (field.value[2] - c"0")
            elif field.name_length == 12 and memcmp(field.name, b"x-request-id", 12) == 0:
                identified = True
        if 100 <= status < 200:
            return self._as_it_was(lane, block, n)
        stream.response_begun = True
        exchange.first_byte = now
        exchange.status = status if 0 < status < 1000 else 0
        if exchange.rpc is not None:
            self._read_status(stream, lane)
        room = 0 if exchange.request_id is None else len(exchange.request_id)
        if identified or room == 0 or stream.id_cut or (
            room > OWN_LINE - 12 and lane.decoder.list_size + room + 12 > MAX_LIST
        ):
            return self._as_it_was(lane, block, n)
        self._edit(lane, block, n)
        write_plain(edited, b"x-request-id", exchange.request_id)
        return EDITED

    cdef _read_status(self, Stream stream, Lane lane):
        """What a gRPC call came to: in its trailers, or in the head of a response that has nothing else."""
        cdef Rpc rpc = stream.exchange.rpc
        cdef HpackField* field
        cdef Py_ssize_t i
        if rpc is None:
            return
        for i in range(lane.decoder.count):
            field = &lane.decoder.fields[i]
            if field.name_length == 11 and memcmp(field.name, b"grpc-status", 11) == 0:
                rpc.status = status_of(field.value[:min(field.value_length, <Py_ssize_t>16)])
            elif field.name_length == 12 and memcmp(field.name, b"grpc-message", 12) == 0:
                rpc.message = percent_decoded(field.value[:min(field.value_length, <Py_ssize_t>(3 * MAX_TEXT))])

    # -- ends ----------------------------------------------------------------------------------------------

    cdef _side_ended(self, Lane lane, Stream stream, double now):
        """END_STREAM: the request is complete, or the response."""
        cdef Exchange exchange = stream.exchange
        if lane.downstream:
            exchange.request_complete = True
        else:
            exchange.response_complete = True
            exchange.ended = now
        if exchange.response_complete and (exchange.request_complete or self.downstream_closed):
            self._finish(stream, COMPLETE, now)
        else:
            self._end_if_given_up(stream, now)

    cdef _finish(self, Stream stream, End how, double now):
        cdef Exchange exchange = stream.exchange
        del self.streams[stream.id]
        # The other side may have ended it in the middle of one of its frames.
        if self.down.stream is stream:
            self.down.stream = None
        if self.up.stream is stream:
            self.up.stream = None
        self.in_flight -= 1
        self.kept -= stream.kept
        if exchange.rpc is not None:
            self.in_flight_grpc -= 1
            if exchange.rpc.status >= 0:
                exchange.code = status_name(exchange.rpc.status)
        exchange.end = how
        if how != COMPLETE or exchange.ended < 0:
            exchange.ended = now
        self.finished.append(exchange)
        self.signals |= FINISHED
        self.closed += 1
        if self.closed >= RESET_WINDOW:
            self.closed = self.premature = 0

    cdef _end_all(self, End how, int error, str fault, double now):
        """Everything in flight ends; an exchange whose answer is complete ended well."""
        cdef Stream stream
        for stream in list(self.streams.values()):
            if stream.exchange.response_complete:
                self._finish(stream, COMPLETE, now)
            else:
                stream.exchange.error = error
                stream.exchange.fault = fault
                # Why the side that went away did, if it said so.
                if how == DOWNSTREAM_FIN or how == DOWNSTREAM_RST:
                    stream.exchange.stream_error = self.down.goaway_code
                elif how == UPSTREAM_FIN or how == UPSTREAM_RST:
                    stream.exchange.stream_error = self.up.goaway_code
                self._finish(stream, how, now)

    cdef _end_connection(self, End how, int error, str fault, double now):
        """As ``_end_all``, but where nothing was in flight the connection itself is the exchange that ended so."""
        cdef Exchange exchange
        if not self.streams:
            exchange = Exchange.__new__(Exchange, HTTP_2, now)
            exchange.end = how
            exchange.error = error
            exchange.fault = fault
            exchange.ended = now
            self.finished.append(exchange)
            self.signals |= FINISHED
        self._end_all(how, error, fault, now)

    cpdef bytes downstream_eof(self, double now):
        self.downstream_closed = True
        return self._let_go(self.down)

    cpdef bytes upstream_eof(self, double now):
        cdef bytes rest
        if self.over:
            return b""
        rest = self._let_go(self.up)
        self._end_all(DOWNSTREAM_FIN if self.downstream_closed else UPSTREAM_FIN, 0, None, now)
        return rest

    cdef bytes _let_go(self, Lane lane):
        """A frame that will never be complete is the receiver's to judge."""
        cdef bytearray held = lane.held
        lane.held = None
        return b"" if held is None or self.over and self.successor is None else bytes(held)

    cpdef bytes take_held_request(self):
        return self._let_go(self.down)

    cpdef bytes take_held_response(self):
        return self._let_go(self.up)

    cpdef end(self, End how, int error, double now):
        if self.over:
            return
        if how == DOWNSTREAM_FIN or how == UPSTREAM_FIN or how == DOWNSTREAM_RST or how == UPSTREAM_RST:
            self._end_all(how, error, None, now)
        else:
            self._end_connection(how, error, None, now)
        self.down.held = self.up.held = None
        self.over = True

    cpdef list running(self, double before):
        cdef Stream stream
        return [stream.exchange for stream in self.streams.values() if stream.exchange.started < before]

    cpdef bint awaits_head(self, double since):
        return self.down.held is not None and self.down.held_since < since and not self.over

    cpdef bytes begin_drain(self):
        """The notice of section 6.8: no stream is given up by it, but a client opens no new ones after it."""
        cdef bytes notice = answers.goaway(
            LAST_STREAM, ErrorCode.NO_ERROR, "the proxy on the way is going away", settings_first=False
        )
        if self.over:
            return b""
        if self.up.passing or not self.up.settled:
            self._queue(self.up, notice)
            return b""
        return notice

    cpdef bytes farewell(self):
        if not self.up.settled or self.up.passing or self.over:
            return b""
        return answers.goaway(
            self.last_stream, ErrorCode.NO_ERROR, "the proxy on the way is going away", settings_first=False
        )

    # -- what ARCA itself says -----------------------------------------------------------------------------

    cpdef bytes take_reply(self):
        cdef bytearray reply = self.reply
        self.reply = None
        return b"" if reply is None else bytes(reply)

    cdef _inject(self, Lane lane, bytes frames):
        """Put ``frames`` between two frames of a direction: that of the other side than the one being heard."""
        if lane.settled and not lane.passing and lane.pending is None:
            if self.reply is None:
                self.reply = bytearray()
            self.reply += frames
            self.signals |= REPLY
        else:
            self._queue(lane, frames)

    cdef _queue(self, Lane lane, bytes frames):
        """Put ``frames`` behind the frame that is being passed on. More than fits here only an attack can cause."""
        if lane.pending is None:
            lane.pending = frames
        elif len(lane.pending) < MAX_PENDING:
            lane.pending += frames

    cdef _refuse_request(self, Lane lane, Stream stream, bint head, str fault, double now):
        """A header list of downstream that is too long: upstream never sees it. Downstream is answered 431, or
        RESOURCE_EXHAUSTED in gRPC, where there is no answer yet."""
        cdef Exchange exchange = stream.exchange
        if not head:
            self._queue(lane, answers.rst_stream(stream.id, ErrorCode.CANCEL))
        if stream.response_begun:
            self._inject(lane.other, answers.rst_stream(stream.id, ErrorCode.ENHANCE_YOUR_CALM))
        else:
            if exchange.request_id is None:
                exchange.request_id = self.ids.uuid()
            _answer(exchange, 431, 8, fault)
            self._inject(lane.other, answers.refusal(_asked(stream), 431, 8, f"the request was refused: {fault}"))
        self._cut(lane, stream, DOWNSTREAM_FAULT, fault, now)

    cdef _refuse_response(self, Lane lane, Stream stream, str fault, double now):
        """The same of upstream: downstream never sees it, and is answered 502, or INTERNAL in gRPC."""
        if stream.response_begun or not stream.id & 1:
            self._queue(lane, answers.rst_stream(stream.id, ErrorCode.INTERNAL_ERROR))
        else:
            _answer(stream.exchange, 502, 13, fault)
            self._queue(
                lane, answers.refusal(_asked(stream), 502, 13, f"the upstream's response was refused: {fault}")
            )
        self._inject(lane.other, answers.rst_stream(stream.id, ErrorCode.CANCEL))
        self._cut(lane, stream, UPSTREAM_FAULT, fault, now)

    cdef _cut(self, Lane lane, Stream stream, End how, str fault, double now):
        """One stream ends here; what either side still sends on it goes no further."""
        self.exceeded.append(("header_list", "downstream" if lane.downstream else "upstream"))
        self.signals |= EXCEEDED
        stream.exchange.fault = fault
        self.cut.add(stream.id)
        self._finish(stream, how, now)
        if len(self.cut) > MAX_CUT:
            self._refuse(lane, ErrorCode.ENHANCE_YOUR_CALM, f"more than {MAX_CUT} streams with {fault}", now)

    cdef _refuse_block(self, Lane lane, int found, double now):
        if found == TOO_MANY_FRAMES:
            self._exceed(lane, "continuation", f"more than {MAX_CONTINUATIONS} CONTINUATION frames in one block", now)
        elif found == TOO_MANY_EMPTY:
            self._exceed(lane, "empty_frames", f"more than {MAX_EMPTY} empty frame in a row", now)
        elif found == TOO_LARGE:
            self._exceed(lane, "header_block", f"a header block of more than {MAX_BLOCK // 1024} KiB", now)
        else:
            self._fault(lane, "frame", "a header block whose frames do not fit together", now)

    cdef _exceed(self, Lane lane, str limit, str text, double now):
        """A flood: the connection ends, counted, with GOAWAY to the side that it came from."""
        self.exceeded.append((limit, "downstream" if lane.downstream else "upstream"))
        self.signals |= EXCEEDED
        self._refuse(lane, ErrorCode.ENHANCE_YOUR_CALM, text, now)

    cdef _fault(self, Lane lane, str reason, str text, double now):
        """What cannot be followed is carried on untouched; with ``strict``, refused."""
        if self.strict:
            self._refuse(lane, ErrorCode.PROTOCOL_ERROR, text, now)
        else:
            self._fall_open(lane, reason, now)

    cdef _refuse(self, Lane lane, int code, str text, double now):
        cdef bytes answer = b"", to_upstream = b""
        self._end_connection(DOWNSTREAM_FAULT if lane.downstream else UPSTREAM_FAULT, 0, text, now)
        # In the middle of a frame nothing can be said any more.
        if not self.up.passing:
            answer = (self.up.pending or b"") if self.up.settled else b""
            answer += answers.goaway(
                self.last_stream, code if lane.downstream else ErrorCode.INTERNAL_ERROR, text,
                settings_first=not self.up.settled,
            )
        if not lane.downstream and not self.down.passing:
            to_upstream = answers.goaway(self.last_promised, code, text, settings_first=False)
        self.refusal = Refusal(answer, to_upstream)
        self.signals |= REFUSED
        self.over = True

    cdef _fall_open(self, Lane lane, str reason, double now):
        """From here on the bytes are carried without being read; unless they would mean something else then.

        That an older traceparent of ours is read where the sender refers to its own is the lesser evil.
        """
        if self.cut or self.down.rewriter.missing or self.up.rewriter.missing:
            self._refuse(lane, ErrorCode.INTERNAL_ERROR, f"the connection cannot be followed any more: {reason}", now)
            return
        self._end_all(UNREADABLE, 0, None, now)
        self.fallback = reason
        self.successor = Opaque(TCP, now)
        self.signals |= SUCCEEDED
        self.over = True

    cpdef refuse_late_head(self, double now):
        self._end_connection(HEAD_TIMEOUT, 0, None, now)
        self.refusal = Refusal(
            b"" if self.up.passing else answers.goaway(
                self.last_stream, ErrorCode.ENHANCE_YOUR_CALM,
                "the request head did not arrive within limits.head_timeout_seconds",
                settings_first=not self.up.settled,
            )
        )
        self.signals |= REFUSED
        self.over = True

    cpdef dial_failed(self, int error, int status, str cause, str text, double now):
        if self.over:
            return
        self.no_upstream = (error, status, cause, text)
        self._answer_if_asked(now)

    cdef _answer_if_asked(self, double now):
        """Every request so far is answered in the place of an upstream that cannot be reached."""
        cdef Stream stream
        cdef list asked = []
        if not self.streams and self.up.pending is None:
            return
        error, status, cause, text = self.no_upstream
        for stream in self.streams.values():
            asked.append(_asked(stream))
            _answer(stream.exchange, status, 14, text)
        self.refusal = Refusal(
            answers.unreachable(
                asked, status, cause, text, self.initial_window, self.last_stream, waiting=self.up.pending or b""
            )
        )
        self._end_all(DIAL_FAILED, error, None, now)
        self.signals |= REFUSED
        self.over = True


cdef inline Py_ssize_t _kept(Exchange exchange):
    """How many octets of its head an exchange keeps."""
    return (
        (0 if exchange.method is None else len(exchange.method))
        + (0 if exchange.target is None else len(exchange.target))
        + (0 if exchange.authority is None else len(exchange.authority))
        + (0 if exchange.request_id is None else len(exchange.request_id))
    )

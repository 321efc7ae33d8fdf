"""HTTP/1.0 and 1.1, observed and passed on.

What was validated is what is sent: heads go on byte for byte with one to three lines spliced in, bodies go
on as the very objects they came in. Each direction reads heads and bodies in turn; requests queue in the
order they came and responses are matched to them in that order (RFC 9112 section 9.3).

Three things end the engine before the connection ends. A request to become something else (CONNECT, Upgrade)
that upstream grants, or bytes that are not HTTP/1, hand the connection to a successor: to the engine of HTTP/2
for ``h2c``, to one that reads WebSocket's frames where they carry MQTT, else to one that carries it untouched.
Framing that two parsers could read differently is refused.
The engine must never hold back a byte that it could pass, except the head it has not seen the end of.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING
from libc.string cimport memcmp, memset

from protocols.assembly cimport Assembly
from protocols.codec cimport FINISHED, Opaque, REFUSED, RESUMABLE, Refusal, SUCCEEDED
from protocols.exchange cimport (
    COMPLETE, DIAL_FAILED, DOWNSTREAM_FAULT, DOWNSTREAM_FIN, GRPC, HEAD_TIMEOUT, HTTP_1_0, HTTP_1_1, Rpc, TCP,
    UNREADABLE, UPSTREAM_FAULT, UPSTREAM_FIN, WEBSOCKET,
)
from protocols.grpc cimport (
    ContentType, OTHER, WEB, WEB_TEXT, WebMessages, content_type, percent_decoded, status_name, status_of,
    timeout_seconds,
)
from protocols.http1_body cimport CHUNKED, EMPTY, Framing, SIZED, UNTIL_CLOSE, advance, begin_body, payload
from protocols.http1_head cimport (
    BARE_LF, Field, MAX_BLOCK, NONE, NOT_HTTP, OWN_LINE, UNASKED_101, find_end, named, parse_request, parse_response,
    same,
)
from protocols.http2 cimport Http2
from protocols.mqtt cimport Mqtt
from protocols.trace_context cimport TraceContext, continue_trace, gather, new_trace
from protocols.websocket cimport WebSocket

from http import HTTPStatus

from protocols.http1_head import FAULTS

cdef enum RequestState:
    HEAD
    BODY
    AWAIT_TUNNEL   # the newest request asked for a tunnel; what follows belongs to whatever upstream makes of it
    AWAIT_ANSWERS  # too many requests wait for their responses
    UNREAD         # upstream sent FIN and will not answer: what still comes goes on as it is
    CLOSED         # nothing more is taken

cdef enum:
    # Requests in flight on one connection before no more are read from it; they are let in again at half.
    # Browsers pipelined 4 to 6, nginx and HAProxy read one at a time.
    MAX_IN_FLIGHT = 64
    # The same for the bytes of their heads that are kept until they are answered.
    MAX_KEPT = 64 * 1024
    # What is kept of an authority, and of a request id once it need not be given back any more.
    MAX_TEXT = 1024

_METHODS = {m: m for m in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH")}
cdef bytes GET = next(m for m in _METHODS if m == b"GET")

cdef Head head  # of the message being read; used up before the call returns


cdef Assembly assembly = Assembly()


cdef inline void _rewind(Scan* scan) noexcept nogil:
    memset(scan, 0, sizeof(Scan))


cdef inline Py_ssize_t _kept(Exchange exchange):
    """How many bytes of its head an exchange keeps; none of them changes before it ends."""
    return (
        (0 if exchange.target is None else len(exchange.target))
        + (0 if exchange.authority is None else len(exchange.authority))
        + (0 if exchange.request_id is None else len(exchange.request_id))
        + (0 if exchange.rpc is None else len(exchange.method))
    )


cdef ContentType _web(const unsigned char* p, Head* head) noexcept nogil:
    """Which form of gRPC-Web the head announces, if any."""
    cdef Field* field
    cdef ContentType kind
    if head.content_type < 0:
        return OTHER
    field = &head.fields[head.content_type]
    kind = content_type(p + field.value, field.value_length)
    return kind if kind == WEB or kind == WEB_TEXT else OTHER


cdef bint _coded(const unsigned char* p, Head* head) noexcept nogil:
    """Whether the payload is compressed as a whole, by either kind of coding."""
    cdef Field* field
    cdef int i
    for i in range(head.field_count):
        field = &head.fields[i]
        if named(p, field, b"content-encoding", 16):
            if not same(p + field.value, field.value_length, b"identity", 8):
                return True
        elif named(p, field, b"transfer-encoding", 17):
            if not same(p + field.value, field.value_length, b"chunked", 7):
                return True
    return False


cdef bint _speaks_mqtt(const unsigned char* p, Head* head) noexcept nogil:
    """Whether a granted WebSocket carries MQTT in frames as RFC 6455 has them.

    The subprotocol of 3.1.1 and 5 is "mqtt" (MQTT 5.0 section 6), that of 3.1 "mqttv3.1" by custom. An extension
    may change the frames' payload (permessage-deflate, RFC 7692).
    """
    cdef Field* field
    cdef bint found = False
    cdef int i
    for i in range(head.field_count):
        field = &head.fields[i]
        if named(p, field, b"sec-websocket-protocol", 22):
            found = (
                same(p + field.value, field.value_length, b"mqtt", 4)
                or same(p + field.value, field.value_length, b"mqttv3.1", 8)
            )
        elif field.value_length and named(p, field, b"sec-websocket-extensions", 24):
            return False
    return found


def answer(int status, str text, *, bytes method=None, bytes request_id=None, str cause=None):
    """The response that ARCA itself gives: ``text`` says in one line what was wrong. The connection ends after it."""
    body = text.encode("latin-1", "replace") + b"\n"
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "server: arca",
        "content-type: text/plain; charset=latin-1",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    if cause is not None:
        lines.append(f"x-arca-cause: {cause}")
    encoded = "\r\n".join(lines).encode("latin-1")
    if request_id is not None:
        encoded += b"\r\nX-Request-ID: " + request_id
    return encoded + b"\r\n\r\n" + (b"" if method == b"HEAD" else body)


cdef class Http1(Codec):
    """The engine of one connection; see ``codec.pyi`` for its methods.

    ``ids`` gives new ids and the sampling rate. With ``strict`` what is not HTTP/1 is refused, not carried.
    """

    def __init__(self, Ids ids, bint strict = False):
        self.ids = ids
        self.strict = strict

    # -- requests ------------------------------------------------------------------------------------------

    cpdef bytes from_downstream(self, bytes data, double now):
        cdef const unsigned char* p
        cdef Py_ssize_t n, position = 0, copied = 0, used, insert
        cdef Fault fault
        cdef bytearray owner = self.held_request
        cdef Assembly out = assembly

        if self.over or self.request_state == CLOSED:
            return b""
        if owner is None:
            if self.request_state == BODY and self.request_body.framing == SIZED and self.request_web is None \
                    and <unsigned long long>len(data) < self.request_body.remaining:
                # The long middle of an upload: nothing to look at.
                self.request_body.remaining -= len(data)
                self.newest.request_bytes += len(data)
                return data
            p = <const unsigned char*>PyBytes_AS_STRING(data)
            n = len(data)
        else:
            owner.extend(data)
            p = <const unsigned char*>PyByteArray_AS_STRING(owner)
            n = len(owner)
        out.length = 0

        while position < n:
            if self.request_state == BODY:
                if self.request_web is None:
                    fault = advance(&self.request_body, p + position, n - position, &used)
                else:
                    fault = self._advance_web(&self.request_body, self.request_web, p + position, n - position, &used)
                    self.newest.rpc.request_messages = self.request_web.count
                    self.newest.rpc.compressed |= self.request_web.compressed
                self.newest.request_bytes += used
                position += used
                if fault != NONE:
                    self._refuse_request(fault, now)
                    break
                if self.request_body.complete:
                    self._request_complete(now)
            elif self.request_state == HEAD:
                if self.request_scan.position == 0:
                    if p[position] == c"\r" and (position + 1 == n or p[position + 1] == c"\n"):
                        # RFC 9112 section 2.2: an empty line before a request is no part of it. It goes on.
                        if position + 1 == n:
                            break
                        position += 2
                        continue
                    self.request_started = now
                fault = find_end(p + position, n - position, &self.request_scan, True)
                if fault == NONE and not self.request_scan.complete:
                    break
                if fault == NONE:
                    fault = parse_request(p + position, self.request_scan.position, &head)
                if fault == NOT_HTTP and self.asked and p[position] == c"\n":
                    # Behind a request it is an empty line, and the next request follows for whoever reads on.
                    fault = BARE_LF
                if fault == NOT_HTTP and not self.strict:
                    self._fall_open("not_http", now)
                    break
                if fault != NONE:
                    self.held_request = bytearray(p[position:n])
                    self._queue_partial()
                    self._refuse_request(fault, now)
                    break
                _rewind(&self.request_scan)
                insert = position + head.length - 2
                out.add(p + copied, position - copied)
                copied = position
                self._begin_exchange(p + position, &head, out)
                copied = insert
                position += head.length
                if self.no_upstream is not None:
                    self.dial_failed(*self.no_upstream, now)
                    self.held_request = None
                    return b""
                if self.request_body.complete:
                    self._request_complete(now)
            elif self.request_state == UNREAD:
                position = n
            else:
                break

        if self.downstream_closed and self.request_state == HEAD and not self.over:
            # A head that will never be complete: what it is to upstream, upstream decides.
            self.held_request = bytearray(p[position:n])
            self._queue_partial()
            self.request_state = CLOSED
            position = n
        if self.request_state == CLOSED or self.over and self.successor is None:
            self.held_request = None
        elif position < n:
            if owner is None or position:
                self.held_request = bytearray(p[position:n])
        elif owner is not None:
            self.held_request = None
        self.pause_downstream = self.held_request is not None and (
            self.request_state == AWAIT_TUNNEL or self.request_state == AWAIT_ANSWERS
        )
        return out.passed(data if owner is None and position == n else None, p, copied, position)

    cdef _begin_exchange(self, const unsigned char* p, Head* head, Assembly out):
        """Note what the head says and write it to ``out`` with our lines in it, all but its last CR LF."""
        cdef Exchange exchange = Exchange.__new__(
            Exchange, HTTP_1_0 if head.minor_version == 0 else HTTP_1_1, self.request_started
        )
        cdef Field* field
        cdef Py_ssize_t length
        cdef TraceContext trace
        cdef ContentType web
        if head.method_length == 3 and memcmp(p, b"GET", 3) == 0:
            exchange.method = GET
        else:
            exchange.method = p[:head.method_length]
            exchange.method = _METHODS.get(exchange.method, exchange.method)
        exchange.target = p[head.target:head.target + head.target_length]
        exchange.request_bytes = head.length
        exchange.tunnel = head.upgrade or exchange.method == b"CONNECT"
        if head.host >= 0:
            field = &head.fields[head.host]
            length = min(field.value_length, <Py_ssize_t>MAX_TEXT)
            if self.last_authority is None or len(self.last_authority) != length or memcmp(
                PyBytes_AS_STRING(self.last_authority), p + field.value, length
            ) != 0:
                self.last_authority = p[field.value:field.value + length]
            exchange.authority = self.last_authority

        if head.trace_fields:
            trace = self._rewrite_trace(p, head, out)
        else:
            trace = new_trace(self.ids)
            out.add(p, head.length - 2)
        if trace.traceparent is not None and not trace.in_place:
            out.add_line(b"traceparent: ", trace.traceparent)
        exchange.trace_id = trace.trace_id
        exchange.span_id = trace.span_id
        exchange.parent_id = trace.parent_id
        exchange.sampled = trace.sampled
        if head.request_id >= 0:
            field = &head.fields[head.request_id]
            exchange.request_id = p[field.value:field.value + field.value_length]
        else:
            exchange.request_id = self.ids.uuid()
            out.add_line(b"X-Request-ID: ", exchange.request_id)

        self.request_web = None
        if head.content_type >= 0 and exchange.method == b"POST":
            web = _web(p, head)
            if web != OTHER:
                self._begin_rpc(p, head, exchange, web)
        self.asked = True
        self.asked_h2c = head.h2c
        self._queue(exchange)
        begin_body(&self.request_body, CHUNKED if head.chunked else SIZED, head.content_length)
        self.request_state = BODY

    cdef _begin_rpc(self, const unsigned char* p, Head* head, Exchange exchange, ContentType web):
        """A gRPC-Web call. A target without a slash inside is none: no method can be taken for one of HTTP's."""
        cdef bytes path = exchange.target.split(b"?", 1)[0]
        cdef Field* field
        cdef Rpc rpc
        cdef int i
        if not path.startswith(b"/") or path.find(b"/", 1) < 0:
            return
        rpc = Rpc.__new__(Rpc)
        rpc.web = True
        for i in range(head.field_count):
            field = &head.fields[i]
            if named(p, field, b"grpc-timeout", 12):
                rpc.timeout = timeout_seconds(p[field.value:field.value + field.value_length])
                break
        exchange.rpc = rpc
        exchange.protocol = GRPC
        exchange.method = path[1:]
        if not _coded(p, head):
            self.request_web = WebMessages(web == WEB_TEXT)

    cdef Fault _advance_web(
        self, Body* body, WebMessages web, const unsigned char* p, Py_ssize_t n, Py_ssize_t* used
    ) except? NOT_HTTP:
        """``advance`` over a body of which ``web`` reads the payload."""
        cdef Py_ssize_t position = 0, length, step
        cdef Fault fault = NONE
        while position < n and not body.complete and fault == NONE:
            length = payload(body, n - position)
            if length:
                web.read(p + position, length)
            fault = advance(body, p + position, length if length else 1, &step)
            position += step
        used[0] = position
        return fault

    cdef TraceContext _rewrite_trace(self, const unsigned char* p, Head* head, Assembly out):
        """Write the head to ``out`` as ``_begin_exchange`` does, with its trace headers continued."""
        cdef list traceparents = [], tracestates = [], found = []
        cdef dict b3 = {}
        cdef bytes name, value, became
        cdef Py_ssize_t copied = 0
        cdef Field* field
        cdef int i
        cdef TraceContext trace
        for i in range(head.field_count):
            field = &head.fields[i]
            if not (1 < field.name_length < 18):
                continue
            name = (<bytes>p[field.start:field.start + field.name_length]).lower()
            value = p[field.value:field.value + field.value_length]
            if gather(name, value, traceparents, tracestates, b3):
                found.append((i, name, value))
        trace = continue_trace(self.ids, traceparents, tracestates, b3)
        for i, name, value in found:
            field = &head.fields[i]
            became = trace.becomes(name, value)
            if became is value:
                continue
            if became is None:
                out.add(p + copied, field.start - copied)
                copied = field.end
            else:
                out.add(p + copied, field.value - copied)
                out.add(PyBytes_AS_STRING(became), len(became))
                copied = field.value + field.value_length
        out.add(p + copied, head.length - 2 - copied)
        return trace

    cdef _request_complete(self, double now):
        cdef Exchange exchange = self.newest
        exchange.request_complete = True
        if self.upstream_closed:
            self.request_state = UNREAD
        elif exchange.tunnel and exchange.status == 0:
            self.request_state = AWAIT_TUNNEL
        elif (self.in_flight >= MAX_IN_FLIGHT or self.kept >= MAX_KEPT) and not self.downstream_closed:
            self.request_state = AWAIT_ANSWERS
        else:
            self.request_state = HEAD
        if exchange.response_complete:
            self._pop(now)

    cpdef bytes downstream_eof(self, double now):
        self.downstream_closed = True
        if self.request_state == AWAIT_ANSWERS:
            self.request_state = HEAD
        return self.from_downstream(b"", now)

    # -- responses -----------------------------------------------------------------------------------------

    cpdef bytes from_upstream(self, bytes data, double now):
        cdef const unsigned char* p
        cdef Py_ssize_t n, position = 0, copied = 0, used
        cdef Fault fault
        cdef bytearray owner = self.held_response
        cdef Assembly out = assembly
        cdef Exchange exchange

        if self.over:
            return b""
        if owner is None:
            if self.response_in_body and self.response_web is None and (
                self.response_body.framing == UNTIL_CLOSE
                or self.response_body.framing == SIZED and <unsigned long long>len(data) < self.response_body.remaining
            ):
                # The long middle of a download: nothing to look at.
                self.response_body.remaining -= len(data)
                self.oldest.response_bytes += len(data)
                return data
            p = <const unsigned char*>PyBytes_AS_STRING(data)
            n = len(data)
        else:
            owner.extend(data)
            p = <const unsigned char*>PyByteArray_AS_STRING(owner)
            n = len(owner)
        out.length = 0

        while position < n and not self.over:
            exchange = self.oldest
            if exchange is None or exchange.response_complete:
                if self.strict:
                    self._refuse(b"", UPSTREAM_FAULT, 0, now)
                else:
                    self._fall_open("unsolicited_response", now)
                break
            if self.response_in_body:
                if self.response_web is None:
                    fault = advance(&self.response_body, p + position, n - position, &used)
                else:
                    fault = self._advance_web(&self.response_body, self.response_web, p + position, n - position, &used)
                    self._note_response(exchange, now)
                exchange.response_bytes += used
                position += used
                if fault != NONE:
                    self._refuse_response(fault, now)
                    break
                if self.response_body.complete:
                    self._response_complete(now)
                continue
            if self.response_scan.position == 0:
                self.response_started = now
            fault = find_end(p + position, n - position, &self.response_scan, False)
            if fault == NONE and not self.response_scan.complete:
                break
            if fault == NONE:
                fault = parse_response(p + position, self.response_scan.position, &head)
            if fault == NONE and head.status == 101 and self.strict and not exchange.tunnel:
                fault = UNASKED_101
            if fault == NOT_HTTP and not self.strict:
                self._fall_open("not_http", now)
                break
            if fault != NONE:
                self._refuse_response(fault, now)
                break
            _rewind(&self.response_scan)
            exchange.response_bytes += head.length
            position += head.length
            if head.status < 200 and head.status != 101:
                continue
            exchange.status = head.status
            exchange.first_byte = self.response_started
            if exchange.rpc is not None:
                self._begin_rpc_response(p + position - head.length, &head, exchange)
            # An id that somebody else made as long as this is left out where it would break the limit of a head.
            if head.request_id < 0 and exchange.request_id is not None and (
                len(exchange.request_id) <= OWN_LINE - 16
                or head.length + len(exchange.request_id) + 16 <= MAX_BLOCK
            ):
                out.add(p + copied, position - 2 - copied)
                out.add_line(b"X-Request-ID: ", exchange.request_id)
                copied = position - 2
            self._begin_response(exchange, p + position - head.length, now)

        if self.over and self.successor is None:
            self.held_response = None
        elif position < n:
            if owner is None or position:
                self.held_response = bytearray(p[position:n])
        elif owner is not None:
            self.held_response = None
        return out.passed(data if owner is None and position == n else None, p, copied, position)

    cdef _begin_rpc_response(self, const unsigned char* p, Head* head, Exchange exchange):
        """A response without messages may have its trailers in its head: "Trailers-Only"."""
        cdef Rpc rpc = exchange.rpc
        cdef Field* field
        cdef ContentType kind = _web(p, head)
        cdef int i
        for i in range(head.field_count):
            field = &head.fields[i]
            if rpc.status < 0 and named(p, field, b"grpc-status", 11):
                rpc.status = status_of(p[field.value:field.value + field.value_length])
            elif rpc.message is None and named(p, field, b"grpc-message", 12):
                rpc.message = percent_decoded(p[field.value:field.value + field.value_length])
        if rpc.status >= 0:
            exchange.code = status_name(rpc.status)
        self.response_web = None
        if kind != OTHER and not _coded(p, head):
            self.response_web = WebMessages(kind == WEB_TEXT)

    cdef _note_response(self, Exchange exchange, double now):
        """What ``response_web`` has read so far. The head's status stands: it was said first."""
        cdef Rpc rpc = exchange.rpc
        cdef WebMessages web = self.response_web
        if rpc.response_messages == 0 and web.count:
            rpc.first_message = now
        rpc.response_messages = web.count
        rpc.compressed |= web.compressed
        if exchange.code is None and web.status >= 0:
            rpc.status = web.status
            rpc.message = web.message
            exchange.code = status_name(rpc.status)

    cdef _begin_response(self, Exchange exchange, const unsigned char* p, double now):
        """The head of a final response at ``p`` was read into ``head``: what follows it? RFC 9112 section 6.3."""
        cdef Framing framing
        if (
            head.status == 101 and head.h2c and self.asked_h2c and exchange is self.newest
            and exchange.request_complete
        ):
            self._become_http2(exchange, now)
            return
        if head.status == 101 or (exchange.method == b"CONNECT" and head.status < 300):
            self._pop(now)
            if self.over:
                return
            if not exchange.tunnel:
                self._fall_open("unasked_101", now)
            elif head.websocket and _speaks_mqtt(p, &head):
                self._hand_over(WebSocket(Mqtt(self.ids, self.strict, True), self.strict), now)
            else:
                self._hand_over(Opaque(WEBSOCKET if head.websocket else TCP, now), now)
            return
        if head.status == 204 or head.status == 304 or exchange.method == b"HEAD":
            framing = EMPTY
        elif head.chunked:
            framing = CHUNKED
        elif head.has_content_length:
            framing = SIZED
        else:
            framing = UNTIL_CLOSE
        begin_body(&self.response_body, framing, 0 if framing == CHUNKED else head.content_length)
        self.response_in_body = True
        if self.request_state == AWAIT_TUNNEL and exchange is self.newest:
            # Declined: what downstream sends next is a request again.
            self._resume()
        if self.response_body.complete:
            self._response_complete(now)

    cdef _become_http2(self, Exchange exchange, double now):
        """Upstream granted h2c: the request that asked is answered as stream 1 (RFC 7540 section 3.2).

        One whose body is still coming as HTTP/1 is not, and goes the way of any other upgrade: downstream's
        frames begin in the middle of a stream that only its own body divides.
        """
        cdef Http2 http2 = Http2(self.ids, self.strict)
        exchange.status = 0
        exchange.first_byte = -1.0
        self.oldest = self.newest = None
        self.in_flight = self.in_flight_grpc = 0
        self.kept = 0
        http2.upgraded(exchange)
        self._hand_over(http2, now)

    cdef _response_complete(self, double now):
        cdef Exchange exchange = self.oldest
        self.response_in_body = False
        self.response_web = None
        exchange.response_complete = True
        if exchange.request_complete or self.downstream_closed:
            self._pop(now)

    cpdef bytes upstream_eof(self, double now):
        cdef bytes rest
        if self.over:
            return b""
        rest = self.take_held_response()
        self.upstream_closed = True
        if self.oldest is not None:
            self.oldest.response_bytes += len(rest)
            if self.response_in_body and self.response_body.framing == UNTIL_CLOSE:
                self.oldest.response_complete = True
        self._end_all(DOWNSTREAM_FIN if self.downstream_closed else UPSTREAM_FIN, 0, now)
        if self.request_state != HEAD and self.request_state != CLOSED:
            self._resume()
            self.request_state = UNREAD
        return rest

    # -- the queue of exchanges ----------------------------------------------------------------------------

    cdef _queue(self, Exchange exchange):
        if self.newest is None:
            self.oldest = exchange
        else:
            self.newest.following = exchange
        self.newest = exchange
        self.in_flight += 1
        self.in_flight_grpc += exchange.protocol == GRPC
        self.kept += _kept(exchange)

    cdef _queue_partial(self):
        """An exchange for a head that is not to be understood, with as much of it as can be told."""
        cdef Exchange exchange
        cdef list words
        if self.request_scan.position == 0:
            return
        exchange = Exchange.__new__(Exchange, HTTP_1_1, self.request_started)
        exchange.request_bytes = self.request_scan.position
        words = bytes(self.held_request[:min(512, self.request_scan.position)]).split(b"\n")[0].split(b" ", 2)
        if len(words) > 1:
            exchange.method = words[0][:32]
            exchange.target = words[1].rstrip(b"\r")
        self._queue(exchange)

    cdef _finish(self, Exchange exchange, End how, double now):
        exchange.end = how
        exchange.ended = now
        exchange.following = None
        if exchange.request_id is not None and len(exchange.request_id) > MAX_TEXT:
            exchange.request_id = exchange.request_id[:MAX_TEXT]
        self.finished.append(exchange)
        self.signals |= FINISHED

    cdef _pop(self, double now):
        """The oldest exchange came to its end; the one that follows is answered next."""
        cdef Exchange exchange = self.oldest
        self.oldest = exchange.following
        self.in_flight -= 1
        self.in_flight_grpc -= exchange.protocol == GRPC
        self.kept -= _kept(exchange)
        self._finish(exchange, COMPLETE, now)
        if self.oldest is None:
            self.newest = None
        elif self.oldest.fault is not None:
            self._answer_request_fault(now)
        if (
            self.request_state == AWAIT_ANSWERS
            and self.in_flight <= MAX_IN_FLIGHT // 2 and self.kept <= MAX_KEPT // 2
        ):
            self._resume()

    cdef _resume(self):
        self.request_state = HEAD
        self.pause_downstream = False
        if self.held_request is not None:
            self.signals |= RESUMABLE

    cdef _end_all(self, End how, int error, double now):
        """Everything in flight ends; an exchange whose answer is complete ended well."""
        cdef Exchange exchange = self.oldest, following
        while exchange is not None:
            following = exchange.following
            if exchange.fault is not None:
                self._finish(exchange, exchange.end, now)
            elif exchange.response_complete:
                self._finish(exchange, COMPLETE, now)
            else:
                exchange.error = error
                self._finish(exchange, how, now)
            exchange = following
        self.oldest = self.newest = None
        self.in_flight = self.in_flight_grpc = 0
        self.kept = 0
        self.response_in_body = False
        self.response_web = None

    cpdef end(self, End how, int error, double now):
        if self.over:
            return
        if self.request_state == HEAD:
            self._queue_partial()
        self._end_all(how, error, now)
        self.held_request = self.held_response = None
        self.over = True

    # -- what the engine does not carry on -----------------------------------------------------------------

    cdef _refuse_request(self, Fault fault, double now):
        """The newest request breaks the framing: nothing after it is read, and it is answered when its turn comes."""
        cdef Exchange exchange = self.newest
        self.request_state = CLOSED
        self.request_fault = fault
        exchange.end = DOWNSTREAM_FAULT
        exchange.fault = FAULTS[fault][1]
        if exchange is self.oldest:
            self._answer_request_fault(now)

    cdef _answer_request_fault(self, double now):
        cdef Exchange exchange = self.oldest
        if exchange.status or self.upstream_closed:
            # Its answer is on its way already, or none can be given any more.
            self._refuse(b"", DOWNSTREAM_FAULT, 0, now)
            return
        exchange.status = FAULTS[self.request_fault][0]
        self._refuse(
            answer(exchange.status, exchange.fault, method=exchange.method, request_id=exchange.request_id),
            DOWNSTREAM_FAULT, 0, now,
        )

    cdef _refuse_response(self, Fault fault, double now):
        """The response that is being read breaks the framing."""
        cdef Exchange exchange = self.oldest
        exchange.end = UPSTREAM_FAULT
        exchange.fault = FAULTS[fault][1]
        if self.response_in_body:
            self._refuse(b"", UPSTREAM_FAULT, 0, now)
            return
        exchange.status = 502
        self._refuse(
            answer(
                502, f"the upstream's response was refused: {exchange.fault}", method=exchange.method,
                request_id=exchange.request_id, cause="protocol_error",
            ),
            UPSTREAM_FAULT, 0, now,
        )

    cpdef dial_failed(self, int error, int status, str cause, str text, double now):
        cdef Exchange exchange = self.oldest
        if self.over:
            return
        if exchange is None:
            # Nobody asked yet; whoever does is told.
            self.no_upstream = (error, status, cause, text)
            return
        exchange.status = status
        self._refuse(
            answer(status, text, method=exchange.method, request_id=exchange.request_id, cause=cause),
            DIAL_FAILED, error, now,
        )

    cdef _refuse(self, bytes text, End rest, int error, double now):
        self._end_all(rest, error, now)
        self.refusal = Refusal(text)
        self.signals |= REFUSED
        self.over = True

    cdef _fall_open(self, str reason, double now):
        """From here on the bytes are carried without being read."""
        self._hand_over(Opaque(TCP, now), now)
        if self.successor is not None:
            self.fallback = reason

    cdef _hand_over(self, Codec successor, double now):
        if self.newest is not None and self.newest.fault is not None:
            # Bytes after a refused request were dropped already; none of them may go on unread.
            self._refuse(b"", UPSTREAM_FAULT, 0, now)
            return
        self._end_all(UNREADABLE, 0, now)
        self.successor = successor
        self.signals |= SUCCEEDED
        self.pause_downstream = False
        self.over = True

    cpdef bytes take_held_request(self):
        cdef bytearray held = self.held_request
        self.held_request = None
        return b"" if held is None else bytes(held)

    cpdef bytes take_held_response(self):
        cdef bytearray held = self.held_response
        self.held_response = None
        return b"" if held is None else bytes(held)

    cpdef refuse_late_head(self, double now):
        self.end(HEAD_TIMEOUT, 0, now)
        self.refusal = Refusal(answer(408, "the request head did not arrive within limits.head_timeout_seconds"))
        self.signals |= REFUSED

    cpdef str protocol_name(self):
        return "http/1.1"

    cpdef bint awaits_head(self, double since):
        return (
            self.request_scan.position > 0 and self.request_state == HEAD and not self.over
            and self.request_started < since
        )

"""What a worker tells of an exchange that ended: counted, remembered, written as one line of JSON.

Runs once per exchange on the byte path, so cells are resolved once per kind of outcome, and the line is put
together in one buffer that is handed up when it is full or twice a second. Nothing here waits: what the log
cannot take is dropped and counted, before it is put together where that is known. The names and their order
are those of contract.md.

A line is written through a pointer that goes from hand to hand: what writes names, numbers and constants needs
no more than MARGIN in all and never looks whether there is room, what writes anything of another length makes
room for it and for MARGIN behind it.
"""

import json
import time
from collections import deque

import msgspec

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, strcmp, strlen

from protocols.assembly cimport Assembly
from protocols.exchange cimport Exchange, MqttPacket, Rpc, ThriftCall
from proxy.cells cimport Counter, Histogram
from proxy.verdicts cimport decide

from protocols.exchange import PROTOCOL_NAMES
from protocols.verdict import OK
from proxy.metrics import OTHER

cdef enum:
    FLUSH_AT = 64 * 1024
    MARGIN = 4 * 1024     # bytes; three times what the fixed parts of the longest line come to
    DROPPED_AT_ONCE = 100 # lines, about as many as FLUSH_AT holds: so often a log that was full is asked again
    RING = 512            # exchanges remembered for /exchanges, about 1 KB each
    MAX_OUTCOMES = 4096   # kinds of outcome whose cells are kept at hand
    LAST_GRPC_STATUS = 16 # UNAUTHENTICATED
    # Numbers that a peer chooses freely are told apart up to here; those above are one kind of outcome.
    LAST_THRIFT_TYPE = 62
    LAST_THRIFT_FIELD = 64

cdef object _ok = OK
cdef bytes _OK_JSON = msgspec.json.encode(OK)
cdef bytes _OK_END = b',"tls":null,"tcp":null,"verdict":%b}\n' % _OK_JSON
cdef tuple _PROTOCOL_JSON = tuple(f'"{name}"'.encode() for name in PROTOCOL_NAMES)
cdef const char* HEX_DIGITS = b"0123456789abcdef"


cdef class Connection:
    def __init__(self, str id, str client, str server, bint inbound, double opened):
        self.id = id
        self.client = client
        self.server = server
        self.inbound = inbound
        self.opened = opened


cdef class Outcome:
    """The cells of one kind of outcome."""


cdef class Telemetry:
    def __init__(self, object cells, object log, object full=None):
        self.cells = cells
        self.log = log
        self.full = full
        self.slow = 2.0
        self.outcomes = {}
        self.healthy_kind = -1
        self.ring = deque(maxlen=RING)
        self.remember = self.ring.append
        self.lines = Assembly()
        self.dropped = cells.counter("arca_dropped_records_total", "exchanges")
        self.second = -1
        self._set_clock()

    def _set_clock(self):
        # The wall clock may be set while we run: it is read again at every flush.
        self.wall_offset = time.time() - time.monotonic()

    cpdef record(self, Exchange exchange, Connection connection, object tcp):
        cdef object verdict = decide(exchange, connection.server)
        cdef Outcome outcome = self._outcome(exchange, connection, verdict)
        outcome.requests.add(1)
        outcome.duration.observe(exchange.ended - exchange.started)
        if exchange.first_byte >= 0:
            outcome.ttfb.observe(exchange.first_byte - exchange.started)
        outcome.request_bytes.add(exchange.request_bytes)
        outcome.response_bytes.add(exchange.response_bytes)
        self.remember((exchange, connection, verdict, tcp))
        self._log(exchange, connection, verdict, tcp, exchange.ended)

    cpdef record_running(self, Exchange exchange, Connection connection, object tcp, double now):
        self._log(exchange, connection, None, tcp, now)

    cdef int _log(self, Exchange exchange, Connection connection, object verdict, object tcp, double until) except -1:
        cdef Py_ssize_t written
        if self.log is None or self._drops():
            return 0
        written = self.lines.length
        try:
            self._write(self.lines, exchange, connection, verdict, tcp, until)
        except BaseException:
            self.lines.length = written  # no half a line
            raise
        self.waiting += 1
        if self.lines.length >= FLUSH_AT:
            self.flush()
        return 0

    cdef bint _drops(self) except -1:
        """Whether the next line is dropped, and counted as that. Asked of the log only where a block begins."""
        if self.to_drop == 0:
            if self.waiting or not self._is_full():
                return False
            self.to_drop = DROPPED_AT_ONCE
        self.to_drop -= 1
        self.dropped.add(1)
        return True

    cdef bint _is_full(self) except -1:
        return self.full is not None and self.full()

    cdef Outcome _outcome(self, Exchange exchange, Connection connection, object verdict):
        cdef long long kind = (exchange.protocol << 16) | (connection.inbound << 12) | exchange.status
        cdef tuple key
        cdef Outcome outcome
        if exchange.rpc is not None:
            kind |= <long long>_rpc_status(exchange.rpc) << 24
        elif exchange.mqtt is not None:
            # With the method, the name of the reason follows from these two.
            kind |= <long long>(((exchange.mqtt.reason + 1) & 0x1FF) | (exchange.mqtt.version & 7) << 9) << 24
        elif exchange.thrift is not None:
            kind |= <long long>_thrift_outcome(exchange) << 24
        # Most exchanges went well, and are of the same kind as the one before.
        if verdict is _ok and kind == self.healthy_kind and exchange.method == self.healthy_method:
            return self.healthy
        key = (kind, exchange.method, verdict.domain, verdict.cause)
        outcome = self.outcomes.get(key)
        if outcome is None:
            if len(self.outcomes) >= MAX_OUTCOMES:
                self.outcomes.clear()
            outcome = self.outcomes[key] = self._resolve(exchange, connection, verdict)
        if verdict is _ok:
            self.healthy, self.healthy_kind, self.healthy_method = outcome, kind, exchange.method
        return outcome

    cdef Outcome _resolve(self, Exchange exchange, Connection connection, object verdict):
        cells = self.cells
        protocol = PROTOCOL_NAMES[exchange.protocol]
        direction = "inbound" if connection.inbound else "outbound"
        cdef Outcome outcome = Outcome()
        outcome.requests = cells.counter(
            "arca_requests_total", protocol, direction,
            _method(exchange.method),
            _code(exchange),
            str(verdict.domain), "" if verdict.cause is None else str(verdict.cause),
        )
        outcome.duration = cells.histogram("arca_request_duration_seconds", protocol, direction, str(verdict.domain))
        outcome.ttfb = cells.histogram("arca_request_ttfb_seconds", protocol, direction)
        outcome.request_bytes = cells.counter("arca_request_bytes_total", protocol, direction)
        outcome.response_bytes = cells.counter("arca_response_bytes_total", protocol, direction)
        return outcome

    cdef int _write(self, Assembly out, Exchange exchange, Connection connection, object verdict, object tcp,
                    double until) except -1:
        cdef char* p
        if connection.json is None:
            connection.json = b',"direction":%b,"client":%b,"server":%b,"connection":%b,"method":' % (
                b'"inbound"' if connection.inbound else b'"outbound"', msgspec.json.encode(connection.client),
                msgspec.json.encode(connection.server), msgspec.json.encode(connection.id),
            )
        p = out.reserve(len(connection.json) + MARGIN)
        p = _text(self._time(p, exchange.started), b'Z","protocol":')
        p = _constant(p, _PROTOCOL_JSON[exchange.protocol])
        p = _constant(p, connection.json)
        p = _string(out, p, exchange.method)
        p = _request(out, p, exchange)
        p = _ids(out, p, exchange)
        p = _number(_text(p, b',"request_bytes":'), exchange.request_bytes)
        p = _number(_text(p, b',"response_bytes":'), exchange.response_bytes)
        p = _duration(_text(p, b',"connect_ms":'), exchange.connect)
        p = _duration(_text(p, b',"ttfb_ms":'), _since(exchange.started, exchange.first_byte))
        p = _duration(_text(p, b',"duration_ms":'), until - exchange.started)
        if exchange.stream:
            p = _number(_text(p, b',"stream":'), exchange.stream)
        if exchange.rpc is not None:
            p = _rpc(out, p, exchange.rpc, exchange.started)
        elif exchange.mqtt is not None:
            p = _mqtt(out, p, exchange.mqtt, exchange)
        elif exchange.thrift is not None:
            p = _thrift(out, p, exchange.thrift)
        if verdict is _ok and tcp is None:
            p = _constant(p, _OK_END)
        else:
            p = _end(out, p, verdict, tcp)
        out.length = p - out.bytes
        return 0

    cdef char* _time(self, char* p, double monotonic) except NULL:
        """The beginning of a line, up to the microseconds."""
        cdef double wall = monotonic + self.wall_offset
        cdef long second = <long>wall
        if second != self.second:
            self.second = second
            self.second_text = time.strftime('{"time":"%Y-%m-%dT%H:%M:%S.', time.gmtime(second)).encode()
        return _digits(_constant(p, self.second_text), <unsigned long long>((wall - second) * 1e6), 6)

    cpdef list newest(self, int n):
        cdef Assembly out
        cdef list lines = []
        for exchange, connection, verdict, tcp in list(self.ring)[-n:] if n > 0 else ():
            out = Assembly()
            self._write(out, exchange, connection, verdict, tcp, exchange.ended)
            lines.append(PyBytes_FromStringAndSize(out.bytes, out.length))
        return lines

    cpdef flush(self):
        cdef long waiting = self.waiting
        cdef Py_ssize_t length = self.lines.length
        self._set_clock()
        self.to_drop = self.waiting = self.lines.length = 0
        if waiting == 0:
            return
        if self._is_full():
            self.dropped.add(waiting)
        else:
            self.log(PyBytes_FromStringAndSize(self.lines.bytes, length))


cdef int _rpc_status(Rpc rpc) noexcept:
    """A number for each ``code`` label: 0 without a status, 1 and above for those that gRPC defines, then one more."""
    return min(max(rpc.status, -1), LAST_GRPC_STATUS + 1) + 1


cdef int _thrift_outcome(Exchange exchange) noexcept:
    """A number for each ``code`` label: types of TApplicationException, then fields of declared exceptions."""
    cdef ThriftCall call = exchange.thrift
    if not exchange.failed:
        return 0
    if call.exception_field:
        return LAST_THRIFT_TYPE + 3 + (call.exception_field if _field_is_told_apart(call) else 0)
    return 1 + (call.exception_type if 0 <= call.exception_type <= LAST_THRIFT_TYPE else LAST_THRIFT_TYPE + 1)


cdef inline bint _field_is_told_apart(ThriftCall call) noexcept:
    return 0 < call.exception_field <= LAST_THRIFT_FIELD


cdef str _method(bytes method):
    """The label ``method``. A name that a terminal should not be shown, as Thrift allows, is ``_other``."""
    if method is None:
        return ""
    text = _readable(method)
    return text if text.isprintable() else OTHER


cdef str _readable(bytes text):
    """UTF-8, whose last character may have been cut off, or else Latin-1."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return text.decode("utf-8", "replace")
        return text.decode("latin-1")


cdef str _code(Exchange exchange):
    """The label ``code``. What the protocol does not define is ``_other``: a peer may send any number."""
    cdef str code = exchange.code or ""
    if exchange.thrift is not None:
        # A type without a name is told by its number, which may be negative.
        unnamed = code.lstrip("-").isdigit()
        undeclared = exchange.thrift.exception_field and not _field_is_told_apart(exchange.thrift)
        return OTHER if unnamed or undeclared else code
    if exchange.mqtt is not None:
        return OTHER if code.startswith("0x") else code
    if exchange.rpc is None:
        return str(exchange.status) if exchange.status else code
    if exchange.rpc.status < 0:
        return ""
    return OTHER if exchange.rpc.status > LAST_GRPC_STATUS else (exchange.code or "")


cdef bytes _ascii(bytes text):
    """JSON that a terminal can be shown: what is not ASCII in it came from the wire, as gRPC's messages do."""
    if not text.isascii():
        text = json.dumps(json.loads(text), separators=(",", ":")).encode()
    return text.replace(b"\x7f", b"\\u007f")


cdef inline double _since(double started, double moment) noexcept:
    """Seconds up to a moment that may never have come: then it is negative, and so is this."""
    return moment - started if moment >= 0 else -1


cdef inline char* _request(Assembly out, char* p, Exchange exchange) except NULL:
    """What of HTTP most exchanges of the other protocols do not have, and the code that those have."""
    if exchange.target is None and exchange.authority is None and exchange.status == 0:
        p = _text(p, b',"target":null,"authority":null,"status":null,"code":')
    else:
        p = _string(out, _text(p, b',"target":'), exchange.target)
        p = _string(out, _text(p, b',"authority":'), exchange.authority)
        p = _text(p, b',"status":')
        p = _number(p, exchange.status) if exchange.status else _text(p, b"null")
        p = _text(p, b',"code":')
    return _word(out, p, exchange.code)


cdef inline char* _ids(Assembly out, char* p, Exchange exchange) except NULL:
    if _has_no_ids(exchange):
        return _text(p, b',"request_id":null,"trace_id":null,"span_id":null,"parent_id":null')
    p = _string(out, _text(p, b',"request_id":'), exchange.request_id)
    p = _string(out, _text(p, b',"trace_id":'), exchange.trace_id)
    p = _string(out, _text(p, b',"span_id":'), exchange.span_id)
    return _string(out, _text(p, b',"parent_id":'), exchange.parent_id)


cdef inline bint _has_no_ids(Exchange exchange):
    return (
        exchange.request_id is None and exchange.trace_id is None
        and exchange.span_id is None and exchange.parent_id is None
    )


cdef char* _rpc(Assembly out, char* p, Rpc rpc, double started) except NULL:
    p = _string(out, _text(p, b',"grpc":{"message":'), rpc.message)
    p = _duration(_text(p, b',"timeout_ms":'), rpc.timeout)
    p = _number(_text(p, b',"request_messages":'), rpc.request_messages)
    p = _number(_text(p, b',"response_messages":'), rpc.response_messages)
    p = _truth(_text(p, b',"compressed":'), rpc.compressed)
    p = _duration(_text(p, b',"first_message_ms":'), _since(started, rpc.first_message))
    p = _truth(_text(p, b',"web":'), rpc.web)
    return _text(p, b"}")


cdef char* _thrift(Assembly out, char* p, ThriftCall call) except NULL:
    p = _word(out, _text(p, b',"thrift":{"transport":'), call.transport or "")
    p = _word(out, _text(p, b',"encoding":'), call.encoding or "")
    p = _truth(_text(p, b',"oneway":'), call.oneway)
    p = _signed(_text(p, b',"sequence":'), call.sequence)
    p = _text(p, b',"exception_type":')
    # Any number but this one may have come with an exception.
    p = _text(p, b"null") if call.exception_type == -1 else _signed(p, call.exception_type)
    p = _text(p, b',"exception_field":')
    p = _signed(p, call.exception_field) if call.exception_field else _text(p, b"null")
    p = _string(out, _text(p, b',"message":'), call.message)
    return _text(p, b"}")


cdef char* _mqtt(Assembly out, char* p, MqttPacket packet, Exchange exchange) except NULL:
    """What every packet has, and then what only some have: most are PUBLISH, and there are many of them."""
    cdef const char* method = b""
    if exchange.method is not None:
        method = PyBytes_AS_STRING(exchange.method)
    p = _number(_text(p, b',"mqtt":{"version":'), packet.version)
    p = _string(out, _text(p, b',"client_id":'), packet.client_id)
    p = _text(p, b',"sender":"server"') if exchange.by_upstream else _text(p, b',"sender":"client"')
    if packet.packet_id:
        p = _number(_text(p, b',"packet_id":'), packet.packet_id)
    if strcmp(method, b"PUBLISH") == 0:
        p = _number(_text(p, b',"qos":'), packet.qos)
        p = _truth(_text(p, b',"retain":'), packet.retain)
        p = _truth(_text(p, b',"duplicate":'), packet.duplicate)
    if packet.reason >= 0:
        p = _number(_text(p, b',"reason":'), packet.reason)
    if packet.reason_string is not None:
        p = _string(out, _text(p, b',"reason_string":'), packet.reason_string)
    if packet.keep_alive >= 0:
        p = _number(_text(p, b',"keep_alive_seconds":'), packet.keep_alive)
    if packet.silence >= 0:
        p = _duration(_text(p, b',"silence_ms":'), packet.silence)
    if strcmp(method, b"CONNECT") == 0:
        p = _truth(_text(p, b',"clean_start":'), packet.clean_start)
        p = _text(p, b',"session_present":')
        p = _text(p, b"null") if packet.session_present < 0 else _truth(p, packet.session_present)
        p = _string(out, _text(p, b',"will_topic":'), packet.will_topic)
    elif packet.will_topic is not None:
        p = _string(out, _text(p, b',"will_topic":'), packet.will_topic)
    if packet.filters:
        p = _number(_text(p, b',"filters":'), packet.filters)
        p = _number(_text(p, b',"filters_refused":'), packet.filters_refused)
    return _text(p, b"}")


cdef char* _end(Assembly out, char* p, object verdict, object tcp) except NULL:
    """The end of a line that is not ``_OK_END``."""
    cdef bytes facts = b"null" if tcp is None else msgspec.json.encode(tcp)
    cdef bytes said = b"null"
    if verdict is None:
        p = _text(p, b',"in_flight":true')
    else:
        said = _OK_JSON if verdict is _ok else _ascii(msgspec.json.encode(verdict))
    p = _room(out, p, len(facts) + len(said))
    p = _constant(_text(p, b',"tls":null,"tcp":'), facts)
    return _text(_constant(_text(p, b',"verdict":'), said), b"}\n")


cdef inline char* _room(Assembly out, char* p, Py_ssize_t n) except NULL:
    """``p`` where there is room for ``n`` bytes, and MARGIN behind them."""
    out.length = p - out.bytes
    return out.reserve(n + MARGIN)


cdef inline char* _text(char* p, const char* text) noexcept:
    """Inlined with a literal, its length is known when this is compiled, and no function is called."""
    cdef size_t n = strlen(text)
    memcpy(p, text, n)
    return p + n


cdef inline char* _constant(char* p, bytes text) noexcept:
    memcpy(p, PyBytes_AS_STRING(text), len(text))
    return p + len(text)


cdef inline char* _truth(char* p, bint truth) noexcept:
    return _text(p, b"true") if truth else _text(p, b"false")


cdef inline char* _digits(char* p, unsigned long long value, int n) noexcept:
    """The last ``n`` digits of ``value``, zeros among them."""
    cdef int at = n
    while at > 0:
        at -= 1
        p[at] = c"0" + value % 10
        value //= 10
    return p + n


cdef char* _number(char* p, unsigned long long value) noexcept:
    cdef int n = 1
    cdef unsigned long long bound = 10
    while n < 20 and value >= bound:
        n += 1
        bound *= 10
    return _digits(p, value, n)


cdef char* _signed(char* p, long long value) noexcept:
    if value < 0:
        return _number(_text(p, b"-"), -<unsigned long long>value)
    return _number(p, value)


cdef char* _duration(char* p, double seconds) noexcept:
    """Milliseconds with microseconds behind the point; null where ``seconds`` is negative."""
    cdef unsigned long long microseconds
    if seconds < 0:
        return _text(p, b"null")
    microseconds = <unsigned long long>(seconds * 1e6 + 0.5)
    return _digits(_text(_number(p, microseconds // 1000), b"."), microseconds % 1000, 3)


cdef inline char* _string(Assembly out, char* p, bytes value) except NULL:
    if value is None:
        return _text(p, b"null")
    return _quoted(out, p, <const unsigned char*>PyBytes_AS_STRING(value), len(value))


cdef inline char* _word(Assembly out, char* p, str word) except NULL:
    """A JSON string of one of the engines' own words."""
    cdef Py_ssize_t n
    if word is None:
        return _text(p, b"null")
    cdef const char* utf_8 = PyUnicode_AsUTF8AndSize(word, &n)
    return _quoted(out, p, <const unsigned char*>utf_8, n)


cdef char* _quoted(Assembly out, char* p, const unsigned char* text, Py_ssize_t n) except NULL:
    """A JSON string of what was on the wire, in ASCII: what a terminal could obey is never in the log as it came.

    Bytes beyond ASCII are read as UTF-8, or as Latin-1 where they are not.
    """
    if not _is_plain(text, n):
        return _escaped(out, p, text, n)
    p = _text(_room(out, p, n + 2), b'"')
    memcpy(p, text, n)
    return _text(p + n, b'"')


cdef inline bint _is_plain(const unsigned char* text, Py_ssize_t n) noexcept:
    """Whether a JSON string may have all of it as it is: ASCII, and no control, quote or backslash."""
    cdef uint64_t ones = 0x0101010101010101ULL
    cdef uint64_t eight, special = 0
    cdef Py_ssize_t i = 0
    while i < n:
        eight = ones * c" "
        memcpy(&eight, text + i, min(n - i, 8))
        # Eight bytes at once ("haszero" and "hasless" of Bit Twiddling Hacks): the highest bit of a byte is set where
        # it is beyond ASCII, below a space, a quote, a backslash or DEL. A carry goes on from such a byte alone.
        special |= eight | (eight - ones * 0x20) | ((eight ^ ones * c'"') - ones)
        special |= ((eight ^ ones * c"\\") - ones) | (eight + ones)
        i += 8
    return special & ones * 0x80 == 0


cdef char* _escaped(Assembly out, char* p, const unsigned char* text, Py_ssize_t n) except NULL:
    cdef bytes value = text[:n]
    cdef bytes written
    cdef Py_ssize_t i
    if not value.isascii():
        written = json.dumps(_readable(value)).replace("\x7f", "\\u007f").encode()
        return _constant(_room(out, p, len(written)), written)
    p = _text(_room(out, p, 6 * n + 2), b'"')
    for i in range(n):
        if text[i] < 0x20 or text[i] == 0x7F or text[i] == c'"' or text[i] == c"\\":
            p = _text(p, b"\\u00")
            p[0] = HEX_DIGITS[text[i] >> 4]
            p[1] = HEX_DIGITS[text[i] & 15]
            p += 2
        else:
            p[0] = text[i]
            p += 1
    return _text(p, b'"')

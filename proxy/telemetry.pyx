"""What a worker tells of an exchange that ended: counted, remembered, written as one line of JSON.

Runs once per exchange on the byte path, so cells are resolved once per kind of outcome, and the line is put
together in one buffer that is handed up when it is full or twice a second. Nothing here waits: the log's
other end drops what it cannot take, and counts it. The names and their order are those of contract.md.
"""

import json
import time
from collections import deque

import msgspec

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.string cimport strcmp, strlen

from protocols.assembly cimport Assembly
from protocols.exchange cimport Exchange, MqttPacket, Rpc, ThriftCall
from proxy.cells cimport Counter, Histogram
from proxy.verdicts cimport decide

from protocols.exchange import PROTOCOL_NAMES
from protocols.verdict import OK
from proxy.metrics import OTHER

cdef enum:
    FLUSH_AT = 64 * 1024
    RING = 512            # exchanges remembered for /exchanges, about 1 KB each
    MAX_OUTCOMES = 4096   # kinds of outcome whose cells are kept at hand
    LAST_GRPC_STATUS = 16 # UNAUTHENTICATED
    # Numbers that a peer chooses freely are told apart up to here; those above are one kind of outcome.
    LAST_THRIFT_TYPE = 62
    LAST_THRIFT_FIELD = 64

cdef object _ok = OK
cdef bytes _OK_JSON = msgspec.json.encode(OK)
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
    def __init__(self, object cells, object log):
        self.cells = cells
        self.log = log
        self.slow = 2.0
        self.outcomes = {}
        self.ring = deque(maxlen=RING)
        self.lines = Assembly()
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
        self.ring.append((exchange, connection, verdict, tcp))
        if self.log is not None:
            self._write(self.lines, exchange, connection, verdict, tcp, exchange.ended)
            if self.lines.length >= FLUSH_AT:
                self.flush()

    cpdef record_running(self, Exchange exchange, Connection connection, object tcp, double now):
        if self.log is not None:
            self._write(self.lines, exchange, connection, None, tcp, now)
            if self.lines.length >= FLUSH_AT:
                self.flush()

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
            kind |= <long long>_thrift_outcome(exchange.thrift) << 24
        key = (kind, exchange.method, verdict.domain, verdict.cause)
        outcome = self.outcomes.get(key)
        if outcome is not None:
            return outcome
        if len(self.outcomes) >= MAX_OUTCOMES:
            self.outcomes.clear()
        cells = self.cells
        protocol = PROTOCOL_NAMES[exchange.protocol]
        direction = "inbound" if connection.inbound else "outbound"
        outcome = Outcome()
        outcome.requests = cells.counter(
            "arca_requests_total", protocol, direction,
            "" if exchange.method is None else exchange.method.decode("latin-1"),
            _code(exchange),
            str(verdict.domain), "" if verdict.cause is None else str(verdict.cause),
        )
        outcome.duration = cells.histogram("arca_request_duration_seconds", protocol, direction, str(verdict.domain))
        outcome.ttfb = cells.histogram("arca_request_ttfb_seconds", protocol, direction)
        outcome.request_bytes = cells.counter("arca_request_bytes_total", protocol, direction)
        outcome.response_bytes = cells.counter("arca_response_bytes_total", protocol, direction)
        self.outcomes[key] = outcome
        return outcome

    cdef _write(self, Assembly out, Exchange exchange, Connection connection, object verdict, object tcp, double until):
        if connection.json is None:
            connection.json = b',"direction":%b,"client":%b,"server":%b,"connection":%b' % (
                b'"inbound"' if connection.inbound else b'"outbound"', msgspec.json.encode(connection.client),
                msgspec.json.encode(connection.server), msgspec.json.encode(connection.id),
            )
        _text(out, b'{"time":"')
        self._write_time(out, exchange.started)
        _text(out, b'","protocol":')
        _bytes(out, _PROTOCOL_JSON[exchange.protocol])
        _bytes(out, connection.json)
        _string(out, b',"method":', exchange.method)
        _string(out, b',"target":', exchange.target)
        _string(out, b',"authority":', exchange.authority)
        if exchange.status:
            _number(out, b',"status":', exchange.status)
        else:
            _text(out, b',"status":null')
        _string(out, b',"code":', None if exchange.code is None else exchange.code.encode())
        _string(out, b',"request_id":', exchange.request_id)
        _string(out, b',"trace_id":', exchange.trace_id)
        _string(out, b',"span_id":', exchange.span_id)
        _string(out, b',"parent_id":', exchange.parent_id)
        _number(out, b',"request_bytes":', exchange.request_bytes)
        _number(out, b',"response_bytes":', exchange.response_bytes)
        _duration(out, b',"connect_ms":', exchange.connect)
        _duration(out, b',"ttfb_ms":', exchange.first_byte - exchange.started if exchange.first_byte >= 0 else -1)
        _duration(out, b',"duration_ms":', until - exchange.started)
        if exchange.stream:
            _number(out, b',"stream":', exchange.stream)
        if exchange.rpc is not None:
            _rpc(out, exchange.rpc, exchange.started)
        elif exchange.mqtt is not None:
            _mqtt(out, exchange.mqtt, exchange)
        elif exchange.thrift is not None:
            _thrift(out, exchange.thrift)
        if verdict is None:
            _text(out, b',"in_flight":true')
        _text(out, b',"tls":null,"tcp":')
        if tcp is None:
            _text(out, b"null")
        else:
            _bytes(out, msgspec.json.encode(tcp))
        _text(out, b',"verdict":')
        if verdict is None:
            _text(out, b"null")
        else:
            _bytes(out, _OK_JSON if verdict is _ok else _ascii(msgspec.json.encode(verdict)))
        _text(out, b"}\n")

    cdef _write_time(self, Assembly out, double monotonic):
        cdef double wall = monotonic + self.wall_offset
        cdef long second = <long>wall
        if second != self.second:
            self.second = second
            self.second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        _bytes(out, self.second_text)
        out.add(b".", 1)
        _digits(out, <unsigned long long>((wall - second) * 1e6), 6)
        out.add(b"Z", 1)

    cpdef list newest(self, int n):
        cdef Assembly out
        cdef list lines = []
        for exchange, connection, verdict, tcp in list(self.ring)[-n:] if n > 0 else ():
            out = Assembly()
            self._write(out, exchange, connection, verdict, tcp, exchange.ended)
            lines.append(PyBytes_FromStringAndSize(out.bytes, out.length))
        return lines

    cpdef flush(self):
        self._set_clock()
        if self.log is not None and self.lines.length:
            block = PyBytes_FromStringAndSize(self.lines.bytes, self.lines.length)
            self.lines.length = 0
            self.log(block)


cdef int _rpc_status(Rpc rpc) noexcept:
    """A number for each ``code`` label: 0 without a status, 1 and above for those that gRPC defines, then one more."""
    return min(max(rpc.status, -1), LAST_GRPC_STATUS + 1) + 1


cdef int _thrift_outcome(ThriftCall call) noexcept:
    """A number for each ``code`` label: types of TApplicationException, then fields of declared exceptions."""
    if call.exception_type >= 0:
        return 1 + min(call.exception_type, LAST_THRIFT_TYPE + 1)
    if call.exception_field:
        return LAST_THRIFT_TYPE + 3 + (call.exception_field if _field_is_told_apart(call) else 0)
    return 0


cdef inline bint _field_is_told_apart(ThriftCall call) noexcept:
    return 0 < call.exception_field <= LAST_THRIFT_FIELD


cdef str _code(Exchange exchange):
    """The label ``code``. What the protocol does not define is ``_other``: a peer may send any number."""
    cdef str code = exchange.code or ""
    if exchange.thrift is not None:
        # A type without a name is told by its number.
        unnamed = exchange.thrift.exception_type < 0 and not _field_is_told_apart(exchange.thrift)
        return OTHER if code and (unnamed or code.lstrip("-").isdigit()) else code
    if exchange.mqtt is not None:
        return OTHER if code.startswith("0x") else code
    if exchange.rpc is None:
        return str(exchange.status) if exchange.status else code
    if exchange.rpc.status < 0:
        return ""
    return OTHER if exchange.rpc.status > LAST_GRPC_STATUS else (exchange.code or "")


cdef bytes _ascii(bytes text):
    """JSON that a terminal can be shown: what is not ASCII in it came from the wire, as gRPC's messages do."""
    return text if text.isascii() else json.dumps(json.loads(text), separators=(",", ":")).encode()


cdef int _rpc(Assembly out, Rpc rpc, double started) except -1:
    _string(out, b',"grpc":{"message":', rpc.message)
    _duration(out, b',"timeout_ms":', rpc.timeout)
    _number(out, b',"request_messages":', rpc.request_messages)
    _number(out, b',"response_messages":', rpc.response_messages)
    _text(out, b',"compressed":true' if rpc.compressed else b',"compressed":false')
    _duration(out, b',"first_message_ms":', rpc.first_message - started if rpc.first_message >= 0 else -1)
    return _text(out, b',"web":true}' if rpc.web else b',"web":false}')


cdef int _thrift(Assembly out, ThriftCall call) except -1:
    _text(out, b',"thrift":{"transport":"')
    _ascii_text(out, call.transport)
    _text(out, b'","encoding":"')
    _ascii_text(out, call.encoding)
    _text(out, b'","oneway":true' if call.oneway else b'","oneway":false')
    _signed(out, b',"sequence":', call.sequence)
    if call.exception_type >= 0:
        _number(out, b',"exception_type":', call.exception_type)
    else:
        _text(out, b',"exception_type":null')
    if call.exception_field:
        _signed(out, b',"exception_field":', call.exception_field)
    else:
        _text(out, b',"exception_field":null')
    _string(out, b',"message":', call.message)
    return out.add(b"}", 1)


cdef int _mqtt(Assembly out, MqttPacket packet, Exchange exchange) except -1:
    """What every packet has, and then what only some have: most are PUBLISH, and there are many of them."""
    cdef const char* method = NULL if exchange.method is None else PyBytes_AS_STRING(exchange.method)
    _number(out, b',"mqtt":{"version":', packet.version)
    _string(out, b',"client_id":', packet.client_id)
    _text(out, b',"sender":"server"' if exchange.by_upstream else b',"sender":"client"')
    if packet.packet_id:
        _number(out, b',"packet_id":', packet.packet_id)
    if method != NULL and strcmp(method, b"PUBLISH") == 0:
        _number(out, b',"qos":', packet.qos)
        _text(out, b',"retain":true' if packet.retain else b',"retain":false')
        _text(out, b',"duplicate":true' if packet.duplicate else b',"duplicate":false')
    if packet.reason >= 0:
        _number(out, b',"reason":', packet.reason)
    if packet.reason_string is not None:
        _string(out, b',"reason_string":', packet.reason_string)
    if packet.keep_alive >= 0:
        _number(out, b',"keep_alive_seconds":', packet.keep_alive)
    if packet.silence >= 0:
        _duration(out, b',"silence_ms":', packet.silence)
    if method != NULL and strcmp(method, b"CONNECT") == 0:
        _text(out, b',"clean_start":true' if packet.clean_start else b',"clean_start":false')
        _text(out, b',"session_present":null' if packet.session_present < 0 else (
            b',"session_present":true' if packet.session_present else b',"session_present":false'
        ))
        _string(out, b',"will_topic":', packet.will_topic)
    elif packet.will_topic is not None:
        _string(out, b',"will_topic":', packet.will_topic)
    if packet.filters:
        _number(out, b',"filters":', packet.filters)
        _number(out, b',"filters_refused":', packet.filters_refused)
    return out.add(b"}", 1)


cdef inline int _text(Assembly out, const char* text) except -1:
    return out.add(text, strlen(text))


cdef inline int _ascii_text(Assembly out, str text) except -1:
    """One of the engines' own words."""
    cdef Py_ssize_t length
    cdef const char* utf_8
    if text is None:
        return 0
    utf_8 = PyUnicode_AsUTF8AndSize(text, &length)
    return out.add(utf_8, length)


cdef inline int _bytes(Assembly out, bytes text) except -1:
    return out.add(PyBytes_AS_STRING(text), len(text))


cdef int _digits(Assembly out, unsigned long long value, int least) except -1:
    """``value`` in decimal, with zeros before it up to ``least`` digits."""
    cdef char text[20]
    cdef int at = 20
    while value or at > 20 - least:
        at -= 1
        text[at] = c"0" + value % 10
        value //= 10
    return out.add(text + at, 20 - at)


cdef int _number(Assembly out, const char* key, unsigned long long value) except -1:
    _text(out, key)
    return _digits(out, value, 1)


cdef int _signed(Assembly out, const char* key, long long value) except -1:
    _text(out, key)
    if value < 0:
        out.add(b"-", 1)
        return _digits(out, -<unsigned long long>value, 1)
    return _digits(out, value, 1)


cdef int _duration(Assembly out, const char* key, double seconds) except -1:
    """Milliseconds with microseconds behind the point; null where ``seconds`` is negative."""
    cdef unsigned long long microseconds
    _text(out, key)
    if seconds < 0:
        return _text(out, b"null")
    microseconds = <unsigned long long>(seconds * 1e6 + 0.5)
    _digits(out, microseconds // 1000, 1)
    out.add(b".", 1)
    return _digits(out, microseconds % 1000, 3)


cdef int _string(Assembly out, const char* key, bytes value) except -1:
    """A JSON string of what was on the wire, in ASCII: what a terminal could obey is never in the log as it came.

    Bytes beyond ASCII are read as UTF-8, or as Latin-1 where they are not.
    """
    cdef const unsigned char* p
    cdef Py_ssize_t i, n, copied = 0
    cdef char escape[6]
    _text(out, key)
    if value is None:
        return _text(out, b"null")
    p = <const unsigned char*>PyBytes_AS_STRING(value)
    n = len(value)
    for i in range(n):
        if p[i] >= 0x80:
            try:
                text = value.decode()
            except UnicodeDecodeError:
                text = value.decode("latin-1")
            return _bytes(out, json.dumps(text).replace("\x7f", "\\u007f").encode())
    out.add(b'"', 1)
    for i in range(n):
        if p[i] < 0x20 or p[i] == 0x7F or p[i] == c'"' or p[i] == c"\\":
            out.add(p + copied, i - copied)
            copied = i + 1
            escape[0:4] = [c"\\", c"u", c"0", c"0"]
            escape[4] = HEX_DIGITS[p[i] >> 4]
            escape[5] = HEX_DIGITS[p[i] & 15]
            out.add(escape, 6)
    out.add(p + copied, n - copied)
    return out.add(b'"', 1)

"""Whose an outcome was: a pure function from an exchange that ended to its verdict.

So far the witnesses are the wire (what the two ends sent, and who closed) and errno (what the kernel told the
proxy's own sockets). Neither can prove who reset a connection, so such verdicts say less than 1.0; what the
kernel saw on the path will be joined here and nowhere else. The rule: what the evidence does not decide is
``unknown``, never guessed.
"""

import errno
import os

from protocols.exchange cimport (
    COMPLETE, DIAL_FAILED, DOWNSTREAM_FAULT, DOWNSTREAM_FIN, DOWNSTREAM_RST, DOWNSTREAM_RST_STREAM, DRAINED, End,
    Exchange, HEAD_TIMEOUT, HTTP_2, INTERNAL, KEEPALIVE_MISSED, LIMIT, LOOP, MQTT, MqttPacket, OVERLOAD, THRIFT,
    UNREADABLE, UPSTREAM_FAULT, UPSTREAM_FIN, UPSTREAM_GOAWAY, UPSTREAM_RST, UPSTREAM_RST_STREAM, WEBSOCKET,
)

from protocols.http2_codes import ErrorCode, error_name
from protocols.verdict import OK, Cause, Domain, Evidence, Origin, Phase, Source, Verdict

cdef object _ok = OK

# Dial errors by what they mean; connect(2), and net/ipv4/tcp_input.c, icmp.c for where each comes from.
_DIAL = {
    errno.ECONNREFUSED: (Cause.CONNECT_REFUSED, Origin.UPSTREAM, 0.95),
    errno.ETIMEDOUT: (Cause.CONNECT_TIMEOUT, Origin.NETWORK, 0.95),
    errno.ENETUNREACH: (Cause.UNREACHABLE, Origin.NETWORK, 0.95),
    errno.EHOSTUNREACH: (Cause.UNREACHABLE, Origin.NETWORK, 0.95),
    errno.ENETDOWN: (Cause.UNREACHABLE, Origin.HOST, 0.95),
    errno.EHOSTDOWN: (Cause.UNREACHABLE, Origin.NETWORK, 0.95),
    errno.ENONET: (Cause.UNREACHABLE, Origin.NETWORK, 0.95),
    errno.EACCES: (Cause.UNREACHABLE, Origin.HOST, 0.9),  # prohibited by a route or a local rule
    errno.EPERM: (Cause.UNREACHABLE, Origin.HOST, 0.9),
    errno.ECONNRESET: (Cause.RESET, Origin.NETWORK, 0.7),
    errno.ECONNABORTED: (Cause.RESET, Origin.NETWORK, 0.7),
}
# Codes of RST_STREAM that blame what the other side sent (RFC 9113 section 7). That one side says so proves only
# that it gave up.
_COMPLAINTS = frozenset((
    ErrorCode.PROTOCOL_ERROR, ErrorCode.FLOW_CONTROL_ERROR, ErrorCode.SETTINGS_TIMEOUT, ErrorCode.STREAM_CLOSED,
    ErrorCode.FRAME_SIZE_ERROR, ErrorCode.COMPRESSION_ERROR,
))
_GAVE_UP = frozenset((ErrorCode.CANCEL, ErrorCode.NO_ERROR))
# What a code of upstream says beyond its name.
_CODE_MEANS = {
    ErrorCode.REFUSED_STREAM: "it did not process the request, which may be sent again",
    ErrorCode.ENHANCE_YOUR_CALM: "it had too much from this client",
    ErrorCode.INTERNAL_ERROR: "an error of its own",
    ErrorCode.HTTP_1_1_REQUIRED: "it wants HTTP/1.1 for this request",
}
# A call's deadline runs from before its first byte came here, and its two ends keep it by clocks and timers of their
# own: a server that ends a call at its deadline may do so this much early, as seen from here, and so may a client.
cdef double SERVER_DEADLINE = 0.9
cdef double CLIENT_DEADLINE = 0.98
cdef enum:
    DEADLINE_EXCEEDED = 4  # grpc-status
    MESSAGE_MAX = 200      # characters that a peer said, in a sentence
# Reason codes of a DISCONNECT that blame what the other side sent; that it says so proves only that it gave up.
# Reason codes of MQTT 5.0, section 2.4; a missed keep-alive that was seen here has an end of its own.
_MQTT_COMPLAINTS = frozenset((0x81, 0x82, 0x8D, 0x90, 0x93, 0x94, 0x95, 0x96, 0x99))
# What a reason code of the server's DISCONNECT says beyond its name.
_MQTT_MEANS = {
    0x8E: "another connection took the client id over",
    0x8B: "it is being shut down",
    0x9C: "the client should use another server for now",
    0x9D: "the client should use another server from now on",
}
_MQTT_VERSIONS = {3: "mqttv31", 4: "mqttv311", 5: "mqttv5"}
_UNREACHABLE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETDOWN))


def dial_answer(int error, str server):
    """How HTTP is told that ``server`` could not be reached: (status, cause, one-line text)."""
    cause, _, _ = _DIAL.get(error, (Cause.INTERNAL, None, 0))
    status = 504 if cause is Cause.CONNECT_TIMEOUT else 502
    return status, str(cause), f"no connection to the upstream {server}: {os.strerror(error)}"


cdef object _phase(Exchange exchange):
    if exchange.end == DIAL_FAILED:
        return Phase.CONNECT
    if _is_session(exchange):
        return Phase.IDLE
    if exchange.first_byte >= 0:
        return Phase.RESPONSE
    if exchange.request_complete or exchange.protocol >= WEBSOCKET:
        return Phase.WAIT
    return Phase.REQUEST


cdef str _progress(Exchange exchange):
    """How far it had come, in figures."""
    return (
        f"after {(exchange.ended - exchange.started) * 1000:.1f} ms, "
        f"{exchange.request_bytes} request and {exchange.response_bytes} response bytes"
    )


cpdef object decide(Exchange exchange, str server):
    if (
        exchange.end == COMPLETE and exchange.status < 400 and not exchange.failed
        and (exchange.rpc is None or exchange.rpc.status == 0)
    ):
        return _ok
    return _blame(exchange, server)


def _blame(Exchange exchange, str server):
    """The table: one case for each way that an exchange can end badly."""
    at_ms = round((exchange.ended - exchange.started) * 1000, 3)
    phase = _phase(exchange)
    progress = _progress(exchange)
    sockets = f"ss -tni 'dst {server}'"

    def wire(name, value):
        return Evidence(Source.WIRE, name, value, at_ms)

    def refused_by_os():
        name = errno.errorcode.get(exchange.error, str(exchange.error))
        return Evidence(Source.ERRNO, "connect" if exchange.end == DIAL_FAILED else "socket", name, at_ms)

    if exchange.end == KEEPALIVE_MISSED:
        return _blame_silence(exchange, server)
    if exchange.end == COMPLETE and exchange.failed:
        if exchange.mqtt is not None:
            return _blame_mqtt(exchange, server, phase)
        return _blame_thrift(exchange, server, phase)
    if exchange.end == COMPLETE and exchange.status < 400:
        return _blame_grpc(exchange, server, phase)
    if exchange.end == COMPLETE:
        cause = Cause.STATUS_5XX if exchange.status >= 500 else Cause.STATUS_4XX
        return Verdict(
            Domain.APPLICATION, cause, Origin.UPSTREAM, phase, 1.0,
            f"{server} itself answered {exchange.status} after {at_ms:.1f} ms.",
            _request_check(exchange, server),
            (wire("status", exchange.status), *_grpc_status(exchange, at_ms)),
        )
    if exchange.end == DIAL_FAILED:
        dialed_ms = exchange.connect * 1000 if exchange.connect >= 0 else at_ms
        cause, origin, confidence = _DIAL.get(exchange.error, (None, None, 0))
        if cause is None:
            return Verdict(
                Domain.PROXY, Cause.INTERNAL, Origin.PROXY, phase, 0.9,
                f"ARCA could not dial {server}: {os.strerror(exchange.error)}.",
                "cat /proc/sys/net/ipv4/ip_local_port_range; ss -s; ulimit -n", (refused_by_os(),),
            )
        return Verdict(
            Domain.INFRASTRUCTURE, cause, origin, phase, confidence,
            f"The connection to {server} failed after {dialed_ms:.1f} ms: {os.strerror(exchange.error)}.",
            _dial_check(cause, server), (refused_by_os(),),
        )
    if exchange.end == DOWNSTREAM_FAULT:
        fault = exchange.fault or "something else that downstream sent on this connection was refused"
        return Verdict(
            Domain.CLIENT, Cause.PROTOCOL_ERROR, Origin.DOWNSTREAM, Phase.REQUEST, 1.0,
            f"{_sent_downstream(exchange)} breaks its protocol's framing: {fault}.", None, (wire("fault", fault),),
        )
    if exchange.end == UPSTREAM_FAULT:
        fault = exchange.fault or "an earlier response on this connection was refused"
        return Verdict(
            Domain.APPLICATION, Cause.PROTOCOL_ERROR, Origin.UPSTREAM, Phase.RESPONSE, 1.0,
            f"{_sent_upstream(exchange, server)} breaks its protocol's framing: {fault}.", None,
            (wire("fault", fault),),
        )
    if exchange.end == DOWNSTREAM_FIN or exchange.end == DOWNSTREAM_RST:
        how, confidence = ("closed", 0.8) if exchange.end == DOWNSTREAM_FIN else ("reset", 0.9)
        evidence = wire("downstream_fin", 1) if exchange.end == DOWNSTREAM_FIN else refused_by_os()
        if _is_session(exchange):
            return Verdict(
                Domain.CLIENT, Cause.CANCELED, Origin.DOWNSTREAM, phase, confidence,
                f"The client {how} the connection without DISCONNECT, {at_ms:.1f} ms after its session's last packet"
                f"{_will(exchange.mqtt)}.", None, (evidence,),
            )
        return Verdict(
            Domain.CLIENT, Cause.CANCELED, Origin.DOWNSTREAM, phase, confidence,
            f"Downstream {how} the connection{_said_goodbye(exchange)} {_before(exchange)}, {progress}.",
            None, (evidence, *_goaway(exchange, at_ms)),
        )
    if exchange.end in (DOWNSTREAM_RST_STREAM, UPSTREAM_RST_STREAM, UPSTREAM_GOAWAY):
        return _blame_stream(exchange, server, phase)
    if exchange.end in (UPSTREAM_FIN, UPSTREAM_RST) and exchange.stream_error > ErrorCode.NO_ERROR:
        # It ended the connection itself, and said why; with what packet is beside the point.
        return Verdict(
            Domain.APPLICATION, Cause.ABORTED, Origin.UPSTREAM, phase, 0.95,
            f"{server} ended the connection{_said_goodbye(exchange)}, {progress}.", sockets,
            (*_goaway(exchange, at_ms), wire("upstream_fin", 1) if exchange.end == UPSTREAM_FIN else refused_by_os()),
        )
    if exchange.end == UPSTREAM_FIN and _is_session(exchange):
        only_way = "" if exchange.mqtt.version >= 5 else ", which before version 5 is its only way to end a session"
        return Verdict(
            Domain.APPLICATION, Cause.CLOSED_EARLY, Origin.UPSTREAM, phase, 0.9,
            f"{server} closed the connection without DISCONNECT, {at_ms:.1f} ms after the session's last packet"
            f"{only_way}.", sockets, (wire("upstream_fin", 1),),
        )
    if exchange.end == UPSTREAM_FIN:
        where = "in the middle of the response" if exchange.first_byte >= 0 else "before answering"
        if exchange.protocol == MQTT or exchange.protocol == THRIFT and not exchange.request_complete:
            where = _before(exchange)
        return Verdict(
            Domain.APPLICATION, Cause.CLOSED_EARLY, Origin.UPSTREAM, phase, 0.9,
            f"{server} closed the connection {where}{_said_goodbye(exchange)}, {progress}.", sockets,
            (wire("upstream_fin", 1), *_goaway(exchange, at_ms)),
        )
    if exchange.end == UPSTREAM_RST:
        if exchange.error in _UNREACHABLE:
            cause, confidence, what = Cause.UNREACHABLE, 0.9, "became unreachable"
        else:
            # errno cannot tell an application's abort from a middlebox: half is all that can be claimed.
            cause, confidence, what = Cause.RESET, 0.5, f"failed ({os.strerror(exchange.error or errno.ECONNRESET)})"
        return Verdict(
            Domain.INFRASTRUCTURE, cause, Origin.NETWORK, phase, confidence,
            f"The established connection to {server} {what} {progress}; "
            "whether a process or the path did it, errno cannot tell.",
            sockets, (refused_by_os(),),
        )
    if exchange.end == HEAD_TIMEOUT:
        return Verdict(
            Domain.CLIENT, Cause.STALLED, Origin.DOWNSTREAM, Phase.REQUEST, 1.0,
            f"The request head did not arrive within limits.head_timeout_seconds: {exchange.request_bytes} bytes "
            f"in {at_ms:.0f} ms.", None, (wire("request_bytes", exchange.request_bytes),),
        )
    if exchange.end == LOOP:
        return Verdict(
            Domain.PROXY, Cause.LIMIT, Origin.PROXY, Phase.CONNECT, 1.0,
            f"The connection was going to {server}, which is ARCA itself: it was reset rather than looped.",
            "arca rules check",
        )
    if exchange.end == OVERLOAD:
        return Verdict(
            Domain.PROXY, Cause.OVERLOAD, Origin.PROXY, Phase.CONNECT, 1.0,
            "ARCA carries limits.max_connections already: the connection was reset.",
            "curl -s http://127.0.0.1:15000/stats",
        )
    if exchange.end == LIMIT:
        return Verdict(
            Domain.PROXY, Cause.LIMIT, Origin.PROXY, phase, 1.0,
            f"ARCA refused what it does not read, for strict is set{_because(exchange)}, {progress}.",
        )
    if exchange.end == DRAINED and _is_session(exchange):
        return Verdict(
            Domain.PROXY, Cause.LIMIT, Origin.PROXY, phase, 1.0,
            f"ARCA was told to stop and ended the session, {at_ms:.1f} ms after its last packet.",
        )
    if exchange.end == DRAINED:
        return Verdict(
            Domain.PROXY, Cause.LIMIT, Origin.PROXY, phase, 1.0,
            f"ARCA was told to stop and limits.drain_seconds passed, {progress}.",
        )
    if exchange.end == UNREADABLE:
        return Verdict(
            Domain.UNKNOWN, Cause.UNKNOWN, None, phase, 0.0,
            f"The bytes stopped being readable as their protocol{_because(exchange)} and were carried untouched: "
            "how this exchange ended was not seen.",
        )
    return Verdict(
        Domain.PROXY, Cause.INTERNAL, Origin.PROXY, phase, 1.0,
        f"A defect of ARCA ended it, {progress}: {exchange.fault or 'its log has the traceback'}.",
    )


def _blame_thrift(Exchange exchange, str server, object phase):
    """The reply came to its end and is an exception: of Thrift itself, or one that the method declares."""
    cdef double at_ms = round((exchange.ended - exchange.started) * 1000, 3)
    said = _quoted(exchange.thrift.message)
    evidence = [Evidence(Source.WIRE, "thrift_exception", exchange.code or "", at_ms)]
    if exchange.thrift.exception_field == 0:
        what = f"{exchange.code} ({exchange.thrift.exception_type})"
        evidence.append(Evidence(Source.WIRE, "thrift_exception_type", exchange.thrift.exception_type, at_ms))
    else:
        what = f"the exception that its result declares as field {exchange.thrift.exception_field}"
        evidence.append(Evidence(Source.WIRE, "thrift_exception_field", exchange.thrift.exception_field, at_ms))
    return Verdict(
        Domain.APPLICATION, Cause.THRIFT_EXCEPTION, Origin.UPSTREAM, phase, 1.0,
        f"{server} itself answered {what} after {at_ms:.1f} ms{said}.", _request_check(exchange, server),
        tuple(evidence),
    )


def _blame_mqtt(Exchange exchange, str server, object phase):
    """A packet said no by its reason code: an answer, or the DISCONNECT that ends a session."""
    cdef MqttPacket packet = exchange.mqtt
    cdef double at_ms = round((exchange.ended - exchange.started) * 1000, 3)
    check = _request_check(exchange, server)
    code = f"{exchange.code} (0x{packet.reason & 0xFF:02x})"
    said = _quoted(packet.reason_string)
    method = _method(exchange)
    evidence = (
        Evidence(Source.WIRE, "mqtt_reason", exchange.code or "", at_ms),
        Evidence(Source.WIRE, "mqtt_reason_number", packet.reason, at_ms),
    )
    if method == "DISCONNECT" and exchange.by_upstream:
        complains = packet.reason in _MQTT_COMPLAINTS
        means = "it complains of what the client sent; whether rightly was not seen" if complains else (
            _MQTT_MEANS.get(packet.reason)
        )
        return Verdict(
            Domain.APPLICATION, Cause.MQTT_REFUSED, Origin.UPSTREAM, Phase.IDLE, 0.7 if complains else 1.0,
            f"{server} ended the session with {code}{': ' + means if means else ''}{said}.", check, evidence,
        )
    if method == "DISCONNECT":
        complains = packet.reason in _MQTT_COMPLAINTS
        means = ": it complains of what the server sent; whether rightly was not seen" if complains else ""
        return Verdict(
            Domain.CLIENT, Cause.CANCELED, Origin.DOWNSTREAM, Phase.IDLE, 0.7 if complains else 1.0,
            f"The client ended the session with {code}{means}{said}.", check if complains else None, evidence,
        )
    if exchange.by_upstream:
        return Verdict(
            Domain.CLIENT, Cause.MQTT_REFUSED, Origin.DOWNSTREAM, phase, 1.0,
            f"The client itself answered the {method} of {server} with {code} after {at_ms:.1f} ms{said}.", check,
            evidence,
        )
    refused = f", for {packet.filters_refused} of {packet.filters} filters" if packet.filters else ""
    return Verdict(
        Domain.APPLICATION, Cause.MQTT_REFUSED, Origin.UPSTREAM, phase, 1.0,
        f"{server} itself answered {method} with {code} after {at_ms:.1f} ms{refused}{said}.", check, evidence,
    )


def _blame_silence(Exchange exchange, str server):
    """A client must send something within its keep-alive, and is given half as much again (MQTT 5.0, 3.1.2.10)."""
    cdef double at_ms = round((exchange.ended - exchange.started) * 1000, 3)
    cdef int keep_alive = exchange.mqtt.keep_alive
    cdef double silence = round(exchange.mqtt.silence, 3)
    cdef str said = ""
    cdef tuple evidence = (
        Evidence(Source.WIRE, "keep_alive", keep_alive, at_ms), Evidence(Source.WIRE, "silence", silence, at_ms),
    )
    if exchange.mqtt.reason >= 0:
        said = f"; {server} ended the session with {exchange.code} (0x{exchange.mqtt.reason & 0xFF:02x})"
        evidence += (Evidence(Source.WIRE, "mqtt_reason", exchange.code or "", at_ms),)
    return Verdict(
        # What did not come may have been lost on its way here: that it was not sent is not seen.
        Domain.CLIENT, Cause.KEEPALIVE_MISSED, Origin.DOWNSTREAM, Phase.IDLE, 0.8,
        f"The client sent nothing for {silence:.1f} s, and had promised a packet every {keep_alive} s (keep-alive; "
        f"one and a half times that is {1.5 * keep_alive:.1f} s){_will(exchange.mqtt)}{said}.",
        _sockets_of(server), evidence,
    )


cdef bint _is_session(Exchange exchange):
    """Whether it stands for an MQTT session that ended without DISCONNECT: nobody sent a packet."""
    return exchange.mqtt is not None and exchange.end != COMPLETE and exchange.method == b"DISCONNECT"


cdef str _will(MqttPacket packet):
    if packet.will_topic is None:
        return ""
    return f", and its will is due{_quoted(packet.will_topic)}"


cdef str _method(Exchange exchange):
    """The type of an MQTT packet; the engine knows no others."""
    return "packet" if exchange.method is None else exchange.method.decode("ascii", "replace")


cdef str _before(Exchange exchange):
    """What was still to come when the connection ended, of whichever side it was."""
    if exchange.mqtt is None:
        if exchange.thrift is not None and not exchange.request_complete:
            return "in the middle of the call"
        return "before the answer was complete"
    method = _method(exchange)
    whose = "the server's" if exchange.by_upstream else "the client's"
    if not exchange.request_complete:
        return f"in the middle of {whose} {method}"
    if exchange.mqtt.qos == 2 and exchange.first_byte >= 0:
        return f"in the middle of the handshake for {whose} {method}"
    if exchange.by_upstream:
        return f"before the client had answered the server's {method}"
    return f"before {whose} {method} was answered"


cdef str _because(Exchange exchange):
    return "" if exchange.fault is None else f" ({exchange.fault})"


cdef str _sent_downstream(Exchange exchange):
    return "What the client sent" if exchange.protocol == MQTT else "The request"


cdef str _sent_upstream(Exchange exchange, str server):
    return f"What {server} sent" if exchange.protocol == MQTT else f"The response of {server}"


def _blame_grpc(Exchange exchange, str server, object phase):
    """The response came to its end, HTTP finds nothing wrong with it, and gRPC does."""
    at_ms = round((exchange.ended - exchange.started) * 1000, 3)
    check = _request_check(exchange, server)
    if exchange.rpc.status < 0:
        fault = "the response ended without grpc-status"
        return Verdict(
            Domain.APPLICATION, Cause.PROTOCOL_ERROR, Origin.UPSTREAM, phase, 1.0,
            f"The response of {server} is not gRPC's: {fault} after {at_ms:.1f} ms (HTTP status {exchange.status}).",
            check, (
                Evidence(Source.WIRE, "fault", fault, at_ms), Evidence(Source.WIRE, "status", exchange.status, at_ms),
            ),
        )
    said = _quoted(exchange.rpc.message)
    answered = f"{server} itself answered {_status_name(exchange)} ({exchange.rpc.status}) after {at_ms:.1f} ms{said}"
    if exchange.rpc.status == DEADLINE_EXCEEDED and _deadline_passed(exchange, SERVER_DEADLINE):
        return Verdict(
            # The server had the call and says so itself; how much of the time the path took, it does not.
            Domain.APPLICATION, Cause.DEADLINE_EXCEEDED, Origin.UPSTREAM, phase, 0.8,
            f"{answered}; the call's deadline was {exchange.rpc.timeout * 1000:.1f} ms.", check,
            (*_grpc_status(exchange, at_ms), _timeout(exchange)),
        )
    return Verdict(
        Domain.APPLICATION, Cause.GRPC_STATUS, Origin.UPSTREAM, phase, 1.0, f"{answered}.", check,
        _grpc_status(exchange, at_ms),
    )


def _blame_stream(Exchange exchange, str server, object phase):
    """One stream of a connection that goes on was given up: the code in RST_STREAM or GOAWAY says by whom and why."""
    at_ms = round((exchange.ended - exchange.started) * 1000, 3)
    progress = _progress(exchange)
    code = "no code" if exchange.stream_error < 0 else error_name(exchange.stream_error)
    check = _request_check(exchange, server)
    if exchange.end == UPSTREAM_GOAWAY:
        return Verdict(
            Domain.APPLICATION, Cause.ABORTED, Origin.UPSTREAM, phase, 1.0,
            f"{server} said GOAWAY ({code}) {progress}: it did not process the request, which may be sent again.",
            check, (Evidence(Source.WIRE, "goaway", code, at_ms),),
        )
    evidence = (Evidence(Source.WIRE, "rst_stream", code, at_ms),)
    complains = exchange.stream_error in _COMPLAINTS
    gave_up = exchange.stream_error in _GAVE_UP
    if exchange.end == UPSTREAM_RST_STREAM:
        if gave_up and _deadline_passed(exchange, SERVER_DEADLINE):
            return Verdict(
                Domain.APPLICATION, Cause.DEADLINE_EXCEEDED, Origin.UPSTREAM, phase, 0.8,
                f"{server} reset the stream ({code}) {progress}; "
                f"the call's deadline of {exchange.rpc.timeout * 1000:.1f} ms had passed.",
                check, (*evidence, _timeout(exchange)),
            )
        means = "it complains of the request; whether rightly was not seen" if complains else (
            _CODE_MEANS.get(exchange.stream_error)
        )
        return Verdict(
            Domain.APPLICATION, Cause.ABORTED, Origin.UPSTREAM, phase, 0.7 if complains else 1.0,
            f"{server} reset the stream ({code}) {progress}{': ' + means if means else ''}.", check, evidence,
        )
    if gave_up and _deadline_passed(exchange, CLIENT_DEADLINE):
        return Verdict(
            Domain.UNKNOWN, Cause.DEADLINE_EXCEEDED, None, phase, 0.0,
            f"The call's deadline of {exchange.rpc.timeout * 1000:.1f} ms passed and downstream gave it up ({code}) "
            f"{progress}; whether the path to {server} or the application was slow is not known: what the kernel saw "
            "of the path is missing.",
            f"ss -tni 'dst {server}'", (*evidence, _timeout(exchange)),
        )
    means = ": it complains of the response; whether rightly was not seen" if complains else ""
    return Verdict(
        Domain.CLIENT, Cause.CANCELED, Origin.DOWNSTREAM, phase, 0.7 if complains else 1.0,
        f"Downstream reset the stream ({code}) before the answer was complete, {progress}{means}.",
        check if complains else None, evidence,
    )


cdef tuple _goaway(Exchange exchange, double at_ms):
    """The GOAWAY that the side which ended the connection had said before, as evidence."""
    if exchange.stream_error < 0:
        return ()
    return (Evidence(Source.WIRE, "goaway", error_name(exchange.stream_error), at_ms),)


cdef str _said_goodbye(Exchange exchange):
    return "" if exchange.stream_error < 0 else f" after GOAWAY ({error_name(exchange.stream_error)})"


cdef bint _deadline_passed(Exchange exchange, double share):
    """Whether the call had a deadline of its own and ``share`` of it was over."""
    return (
        exchange.rpc is not None and exchange.rpc.timeout >= 0
        and exchange.ended - exchange.started >= share * exchange.rpc.timeout
    )


cdef object _timeout(Exchange exchange):
    """The deadline as evidence: it was told with the request."""
    return Evidence(Source.WIRE, "grpc_timeout_ms", round(exchange.rpc.timeout * 1000, 3), 0.0)


cdef str _status_name(Exchange exchange):
    return exchange.code or str(exchange.rpc.status)


cdef tuple _grpc_status(Exchange exchange, double at_ms):
    """The status that came with the answer as evidence, by name and by number; nothing where none did."""
    if exchange.rpc is None or exchange.rpc.status < 0:
        return ()
    return (
        Evidence(Source.WIRE, "grpc_status", _status_name(exchange), at_ms),
        Evidence(Source.WIRE, "grpc_status_number", exchange.rpc.status, at_ms),
    )


cdef str _quoted(bytes words):
    """A peer's own words, short and on one line; the exchange log has them whole."""
    if not words:
        return ""
    text = "".join(c if c.isprintable() else " " for c in words.decode("utf-8", "replace"))
    return f': "{text if len(text) <= MESSAGE_MAX else text[:MESSAGE_MAX - 3] + "..."}"'


cdef str _request_check(Exchange exchange, str server):
    """The same request, from a shell; of MQTT and Thrift what changes nothing: a subscription, a connection."""
    if exchange.mqtt is not None:
        host, port = _host_and_port(server)
        version = _MQTT_VERSIONS.get(exchange.mqtt.version, "mqttv5")
        return f"mosquitto_sub -d -h {host} -p {port} -V {version} -t '{_topic(exchange)}' -W 5"
    if exchange.thrift is not None:
        host, port = _host_and_port(server)
        return f"nc -zv -w 5 {host} {port}; ss -tni 'dst {server}'"
    if exchange.rpc is not None and exchange.rpc.web:
        kind = "-X POST -H 'content-type: application/grpc-web+proto' --data-binary ''"
        return f"curl -sv -o /dev/null {kind} http://{server}{_path(exchange)}"
    if exchange.rpc is not None:
        return f"grpcurl -plaintext {server} {_path(exchange)[1:] or 'list'}"
    version = "--http2-prior-knowledge " if exchange.protocol == HTTP_2 else ""
    return f"curl -sv -o /dev/null {version}http://{server}{_path(exchange)}"


cdef str _path(Exchange exchange):
    if exchange.target is None or not exchange.target.startswith(b"/"):
        return "/"
    path = exchange.target.decode("ascii", "replace")
    # The command is to be pasted into a shell: a path with anything unusual in it is left out.
    return path if all(c.isalnum() or c in "/-._~" for c in path) else "/"


cdef str _topic(Exchange exchange):
    """A topic to subscribe to, for single quotes in a shell: one with anything unusual in it is left out."""
    if exchange.target is None:
        return "#"
    topic = exchange.target.decode("ascii", "replace")
    return topic if topic and all(c.isalnum() or c in "/-._~+#$: " for c in topic) and topic.isascii() else "#"


cdef str _sockets_of(str server):
    """Both ends of the connections to the server's port, with their timers."""
    _, port = _host_and_port(server)
    return f"ss -tnio '( sport = :{port} or dport = :{port} )'"


cdef tuple _host_and_port(str server):
    host, _, port = server.rpartition(":")
    return host.strip("[]"), port


cdef str _dial_check(object cause, str server):
    host, port = _host_and_port(server)
    if cause is Cause.CONNECT_REFUSED:
        return f"ss -ltn 'sport = :{port}'   # on {host}"
    if cause is Cause.UNREACHABLE:
        return f"ip route get {host}"
    return f"nc -zv -w 5 {host} {port}; nstat -az TcpExtTCPSynRetrans TcpExtListenOverflows"

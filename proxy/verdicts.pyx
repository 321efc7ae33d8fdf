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
    Exchange, GRPC, HEAD_TIMEOUT, HTTP_2, INTERNAL, LOOP, OVERLOAD, UNREADABLE, UPSTREAM_FAULT, UPSTREAM_FIN,
    UPSTREAM_GOAWAY, UPSTREAM_RST, UPSTREAM_RST_STREAM,
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
    MESSAGE_MAX = 200      # characters of a grpc-message in a sentence
_UNREACHABLE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETDOWN))


def dial_answer(int error, str server):
    """How HTTP is told that ``server`` could not be reached: (status, cause, one-line text)."""
    cause, _, _ = _DIAL.get(error, (Cause.INTERNAL, None, 0))
    status = 504 if cause is Cause.CONNECT_TIMEOUT else 502
    return status, str(cause), f"no connection to the upstream {server}: {os.strerror(error)}"


cdef object _phase(Exchange exchange):
    if exchange.end == DIAL_FAILED:
        return Phase.CONNECT
    if exchange.first_byte >= 0:
        return Phase.RESPONSE
    if exchange.request_complete or exchange.protocol > GRPC:
        return Phase.WAIT
    return Phase.REQUEST


cdef str _progress(Exchange exchange):
    """How far it had come, in figures."""
    return (
        f"after {(exchange.ended - exchange.started) * 1000:.1f} ms, "
        f"{exchange.request_bytes} request and {exchange.response_bytes} response bytes"
    )


cpdef object decide(Exchange exchange, str server):
    if exchange.end == COMPLETE and exchange.status < 400 and (exchange.rpc is None or exchange.rpc.status == 0):
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
            f"The request breaks its protocol's framing: {fault}.", None, (wire("fault", fault),),
        )
    if exchange.end == UPSTREAM_FAULT:
        fault = exchange.fault or "an earlier response on this connection was refused"
        return Verdict(
            Domain.APPLICATION, Cause.PROTOCOL_ERROR, Origin.UPSTREAM, Phase.RESPONSE, 1.0,
            f"The response of {server} breaks its protocol's framing: {fault}.", None, (wire("fault", fault),),
        )
    if exchange.end == DOWNSTREAM_FIN or exchange.end == DOWNSTREAM_RST:
        how, confidence = ("closed", 0.8) if exchange.end == DOWNSTREAM_FIN else ("reset", 0.9)
        evidence = wire("downstream_fin", 1) if exchange.end == DOWNSTREAM_FIN else refused_by_os()
        return Verdict(
            Domain.CLIENT, Cause.CANCELED, Origin.DOWNSTREAM, phase, confidence,
            f"Downstream {how} the connection{_said_goodbye(exchange)} before the answer was complete, {progress}.",
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
    if exchange.end == UPSTREAM_FIN:
        where = "in the middle of the response" if exchange.first_byte >= 0 else "before answering"
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
    if exchange.end == DRAINED:
        return Verdict(
            Domain.PROXY, Cause.LIMIT, Origin.PROXY, phase, 1.0,
            f"ARCA was told to stop and limits.drain_seconds passed, {progress}.",
        )
    if exchange.end == UNREADABLE:
        return Verdict(
            Domain.UNKNOWN, Cause.UNKNOWN, None, phase, 0.0,
            "The bytes stopped being readable as their protocol and were carried untouched: "
            "how this exchange ended was not seen.",
        )
    return Verdict(
        Domain.PROXY, Cause.INTERNAL, Origin.PROXY, phase, 1.0,
        f"A defect of ARCA ended it, {progress}: {exchange.fault or 'its log has the traceback'}.",
    )


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
    said = _said(exchange)
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


cdef str _said(Exchange exchange):
    """The server's own words, short and on one line; the exchange log has them whole."""
    if not exchange.rpc.message:
        return ""
    text = "".join(c if c.isprintable() else " " for c in exchange.rpc.message.decode("utf-8", "replace"))
    return f': "{text if len(text) <= MESSAGE_MAX else text[:MESSAGE_MAX - 3] + "..."}"'


cdef str _request_check(Exchange exchange, str server):
    """The same request, from a shell."""
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


cdef str _dial_check(object cause, str server):
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    if cause is Cause.CONNECT_REFUSED:
        return f"ss -ltn 'sport = :{port}'   # on {host}"
    if cause is Cause.UNREACHABLE:
        return f"ip route get {host}"
    return f"nc -zv -w 5 {host} {port}; nstat -az TcpExtTCPSynRetrans TcpExtListenOverflows"

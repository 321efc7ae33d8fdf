"""The verdict's table: every way an exchange can end, every errno a dial or a socket can give."""

from __future__ import annotations

import errno
import itertools

import pytest

from protocols.exchange import End, Exchange, MqttPacket, Protocol, Rpc, ThriftCall
from protocols.http2_codes import ErrorCode
from protocols.verdict import OK, Cause, Domain, Origin, Phase, Source, Verdict
from proxy.verdicts import decide, dial_answer

SERVER = "10.0.0.1:80"


def exchange(
    end: End,
    *,
    error: int = 0,
    status: int = 0,
    protocol: Protocol = Protocol.HTTP_1_1,
    answered: bool = False,
    asked: bool = True,
    fault: str | None = None,
    target: bytes | None = b"/path",
    stream_error: int = -1,
    rpc: Rpc | None = None,
    code: str | None = None,
) -> Exchange:
    made = Exchange(protocol, 100.0)
    made.end, made.error, made.status, made.fault, made.target = end, error, status, fault, target
    made.stream_error, made.rpc, made.code = stream_error, rpc, code
    made.request_complete = asked
    made.first_byte = 100.010 if answered else -1.0
    made.ended = 100.0125
    made.request_bytes, made.response_bytes = 321, 123
    return made


def rpc(status: int = -1, timeout: float = -1.0, message: bytes | None = None, web: bool = False) -> Rpc:
    made = Rpc()
    made.status, made.timeout, made.message, made.web = status, timeout, message, web
    return made


def called(end: End, **given: object) -> Verdict:
    """The verdict on a gRPC call that lasted 12.5 ms."""
    defaults = {"protocol": Protocol.GRPC, "status": 200, "answered": True, "target": b"/a.Service/Do"}
    return decided(end, **(defaults | given))


def facts(verdict: Verdict) -> dict[str, str | int | float]:
    """What was on the wire; a socket error beside it is checked where it matters."""
    return {each.name: each.value for each in verdict.evidence if each.source is Source.WIRE}


def decided(end: End, **given: object) -> Verdict:
    return decide(exchange(end, **given), SERVER)  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [0, 100, 101, 200, 204, 301, 304, 399])
def test_what_came_to_its_end_is_ok_and_costs_no_new_verdict(status: int) -> None:
    assert decided(End.COMPLETE, status=status, answered=True) is OK


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (400, Cause.STATUS_4XX),
        (404, Cause.STATUS_4XX),
        (499, Cause.STATUS_4XX),
        (500, Cause.STATUS_5XX),
        (502, Cause.STATUS_5XX),
        (599, Cause.STATUS_5XX),
        (999, Cause.STATUS_5XX),
    ],
)
def test_a_status_the_server_sent_is_the_applications(status: int, cause: Cause) -> None:
    verdict = decided(End.COMPLETE, status=status, answered=True)
    assert (verdict.domain, verdict.cause, verdict.origin) == (Domain.APPLICATION, cause, Origin.UPSTREAM)
    assert (verdict.phase, verdict.confidence) == (Phase.RESPONSE, 1.0)
    assert [(each.source, each.name, each.value) for each in verdict.evidence] == [
        (Source.WIRE, "status", status)
    ]
    assert verdict.check == "curl -sv -o /dev/null http://10.0.0.1:80/path"


@pytest.mark.parametrize(
    ("error", "domain", "cause", "origin", "status"),
    [
        (errno.ECONNREFUSED, Domain.INFRASTRUCTURE, Cause.CONNECT_REFUSED, Origin.UPSTREAM, 502),
        (errno.ETIMEDOUT, Domain.INFRASTRUCTURE, Cause.CONNECT_TIMEOUT, Origin.NETWORK, 504),
        (errno.ENETUNREACH, Domain.INFRASTRUCTURE, Cause.UNREACHABLE, Origin.NETWORK, 502),
        (errno.EHOSTUNREACH, Domain.INFRASTRUCTURE, Cause.UNREACHABLE, Origin.NETWORK, 502),
        (errno.EHOSTDOWN, Domain.INFRASTRUCTURE, Cause.UNREACHABLE, Origin.NETWORK, 502),
        (errno.ENONET, Domain.INFRASTRUCTURE, Cause.UNREACHABLE, Origin.NETWORK, 502),
        (errno.ENETDOWN, Domain.INFRASTRUCTURE, Cause.UNREACHABLE, Origin.HOST, 502),
        (errno.EACCES, Domain.INFRASTRUCTURE, Cause.UNREACHABLE, Origin.HOST, 502),
        (errno.EPERM, Domain.INFRASTRUCTURE, Cause.UNREACHABLE, Origin.HOST, 502),
        (errno.ECONNRESET, Domain.INFRASTRUCTURE, Cause.RESET, Origin.NETWORK, 502),
        (errno.ECONNABORTED, Domain.INFRASTRUCTURE, Cause.RESET, Origin.NETWORK, 502),
        # What is left is ours: no descriptors, no ports, no memory, a kernel that is asked nonsense.
        (errno.EMFILE, Domain.PROXY, Cause.INTERNAL, Origin.PROXY, 502),
        (errno.ENFILE, Domain.PROXY, Cause.INTERNAL, Origin.PROXY, 502),
        (errno.EADDRNOTAVAIL, Domain.PROXY, Cause.INTERNAL, Origin.PROXY, 502),
        (errno.ENOBUFS, Domain.PROXY, Cause.INTERNAL, Origin.PROXY, 502),
        (errno.EIO, Domain.PROXY, Cause.INTERNAL, Origin.PROXY, 502),
        (12345, Domain.PROXY, Cause.INTERNAL, Origin.PROXY, 502),
    ],
)
def test_a_dial_that_failed(error: int, domain: Domain, cause: Cause, origin: Origin, status: int) -> None:
    verdict = decided(End.DIAL_FAILED, error=error, status=status)
    assert (verdict.domain, verdict.cause, verdict.origin) == (domain, cause, origin)
    assert verdict.phase is Phase.CONNECT
    assert 0.5 < verdict.confidence < 1
    (evidence,) = verdict.evidence
    assert (evidence.source, evidence.name) == (Source.ERRNO, "connect")
    assert evidence.value == errno.errorcode.get(error, str(error))
    assert verdict.check

    answered, named, text = dial_answer(error, SERVER)
    assert (answered, named) == (status, str(cause))
    assert SERVER in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("asked", "answered", "protocol", "phase"),
    [
        (False, False, Protocol.HTTP_1_1, Phase.REQUEST),
        (False, False, Protocol.HTTP_1_0, Phase.REQUEST),
        (True, False, Protocol.HTTP_1_1, Phase.WAIT),
        (True, True, Protocol.HTTP_1_1, Phase.RESPONSE),
        (False, True, Protocol.HTTP_1_1, Phase.RESPONSE),
        (False, False, Protocol.HTTP_2, Phase.REQUEST),
        (True, False, Protocol.HTTP_2, Phase.WAIT),
        (False, False, Protocol.GRPC, Phase.REQUEST),
        (True, True, Protocol.GRPC, Phase.RESPONSE),
        (False, False, Protocol.TCP, Phase.WAIT),
        (False, True, Protocol.TLS, Phase.RESPONSE),
    ],
)
@pytest.mark.parametrize(
    ("end", "error", "domain", "cause", "origin"),
    [
        (End.DOWNSTREAM_FIN, 0, Domain.CLIENT, Cause.CANCELED, Origin.DOWNSTREAM),
        (End.DOWNSTREAM_RST, errno.ECONNRESET, Domain.CLIENT, Cause.CANCELED, Origin.DOWNSTREAM),
        (End.DOWNSTREAM_RST, errno.EPIPE, Domain.CLIENT, Cause.CANCELED, Origin.DOWNSTREAM),
        (End.UPSTREAM_FIN, 0, Domain.APPLICATION, Cause.CLOSED_EARLY, Origin.UPSTREAM),
        (End.UPSTREAM_RST, errno.ECONNRESET, Domain.INFRASTRUCTURE, Cause.RESET, Origin.NETWORK),
        (End.UPSTREAM_RST, errno.EPIPE, Domain.INFRASTRUCTURE, Cause.RESET, Origin.NETWORK),
        (End.UPSTREAM_RST, errno.ETIMEDOUT, Domain.INFRASTRUCTURE, Cause.RESET, Origin.NETWORK),
        (End.UPSTREAM_RST, 0, Domain.INFRASTRUCTURE, Cause.RESET, Origin.NETWORK),
        (End.UPSTREAM_RST, errno.EHOSTUNREACH, Domain.INFRASTRUCTURE, Cause.UNREACHABLE, Origin.NETWORK),
        (End.UPSTREAM_RST, errno.ENETUNREACH, Domain.INFRASTRUCTURE, Cause.UNREACHABLE, Origin.NETWORK),
        (End.UPSTREAM_RST, errno.EHOSTDOWN, Domain.INFRASTRUCTURE, Cause.UNREACHABLE, Origin.NETWORK),
        (End.UPSTREAM_RST, errno.ENETDOWN, Domain.INFRASTRUCTURE, Cause.UNREACHABLE, Origin.NETWORK),
        (End.DRAINED, 0, Domain.PROXY, Cause.LIMIT, Origin.PROXY),
        (End.UNREADABLE, 0, Domain.UNKNOWN, Cause.UNKNOWN, None),
        (End.INTERNAL, 0, Domain.PROXY, Cause.INTERNAL, Origin.PROXY),
    ],
)
def test_a_connection_that_ended_in_the_middle(
    end: End,
    error: int,
    domain: Domain,
    cause: Cause,
    origin: Origin | None,
    asked: bool,
    answered: bool,
    protocol: Protocol,
    phase: Phase,
) -> None:
    verdict = decided(end, error=error, asked=asked, answered=answered, protocol=protocol)
    assert (verdict.domain, verdict.cause, verdict.origin) == (domain, cause, origin)
    assert verdict.phase is phase


@pytest.mark.parametrize(
    ("end", "domain", "cause", "phase"),
    [
        (End.DOWNSTREAM_FAULT, Domain.CLIENT, Cause.PROTOCOL_ERROR, Phase.REQUEST),
        (End.UPSTREAM_FAULT, Domain.APPLICATION, Cause.PROTOCOL_ERROR, Phase.RESPONSE),
        (End.HEAD_TIMEOUT, Domain.CLIENT, Cause.STALLED, Phase.REQUEST),
        (End.LOOP, Domain.PROXY, Cause.LIMIT, Phase.CONNECT),
        (End.OVERLOAD, Domain.PROXY, Cause.OVERLOAD, Phase.CONNECT),
    ],
)
def test_what_was_refused_is_certain(end: End, domain: Domain, cause: Cause, phase: Phase) -> None:
    verdict = decided(end, fault="bare LF", status=400)
    assert (verdict.domain, verdict.cause, verdict.phase) == (domain, cause, phase)
    assert verdict.confidence == 1.0
    if end in (End.DOWNSTREAM_FAULT, End.UPSTREAM_FAULT):
        assert verdict.explain is not None
        assert "bare LF" in verdict.explain


def test_a_grpc_call_with_status_ok_is_ok() -> None:
    assert called(End.COMPLETE, rpc=rpc(0), code="OK") is OK
    assert called(End.COMPLETE, rpc=rpc(0, timeout=0.001), code="OK") is OK


def test_a_grpc_status_the_server_sent_is_the_applications() -> None:
    verdict = called(End.COMPLETE, rpc=rpc(14, message="no\nbackend \u202e".encode()), code="UNAVAILABLE")
    assert (verdict.domain, verdict.cause, verdict.origin) == (
        Domain.APPLICATION,
        Cause.GRPC_STATUS,
        Origin.UPSTREAM,
    )
    assert (verdict.phase, verdict.confidence) == (Phase.RESPONSE, 1.0)
    assert facts(verdict) == {"grpc_status": "UNAVAILABLE", "grpc_status_number": 14}
    assert verdict.explain == '10.0.0.1:80 itself answered UNAVAILABLE (14) after 12.5 ms: "no backend  ".'
    assert verdict.check == "grpcurl -plaintext 10.0.0.1:80 a.Service/Do"


def test_a_status_that_grpc_does_not_define_is_told_by_its_number() -> None:
    verdict = called(End.COMPLETE, rpc=rpc(1234), code="1234")
    assert verdict.cause is Cause.GRPC_STATUS
    assert facts(verdict) == {"grpc_status": "1234", "grpc_status_number": 1234}


def test_a_long_grpc_message_is_cut_in_the_sentence() -> None:
    explain = called(End.COMPLETE, rpc=rpc(13, message=b"x" * 1000), code="INTERNAL").explain
    assert explain is not None
    assert len(explain) < 300


@pytest.mark.parametrize(
    ("timeout", "cause"),
    [
        (0.0125, Cause.DEADLINE_EXCEEDED),
        (0.0130, Cause.DEADLINE_EXCEEDED),
        (0.0, Cause.DEADLINE_EXCEEDED),
        (0.0150, Cause.GRPC_STATUS),  # some other call's deadline, inside the application
        (-1.0, Cause.GRPC_STATUS),
    ],
)
def test_a_server_that_ends_a_call_at_its_deadline(timeout: float, cause: Cause) -> None:
    verdict = called(End.COMPLETE, rpc=rpc(4, timeout), code="DEADLINE_EXCEEDED")
    assert (verdict.domain, verdict.cause, verdict.origin) == (Domain.APPLICATION, cause, Origin.UPSTREAM)
    assert facts(verdict)["grpc_status"] == "DEADLINE_EXCEEDED"
    assert ("grpc_timeout_ms" in facts(verdict)) is (cause is Cause.DEADLINE_EXCEEDED)


@pytest.mark.parametrize("status", [200, 204, 302])
def test_an_answer_to_grpc_without_a_grpc_status_breaks_the_protocol(status: int) -> None:
    verdict = called(End.COMPLETE, rpc=rpc(-1), status=status)
    assert (verdict.domain, verdict.cause, verdict.confidence) == (
        Domain.APPLICATION,
        Cause.PROTOCOL_ERROR,
        1.0,
    )
    assert facts(verdict) == {"fault": "the response ended without grpc-status", "status": status}


def test_a_grpc_call_that_http_refused_is_judged_as_http() -> None:
    verdict = called(End.COMPLETE, rpc=rpc(-1), status=503)
    assert (verdict.cause, facts(verdict)) == (Cause.STATUS_5XX, {"status": 503})
    verdict = called(End.COMPLETE, rpc=rpc(16), code="UNAUTHENTICATED", status=401)
    assert verdict.cause is Cause.STATUS_4XX
    assert facts(verdict) == {"status": 401, "grpc_status": "UNAUTHENTICATED", "grpc_status_number": 16}


@pytest.mark.parametrize("code", [ErrorCode.CANCEL, ErrorCode.NO_ERROR, ErrorCode.INTERNAL_ERROR, 0x1F])
@pytest.mark.parametrize("timeout", [-1.0, 0.0130])
def test_a_stream_that_downstream_resets_was_canceled(code: int, timeout: float) -> None:
    verdict = called(End.DOWNSTREAM_RST_STREAM, stream_error=code, rpc=rpc(timeout=timeout))
    assert (verdict.domain, verdict.cause, verdict.origin) == (
        Domain.CLIENT,
        Cause.CANCELED,
        Origin.DOWNSTREAM,
    )
    assert verdict.confidence == 1.0
    assert facts(verdict) == {"rst_stream": "0x1f" if code == 0x1F else ErrorCode(code).name}


@pytest.mark.parametrize(
    ("end", "domain", "cause", "of"),
    [
        (End.DOWNSTREAM_RST_STREAM, Domain.CLIENT, Cause.CANCELED, "response"),
        (End.UPSTREAM_RST_STREAM, Domain.APPLICATION, Cause.ABORTED, "request"),
    ],
)
@pytest.mark.parametrize(
    "code", [ErrorCode.PROTOCOL_ERROR, ErrorCode.FLOW_CONTROL_ERROR, ErrorCode.STREAM_CLOSED]
)
def test_who_complains_of_the_other_gave_up_but_is_not_believed_blindly(
    end: End, domain: Domain, cause: Cause, of: str, code: ErrorCode
) -> None:
    verdict = called(end, stream_error=code, rpc=rpc(timeout=0.001))
    assert (verdict.domain, verdict.cause) == (domain, cause)
    assert verdict.confidence < 1
    assert verdict.explain is not None
    assert f"it complains of the {of}" in verdict.explain
    assert code.name in verdict.explain


@pytest.mark.parametrize("timeout", [0.0, 0.0120, 0.0126])
def test_a_client_that_gives_up_at_its_deadline_leaves_open_who_was_slow(timeout: float) -> None:
    verdict = called(End.DOWNSTREAM_RST_STREAM, stream_error=ErrorCode.CANCEL, rpc=rpc(timeout=timeout))
    assert (verdict.domain, verdict.cause, verdict.origin) == (Domain.UNKNOWN, Cause.DEADLINE_EXCEEDED, None)
    assert verdict.confidence == 0
    assert facts(verdict) == {"rst_stream": "CANCEL", "grpc_timeout_ms": timeout * 1000}
    assert verdict.explain is not None
    assert "is missing" in verdict.explain


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (ErrorCode.REFUSED_STREAM, "may be sent again"),
        (ErrorCode.INTERNAL_ERROR, "an error of its own"),
        (ErrorCode.CANCEL, "(CANCEL)"),
        (ErrorCode.CONNECT_ERROR, "(CONNECT_ERROR)"),
        (0xFFFFFFFF, "(0xffffffff)"),
    ],
)
def test_a_stream_that_upstream_resets_was_aborted_by_it(code: int, says: str) -> None:
    verdict = decided(End.UPSTREAM_RST_STREAM, stream_error=code, protocol=Protocol.HTTP_2)
    assert (verdict.domain, verdict.cause, verdict.origin) == (
        Domain.APPLICATION,
        Cause.ABORTED,
        Origin.UPSTREAM,
    )
    assert (verdict.phase, verdict.confidence) == (Phase.WAIT, 1.0)
    assert verdict.explain is not None
    assert says in verdict.explain
    assert list(facts(verdict)) == ["rst_stream"]
    assert verdict.check == "curl -sv -o /dev/null --http2-prior-knowledge http://10.0.0.1:80/path"


def test_an_upstream_that_cancels_a_call_after_its_deadline_kept_to_it() -> None:
    late = called(End.UPSTREAM_RST_STREAM, stream_error=ErrorCode.CANCEL, rpc=rpc(timeout=0.012))
    assert (late.domain, late.cause) == (Domain.APPLICATION, Cause.DEADLINE_EXCEEDED)
    early = called(End.UPSTREAM_RST_STREAM, stream_error=ErrorCode.CANCEL, rpc=rpc(timeout=0.020))
    assert (early.domain, early.cause) == (Domain.APPLICATION, Cause.ABORTED)
    refused = called(End.UPSTREAM_RST_STREAM, stream_error=ErrorCode.REFUSED_STREAM, rpc=rpc(timeout=0.001))
    assert refused.cause is Cause.ABORTED


def test_a_stream_that_goaway_leaves_out_was_not_processed() -> None:
    verdict = called(End.UPSTREAM_GOAWAY, stream_error=ErrorCode.NO_ERROR, rpc=rpc(), answered=False)
    assert (verdict.domain, verdict.cause, verdict.confidence) == (Domain.APPLICATION, Cause.ABORTED, 1.0)
    assert facts(verdict) == {"goaway": "NO_ERROR"}
    assert verdict.explain is not None
    assert "did not process the request, which may be sent again" in verdict.explain


@pytest.mark.parametrize("end", [End.UPSTREAM_FIN, End.UPSTREAM_RST])
def test_an_upstream_that_says_why_it_goes_is_believed(end: End) -> None:
    verdict = called(end, stream_error=ErrorCode.ENHANCE_YOUR_CALM, answered=False)
    assert (verdict.domain, verdict.cause) == (Domain.APPLICATION, Cause.ABORTED)
    assert facts(verdict)["goaway"] == "ENHANCE_YOUR_CALM"
    assert verdict.explain is not None
    assert "after GOAWAY (ENHANCE_YOUR_CALM)" in verdict.explain


def test_a_goaway_without_an_error_explains_no_early_close() -> None:
    verdict = called(End.UPSTREAM_FIN, stream_error=ErrorCode.NO_ERROR, answered=True)
    assert (verdict.domain, verdict.cause) == (Domain.APPLICATION, Cause.CLOSED_EARLY)
    assert facts(verdict) == {"upstream_fin": 1, "goaway": "NO_ERROR"}


def test_what_a_client_said_before_it_went_is_evidence() -> None:
    verdict = called(End.DOWNSTREAM_RST, stream_error=ErrorCode.FLOW_CONTROL_ERROR, answered=True)
    assert (verdict.domain, verdict.cause) == (Domain.CLIENT, Cause.CANCELED)
    assert facts(verdict)["goaway"] == "FLOW_CONTROL_ERROR"


def test_the_check_of_grpc_web_is_a_command_that_speaks_it() -> None:
    verdict = called(End.COMPLETE, rpc=rpc(13, web=True), code="INTERNAL")
    assert verdict.check == (
        "curl -sv -o /dev/null -X POST -H 'content-type: application/grpc-web+proto' --data-binary '' "
        "http://10.0.0.1:80/a.Service/Do"
    )


def test_the_check_of_a_call_with_an_unusual_name_asks_for_the_services() -> None:
    verdict = called(End.COMPLETE, rpc=rpc(13), code="INTERNAL", target=b"/a;reboot/b")
    assert verdict.check == "grpcurl -plaintext 10.0.0.1:80 list"


def test_a_reset_by_the_peers_kernel_is_not_claimed_for_sure() -> None:
    """errno cannot tell who reset a connection (verdicts.md, Kernel signals)."""
    assert decided(End.UPSTREAM_RST, error=errno.ECONNRESET).confidence <= 0.5
    assert decided(End.DOWNSTREAM_RST, error=errno.ECONNRESET).confidence < 1


@pytest.mark.parametrize(
    ("end", "status", "answered", "error", "grpc"),
    list(
        itertools.product(
            End, (0, 200, 404, 503), (False, True), (0, errno.ECONNRESET, 99999), (None, -1, 0, 4, 14)
        )
    ),
)
def test_every_verdict_is_whole(end: End, status: int, answered: bool, error: int, grpc: int | None) -> None:
    """Of the closed lists, with a sentence that has its figures, and confidence only where there is proof."""
    fault = "bare LF" if end is End.DOWNSTREAM_FAULT else None  # the engine always has one for it
    call = None if grpc is None else rpc(grpc, timeout=0.01)
    made = exchange(end, status=status, answered=answered, error=error, fault=fault, rpc=call)
    if end is End.KEEPALIVE_MISSED:
        made.mqtt = packet(keep_alive=60, silence=90.5)
    verdict = decide(made, SERVER)
    if verdict.domain is Domain.OK:
        assert (end, verdict.cause) == (End.COMPLETE, None)
        return
    assert isinstance(verdict.cause, Cause)
    assert isinstance(verdict.phase, Phase)
    assert verdict.origin is None or isinstance(verdict.origin, Origin)
    assert (verdict.domain is Domain.UNKNOWN) == (verdict.origin is None) == (verdict.confidence == 0)
    assert 0 <= verdict.confidence <= 1
    assert verdict.explain is not None
    assert verdict.explain.endswith(".")
    assert "\n" not in verdict.explain
    assert "None" not in verdict.explain
    for evidence in verdict.evidence:
        assert evidence.at_ms == (0 if evidence.name == "grpc_timeout_ms" else 12.5)
        if evidence.source is Source.ERRNO:
            assert verdict.confidence < 1, "an errno alone proves nothing"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/a/b-c_d.e~f", "/a/b-c_d.e~f"),
        (b"/a?b=c", "/"),
        (b"/a;rm -rf", "/"),
        (b"/$(reboot)", "/"),
        (b"/`x`", "/"),
        (b"/\xff", "/"),
        ("/é".encode(), "/"),
        (b"http://x/", "/"),
        (b"*", "/"),
        (None, "/"),
    ],
)
def test_the_command_to_check_with_can_be_pasted_into_a_shell(target: bytes | None, path: str) -> None:
    verdict = decided(End.COMPLETE, status=500, answered=True, target=target)
    assert verdict.check == f"curl -sv -o /dev/null http://10.0.0.1:80{path}"


def test_the_dial_checks_name_the_host_and_the_port_of_ipv6_too() -> None:
    made = exchange(End.DIAL_FAILED, error=errno.EHOSTUNREACH)
    assert decide(made, "[fd00::1]:80").check == "ip route get fd00::1"
    made.error = errno.ETIMEDOUT
    check = decide(made, "[fd00::1]:8080").check
    assert check is not None
    assert check.startswith("nc -zv -w 5 fd00::1 8080")


def test_a_dial_says_how_long_it_took_and_not_how_long_the_exchange_did() -> None:
    made = exchange(End.DIAL_FAILED, error=errno.ETIMEDOUT)
    made.connect = 3.0
    explain = decide(made, SERVER).explain
    assert explain is not None
    assert "3000.0 ms" in explain


def thrift_call(**fields: object) -> ThriftCall:
    call = ThriftCall()
    call.transport, call.encoding, call.sequence = "framed", "binary", 7
    for name, value in fields.items():
        setattr(call, name, value)
    return call


def packet(**fields: object) -> MqttPacket:
    made = MqttPacket()
    made.version, made.client_id = 5, b"kitchen"
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def of_mqtt(end: End, method: bytes, **given: object) -> Verdict:
    """The verdict on a packet of MQTT with its answer, which took 12.5 ms; ``mqtt_*`` are its details."""
    details = {name.removeprefix("mqtt_"): given.pop(name) for name in list(given) if name[:5] == "mqtt_"}
    whole: dict[str, object] = {"protocol": Protocol.MQTT, "target": None}
    fields = {name: given.pop(name) for name in ("by_upstream", "failed") if name in given}
    made = exchange(end, **(whole | given))  # type: ignore[arg-type]
    made.method, made.mqtt = method, packet(**details)
    for name, value in fields.items():
        setattr(made, name, value)
    return decide(made, SERVER)


def failed_call(code: str, **details: object) -> Verdict:
    made = exchange(End.COMPLETE, protocol=Protocol.THRIFT, answered=True, code=code, target=None)
    made.method, made.failed, made.thrift = b"ping", True, thrift_call(**details)
    return decide(made, SERVER)


def test_an_exception_of_thrift_is_the_applications_with_its_type_and_words() -> None:
    verdict = failed_call("UNKNOWN_METHOD", exception_type=1, message=b"Unknown function 'x'\n")
    assert (verdict.domain, verdict.cause, verdict.origin) == (
        Domain.APPLICATION,
        Cause.THRIFT_EXCEPTION,
        Origin.UPSTREAM,
    )
    assert (verdict.phase, verdict.confidence) == (Phase.RESPONSE, 1.0)
    assert facts(verdict) == {"thrift_exception": "UNKNOWN_METHOD", "thrift_exception_type": 1}
    assert verdict.explain == (
        "10.0.0.1:80 itself answered UNKNOWN_METHOD (1) after 12.5 ms: \"Unknown function 'x' \"."
    )
    assert verdict.check == "nc -zv -w 5 10.0.0.1 80; ss -tni 'dst 10.0.0.1:80'"


def test_a_declared_exception_is_told_by_the_field_of_its_result() -> None:
    verdict = failed_call("exception_3", exception_field=3)
    assert (verdict.domain, verdict.cause) == (Domain.APPLICATION, Cause.THRIFT_EXCEPTION)
    assert facts(verdict) == {"thrift_exception": "exception_3", "thrift_exception_field": 3}
    assert verdict.explain == (
        "10.0.0.1:80 itself answered the exception that its result declares as field 3 after 12.5 ms."
    )


def test_a_oneway_call_that_passed_is_ok_and_one_that_was_cut_was_cut_in_the_middle() -> None:
    made = exchange(End.COMPLETE, protocol=Protocol.THRIFT, target=None)
    made.thrift = thrift_call(oneway=True)
    assert decide(made, SERVER) is OK
    made.end, made.request_complete = End.DOWNSTREAM_FIN, False
    verdict = decide(made, SERVER)
    assert (verdict.domain, verdict.cause, verdict.phase) == (Domain.CLIENT, Cause.CANCELED, Phase.REQUEST)
    assert "in the middle of the call" in (verdict.explain or "")


@pytest.mark.parametrize("method", [b"CONNECT", b"PUBLISH", b"SUBSCRIBE", b"UNSUBSCRIBE", b"AUTH"])
def test_a_packet_that_the_server_refuses_is_the_applications(method: bytes) -> None:
    verdict = of_mqtt(
        End.COMPLETE, method, failed=True, answered=True, code="Not authorized", mqtt_reason=0x87,
        mqtt_reason_string=b"no\x00 entry",
    )  # fmt: skip
    assert (verdict.domain, verdict.cause, verdict.origin) == (
        Domain.APPLICATION,
        Cause.MQTT_REFUSED,
        Origin.UPSTREAM,
    )
    assert (verdict.phase, verdict.confidence) == (Phase.RESPONSE, 1.0)
    assert facts(verdict) == {"mqtt_reason": "Not authorized", "mqtt_reason_number": 0x87}
    assert verdict.explain == (
        f"10.0.0.1:80 itself answered {method.decode()} with Not authorized (0x87) after 12.5 ms: "
        '"no  entry".'
    )
    assert verdict.check == "mosquitto_sub -d -h 10.0.0.1 -p 80 -V mqttv5 -t '#' -W 5"


def test_a_subscription_says_how_many_of_its_filters_were_refused() -> None:
    verdict = of_mqtt(
        End.COMPLETE, b"SUBSCRIBE", failed=True, answered=True, code="Failure", target=b"a/+/b",
        mqtt_reason=0x80, mqtt_filters=3, mqtt_filters_refused=2, mqtt_version=4,
    )  # fmt: skip
    assert "Failure (0x80) after 12.5 ms, for 2 of 3 filters." in (verdict.explain or "")
    assert verdict.check == "mosquitto_sub -d -h 10.0.0.1 -p 80 -V mqttv311 -t 'a/+/b' -W 5"


def test_a_message_that_the_client_refuses_is_the_clients() -> None:
    verdict = of_mqtt(
        End.COMPLETE, b"PUBLISH", failed=True, answered=True, by_upstream=True, code="Quota exceeded",
        mqtt_reason=0x97,
    )  # fmt: skip
    assert (verdict.domain, verdict.cause, verdict.origin) == (
        Domain.CLIENT,
        Cause.MQTT_REFUSED,
        Origin.DOWNSTREAM,
    )
    assert verdict.confidence == 1.0
    assert "The client itself answered the PUBLISH of 10.0.0.1:80 with Quota exceeded" in (
        verdict.explain or ""
    )


@pytest.mark.parametrize(
    ("reason", "name", "domain", "cause", "confidence", "says"),
    [
        (0x8B, "Server shutting down", Domain.APPLICATION, Cause.MQTT_REFUSED, 1.0, "is being shut down"),
        (0x8E, "Session taken over", Domain.APPLICATION, Cause.MQTT_REFUSED, 1.0, "took the client id over"),
        (0x97, "Quota exceeded", Domain.APPLICATION, Cause.MQTT_REFUSED, 1.0, "Quota exceeded (0x97)."),
        (0x82, "Protocol Error", Domain.APPLICATION, Cause.MQTT_REFUSED, 0.7, "whether rightly was not seen"),
        (
            0x8D,
            "Keep Alive timeout",
            Domain.APPLICATION,
            Cause.MQTT_REFUSED,
            0.7,
            "whether rightly was not seen",
        ),
    ],
)
def test_a_server_that_says_why_it_ends_the_session_is_quoted(
    reason: int, name: str, domain: Domain, cause: Cause, confidence: float, says: str
) -> None:
    verdict = of_mqtt(
        End.COMPLETE, b"DISCONNECT", failed=True, by_upstream=True, code=name, mqtt_reason=reason
    )
    assert (verdict.domain, verdict.cause, verdict.confidence) == (domain, cause, confidence)
    assert verdict.phase is Phase.IDLE
    assert facts(verdict) == {"mqtt_reason": name, "mqtt_reason_number": reason}
    assert says in (verdict.explain or "")


@pytest.mark.parametrize(
    ("reason", "name", "confidence"), [(0x80, "Unspecified error", 1.0), (0x82, "Protocol Error", 0.7)]
)
def test_a_client_that_says_why_it_ends_the_session_gave_it_up(
    reason: int, name: str, confidence: float
) -> None:
    verdict = of_mqtt(End.COMPLETE, b"DISCONNECT", failed=True, code=name, mqtt_reason=reason)
    assert (verdict.domain, verdict.cause, verdict.origin) == (
        Domain.CLIENT,
        Cause.CANCELED,
        Origin.DOWNSTREAM,
    )
    assert verdict.confidence == confidence
    assert name in (verdict.explain or "")


def test_a_disconnect_without_an_error_is_ok() -> None:
    assert of_mqtt(End.COMPLETE, b"DISCONNECT", code="Success", mqtt_reason=0) is OK
    assert of_mqtt(End.COMPLETE, b"DISCONNECT", code="Disconnect with Will Message", mqtt_reason=4) is OK


def test_a_keep_alive_that_was_missed_is_the_clients_with_the_figures() -> None:
    verdict = of_mqtt(
        End.KEEPALIVE_MISSED, b"PINGREQ", mqtt_keep_alive=60, mqtt_silence=91.2345, mqtt_will_topic=b"gone/me"
    )
    assert (verdict.domain, verdict.cause, verdict.origin) == (
        Domain.CLIENT,
        Cause.KEEPALIVE_MISSED,
        Origin.DOWNSTREAM,
    )
    assert verdict.phase is Phase.IDLE
    assert 0.5 < verdict.confidence < 1
    assert facts(verdict) == {"keep_alive": 60, "silence": 91.234}
    assert verdict.explain == (
        "The client sent nothing for 91.2 s, and had promised a packet every 60 s (keep-alive; one and a "
        'half times that is 90.0 s), and its will is due: "gone/me".'
    )
    assert verdict.check == "ss -tnio '( sport = :80 or dport = :80 )'"


def test_a_server_that_speaks_of_a_missed_keep_alive_is_quoted_with_the_figures() -> None:
    verdict = of_mqtt(
        End.KEEPALIVE_MISSED, b"DISCONNECT", by_upstream=True, failed=True, code="Keep Alive timeout",
        mqtt_reason=0x8D, mqtt_keep_alive=10, mqtt_silence=15.0,
    )  # fmt: skip
    assert (verdict.domain, verdict.cause) == (Domain.CLIENT, Cause.KEEPALIVE_MISSED)
    assert facts(verdict) == {"keep_alive": 10, "silence": 15.0, "mqtt_reason": "Keep Alive timeout"}
    assert "; 10.0.0.1:80 ended the session with Keep Alive timeout (0x8d)." in (verdict.explain or "")


@pytest.mark.parametrize(
    ("end", "error", "domain", "cause", "says"),
    [
        (End.DOWNSTREAM_FIN, 0, Domain.CLIENT, Cause.CANCELED, "closed the connection without DISCONNECT"),
        (End.DOWNSTREAM_RST, errno.ECONNRESET, Domain.CLIENT, Cause.CANCELED, "reset the connection without"),
        (End.UPSTREAM_FIN, 0, Domain.APPLICATION, Cause.CLOSED_EARLY, "closed the connection without DISC"),
        (End.UPSTREAM_RST, errno.ECONNRESET, Domain.INFRASTRUCTURE, Cause.RESET, "errno cannot tell"),
        (End.DRAINED, 0, Domain.PROXY, Cause.LIMIT, "told to stop and ended the session"),
    ],
)
def test_a_session_that_ended_without_a_word(
    end: End, error: int, domain: Domain, cause: Cause, says: str
) -> None:
    verdict = of_mqtt(end, b"DISCONNECT", error=error)
    assert (verdict.domain, verdict.cause, verdict.phase) == (domain, cause, Phase.IDLE)
    assert says in (verdict.explain or "")
    assert "will" not in (verdict.explain or "")


def test_a_client_that_went_without_a_word_has_its_will_published() -> None:
    verdict = of_mqtt(End.DOWNSTREAM_FIN, b"DISCONNECT", mqtt_will_topic=b"gone/\x1bme")
    assert (verdict.explain or "").endswith(', and its will is due: "gone/ me".')


@pytest.mark.parametrize(("version", "says"), [(4, True), (5, False)])
def test_a_server_without_a_disconnect_of_its_own_is_excused(version: int, says: bool) -> None:
    explain = of_mqtt(End.UPSTREAM_FIN, b"DISCONNECT", mqtt_version=version).explain or ""
    assert ("before version 5 is its only way" in explain) is says


@pytest.mark.parametrize(
    ("end", "by_upstream", "asked", "domain", "cause", "says"),
    [
        (
            End.DOWNSTREAM_FIN,
            False,
            True,
            Domain.CLIENT,
            Cause.CANCELED,
            "before the client's PUBLISH was",
        ),
        (
            End.DOWNSTREAM_FIN,
            False,
            False,
            Domain.CLIENT,
            Cause.CANCELED,
            "middle of the client's",
        ),
        (
            End.DOWNSTREAM_FIN,
            True,
            True,
            Domain.CLIENT,
            Cause.CANCELED,
            "client had answered the",
        ),
        (
            End.DOWNSTREAM_RST,
            True,
            True,
            Domain.CLIENT,
            Cause.CANCELED,
            "client had answered the",
        ),
        (End.UPSTREAM_FIN, False, True, Domain.APPLICATION, Cause.CLOSED_EARLY, "was answered"),
        (
            End.UPSTREAM_FIN,
            False,
            False,
            Domain.APPLICATION,
            Cause.CLOSED_EARLY,
            "middle of the client's",
        ),
        (
            End.UPSTREAM_FIN,
            True,
            True,
            Domain.APPLICATION,
            Cause.CLOSED_EARLY,
            "client had answered",
        ),
        (
            End.UPSTREAM_FIN,
            True,
            False,
            Domain.APPLICATION,
            Cause.CLOSED_EARLY,
            "middle of the server's",
        ),
    ],
)
def test_who_went_away_before_an_answer_went_away(
    end: End, by_upstream: bool, asked: bool, domain: Domain, cause: Cause, says: str
) -> None:
    verdict = of_mqtt(end, b"PUBLISH", by_upstream=by_upstream, asked=asked)
    assert (verdict.domain, verdict.cause) == (domain, cause)
    assert says in (verdict.explain or "")
    assert verdict.phase is (Phase.WAIT if asked else Phase.REQUEST)


def test_a_fault_of_mqtt_is_of_what_its_side_sent() -> None:
    fault = "QoS 3 (0, 1 and 2 are allowed)"
    client = of_mqtt(End.DOWNSTREAM_FAULT, b"PUBLISH", fault=fault)
    assert client.explain == f"What the client sent breaks its protocol's framing: {fault}."
    server = of_mqtt(End.UPSTREAM_FAULT, b"PUBLISH", fault=fault)
    assert server.explain == f"What 10.0.0.1:80 sent breaks its protocol's framing: {fault}."


@pytest.mark.parametrize(
    ("target", "topic"),
    [
        (b"a/b-c_d.e~f:1", "a/b-c_d.e~f:1"),
        (b"$SYS/#", "$SYS/#"),
        (b"a'; reboot; '", "#"),
        (b"$(reboot)", "#"),
        (b"", "#"),
        (b"\xff", "#"),
        ("é".encode(), "#"),
        (None, "#"),
    ],
)
def test_the_topic_to_check_with_can_be_pasted_into_a_shell(target: bytes | None, topic: str) -> None:
    verdict = of_mqtt(
        End.COMPLETE, b"SUBSCRIBE", failed=True, answered=True, code="Failure", target=target, mqtt_reason=128
    )
    assert verdict.check == f"mosquitto_sub -d -h 10.0.0.1 -p 80 -V mqttv5 -t '{topic}' -W 5"

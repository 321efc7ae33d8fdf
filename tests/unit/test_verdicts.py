"""The verdict's table: every way an exchange can end, every errno a dial or a socket can give."""

from __future__ import annotations

import errno
import itertools

import pytest

from protocols.exchange import End, Exchange, Protocol
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
) -> Exchange:
    made = Exchange(protocol, 100.0)
    made.end, made.error, made.status, made.fault, made.target = end, error, status, fault, target
    made.request_complete = asked
    made.first_byte = 100.010 if answered else -1.0
    made.ended = 100.0125
    made.request_bytes, made.response_bytes = 321, 123
    return made


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


def test_a_reset_by_the_peers_kernel_is_not_claimed_for_sure() -> None:
    """errno cannot tell who reset a connection (verdicts.md, Kernel signals)."""
    assert decided(End.UPSTREAM_RST, error=errno.ECONNRESET).confidence <= 0.5
    assert decided(End.DOWNSTREAM_RST, error=errno.ECONNRESET).confidence < 1


@pytest.mark.parametrize(
    ("end", "status", "answered", "error"),
    list(itertools.product(End, (0, 200, 404, 503), (False, True), (0, errno.ECONNRESET, 99999))),
)
def test_every_verdict_is_whole(end: End, status: int, answered: bool, error: int) -> None:
    """Of the closed lists, with a sentence that has its figures, and confidence only where there is proof."""
    fault = "bare LF" if end is End.DOWNSTREAM_FAULT else None  # the engine always has one for it
    verdict = decided(end, status=status, answered=answered, error=error, fault=fault)
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
        assert evidence.at_ms == 12.5
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

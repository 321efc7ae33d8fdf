"""gRPC between real ends: grpcio at one or both of them, or raw frames where grpcio would hide them.

What an application sees of a call through ARCA is what it sees without it; each call is one exchange with its
method, its status, its ids; and who ended it, and when, is told.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import http.client
import os
import queue
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.ports import free_port
from tests.system.arca import FIN, Carrier, verdict
from tests.system.grpc_service import KINDS, NAME, Call, Client, Service, ids_seen, without_id
from tests.system.http2_peers import (
    CANCEL,
    END_STREAM,
    GOAWAY,
    POST,
    PREFACE,
    REFUSED_STREAM,
    Fields,
    Front,
    Head,
    Http2Peer,
    Program,
    begin,
    counted,
    data,
    ends,
    exchanges_since,
    goaway,
    passes,
    reset,
    settings,
)
from tests.system.processes import PATIENCE, Row, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.grpc_service import Metadata, Outcome

OK_VERDICT = ("ok", None)
CANCELED = ("client", "canceled")
ABORTED = ("application", "aborted")
GRPC_STATUS = ("application", "grpc_status")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

CODES = [
    "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
]  # fmt: skip


@pytest.fixture(scope="module")
def running_service() -> Iterator[Service]:
    with Service() as made:
        yield made


@pytest.fixture
def service(running_service: Service) -> Service:
    running_service.calls.clear()
    running_service.release.clear()
    return running_service


@pytest.fixture(scope="module")
def front(running_service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with Front(tmp_path_factory.mktemp("front"), running_service.port) as made:
        yield made


@pytest.fixture
def arca(front: Front) -> Iterator[Front]:
    yield front
    front.assert_nothing_is_left()


@pytest.fixture
def client(arca: Front) -> Iterator[Client]:
    """A channel that leads through ARCA to the service."""
    with Client(arca.served) as made:
        yield made


def rpcs(arca: Carrier, began: float, count: int) -> list[Row]:
    """The exchanges that began since then: exactly ``count``, all of them gRPC."""
    rows = exchanges_since(arca, began, count)
    assert {row["protocol"] for row in rows} == {"grpc"}
    return rows


def of_call(row: Row) -> dict[str, object]:
    found = row["grpc"]
    assert isinstance(found, dict)
    return found


# ---- calls of every kind

MB4 = bytes(range(256)) * (4 << 12)
TEXT: Metadata = [
    ("x-text", "a b, c"), ("x-twice", "1"), ("x-between", "-"), ("x-twice", "2"), ("x-empty", ""),
    ("x-blob-bin", b"\x00\xff,\x80"), ("x-blob-bin", b""), ("x-give", "1"), ("authorization", "Bearer x"),
]  # fmt: skip


class Case(NamedTuple):
    method: str
    messages: list[bytes]
    metadata: Metadata
    compress: bool


CASES = {
    "unary": Case("Unary", [b"hello"], [], False),
    "client_streaming": Case("Client", [b"a", b"bb", b"ccc"], [], False),
    "server_streaming": Case("Server", [b"5 message"], [], False),
    "bidirectional": Case("Both", [b"a", b"bb", b"ccc"], [], False),
    "an_empty_message": Case("Unary", [b""], [], False),
    "no_message": Case("Client", [], [], False),
    "no_answer_message": Case("Server", [b"0 "], [], False),
    "no_message_either_way": Case("Both", [], [], False),
    "4_mb_both_ways": Case("Unary", [MB4], [], False),
    "4_mb_streamed": Case("Both", [MB4, b"", MB4], [], False),
    "1000_messages": Case("Both", [b"m%d" % n for n in range(1000)], [], False),
    "1000_messages_down": Case("Server", [b"1000 x"], [], False),
    "metadata_of_unary": Case("Unary", [b"hello"], TEXT, False),
    "metadata_of_streaming": Case("Both", [b"1", b"2"], TEXT, False),
    "gzip": Case("Unary", [b"x" * 10_000], [("x-compress", "1")], True),
    "gzip_streaming": Case("Both", [b"x" * 10_000, b"y" * 10_000], [("x-compress", "1")], True),
    "unknown_method": Case("Missing", [b"hello"], [], False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_neither_application_can_tell(service: Service, client: Client, case: Case) -> None:
    method, messages, metadata, compress = case
    with Client(service.port) as directly:
        expected = directly.call(method, messages, metadata, gzip=compress)
    got = client.call(method, messages, metadata, gzip=compress)
    assert got.without_added() == expected.without_added()
    assert len(service.calls) == (0 if method == "Missing" else 2)
    if service.calls:
        seen, through = service.calls
        assert without_id(through.metadata) == without_id(seen.metadata)


def test_each_of_these_calls_is_one_exchange(arca: Front, service: Service, client: Client) -> None:
    began = time.time()
    outcomes = [
        client.call(case.method, case.messages, case.metadata, gzip=case.compress) for case in CASES.values()
    ]
    rows = rpcs(arca, began, len(CASES))
    for row, case, outcome in zip(rows, CASES.values(), outcomes, strict=True):
        assert row["method"] == f"{NAME}/{case.method}"
        assert row["target"] == f"/{NAME}/{case.method}"
        assert (row["status"], row["code"]) == (200, outcome.code)
        assert verdict(row) == (OK_VERDICT if outcome.code == "OK" else GRPC_STATUS)
        rpc = of_call(row)
        assert rpc["response_messages"] == len(outcome.messages)
        # A call that failed may have done so before its message was sent.
        assert rpc["request_messages"] == len(case.messages) or outcome.code != "OK"
        assert rpc["compressed"] is case.compress


def test_the_four_kinds_as_grpcio_has_them(arca: Front, service: Service, client: Client) -> None:
    began = time.time()
    with Client(service.port) as directly:
        expected = directly.four_kinds()
    for _ in range(5):
        assert client.four_kinds() == expected
    rows = rpcs(arca, began, 20)
    assert [row["method"] for row in rows] == [f"{NAME}/{each}" for each in KINDS] * 5
    counts = [(of_call(row)["request_messages"], of_call(row)["response_messages"]) for row in rows]
    assert counts == [(1, 1), (3, 1), (1, 3), (3, 3)] * 5
    assert {verdict(row) for row in rows} == {OK_VERDICT}


def test_a_conversation_of_1000_messages_in_lock_step(arca: Front, service: Service, client: Client) -> None:
    began = time.time()
    said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with Call(client, "Both", iter(said.get, None), timeout=30) as call:
        for n in range(1000):
            said.put(b"%d" % n)
            assert call.hears() == b"%d" % n
        said.put(None)
        assert call.outcome().code == "OK"
    (row,) = rpcs(arca, began, 1)
    assert (of_call(row)["request_messages"], of_call(row)["response_messages"]) == (1000, 1000)


@pytest.mark.parametrize("method", ["Fail", "FailLater"])
def test_every_status_arrives_with_its_message(
    arca: Front, service: Service, client: Client, method: str
) -> None:
    """In a head of its own (trailers-only), and behind a message."""
    began = time.time()
    text = "it failed: 100 % ünïcödé ✓\n\ttab"
    asked = [f"{number} {text} {number}".encode() for number in range(1, 17)]
    with Client(service.port) as directly:
        expected = [directly.call(method, [each]).without_added() for each in asked]
    assert [client.call(method, [each]).without_added() for each in asked] == expected
    assert [each.code for each in expected] == CODES
    rows = rpcs(arca, began, 16)
    assert [row["code"] for row in rows] == CODES
    assert [of_call(row)["message"] for row in rows] == [f"{text} {number}" for number in range(1, 17)]
    assert {row["status"] for row in rows} == {200}
    for row in rows:
        domain, cause = verdict(row)
        assert domain == "application"
        assert cause == "grpc_status" or row["code"] == "DEADLINE_EXCEEDED"


# ---- ids


def test_calls_without_ids_get_one_each_and_give_it_back(
    arca: Front, service: Service, client: Client
) -> None:
    began = time.time()
    outcomes = [client.call("Unary", [b"x"]) for _ in range(20)]
    outcomes.append(client.call("Fail", [b"5 no"]))
    made = ids_seen(service, 21)
    assert len(set(made)) == 21
    given = [
        dict(each.initial).get("x-request-id") or dict(each.trailing)["x-request-id"] for each in outcomes
    ]
    assert given == made
    rows = rpcs(arca, began, 21)
    assert [row["request_id"] for row in rows] == made
    traces = [dict(call.metadata)["traceparent"] for call in service.calls]
    assert [f"00-{row['trace_id']}-{row['span_id']}-00" for row in rows] == traces
    assert len({row["trace_id"] for row in rows}) == 21


@pytest.mark.parametrize("method", ["Unary", "Fail"])
def test_an_id_of_the_server_wins_in_the_response(service: Service, client: Client, method: str) -> None:
    metadata: Metadata = [("x-request-id", "mine"), ("x-give", "1"), ("x-own-id", "theirs")]
    outcome = client.call(method, [b"5 hello"], metadata)
    given = [value for key, value in outcome.initial + outcome.trailing if key == "x-request-id"]
    assert given == ["theirs"]
    assert ids_seen(service, 1) == ["mine"]


@pytest.mark.parametrize("count", [2, 100])
def test_concurrent_streams_give_exactly_as_many_exchanges_with_the_right_ids(
    arca: Front, service: Service, client: Client, count: int
) -> None:
    """All on one connection, and all open before the first is answered to its end."""
    began = time.time()
    calls = [
        Call(client, "Wait", [b"x"], [("x-request-id", f"call-{n}"), ("x-number", str(n))], timeout=30)
        for n in range(count)
    ]
    for call in calls:
        assert call.hears() == b"waiting"
    service.release.set()
    outcomes = [call.outcome() for call in calls]
    assert {each.code for each in outcomes} == {"OK"}
    assert [dict(each.initial)["x-request-id"] for each in outcomes] == [f"call-{n}" for n in range(count)]
    seen = [dict(call.metadata) for call in service.calls]
    assert {each["x-number"]: each["x-request-id"] for each in seen} == {
        str(n): f"call-{n}" for n in range(count)
    }
    rows = rpcs(arca, began, count)
    assert {row["request_id"] for row in rows} == {f"call-{n}" for n in range(count)}
    traces = {str(each["x-request-id"]): str(each["traceparent"]).split("-")[1] for each in seen}
    assert {str(row["request_id"]): row["trace_id"] for row in rows} == traces
    assert len(set(traces.values())) == count
    assert len({row["client"] for row in rows}) == 1
    assert {verdict(row) for row in rows} == {OK_VERDICT}
    assert {of_call(row)["response_messages"] for row in rows} == {2}


@pytest.mark.parametrize("sampled", [True, False])
def test_a_traceparent_on_every_call_of_a_channel(
    arca: Front, service: Service, client: Client, sampled: bool
) -> None:
    """From its second time on grpcio sends it as a reference to its dynamic table."""
    came = f"00-{TRACE}-{PARENT}-0{int(sampled)}"
    metadata: Metadata = [
        ("x-before", "1"),
        ("traceparent", came),
        ("tracestate", "a=1,b=2"),
        ("x-behind", "2"),
    ]
    with Client(service.port) as directly:
        directly.call("Unary", [b"x"], metadata)
    expected = service.calls.pop().metadata  # grpcio has an order of its own
    began = time.time()
    for _ in range(60):
        assert client.call("Unary", [b"x"], metadata).code == "OK"
    rows = rpcs(arca, began, 60)
    assert {(row["trace_id"], row["parent_id"]) for row in rows} == {(TRACE, PARENT)}
    spans = []
    for call in service.calls:
        mine = [pair for pair in call.metadata if pair[0] != "x-request-id"]
        (traceparent,) = (str(value) for key, value in mine if key == "traceparent")
        assert mine == [(key, traceparent if key == "traceparent" else value) for key, value in expected]
        spans.append(traceparent.split("-")[2])
        assert traceparent == came.replace(PARENT, spans[-1])
    if sampled:
        assert len({PARENT, *spans}) == 61
        assert [row["span_id"] for row in rows] == spans
    else:
        assert set(spans) == {PARENT}
        assert {row["span_id"] for row in rows} == {None}


@pytest.mark.parametrize(
    "came",
    [
        [("b3", f"{TRACE}-{PARENT}-1")],
        [("x-b3-traceid", TRACE), ("x-b3-spanid", PARENT), ("x-b3-sampled", "1")],
        [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("b3", f"{'1' * 32}-{'2' * 16}-1")],
    ],
    ids=["single", "several", "beside_w3c"],
)
def test_b3_goes_on_in_all_its_forms(arca: Front, service: Service, client: Client, came: Metadata) -> None:
    began = time.time()
    for _ in range(5):
        assert client.call("Unary", [b"x"], [*came, ("x-behind", "1")]).code == "OK"
    rows = rpcs(arca, began, 5)
    for row, call in zip(rows, service.calls, strict=True):
        seen = dict(call.metadata)
        assert [key for key, _ in call.metadata].count("traceparent") == 1
        assert seen["traceparent"] == f"00-{TRACE}-{row['span_id']}-01"
        if "b3" in seen:
            assert seen["b3"] == f"{TRACE}-{row['span_id']}-1-{PARENT}"
        else:
            assert (seen["x-b3-traceid"], seen["x-b3-spanid"]) == (TRACE, row["span_id"])
        assert seen["x-behind"] == "1"
    assert len({row["span_id"] for row in rows}) == 5


# ---- calls that end early


def test_a_call_that_its_client_cancels(arca: Front, service: Service, client: Client) -> None:
    began = time.time()
    with Call(client, "Wait", [b"x"]) as call:
        assert call.hears() == b"waiting"
        call.cancel()
        assert service.canceled.acquire(timeout=PATIENCE)
        assert call.outcome().code == "CANCELLED"
    (row,) = rpcs(arca, began, 1)
    assert verdict(row) == CANCELED
    assert client.call("Unary", [b"the channel goes on"]).code == "OK"


def test_a_deadline_that_passes_is_told_to_both_ends(arca: Front, service: Service, client: Client) -> None:
    began = time.time()
    with Call(client, "Wait", [b"x"], timeout=0.4) as call:
        assert call.hears() == b"waiting"
        assert call.outcome().code == "DEADLINE_EXCEEDED"
    assert service.canceled.acquire(timeout=PATIENCE)
    (seen,) = service.calls
    assert seen.remaining is not None
    assert 0 < seen.remaining <= 0.4
    (row,) = rpcs(arca, began, 1)
    assert verdict(row)[1] == "deadline_exceeded"
    timeout = of_call(row)["timeout_ms"]
    assert isinstance(timeout, int | float)
    assert 0 < timeout <= 400


def request(path: bytes = b"/test.Echo/Raw", *more: tuple[bytes, bytes]) -> Fields:
    return [*POST[:3], (b":path", path), (b"content-type", b"application/grpc"), (b"te", b"trailers"), *more]


ANSWER: Fields = [(b":status", b"200"), (b"content-type", b"application/grpc")]
TRAILERS: Fields = [(b"grpc-status", b"0")]


def message(payload: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(payload).to_bytes(4) + payload


Channel = tuple[Http2Peer, Http2Peer]


@pytest.fixture
def channel(arca: Front) -> Iterator[Channel]:
    """Two ends of which the test sets every frame, with ARCA between."""
    client, server = ends(arca.connect())
    with client, server:
        begin(client, server)
        yield client, server


def test_messages_are_counted_however_they_are_cut(arca: Front, channel: Channel) -> None:
    client, server = channel
    asked = message(b"one") + message(b"") + message(b"x" * 300) + message(gzip.compress(b"last"), 1)
    passes(client, server, client.head(1, request(b"/p.S/M", (b"grpc-timeout", b"1500m"))))
    for n in range(len(asked)):
        passes(client, server, data(1, asked[n : n + 1], END_STREAM if n == len(asked) - 1 else 0))
    passes(server, client, server.head(1, ANSWER))
    for part in (b"\0\0", b"\0\0\x02hi\0\0\0", b"\0\0" + message(b"third")[:7], message(b"third")[7:]):
        passes(server, client, data(1, part))
    passes(
        server, client, server.head(1, [(b"grpc-status", b"99"), (b"grpc-message", b"%c3%BC%zz")], END_STREAM)
    )
    (row,) = arca.exchanges(client)
    assert (row["method"], row["code"]) == ("p.S/M", "99")
    rpc = of_call(row)
    assert (rpc["request_messages"], rpc["response_messages"]) == (4, 3)
    assert rpc["compressed"] is True
    assert rpc["timeout_ms"] == 1500
    assert rpc["message"] == "ü%zz"
    assert verdict(row) == GRPC_STATUS


Ending = tuple["Callable[[Http2Peer, Http2Peer, int], None]", tuple[object, object]]


def by_reset(code: int, by_server: bool, begun: bool = False) -> Callable[[Http2Peer, Http2Peer, int], None]:
    def play(client: Http2Peer, server: Http2Peer, stream: int) -> None:
        if begun:
            passes(server, client, server.head(stream, ANSWER), data(stream, message(b"first")))
        one, other = (server, client) if by_server else (client, server)
        passes(one, other, reset(stream, code))

    return play


def late_cancel(client: Http2Peer, server: Http2Peer, stream: int) -> None:
    time.sleep(0.12)
    passes(client, server, reset(stream))


def answered_and_reset(client: Http2Peer, server: Http2Peer, stream: int) -> None:
    """What grpc servers do when they have not read the request to its end."""
    passes(server, client, server.head(stream, ANSWER), server.head(stream, TRAILERS, END_STREAM))
    passes(server, client, reset(stream, 0))


def without_status(client: Http2Peer, server: Http2Peer, stream: int) -> None:
    passes(server, client, server.head(stream, [(b":status", b"503")], END_STREAM))
    passes(client, server, data(stream, b"", END_STREAM))


def test_who_ended_a_call_and_how_is_told(arca: Front, channel: Channel) -> None:
    endings: dict[str, Ending] = {
        "client-cancel": (by_reset(CANCEL, False), CANCELED),
        "client-cancel-late": (by_reset(CANCEL, False, True), CANCELED),
        "server-internal": (by_reset(2, True), ABORTED),
        "server-refused": (by_reset(REFUSED_STREAM, True), ABORTED),
        "server-internal-late": (by_reset(2, True, True), ABORTED),
        "answered-and-reset": (answered_and_reset, OK_VERDICT),
        "http-503": (without_status, ("application", "status_5xx")),
    }
    client, server = channel
    for n, (name, (play, _)) in enumerate(endings.items()):
        passes(client, server, client.head(2 * n + 1, request(f"/p.S/{name}".encode())))
        play(client, server, 2 * n + 1)
    rows = arca.exchanges(client, len(endings))
    assert {row["method"]: verdict(row) for row in rows} == {
        f"p.S/{name}": told for name, (_, told) in endings.items()
    }


def test_a_cancel_behind_the_deadline_is_the_deadline(arca: Front, channel: Channel) -> None:
    client, server = channel
    passes(client, server, client.head(1, request(b"/p.S/late", (b"grpc-timeout", b"100m"))))
    late_cancel(client, server, 1)
    passes(client, server, client.head(3, request(b"/p.S/early", (b"grpc-timeout", b"100S"))))
    passes(client, server, reset(3))
    late, early = arca.exchanges(client, 2)
    assert verdict(late)[1] == "deadline_exceeded"
    assert verdict(early) == CANCELED


def test_goaway_while_calls_run_ends_those_it_excludes(arca: Front, channel: Channel) -> None:
    client, server = channel
    for stream in (1, 3):
        passes(client, server, client.head(stream, request(b"/p.S/%d" % stream)))
    passes(server, client, goaway(1, 0, b"graceful"))
    passes(
        server, client, server.head(1, ANSWER), data(1, message(b"x")), server.head(1, TRAILERS, END_STREAM)
    )
    server.closes()
    assert client.rest() == FIN
    rows = arca.exchanges(client, 2)
    assert {row["method"]: verdict(row) for row in rows} == {"p.S/3": ABORTED, "p.S/1": OK_VERDICT}


def a_bad_server(server: Http2Peer, head: Fields, end: bytes) -> None:
    """Answers each of its calls with ``head`` and ``end``, whose stream is 0 until it is known."""
    server.sends(settings())
    while True:
        came = server.next()
        if isinstance(came, Head):
            stream = came.stream
            said = server.head(stream, head) if head else b""
            server.sends(said + end[:5] + stream.to_bytes(4) + end[9:])


@pytest.mark.parametrize(
    ("head", "end"),
    [
        *(pytest.param([], reset(0, code), id=f"reset_{code}") for code in (1, 2, 3, 8, 11, 12, 0xD, 0xFEED)),
        *(pytest.param(ANSWER, reset(0, code), id=f"begun_and_reset_{code}") for code in (0, 2, 7, 8, 11)),
        pytest.param([(b":status", b"503")], data(0, b"sorry", END_STREAM), id="http_503"),
        pytest.param(
            [(b":status", b"200"), (b"content-type", b"text/html")], data(0, b"<p>", END_STREAM), id="html"
        ),
        pytest.param(ANSWER, data(0, b"\0\0\0\0\x09half", END_STREAM), id="half_a_message"),
        pytest.param([*ANSWER, (b"grpc-status", b"x")], data(0, b"", END_STREAM), id="status_x"),
    ],
)
def test_a_client_makes_the_same_of_a_bad_server(arca: Front, head: Fields, end: bytes) -> None:
    def made_of(port: int) -> Outcome:
        with concurrent.futures.ThreadPoolExecutor(1) as thread, Client(port) as client:
            calling = thread.submit(client.call, "Unary", [b"x"])
            server = Http2Peer(arca.stage.accept(), is_server=True)
            with server:
                playing = threading.Thread(target=played, args=(server, head, end))
                playing.start()
                outcome = calling.result()
                client.channel.close()
                playing.join(PATIENCE)
            return outcome.without_added()

    def played(server: Http2Peer, head: Fields, end: bytes) -> None:
        with contextlib.suppress(AssertionError, OSError):
            a_bad_server(server, head, end)

    direct = made_of(arca.stage.port)
    assert direct.code != "OK"
    assert made_of(arca.port) == direct


# ---- servers that are not there, go away and come back


def test_grpcio_is_told_that_nobody_listens_and_recovers_when_somebody_does(arca: Front) -> None:
    with Client(arca.nowhere, initial_reconnect_backoff_ms=100, min_reconnect_backoff_ms=100,
                max_reconnect_backoff_ms=200) as client:  # fmt: skip
        assert client.call("Unary", [b"x"]).code == "UNAVAILABLE"
        with Service(arca.closed_port):
            assert client.call("Unary", [b"x"], wait=True).messages == [b"x"]


def test_a_call_that_was_asked_already_is_answered_unavailable(arca: Front) -> None:
    with Http2Peer(arca.dial(arca.nowhere), is_server=False) as client:
        one = client.head(1, request()) + data(1, message(b"x"), END_STREAM)
        client.sends(PREFACE + settings() + one + client.head(3, request(b"/p.S/Other")))
        heads = {stream: client.finds_head(stream) for stream in (1, 3)}
        last = client.finds(GOAWAY)
        assert last.payload[4:8] == bytes(4)
        assert client.rest() == FIN
    for head in heads.values():
        assert head.flags & END_STREAM
        assert head.value(b":status") == b"200"
        assert head.value(b"content-type").startswith(b"application/grpc")
        assert head.value(b"grpc-status") == b"14"
        assert b"onnection refused" in head.value(b"grpc-message")
        assert head.value(b"x-arca-cause") == b"connect_refused"
    rows = arca.exchanges(client, 2)
    assert {row["code"] for row in rows} == {"UNAVAILABLE"}
    assert {verdict(row) for row in rows} == {("infrastructure", "connect_refused")}
    assert {row["protocol"] for row in rows} == {"grpc"}


def test_servers_that_are_killed_and_that_say_goodbye(tmp_path: Path) -> None:
    port = free_port()
    command = (sys.executable, "-m", "tests.system.grpc_service", str(port))
    with Front(tmp_path, port) as arca, Client(arca.served, initial_reconnect_backoff_ms=100) as client:
        with Program(*command, port=port) as program:
            with Call(client, "Wait", [b"x"], wait=True) as call:
                assert call.hears() == b"waiting"
                os.kill(program.process.pid, signal.SIGKILL)
                assert call.outcome().code == "UNAVAILABLE"
            until(lambda: len(arca.logged()) >= 2)
        (row,) = (row for row in arca.logged() if row["method"] == f"{NAME}/Wait")
        assert verdict(row) in (("application", "closed_early"), ("infrastructure", "reset"))

        said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        before = len(arca.logged())
        with Service(port) as service, Call(client, "Both", iter(said.get, None), wait=True) as call:
            said.put(b"before")
            assert call.hears() == b"before"
            service.say_goodbye()
            for n in range(5):
                said.put(b"behind %d" % n)
                assert call.hears() == b"behind %d" % n
            said.put(None)
            assert call.outcome().code == "OK"
        until(lambda: len(arca.logged()) > before)
        (row,) = (row for row in arca.logged() if row["method"] == f"{NAME}/Both")
        assert verdict(row) == OK_VERDICT


# ---- long streams


def test_a_running_stream_is_reported_while_it_runs(tmp_path: Path) -> None:
    with (
        Service() as service,
        Front(tmp_path, service.port, "report_running_seconds = 1\n") as arca,
        Client(arca.served) as client,
    ):

        def reports() -> list[Row]:
            return [row for row in arca.logged() if row.get("in_flight")]

        with Call(client, "Wait", [b"x"], [("x-request-id", "long")], timeout=30) as call:
            assert call.hears() == b"waiting"
            until(lambda: len(reports()) >= 2)
            assert counted(arca, "arca_requests_in_flight", protocol="grpc") == 1
            for row in reports():
                assert row["in_flight"] is True
                assert row["verdict"] is None
                assert (row["protocol"], row["request_id"]) == ("grpc", "long")
                assert of_call(row)["response_messages"] == 1
            service.release.set()
            assert call.outcome().code == "OK"
        until(lambda: counted(arca, "arca_requests_in_flight", protocol="grpc") == 0)
        (ended,) = (row for row in arca.logged() if row["protocol"] == "grpc" and not row.get("in_flight"))
        assert verdict(ended) == OK_VERDICT
        assert of_call(ended)["response_messages"] == 2
        assert counted(arca, "arca_requests_total", protocol="grpc") == 1


def test_a_running_stream_ends_in_the_drain_and_new_calls_go_elsewhere(tmp_path: Path) -> None:
    with Service() as service:
        arca = Front(tmp_path, service.port, "[limits]\ndrain_seconds = 8.0\n")
        try:
            arca.wait_ready()
            with Client(arca.served) as client, Call(client, "Wait", [b"x"], timeout=30) as call:
                assert call.hears() == b"waiting"
                arca.process.terminate()
                time.sleep(0.5)
                service.release.set()
                assert call.outcome().code == "OK"
            assert arca.ended() == 0
            (row,) = arca.logged()
            assert verdict(row) == OK_VERDICT
        finally:
            arca.stage.close()
            super(Carrier, arca).__exit__()


# ---- gRPC-Web


class Web(BaseHTTPRequestHandler):
    """A service that speaks gRPC-Web: a message, then its trailers in a frame of their own."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        failed = self.path.endswith("Fail")
        trailers = b"grpc-status: 5\r\ngrpc-message: no %C3%BC\r\n" if failed else b"grpc-status: 0\r\n"
        body = (b"" if failed else message(b"hello")) + message(trailers, 0x80)
        self.send_response(200)
        self.send_header("content-type", "application/grpc-web+proto")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for at in range(0, len(body), 7):
            part = body[at : at + 7]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing is said."""


def test_grpc_web_over_http1(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with Front(tmp_path, server.server_port) as arca:
                connection = http.client.HTTPConnection("127.0.0.1", arca.served, timeout=PATIENCE)
                bodies, began = [], time.time()
                for path in ("/p.S/Get", "/p.S/Fail"):
                    connection.request(
                        "POST", path, message(b"ask"), {"Content-Type": "application/grpc-web+proto"}
                    )
                    bodies.append(connection.getresponse().read())
                connection.close()
                assert bodies[0] == message(b"hello") + message(b"grpc-status: 0\r\n", 0x80)
                good, failed = rpcs(arca, began, 2)
                assert (good["method"], good["code"], verdict(good)) == ("p.S/Get", "OK", OK_VERDICT)
                assert (of_call(good)["request_messages"], of_call(good)["response_messages"]) == (1, 1)
                assert of_call(good)["web"] is True
                assert (failed["code"], verdict(failed)) == ("NOT_FOUND", GRPC_STATUS)
                assert of_call(failed)["message"] == "no ü"
        finally:
            server.shutdown()

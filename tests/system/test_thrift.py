"""Thrift between real ends: what the two applications see is what they see without ARCA, and each call is an
exchange with its method and what became of it.

The ends are thriftpy2's and Apache's, in every transport and encoding that they have; where the order or the
cut of the bytes matters, they are sockets of the test with messages made by Apache's protocols.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import random
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.ports import free_port
from tests.system.arca import (
    FIN,
    RST,
    Carrier,
    Inside,
    assert_both_ends_observe_the_same,
    verdict,
)
from tests.system.http2_peers import UNSAMPLED_TRACES, Program, counted
from tests.system.processes import until
from tests.system.thrift_peers import (
    KILLABLE,
    OTHER,
    SERVICE,
    Caller,
    Dialect,
    Message,
    Outcome,
    Server,
    ThriftPeer,
    Wire,
    generated,
    taken_apart,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.arca import Peer
    from tests.system.namespaces import Network
    from tests.system.processes import Row

OK_VERDICT = ("ok", None)
THRIFT_EXCEPTION = ("application", "thrift_exception")
CLOSED_EARLY = ("application", "closed_early")
CANCELED = ("client", "canceled")
RESET = ("infrastructure", "reset")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

DIALECTS = [
    *(
        Dialect("thriftpy2", transport, encoding, plain=plain)
        for transport in ("framed", "buffered")
        for encoding, plain in (("binary", False), ("binary-old", True), ("compact", True))
    ),
    Dialect("thriftpy2", "framed", "binary", multiplexed=True),
    *(
        Dialect("apache", transport, encoding)
        for transport in ("framed", "buffered")
        for encoding in ("binary", "binary-old", "compact")
    ),
    Dialect("apache", "framed", "compact", multiplexed=True),
    Dialect("apache", "buffered", "binary", multiplexed=True, plain=True),
    Dialect("apache", "header", "binary"),
    Dialect("apache", "header", "compact"),
    Dialect("apache", "header", "binary", zlib=True),
    Dialect("apache", "header", "compact", multiplexed=True, zlib=True),
]

HEADERS = [dialect for dialect in DIALECTS if dialect.transport == "header"]

WIRES = [
    Wire(transport, encoding)
    for transport in ("framed", "buffered", "header")
    for encoding in ("binary", "binary-old", "compact")
    if (transport, encoding) != ("header", "binary-old")
]


@pytest.fixture(scope="module")
def apache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips the test where the code for Apache's library cannot be made."""
    reason = generated(tmp_path_factory.mktemp("generated"))
    if reason is not None:
        pytest.skip(reason)


class Front(Carrier):
    """An ARCA before a server of each dialect, which is made when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        self._servers: dict[Dialect, Server] = {}
        self._at_end = contextlib.ExitStack()
        self._ports = {dialect: (free_port(), free_port()) for dialect in DIALECTS}
        self.ipv6 = (free_port(), free_port())
        arguments = [
            f"--forward=127.0.0.1:{through}=127.0.0.1:{port}" for through, port in self._ports.values()
        ]
        arguments.append(f"--forward=[::1]:{self.ipv6[0]}=[::1]:{self.ipv6[1]}")
        super().__init__(directory, UNSAMPLED_TRACES, *arguments)

    def __exit__(self, *exception: object) -> None:
        with self._at_end:
            super().__exit__(*exception)

    def through(self, dialect: Dialect) -> int:
        """The port that leads through ARCA to the server of ``dialect``."""
        return self._ports[dialect][0]

    def serving(self, dialect: Dialect) -> Server:
        if dialect not in self._servers:
            made = Server(dialect, port=self._ports[dialect][1])
            self._servers[dialect] = self._at_end.enter_context(made)
        self._servers[dialect].forgets()
        return self._servers[dialect]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with Front(tmp_path_factory.mktemp("arca")) as made:
        yield made


@pytest.fixture
def arca(front: Front) -> Iterator[Front]:
    yield front
    front.assert_nothing_is_left()


@pytest.fixture
def dialect(request: pytest.FixtureRequest) -> Dialect:
    found = request.param
    assert isinstance(found, Dialect)
    if found.library == "apache":
        request.getfixturevalue("apache")
    return found


@pytest.fixture
def dialects(request: pytest.FixtureRequest) -> list[Dialect]:
    """All of one library."""
    if request.param == "apache":
        request.getfixturevalue("apache")
    return [each for each in DIALECTS if each.library == request.param]


in_either_library = pytest.mark.parametrize("dialects", ["thriftpy2", "apache"], indirect=True)


def in_every_dialect(dialects: list[Dialect] = DIALECTS) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("dialect", dialects, indirect=True, ids=str)


def exchanges(arca: Carrier | Inside, client: Caller | Peer, count: int) -> list[Row]:
    """The exchanges of one connection, in the order they ended: exactly ``count``."""
    log = arca.logged if isinstance(arca, Carrier) else arca.exchanges_so_far

    def found() -> list[Row]:
        return [row for row in log() if row["client"] == client.name and began(row) >= client.since]

    until(lambda: len(found()) >= count)
    rows = found()
    assert len(rows) == count, rows
    return rows


def began(row: Row) -> float:
    return datetime.fromisoformat(str(row["time"])).timestamp()


def of_call(row: Row) -> dict[str, object]:
    found = row["thrift"]
    assert isinstance(found, dict)
    return found


def is_added(pair: tuple[bytes, bytes]) -> bool:
    return pair[0].lower() in (b"traceparent", b"x-request-id")


# ---- conversations of real clients and servers


class Said(NamedTuple):
    """One call: what the client got, and the bytes that it took."""

    method: str
    outcome: Outcome
    request_bytes: int
    response_bytes: int


def converse(client: Caller, depth: int = 2) -> list[Said]:
    """A call of every kind, one after the other, on one connection."""
    calls: list[tuple[object, ...]] = [
        ("echo", "hello"), ("echo", ""), ("add", -1, 2**40), ("give_back", client.everything(depth)),
        ("nothing",), ("note", "one way"), ("refuse", 3), ("refuse", -3), ("fail", "on purpose"),
        ("note", ""), ("slow", 0.05), ("echo", "ünïcödé ✓"),
    ]  # fmt: skip
    dialect = client.connection.dialect
    if not (dialect.library == "thriftpy2" and dialect.multiplexed):  # where it ends the server's thread
        calls.insert(8, ("unheard_of", {"a": ["b"] * 10}))
    said = []
    for method, *arguments in calls:
        sent, heard = len(client.socket.sent), len(client.socket.heard)
        outcome = client.call(str(method), *arguments)
        # The rest of what a reader of blocks had taken in is nothing: one call at a time is in flight.
        sent, heard = len(client.socket.sent) - sent, len(client.socket.heard) - heard
        said.append(Said(str(method), outcome, sent, heard))
    return said


class Seen(NamedTuple):
    """All that was seen of a conversation, without what ARCA adds."""

    said: list[Said]
    asked: list[tuple[object, ...]]
    to_client: object
    to_server: object


def bare(data: bytearray, dialect: Dialect) -> object:
    if dialect.transport != "header":
        return bytes(data)
    return [
        frame._replace(pairs=[pair for pair in frame.pairs if not is_added(pair)])
        for frame in taken_apart(data)
    ]


def held(server: Server, dialect: Dialect, port: int, depth: int = 2, piecemeal: bool = False) -> Seen:
    """A conversation with ``server``, which listens on ``port`` or behind it."""
    server.forgets()
    server.piecemeal = piecemeal
    with Caller(dialect, port) as client:
        client.socket.piecemeal = piecemeal
        said = converse(client, depth)
    until(lambda: len(server.saw) >= sum(each.method != "unheard_of" for each in said))
    (connection,) = server.connections
    asked: list[tuple[object, ...]] = []
    for *what, headers in server.saw:
        assert isinstance(headers, dict)
        asked.append((*what, {key: value for key, value in headers.items() if not is_added((key, value))}))
    return Seen(said, asked, bare(client.socket.heard, dialect), bare(connection.heard, dialect))


@in_every_dialect()
def test_neither_application_can_tell(arca: Front, dialect: Dialect) -> None:
    server = arca.serving(dialect)
    direct = held(server, dialect, server.port)
    assert held(server, dialect, arca.through(dialect)) == direct
    assert direct.said[0].outcome == Outcome("hello")
    assert direct.said[2].outcome == Outcome(2**40 - 1)


@in_every_dialect()
def test_bytes_that_arrive_one_by_one_mean_the_same(arca: Front, dialect: Dialect) -> None:
    server = arca.serving(dialect)
    direct = held(server, dialect, server.port, depth=0)
    assert held(server, dialect, arca.through(dialect), depth=0, piecemeal=True) == direct


@pytest.mark.usefixtures("apache")
@pytest.mark.parametrize("one", ["thriftpy2", "apache"])
@pytest.mark.parametrize("transport", ["framed", "buffered"])
@pytest.mark.parametrize("encoding", ["binary", "compact"])
def test_clients_and_servers_of_different_makes(arca: Front, one: str, transport: str, encoding: str) -> None:
    other = "apache" if one == "thriftpy2" else "thriftpy2"
    (theirs,) = (each for each in DIALECTS if each[:5] == (other, transport, encoding, False, False))
    mine = Dialect(one, transport, encoding, plain=encoding == "compact")
    server = arca.serving(theirs)
    direct = held(server, mine, server.port)
    assert held(server, mine, arca.through(theirs)) == direct


@in_either_library
def test_each_call_is_one_exchange(arca: Front, dialects: list[Dialect]) -> None:
    conversations = []
    for dialect in dialects:
        arca.serving(dialect)
        with Caller(dialect, arca.through(dialect)) as client:
            conversations.append((dialect, client, converse(client)))
    for dialect, client, said in conversations:
        assert_each_is_told(dialect, said, exchanges(arca, client, len(said)))


def assert_each_is_told(dialect: Dialect, said: list[Said], rows: list[Row]) -> None:
    prefix = f"{SERVICE}:" if dialect.multiplexed else ""
    assert [row["method"] for row in rows] == [prefix + each.method for each in said]
    for row, each in zip(rows, said, strict=True):
        call, error = of_call(row), each.outcome.error
        assert row["protocol"] == "thrift"
        assert (row["target"], row["authority"], row["status"]) == (None, None, None)
        ids = [row[key] for key in ("request_id", "trace_id", "span_id", "parent_id")]
        # Nothing but the header transport has a place for them.
        assert (ids == [None] * 4) is (dialect.transport != "header")
        assert (call["transport"], call["encoding"]) == (dialect.transport, dialect.encoding)
        assert call["oneway"] is (each.method == "note")
        assert verdict(row) == (THRIFT_EXCEPTION if error else OK_VERDICT)
        assert (row["request_bytes"], row["response_bytes"]) == (each.request_bytes, each.response_bytes)
        if each.method == "slow":
            assert float(str(row["duration_ms"])) >= float(str(row["ttfb_ms"])) >= 50
    told = {
        (each.method, row["code"], of_call(row).get("message"))
        for row, each in zip(rows, said, strict=True)
        if each.outcome.error
    }
    expected = {("refuse", "exception_1", "3 is refused"), ("refuse", "exception_2", None)}
    if dialect.library == "apache":
        expected.add(("unheard_of", "UNKNOWN_METHOD", "Unknown function unheard_of"))
        expected.add(("fail", "INTERNAL_ERROR", "Internal error"))
    else:
        expected.add(("fail", "INTERNAL_ERROR", "on purpose"))
        if not dialect.multiplexed:
            expected.add(("unheard_of", "UNKNOWN_METHOD", None))
    assert told == expected
    assert {row["code"] for row in rows if verdict(row) == OK_VERDICT} == {None}


@in_either_library
def test_the_service_of_a_multiplexed_call_is_told(arca: Front, dialects: list[Dialect]) -> None:
    clients = []
    for dialect in dialects:
        if dialect.multiplexed:
            server = arca.serving(dialect)
            with Caller(dialect, arca.through(dialect), service=OTHER) as client:
                assert client.call("echo", "hello") == Outcome("hello")
                client.call("note", "hello")
                assert client.call("add", 1, 2) == Outcome(3)
            clients.append((client, server.port))
    for client, port in clients:
        rows = exchanges(arca, client, 3)
        assert [row["method"] for row in rows] == [f"{OTHER}:echo", f"{OTHER}:note", f"{OTHER}:add"]
        assert {row["server"] for row in rows} == {f"127.0.0.1:{port}"}


def test_50_clients_at_once_get_each_their_own(arca: Front) -> None:
    dialect = KILLABLE
    arca.serving(dialect)

    def one(n: int) -> Caller:
        with Caller(dialect, arca.through(dialect)) as client:
            for call in range(20):
                assert client.call("echo", f"{n}-{call}" * 50) == Outcome(f"{n}-{call}" * 50)
            return client

    with concurrent.futures.ThreadPoolExecutor(50) as threads:
        clients = list(threads.map(one, range(50)))
    for client in clients:
        assert [verdict(row) for row in exchanges(arca, client, 20)] == [OK_VERDICT] * 20


# ---- ids


@in_every_dialect(HEADERS)
def test_calls_without_ids_get_one_each_in_the_header_transport(arca: Front, dialect: Dialect) -> None:
    server = arca.serving(dialect)
    with Caller(dialect, arca.through(dialect)) as client:
        for n in range(20):
            client.call("note" if n % 3 == 0 else "echo", "hello")
        client.call("refuse", 1)
        rows = exchanges(arca, client, 21)
    (connection,) = server.connections
    seen = taken_apart(connection.heard)
    assert len(seen) == 21
    for row, frame in zip(rows, seen, strict=True):
        pairs = [(key.decode().lower(), value.decode()) for key, value in frame.pairs]
        assert sorted(pairs) == [
            ("traceparent", f"00-{row['trace_id']}-{row['span_id']}-00"),
            ("x-request-id", row["request_id"]),
        ]
    assert len({row["request_id"] for row in rows}) == len({row["trace_id"] for row in rows}) == 21
    assert {row["parent_id"] for row in rows} == {None}


@in_every_dialect(HEADERS)
@pytest.mark.parametrize("sampled", [True, False])
def test_a_trace_of_the_client_goes_on_and_its_id_is_kept(
    arca: Front, dialect: Dialect, sampled: bool
) -> None:
    server = arca.serving(dialect)
    came = f"00-{TRACE}-{PARENT}-0{int(sampled)}"
    given = [
        ("before", "1"), ("TraceParent", came), ("x-request-ID", "mine/42"), ("tracestate", "a=1,b=2"),
        ("behind", "ü" * 100), ("empty", ""),
    ]  # fmt: skip
    with Caller(dialect, arca.through(dialect)) as client:
        for n in range(3):
            client.sets(*given)
            assert client.call("echo", "x" * n) == Outcome("x" * n)
        rows = exchanges(arca, client, 3)
    (connection,) = server.connections
    for row, frame in zip(rows, taken_apart(connection.heard), strict=True):
        assert (row["trace_id"], row["parent_id"], row["request_id"]) == (TRACE, PARENT, "mine/42")
        expected = [(key.encode(), value.encode()) for key, value in given]
        if sampled:
            assert re.fullmatch("[0-9a-f]{16}", str(row["span_id"]))
            assert row["span_id"] != PARENT
            expected[1] = (b"TraceParent", f"00-{TRACE}-{row['span_id']}-01".encode())
        else:
            assert row["span_id"] is None
        assert frame.pairs == expected
    assert len({row["span_id"] for row in rows}) == (3 if sampled else 1)


@in_every_dialect(HEADERS[:1])
def test_b3_headers_are_continued(arca: Front, dialect: Dialect) -> None:
    server = arca.serving(dialect)
    with Caller(dialect, arca.through(dialect)) as client:
        client.sets(("X-B3-TraceId", TRACE), ("X-B3-SpanId", PARENT), ("X-B3-Sampled", "1"))
        assert client.call("echo", "x") == Outcome("x")
        (row,) = exchanges(arca, client, 1)
    assert (row["trace_id"], row["parent_id"]) == (TRACE, PARENT)
    (connection,) = server.connections
    (frame,) = taken_apart(connection.heard)
    assert dict(frame.pairs)[b"X-B3-TraceId"] == TRACE.encode()
    assert [key.lower() for key, _ in frame.pairs].count(b"x-request-id") == 1


# ---- several in flight


def talkers(ends: tuple[Peer, Peer], wire: Wire) -> tuple[ThriftPeer, ThriftPeer]:
    client, server = ends
    return ThriftPeer(client, wire), ThriftPeer(server, wire)


def in_every_wire(
    arca: Carrier, play: Callable[[ThriftPeer, ThriftPeer], None], count: int
) -> Iterator[tuple[Wire, list[Row]]]:
    """A conversation in all of them, and then the exchanges of each: they are logged now and then."""
    clients = []
    for wire in WIRES:
        client, server = talkers(arca.connect(), wire)
        with client, server:
            play(client, server)
        clients.append(client)
    for client in clients:
        yield client.wire, exchanges(arca, client, count)


def test_answers_out_of_order_belong_to_their_calls(arca: Front) -> None:
    def play(client: ThriftPeer, server: ThriftPeer) -> None:
        client.sends(client.wire.call("one", 7, "a") + client.wire.call("two", 9, "b" * 1000))
        heard = [server.hears_message()[:4] for _ in range(2)]
        assert heard == [("one", 1, 7, "a"), ("two", 1, 9, "b" * 1000)]
        server.replies("two", 9, "B" * 500)
        assert client.hears_message()[:4] == ("two", 2, 9, "B" * 500)
        time.sleep(0.05)
        server.replies("one", 7, "A")
        assert client.hears_message()[:4] == ("one", 2, 7, "A")

    for wire, rows in in_every_wire(arca, play, 2):
        assert [(row["method"], of_call(row)["sequence"]) for row in rows] == [("two", 9), ("one", 7)]
        assert [(row["request_bytes"], row["response_bytes"]) for row in rows] == [
            (len(wire.call("two", 9, "b" * 1000)), len(wire.reply("two", 9, "B" * 500))),
            (len(wire.call("one", 7, "a")), len(wire.reply("one", 7, "A"))),
        ]
        assert float(str(rows[1]["ttfb_ms"])) >= 50
        assert {verdict(row) for row in rows} == {OK_VERDICT}


def test_200_calls_in_flight_are_told_in_the_order_of_their_answers(arca: Front) -> None:
    numbers = list(range(200))
    random.Random(1).shuffle(numbers)

    def play(client: ThriftPeer, server: ThriftPeer) -> None:
        wire = client.wire
        client.sends(b"".join(wire.call(f"call_{n}", n - 100, "x" * n) for n in range(200)))
        assert [server.hears_message().sequence for _ in numbers] == list(range(-100, 100))
        server.sends(b"".join(wire.reply(f"call_{n}", n - 100, "y" * n) for n in numbers))
        assert [client.hears_message().text for _ in numbers] == ["y" * n for n in numbers]

    for wire, rows in in_every_wire(arca, play, 200):
        assert [row["method"] for row in rows] == [f"call_{n}" for n in numbers]
        sizes = [len(wire.call(f"call_{n}", n - 100, "x" * n)) for n in numbers]
        assert [row["request_bytes"] for row in rows] == sizes


def test_calls_that_all_have_one_id_are_answered_in_order(arca: Front) -> None:
    """thriftpy2 and Apache's Python number nothing."""

    def play(client: ThriftPeer, server: ThriftPeer) -> None:
        for n in range(5):
            client.calls(f"call_{n}", 0)
        for n in range(5):
            assert server.hears_message().name == f"call_{n}"
            server.replies(f"call_{n}", 0)
            assert client.hears_message().name == f"call_{n}"

    for _, rows in in_every_wire(arca, play, 5):
        assert [row["method"] for row in rows] == [f"call_{n}" for n in range(5)]


def test_a_server_that_does_not_repeat_ids_is_matched_by_method(arca: Front) -> None:
    def play(client: ThriftPeer, server: ThriftPeer) -> None:
        client.calls("one", 7)
        client.calls("two", 9)
        assert [server.hears_message().name for _ in range(2)] == ["one", "two"]
        server.replies("two", 0)
        server.replies("one", 0)
        assert [client.hears_message().name for _ in range(2)] == ["two", "one"]

    for _, rows in in_every_wire(arca, play, 2):
        assert [row["method"] for row in rows] == ["two", "one"]


def test_a_server_that_answers_in_an_encoding_of_its_own(arca: Front) -> None:
    clients = []
    for mine, theirs in (
        (Wire("framed", "binary"), Wire("framed", "compact")),
        (Wire("framed", "compact"), Wire("framed", "binary-old")),
        (Wire("header", "binary"), Wire("framed", "binary")),
        (Wire("buffered", "binary"), Wire("buffered", "binary-old")),
    ):
        client, server = talkers(arca.connect(), mine)
        with client, server:
            client.calls("one", 1)
            server.hears_message()
            client.wire = server.wire = theirs
            server.replies("one", 1)
            assert client.hears_message().name == "one"
        clients.append((client, mine))
    for client, mine in clients:
        (row,) = exchanges(arca, client, 1)
        assert (of_call(row)["transport"], of_call(row)["encoding"]) == mine
        assert verdict(row) == OK_VERDICT


# ---- large messages


LARGE = [
    each
    for each in DIALECTS
    if not each.multiplexed and (each.library, each.transport) != ("thriftpy2", "framed")
    if each.encoding != "binary-old"
]


@in_every_dialect(LARGE)
def test_10_mb_pass_both_ways_and_take_little_memory(arca: Front, dialect: Dialect) -> None:
    text = random.Random(dialect.encoding).randbytes(5 * 1024 * 1024).hex()
    server = arca.serving(dialect)
    before = most = arca.resident()
    with Caller(dialect, arca.through(dialect)) as client, concurrent.futures.ThreadPoolExecutor(1) as thread:
        calling = thread.submit(client.call, "echo", text)
        while concurrent.futures.wait([calling], 0.02).not_done:
            most = max(most, arca.resident())
        assert calling.result() == Outcome(text)
        (row,) = exchanges(arca, client, 1)
        assert row["request_bytes"] == len(client.socket.sent)
        assert row["response_bytes"] == len(client.socket.heard)
    assert server.saw[0][:2] == ("echo", text)
    assert verdict(row) == OK_VERDICT
    assert most - before < 4 * 1024 * 1024


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Carrier]:
    with Carrier(tmp_path, "[limits]\nthrift_frame_bytes = 1024\n") as made:
        yield made


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Carrier]:
    with Carrier(tmp_path, "strict = true\n[limits]\nthrift_frame_bytes = 1024\n") as made:
        yield made


FRAMED = Wire("framed", "binary")


def fallbacks(arca: Carrier, reason: str) -> float:
    return counted(arca, "arca_codec_fallbacks_total", protocol="thrift", reason=reason)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_frame_over_the_limit_arrives_all_the_same(limited: Carrier, who: str) -> None:
    large = "x" * (1024 if who == "client" else 10), "x" * (1024 if who == "server" else 10)

    def play(client: Peer, server: Peer) -> None:
        for asked, answered in (("small", "small"), large, ("small", "small")):
            call, reply = FRAMED.call("echo", 1, asked), FRAMED.reply("echo", 1, answered)
            client.sends(call)
            server.hears(call)
            server.sends(reply)
            client.hears(reply)
        client.closes()

    assert_both_ends_observe_the_same(limited, play)
    until(lambda: fallbacks(limited, "frame_too_large") == 1)
    until(lambda: len(thrift_rows(limited)) >= 2)
    first, second = thrift_rows(limited)[:2]
    assert verdict(first) == OK_VERDICT
    assert second["method"] in ("echo", None)
    found = second["verdict"]
    assert isinstance(found, dict)
    assert (found["domain"], found["cause"]) == ("unknown", "unknown")  # it is carried on, and not seen
    assert "1024" in str(found).replace(",", "")  # what is read


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_frame_over_the_limit_is_cut_when_strict(strict: Carrier, who: str) -> None:
    client, server = talkers(strict.connect(), FRAMED)
    with client, server:
        client.calls("echo", 1)
        server.hears_message()
        if who == "client":
            client.calls("echo", 2, "x" * 1024)
        else:
            server.replies("echo", 1, "x" * 1024)
        assert {client.heard_end(), server.heard_end()} <= {FIN, RST}
        assert not client.heard
        assert bytes(server.heard).startswith(FRAMED.call("echo", 1, "hello"))
        assert len(server.heard) == len(FRAMED.call("echo", 1, "hello"))
    until(lambda: any("limits.thrift_frame_bytes" in str(row["verdict"]) for row in thrift_rows(strict)))


def thrift_rows(arca: Carrier) -> list[Row]:
    return [row for row in arca.logged() if row["protocol"] == "thrift"]


def test_a_frame_at_the_limit_is_still_read(limited: Carrier) -> None:
    client, server = talkers(limited.connect(), FRAMED)
    text = "x" * (1024 - len(FRAMED.call("echo", 1, "")) + 4)
    with client, server:
        client.calls("echo", 1, text)
        assert server.hears_message() == Message("echo", 1, 1, text, [])
        server.replies("echo", 1, "")
        client.hears_message()
        (row,) = exchanges(limited, client, 1)
    assert row["request_bytes"] == 1028
    assert fallbacks(limited, "frame_too_large") == 0


# ---- how connections end


def test_a_client_that_ended_its_side_still_gets_its_answers(arca: Front) -> None:
    def play(client: ThriftPeer, server: ThriftPeer) -> None:
        client.calls("one", 1)
        client.calls("two", 2)
        client.ends()
        assert [server.hears_message().name for _ in range(2)] == ["one", "two"]
        assert server.heard_end() == FIN
        server.replies("two", 2)
        server.replies("one", 1)
        server.closes()
        assert [client.hears_message().name for _ in range(2)] == ["two", "one"]
        assert client.heard_end() == FIN

    for _, rows in in_every_wire(arca, play, 2):
        told = [(row["method"], verdict(row)) for row in rows]
        assert told == [("two", OK_VERDICT), ("one", OK_VERDICT)]


@pytest.mark.parametrize(
    ("who", "how", "expected"),
    [
        ("client", FIN, CANCELED),
        ("client", RST, CANCELED),
        ("server", FIN, CLOSED_EARLY),
        ("server", RST, RESET),
    ],
)
def test_an_end_in_the_middle_of_calls_is_told_of_each(
    arca: Front, who: str, how: str, expected: tuple[str, str]
) -> None:
    def play(client: ThriftPeer, server: ThriftPeer) -> None:
        for n in range(3):
            client.calls(f"call_{n}", n)
            server.hears_message()
        server.replies("call_1", 1)
        client.hears_message()
        one, other = (client, server) if who == "client" else (server, client)
        (one.resets if how == RST else one.closes)()
        assert other.heard_end() == how

    for _, rows in in_every_wire(arca, play, 3):
        told = {row["method"]: verdict(row) for row in rows}
        assert told == {"call_0": expected, "call_1": OK_VERDICT, "call_2": expected}


def test_half_a_call_is_told(arca: Front) -> None:
    def play(client: ThriftPeer, server: ThriftPeer) -> None:
        client.sends(client.wire.call("echo", 1, "x" * 1000)[:500])
        client.closes()
        assert server.heard_end() == FIN

    for _, (row,) in in_every_wire(arca, play, 1):
        assert (row["method"], verdict(row)) == ("echo", CANCELED)
        assert row["request_bytes"] == 500


@contextlib.contextmanager
def calling(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A client in a process of its own, which waits for its answer for a long time."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.system.thrift_peers", "call", str(port)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def slow_calls(arca: Carrier, since: float) -> list[Row]:
    return [row for row in arca.logged() if row["method"] == "slow" and began(row) >= since]


def test_a_client_that_is_killed_before_it_read_its_answer_canceled_it(arca: Front) -> None:
    """Its kernel resets the connection then; killed earlier, it looks like one that ended its side."""
    server = arca.serving(KILLABLE)
    server.answer = "x" * 15_000_000  # more than all socket buffers between them take
    since = time.time()
    with calling(arca.through(KILLABLE)) as client:
        until(lambda: len(server.saw) == 1)
        client.send_signal(signal.SIGSTOP)
        server.release.set()
        time.sleep(0.2)
        client.send_signal(signal.SIGKILL)
        client.wait()
        until(lambda: len(slow_calls(arca, since)) == 1)
    (row,) = slow_calls(arca, since)
    assert verdict(row) == CANCELED


def test_a_client_that_is_killed_in_mid_call_leaves_nothing(arca: Front) -> None:
    server = arca.serving(KILLABLE)
    since = time.time()
    with calling(arca.through(KILLABLE)) as client:
        until(lambda: len(server.saw) == 1)
        client.send_signal(signal.SIGKILL)
        client.wait()
        server.release.set()
        until(lambda: len(slow_calls(arca, since)) == 1)
    (row,) = slow_calls(arca, since)
    assert verdict(row) in (OK_VERDICT, CANCELED)  # its kernel had taken the answer, or not


def test_a_server_that_is_killed_in_mid_call_closed_early(tmp_path: Path) -> None:
    with Program(sys.executable, "-m", "tests.system.thrift_peers", "serve", "{port}") as program:
        port = free_port()
        forward = f"--forward=127.0.0.1:{port}=127.0.0.1:{program.port}"
        with Carrier(tmp_path, "", forward) as arca, Caller(KILLABLE, port) as client:
            assert client.call("echo", "hello") == Outcome("hello")
            with concurrent.futures.ThreadPoolExecutor(1) as thread:
                calling = thread.submit(client.call, "slow", 60.0)
                until(lambda: arca.metric("arca_requests_in_flight") == 1)
                program.process.send_signal(signal.SIGKILL)
                assert calling.result().error == "TTransportException"
            rows = exchanges(arca, client, 2)
            assert [(row["method"], verdict(row)) for row in rows] == [
                ("echo", OK_VERDICT),
                ("slow", CLOSED_EARLY),
            ]
            client.socket.close()


def test_a_refused_connection_is_a_reset_and_names_the_call(arca: Front) -> None:
    for pause in (0.0, 0.1):
        clients = []
        for wire in WIRES:
            with arca.dial(arca.nowhere) as client:
                call = wire.call("echo", 1, "hello")
                client.sends(call[:3])
                time.sleep(pause)
                with contextlib.suppress(OSError):  # the reset may be there first
                    client.sends(call[3:])
                assert client.heard_end() == RST
                assert not client.heard
            clients.append(client)
        for client in clients:
            (row,) = exchanges(arca, client, 1)
            assert verdict(row) == ("infrastructure", "connect_refused")
            if not pause:
                assert (row["protocol"], row["method"]) == ("thrift", "echo")


def test_what_turns_out_not_to_be_thrift_passes_untouched(arca: Front) -> None:
    before = fallbacks(arca, "not_thrift")

    def play(client: Peer, server: Peer) -> None:
        good, bad = FRAMED.call("echo", 1, "a"), b"\x00\x00\x00\x08\x80\x01\xff\xffwhat"
        for data in (good, bad, good, b"\xff" * 100):
            client.sends(data)
            server.hears(data)
            server.sends(data[::-1])
            client.hears(data[::-1])
        client.closes()

    assert_both_ends_observe_the_same(arca, play)
    until(lambda: fallbacks(arca, "not_thrift") == before + 1)


# ---- other ways to get there


def test_over_ipv6(arca: Front) -> None:
    through, port = arca.ipv6
    with Server(KILLABLE, "::1", port) as server, Caller(KILLABLE, through, "::1") as client:
        assert client.call("echo", "hello") == Outcome("hello")
        (row,) = exchanges(arca, client, 1)
        assert (row["method"], row["server"], row["client"]) == ("echo", f"[::1]:{port}", client.name)
        assert server.saw == [("echo", "hello", {})]


@pytest.mark.usefixtures("iptables_work", "apache")
@pytest.mark.parametrize("transport", ["framed", "header"])
def test_what_comes_in_by_redirection(network: Network, tmp_path: Path, transport: str) -> None:
    dialect = Dialect("apache", transport, "compact")
    host = network["server"]
    settings = "workers = 1\n[rules]\napply = true\ninbound_ports = [9090]\n"
    with contextlib.ExitStack() as stack:
        with host.inside():
            server = stack.enter_context(Server(dialect, host.ipv4, 9090))
        arca = stack.enter_context(Inside(host, tmp_path, settings)).wait_ready()
        with network["client"].inside():
            client = stack.enter_context(Caller(dialect, 9090, host.ipv4))
        assert client.call("echo", "hello") == Outcome("hello")
        assert client.call("refuse", 5).error == "Refused"
        rows = exchanges(arca, client, 2)
        assert [(row["method"], row["code"]) for row in rows] == [("echo", None), ("refuse", "exception_1")]
        for row in rows:
            assert (row["protocol"], row["direction"]) == ("thrift", "inbound")
            assert row["server"] == f"{host.ipv4}:9090"
        assert [each[0] for each in server.saw] == ["echo", "refuse"]


# ---- metrics


def test_calls_are_counted_by_method_and_code(arca: Front) -> None:
    arca.serving(KILLABLE)

    def so_far() -> list[float]:
        wanted: list[dict[str, str]] = [
            {},
            {"method": "add", "domain": "ok"},
            {"method": "refuse", "code": "exception_1"},
        ]
        counts = [counted(arca, "arca_requests_total", protocol="thrift", **labels) for labels in wanted]
        return [*counts, counted(arca, "arca_request_duration_seconds_count", protocol="thrift")]

    before = so_far()
    with Caller(KILLABLE, arca.through(KILLABLE)) as client:
        for n in range(10):
            client.call("add", n, n)
        for n in range(3):
            client.call("refuse", n)
        client.call("note", "")
    expected = [value + more for value, more in zip(before, (14, 10, 3, 14), strict=True)]
    until(lambda: so_far() == expected)

"""Bad input, a flood, and loops: refused where it must be, and nobody else notices.

While each of these tests runs, another connection is kept busy through the same worker. It must not lose a
byte, the worker must be the same afterwards, and nothing may be left of what was refused.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import random
import threading
import time
from typing import TYPE_CHECKING, Self

import pytest

from tests.ports import free_port
from tests.system.arca import FIN, RST, Carrier, Peer, dialed, verdict, without_added
from tests.system.processes import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
GET = HEAD + b"\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

BAD_CLIENT = ("client", "protocol_error")
BAD_SERVER = ("application", "protocol_error")


class Bystander:
    """A connection of somebody else's, busy all the time."""

    def __init__(self, arca: Carrier) -> None:
        self.client, self.server = arca.connect()
        self.turns = 0
        self.trouble: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        turns = self.turns
        until(lambda: self.turns > turns + 2 or self.trouble is not None)
        self._stop.set()
        self._thread.join(PATIENCE)
        self.client.closes()
        self.server.closes()
        assert self.trouble is None, repr(self.trouble)

    def _talk(self) -> None:
        try:
            while not self._stop.is_set():
                data = random.randbytes(5000)
                self.client.sends(b"\xff" + data)
                assert self.server.hears_exactly(5001) == b"\xff" + data
                self.server.sends(data)
                assert self.client.hears_exactly(5000) == data
                for each in (self.client, self.server):
                    each.heard.clear()
                    each._read = 0
                self.turns += 1
                time.sleep(0.002)
        except BaseException as trouble:
            self.trouble = trouble


@contextlib.contextmanager
def undisturbed(arca: Carrier) -> Iterator[Carrier]:
    with Bystander(arca):
        yield arca
    arca.assert_nothing_is_left()


@pytest.fixture(scope="module")
def carrier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Carrier]:
    with Carrier(tmp_path_factory.mktemp("arca")) as made:
        yield made


@pytest.fixture
def arca(carrier: Carrier) -> Iterator[Carrier]:
    with undisturbed(carrier):
        yield carrier


def assert_refused(client: Peer, status: int, says: str) -> None:
    """The whole answer: status, who gave it, one line of text, and the end of the connection."""
    assert client.heard_end() == FIN
    head, _, body = bytes(client.heard).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 %d " % status), lines[0]
    assert {b"server: arca", b"connection: close", b"content-length: %d" % len(body)} <= set(lines)
    assert body.endswith(b"\n")
    assert body.count(b"\n") == 1
    assert says in body.decode()


# ---- requests that are refused


@pytest.mark.parametrize(
    ("bad", "status", "says"),
    [
        pytest.param(
            POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400, "Content-Length together with Transfer-Encoding", id="length_and_coding",
        ),
        pytest.param(
            POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
            400, "differing Content-Length", id="differing_lengths",
        ),
        pytest.param(
            POST + b"Content-Length: 3, 4\r\n\r\nabc", 400, "Content-Length", id="joined_lengths"
        ),
        pytest.param(POST + b"Content-Length: +3\r\n\r\nabc", 400, "Content-Length", id="signed_length"),
        pytest.param(POST + b"Content-Length: \r\n\r\n", 400, "Content-Length", id="empty_length"),
        pytest.param(
            POST + b"Transfer-Encoding: gzip\r\n\r\n", 501, "must be chunked", id="last_coding_not_chunked"
        ),
        pytest.param(
            POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n", 400, "more than once", id="chunked_twice"
        ),
        pytest.param(
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400, "HTTP/1.0", id="coding_in_1_0",
        ),
        pytest.param(b"GET / HTTP/1.1\nHost: a\n\n", 400, "bare LF", id="bare_lf"),
        pytest.param(HEAD + b"A: b\rc\r\n\r\n", 400, "CR without LF", id="bare_cr"),
        pytest.param(HEAD + b"A: b\x00c\r\n\r\n", 400, "control character", id="nul"),
        pytest.param(HEAD + b"A : b\r\n\r\n", 400, "before the colon", id="space_before_colon"),
        pytest.param(HEAD + b"A: b\r\n folded\r\n\r\n", 400, "folded", id="obs_fold"),
        pytest.param(HEAD + b"A\x7fB: c\r\n\r\n", 400, "field name", id="control_in_name"),
        pytest.param(HEAD + b"no colon\r\n\r\n", 400, "", id="no_colon"),
        pytest.param(GET[:-2] + b"A: b\r\n" * 100 + b"\r\n", 431, "100 header fields", id="101_fields"),
        pytest.param(HEAD + b"A: " + b"b" * 65536 + b"\r\n\r\n", 431, "60 KiB", id="64_kib_of_header"),
        pytest.param(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414, "8 KiB", id="long_line"),
    ],
)  # fmt: skip
def test_a_request_that_could_be_read_in_two_ways_is_refused(
    arca: Carrier, bad: bytes, status: int, says: str
) -> None:
    client, server = arca.connect()
    with client, server:
        client.sends(bad)
        assert_refused(client, status, says)
        assert server.heard_end() == RST
        assert not server.heard
    (exchange,) = arca.exchanges(client)
    assert (exchange["status"], verdict(exchange)) == (status, BAD_CLIENT)


@pytest.mark.parametrize(
    "chunks",
    [b"zz\r\n", b"12345678901234567\r\n", b"-1\r\n", b"0x5\r\nhello\r\n", b"3\r\nabcd\r\n", b"3;a\nb\r\nabc"],
)
def test_a_body_that_could_be_read_in_two_ways_is_refused(arca: Carrier, chunks: bytes) -> None:
    client, server = arca.connect()
    with client, server:
        head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        client.sends(head + b"2\r\nok\r\n")
        server.hears(head + b"2\r\nok\r\n")
        client.sends(chunks)
        assert_refused(client, 400, "chunk")
        assert server.heard_end() == RST
    (exchange,) = arca.exchanges(client)
    assert verdict(exchange) == BAD_CLIENT


def test_a_refusal_waits_for_the_answers_before_it(arca: Carrier) -> None:
    client, server = arca.connect()
    with client, server:
        client.sends(GET + HEAD + b"A : b\r\n\r\n" + GET)
        server.hears(GET)
        assert server.is_silent()
        server.sends(OK)
        client.hears(OK)
        client.hears_head()
        assert b"HTTP/1.1 400 " in client.heard
        assert client.heard_end() == FIN
        assert server.heard_end() == RST
    first, second = arca.exchanges(client, 2)
    assert verdict(first) == ("ok", None)
    assert verdict(second) == BAD_CLIENT


def test_a_refused_client_that_goes_on_sending_still_reads_why(arca: Carrier) -> None:
    client, server = arca.connect()
    with client, server:
        client.sends(HEAD + b"A : b\r\n\r\n" + bytes(3_000_000))
        client.heard_end()
        assert client.heard.startswith(b"HTTP/1.1 400 ")
        assert client.heard.endswith(b"not allowed\n")


def test_a_refused_client_that_stays_is_not_kept(arca: Carrier) -> None:
    client, server = arca.connect()
    with client:
        client.sends(HEAD + b"A : b\r\n\r\n")
        assert server.heard_end() == RST
        server.closes()
        until(lambda: [pair["client"] for pair in arca.carried()].count(client.name) == 0)
        assert_refused(client, 400, "colon")


# ---- responses that are refused


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", "together"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", "differing"),
        (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "bare LF"),
        (b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "colon"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", "60 KiB"),
    ],
)
def test_a_response_that_could_be_read_in_two_ways_is_answered_with_502(
    arca: Carrier, bad: bytes, says: str
) -> None:
    client, server = arca.connect()
    with client, server:
        client.sends(GET)
        server.hears(GET)
        server.sends(bad)
        assert_refused(client, 502, says)
        assert b"\r\nx-arca-cause: protocol_error\r\n" in client.heard
        assert server.heard_end() == RST
    (exchange,) = arca.exchanges(client)
    assert (exchange["status"], verdict(exchange)) == (502, BAD_SERVER)


def test_a_response_that_goes_wrong_when_it_has_begun_is_cut(arca: Carrier) -> None:
    client, server = arca.connect()
    with client, server:
        client.sends(GET)
        server.hears(GET)
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"
        server.sends(head)
        client.hears(head)
        server.sends(b"nonsense\r\n")
        assert client.heard_end() == RST
        assert without_added(client.heard) == head
    (exchange,) = arca.exchanges(client)
    assert verdict(exchange) == BAD_SERVER


# ---- more or less than was promised


def test_a_head_that_never_ends_is_refused_when_it_is_too_long(arca: Carrier) -> None:
    client, server = arca.connect()
    with client, server:
        client.sends(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for n in range(100_000):
                client.sends(b"X-%05d: %b\r\n" % (n, b"y" * 1000))
                if n % 10 == 0 and not client.is_silent(0.01):
                    break
        assert_refused(client, 431, "60 KiB")
        assert not server.heard


def test_a_first_line_that_never_ends_is_refused_when_it_is_too_long(arca: Carrier) -> None:
    client, server = arca.connect()
    with client, server:
        with contextlib.suppress(ConnectionError):
            client.sends(b"GET /")
            for _ in range(1000):
                client.sends(b"a" * 1000)
                if not client.is_silent(0.01):
                    break
        assert_refused(client, 414, "8 KiB")


def test_a_body_shorter_than_promised_ends_as_the_client_ended_it(arca: Carrier) -> None:
    client, server = arca.connect()
    with client, server:
        request = POST + b"Content-Length: 10\r\n\r\nhalf"
        client.sends(request)
        client.ends()
        server.hears(request)
        assert server.heard_end() == FIN
        server.sends(b"HTTP/1.1 400 Short\r\nContent-Length: 0\r\n\r\n")
        client.hears_head()
        server.closes()
        assert client.heard_end() == FIN
    (exchange,) = arca.exchanges(client)
    assert exchange["status"] == 400


def test_what_follows_a_body_is_read_as_the_next_request(arca: Carrier) -> None:
    client, server = arca.connect()
    with client, server:
        client.sends(POST + b"Content-Length: 3\r\n\r\nabc" + HEAD + b"A : b\r\n\r\n")
        server.hears(POST + b"Content-Length: 3\r\n\r\nabc")
        server.sends(OK)
        client.hears(OK)
        client.hears_head()
        assert b"HTTP/1.1 400 " in client.heard
    first, second = arca.exchanges(client, 2)
    assert verdict(first) == ("ok", None)
    assert verdict(second) == BAD_CLIENT


def test_garbage_after_a_valid_exchange_is_carried_and_counted(arca: Carrier) -> None:
    before = arca.metric("arca_codec_fallbacks_total")
    client, server = arca.connect()
    with client, server:
        client.sends(GET)
        server.hears(GET)
        server.sends(OK)
        client.hears(OK)
        client.sends(b"\x00\xff{garbage}")
        server.hears(b"\x00\xff{garbage}")
        server.sends(b"\xfe")
        client.hears(b"\xfe")
    first, second = arca.exchanges(client, 2)
    assert verdict(first) == ("ok", None)
    assert second["protocol"] == "tcp"
    until(lambda: arca.metric("arca_codec_fallbacks_total") == before + 1)


def test_a_response_longer_than_promised_is_carried_and_counted(arca: Carrier) -> None:
    before = arca.metric("arca_codec_fallbacks_total")
    client, server = arca.connect()
    with client, server:
        client.sends(GET)
        server.hears(GET)
        server.sends(OK + b"more than that")
        client.hears(OK + b"more than that")
    until(lambda: arca.metric("arca_codec_fallbacks_total") == before + 1)


def test_a_header_block_just_below_the_limit_is_carried(arca: Carrier) -> None:
    client, server = arca.connect()
    with client, server:
        request = HEAD + b"".join(b"X-%02d: %b\r\n" % (n, b"y" * 600) for n in range(95)) + b"\r\n"
        client.sends(request)
        server.hears(request)
        server.sends(OK)
        client.hears(OK)


def test_strict_refuses_what_is_not_http(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Carrier(tmp_path_factory.mktemp("strict"), "strict = true\n") as arca, undisturbed(arca):
        client, server = arca.connect()
        with client, server:
            client.sends(GET)
            server.hears(GET)
            server.sends(OK)
            client.hears(OK)
            client.sends(b"\x00\xff{garbage}\r\n\r\n")
            client.hears_head()
            assert b"HTTP/1.1 400 " in client.heard
            assert server.heard_end() == RST


# ---- slow


def test_a_request_one_byte_at_a_time_is_carried(arca: Carrier) -> None:
    pairs = [arca.connect() for _ in range(20)]
    for at in range(len(GET)):
        for client, _ in pairs:
            client.sends(GET[at : at + 1])
        time.sleep(0.02)
    for client, server in pairs:
        with client, server:
            server.hears(GET)
            server.sends(OK)
            client.hears(OK)
    for client, _ in pairs:
        (exchange,) = arca.exchanges(client)
        assert verdict(exchange) == ("ok", None)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Carrier]:
    with Carrier(tmp_path_factory.mktemp("hasty"), "[limits]\nhead_timeout_seconds = 1.0\n") as made:
        yield made


@pytest.mark.parametrize("first", [GET[:20], b"GE", GET + GET[:10]])
def test_a_head_that_takes_longer_than_its_limit_is_refused(hasty: Carrier, first: bytes) -> None:
    with undisturbed(hasty):
        client, server = hasty.connect()
        with client, server:
            client.sends(first)
            if first.startswith(GET):
                server.hears(GET)
                server.sends(OK)
                client.hears(OK)
            time.sleep(0.5)
            client.sends(b"\r" if first != b"GE" else b"T")
            began = time.monotonic()
            while client.is_silent(0.1):
                assert time.monotonic() - began < PATIENCE
            client.heard_end()
            assert b"HTTP/1.1 408 " in client.heard
            assert client.ended == FIN
            assert b"limits.head_timeout_seconds" in client.heard
            assert server.heard_end() == RST
        exchange = hasty.exchanges(client, 1 + first.startswith(GET))[-1]
        assert verdict(exchange) == ("client", "stalled")


def test_the_head_timeout_is_for_heads_alone(hasty: Carrier) -> None:
    """Not for an idle connection, a slow body, a slow answer, or bytes that nobody reads."""
    with undisturbed(hasty):
        idle, idle_server = hasty.connect()
        slow, slow_server = hasty.connect()
        opaque, opaque_server = hasty.connect()
        with idle, idle_server, slow, slow_server, opaque, opaque_server:
            request = POST + b"Content-Length: 4\r\n\r\n"
            slow.sends(request)
            slow_server.hears(request)
            opaque.sends(b"\xff")
            opaque_server.hears(b"\xff")
            for byte in (b"b", b"o", b"d", b"y"):
                time.sleep(0.6)
                slow.sends(byte)
                slow_server.hears(byte)
            idle.sends(GET)
            idle_server.hears(GET)
            time.sleep(1.6)
            for client, server in ((idle, idle_server), (slow, slow_server)):
                server.sends(OK)
                client.hears(OK)
            opaque.sends(b"\xfe")
            opaque_server.hears(b"\xfe")


def test_a_late_head_does_not_cost_the_answer_that_is_still_on_its_way(hasty: Carrier) -> None:
    with undisturbed(hasty):
        client, server = hasty.connect()
        with client, server:
            client.sends(GET)
            server.hears(GET)
            client.sends(GET[:10])
            time.sleep(2.0)
            server.sends(OK)
            client.hears(OK)
            client.heard_end()
            assert b"HTTP/1.1 408 " in client.heard
        answered, late = hasty.exchanges(client, 2)
        assert verdict(answered) == ("ok", None)
        assert verdict(late) == ("client", "stalled")
        assert late["protocol"] == "http/1.1"


def test_the_head_timeout_begins_with_the_head(hasty: Carrier) -> None:
    """Not with the connection: one that was silent for longer has all of the time for its first request."""
    with undisturbed(hasty):
        client, server = hasty.connect()
        with client, server:
            time.sleep(1.6)
            client.sends(GET[:2])
            time.sleep(0.4)
            client.sends(GET[2:])
            server.hears(GET)
            server.sends(OK)
            client.hears(OK)
        (exchange,) = hasty.exchanges(client)
        assert verdict(exchange) == ("ok", None)


# ---- too much


def test_connections_beyond_the_limit_are_reset_and_counted(tmp_path_factory: pytest.TempPathFactory) -> None:
    limit = 20
    settings = f"[limits]\nmax_connections = {limit}\n"
    with Carrier(tmp_path_factory.mktemp("limit"), settings) as arca, undisturbed(arca):
        pairs = [arca.connect() for _ in range(limit - 1)]  # and the bystander
        refused = []
        for _ in range(50):
            with contextlib.suppress(ConnectionResetError):  # it may be told before it asks
                refused.append(arca.dial())
        for client in refused:
            assert client.heard_end() == RST
            client.closes()
        until(lambda: arca.metric("arca_connections_refused_total") == 50)
        for client, server in pairs:
            client.sends(GET)
            server.hears(GET)
            server.sends(OK)
            client.hears(OK)
        rows = [row for row in arca.logged() if verdict(row) == ("proxy", "overload")]
        assert len(rows) <= 50
        client, server = pairs.pop()
        client.closes()
        server.closes()
        until(lambda: len(arca.carried()) < limit)
        pairs.append(arca.connect())
        pairs[-1][0].sends(b"\xff")
        pairs[-1][1].hears(b"\xff")
        for client, server in pairs:
            client.closes()
            server.closes()
        until(lambda: sum(verdict(row) == ("proxy", "overload") for row in arca.logged()) == 50)


def test_connections_beyond_the_descriptors_are_refused_and_it_recovers(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("few")
    with Carrier(directory, wrapper=("prlimit", "--nofile=300:300")) as arca, undisturbed(arca):
        accepted: list[Peer] = []
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    accepted.append(arca.stage.accept())

        arca.stage._listener.settimeout(0.2)
        accepting = threading.Thread(target=accept)
        accepting.start()
        clients: list[Peer] = []
        for _ in range(200):
            with contextlib.suppress(OSError):
                clients.append(arca.dial())
                clients[-1].sends(GET)
        until(lambda: arca.metric("arca_connections_refused_total") > 100)
        for client in clients:
            client.closes()
        stop.set()
        accepting.join()
        for server in accepted:
            server.closes()
        arca.stage._listener.settimeout(PATIENCE)
        until(lambda: len(arca.carried()) == 1)
        for _ in range(30):
            client, server = arca.connect()
            with client, server:
                client.sends(b"\xff")
                server.hears(b"\xff")


def test_spoilt_bytes_from_many_at_once_harm_nobody_else(tmp_path: Path) -> None:
    """Valid traffic with bytes changed, lost and doubled, both ways, cut anywhere, ended anyhow."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: 1\r\n\r\n"
    requests = [GET, chunked, POST + b"Content-Length: 5\r\n\r\nhello", GET[:-2] + b"Upgrade: x\r\n\r\n"]
    responses = [OK, OK.replace(b"200 OK", b"101 X"), b"HTTP/1.1 200 OK\r\n\r\nuntil the end"]
    responses.append(
        b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 O\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    )

    def spoilt(messages: list[bytes]) -> bytes:
        data = bytearray(b"".join(chance.choices(messages, k=3)))
        for _ in range(chance.randrange(3)):
            at = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randrange(1, 5)]
                case _:
                    data[at:at] = data[at : at + chance.randrange(1, 30)]
        return bytes(data)

    def said(peer: Peer, data: bytes) -> None:
        with contextlib.suppress(OSError):
            for at in range(0, len(data), 40):
                peer.sends(data[at : at + 40])

    def ended(peer: Peer, how: int) -> None:
        if how == 0:
            peer.resets()
        elif how == 1:
            peer.closes()
        else:
            with contextlib.suppress(OSError):
                peer.ends()
                peer.socket.settimeout(0.1)  # the other end may wait for what was spoilt
                peer.heard_end()

    def serve(server: Peer) -> None:
        said(server, next(answers))
        ended(server, random.randrange(3))

    def ask(text: tuple[bytes, int]) -> None:
        with contextlib.suppress(OSError), arca.dial() as client:
            said(client, text[0])
            ended(client, text[1])

    asked = [(spoilt(requests), chance.randrange(3)) for _ in range(600)]
    answers = iter([spoilt(responses) for _ in range(1000)])
    with Carrier(tmp_path) as arca, undisturbed(arca):
        arca.stage.serve(serve)
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, asked))
        for row in arca.logged():
            assert verdict(row) != ("proxy", "internal"), (seed, row)


# ---- loops


def test_a_connection_to_arca_itself_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    a, b, c, d = (free_port() for _ in range(4))
    forward = [
        f"--forward=127.0.0.1:{a}=127.0.0.1:{a}",
        f"--forward=127.0.0.1:{b}=127.0.0.1:{a}",
        f"--forward=127.0.0.1:{c}=0.0.0.0:{c}",
        f"--forward=0.0.0.0:{d}=127.0.0.2:{d}",
    ]
    with Carrier(tmp_path_factory.mktemp("loop"), "", *forward) as arca, undisturbed(arca):
        names = []
        for port in (a, b, c, d, arca.listen):
            for first in (b"", GET, b"\xff"):
                try:
                    client = dialed("127.0.0.1", port)
                except ConnectionResetError:
                    continue
                with client:
                    names.append(client.name)
                    with contextlib.suppress(OSError):
                        client.sends(first)
                    assert client.heard_end() == RST
                    assert not client.heard
        for name in names:
            (exchange,) = arca.exchanges(name)
            assert verdict(exchange) == ("proxy", "limit")
        until(lambda: arca.metric("arca_connections_refused_total") == 15)

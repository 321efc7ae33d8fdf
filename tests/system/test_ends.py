"""How connections end: what one end does to its connection is done to the other, whoever it was and whenever.

FIN goes on as FIN, behind what was sent; RST goes on as RST, without a write to find it out; a connection
that could not be made is told in the client's own protocol. Whatever was in flight gets the verdict that
says who.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.arca import (
    FIN,
    RST,
    Carrier,
    Inside,
    Observed,
    Peer,
    assert_both_ends_observe_the_same,
    dialed,
    verdict,
    without_added,
)
from tests.system.processes import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.namespaces import Network

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
PUT = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"

OK_VERDICT = ("ok", None)
CANCELED = ("client", "canceled")
CLOSED_EARLY = ("application", "closed_early")
RESET = ("infrastructure", "reset")


@pytest.fixture(scope="module")
def carrier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Carrier]:
    with Carrier(tmp_path_factory.mktemp("arca")) as made:
        yield made


@pytest.fixture
def arca(carrier: Carrier) -> Iterator[Carrier]:
    yield carrier
    carrier.assert_nothing_is_left()


def end(peer: Peer, how: str) -> None:
    if how == RST:
        peer.resets()
    else:
        peer.closes()


# ---- the four edges

BYTES = {
    "before_data": (b"", b""),
    "after_a_request": (b"\xffask", b""),
    "during": (b"\xffask", b"\xfeanswer"),
    "http_after_an_answer": (GET, OK),
    "http_mid_request": (PUT + b"half", b""),
    "http_mid_answer": (GET, LONG + b"half"),
}


@pytest.mark.parametrize("who", ["client", "server"])
@pytest.mark.parametrize("how", [FIN, RST])
@pytest.mark.parametrize("when", BYTES)
def test_an_end_is_mirrored(arca: Carrier, who: str, how: str, when: str) -> None:
    asked, answered = BYTES[when]

    def play(client: Peer, server: Peer) -> None:
        client.sends(asked)
        server.hears(asked)
        server.sends(answered)
        client.hears(answered)
        one, other = (client, server) if who == "client" else (server, client)
        end(one, how)
        assert other.heard_end() == how

    assert_both_ends_observe_the_same(arca, play)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_after_the_end_of_one_side_is_told_without_a_write(arca: Carrier, who: str) -> None:
    """FIN, then RST from the same end: nobody reads that connection any more (see Hangups)."""

    def play(client: Peer, server: Peer) -> None:
        client.sends(b"\xffask")
        server.hears(b"\xffask")
        one, other = (client, server) if who == "client" else (server, client)
        one.ends()
        assert other.heard_end() == FIN
        assert other.is_silent() or other.ended == FIN
        one.resets()
        assert other.is_told_of_a_reset()

    assert_both_ends_observe_the_same(arca, play)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_from_the_end_that_still_talks_is_told(arca: Carrier, who: str) -> None:
    """One end sent FIN; the other resets instead of ending in order."""

    def play(client: Peer, server: Peer) -> None:
        client.sends(b"\xffask")
        server.hears(b"\xffask")
        one, other = (client, server) if who == "client" else (server, client)
        one.ends()
        assert other.heard_end() == FIN
        other.resets()
        assert one.heard_end() == RST

    assert_both_ends_observe_the_same(arca, play)


def test_a_request_reset_after_its_half_close_is_canceled_at_once(arca: Carrier) -> None:
    client, server = arca.connect()
    with server:
        client.sends(GET)
        client.ends()
        server.hears(GET)
        assert server.heard_end() == FIN
        client.resets()
        assert server.is_told_of_a_reset()
        (exchange,) = arca.exchanges(client)  # while the server does not even look
        assert verdict(exchange) == CANCELED


def test_a_reset_does_not_overtake_what_was_sent_before_it(arca: Carrier) -> None:
    data = bytes(range(256)) * 128

    def from_client(client: Peer, server: Peer) -> None:
        client.sends(data)
        time.sleep(0.05)
        client.resets()
        time.sleep(0.05)
        assert server.hears_exactly(len(data)) == data
        assert server.heard_end() == RST

    def from_server(client: Peer, server: Peer) -> None:
        server.sends(data)
        time.sleep(0.05)
        server.resets()
        time.sleep(0.05)
        assert client.hears_exactly(len(data)) == data
        assert client.heard_end() == RST

    for play in (from_client, from_server):
        for _ in range(5):
            assert_both_ends_observe_the_same(arca, play)


def test_a_reset_by_the_server_comes_behind_what_the_client_has_not_read_yet(arca: Carrier) -> None:
    client, server = arca.connect()
    with client:
        client.sends(b"\xff")
        server.hears(b"\xff")
        sent = server.fills()
        server.resets()
        time.sleep(0.2)
        assert client.heard_end() == RST
        # What stood in the server's own kernel went with it; what ARCA had taken did not.
        assert sent > len(client.heard) > 64 * 1024
    (exchange,) = arca.exchanges(client)
    assert verdict(exchange) == RESET
    assert exchange["response_bytes"] == len(client.heard)


def test_a_slow_reader_gets_all_that_was_sent_before_the_reset(arca: Carrier) -> None:
    """The reset waits for as long as the reader goes on, however long that is."""
    client, server = arca.connect()
    with client:
        client.sends(b"\xff")
        server.hears(b"\xff")
        server.fills()
        server.resets()
        began = time.monotonic()
        slow_until = began + 2.5
        while client._receive(4096 if time.monotonic() < slow_until else 1 << 18):
            if time.monotonic() < slow_until:
                time.sleep(0.02)
        assert client.ended == RST
        assert time.monotonic() - began > 2
    (exchange,) = arca.exchanges(client)
    assert exchange["response_bytes"] == len(client.heard)


def test_a_reset_by_the_client_is_noticed_while_the_server_does_not_read(arca: Carrier) -> None:
    client, server = arca.connect()
    with server:
        client.sends(b"\xff")
        server.hears(b"\xff")
        sent = client.fills()
        client.resets()
        (exchange,) = arca.exchanges(client)
        assert verdict(exchange) == CANCELED
        until(lambda: arca.carried() == [])
        assert server.heard_end() == RST
        assert 64 * 1024 < len(server.heard) <= sent + 1


def test_a_reset_by_the_server_is_noticed_while_it_does_not_read(arca: Carrier) -> None:
    client, server = arca.connect()
    with client:
        client.sends(b"\xff")
        server.hears(b"\xff")
        client.fills()
        server.resets()
        assert client.heard_end() == RST
    (exchange,) = arca.exchanges(client)
    assert verdict(exchange) == RESET


def test_a_reset_by_the_client_is_noticed_while_it_does_not_read(arca: Carrier) -> None:
    client, server = arca.connect()
    with server:
        client.sends(GET)
        server.hears(GET)
        server.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        server.fills()
        client.resets()
        assert server.heard_end() == RST
    (exchange,) = arca.exchanges(client)
    assert verdict(exchange) == CANCELED


@pytest.mark.parametrize("how", [FIN, RST])
def test_an_end_of_the_server_reaches_a_client_that_is_sending(arca: Carrier, how: str) -> None:
    client, server = arca.connect()
    with client:
        client.sends(b"\xff")
        server.hears(b"\xff")
        stop = threading.Event()
        told: list[OSError] = []

        def send() -> None:
            try:
                while not stop.is_set():
                    client.sends(bytes(1 << 16))
            except OSError as error:
                told.append(error)

        sending = threading.Thread(target=send)
        sending.start()
        time.sleep(0.05)
        end(server, how)
        try:
            heard = client.heard_end()
            # Closed with data unread, or while more arrives: a kernel resets such a connection itself. It
            # tells that once, and the sending thread may have been the one that was told.
            stop.set()
            sending.join()
            assert heard in (how, RST) or told
        finally:
            stop.set()
            client.resets()
            sending.join()


# ---- an answer before the request is through


@pytest.mark.parametrize("size", [100_000, 10_000_000])
def test_an_early_answer_reaches_a_client_that_is_still_uploading(arca: Carrier, size: int) -> None:
    """413 and a close with unread request data, which resets the connection right behind the answer."""
    answer = b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nlarge"
    clients = []
    for _ in range(10):
        client, server = arca.connect()
        clients.append(client)
        with client:
            head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size

            def upload(client: Peer = client, head: bytes = head) -> None:
                with contextlib.suppress(OSError):
                    client.sends(head + bytes(size))

            uploading = threading.Thread(target=upload)
            uploading.start()
            server.hears_head()
            server.sends(answer)
            server.closes()
            client.heard_end()
            assert without_added(client.heard) == answer
            uploading.join()
    for client in clients:
        (exchange,) = arca.exchanges(client)
        assert (exchange["status"], verdict(exchange)) == (413, ("application", "status_4xx"))


def test_an_answer_behind_which_the_server_resets_is_complete(arca: Carrier) -> None:
    def play(client: Peer, server: Peer) -> None:
        client.sends(GET)
        server.hears(GET)
        server.sends(OK)
        server.resets()
        client.hears(OK)
        assert client.heard_end() == RST

    clients = []
    for _ in range(20):
        client, server = arca.connect()
        clients.append(client)
        with client:
            play(client, server)
    for client in clients:
        (exchange,) = arca.exchanges(client)
        assert verdict(exchange) == OK_VERDICT


# ---- an upstream that cannot be reached


def test_http_is_told_that_the_connection_was_refused(arca: Carrier) -> None:
    with arca.dial(arca.nowhere) as client:
        client.sends(b"GET /x HTTP/1.1\r\nHost: a\r\nX-Request-ID: mine\r\n\r\n")
        assert client.heard_end() == FIN
        head, _, body = bytes(client.heard).partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0] == b"HTTP/1.1 502 Bad Gateway"
        assert {b"server: arca", b"x-arca-cause: connect_refused", b"connection: close"} <= set(lines)
        assert b"X-Request-ID: mine" in lines
        assert body == b"no connection to the upstream 127.0.0.1:%d: Connection refused\n" % arca.closed_port
    (exchange,) = arca.exchanges(client)
    assert exchange["status"] == 502
    assert verdict(exchange) == ("infrastructure", "connect_refused")
    found = exchange["verdict"]
    assert isinstance(found, dict)
    assert (found["phase"], found["origin"]) == ("connect", "upstream")
    assert found["evidence"][0]["value"] == "ECONNREFUSED"
    assert isinstance(exchange["connect_ms"], float)


@pytest.mark.parametrize("pause", [0.3, 1.5])
def test_http_is_told_whenever_its_request_is_complete(arca: Carrier, pause: float) -> None:
    with arca.dial(arca.nowhere) as client:
        client.sends(GET[:5])
        time.sleep(pause)
        client.sends(GET[5:])
        assert client.heard_end() == FIN
        assert client.heard.startswith(b"HTTP/1.1 502 ")
    (exchange,) = arca.exchanges(client)
    assert verdict(exchange) == ("infrastructure", "connect_refused")


def test_a_head_request_is_told_without_a_body(arca: Carrier) -> None:
    with arca.dial(arca.nowhere) as client:
        client.sends(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.heard_end() == FIN
        assert client.heard.startswith(b"HTTP/1.1 502 ")
        assert client.heard.endswith(b"\r\n\r\n")


def test_an_upload_to_nowhere_gets_its_answer(arca: Carrier) -> None:
    with arca.dial(arca.nowhere) as client:
        client.sends(PUT[:-2].replace(b"100", b"5000000") + b"\r\n" + bytes(5_000_000))
        client.heard_end()
        assert client.heard.startswith(b"HTTP/1.1 502 ")
        assert client.heard.endswith(b"refused\n")


def test_a_client_that_ended_its_side_is_told_too(arca: Carrier) -> None:
    with arca.dial(arca.nowhere) as client:
        client.sends(GET)
        client.ends()
        assert client.heard_end() == FIN
        assert client.heard.startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize("first", [b"\xffhello", b"\x16\x03\x01\x00\x05\x01", b"hello, who is there?\r\n"])
def test_what_is_not_http_is_reset_when_nothing_listens(arca: Carrier, first: bytes) -> None:
    with arca.dial(arca.nowhere) as client:
        client.sends(first)
        assert client.heard_end() == RST
        assert not client.heard
    (exchange,) = arca.exchanges(client)
    assert verdict(exchange) == ("infrastructure", "connect_refused")
    assert exchange["protocol"] in ("tcp", "tls")


def test_a_silent_client_is_reset_after_a_second_when_nothing_listens(arca: Carrier) -> None:
    with arca.dial(arca.nowhere) as client:
        began = time.monotonic()
        assert client.heard_end() == RST
        assert 0.7 < time.monotonic() - began < PATIENCE
    (exchange,) = arca.exchanges(client)
    assert verdict(exchange) == ("infrastructure", "connect_refused")


def test_a_silent_client_that_ends_is_reset_when_nothing_listens(arca: Carrier) -> None:
    with arca.dial(arca.nowhere) as client:
        time.sleep(0.1)
        client.ends()
        assert client.heard_end() == RST


def test_a_client_that_is_gone_before_the_dial_failed_leaves_nothing(arca: Carrier) -> None:
    for n in range(30):
        client = arca.dial(arca.nowhere)
        if n % 3:
            client.sends(GET if n % 2 else b"\xff")
        end(client, RST if n % 5 else FIN)


@pytest.fixture(scope="module")
def unreachable(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    """ARCA on the client's host; there is no way to 192.0.2.1, and the server drops what goes to port 9."""
    client, server = network["client"], network["server"]
    client.run("ip", "route", "add", "unreachable", "192.0.2.0/24")
    client.run("ip", "route", "add", "prohibit", "198.51.100.0/24")
    for tool in ("iptables", "ip6tables"):
        server.run(tool, "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP")
    forward = [
        f"--forward=127.0.0.1:{port}={target}"
        for port, target in (
            (7001, "192.0.2.1:80"),
            (7002, "198.51.100.1:80"),
            (7003, f"{server.ipv4}:9"),
            (7004, f"[{server.ipv6}]:9"),
            (7005, f"[{server.ipv6}]:10"),
        )
    ]
    settings = "workers = 1\n[limits]\nconnect_timeout_seconds = 0.7\n"
    with Inside(client, tmp_path_factory.mktemp("inside"), settings, *forward) as arca:
        yield arca.wait_ready()


@pytest.mark.usefixtures("iptables_work")
@pytest.mark.parametrize(
    ("port", "status", "cause"),
    [
        (7001, 502, "unreachable"),
        (7002, 502, "unreachable"),
        (7003, 504, "connect_timeout"),
        (7004, 504, "connect_timeout"),
        (7005, 502, "connect_refused"),
    ],
)
def test_http_is_told_why_there_is_no_upstream(
    unreachable: Inside, port: int, status: int, cause: str
) -> None:
    with unreachable.namespace.inside(), dialed("127.0.0.1", port) as client:
        client.sends(GET)
        assert client.heard_end() == FIN
        assert client.heard.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nx-arca-cause: %b\r\n" % cause.encode() in client.heard
    until(lambda: any(row["client"] == client.name for row in logged(unreachable)))
    (exchange,) = (row for row in logged(unreachable) if row["client"] == client.name)
    assert verdict(exchange) == ("infrastructure", cause)
    with unreachable.namespace.inside(), dialed("127.0.0.1", port) as client:
        client.sends(b"\xff")
        assert client.heard_end() == RST


def logged(arca: Inside) -> list[dict[str, object]]:
    return arca.exchanges_so_far()


# ---- an end at each point of an exchange

# What was said before, then who went away and how; the verdicts of all exchanges of the connection.
POINTS = [
    ("nothing was said", b"", b"", "client", FIN, [OK_VERDICT]),
    ("nothing was said", b"", b"", "client", RST, [CANCELED]),
    ("mid-head", GET[:20], None, "client", FIN, [CANCELED]),
    ("mid-head", GET[:20], None, "client", RST, [CANCELED]),
    ("after the head", GET, b"", "client", FIN, [CANCELED]),
    ("after the head", GET, b"", "client", RST, [CANCELED]),
    ("mid-body", PUT + b"half", b"", "client", FIN, [CANCELED]),
    ("mid-body", PUT + b"half", b"", "client", RST, [CANCELED]),
    ("mid-response", GET, LONG + b"half", "client", FIN, [CANCELED]),
    ("mid-response", GET, LONG + b"half", "client", RST, [CANCELED]),
    ("between requests", GET, OK, "client", FIN, [OK_VERDICT]),
    ("between requests", GET, OK, "client", RST, [OK_VERDICT]),
    ("mid-head of the second", GET + GET[:20], OK, "client", RST, [OK_VERDICT, CANCELED]),
    ("two in flight", GET + GET, b"", "client", RST, [CANCELED, CANCELED]),
    ("nothing was said", b"", b"", "server", FIN, [OK_VERDICT]),
    ("nothing was said", b"", b"", "server", RST, [RESET]),
    ("after the head", GET, b"", "server", FIN, [CLOSED_EARLY]),
    ("after the head", GET, b"", "server", RST, [RESET]),
    ("mid-body", PUT + b"half", b"", "server", FIN, [CLOSED_EARLY]),
    ("mid-body", PUT + b"half", b"", "server", RST, [RESET]),
    ("mid-head of the response", GET, LONG[:20], "server", FIN, [CLOSED_EARLY]),
    ("mid-head of the response", GET, LONG[:20], "server", RST, [RESET]),
    ("mid-response", GET, LONG + b"half", "server", FIN, [CLOSED_EARLY]),
    ("mid-response", GET, LONG + b"half", "server", RST, [RESET]),
    (
        "mid-chunk",
        GET,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        "server",
        FIN,
        [CLOSED_EARLY],
    ),
    ("a body until the end", GET, b"HTTP/1.1 200 OK\r\n\r\nall", "server", FIN, [OK_VERDICT]),
    ("a body until the end", GET, b"HTTP/1.1 200 OK\r\n\r\nall", "server", RST, [RESET]),
    ("between requests", GET, OK, "server", FIN, [OK_VERDICT]),
    ("between requests", GET, OK, "server", RST, [OK_VERDICT]),
    ("one answered of two", GET + GET, OK, "server", FIN, [OK_VERDICT, CLOSED_EARLY]),
    ("one answered of two", GET + GET, OK, "server", RST, [OK_VERDICT, RESET]),
    ("opaque", b"\xffask", b"\xfeanswer", "client", FIN, [OK_VERDICT]),
    ("opaque", b"\xffask", b"\xfeanswer", "client", RST, [CANCELED]),
    ("opaque", b"\xffask", b"\xfeanswer", "server", FIN, [OK_VERDICT]),
    ("opaque", b"\xffask", b"\xfeanswer", "server", RST, [RESET]),
]


@pytest.mark.parametrize(
    ("asked", "answered", "who", "how", "verdicts"),
    [pytest.param(*point[1:], id=f"{point[3]} {point[4]}: {point[0]}") for point in POINTS],
)
def test_who_went_away_in_the_middle_is_told(
    arca: Carrier, asked: bytes, answered: bytes | None, who: str, how: str, verdicts: list[object]
) -> None:
    client, server = arca.connect()
    client.sends(asked)
    if answered is None:
        time.sleep(0.1)  # held back until it is a head
    else:
        complete = asked[: asked.rfind(b"\r\n\r\n") + 4] if asked.endswith(GET[:20]) else asked
        server.hears(complete)
        server.sends(answered)
        if answered == LONG[:20]:
            time.sleep(0.05)  # held back until it is a head
        else:
            client.hears(answered)
    one, other = (client, server) if who == "client" else (server, client)
    end(one, how)
    assert other.heard_end() == how
    other.closes()
    found = [verdict(exchange) for exchange in arca.exchanges(client, len(verdicts))]
    assert found == verdicts
    arca.assert_nothing_is_left()
    assert len(arca.exchanges(client, len(verdicts))) == len(verdicts)


def test_a_server_that_goes_away_while_the_head_arrives_has_closed_early(arca: Carrier) -> None:
    client, server = arca.connect()
    client.sends(GET[:20])
    time.sleep(0.1)
    server.closes()
    assert client.heard_end() == FIN
    client.closes()
    (exchange,) = arca.exchanges(client)
    assert verdict(exchange) == CLOSED_EARLY


def test_a_client_that_hangs_up_on_a_server_that_answers_is_canceled(arca: Carrier) -> None:
    """Closed, not half-closed: the answer meets a reset."""
    client, server = arca.connect()
    client.sends(GET)
    server.hears(GET)
    client.closes()
    assert server.heard_end() == FIN
    server.sends(LONG + bytes(100))
    assert server.is_told_of_a_reset() or server.ended == FIN
    server.closes()
    (exchange,) = arca.exchanges(client)
    assert verdict(exchange) in (OK_VERDICT, CANCELED)  # the kernel had taken the answer, or not


def test_connections_that_end_at_any_moment_leave_nothing(tmp_path: Path) -> None:
    """A thousand clients that go away as soon as they can, and a server that does so as often."""
    firsts = (b"", GET, b"\xff", GET[:9], b"GE")
    endings: list[Callable[[Peer], None]] = [Peer.closes, Peer.resets, finish]
    turn = itertools.count()
    with Carrier(tmp_path) as arca:
        arca.stage.serve(lambda server: endings[next(turn) % 3](server))
        for n in range(1000):
            with contextlib.suppress(OSError), arca.dial() as client:
                client.sends(firsts[n % 5])
                endings[n // 7 % 3](client)
        arca.assert_nothing_is_left()


def finish(peer: Peer) -> None:
    peer.ends()
    peer.heard_end()


def test_bytes_that_wait_for_the_dial_are_delivered_when_both_ends_close_at_once(tmp_path: Path) -> None:
    """The server's FIN can be read before the dial is told: what the client said meanwhile is still to go."""
    heard: list[bytes] = []

    def half_close_and_hear(server: Peer) -> None:
        server.ends()
        server.heard_end()
        heard.append(bytes(server.heard))

    with Carrier(tmp_path) as arca:
        arca.stage.serve(half_close_and_hear)
        for _ in range(40):
            with arca.dial() as client:
                client.sends(b"\xffpayload")
                client.ends()
                client.heard_end()
        until(lambda: len(heard) == 40)
        assert heard == [b"\xffpayload"] * 40
        arca.assert_nothing_is_left()


def test_what_was_said_before_both_ends_close_is_delivered(arca: Carrier) -> None:
    def play(client: Peer, server: Peer) -> None:
        client.sends(b"\xff" + bytes(20_000))
        client.ends()
        server.sends(bytes(20_000))
        server.ends()
        assert server.heard_end() == FIN
        assert client.heard_end() == FIN

    seen = assert_both_ends_observe_the_same(arca, play)
    assert seen == Observed(bytes(20_000), FIN, b"\xff" + bytes(20_000), FIN)


def test_an_unused_port_is_refused_to_every_client_alike(tmp_path: Path) -> None:
    """Many at once, each with an answer of its own."""
    with Carrier(tmp_path) as arca:
        clients = [arca.dial(arca.nowhere) for _ in range(50)]
        for client in clients:
            client.sends(GET)
        for client in clients:
            assert client.heard_end() == FIN
            assert client.heard.startswith(b"HTTP/1.1 502 ")
            client.closes()
        arca.assert_nothing_is_left()
        assert free_port()

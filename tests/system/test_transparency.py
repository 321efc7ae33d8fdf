"""Neither end can tell that ARCA is between them, but for the lines it adds.

The list is linkerd2-proxy's (linkerd/app/integration/src/tests/transparency.rs) and transparency.md's. Each
conversation is held twice, directly and through ARCA, and what the two ends heard must be the same.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.arca import (
    FIN,
    RST,
    Carrier,
    Peer,
    assert_both_ends_observe_the_same,
    dialed,
    verdict,
    without_added,
)
from tests.system.processes import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@pytest.fixture(scope="module")
def carrier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Carrier]:
    with Carrier(tmp_path_factory.mktemp("arca")) as made:
        yield made


@pytest.fixture
def arca(carrier: Carrier) -> Iterator[Carrier]:
    yield carrier
    carrier.assert_nothing_is_left()


# ---- bytes that nobody reads


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"220 mail ESMTP\r\n", b"\x0a\x00\x01"])
def test_a_server_that_speaks_first_is_heard_at_once(arca: Carrier, greeting: bytes) -> None:
    def play(client: Peer, server: Peer) -> None:
        server.sends(greeting)
        client.hears(greeting)
        client.sends(b"HELO me\r\n")
        server.hears(b"HELO me\r\n")
        server.sends(b"250 you\r\n")
        client.hears(b"250 you\r\n")
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


@pytest.mark.parametrize(
    "first",
    [
        b"\x00\x01\x02\xff" * 3,
        b"EHLO me\r\n",
        b"hello there",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",  # begins as a ClientHello does
        b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    ],
)
def test_a_protocol_that_is_not_known_passes_untouched(arca: Carrier, first: bytes) -> None:
    def play(client: Peer, server: Peer) -> None:
        client.sends(first)
        server.hears(first)
        server.sends(first[::-1])
        client.hears(first[::-1])
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


def test_a_byte_that_can_be_nothing_known_is_not_held_back(arca: Carrier) -> None:
    def play(client: Peer, server: Peer) -> None:
        for byte in (b"\xff", b"G", b"E", b"T"):
            client.sends(byte)
            server.hears(byte)
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


def test_bytes_held_back_go_on_when_the_server_speaks_first(arca: Carrier) -> None:
    client, server = arca.connect()
    with client, server:
        client.sends(b"GE")
        assert server.is_silent()
        server.sends(b"hello")
        client.hears(b"hello")
        server.hears(b"GE")


def test_bytes_held_back_go_on_when_the_client_ends(arca: Carrier) -> None:
    def play(client: Peer, server: Peer) -> None:
        client.sends(b"GE")
        client.ends()
        server.hears(b"GE")
        assert server.heard_end() == FIN
        server.sends(b"what?")
        client.hears(b"what?")
        server.closes()

    assert_both_ends_observe_the_same(arca, play)


def test_an_opaque_connection_is_one_exchange_from_open_to_close(arca: Carrier) -> None:
    client, server = arca.connect()
    client.sends(b"\x01\x02\x03")
    server.hears(b"\x01\x02\x03")
    server.sends(b"\x04\x05")
    client.hears(b"\x04\x05")
    client.closes()
    assert server.heard_end() == FIN
    server.closes()
    (exchange,) = arca.exchanges(client)
    assert exchange["protocol"] == "tcp"
    assert (exchange["request_bytes"], exchange["response_bytes"]) == (3, 2)
    assert exchange["server"] == arca.server
    assert verdict(exchange) == ("ok", None)


# ---- ends in order


@pytest.mark.parametrize("request_", [b"\xffquestion", GET, b"GET / HTTP/1.0\r\n\r\n"])
def test_a_client_that_ends_its_side_still_reads_the_answer(arca: Carrier, request_: bytes) -> None:
    def play(client: Peer, server: Peer) -> None:
        client.sends(request_)
        client.ends()
        server.hears(request_)
        assert server.heard_end() == FIN
        server.sends(OK)
        client.hears(OK)
        server.closes()

    assert_both_ends_observe_the_same(arca, play)


def test_a_server_that_ends_its_side_still_hears_the_client(arca: Carrier) -> None:
    def play(client: Peer, server: Peer) -> None:
        server.sends(b"greeting")
        server.ends()
        client.hears(b"greeting")
        assert client.heard_end() == FIN
        for _ in range(3):
            client.sends(b"still here")
            server.hears(b"still here")
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


def test_a_server_that_ends_after_its_answer_still_hears_the_rest_of_the_request(arca: Carrier) -> None:
    def play(client: Peer, server: Peer) -> None:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n"
        client.sends(head + b"abc")
        server.hears(head + b"abc")
        server.sends(OK)
        server.ends()
        client.hears(OK)
        assert client.heard_end() == FIN
        client.sends(b"def")
        server.hears(b"def")
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_connection_closed_after_the_answer_is_closed_to_the_client(arca: Carrier, version: bytes) -> None:
    def play(client: Peer, server: Peer) -> None:
        client.sends(GET)
        server.hears(GET)
        answer = b"HTTP/%b 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi" % version
        server.sends(answer)
        server.closes()
        client.hears(answer)
        assert client.heard_end() == FIN
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


def test_a_body_that_ends_with_the_connection(arca: Carrier) -> None:
    def play(client: Peer, server: Peer) -> None:
        client.sends(GET)
        server.hears(GET)
        answer = b"HTTP/1.0 200 OK\r\n\r\n" + b"line\n" * 1000
        server.sends(answer)
        server.closes()
        client.hears(answer)
        assert client.heard_end() == FIN
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


def test_an_idle_keep_alive_connection_closed_by_the_server_is_no_error_and_no_exchange(
    arca: Carrier,
) -> None:
    client, server = arca.connect()
    client.sends(GET)
    server.hears(GET)
    server.sends(OK)
    client.hears(OK)
    server.closes()
    assert client.heard_end() == FIN
    client.closes()
    (exchange,) = arca.exchanges(client)
    assert verdict(exchange) == ("ok", None)
    arca.assert_nothing_is_left()
    assert len(arca.exchanges(client)) == 1


def test_a_keep_alive_connection_carries_request_after_request(arca: Carrier) -> None:
    def play(client: Peer, server: Peer) -> None:
        for n in range(50):
            request = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n
            client.sends(request)
            server.hears(request)
            server.sends(OK)
            client.hears(OK)
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


# ---- HTTP/1 as it came


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        pytest.param(
            b"GET /a HTTP/1.0\r\nUser-Agent: old\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            id="http_1_0",
        ),
        pytest.param(
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
            id="http_1_0_keep_alive",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nhOsT: a\r\nX-UPPER:  two  spaces \r\nx-empty:\r\nAccept: */*\r\naccept: b\r\n"
            b"\r\n",
            b"HTTP/1.1 200 Fine By Me\r\nsErVeR: x\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\n"
            b"content-length: 0\r\n\r\n",
            id="case_order_and_white_space",
        ),
        pytest.param(
            b"GET http://example.com/path HTTP/1.1\r\nHost: example.com\r\n\r\n", OK, id="absolute_form"
        ),
        pytest.param(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", OK, id="asterisk_form"),
        pytest.param(
            b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
            id="head",
        ),
        pytest.param(GET, b"HTTP/1.1 204 No Content\r\n\r\n", id="204"),
        pytest.param(GET, b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 99\r\n\r\n', id="304"),
        pytest.param(
            GET,
            b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
            b"HTTP/1.1 102 Processing\r\n\r\n" + OK,
            id="interim_responses_in_their_order",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'5;name="va;lue";x\r\nhello\r\n0005\r\nworld\r\nA\r\n0123456789\r\n0;last\r\n'
            b"X-Checksum: 9\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"1\r\na\r\n02\r\nbc\r\n0\r\nX-Sum: 3\r\nx-other: y\r\n\r\n",
            id="chunks_extensions_and_trailers",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
            id="empty_bodies",
        ),
        pytest.param(
            b"BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 0\r\n\r\n",
            id="a_method_of_its_own",
        ),
    ],
)
def test_a_message_passes_byte_for_byte(arca: Carrier, request_: bytes, answer: bytes) -> None:
    def play(client: Peer, server: Peer) -> None:
        client.sends(request_)
        server.hears(request_)
        server.sends(answer)
        client.hears(answer)
        # The connection is still good: both engines agree with both ends where the messages end.
        client.sends(GET)
        server.hears(GET)
        server.sends(OK)
        client.hears(OK)
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


def test_a_message_one_byte_at_a_time(arca: Carrier) -> None:
    def play(client: Peer, server: Peer) -> None:
        request = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
        for byte in request:
            client.sends(bytes((byte,)))
        server.hears(request)
        for byte in answer:
            server.sends(bytes((byte,)))
        client.hears(answer)
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


def test_expect_100_continue_reaches_the_server_before_the_body(arca: Carrier) -> None:
    def play(client: Peer, server: Peer) -> None:
        head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        client.sends(head)
        server.hears(head)
        server.sends(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.hears(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.sends(b"body")
        server.hears(b"body")
        server.sends(OK)
        client.hears(OK)
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


def test_an_expectation_that_is_declined_never_sends_its_body(arca: Carrier) -> None:
    def play(client: Peer, server: Peer) -> None:
        head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        client.sends(head)
        server.hears(head)
        answer = b"HTTP/1.1 417 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        server.sends(answer)
        server.ends()
        client.hears(answer)
        assert client.heard_end() == FIN
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


@pytest.mark.parametrize(
    ("request_", "answer", "protocol"),
    [
        (
            b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "websocket",
        ),
        (
            b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n",
            b"HTTP/1.1 200 Connection established\r\n\r\n",
            "tcp",
        ),
    ],
)
def test_what_is_granted_to_become_something_else_is_carried_raw(
    arca: Carrier, request_: bytes, answer: bytes, protocol: str
) -> None:
    def play(client: Peer, server: Peer) -> None:
        client.sends(request_)
        server.hears(request_)
        server.sends(answer + b"\x81\x05first")
        client.hears(answer + b"\x81\x05first")
        for data in (b"\x81\x85mask", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100):
            client.sends(data)
            server.hears(data)
            server.sends(data)
            client.hears(data)
        client.ends()
        assert server.heard_end() == FIN
        server.sends(b"\x88\x00")
        client.hears(b"\x88\x00")
        server.closes()

    assert_both_ends_observe_the_same(arca, play)
    until(lambda: arca.logged()[-1]["protocol"] == protocol)


def test_an_upgrade_that_is_declined_stays_http(arca: Carrier) -> None:
    def play(client: Peer, server: Peer) -> None:
        request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        client.sends(request)
        server.hears(request)
        server.sends(OK)
        client.hears(OK)
        client.sends(GET)
        server.hears(GET)
        server.sends(OK)
        client.hears(OK)
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


def test_200_pipelined_requests_are_answered_in_order(arca: Carrier) -> None:
    requests = [b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(200)]
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%d" % (len(str(n)), n) for n in range(200)]

    def play(client: Peer, server: Peer) -> None:
        client.sends(b"".join(requests))
        for request, answer in zip(requests, answers, strict=True):
            server.hears(request)
            server.sends(answer)
        client.hears(b"".join(answers))
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


def test_200_pipelined_requests_are_answered_although_the_client_has_ended_its_side(arca: Carrier) -> None:
    requests = [b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(200)]

    def play(client: Peer, server: Peer) -> None:
        client.sends(b"".join(requests))
        client.ends()
        for request in requests:
            server.hears(request)
            server.sends(OK)
        client.hears(OK * 200)
        assert server.heard_end() == FIN
        server.closes()

    assert_both_ends_observe_the_same(arca, play)


# ---- bodies


def body_of(size: int) -> bytes:
    return (hashlib.sha256(b"%d" % size).digest() * (size // 32 + 1))[:size]


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 10 * 1024 * 1024])
@pytest.mark.parametrize("slowly", [False, True], ids=["reader", "slow_reader"])
def test_a_body_passes_byte_for_byte_both_ways(arca: Carrier, size: int, slowly: bool) -> None:
    body = body_of(size)
    client, server = arca.connect()
    with client, server, concurrent.futures.ThreadPoolExecutor(2) as threads:
        head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
        sent = threads.submit(client.sends, head + body)
        assert without_added(server.hears_head()) == head
        early = bytes(server.heard[server.heard.index(b"\r\n\r\n") + 4 :])
        assert early + server.hears_exactly(size - len(early), slowly) == body
        sent.result()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
        sent = threads.submit(server.sends, answer + body)
        assert without_added(client.hears_head()) == answer
        early = bytes(client.heard[client.heard.index(b"\r\n\r\n") + 4 :])
        assert early + client.hears_exactly(size - len(early), slowly) == body
        sent.result()
    (exchange,) = arca.exchanges(client)
    assert exchange["request_bytes"] == len(head) + size
    assert exchange["response_bytes"] == len(answer) + size


def test_20_uploads_and_downloads_of_10_mb_at_once_take_little_memory(arca: Carrier) -> None:
    size = 10 * 1024 * 1024
    body = body_of(size)

    def echo(server: Peer) -> None:
        server.hears_head()
        early = bytes(server.heard[server.heard.index(b"\r\n\r\n") + 4 :])
        server.sends(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + early)
        left = size - len(early)
        while left:
            data = server.socket.recv(1 << 16)
            assert data
            server.sends(data)
            left -= len(data)

    def exchange(slowly: bool) -> bytes:
        client, server = pairs.pop()
        serving = threads.submit(echo, server)
        with client, server:
            head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
            sending = threads.submit(client.sends, head + body)
            client.hears_head()
            early = bytes(client.heard[client.heard.index(b"\r\n\r\n") + 4 :])
            heard = early + client.hears_exactly(size - len(early), slowly)
            serving.result()
            sending.result()
            return heard

    pairs = [arca.connect() for _ in range(20)]
    before = most = arca.resident()
    with (
        concurrent.futures.ThreadPoolExecutor(40) as threads,
        concurrent.futures.ThreadPoolExecutor(20) as clients,
    ):
        running = [clients.submit(exchange, n % 2 == 0) for n in range(20)]
        while concurrent.futures.wait(running, 0.05).not_done:
            most = max(most, arca.resident())
        assert all(each.result() == body for each in running)
    assert most - before < 40 * 1024 * 1024


def test_a_reader_that_stops_stops_the_sender(arca: Carrier) -> None:
    client, server = arca.connect()
    with client, server:
        before = arca.resident()
        client.sends(b"\xff")
        server.hears(b"\xff")
        up, down = client.fills(), server.fills()
        assert arca.resident() - before < 4 * 1024 * 1024
        # The rest is in the kernel's four socket buffers.
        assert max(up, down) < 64 * 1024 * 1024
        assert server.hears_exactly(up) == bytes(up)
        assert client.hears_exactly(down) == bytes(down)
        client.sends(b"and on")
        server.hears(b"and on")


# ---- ids


def test_ids_that_are_there_are_kept_and_the_trace_goes_on(arca: Carrier) -> None:
    trace = b"0af7651916cd43dd8448eb211c80319c"
    client, server = arca.connect()
    with client, server:
        client.sends(
            b"GET / HTTP/1.1\r\nHost: a\r\nx-request-id: mine/42\r\n"
            b"traceparent: 00-" + trace + b"-b7ad6b7169203331-01\r\ntracestate: a=1,b=2\r\n\r\n"
        )
        head = server.hears_head()
        assert b"\r\nx-request-id: mine/42\r\n" in head
        assert head.lower().count(b"request-id") == 1
        assert b"\r\ntraceparent: 00-" + trace + b"-" in head
        assert head.count(b"traceparent") == 1
        assert b"\r\ntracestate: a=1,b=2\r\n" in head
        server.sends(OK)
        assert b"\r\nX-Request-ID: mine/42\r\n" in client.hears_head()
    (exchange,) = arca.exchanges(client)
    assert exchange["request_id"] == "mine/42"
    assert exchange["trace_id"] == trace.decode()
    assert exchange["parent_id"] == "b7ad6b7169203331"


def test_ids_that_are_absent_are_made_once_and_given_back(arca: Carrier) -> None:
    client, server = arca.connect()
    with client, server:
        client.sends(GET)
        head = server.hears_head()
        assert without_added(head) == GET
        assert head.count(b"\r\nX-Request-ID: ") == head.count(b"\r\ntraceparent: ") == 1
        server.sends(OK)
        answer = client.hears_head()
        made = head.partition(b"X-Request-ID: ")[2].partition(b"\r\n")[0]
        assert b"\r\nX-Request-ID: " + made + b"\r\n" in answer
    (exchange,) = arca.exchanges(client)
    assert exchange["request_id"] == made.decode()
    assert f"traceparent: 00-{exchange['trace_id']}-".encode() in head


def test_an_id_that_the_server_gives_is_not_given_twice(arca: Carrier) -> None:
    def play(client: Peer, server: Peer) -> None:
        client.sends(GET)
        server.hears(GET)
        answer = b"HTTP/1.1 200 OK\r\nx-request-id: theirs\r\nContent-Length: 0\r\n\r\n"
        server.sends(answer)
        client.hears(answer)
        client.closes()

    assert_both_ends_observe_the_same(arca, play)


# ---- what was said before there was an upstream


def test_what_a_client_sends_and_ends_at_once_arrives_in_order(arca: Carrier) -> None:
    body = body_of(300_000)
    for _ in range(20):
        with arca.dial() as client:
            client.sends(b"\xff" + body)
            client.ends()
            with arca.stage.accept() as server:
                assert server.hears_exactly(1 + len(body)) == b"\xff" + body
                assert server.heard_end() == FIN
                server.sends(b"thanks")
            client.hears(b"thanks")
            assert client.heard_end() == FIN


def test_a_server_that_accepts_and_closes_at_once(arca: Carrier) -> None:
    for _ in range(20):
        with arca.dial() as client:
            arca.stage.accept().closes()
            assert client.heard_end() == FIN


def test_a_server_that_accepts_and_resets_at_once(arca: Carrier) -> None:
    for n in range(20):
        with arca.dial() as client:
            if n % 2:
                client.sends(b"\xff")
            arca.stage.accept().resets()
            assert client.heard_end() == RST


# ---- real clients and servers


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an nginx with one file of 10 MB, an echo of one header, and uploads."""
    if shutil.which("nginx") is None:
        pytest.skip("needs the program nginx")
    directory = tmp_path_factory.mktemp("nginx")
    port = free_port()
    (directory / "index.html").write_text("hello\n")
    (directory / "large").write_bytes(body_of(10 * 1024 * 1024))
    (directory / "nginx.conf").write_text(
        f"""
        daemon off; pid {directory}/pid; error_log {directory}/error.log; worker_processes 1; user root;
        events {{ worker_connections 512; }}
        http {{
            access_log off; client_body_temp_path {directory}/body; client_max_body_size 20m;
            server {{
                listen 127.0.0.1:{port}; root {directory};
                location = /teapot {{ return 418 "short\\n"; }}
                location = /put/ {{ dav_methods PUT; create_full_put_path on; }}
                location /put/ {{ dav_methods PUT; create_full_put_path on; }}
                location = /limited {{ client_max_body_size 1k; dav_methods PUT; }}
            }}
        }}
        """
    )
    process = subprocess.Popen(
        ["nginx", "-c", str(directory / "nginx.conf"), "-e", str(directory / "error.log")],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: answers(port))
        yield port
    finally:
        process.terminate()
        process.wait()


def answers(port: int) -> bool:
    try:
        dialed("127.0.0.1", port).closes()
    except ConnectionRefusedError:
        return False
    return True


def curl(*arguments: str) -> bytes:
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "20", *arguments],
        capture_output=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout


@pytest.fixture(scope="module")
def before_nginx(nginx: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Carrier, int]]:
    """An ARCA before it, and the port of that."""
    port = free_port()
    forward = f"127.0.0.1:{port}=127.0.0.1:{nginx}"
    with Carrier(tmp_path_factory.mktemp("before"), "", "--forward", forward) as arca:
        yield arca, port


@pytest.mark.parametrize(
    "arguments",
    [
        ["/"],
        ["--http1.0", "/"],
        ["-I", "/"],
        ["/missing"],
        ["/teapot", "/", "/teapot"],
        ["-H", "Range: bytes=5-10", "/large"],
        ["--compressed", "/large"],
        ["-T", "{large}", "-H", "Expect: 100-continue", "/put/a"],
        ["-T", "{large}", "-H", "Transfer-Encoding: chunked", "/put/b"],
        ["-T", "{large}", "-H", "Expect:", "/limited"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_curl_and_nginx_notice_nothing(
    before_nginx: tuple[Carrier, int], nginx: int, arguments: list[str], tmp_path: Path
) -> None:
    arca, through = before_nginx
    large = tmp_path / "large"
    large.write_bytes(body_of(10 * 1024 * 1024))

    def fetched(port: int) -> bytes:
        given = [
            f"http://127.0.0.1:{port}{each}" if each.startswith("/") else each.format(large=large)
            for each in arguments
        ]
        # A refused upload ends the connection under curl's hands; both exit statuses are as good.
        done = subprocess.run(
            ["curl", "-s", "-i", "--max-time", "20", *given],
            capture_output=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return b"\n".join(
            line for line in done.stdout.split(b"\n") if not line.startswith((b"Date: ", b"X-Request-ID: "))
        ).replace(str(port).encode(), b"PORT")

    fetched(nginx)  # a second PUT is answered otherwise than the first
    direct = fetched(nginx)
    assert direct
    assert fetched(through) == direct
    arca.assert_nothing_is_left()


def test_many_curls_at_once_get_each_their_own(before_nginx: tuple[Carrier, int]) -> None:
    arca, port = before_nginx
    expected = hashlib.sha256(body_of(10 * 1024 * 1024)).digest()
    lock = threading.Semaphore(8)

    def one(_: int) -> bytes:
        with lock:
            return hashlib.sha256(curl(f"http://127.0.0.1:{port}/large")).digest()

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert set(threads.map(one, range(24))) == {expected}
    arca.assert_nothing_is_left()

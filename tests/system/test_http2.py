"""HTTP/2 between real ends: frames pass one to one, every stream is an exchange, and the limits hold.

Where frames matter, both ends are sockets of the test, and each conversation is held twice, directly and
through ARCA: what the two ends saw must be the same. Where the ends matter, they are curl, nghttp, h2load,
nghttpd and nginx.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.arca import FIN, RST, Carrier, Peer, Stage, dialed, verdict
from tests.system.http2_peers import (
    ACK,
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GET,
    GOAWAY,
    HEADERS,
    INDEXED,
    NEVER,
    OK,
    PADDED,
    PING,
    POST,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    UNINDEXED,
    UNSAMPLED_TRACES,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    Fields,
    Frame,
    Front,
    Head,
    Http2Peer,
    Library,
    Program,
    begin,
    counted,
    data,
    ends,
    exchanges_since,
    frame,
    goaway,
    literal,
    observed,
    passes,
    reset,
    settings,
    window,
)
from tests.system.processes import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OK_VERDICT = ("ok", None)
CANCELED = ("client", "canceled")
ABORTED = ("application", "aborted")
CLOSED_EARLY = ("application", "closed_early")
RESET = ("infrastructure", "reset")

TRACE = b"0af7651916cd43dd8448eb211c80319c"
PARENT = b"b7ad6b7169203331"
SAMPLED = b"00-" + TRACE + b"-" + PARENT + b"-01"
UNSAMPLED = b"00-" + TRACE + b"-" + PARENT + b"-00"


@pytest.fixture(scope="module")
def carrier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Carrier]:
    with Carrier(tmp_path_factory.mktemp("arca"), UNSAMPLED_TRACES) as made:
        yield made


@pytest.fixture
def arca(carrier: Carrier) -> Iterator[Carrier]:
    yield carrier
    carrier.assert_nothing_is_left()


def both(arca: Carrier, play: Callable[[Http2Peer, Http2Peer], None]) -> None:
    """The conversation directly and through ARCA: neither end can tell which."""
    direct = observed(play, *ends(arca.stage.connect()))
    assert observed(play, *ends(arca.connect())) == direct


def ask(client: Http2Peer, server: Http2Peer, stream: int = 1, fields: Fields = GET) -> Head:
    """A request without a body, and what the server sees of it."""
    client.sends(client.head(stream, fields, END_STREAM))
    return server.takes_head(stream)


def answer(server: Http2Peer, client: Http2Peer, stream: int = 1, fields: Fields = OK) -> Head:
    """A short answer, and the head that the client sees."""
    server.sends(server.head(stream, fields) + data(stream, b"hi", END_STREAM))
    head = client.takes_head(stream)
    client.takes(DATA, stream)
    return head


# ---- frames, one to one


def a_request_and_its_answer(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    ask(client, server)
    answer(server, client)


def everything_at_once(client: Http2Peer, server: Http2Peer) -> None:
    client.sends(PREFACE + settings() + client.head(1, GET, END_STREAM) + client.head(3, GET, END_STREAM))
    server.takes(SETTINGS)
    server.takes_head(1)
    server.takes_head(3)
    server.sends(settings() + SETTINGS_ACK + server.head(3, OK, END_STREAM) + server.head(1, OK, END_STREAM))
    client.takes(SETTINGS)
    client.takes(SETTINGS)
    client.takes_head(3)
    client.takes_head(1)


def one_byte_at_a_time(client: Http2Peer, server: Http2Peer) -> None:
    asked = PREFACE + settings((3, 100)) + client.head(1, POST) + data(1, b"body", END_STREAM)
    for byte in asked:
        client.sends(bytes((byte,)))
    server.takes(SETTINGS)
    server.takes_head(1)
    server.takes(DATA, 1)
    answered = settings() + SETTINGS_ACK + server.head(1, OK) + data(1, b"hi", END_STREAM)
    for byte in answered:
        server.sends(bytes((byte,)))
    for _ in range(4):
        client.next()


def settings_known_unknown_and_twice(client: Http2Peer, server: Http2Peer) -> None:
    begin(
        client,
        server,
        (1, 8192),
        (2, 0),
        (3, 7),
        (4, 12345),
        (5, 1 << 20),
        (6, 99),
        (8, 1),
        (0xF0F0, 1),
        (3, 8),
    )
    passes(server, client, settings((0x2A2A, 0xFFFFFFFF), (4, 1), (4, 65535), (3, 1)))
    passes(client, server, SETTINGS_ACK, settings((0xBEEF, 3)))
    passes(server, client, SETTINGS_ACK)


def the_server_speaks_first(client: Http2Peer, server: Http2Peer) -> None:
    server.sends(settings((3, 100), (4, 1 << 20)) + window(0, 1 << 20))
    client.takes(SETTINGS)
    client.takes(WINDOW_UPDATE)
    client.sends(PREFACE + settings() + SETTINGS_ACK)
    server.takes(SETTINGS)
    server.takes(SETTINGS)
    server.sends(SETTINGS_ACK)
    client.takes(SETTINGS)
    ask(client, server)
    answer(server, client)


def the_server_speaks_first_in_pieces(client: Http2Peer, server: Http2Peer) -> None:
    for byte in settings((3, 100)):
        server.sends(bytes((byte,)))
        time.sleep(0.002)
    client.takes(SETTINGS)
    client.sends(PREFACE + settings() + SETTINGS_ACK + client.head(1, GET, END_STREAM))
    server.takes(SETTINGS)
    server.takes(SETTINGS)
    server.takes_head(1)
    server.sends(SETTINGS_ACK)
    client.takes(SETTINGS)
    answer(server, client)


def pings_make_their_round_trip(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    for one, other in ((client, server), (server, client)):
        for n in range(20):
            passes(one, other, frame(PING, 0, 0, n.to_bytes(8)))
            passes(other, one, frame(PING, ACK, 0, n.to_bytes(8)))


def windows_are_updated(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    ask(client, server)
    passes(client, server, window(0, 1), window(1, 0x7FFF0000 >> 8))
    passes(server, client, window(0, 1 << 20), window(1, 5))
    answer(server, client)


def priorities(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    passes(client, server, frame(PRIORITY, 0, 3, b"\0\0\0\0\xc8"), frame(PRIORITY, 0, 5, b"\x80\0\0\x03\x01"))
    block = client.block(GET)
    flags = END_STREAM | END_HEADERS | WITH_PRIORITY
    passes(client, server, frame(HEADERS, flags, 7, b"\x80\0\0\x05\x0f" + block))
    answer(server, client, 7)


def padding(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    block = client.block(POST)
    flags = END_HEADERS | PADDED
    passes(client, server, frame(HEADERS, flags, 1, b"\x05" + block + bytes(5)))
    passes(client, server, data(1, b"\xffbody" + bytes(255), PADDED), data(1, b"\0", PADDED))
    passes(client, server, data(1, b"\x03end" + bytes(3), PADDED | END_STREAM))
    block = client.block(GET)
    flags = END_STREAM | END_HEADERS | WITH_PRIORITY | PADDED
    passes(client, server, frame(HEADERS, flags, 3, b"\0\0\0\0\x01\x07" + block))
    block = server.block(OK)
    passes(server, client, frame(HEADERS, END_HEADERS | PADDED, 1, b"\x64" + block + bytes(100)))
    passes(server, client, data(1, b"\x01hi\0", PADDED | END_STREAM))
    answer(server, client, 3)


def frames_and_flags_that_nobody_knows(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    passes(client, server, frame(0x0B, 0xFF, 0, b"grease"), frame(0xF1, 0, 0x80000000, b""))
    client.sends(client.head(1, POST) + frame(0xB7, 3, 1, bytes(1000)) + data(1, b"x", 0xF6))
    server.takes_head(1)
    server.takes(0xB7, 1)
    server.takes(DATA, 1)
    passes(client, server, frame(DATA, END_STREAM, 0x80000001, b"reserved bit"))
    passes(server, client, frame(0x0A, 0, 0, b"\0\x03a.bh2=:1"), frame(0x0C, 0, 0, b"\0\x08http://a"))
    passes(server, client, frame(0x10, 0, 0, b"\0\0\0\x01u=3"), frame(0xEE, 0x55, 1, b"?"))
    answer(server, client)


def a_head_in_many_pieces(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    block = client.block([*GET, (b"x-long", b"v" * 300)])
    last = len(block) - 1
    client.sends(
        frame(HEADERS, END_STREAM, 1, block[:1])
        + b"".join(frame(CONTINUATION, 0, 1, block[n : n + 1]) for n in range(1, last))
        + frame(CONTINUATION, END_HEADERS, 1, block[last:])
    )
    server.takes_head(1)
    block = server.block([*OK, (b"x-long", b"w" * 300)])
    server.sends(frame(HEADERS, 0, 1, block[:7]) + frame(CONTINUATION, END_HEADERS, 1, block[7:]))
    client.takes_head(1)
    trailer = server.block([(b"x-sum", b"1")])
    server.sends(frame(HEADERS, END_STREAM, 1, b"") + frame(CONTINUATION, END_HEADERS, 1, trailer))
    client.takes_head(1)


def a_head_as_large_as_a_frame(client: Http2Peer, server: Http2Peer) -> None:
    """What is added has no room in it and needs a frame of its own."""
    begin(client, server)
    fields = b"".join(literal(*field) for field in GET)
    spare = 16384 - len(fields) - len(literal(b"x-long", b"")) - 2
    block = fields + literal(b"x-long", b"v" * spare)
    assert len(block) == 16384
    passes(client, server, frame(HEADERS, END_STREAM | END_HEADERS, 1, block))
    passes(
        server,
        client,
        frame(
            HEADERS,
            END_STREAM | END_HEADERS,
            1,
            literal(b":status", b"200")
            + literal(
                b"x-long",
                b"w" * (16384 - len(literal(b":status", b"200")) - len(literal(b"x-long", b"")) - 2),
            ),
        ),
    )


def interim_responses_in_their_order(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    client.sends(client.head(1, [*POST, (b"expect", b"100-continue")]))
    server.takes_head(1)
    passes(server, client, server.head(1, [(b":status", b"103"), (b"link", b"</a.css>; rel=preload")]))
    passes(server, client, server.head(1, [(b":status", b"102")]))
    passes(server, client, server.head(1, [(b":status", b"100")]))
    passes(client, server, data(1, b"body", END_STREAM))
    answer(server, client)


def trailers_both_ways(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    passes(client, server, client.head(1, [*POST, (b"te", b"trailers")]), data(1, b"body"))
    passes(client, server, client.head(1, [(b"x-sum", b"9"), (b"X-odd".lower(), b"")], END_STREAM))
    passes(server, client, server.head(1, [*OK, (b"trailer", b"x-sum")]), data(1, b"hi"), data(1, b"ho"))
    passes(server, client, server.head(1, [(b"x-sum", b"3"), (b"x-sum", b"3")], END_STREAM))


def a_promise_and_what_was_promised(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    ask(client, server)
    block = server.block([*GET[:3], (b":path", b"/pushed.css")])
    flags = END_HEADERS | PADDED
    passes(server, client, frame(PUSH_PROMISE, flags, 1, b"\x03\0\0\0\x02" + block + bytes(3)))
    passes(server, client, server.head(1, OK), server.head(2, OK), data(2, b"a{}", END_STREAM))
    passes(server, client, data(1, b"hi", END_STREAM))
    passes(client, server, frame(PRIORITY, 0, 2, b"\0\0\0\x01\x10"))


def an_extended_connect(client: Http2Peer, server: Http2Peer) -> None:
    """RFC 8441: a WebSocket on a stream."""
    client.sends(PREFACE + settings())
    server.takes(SETTINGS)
    passes(server, client, settings((8, 1)), SETTINGS_ACK)
    passes(client, server, SETTINGS_ACK)
    fields = [
        (b":method", b"CONNECT"),
        (b":protocol", b"websocket"),
        *GET[1:],
        (b"sec-websocket-version", b"13"),
    ]
    passes(client, server, client.head(1, fields))
    passes(server, client, server.head(1, [(b":status", b"200")]))
    for n in range(5):
        passes(client, server, data(1, b"\x81\x85mask%d" % n))
        passes(server, client, data(1, b"\x81\x05hello%d" % n))
    passes(client, server, data(1, b"", END_STREAM))
    passes(server, client, data(1, b"\x88\0", END_STREAM))


def a_connect(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    passes(client, server, client.head(1, [(b":method", b"CONNECT"), (b":authority", b"db:5432")]))
    passes(server, client, server.head(1, [(b":status", b"200")]), data(1, b"\0\0\0\x08"))
    passes(client, server, data(1, b"select", END_STREAM))
    passes(server, client, data(1, b"1", END_STREAM))


def tables_that_change_their_size(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    known: Fields = [(b"x-a", b"1" * 40), (b"x-b", b"2" * 40), (b"x-c", b"3" * 40)]
    stream = 1
    for size in (4096, 0, 100, 4096):
        for end in (client, server):
            end.encoder.header_table_size = size
        for _ in range(3):
            ask(client, server, stream, GET + known)
            answer(server, client, stream, OK + known)
            stream += 2


def fields_of_every_representation(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    for stream in (1, 3, 5):
        block = client.block(GET) + b"".join(
            literal(b"x-%d-%d" % (n, stream // 4), b"v" * n * 10, how)
            for n in range(4)
            for how in (UNINDEXED, NEVER, UNINDEXED)
        )
        passes(client, server, frame(HEADERS, END_STREAM | END_HEADERS, stream, block))
        block = server.block(OK) + literal(b"set-cookie", b"a=b", NEVER) + literal(b"set-cookie", b"c=d")
        passes(server, client, frame(HEADERS, END_STREAM | END_HEADERS, stream, block))


def frames_of_a_megabyte(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server, (5, 0xFFFFFF), (4, 0x7FFFFFFF))
    passes(server, client, settings((5, 0xFFFFFF), (4, 0x7FFFFFFF)), window(0, 1 << 30))
    passes(client, server, SETTINGS_ACK, window(0, 1 << 30), client.head(1, POST))
    body = body_of(1 << 20)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        for one, other in ((client, server), (server, client)):
            if one is server:
                passes(server, client, server.head(1, OK))
            sent = thread.submit(one.sends, data(1, body) + data(1, body, END_STREAM))
            assert [other.takes(DATA, 1).payload for _ in range(2)] == [body, body]
            sent.result()


def the_client_ends_its_side_behind_the_request(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    ask(client, server)
    client.ends()
    assert server.rest() == FIN
    server.sends(server.head(1, OK) + data(1, b"hi", END_STREAM))
    server.closes()
    client.takes_head(1)
    client.takes(DATA, 1)


def the_server_says_goodbye(client: Http2Peer, server: Http2Peer) -> None:
    """GOAWAY twice, as RFC 9113 section 6.8 has it, and the request that was on its way is still answered."""
    begin(client, server)
    ask(client, server)
    passes(server, client, goaway(0x7FFFFFFF))
    ask(client, server, 3)
    passes(server, client, goaway(3, 0, b"debug data \x00\xff"))
    answer(server, client, 1)
    answer(server, client, 3)
    server.closes()
    assert client.rest() == FIN


def the_client_says_goodbye(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    ask(client, server)
    passes(client, server, goaway(0, 0, b"bye"))
    answer(server, client, 1)


def a_stream_reset_with_every_code(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    for n, code in enumerate((*range(14), 0xFEEDFACE)):
        one, other = (client, server) if n % 2 else (server, client)
        ask(client, server, 2 * n + 1)
        passes(one, other, reset(2 * n + 1, code))


def frames_of_a_stream_that_was_reset(client: Http2Peer, server: Http2Peer) -> None:
    """They cross on the wire: the table of the header blocks among them must stay in step."""
    begin(client, server)
    ask(client, server)
    passes(client, server, reset(1))
    passes(server, client, server.head(1, [*OK, (b"x-new", b"entry")]), data(1, b"late", END_STREAM))
    ask(client, server, 3)
    answer(server, client, 3, [*OK, (b"x-new", b"entry")])


def an_answer_before_the_request_is_through(client: Http2Peer, server: Http2Peer) -> None:
    """RFC 9113 section 8.1: END_STREAM, then RST_STREAM NO_ERROR."""
    begin(client, server)
    passes(client, server, client.head(1, POST), data(1, b"half"))
    passes(server, client, server.head(1, [(b":status", b"413")]), data(1, b"large", END_STREAM), reset(1, 0))


def a_hundred_streams_interleaved(client: Http2Peer, server: Http2Peer) -> None:
    begin(client, server)
    streams = range(1, 201, 2)
    for stream in streams:
        passes(client, server, client.head(stream, [*POST[:3], (b":path", b"/%d" % stream)]))
    for part in range(3):
        passes(client, server, *(data(stream, b"%d.%d" % (stream, part)) for stream in streams))
    for stream in reversed(streams):
        passes(server, client, server.head(stream, [*OK, (b"x-stream", b"%d" % stream)]))
    for stream in streams:
        passes(client, server, data(stream, b"", END_STREAM))
        passes(server, client, data(stream, b"answer to %d" % stream, END_STREAM))


PLAYS: list[tuple[Callable[[Http2Peer, Http2Peer], None], int | None]] = [
    (a_request_and_its_answer, 1),
    (everything_at_once, 2),
    (one_byte_at_a_time, 1),
    (settings_known_unknown_and_twice, 0),
    (the_server_speaks_first, 1),
    (the_server_speaks_first_in_pieces, None),
    (pings_make_their_round_trip, 0),
    (windows_are_updated, 1),
    (priorities, 1),
    (padding, 2),
    (frames_and_flags_that_nobody_knows, 1),
    (a_head_in_many_pieces, 1),
    (a_head_as_large_as_a_frame, 1),
    (interim_responses_in_their_order, 1),
    (trailers_both_ways, 1),
    (a_promise_and_what_was_promised, None),
    (an_extended_connect, 1),
    (a_connect, 1),
    (tables_that_change_their_size, 12),
    (fields_of_every_representation, 3),
    (frames_of_a_megabyte, 1),
    (the_client_ends_its_side_behind_the_request, 1),
    (the_server_says_goodbye, 2),
    (the_client_says_goodbye, 1),
    (a_stream_reset_with_every_code, 15),
    (frames_of_a_stream_that_was_reset, 2),
    (an_answer_before_the_request_is_through, 1),
    (a_hundred_streams_interleaved, 100),
]


@pytest.mark.parametrize("play", [pytest.param(play, id=play.__name__) for play, _ in PLAYS])
def test_neither_end_can_tell(arca: Carrier, play: Callable[[Http2Peer, Http2Peer], None]) -> None:
    both(arca, play)


def test_every_stream_of_these_is_one_exchange(arca: Carrier) -> None:
    clients: list[tuple[Http2Peer, int]] = []
    for play, exchanges in PLAYS:
        client, server = ends(arca.connect())
        observed(play, client, server)
        if exchanges is not None:
            clients.append((client, exchanges))
    for client, exchanges in clients:
        rows = arca.exchanges(client, exchanges)
        assert {row["protocol"] for row in rows} <= {"http/2"}
        assert len({row["request_id"] for row in rows}) == exchanges
    assert counted(arca, "arca_codec_fallbacks_total", protocol="http/2") == 0


def body_of(size: int) -> bytes:
    return (hashlib.sha256(b"%d" % size).digest() * (size // 32 + 1))[:size]


# ---- flow control is the two ends' own


def test_nobody_but_the_reader_opens_a_window(arca: Carrier) -> None:
    def play(client: Http2Peer, server: Http2Peer) -> None:
        begin(client, server)
        passes(client, server, client.head(1, POST))
        passes(client, server, *(data(1, bytes(n)) for n in (16384, 16384, 16384, 16383)))
        assert client.is_silent()
        passes(server, client, window(1, 65535), window(0, 65535))
        passes(client, server, data(1, bytes(16384), END_STREAM))
        answer(server, client)

    both(arca, play)


@pytest.mark.parametrize("pause", [0.0, 0.0005], ids=["reader", "slow_reader"])
def test_10_mb_pass_both_ways_in_bounded_memory(arca: Carrier, pause: float) -> None:
    body = body_of(10 << 20 if not pause else 2 << 20)

    def serve() -> bytes:
        with Library(server.socket, is_client=False) as end:
            stream, heard = end.hears_body(pause)
            end.h2.send_headers(stream, [(b":status", b"200")])
            end.sends_body(stream, body)
            until(lambda: end.socket.recv(1 << 16) == b"")
            return heard

    client, server = arca.connect()
    before = arca.resident()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        serving = thread.submit(serve)
        with Library(client.socket, is_client=True) as end:
            end.h2.send_headers(1, POST)
            end.sends_body(1, body)
            assert end.hears_body(pause) == (1, body)
        assert serving.result() == body
    assert arca.resident() - before < 8 << 20
    (exchange,) = arca.exchanges(client)
    assert verdict(exchange) == OK_VERDICT
    for count in (exchange["request_bytes"], exchange["response_bytes"]):
        assert isinstance(count, int)
        assert len(body) < count < len(body) * 1.01


def test_a_reader_that_stops_stops_the_sender(arca: Carrier) -> None:
    """Windows wide open, so that only TCP holds the sender back."""
    client, server = ends(arca.connect())
    with client, server:
        begin(client, server, (4, 0x7FFFFFFF))
        client.sends(window(0, 0x7FFF0000) + client.head(1, GET, END_STREAM))
        server.finds_head(1)
        server.sends(server.head(1, OK))
        before = arca.resident()
        piece = data(1, bytes(16384))
        sent = 0
        server.socket.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                sent += server.socket.send((piece * 16)[sent % len(piece) :])
        assert 64 << 10 < sent < 64 << 20
        assert arca.resident() - before < 4 << 20
        client.takes_head(1)
        server.socket.settimeout(PATIENCE)
        whole = sent // len(piece)
        for _ in range(whole):
            client.takes(DATA, 1)
        server.sends(piece[sent % len(piece) :] + data(1, b"end", END_STREAM))
        client.takes(DATA, 1)
        assert client.takes(DATA, 1).payload == b"end"
    assert verdict(arca.exchanges(client)[0]) == OK_VERDICT


# ---- ids


@pytest.fixture
def channel(arca: Carrier) -> Iterator[tuple[Http2Peer, Http2Peer]]:
    """Both ends of a connection through ARCA on which HTTP/2 has begun."""
    client, server = ends(arca.connect())
    with client, server:
        begin(client, server)
        yield client, server


Channel = tuple[Http2Peer, Http2Peer]


def plain(head: Head) -> Fields:
    """Names and values; a tracestate without a member only keeps a place in the dynamic table."""
    return [(name, value) for name, value, _ in head.fields if name != b"tracestate" or value.strip(b", ")]


def test_ids_that_are_absent_are_made_for_each_stream_and_given_back(arca: Carrier, channel: Channel) -> None:
    client, server = channel
    made: list[tuple[str, str]] = []
    for stream in range(1, 41, 2):
        head = ask(client, server, stream)
        assert plain(head.without_added()) == GET
        request_id, traceparent = head.value(b"x-request-id"), head.value(b"traceparent")
        given = answer(server, client, stream)
        assert plain(given) == [*OK, (b"x-request-id", request_id)]
        made.append((request_id.decode(), traceparent.split(b"-")[1].decode()))
    assert len(set(made)) == 20
    rows = arca.exchanges(client, 20)
    assert [(row["request_id"], row["trace_id"]) for row in rows] == made


def test_added_fields_lie_behind_the_block_as_it_came(channel: Channel) -> None:
    client, server = channel
    for stream in (1, 3):
        block = client.block([*GET, (b"user-agent", b"one"), (b"x-mine", b"1")])
        client.sends(frame(HEADERS, END_STREAM | END_HEADERS, stream, block))
        head = server.takes_head(stream)
        assert [name for name, _, _ in head.fields[-2:]] == [b"traceparent", b"x-request-id"]
        assert block in server.heard
        block = server.block([*OK, (b"server", b"x")])
        server.sends(frame(HEADERS, END_STREAM | END_HEADERS, stream, block))
        assert client.takes_head(stream).fields[-1][0] == b"x-request-id"
        assert block in client.heard


def test_only_the_final_response_gets_the_id(channel: Channel) -> None:
    client, server = channel
    ask(client, server)
    server.sends(server.head(1, [(b":status", b"103")]) + server.head(1, OK) + data(1, b"hi"))
    assert client.takes_head(1).fields == ((b":status", b"103", False),)
    assert len(client.takes_head(1).values(b"x-request-id")) == 1
    client.takes(DATA, 1)
    server.sends(server.head(1, [(b"x-sum", b"1")], END_STREAM))
    assert client.takes_head(1).fields == ((b"x-sum", b"1", False),)


def test_a_request_id_that_came_is_kept_and_given_back_unless_the_server_gives_one(
    arca: Carrier, channel: Channel
) -> None:
    client, server = channel
    fields = [*GET, (b"x-request-id", b"mine/42"), (b"x-other", b"1")]
    for stream in (1, 3, 5):
        head = ask(client, server, stream, fields)
        assert plain(head.without_added()) == fields
        assert plain(answer(server, client, stream)) == [*OK, (b"x-request-id", b"mine/42")]
    ask(client, server, 7, fields)
    own: Fields = [*OK, (b"x-request-id", b"theirs"), (b"x-last", b"1")]
    assert plain(answer(server, client, 7, own)) == own
    assert {row["request_id"] for row in arca.exchanges(client, 4)} == {"mine/42"}


def replaced(fields: Fields, head: Head) -> bytes:
    """The parent id that stands in the place of PARENT; all else is as it was sent."""
    traceparent = head.value(b"traceparent")
    span = traceparent[36:52]
    assert traceparent == SAMPLED.replace(PARENT, span)
    assert span != PARENT
    expected = [(name, traceparent if name == b"traceparent" else value) for name, value in fields]
    assert [field for field in plain(head) if field[0] != b"x-request-id"] == expected
    return span


@pytest.mark.parametrize(
    "how", [INDEXED, UNINDEXED, NEVER, None], ids=["indexed", "unindexed", "never_indexed", "huffman"]
)
def test_a_sampled_traceparent_is_changed_in_its_place_on_every_stream(
    arca: Carrier, channel: Channel, how: tuple[int, int] | None
) -> None:
    """Sent again and again on one connection: with a dynamic table, from the second time on by reference."""
    client, server = channel
    fields: Fields = [
        *GET, (b"before", b"1"), (b"traceparent", SAMPLED), (b"tracestate", b"a=1,b=2"), (b"behind", b"2"),
    ]  # fmt: skip
    spans = []
    for stream in range(1, 81, 2):
        if how is None:
            block = client.block(fields)
        elif how is INDEXED and stream > 1:
            block = b"".join(literal(*field) for field in GET)
            # RFC 7541 section 2.3.3: the newest entry has number 62.
            block += bytes(0x80 | 62 + back for back in (3, 2, 1, 0))
        else:
            block = b"".join(literal(*field) for field in GET)
            block += b"".join(literal(*field, how) for field in fields[len(GET) :])
        client.sends(frame(HEADERS, END_STREAM | END_HEADERS, stream, block))
        head = server.takes_head(stream)
        if how is NEVER:
            (kept,) = (never for name, _, never in head.fields if name == b"traceparent")
            assert kept
        spans.append(replaced(fields, head).decode())
        answer(server, client, stream)
    assert len(set(spans)) == 40
    rows = arca.exchanges(client, 40)
    assert [row["span_id"] for row in rows] == spans
    assert {(row["trace_id"], row["parent_id"]) for row in rows} == {(TRACE.decode(), PARENT.decode())}


def test_an_unsampled_traceparent_goes_on_as_it_came(arca: Carrier, channel: Channel) -> None:
    client, server = channel
    fields: Fields = [*GET, (b"traceparent", UNSAMPLED), (b"tracestate", b"a=1"), (b"x-request-id", b"r")]
    for stream in (1, 3, 5):
        block = client.block(fields)
        client.sends(frame(HEADERS, END_STREAM | END_HEADERS, stream, block))
        assert plain(server.takes_head(stream)) == fields
        assert block in server.heard
        answer(server, client, stream)
    assert {row["span_id"] for row in arca.exchanges(client, 3)} == {None}


OTHER = b"1" * 16
CONTINUED = b"00-" + TRACE + b"-{span}-01"


@pytest.mark.parametrize(
    ("came", "goes"),
    [
        pytest.param(
            [(b"b3", TRACE + b"-" + PARENT + b"-1"), (b"z", b"1")],
            [(b"b3", TRACE + b"-{span}-1-" + PARENT), (b"z", b"1"), (b"traceparent", CONTINUED)],
            id="b3_single",
        ),
        pytest.param(
            [(b"b3", TRACE + b"-" + PARENT + b"-0")],
            [(b"b3", TRACE + b"-" + PARENT + b"-0"), (b"traceparent", UNSAMPLED)],
            id="b3_single_unsampled",
        ),
        pytest.param(
            [(b"x-b3-traceid", TRACE), (b"x-b3-spanid", PARENT), (b"x-b3-sampled", b"1"), (b"z", b"1")],
            [
                (b"x-b3-traceid", TRACE), (b"x-b3-spanid", b"{span}"), (b"x-b3-sampled", b"1"), (b"z", b"1"),
                (b"traceparent", CONTINUED),
            ],
            id="b3_multi",
        ),
        pytest.param(
            [(b"traceparent", SAMPLED), (b"b3", b"2" * 32 + b"-" + OTHER + b"-1")],
            [
                (b"traceparent", CONTINUED),
                (b"b3", TRACE + b"-{span}-1-" + PARENT),
            ],
            id="w3c_wins",
        ),
        pytest.param(
            [(b"traceparent", SAMPLED), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")],
            [(b"traceparent", CONTINUED), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")],
            id="two_tracestates",
        ),
        pytest.param(
            [(b"traceparent", UNSAMPLED), (b"tracestate", b"A=1"), (b"z", b"1")],
            [(b"traceparent", UNSAMPLED), (b"z", b"1")],
            id="invalid_tracestate",
        ),
        pytest.param(
            [(b"traceparent", SAMPLED), (b"traceparent", SAMPLED), (b"tracestate", b"a=1"), (b"z", b"1")],
            [(b"z", b"1"), (b"traceparent", b"00-{trace}-{span}-00")],
            id="two_traceparents",
        ),
        pytest.param(
            [(b"traceparent", b"00-nonsense"), (b"z", b"1")],
            [(b"z", b"1"), (b"traceparent", b"00-{trace}-{span}-00")],
            id="invalid_traceparent",
        ),
    ],
)  # fmt: skip
def test_a_trace_goes_on_by_its_rules(arca: Carrier, channel: Channel, came: Fields, goes: Fields) -> None:
    """The same three times: literal, then from the dynamic table; and other entries stay what they are."""
    client, server = channel
    beside: Fields = [(b"x-beside", b"1" * 30)]
    for stream in (1, 3, 5):
        head = ask(client, server, stream, GET + beside + came + beside)
        _, trace, span, _ = head.value(b"traceparent").split(b"-")
        told = [(name, value.replace(b"{trace}", trace).replace(b"{span}", span)) for name, value in goes]
        # A value that is continued stands in its place; a new one is added behind everything.
        new = b"traceparent" not in dict(came) or b"{trace}" in dict(goes)[b"traceparent"]
        added = [field for field in told if new and field[0] == b"traceparent"]
        rest = [field for field in told if field not in added]
        heard = [field for field in plain(head) if field[0] != b"x-request-id"]
        assert heard == GET + beside + rest + beside + added
        answer(server, client, stream)
    row = arca.exchanges(client, 3)[-1]
    assert row["trace_id"] == trace.decode()
    assert row["span_id"] == (span.decode() if b"{span}" in dict(goes)[b"traceparent"] else None)


def test_header_tables_stay_in_step_whatever_is_sent(arca: Carrier) -> None:
    """500 requests by a fixed seed, each with some of a few names and values, in tables of several sizes."""
    chance = random.Random(3)
    client, server = ends(arca.connect())
    with client, server:
        begin(client, server)
        for number in range(500):
            stream = 2 * number + 1
            if number % 50 == 0:
                client.encoder.header_table_size = chance.choice((0, 120, 300, 4096))
                server.encoder.header_table_size = chance.choice((0, 120, 300, 4096))
            others = range(chance.randrange(6))
            fields = [*GET, *((b"x-%d" % chance.randrange(5), b"v" * chance.randrange(40)) for _ in others)]
            kind = chance.randrange(4)
            if kind == 1:
                fields.insert(chance.randrange(4, len(fields) + 1), (b"traceparent", SAMPLED))
            elif kind == 2:
                fields.insert(chance.randrange(4, len(fields) + 1), (b"traceparent", UNSAMPLED))
            elif kind == 3:
                fields.append((b"b3", TRACE + b"-" + PARENT + b"-1"))
            if chance.random() < 0.3:
                fields.insert(
                    chance.randrange(4, len(fields) + 1), (b"x-request-id", b"%d" % chance.randrange(3))
                )
            head = ask(client, server, stream, fields)
            mine = (b"traceparent", b"b3")
            assert [each for each in plain(head.without_added()) if each[0] not in mine] == [
                each for each in fields if each[0] not in mine
            ]
            assert len(head.values(b"traceparent")) == 1
            if kind:
                assert head.value(b"traceparent").split(b"-")[1] == TRACE
            given: Fields = [*OK, (b"x-%d" % chance.randrange(5), b"w" * chance.randrange(60))]
            assert plain(answer(server, client, stream, given).without_added())[:3] == given
    assert len({row["request_id"] for row in arca.exchanges(client, 500)}) > 300


# ---- how streams and connections end


Ending = Callable[[Http2Peer, Http2Peer, int], None]


def refuse(code: int) -> Ending:
    def play(client: Http2Peer, server: Http2Peer, stream: int) -> None:
        server.sends(reset(stream, code))
        assert client.takes(RST_STREAM, stream).payload == code.to_bytes(4)

    return play


def cancel(code: int) -> Ending:
    def play(client: Http2Peer, server: Http2Peer, stream: int) -> None:
        client.sends(reset(stream, code))
        assert server.takes(RST_STREAM, stream).payload == code.to_bytes(4)

    return play


def answered(status: bytes) -> Ending:
    def play(client: Http2Peer, server: Http2Peer, stream: int) -> None:
        answer(server, client, stream, [(b":status", status)])

    return play


def half_answered_then(end: Ending) -> Ending:
    def play(client: Http2Peer, server: Http2Peer, stream: int) -> None:
        passes(server, client, server.head(stream, OK), data(stream, b"half"))
        end(client, server, stream)

    return play


def answered_then_canceled(client: Http2Peer, server: Http2Peer, stream: int) -> None:
    answer(server, client, stream)
    passes(client, server, reset(stream, CANCEL))


ENDS: dict[str, tuple[Ending, tuple[object, object]]] = {
    "/client-cancel": (cancel(CANCEL), CANCELED),
    "/client-internal-error": (cancel(2), CANCELED),
    "/client-cancel-in-the-answer": (half_answered_then(cancel(CANCEL)), CANCELED),
    "/server-internal-error": (refuse(2), ABORTED),
    "/server-refused-stream": (refuse(REFUSED_STREAM), ABORTED),
    "/server-enhance-your-calm": (refuse(ENHANCE_YOUR_CALM), ABORTED),
    "/server-cancel": (refuse(CANCEL), ABORTED),
    "/server-internal-error-in-the-answer": (half_answered_then(refuse(2)), ABORTED),
    "/500": (answered(b"500"), ("application", "status_5xx")),
    "/404": (answered(b"404"), ("application", "status_4xx")),
    "/answered-then-canceled": (answered_then_canceled, OK_VERDICT),
}


def test_the_end_of_each_stream_is_told_and_the_others_go_on(arca: Carrier, channel: Channel) -> None:
    client, server = channel
    ask(client, server, 1, [*GET[:3], (b":path", b"/last")])
    for n, (path, (how, _)) in enumerate(ENDS.items()):
        ask(client, server, 2 * n + 3, [*GET[:3], (b":path", path.encode())])
        how(client, server, 2 * n + 3)
    answer(server, client, 1)
    rows = arca.exchanges(client, len(ENDS) + 1)
    expected = {path: told for path, (_, told) in ENDS.items()} | {"/last": OK_VERDICT}
    assert {row["target"]: verdict(row) for row in rows} == expected
    assert [row["target"] for row in rows] == list(expected)


@pytest.mark.parametrize("code", [0, 2, ENHANCE_YOUR_CALM])
def test_goaway_ends_the_streams_that_the_server_will_not_look_at(
    arca: Carrier, channel: Channel, code: int
) -> None:
    client, server = channel
    for stream in (1, 3, 5):
        ask(client, server, stream, [*GET[:3], (b":path", b"/%d" % stream)])
    server.sends(goaway(1, code, b"enough"))
    assert client.takes(GOAWAY).payload == (1).to_bytes(4) + code.to_bytes(4) + b"enough"
    answer(server, client)
    server.closes()
    assert client.rest() == FIN
    rows = arca.exchanges(client, 3)
    assert {row["target"] for row in rows[:2]} == {"/3", "/5"}
    assert [verdict(row) for row in rows] == [ABORTED, ABORTED, OK_VERDICT]


@pytest.mark.parametrize(
    ("who", "how", "expected"),
    [
        ("client", FIN, CANCELED),
        ("client", RST, CANCELED),
        ("server", FIN, CLOSED_EARLY),
        ("server", RST, RESET),
    ],
)
def test_the_end_of_the_connection_ends_every_stream_in_flight(
    arca: Carrier, channel: Channel, who: str, how: str, expected: object
) -> None:
    client, server = channel
    for stream in (1, 3, 5, 7):
        ask(client, server, stream)
    answer(server, client, 1)
    passes(server, client, server.head(3, OK), data(3, b"half"))
    one, other = (client, server) if who == "client" else (server, client)
    if how == RST:
        one.resets()
    else:
        one.closes()
    assert other.rest() == how
    other.closes()
    rows = arca.exchanges(client, 4)
    assert verdict(rows[0]) == OK_VERDICT
    assert {verdict(row) for row in rows[1:]} == {expected}


def test_an_idle_connection_that_ends_is_no_exchange(arca: Carrier, channel: Channel) -> None:
    client, server = channel
    ask(client, server)
    answer(server, client)
    server.sends(goaway(1))
    server.closes()
    client.takes(GOAWAY)
    assert client.rest() == FIN
    client.closes()
    arca.assert_nothing_is_left()
    assert len(arca.exchanges(client)) == 1


# ---- an upstream that cannot be reached


def test_every_stream_is_told_that_the_connection_was_refused(arca: Carrier) -> None:
    with Http2Peer(arca.dial(arca.nowhere), is_server=False) as client:
        client.sends(
            PREFACE
            + settings()
            + client.head(1, [*GET, (b"x-request-id", b"mine")], END_STREAM)
            + client.head(3, [(b":method", b"HEAD"), *GET[1:]], END_STREAM)
            + client.head(5, GET, END_STREAM)
        )
        assert client.rest() == FIN
        heads = {head.stream: head for head in client.seen if isinstance(head, Head)}
        assert set(heads) == {1, 3, 5}
        for head in heads.values():
            assert head.value(b":status") == b"502"
            assert head.value(b"x-arca-cause") == b"connect_refused"
            assert head.value(b"server") == b"arca"
        assert heads[1].value(b"x-request-id") == b"mine"
        bodies = {
            each.stream: each.payload for each in client.seen if isinstance(each, Frame) and each.kind == DATA
        }
        assert set(bodies) == {1, 5}
        assert b"Connection refused" in bodies[1]
        last = client.seen[-1]
        assert isinstance(last, Frame)
        assert (last.kind, last.payload[4:8]) == (GOAWAY, bytes(4))
    rows = arca.exchanges(client, 3)
    assert {verdict(row) for row in rows} == {("infrastructure", "connect_refused")}
    assert {row["status"] for row in rows} == {502}


def test_an_upload_to_nowhere_gets_its_answer(arca: Carrier) -> None:
    with Http2Peer(arca.dial(arca.nowhere), is_server=False) as client:
        client.sends(PREFACE + settings() + client.head(1, POST) + data(1, bytes(16384)) * 3)
        assert client.finds_head(1).value(b":status") == b"502"


def test_a_client_that_says_nothing_more_than_its_settings_is_reset(arca: Carrier) -> None:
    """gRPC clients wait for the server's SETTINGS before they ask, and try elsewhere when they are reset."""
    with Http2Peer(arca.dial(arca.nowhere), is_server=False) as client:
        client.sends(PREFACE + settings())
        assert client.rest() == RST
        assert not client.seen
    (exchange,) = arca.exchanges(client)
    assert verdict(exchange) == ("infrastructure", "connect_refused")


def curl(*arguments: str) -> str:
    if shutil.which("curl") is None:
        pytest.skip("needs the program curl")
    done = subprocess.run(
        ["curl", "-s", "--max-time", "20", "--http2-prior-knowledge", *arguments],
        capture_output=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout.decode("latin-1")


def test_curl_is_told_that_the_connection_was_refused(arca: Carrier) -> None:
    said = curl("-i", f"http://127.0.0.1:{arca.nowhere}/")
    assert said.startswith("HTTP/2 502")
    assert "x-arca-cause: connect_refused" in said
    assert said.endswith(f"no connection to the upstream 127.0.0.1:{arca.closed_port}: Connection refused\n")


def test_a_dial_that_takes_too_long_is_504(tmp_path: Path) -> None:
    """A listener whose queue is full drops what comes then."""
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = []
    with full:
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(full.getsockname())
        port = free_port()
        forward = f"127.0.0.1:{port}=127.0.0.1:{full.getsockname()[1]}"
        settings_ = "[limits]\nconnect_timeout_seconds = 0.5\n"
        try:
            with Carrier(tmp_path, settings_, "--forward", forward) as arca:
                said = curl("-i", f"http://127.0.0.1:{port}/")
                assert said.startswith("HTTP/2 504")
                assert "x-arca-cause: connect_timeout" in said
                until(lambda: any(row["status"] == 504 for row in arca.logged()))
                (row,) = (row for row in arca.logged() if row["status"] == 504)
                assert verdict(row) == ("infrastructure", "connect_timeout")
        finally:
            for each in waiting:
                each.close()


# ---- what is not HTTP/2 after all

YAMUX = b"\x00\x01\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00"
INDEX_OF_NOTHING = frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\xff\xff\xff")


NOT_HTTP2 = {
    "yamux": (PREFACE + YAMUX * 3, "not_http2"),
    "text": (PREFACE + b"hello, this is a tunnel\r\n", "not_http2"),
    "ping_of_7": (PREFACE + settings() + frame(PING, 0, 0, b"seven b"), "frame"),
    "16_mb_of_data": (PREFACE + settings() + b"\xff\xff\xff\x00\x00" + bytes(30), "frame"),
    "index_of_nothing": (PREFACE + settings() + INDEX_OF_NOTHING, "hpack"),
}


def test_what_cannot_be_followed_is_carried_byte_for_byte(arca: Carrier) -> None:
    def fallbacks() -> Counter[str]:
        reasons = {reason for _, reason in NOT_HTTP2.values()}
        name = "arca_codec_fallbacks_total"
        return Counter({each: int(counted(arca, name, protocol="http/2", reason=each)) for each in reasons})

    before = fallbacks()
    for asked, _ in NOT_HTTP2.values():
        client, server = arca.connect()
        with client, server:
            for n in range(3):
                client.sends(asked + b"%d" % n)
                server.hears(asked + b"%d" % n)
                server.sends(asked[::-1])
                client.hears(asked[::-1])
            client.ends()
            assert server.heard_end() == FIN
            server.sends(b"last")
            client.hears(b"last")
            server.closes()
            assert client.heard_end() == FIN
    expected = before + Counter(reason for _, reason in NOT_HTTP2.values())
    until(lambda: fallbacks() == expected)


def test_what_cannot_be_followed_is_refused_when_strict(tmp_path: Path) -> None:
    with Carrier(tmp_path, "strict = true\n") as arca:
        for asked, _ in NOT_HTTP2.values():
            client, server = ends(arca.connect())
            with client, server:
                client.sends(asked)
                assert client.finds(GOAWAY).payload[4:8] != bytes(4)
                assert client.rest() in (FIN, RST)


def test_a_server_that_speaks_first_and_means_something_else(arca: Carrier) -> None:
    """Its greeting looks like SETTINGS; what the client then says is no preface."""
    before = counted(arca, "arca_codec_fallbacks_total", protocol="http/2", reason="not_http2")
    client, server = arca.connect()
    with client, server:
        server.sends(settings())
        client.hears(settings())
        client.sends(b"USER me\r\n")
        server.hears(b"USER me\r\n")
        server.sends(b"331 who?\r\n")
        client.hears(b"331 who?\r\n")
    until(
        lambda: (
            counted(arca, "arca_codec_fallbacks_total", protocol="http/2", reason="not_http2") == before + 1
        )
    )


# ---- attacks


@contextlib.contextmanager
def attack(arca: Carrier) -> Iterator[Http2Peer]:
    """A client of a server that reads what it gets and says nothing more."""
    client, server = ends(arca.connect())
    with client, server:
        begin(client, server)

        def swallow() -> None:
            with contextlib.suppress(OSError):
                while server.socket.recv(1 << 16):
                    pass

        swallowing = threading.Thread(target=swallow)
        swallowing.start()
        try:
            yield client
        finally:
            with contextlib.suppress(OSError):
                client.socket.shutdown(socket.SHUT_RDWR)
            swallowing.join(PATIENCE)


def rapid_reset(client: Http2Peer) -> bytes:
    return b"".join(client.head(stream, GET, END_STREAM) + reset(stream) for stream in range(1, 1301, 2))


def continuations(client: Http2Peer) -> bytes:
    begun = frame(HEADERS, END_STREAM, 1, client.block(GET) + b"\x00\x01x\x7f\xa9\x0f")
    return begun + frame(CONTINUATION, 0, 1, b"v") * 600


def empty_data(client: Http2Peer) -> bytes:
    return client.head(1, POST) + data(1) * 20


def empty_continuations(client: Http2Peer) -> bytes:
    return frame(HEADERS, END_STREAM, 1, client.block(GET)) + frame(CONTINUATION, 0, 1) * 20


def pings(client: Http2Peer) -> bytes:
    return frame(PING, 0, 0, bytes(8)) * 1100


def many_settings(client: Http2Peer) -> bytes:
    return settings((3, 100)) * 1100


def priorities_alone(client: Http2Peer) -> bytes:
    return client.head(1, POST) + frame(PRIORITY, 0, 3, b"\0\0\0\0\x10") * 300


def windows(client: Http2Peer) -> bytes:
    return client.head(1, POST) + window(0, 1) * 200


def a_block_without_end(client: Http2Peer) -> bytes:
    begun = frame(HEADERS, END_STREAM, 1, client.block(GET) + b"\x00\x01x\x7f\x81\xff\xff\x7f")
    return begun + frame(CONTINUATION, 0, 1, b"v" * 16384) * 40


FLOODS: dict[Callable[[Http2Peer], bytes], str] = {
    rapid_reset: "rapid_reset",
    continuations: "continuation",
    empty_data: "empty_frames",
    empty_continuations: "empty_frames",
    pings: "ping",
    many_settings: "settings",
    priorities_alone: "priority",
    windows: "window_update",
    a_block_without_end: "header_block",
}


def flooded(arca: Carrier, flood: Callable[[Http2Peer], bytes]) -> None:
    with attack(arca) as client:
        with contextlib.suppress(OSError):
            client.sends(flood(client))
        assert client.finds(GOAWAY).payload[4:8] == ENHANCE_YOUR_CALM.to_bytes(4)
        assert client.rest() in (FIN, RST)


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_ends_its_connection(arca: Carrier, flood: Callable[[Http2Peer], bytes]) -> None:
    flooded(arca, flood)


def test_every_flood_is_counted_by_its_limit(tmp_path: Path) -> None:
    with Carrier(tmp_path) as arca:

        def limits() -> dict[str, int]:
            name, names = "arca_protocol_limits_total", set(FLOODS.values())
            return {
                each: int(counted(arca, name, protocol="http/2", limit=each, side="downstream"))
                for each in names
            }

        for flood in FLOODS:
            flooded(arca, flood)
        until(lambda: limits() == Counter(FLOODS.values()))
        assert counted(arca, "arca_protocol_limits_total") == len(FLOODS)


def below_rapid_reset(client: Http2Peer) -> bytes:
    return b"".join(client.head(stream, GET, END_STREAM) + reset(stream) for stream in range(1, 481, 2))


def below_continuations(client: Http2Peer) -> bytes:
    begun = frame(HEADERS, END_STREAM, 1, client.block(GET) + b"\x00\x01x\x7f\xf1\x02")
    return begun + frame(CONTINUATION, 0, 1, b"v") * 495 + frame(CONTINUATION, END_HEADERS, 1, b"v")


def below_pings(client: Http2Peer) -> bytes:
    return frame(PING, 0, 0, bytes(8)) * 900


def below_priorities(client: Http2Peer) -> bytes:
    return client.head(1, POST) + frame(PRIORITY, 0, 3, b"\0\0\0\0\x10") * 190


@pytest.mark.parametrize("traffic", [below_rapid_reset, below_continuations, below_pings, below_priorities])
def test_what_stays_below_a_limit_goes_on(arca: Carrier, traffic: Callable[[Http2Peer], bytes]) -> None:
    before = counted(arca, "arca_protocol_limits_total")
    client, server = ends(arca.connect())
    with client, server:
        begin(client, server)
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            sent = thread.submit(client.sends, traffic(client) + client.head(9001, GET, END_STREAM))
            server.finds_head(9001)
            sent.result()
        answer(server, client, 9001)
    assert counted(arca, "arca_protocol_limits_total") == before


@pytest.mark.parametrize(
    "many",
    [
        [(b"x-%d" % n, b"v") for n in range(120)],
        [(b"x-%d" % n, b"v" * 9000) for n in range(8)],
    ],
    ids=["fields", "bytes"],
)
def test_a_header_list_that_is_too_large_is_431_on_its_stream_alone(arca: Carrier, many: Fields) -> None:
    def so_far() -> float:
        return counted(arca, "arca_protocol_limits_total", limit="header_list", side="downstream")

    before = so_far()
    client, server = ends(arca.connect())
    with client, server:
        begin(client, server)
        ask(client, server, 1)
        # All of it goes into the client's table: what the server never sees must still be known later.
        block = client.block([*GET, *many])
        pieces = [block[at : at + 16384] for at in range(0, len(block), 16384)]
        last = len(pieces) - 1
        for n, piece in enumerate(pieces):
            flags = (END_STREAM if n == 0 else 0) | (END_HEADERS if n == last else 0)
            client.sends(frame(CONTINUATION if n else HEADERS, flags, 3, piece))
        head = client.finds_head(3)
        assert head.value(b":status") == b"431"
        assert head.value(b"server") == b"arca"
        fields = [*GET, many[-1], many[-2], (b"x-new", b"1")]
        for stream in (5, 7):
            client.sends(client.head(stream, fields, END_STREAM))
            asked = server.finds_head(stream)
            assert plain(asked.without_added()) == fields
            server.sends(server.head(stream, OK, END_STREAM))
            client.finds_head(stream)
        server.sends(server.head(1, OK, END_STREAM))
        client.finds_head(1)
    until(
        lambda: (
            counted(arca, "arca_protocol_limits_total", limit="header_list", side="downstream") == before + 1
        )
    )
    rows = {row["status"]: row for row in arca.exchanges(client, 4)}
    assert verdict(rows[431])[0] == "client"


@pytest.mark.parametrize("with_trailers", [False, True])
def test_a_request_that_was_refused_is_never_seen_by_the_server(
    channel: Channel, with_trailers: bool
) -> None:
    """Else nginx does the DELETE that was answered 431, and nghttpd ends the connection at the trailers."""
    client, server = channel
    many = [(b"x-%d" % n, b"v") for n in range(120)]
    client.sends(client.head(1, [*POST, *many], 0 if with_trailers else END_STREAM))
    assert client.finds_head(1).value(b":status") == b"431"
    if with_trailers:
        client.sends(data(1, b"body") + client.head(1, [(b"x-sum", b"1")], END_STREAM))
    fields = [*GET, many[-1], (b"x-sum", b"1")]
    client.sends(client.head(3, fields, END_STREAM))
    assert plain(server.takes_head(3).without_added()) == fields


def test_a_flood_of_the_server_ends_the_connection_too(arca: Carrier, channel: Channel) -> None:
    client, server = channel
    before = counted(arca, "arca_protocol_limits_total", limit="ping", side="upstream")
    ask(client, server)
    with contextlib.suppress(OSError):
        server.sends(frame(PING, 0, 0, bytes(8)) * 1100)
    assert server.finds(GOAWAY).payload[4:8] == ENHANCE_YOUR_CALM.to_bytes(4)
    until(lambda: counted(arca, "arca_protocol_limits_total", limit="ping", side="upstream") == before + 1)
    client.rest()
    assert verdict(arca.exchanges(client)[0])[0] == "application"


# ---- processes come and go


@pytest.fixture
def short_lived(tmp_path: Path) -> Iterator[tuple[Carrier, Stage]]:
    """An ARCA that a test may end or hurt: a worker, a stage, nothing asked of what it leaves."""
    settings_file = "[limits]\ndrain_seconds = 8.0\n"
    arca = Carrier(tmp_path, settings_file)
    try:
        yield arca, arca.stage
    finally:
        arca.stage.close()
        super(Carrier, arca).__exit__()


def test_a_drain_lets_streams_finish_and_says_goodbye_to_who_is_idle(
    short_lived: tuple[Carrier, Stage],
) -> None:
    arca, _ = short_lived
    arca.wait_ready()
    busy, idle = ends(arca.connect()), ends(arca.connect())
    with busy[0], busy[1], idle[0], idle[1]:
        for client, server in (busy, idle):
            begin(client, server)
            ask(client, server)
        answer(idle[1], idle[0])
        arca.process.terminate()
        last = idle[0].finds(GOAWAY)
        assert last.payload[4:8] == bytes(4)
        assert idle[0].rest() == FIN
        idle[0].closes()
        client, server = busy
        for _ in range(3):
            time.sleep(0.2)
            passes(server, client, *([server.head(1, OK)] if not client.seen[2:] else []), data(1, b"part"))
        passes(server, client, data(1, b"end", END_STREAM))
        client.rest()
        client.closes()
        server.rest()
    assert arca.ended() == 0
    assert {verdict(row) for row in arca.logged()} == {OK_VERDICT}
    assert len(arca.logged()) == 2


def test_a_stream_that_outlasts_the_drain_is_cut_and_says_so(tmp_path: Path) -> None:
    arca = Carrier(tmp_path, "[limits]\ndrain_seconds = 0.5\n")
    try:
        arca.wait_ready()
        client, server = ends(arca.connect())
        with client, server:
            begin(client, server)
            ask(client, server)
            arca.process.terminate()
            assert client.rest() in (FIN, RST)
            assert server.rest() in (FIN, RST)
        assert arca.ended() == 0
        (row,) = arca.logged()
        assert verdict(row)[0] == "proxy"
    finally:
        arca.stage.close()
        super(Carrier, arca).__exit__()


def test_a_worker_that_is_killed_ends_its_connections_and_is_replaced(
    short_lived: tuple[Carrier, Stage],
) -> None:
    arca, _ = short_lived
    arca.wait_ready()
    (worker,) = arca.workers()
    client, server = ends(arca.connect())
    with client, server:
        begin(client, server)
        ask(client, server)
        os.kill(worker, signal.SIGKILL)
        assert client.rest() in (FIN, RST)
        assert server.rest() in (FIN, RST)
    until(lambda: arca.workers() not in ([], [worker]) and arca.ready())
    client, server = ends(arca.connect())
    with client, server:
        begin(client, server)
        ask(client, server)
        answer(server, client)
    assert verdict(arca.exchanges(client)[0]) == OK_VERDICT


def test_http2_over_ipv6(tmp_path: Path) -> None:
    try:
        stage = Stage("::1")
    except OSError:
        pytest.skip("needs IPv6 on loopback")
    port = free_port()
    with Carrier(tmp_path, "", "--forward", f"[::1]:{port}=[::1]:{stage.port}") as arca:
        client, server = ends((dialed("::1", port), stage.accept()))
        with client, server:
            begin(client, server)
            ask(client, server)
            answer(server, client)
        (row,) = arca.exchanges(client)
        assert (row["protocol"], row["server"]) == ("http/2", f"[::1]:{stage.port}")
        stage.close()


# ---- real programs


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program}")


def ran(*command: str, stdin: bytes = b"") -> bytes:
    done = subprocess.run(command, capture_output=True, check=True, input=stdin, timeout=30)
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    directory.chmod(0o755)
    (directory / "index.html").write_text("hello\n")
    (directory / "pushed.css").write_text("a{}\n")
    (directory / "large").write_bytes(body_of(10 << 20))
    (directory / "upload").write_bytes(body_of(1 << 20))
    return directory


@pytest.fixture(scope="module")
def nginx(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    need("nginx")
    directory = tmp_path_factory.mktemp("nginx")
    port = free_port()
    (directory / "nginx.conf").write_text(
        f"""
        daemon off; pid {directory}/pid; error_log {directory}/error.log; worker_processes 1; user root;
        events {{ worker_connections 512; }}
        http {{
            access_log off; client_body_temp_path {directory}/body; client_max_body_size 20m;
            server {{
                listen 127.0.0.1:{port} http2; root {site};
                location = /teapot {{ return 418 "short\\n"; }}
                location /put/ {{ root {directory}; dav_methods PUT; create_full_put_path on; }}
            }}
        }}
        """
    )
    program = Program("nginx", "-c", f"{directory}/nginx.conf", "-e", f"{directory}/error.log", port=port)
    with program:
        yield program


@pytest.fixture(scope="module")
def nghttpd(site: Path) -> Iterator[Program]:
    need("nghttpd")
    push = "-p/index.html=/pushed.css"
    with Program("nghttpd", "--no-tls", "-d", str(site), push, "--echo-upload", "--trailer", "x-sum: 1",
                 "--max-concurrent-streams=1000", "-a", "127.0.0.1", "{port}") as program:  # fmt: skip
        yield program


@pytest.fixture(scope="module")
def before_nginx(nginx: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with Front(tmp_path_factory.mktemp("before_nginx"), nginx.port) as arca:
        yield arca


@pytest.fixture(scope="module")
def before_nghttpd(nghttpd: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with Front(tmp_path_factory.mktemp("before_nghttpd"), nghttpd.port) as arca:
        yield arca


CURLS = (
    "/",
    "-I /",
    "/missing",
    "/teapot",
    "-H Range:bytes=5-10 /large",
    "--compressed /large",
    "-T {upload} /put/a",
    "-T {upload} -H Expect:100-continue /put/b",
)


def given(arguments: str, port: int, site: Path) -> list[str]:
    """The words of a command, with paths made to addresses."""
    return [
        f"http://127.0.0.1:{port}{each}" if each.startswith("/") else each.format(upload=site / "upload")
        for each in arguments.split()
    ]


@pytest.mark.parametrize("arguments", CURLS)
def test_curl_and_nginx_notice_nothing(
    before_nginx: Front, nginx: Program, site: Path, arguments: str
) -> None:
    def fetched(port: int) -> list[str]:
        said = curl("-i", *given(arguments, port, site)).replace(str(port), "PORT")
        return [line for line in said.split("\n") if not line.startswith(("date: ", "x-request-id: "))]

    fetched(nginx.port)  # a second PUT is answered otherwise than the first
    direct = fetched(nginx.port)
    assert direct[0].startswith("HTTP/2 ")
    assert fetched(before_nginx.served) == direct


def test_every_request_of_curl_is_one_exchange(before_nginx: Front, site: Path) -> None:
    began = time.time()
    said = [curl("-i", *given(each, before_nginx.served, site)) for each in CURLS]
    rows = exchanges_since(before_nginx, began, len(CURLS))
    assert {row["protocol"] for row in rows} == {"http/2"}
    statuses = [[int(each) for each in re.findall(r"^HTTP/2 (\d+)", text, re.MULTILINE)] for text in said]
    assert [row["status"] for row in rows] == [each[-1] for each in statuses]
    ids = [re.findall(r"^x-request-id: (\S+)", text, re.MULTILINE) for text in said]
    assert ids == [[row["request_id"]] for row in rows]


FRAME = re.compile(rb"(send|recv) (\w+) frame <length=(\d+), flags=(0x\w+), stream_id=(\d+)>")


NGHTTPS = {
    "--no-push /index.html": 1,
    "-m 50 --no-push /index.html": 50,
    "/index.html": 2,  # the other is pushed
    "-b 255 -m 3 /pushed.css": 3,
    "--continuation -m 2 /pushed.css": 2,
    "-c 0 -c 8192 -m 5 /pushed.css": 5,
    "--encoder-header-table-size 0 -m 5 /pushed.css": 5,
    "-w 10 -W 12 /upload": 1,
    "-d {upload} --trailer x-end:1 /pushed.css": 1,
    "-d {upload} --expect-continue /pushed.css": 1,
    "-p 200 /pushed.css /upload": 2,
    "/missing": 1,
}


@pytest.mark.parametrize("arguments", NGHTTPS)
def test_nghttp_and_nghttpd_notice_nothing(
    before_nghttpd: Front, nghttpd: Program, site: Path, arguments: str
) -> None:
    need("nghttp")

    def fetched(port: int, *how: str) -> bytes:
        said = ran("nghttp", *how, *given(arguments, port, site))
        return said.replace(b"%d" % port, b"PORT").replace(b"%d" % nghttpd.port, b"PORT")

    def frames(said: bytes) -> Counter[tuple[bytes, ...]]:
        """Direction, type, flags and stream of all; the sizes of all but header blocks."""
        return Counter(
            (way, kind, flags, stream, b"" if kind in (b"HEADERS", b"CONTINUATION") else size)
            for way, kind, size, flags, stream in FRAME.findall(said)
            # How DATA is cut, when a window is opened, and what is sent at the end, is a matter of chance.
            if kind not in (b"DATA", b"WINDOW_UPDATE") and (kind, flags) != (b"SETTINGS", b"0x01")
        )

    assert fetched(before_nghttpd.served) == fetched(nghttpd.port)
    direct = frames(fetched(nghttpd.port, "-nv"))
    assert direct
    assert frames(fetched(before_nghttpd.served, "-nv")) == direct


def test_every_stream_of_nghttp_is_one_exchange(before_nghttpd: Front, site: Path) -> None:
    need("nghttp")
    began = time.time()
    for arguments in NGHTTPS:
        ran("nghttp", "-n", *given(arguments, before_nghttpd.served, site))
    rows = exchanges_since(before_nghttpd, began, sum(NGHTTPS.values()))
    assert list(Counter(row["client"] for row in rows).values()) == list(NGHTTPS.values())
    # Nobody asked for what was pushed, and it has no id.
    ids = [row["request_id"] for row in rows if row["request_id"] is not None]
    assert len(ids) == len(set(ids)) == len(rows) - 1


def test_what_a_server_pushes_arrives(before_nghttpd: Front) -> None:
    need("nghttp")
    began = time.time()
    said = ran("nghttp", "-v", f"http://127.0.0.1:{before_nghttpd.served}/index.html")
    assert b"recv PUSH_PROMISE frame" in said
    assert b"a{}\n" in said
    assert b"hello\n" in said
    exchanges_since(before_nghttpd, began, 2)


@pytest.mark.parametrize(
    ("requests", "connections", "streams"), [(3000, 1, 100), (4000, 40, 10), (200, 200, 1)]
)
def test_h2load_makes_exactly_as_many_exchanges_as_requests(
    before_nghttpd: Front, requests: int, connections: int, streams: int
) -> None:
    need("h2load")
    arca = before_nghttpd
    began = time.time()
    counted_before = counted(arca, "arca_requests_total", protocol="http/2", code="200")
    said = ran(
        "h2load", "-n", str(requests), "-c", str(connections), "-m", str(streams), "-p", "h2c",
        f"http://127.0.0.1:{arca.served}/pushed.css",
    )  # fmt: skip
    assert b"%d succeeded, 0 failed, 0 errored" % requests in said
    rows = exchanges_since(arca, began, requests)
    assert {(row["protocol"], row["status"], verdict(row)) for row in rows} == {("http/2", 200, OK_VERDICT)}
    assert len({row["request_id"] for row in rows}) == len({row["trace_id"] for row in rows}) == requests
    assert len({row["client"] for row in rows}) == connections
    until(
        lambda: (
            counted(arca, "arca_requests_total", protocol="http/2", code="200") == counted_before + requests
        )
    )


def test_h2load_uploads(before_nghttpd: Front, site: Path) -> None:
    need("h2load")
    began = time.time()
    url = f"http://127.0.0.1:{before_nghttpd.served}/pushed.css"
    said = ran("h2load", "-n", "20", "-c", "2", "-m", "5", "-d", str(site / "upload"), url)
    assert b"20 succeeded, 0 failed, 0 errored" in said
    rows = exchanges_since(before_nghttpd, began, 20)
    assert all(int(str(row["request_bytes"])) > 1 << 20 for row in rows)


@pytest.mark.parametrize(
    ("command", "body", "count"),
    [
        (["nghttp", "-u", "-m", "3"], b"", 3),
        (["nghttp", "-u", "-d", "{body}"], b"", 2),  # OPTIONS comes first
        (["curl", "-s", "--http2"], b"", 1),
        (["curl", "-s", "--http2", "-d", "no request of its own"], b"no request of its own", 1),
    ],
    ids=["nghttp", "nghttp_upload", "curl", "curl_upload"],
)
def test_a_connection_upgraded_to_http2_is_http2(
    arca: Carrier, tmp_path: Path, command: list[str], body: bytes, count: int
) -> None:
    """The first request is HTTP/1.1 and answered on stream 1."""
    need(command[0])
    upload = tmp_path / "body"
    upload.write_bytes(b"uploaded")
    given = [part.format(body=upload) for part in command]
    answered: list[int] = []

    def serve(peer: Peer) -> bytes:
        head = peer.hears_head()
        assert b"\r\nupgrade: h2c\r\n" in head.lower()
        sent = bytes(peer.heard).partition(b"\r\n\r\n")[2]
        while len(sent) < len(body):
            sent += peer.socket.recv(len(body) - len(sent))
        assert sent == body
        encoded = re.search(rb"(?i)http2-settings: (\S*)\r\n", head)
        assert encoded is not None
        peer.sends(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        with Library(peer.socket, is_client=False, upgraded=encoded[1]) as end:
            asked = [1]
            while True:
                for stream in asked:
                    end.h2.send_headers(stream, [(b":status", b"200")])
                    end.h2.send_data(stream, b"stream %d\n" % stream, end_stream=True)
                    answered.append(stream)
                end.flush()
                if len(answered) == count:
                    until(lambda: peer.socket.recv(1 << 16) == b"")
                    return head
                asked = end.hears_requests()

    path = f"/up/{tmp_path.name}"
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        running = thread.submit(ran, *given, f"http://127.0.0.1:{arca.port}{path}")
        with arca.stage.accept() as server:
            head = serve(server)
        said = running.result()
    assert answered[0] == 1
    heard = answered[1:] if head.startswith(b"OPTIONS") else answered
    assert sorted(said.splitlines()) == [b"stream %d" % stream for stream in heard]
    assert head.lower().count(b"\r\nx-request-id: ") == 1
    until(lambda: any(row["target"] == path for row in arca.logged()))
    (name,) = {str(row["client"]) for row in arca.logged() if row["target"] == path}
    rows = arca.exchanges(name, count)
    assert len({row["request_id"] for row in rows}) == count
    assert {verdict(row) for row in rows} == {OK_VERDICT}

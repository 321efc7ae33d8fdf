"""The limits of HTTP/2, each by the attack it is for: at the limit all passes, one more ends the connection.

The connection ends with GOAWAY ENHANCE_YOUR_CALM to the side that went over; the other side is told that it
is over as well, and all that is in flight ends with the reason. A header list that is too long ends its
stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from protocols.exchange import End, Protocol
from protocols.http2 import Http2
from tests.unit.conversation import REQUEST_ID, Caller, Conversation, fixed_ids
from tests.unit.http2_conversation import (
    ACK,
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GET,
    GRPC,
    HEADERS,
    INDEXING,
    INTERNAL_ERROR,
    NO_ERROR,
    OK,
    OPEN,
    PADDED,
    PING,
    POST,
    PRIORITY,
    PUSH_PROMISE,
    QUIET_GET,
    QUIET_OK,
    QUIET_POST,
    RST_STREAM,
    SETTINGS,
    Field,
    Reader,
    TwoTables,
    asked,
    conversation,
    data,
    ended,
    frame,
    frames,
    goaway,
    headers,
    indexed,
    literal,
    only,
    opened,
    rst_stream,
    settings_frame,
    told_goaway,
    u32,
    window_update,
)

KIB = 1024
DOWNSTREAM, UPSTREAM = "downstream", "upstream"
HEAD = headers(1, QUIET_OK, END_HEADERS)


def say(talk: Conversation, side: str, said: bytes) -> None:
    """Said, and passed as it came."""
    if side == DOWNSTREAM:
        talk.downstream(said).to_upstream(said)
    else:
        talk.upstream(said).to_downstream(said)


def both_under_way() -> Conversation:
    """Stream 1 is in flight with both its messages begun."""
    return asked(1, QUIET_POST, END_HEADERS).upstream(HEAD).to_downstream(HEAD)


def held_to(talk: Conversation, side: str, limit: str) -> str:
    """The connection ended because ``side`` went over ``limit``; answers the reason that all were given."""
    caller = talk.caller
    assert caller.exceeded == [(limit, side)]
    assert caller.refusal is not None
    code, how = ENHANCE_YOUR_CALM, End.DOWNSTREAM_FAULT
    if side == UPSTREAM:
        code, how = INTERNAL_ERROR, End.UPSTREAM_FAULT
        last, told, _ = told_goaway(caller.refusal_to_upstream)
        assert (last, told) == (0, ENHANCE_YOUR_CALM)
    else:
        assert caller.refusal_to_upstream == b""
    last, told, reason = told_goaway(caller.refusal)
    assert (last % 2, told) == (1, code)
    assert caller.exchanges
    assert {(found.end, found.fault) for found in caller.exchanges} == {(how, reason)}
    assert caller.codec.in_flight == 0
    return reason


@dataclass(frozen=True)
class Flood:
    limit: str
    allowed: int
    said: bytes


FLOODS = [
    Flood("ping", 1000, frame(PING, 0, b"12345678")),
    Flood("settings", 999, settings_frame((4, 1))),  # the first one is the connection's
    Flood("priority", 200, frame(PRIORITY, 1, b"\0\0\0\0\1")),
    Flood("priority", 200, frame(PRIORITY, 99, b"\0\0\0\0\1")),
    Flood("window_update", 7, window_update(0, 1)),
    Flood("window_update", 7, window_update(1, 1)),
    Flood("empty_frames", 1, data(1)),
    Flood("empty_frames", 1, frame(DATA, 1, b"\x03\0\0\0", PADDED)),
    Flood("empty_frames", 1, frame(DATA, 1, b"\0", PADDED)),
    Flood("empty_frames", 1, headers(1, b"", END_HEADERS)),
]


@pytest.mark.parametrize("octets", [False, True])
@pytest.mark.parametrize("side", [DOWNSTREAM, UPSTREAM])
@pytest.mark.parametrize(
    "flood", FLOODS, ids=lambda flood: f"{flood.limit} {flood.said[3]} {len(flood.said)}"
)
def test_a_flood_ends_the_connection_when_it_goes_over_its_limit(
    flood: Flood, side: str, octets: bool
) -> None:
    talk = both_under_way()
    say(talk, side, flood.said * flood.allowed)
    assert not talk.caller.exceeded
    said = talk.caller.downstream if side == DOWNSTREAM else talk.caller.upstream
    for piece in [flood.said[i : i + 1] for i in range(len(flood.said))] if octets else [flood.said]:
        said(piece)
    padded = flood.said[3] == DATA and flood.said[4] & PADDED
    if padded and side == UPSTREAM:
        # The frame's head has gone to downstream, and nothing can be said within it.
        assert talk.caller.exceeded == [(flood.limit, side)]
        assert talk.caller.refusal == b""
        return
    held_to(talk, side, flood.limit)


def test_a_flood_on_an_idle_connection_is_an_exchange_of_its_own() -> None:
    talk = opened()
    say(talk, DOWNSTREAM, window_update(0, 1) * 5)
    talk.downstream(window_update(0, 1))
    talk.exchange(end=End.DOWNSTREAM_FAULT, protocol=Protocol.HTTP_2, stream=0, method=None)
    assert talk.caller.exceeded == [("window_update", DOWNSTREAM)]
    assert talk.caller.refusal is not None
    assert told_goaway(talk.caller.refusal)[:2] == (0, ENHANCE_YOUR_CALM)


def test_nothing_passes_after_the_end() -> None:
    talk = both_under_way().downstream(data(1) * 2 + data(1, b"more"))
    talk.to_upstream(data(1))
    held_to(talk, DOWNSTREAM, "empty_frames")
    assert talk.caller.codec.from_downstream(data(1, b"more"), 99.0) == b""
    assert talk.caller.codec.from_upstream(data(1, b"more"), 99.0) == b""
    assert talk.caller.codec.downstream_eof(99.0) == b""
    assert talk.caller.codec.upstream_eof(99.0) == b""


def test_every_stream_in_flight_ends_with_the_reason() -> None:
    talk = both_under_way()
    for stream in (3, 5):
        say(talk, DOWNSTREAM, headers(stream, QUIET_GET))
    say(talk, UPSTREAM, headers(3, QUIET_OK))
    talk.exchange(stream=3, end=End.COMPLETE).downstream(data(1) * 2).to_upstream(data(1))
    assert [found.stream for found in talk.caller.exchanges] == [1, 5]
    held_to(talk, DOWNSTREAM, "empty_frames")


# -- what keeps a peer within the limits


@pytest.mark.parametrize("side", [DOWNSTREAM, UPSTREAM])
def test_answered_pings_and_settings_are_without_limit(side: str) -> None:
    talk = both_under_way()
    other = UPSTREAM if side == DOWNSTREAM else DOWNSTREAM
    for _ in range(3):
        say(talk, side, frame(PING, 0, b"12345678") * 900 + settings_frame() * 900)
        say(talk, other, frame(PING, 0, b"12345678", ACK) * 900 + frame(SETTINGS, flags=ACK) * 900)


@pytest.mark.parametrize("side", [DOWNSTREAM, UPSTREAM])
def test_answers_that_nobody_asked_for_give_no_room(side: str) -> None:
    talk = both_under_way()
    other = UPSTREAM if side == DOWNSTREAM else DOWNSTREAM
    say(talk, other, frame(PING, 0, b"12345678", ACK) * 5000 + frame(SETTINGS, flags=ACK) * 5000)
    say(talk, side, frame(PING, 0, b"12345678") * 1000)
    (talk.downstream if side == DOWNSTREAM else talk.upstream)(frame(PING, 0, b"12345678"))
    held_to(talk, side, "ping")


@pytest.mark.parametrize("side", [DOWNSTREAM, UPSTREAM])
def test_data_of_the_other_side_gives_room_for_window_updates(side: str) -> None:
    talk = both_under_way()
    say(talk, UPSTREAM if side == DOWNSTREAM else DOWNSTREAM, data(1, b"x") * 3)
    say(talk, side, window_update(1, 1) * (7 + 60))
    (talk.downstream if side == DOWNSTREAM else talk.upstream)(window_update(1, 1))
    held_to(talk, side, "window_update")


def test_streams_give_room_for_priorities() -> None:
    talk = both_under_way()
    say(talk, DOWNSTREAM, headers(3, QUIET_GET) + frame(PRIORITY, 3, b"\0\0\0\0\1") * 300)
    talk.downstream(frame(PRIORITY, 3, b"\0\0\0\0\1"))
    held_to(talk, DOWNSTREAM, "priority")


@pytest.mark.parametrize("side", [DOWNSTREAM, UPSTREAM])
@pytest.mark.parametrize(
    "between",
    [data(1, b"x"), frame(DATA, 1, b"\x01x\0", PADDED), headers(1, literal(b"a", b"b"), END_HEADERS)],
    ids=["data", "padded data", "headers"],
)
def test_empty_frames_count_only_in_a_row(between: bytes, side: str) -> None:
    say(both_under_way(), side, (data(1) + between) * 20)


def test_an_empty_frame_that_ends_its_stream_is_no_flood() -> None:
    talk = opened()
    for stream in range(1, 101, 2):
        say(talk, DOWNSTREAM, headers(stream, QUIET_POST, END_HEADERS))
    for stream in range(1, 101, 2):
        say(talk, DOWNSTREAM, ended(stream))
    talk.in_flight(50)


# -- header blocks


def continued(count: int, fragment: bytes) -> bytes:
    """A request whose block has ``count`` CONTINUATION frames."""
    said = frame(HEADERS, 3, QUIET_GET, END_STREAM)
    for i in range(count):
        said += frame(CONTINUATION, 3, fragment, END_HEADERS if i == count - 1 else 0)
    return said


def test_512_continuation_frames_pass_and_one_more_ends_the_connection() -> None:
    # 3 octets that only set the size of the table would do, but those must come first: an indexed field each.
    said = frame(HEADERS, 3, QUIET_GET[:-1], END_STREAM) + frame(CONTINUATION, 3, QUIET_GET[-1:])
    long = literal(b"x", b"v" * 506)
    said += b"".join(frame(CONTINUATION, 3, long[i : i + 1]) for i in range(510))
    said += frame(CONTINUATION, 3, long[510:], END_HEADERS)
    assert len([found for found in frames(said) if found.kind == CONTINUATION]) == 512
    talk = asked()
    say(talk, DOWNSTREAM, said)
    talk = asked().downstream(said[: -9 - len(long[510:])]).nothing().in_flight(1)
    talk.downstream(frame(CONTINUATION, 3, long[510:511])).nothing()
    talk.downstream(frame(CONTINUATION, 3, long[511:], END_HEADERS))
    held_to(talk, DOWNSTREAM, "continuation")


def test_upstreams_continuation_flood_ends_the_connection() -> None:
    talk = asked().upstream(frame(HEADERS, 1, QUIET_OK)).nothing()
    for _ in range(512):
        talk.upstream(frame(CONTINUATION, 1, b"\x20")).nothing()
    talk.upstream(frame(CONTINUATION, 1, b"\x20"))
    held_to(talk, UPSTREAM, "continuation")


def test_empty_continuation_frames_count_as_empty_frames() -> None:
    said = frame(HEADERS, 3, QUIET_GET, END_STREAM) + frame(CONTINUATION, 3)
    say(asked(), DOWNSTREAM, said + frame(CONTINUATION, 3, literal(b"a", b"b"), END_HEADERS))
    talk = asked().downstream(said).nothing().downstream(frame(CONTINUATION, 3, b"", END_HEADERS))
    held_to(talk, DOWNSTREAM, "empty_frames")


@pytest.mark.parametrize("piece", [1000, 16384])
@pytest.mark.parametrize("side", [DOWNSTREAM, UPSTREAM])
def test_a_block_that_never_ends_is_held_to_its_limit(side: str, piece: int) -> None:
    talk = asked()
    caller = talk.caller
    stream, kind = (3, HEADERS) if side == DOWNSTREAM else (1, HEADERS)
    taken = 0
    while caller.refusal is None:
        said = frame(kind, stream, b"\0" * 16384)
        kind = CONTINUATION
        for at in range(0, len(said), piece):
            (caller.downstream if side == DOWNSTREAM else caller.upstream)(said[at : at + piece])
            taken += len(said[at : at + piece])
        assert taken <= 128 * KIB + 16384 + 10 * 9
    assert not caller.to_upstream
    assert not caller.to_downstream
    held_to(talk, side, "header_block")


def test_a_block_in_one_large_frame_is_refused_by_its_length() -> None:
    talk = asked()
    say(talk, UPSTREAM, settings_frame((5, 1 << 24)))
    talk.downstream(headers(3, b"x" * (128 * KIB + 1))[:9])
    held_to(talk, DOWNSTREAM, "header_block")


@pytest.mark.parametrize("side", [DOWNSTREAM, UPSTREAM])
def test_large_frames_are_not_collected(side: str) -> None:
    """What a peer allows in one frame, up to 16 MiB, is not for us to hold: only blocks and settings are."""
    talk = asked()
    say(talk, UPSTREAM if side == DOWNSTREAM else DOWNSTREAM, settings_frame((5, 1 << 24)))
    caller = talk.caller
    said, heard = (
        (caller.downstream, caller.to_upstream)
        if side == DOWNSTREAM
        else (caller.upstream, caller.to_downstream)
    )
    size = 1 << 20
    for whole in (frame(0xFA, 0, b"e" * size), goaway(1, NO_ERROR, b"d" * size), data(1, b"x" * size)):
        for at in range(0, len(whole), 5000):
            said(whole[at : at + 5000])
            assert min(at + 5000, len(whole)) - len(heard) < 32
        assert bytes(heard) == whole
        heard.clear()
    # Settings are looked at one by one, as a whole frame.
    whole = frame(SETTINGS, 0, b"\xab\xcd\0\0\0\0" * (128 * KIB // 6))
    say(talk, side, whole)
    said(frame(SETTINGS, 0, b"\xab\xcd\0\0\0\0" * (128 * KIB // 6 + 1))[:9])
    assert caller.exceeded == [("settings", side)]


# -- rapid reset (CVE-2023-44487)


def test_half_of_500_streams_reset_before_a_response_ends_the_connection() -> None:
    talk = opened()
    talk.caller.tick = 0.0001
    for stream in range(1, 499, 2):
        say(talk, DOWNSTREAM, headers(stream, QUIET_GET) + rst_stream(stream))
        talk.exchange(stream=stream, end=End.DOWNSTREAM_RST_STREAM)
    say(talk, DOWNSTREAM, headers(499, QUIET_GET) + headers(501, QUIET_GET))
    talk.downstream(rst_stream(499)).exchange(stream=499, end=End.DOWNSTREAM_RST_STREAM)
    held_to(talk, DOWNSTREAM, "rapid_reset")


def test_resets_among_as_many_answered_requests_are_no_attack() -> None:
    talk = opened()
    talk.caller.tick = 0.0001
    for stream in range(1, 6001, 6):
        for answered in (stream, stream + 2):
            say(talk, DOWNSTREAM, headers(answered, QUIET_GET))
            say(talk, UPSTREAM, headers(answered, QUIET_OK))
            talk.exchange(stream=answered, end=End.COMPLETE)
        say(talk, DOWNSTREAM, headers(stream + 4, QUIET_GET) + rst_stream(stream + 4))
        talk.exchange(stream=stream + 4, end=End.DOWNSTREAM_RST_STREAM)


@pytest.mark.parametrize("reason", ["slow", "begun", "upstream"])
def test_resets_that_are_slow_or_late_or_upstreams_are_no_attack(reason: str) -> None:
    talk = opened()
    talk.caller.tick = 1.0 if reason == "slow" else 0.0001
    for stream in range(1, 2001, 2):
        say(talk, DOWNSTREAM, headers(stream, QUIET_GET))
        if reason == "begun":
            say(talk, UPSTREAM, headers(stream, QUIET_OK, END_HEADERS))
        say(talk, UPSTREAM if reason == "upstream" else DOWNSTREAM, rst_stream(stream))
        only(talk.caller.exchanges)


def test_pushed_responses_that_are_declined_are_no_attack() -> None:
    talk = asked()
    talk.caller.tick = 0.0001
    for stream in range(2, 1402, 2):
        say(talk, UPSTREAM, frame(PUSH_PROMISE, 1, u32(stream) + GET, END_HEADERS))
        say(talk, DOWNSTREAM, rst_stream(stream))
        only(talk.caller.exchanges)


# -- header lists


def many(count: int) -> bytes:
    return b"".join(literal(b"x-%d" % i, b"") for i in range(count))


def filled(block: bytes, size: int) -> bytes:
    """``block`` with a field that makes its list ``size`` octets long."""
    reader = Reader()
    reader.read(headers(1, block))
    fields: list[Field] = reader.lists[0][1]
    room = size - sum(len(name) + len(value) for name, value in fields)
    return block + literal(b"x", b"v" * (room - 1))


def heads(said: bytes) -> list[tuple[int, list[Field]]]:
    reader = Reader()
    reader.read(said)
    return reader.lists


@pytest.mark.parametrize(
    "block", [GET + many(100), filled(GET, 60 * KIB), QUIET_GET + many(98), filled(QUIET_GET, 60 * KIB)]
)
def test_a_request_at_its_limit_passes_one_arca_after_the_other(block: bytes) -> None:
    said = fragment(1, block)
    for _ in range(3):
        caller = Caller(Http2(fixed_ids()))
        caller.downstream(OPEN + said)
        assert not caller.exceeded
        said = bytes(caller.to_upstream)[len(OPEN) :]
    assert [name for name, _ in heads(said)[0][1]].count(b"x-request-id") == 1


@pytest.mark.parametrize("block", [OK + many(100), filled(OK, 60 * KIB)], ids=["fields", "octets"])
def test_a_response_at_its_limit_passes_one_arca_after_the_other(block: bytes) -> None:
    said = fragment(1, block)
    for _ in range(3):
        caller = Caller(Http2(fixed_ids()))
        caller.downstream(OPEN + headers(1, GET))
        caller.upstream(settings_frame() + said)
        assert not caller.exceeded
        said = bytes(caller.to_downstream)[len(settings_frame()) :]
    assert [name for name, _ in heads(said)[0][1]].count(b"x-request-id") == 1


def fragment(stream: int, block: bytes, flags: int = END_STREAM) -> bytes:
    pieces = [block[at : at + 16384] for at in range(0, len(block), 16384)]
    said = b""
    for i, piece in enumerate(pieces):
        last = END_HEADERS if i == len(pieces) - 1 else 0
        said += frame(CONTINUATION if i else HEADERS, stream, piece, (0 if i else flags) | last)
    return said


TOO_LONG = [
    pytest.param(GET + many(101), "more than 100 header fields", id="fields"),
    pytest.param(filled(GET, 60 * KIB + 1), "a header list of more than 60 KiB", id="octets"),
    pytest.param(QUIET_GET + many(101), "more than 100 header fields", id="fields beside ids"),
]


@pytest.mark.parametrize(("block", "reason"), TOO_LONG)
def test_a_request_with_too_long_a_list_is_answered_431_and_never_goes_on(block: bytes, reason: str) -> None:
    talk = asked().downstream(fragment(3, block))
    answer = frames(bytes(talk.caller.to_downstream))
    assert [(found.kind, found.flags) for found in answer] == [(HEADERS, END_HEADERS | END_STREAM)]
    ((stream, fields),) = heads(bytes(talk.caller.to_downstream))
    assert stream == 3
    assert fields[0] == (b":status", b"431")
    assert (b"x-arca-fault", f"the request was refused: {reason}".encode()) in fields
    assert (b"x-request-id", b"mine" if b"mine" in block else REQUEST_ID) in fields
    talk.caller.to_downstream.clear()
    assert talk.caller.exceeded == [("header_list", DOWNSTREAM)]
    talk.exchange(
        stream=3, end=End.DOWNSTREAM_FAULT, status=431, fault=reason, request_complete=True
    ).in_flight(1)
    talk.upstream(headers(1, QUIET_OK)).to_downstream(headers(1, QUIET_OK)).exchange(
        stream=1, end=End.COMPLETE
    )


def cut(more: bytes = b"") -> Conversation:
    """Stream 1 is in flight; stream 3 was refused for its list, its body still to come."""
    return asked().downstream(headers(3, POST + more + many(101), END_HEADERS))


def test_a_request_whose_body_is_still_coming_is_told_to_stop() -> None:
    talk = cut()
    answer = frames(bytes(talk.caller.to_downstream))
    assert [found.kind for found in answer] == [HEADERS, RST_STREAM]
    assert answer[1].payload == u32(NO_ERROR)
    only(talk.caller.exchanges)


def test_what_still_comes_of_a_refused_request_is_dropped_and_its_window_given_back() -> None:
    talk = cut()
    talk.caller.to_downstream.clear()
    talk.exchange(stream=3, request_complete=False, end=End.DOWNSTREAM_FAULT)
    talk.downstream(data(3, b"x" * 700)).to_downstream(window_update(0, 700))
    padded = frame(DATA, 3, b"\x05x" + b"\0" * 5, PADDED)
    for i in range(len(padded) - 1):
        talk.downstream(padded[i : i + 1]).nothing()
    talk.downstream(padded[-1:]).to_downstream(window_update(0, 7))
    around = data(1, b"before"), data(3, b"dropped"), data(1, b"after")
    talk.downstream(b"".join(around)).to_upstream(around[0] + around[2]).to_downstream(window_update(0, 7))
    talk.downstream(data(3, b"1") + data(3, b"22") + data(3)).to_downstream(window_update(0, 3))
    talk.downstream(window_update(3, 1000)).nothing()
    talk.downstream(frame(DATA, 3, b"", END_STREAM)).nothing().downstream(rst_stream(3)).nothing()
    talk.downstream(headers(3, literal(b"x-trailer", b"1"))).nothing()
    talk.upstream(headers(1, QUIET_OK)).to_downstream(headers(1, QUIET_OK)).exchange(
        stream=1, end=End.COMPLETE
    )


def test_a_call_with_too_long_a_list_is_answered_resource_exhausted() -> None:
    talk = cut(GRPC)
    ((stream, fields),) = heads(bytes(talk.caller.to_downstream))
    assert stream == 3
    assert dict(fields)[b"grpc-status"] == b"8"
    assert dict(fields)[b":status"] == b"200"
    assert b"100 header fields" in dict(fields)[b"grpc-message"]
    exchange = only(talk.caller.exchanges)
    assert exchange.rpc is not None
    assert (exchange.code, exchange.rpc.status, exchange.status) == ("RESOURCE_EXHAUSTED", 8, 200)
    assert talk.caller.codec.in_flight_grpc == 0


def test_trailers_that_are_too_long_end_their_stream() -> None:
    for begun in (False, True):
        talk = both_under_way() if begun else asked(1, QUIET_POST, END_HEADERS)
        trailers = headers(1, many(101))
        talk.downstream(trailers).to_upstream(rst_stream(1, CANCEL))
        if begun:
            talk.to_downstream(rst_stream(1, ENHANCE_YOUR_CALM))
        else:
            assert heads(bytes(talk.caller.to_downstream))[0][1][0] == (b":status", b"431")
            talk.caller.to_downstream.clear()
        talk.exchange(stream=1, end=End.DOWNSTREAM_FAULT, status=200 if begun else 431).in_flight(0)


@pytest.mark.parametrize("trailers", [False, True])
def test_a_response_with_too_long_a_list_ends_its_stream_and_never_goes_on(trailers: bool) -> None:
    talk = both_under_way() if trailers else asked(1, QUIET_POST, END_HEADERS)
    say(talk, DOWNSTREAM, headers(3, QUIET_GET))
    reason = "more than 100 header fields"
    talk.upstream(headers(1, many(103) if trailers else OK + many(103), END_HEADERS))
    talk.to_upstream(rst_stream(1, CANCEL))
    if trailers:
        talk.to_downstream(rst_stream(1, INTERNAL_ERROR))
    else:
        told = bytes(talk.caller.to_downstream)
        talk.caller.to_downstream.clear()
        ((stream, fields),) = heads(told)
        assert stream == 1
        assert dict(fields)[b":status"] == b"502"
        assert dict(fields)[b"x-arca-cause"] == b"protocol_error"
        assert dict(fields)[b"x-arca-fault"] == f"the upstream's response was refused: {reason}".encode()
        assert dict(fields)[b"x-request-id"] == b"mine"
        # The request is still coming, and is told to stop.
        assert [found.kind for found in frames(told)] == [HEADERS, RST_STREAM]
        assert frames(told)[1].payload == u32(NO_ERROR)
    assert talk.caller.exceeded == [("header_list", UPSTREAM)]
    talk.exchange(stream=1, end=End.UPSTREAM_FAULT, fault=reason, status=200 if trailers else 502).in_flight(
        1
    )
    talk.upstream(data(1, b"abc")).to_upstream(window_update(0, 3))
    talk.downstream(data(1, b"defg")).to_downstream(window_update(0, 4))
    talk.upstream(headers(1, literal(b"x", b"y")) + rst_stream(1) + window_update(1, 5)).nothing()
    talk.downstream(headers(1, literal(b"x", b"y")) + rst_stream(1) + window_update(1, 5)).nothing()
    talk.upstream(headers(3, QUIET_OK)).to_downstream(headers(3, QUIET_OK)).exchange(
        stream=3, end=End.COMPLETE
    )


def test_the_tables_stay_in_step_behind_a_refused_request() -> None:
    tables = TwoTables(sample=0.0)
    tables.request(QUIET_GET + literal(b"x-first", b"1", INDEXING))
    tables.request(QUIET_GET + literal(b"x-kept", b"2", INDEXING) + many(101))
    assert tables.caller.exceeded == [("header_list", DOWNSTREAM)]
    tables.caller.to_downstream.clear()
    found = tables.request(QUIET_GET + indexed(62) + indexed(63))
    assert found[-2:] == [(b"x-kept", b"2"), (b"x-first", b"1")]


def test_an_answer_waits_for_the_end_of_the_frame_that_is_passing() -> None:
    talk = both_under_way()
    body = data(1, b"x" * 100)
    talk.upstream(body[:50]).to_downstream(body[:50])
    talk.downstream(headers(3, GET + many(101))).exchange(stream=3, status=431)
    talk.upstream(body[50:80]).to_downstream(body[50:80])
    talk.upstream(body[80:] + data(1, b"next"))
    whole = bytes(talk.caller.to_downstream)
    talk.caller.to_downstream.clear()
    assert whole.startswith(body[80:])
    assert whole.endswith(data(1, b"next"))
    assert [found.kind for found in frames(whole[len(body[80:]) :])] == [HEADERS, DATA]
    talk.in_flight(1)


def test_an_answer_waits_for_upstreams_settings() -> None:
    talk = conversation()
    talk.downstream(OPEN + headers(1, GET + many(101))).to_upstream(OPEN).exchange(stream=1, status=431)
    talk.upstream(settings_frame()[:5]).nothing().upstream(settings_frame()[5:] + frame(SETTINGS, flags=ACK))
    whole = frames(bytes(talk.caller.to_downstream))
    talk.caller.to_downstream.clear()
    assert [found.kind for found in whole] == [SETTINGS, HEADERS, SETTINGS]


def test_answers_that_wait_are_bounded() -> None:
    talk = both_under_way()
    say(talk, DOWNSTREAM, settings_frame((5, 1 << 24)))
    talk.upstream(data(1, b"x" * 1000)[:500]).to_downstream(data(1, b"x" * 1000)[:500])
    for stream in range(3, 203, 2):
        talk.downstream(headers(stream, GET + many(101))).exchange(stream=stream, status=431)
    rest = data(1, b"x" * 1000)[500:]
    talk.upstream(rest)
    whole = bytes(talk.caller.to_downstream)
    assert whole.startswith(rest)
    assert 16 * KIB < len(whole) < 20 * KIB
    assert {found.kind for found in frames(whole[len(rest) :])} == {HEADERS}


def test_a_list_that_cannot_be_read_to_its_end_is_refused_where_the_tables_differ() -> None:
    trace = literal(b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", INDEXING)
    talk = opened(sample=1.0).downstream(headers(1, GET + trace))
    talk.caller.to_upstream.clear()
    talk.downstream(headers(3, GET + many(150) + indexed(62))).exchange(
        stream=3, end=End.DOWNSTREAM_FAULT, status=431
    )
    assert talk.caller.exceeded == [("header_list", DOWNSTREAM)]
    # Nobody answers for the trailers of a stream that is over: they are held back alone.
    talk.caller.to_downstream.clear()
    talk.upstream(headers(1, QUIET_OK)).to_downstream(headers(1, QUIET_OK)).exchange(
        stream=1, end=End.COMPLETE
    )
    talk.downstream(headers(1, many(150) + indexed(62))).nothing()
    assert talk.caller.refusal is None


def test_an_id_that_was_too_long_to_keep_whole_is_not_given_back() -> None:
    talk = opened()
    mine = b"m" * 700
    path = literal(4, b"/" + b"p" * 8000)
    block = GET[:2] + path + GET[3:] + literal(b"x-request-id", mine)
    # So many long targets are in flight that only the beginning of another one is kept.
    for stream in range(1, 401, 2):
        talk.caller.downstream(headers(stream, block))
    talk.caller.to_upstream.clear()
    for stream in (1, 399):
        talk.upstream(headers(stream, OK))
        fields = heads(bytes(talk.caller.to_downstream))[0][1]
        talk.caller.to_downstream.clear()
        assert fields == [(b":status", b"200")] + ([(b"x-request-id", mine)] if stream == 1 else [])
        assert mine.startswith(only(talk.caller.exchanges).request_id or b"-")

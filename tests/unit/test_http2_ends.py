"""How HTTP/2 exchanges end, what ARCA answers where there is no upstream, and what is carried on unread."""

from __future__ import annotations

import errno

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset

from protocols.exchange import End, Protocol
from protocols.http2 import Http2
from tests.unit.conversation import Caller, Conversation, fixed_ids
from tests.unit.http2_conversation import (
    ACK,
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    GIVEN_BACK,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    INDEXING,
    INTERNAL_ERROR,
    NO_ERROR,
    OK,
    OPEN,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    QUIET_GET,
    QUIET_OK,
    QUIET_POST,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Reader,
    asked,
    conversation,
    data,
    ended,
    fragmented,
    frame,
    frames,
    goaway,
    headers,
    indexed,
    listed,
    literal,
    only,
    opened,
    rst_stream,
    settings_frame,
    table_size,
    told_goaway,
    u32,
)

ANSWER = headers(1, QUIET_OK)
HEAD = headers(1, QUIET_OK, END_HEADERS)
UPLOAD = QUIET_POST


def uploading() -> Conversation:
    return asked(1, UPLOAD, END_HEADERS)


# -- resets of a stream


@pytest.mark.parametrize("code", [CANCEL, REFUSED_STREAM, NO_ERROR, 0xFFFFFFFF])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("side", ["downstream", "upstream"])
def test_a_reset_before_the_response_is_complete_ends_the_exchange(side: str, begun: bool, code: int) -> None:
    talk = uploading()
    if begun:
        talk.upstream(HEAD).to_downstream(HEAD)
    said = rst_stream(1, code)
    if side == "downstream":
        talk.downstream(said).to_upstream(said)
    else:
        talk.upstream(said).to_downstream(said)
    how = End.DOWNSTREAM_RST_STREAM if side == "downstream" else End.UPSTREAM_RST_STREAM
    talk.exchange(end=how, stream_error=code, status=200 if begun else 0, response_complete=False).in_flight(
        0
    )


@pytest.mark.parametrize("side", ["downstream", "upstream"])
def test_a_reset_behind_a_complete_response_leaves_the_exchange_complete(side: str) -> None:
    talk = uploading().upstream(ANSWER).to_downstream(ANSWER).in_flight(1)
    said = rst_stream(1, NO_ERROR)
    if side == "downstream":
        talk.downstream(said).to_upstream(said)
    else:
        talk.upstream(said).to_downstream(said)
    talk.exchange(
        end=End.COMPLETE, stream_error=-1, request_complete=False, response_complete=True
    ).in_flight(0)


def test_a_reset_of_one_stream_leaves_the_others() -> None:
    talk = uploading().downstream(headers(3, QUIET_GET)).to_upstream(headers(3, QUIET_GET))
    talk.downstream(rst_stream(1)).to_upstream(rst_stream(1)).exchange(stream=1).in_flight(1)
    talk.upstream(headers(3, QUIET_OK)).to_downstream(headers(3, QUIET_OK)).exchange(
        stream=3, end=End.COMPLETE
    )


def test_an_upload_that_is_answered_early_goes_on_passing_to_the_end_of_its_frame() -> None:
    """RFC 9113 section 8.1: a response, and RST_STREAM with NO_ERROR, before the request is complete."""
    talk = uploading()
    last = ended(1, b"x" * 100)
    talk.downstream(last[:50]).to_upstream(last[:50])
    early = ANSWER + rst_stream(1, NO_ERROR)
    talk.upstream(early).to_downstream(early).exchange(end=End.COMPLETE, request_bytes=9 + len(UPLOAD) + 50)
    talk.downstream(last[50:]).to_upstream(last[50:]).in_flight(0)


def test_a_reset_in_the_middle_of_the_last_frame_is_the_end() -> None:
    talk = uploading()
    last = ended(1, b"x" * 100)
    talk.downstream(last[:50]).to_upstream(last[:50])
    talk.upstream(rst_stream(1)).to_downstream(rst_stream(1)).exchange(end=End.UPSTREAM_RST_STREAM)
    talk.downstream(last[50:]).to_upstream(last[50:]).in_flight(0)


def test_a_reset_in_the_middle_of_the_responses_last_frame_is_the_end() -> None:
    talk = asked().upstream(HEAD).to_downstream(HEAD)
    last = ended(1, b"x" * 100)
    talk.upstream(last[:50]).to_downstream(last[:50])
    talk.downstream(rst_stream(1)).to_upstream(rst_stream(1))
    talk.exchange(end=End.DOWNSTREAM_RST_STREAM, response_bytes=len(HEAD) + 50)
    talk.upstream(last[50:]).to_downstream(last[50:]).in_flight(0)


# -- GOAWAY


def test_streams_that_goaway_leaves_out_end_with_its_code() -> None:
    talk = asked()
    for stream in (3, 5):
        talk.downstream(headers(stream, QUIET_GET)).to_upstream(headers(stream, QUIET_GET))
    said = goaway(3, 11, b"too many")
    talk.upstream(said).to_downstream(said)
    talk.exchange(stream=5, end=End.UPSTREAM_GOAWAY, stream_error=11, status=0).in_flight(2)
    for stream in (1, 3):
        talk.upstream(headers(stream, QUIET_OK)).to_downstream(headers(stream, QUIET_OK))
        talk.exchange(stream=stream, end=End.COMPLETE)


def test_a_graceful_goaway_ends_nothing_yet() -> None:
    talk = asked().upstream(goaway(2**31 - 1)).to_downstream(goaway(2**31 - 1)).in_flight(1)
    talk.downstream(headers(3, QUIET_GET)).to_upstream(headers(3, QUIET_GET)).in_flight(2)
    talk.upstream(goaway(1)).to_downstream(goaway(1)).exchange(
        stream=3, end=End.UPSTREAM_GOAWAY, stream_error=0
    )


def test_a_request_behind_goaway_ends_at_once() -> None:
    talk = asked().upstream(goaway(1, NO_ERROR)).to_downstream(goaway(1, NO_ERROR)).in_flight(1)
    talk.downstream(headers(3, QUIET_GET)).to_upstream(headers(3, QUIET_GET))
    talk.exchange(stream=3, end=End.UPSTREAM_GOAWAY, stream_error=NO_ERROR)
    talk.downstream(headers(5, QUIET_POST, END_HEADERS)).to_upstream(headers(5, QUIET_POST, END_HEADERS))
    talk.exchange(stream=5, end=End.UPSTREAM_GOAWAY).downstream(ended(5, b"x")).to_upstream(ended(5, b"x"))


def test_goaway_in_the_middle_of_the_requests_last_frame_is_its_end() -> None:
    talk = uploading()
    last = ended(1, b"x" * 100)
    talk.downstream(last[:50]).to_upstream(last[:50])
    talk.upstream(goaway(0)).to_downstream(goaway(0)).exchange(end=End.UPSTREAM_GOAWAY)
    talk.downstream(last[50:]).to_upstream(last[50:]).in_flight(0)


def test_a_stream_whose_response_has_begun_is_not_ended_by_goaway() -> None:
    talk = (
        asked().upstream(HEAD).to_downstream(HEAD).upstream(goaway(0)).to_downstream(goaway(0)).in_flight(1)
    )
    talk.upstream(ended(1)).to_downstream(ended(1)).exchange(end=End.COMPLETE)


def test_goaway_of_downstream_ends_nothing() -> None:
    talk = asked().downstream(goaway(0)).to_upstream(goaway(0)).in_flight(1)
    talk.upstream(ANSWER).to_downstream(ANSWER).exchange(end=End.COMPLETE)


# -- the end of the connection


@pytest.mark.parametrize("how", [End.DOWNSTREAM_FIN, End.DOWNSTREAM_RST, End.UPSTREAM_FIN, End.UPSTREAM_RST])
def test_the_end_of_the_connection_ends_every_stream(how: End) -> None:
    talk = uploading().downstream(headers(3, QUIET_GET)).to_upstream(headers(3, QUIET_GET))
    talk.upstream(ANSWER).to_downstream(ANSWER).ended(how, errno.ECONNRESET)
    talk.exchange(stream=1, end=End.COMPLETE, status=200, error=0)
    talk.exchange(stream=3, end=how, error=errno.ECONNRESET, ended=talk.caller.now).in_flight(0).ended(how)
    talk.nothing()


@pytest.mark.parametrize("how", [End.DOWNSTREAM_FIN, End.DOWNSTREAM_RST, End.UPSTREAM_FIN, End.UPSTREAM_RST])
def test_an_idle_connection_ends_without_an_exchange(how: End) -> None:
    opened().ended(how).nothing()


def test_upstreams_fin_ends_every_stream() -> None:
    talk = uploading().downstream(headers(3, QUIET_GET)).to_upstream(headers(3, QUIET_GET))
    talk.upstream_eof().exchange(stream=1, end=End.UPSTREAM_FIN).exchange(stream=3, end=End.UPSTREAM_FIN)
    talk.in_flight(0)


def test_after_downstreams_fin_responses_go_on() -> None:
    talk = uploading().downstream(headers(3, QUIET_GET)).to_upstream(headers(3, QUIET_GET))
    talk.downstream_eof().fin_to_upstream(True).in_flight(2)
    talk.upstream(ANSWER).to_downstream(ANSWER).exchange(stream=1, end=End.COMPLETE, request_complete=False)
    talk.upstream_eof().exchange(stream=3, end=End.DOWNSTREAM_FIN)


def test_what_is_held_goes_on_when_its_side_ends() -> None:
    talk = asked().downstream(b"\0\0\x08").nothing().downstream_eof().to_upstream(b"\0\0\x08")
    talk.upstream(ANSWER[:-1]).nothing().upstream_eof().to_downstream(ANSWER[:-1])
    talk.exchange(end=End.DOWNSTREAM_FIN, status=0)


@pytest.mark.parametrize("how", [End.DRAINED, End.INTERNAL, End.OVERLOAD])
def test_what_ends_the_connection_itself_is_told_also_where_it_is_idle(how: End) -> None:
    opened().ended(how).exchange(protocol=Protocol.HTTP_2, end=how, method=None, stream=0)
    asked().ended(how).exchange(stream=1, end=how)


# -- a head that takes too long


def test_a_head_that_takes_too_long_is_refused() -> None:
    talk = opened().downstream(headers(1, QUIET_GET)[:20]).nothing()
    codec = talk.caller.codec
    assert not codec.awaits_head(since=3.0)
    assert codec.awaits_head(since=3.5)
    talk.caller.refuse_late_head()
    talk.exchange(end=End.HEAD_TIMEOUT)
    assert talk.caller.refusal is not None
    last, code, said = told_goaway(talk.caller.refusal)
    assert (last, code) == (0, 11)
    assert "head_timeout" in said


def test_a_late_head_without_upstreams_settings_is_told_behind_settings_of_ours() -> None:
    talk = conversation().downstream(OPEN + b"\0").to_upstream(OPEN)
    talk.caller.refuse_late_head()
    talk.exchange(end=End.HEAD_TIMEOUT)
    assert talk.caller.refusal is not None
    assert [found.kind for found in frames(talk.caller.refusal)] == [SETTINGS, 7]


def test_no_head_is_awaited_where_every_frame_is_complete() -> None:
    assert not opened().caller.codec.awaits_head(since=99.0)
    assert not asked().caller.codec.awaits_head(since=99.0)


def test_a_late_head_in_the_middle_of_a_response_is_cut() -> None:
    talk = asked().upstream(HEAD + data(1, b"abc")[:10]).to_downstream(HEAD + data(1, b"abc")[:10])
    talk.downstream(b"\0").nothing()
    talk.caller.refuse_late_head()
    talk.cut().exchange(stream=1, end=End.HEAD_TIMEOUT)


# -- farewell


def test_a_farewell_names_the_last_stream() -> None:
    talk = asked().upstream(ANSWER).to_downstream(ANSWER).exchange(stream=1)
    last, code, _ = told_goaway(talk.caller.codec.farewell())
    assert (last, code) == (1, NO_ERROR)


def test_there_is_no_farewell_before_upstreams_settings_or_within_its_frame() -> None:
    assert conversation().downstream(OPEN).to_upstream(OPEN).caller.codec.farewell() == b""
    talk = asked().upstream(HEAD + data(1, b"abc")[:10])
    assert talk.caller.codec.farewell() == b""


def test_a_drain_is_told_without_giving_up_any_stream() -> None:
    talk = asked()
    last, code, _ = told_goaway(talk.caller.codec.begin_drain())
    assert (last, code) == (0x7FFFFFFF, NO_ERROR)
    talk.upstream(ANSWER).to_downstream(ANSWER).exchange(stream=1, end=End.COMPLETE)


def test_a_drain_is_told_behind_the_frame_that_is_on_its_way() -> None:
    rest = data(1, b"abc", END_STREAM)
    talk = asked().upstream(HEAD + rest[:10]).to_downstream(HEAD + rest[:10])
    assert talk.caller.codec.begin_drain() == b""
    talk.caller.upstream(rest[10:])
    said = bytes(talk.caller.to_downstream)
    assert said.startswith(rest[10:])
    assert told_goaway(said[len(rest[10:]) :])[:2] == (0x7FFFFFFF, NO_ERROR)


def test_a_drain_before_upstreams_settings_is_told_behind_them() -> None:
    talk = conversation().downstream(OPEN + headers(1, QUIET_GET)).to_upstream(OPEN + headers(1, QUIET_GET))
    assert talk.caller.codec.begin_drain() == b""
    talk.upstream(settings_frame()[:4]).nothing()
    talk.caller.upstream(settings_frame()[4:] + ANSWER)
    settings, notice, *answer = frames(bytes(talk.caller.to_downstream))
    assert [settings.kind, notice.kind] == [SETTINGS, GOAWAY]
    assert notice.payload[:8] == u32(0x7FFFFFFF) + u32(NO_ERROR)
    assert answer == frames(ANSWER)
    assert only(talk.caller.exchanges).end == End.COMPLETE


@pytest.mark.parametrize("said", ["never", "of both", "of the other side"])
@pytest.mark.parametrize(
    "how",
    [End.DOWNSTREAM_FIN, End.DOWNSTREAM_RST, End.UPSTREAM_FIN, End.UPSTREAM_RST],
    ids=lambda how: how.name,
)
def test_an_exchange_that_ends_with_its_connection_has_the_code_of_that_sides_last_goaway(
    how: End, said: str
) -> None:
    talk = asked()
    downstreams = how in (End.DOWNSTREAM_FIN, End.DOWNSTREAM_RST)
    if said == "of both" or (said == "of the other side" and not downstreams):
        for code in (NO_ERROR, 2):
            talk.downstream(goaway(0, code, b"why")).to_upstream(goaway(0, code, b"why"))
    if said == "of both" or (said == "of the other side" and downstreams):
        for code in (NO_ERROR, 11):
            talk.upstream(goaway(1, code)).to_downstream(goaway(1, code))
    expected = -1 if said != "of both" else 2 if downstreams else 11
    talk.ended(how, errno.ECONNRESET).exchange(stream=1, end=how, stream_error=expected).nothing()


def test_upstreams_fin_behind_its_goaway_ends_every_stream_with_its_code() -> None:
    talk = asked().upstream(goaway(1, 11)).to_downstream(goaway(1, 11)).upstream_eof()
    talk.exchange(stream=1, end=End.UPSTREAM_FIN, stream_error=11)


def test_a_response_that_is_complete_ends_well_behind_goaway_too() -> None:
    talk = asked(1, QUIET_POST, END_HEADERS).upstream(ANSWER + goaway(1, 11))
    talk.to_downstream(ANSWER + goaway(1, 11)).upstream_eof()
    talk.exchange(stream=1, end=End.COMPLETE, stream_error=-1)


def test_a_response_that_outruns_its_request_ends_the_exchange_when_it_ends() -> None:
    post = headers(1, QUIET_POST, END_HEADERS)
    talk = opened().downstream(post).to_upstream(post)
    talk.upstream(ANSWER).to_downstream(ANSWER)
    answered = talk.caller.now
    talk.downstream(data(1, b"", END_STREAM)).to_upstream(data(1, b"", END_STREAM))
    talk.exchange(stream=1, end=End.COMPLETE, ended=answered)
    assert talk.caller.now > answered


# -- an upstream that cannot be reached


class Client:
    """``h2`` as a client whose upstream is never there."""

    def __init__(self, window: int = 65535) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self.h2.local_settings.initial_window_size = window
        self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        self.caller = Caller(Http2(fixed_ids()))

    def ask(self, *more: tuple[str, str], method: str = "GET", end_stream: bool = True) -> int:
        stream = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "http"), (":path", "/a.B/C"), (":authority", "a"), *more]
        self.h2.send_headers(stream, fields, end_stream=end_stream)
        return stream

    def say(self) -> None:
        self.caller.downstream(self.h2.data_to_send())

    def fail(self, said: str = "connection refused") -> None:
        self.caller.dial_failed(errno.ECONNREFUSED, 502, "infrastructure/refused", said)

    def hear(self) -> dict[int, tuple[dict[bytes, bytes], bytes]]:
        """The (head, body) of each stream's answer; everything was answered, and GOAWAY came last."""
        assert self.caller.refusal is not None
        answers: dict[int, tuple[dict[bytes, bytes], bytes]] = {}
        ended = set()
        events = self.h2.receive_data(bytes(self.caller.to_downstream) + self.caller.refusal)
        for event in events:
            match event:
                case ResponseReceived():
                    answers[event.stream_id] = (dict(listed(event.headers)), b"")
                case DataReceived():
                    head, body = answers[event.stream_id]
                    answers[event.stream_id] = (head, body + event.data)
                case StreamEnded():
                    ended.add(event.stream_id)
                case StreamReset():
                    raise AssertionError(event)
                case _:
                    pass
        assert ended == set(answers)
        assert isinstance(events[-1], ConnectionTerminated)
        assert events[-1].error_code == NO_ERROR
        return answers


@pytest.mark.parametrize("asked_first", [True, False])
def test_a_request_is_answered_in_the_place_of_an_upstream_that_is_not_there(asked_first: bool) -> None:
    client = Client()
    if asked_first:
        client.ask()
        client.say()
        client.fail()
    else:
        client.say()
        client.fail()
        assert client.caller.refusal is None
        client.ask()
        client.say()
    head, body = client.hear()[1]
    assert head[b":status"] == b"502"
    assert head[b"x-arca-cause"] == b"infrastructure/refused"
    assert head[b"server"] == b"arca"
    assert b"x-request-id" in head
    assert body == b"connection refused\n"
    exchange = only(client.caller.exchanges)
    assert (exchange.end, exchange.error, exchange.status) == (End.DIAL_FAILED, errno.ECONNREFUSED, 502)


def test_an_answer_to_head_has_no_body() -> None:
    client = Client()
    client.ask(method="HEAD")
    client.say()
    client.fail()
    assert client.hear()[1][1] == b""


def test_a_request_whose_body_is_still_coming_is_answered_too() -> None:
    client = Client()
    client.ask(method="POST", end_stream=False)
    client.h2.send_data(1, b"x" * 1000)
    client.say()
    client.fail()
    assert client.hear()[1][0][b":status"] == b"502"


@pytest.mark.parametrize(
    "content_type", ["application/grpc", "application/grpc+proto", "application/grpc-web"]
)
def test_a_call_is_answered_unavailable_without_a_body(content_type: str) -> None:
    client = Client()
    client.ask(("content-type", content_type), ("x-request-id", "mine"), method="POST", end_stream=False)
    client.say()
    client.fail("no route to 10.0.0.1: 100% “lost”")
    head, body = client.hear()[1]
    assert body == b""
    assert head[b":status"] == b"200"
    assert head[b"grpc-status"] == b"14"
    assert head[b"grpc-message"] == b"no route to 10.0.0.1: 100%25 %E2%80%9Clost%E2%80%9D"
    assert head[b"content-type"].startswith(b"application/grpc")
    assert head[b"x-request-id"] == b"mine"
    exchange = only(client.caller.exchanges)
    assert exchange.rpc is not None
    assert (exchange.rpc.status, exchange.code, exchange.status) == (14, "UNAVAILABLE", 200)
    assert exchange.rpc.message == "no route to 10.0.0.1: 100% “lost”".encode()


@pytest.mark.parametrize(("window", "bodies"), [(0, 0), (5, 0), (19, 1), (65535, 1)])
def test_the_text_comes_only_where_it_fits_the_window(window: int, bodies: int) -> None:
    client = Client(window)
    client.ask()
    client.say()
    client.fail()
    assert len(client.hear()[1][1]) == 19 * bodies


def test_a_hundred_and_fifty_streams_are_answered() -> None:
    client = Client()
    streams = [client.ask(end_stream=i % 2 == 0) for i in range(150)]
    client.say()
    client.fail("t" * 1000)
    answers = client.hear()
    assert sorted(answers) == streams
    assert {head[b":status"] for head, _ in answers.values()} == {b"502"}
    # The window of the connection is 65,535 for all of them.
    assert sum(bool(body) for _, body in answers.values()) == 65
    assert len(client.caller.exchanges) == 150
    assert {exchange.end for exchange in client.caller.exchanges} == {End.DIAL_FAILED}


@pytest.mark.parametrize("value", [b"", b" mine ", b"a\x00b", b"\xff\xfe", b"a\r\nb: c", b"A" * 900])
def test_an_id_of_any_octets_does_not_spoil_the_answer(value: bytes) -> None:
    caller = Caller(Http2(fixed_ids()))
    caller.downstream(OPEN + headers(1, GET + literal(b"x-request-id", value)))
    caller.dial_failed(errno.ECONNREFUSED, 502, "infrastructure/refused", "text")
    assert caller.refusal is not None
    assert HEADERS in [found.kind for found in frames(caller.refusal)]
    assert only(caller.exchanges).end == End.DIAL_FAILED


@pytest.mark.parametrize(
    ("value", "repeated"),
    [(b"mine", True), (b"!~", True), (b"a b", False), (b"\x7f", False), (b"\xe9", False)],
)
@pytest.mark.parametrize("refused", [False, True])
def test_only_an_id_of_visible_characters_is_repeated_in_an_answer_of_our_own(
    value: bytes, repeated: bool, refused: bool
) -> None:
    caller = asked().caller if refused else Caller(Http2(fixed_ids()))
    block = GET + literal(b"x-request-id", value)
    if refused:
        caller.downstream(headers(3, block + b"".join(literal(b"x-%d" % i, b"") for i in range(101))))
        answer = bytes(caller.to_downstream)
    else:
        caller.downstream(OPEN + headers(3, block))
        caller.dial_failed(errno.ECONNREFUSED, 502, "infrastructure/refused", "text")
        answer = caller.refusal or b""
    found = Reader()
    found.read(answer)
    ((stream, fields),) = found.lists
    assert stream == 3
    assert [text for name, text in fields if name == b"x-request-id"] == ([value] if repeated else [])
    assert [exchange.request_id for exchange in caller.exchanges] == [value]


@pytest.mark.parametrize("more", [False, True])
def test_a_refusal_that_waits_for_upstreams_settings_is_told_when_the_dial_fails(more: bool) -> None:
    caller = Caller(Http2(fixed_ids()))
    caller.downstream(OPEN)
    caller.downstream(headers(1, GET + b"".join(literal(b"x-%d" % i, b"") for i in range(101))))
    assert caller.to_downstream == b""
    assert only(caller.exchanges).status == 431
    if more:
        caller.downstream(headers(3, QUIET_GET))
    caller.dial_failed(errno.ECONNREFUSED, 502, "infrastructure/refused", "text")
    assert caller.refusal is not None
    found = frames(caller.refusal)
    assert found[0].kind == SETTINGS
    assert found[-1].kind == GOAWAY
    reader = Reader()
    reader.read(caller.refusal)
    answered = [(stream, dict(fields)[b":status"]) for stream, fields in reader.lists]
    assert answered == [(3, b"502")] * more + [(1, b"431")]
    assert len(caller.exchanges) == more


def test_an_upstream_that_is_not_there_and_no_request_is_silence() -> None:
    caller = Caller(Http2(fixed_ids()))
    caller.downstream(OPEN)
    caller.dial_failed(errno.ECONNREFUSED, 502, "infrastructure/refused", "text")
    assert caller.refusal is None
    assert caller.to_downstream == b""
    caller.end(End.DIAL_FAILED, errno.ECONNREFUSED)
    assert only(caller.exchanges).end == End.DIAL_FAILED


# -- what cannot be followed is carried on

BLOCK_BROKEN = frame(HEADERS, 3, QUIET_GET[:2]) + frame(CONTINUATION, 5, QUIET_GET[2:], END_HEADERS)
FAULTS = {
    "data without a stream": ("frame", data(0, b"x")),
    "data on an idle stream": ("frame", data(9, b"x")),
    "data without its padding": ("frame", frame(DATA, 1, b"", PADDED)),
    "padding as long as its frame": ("frame", frame(DATA, 1, b"\x04abc", PADDED)),
    "headers without a stream": ("frame", headers(0, QUIET_GET)),
    "headers of an even stream": ("frame", headers(4, QUIET_GET)),
    "headers with too much padding": ("frame", frame(HEADERS, 3, b"\xff" + QUIET_GET, PADDED | END_HEADERS)),
    "headers without their priority": ("frame", frame(HEADERS, 3, b"\0\0", HAS_PRIORITY | END_HEADERS)),
    "headers without their padding": ("frame", frame(HEADERS, 3, b"", PADDED | END_HEADERS)),
    "a promise of a client": ("frame", frame(PUSH_PROMISE, 1, u32(2) + GET, END_HEADERS)),
    "a continuation of another stream": ("frame", BLOCK_BROKEN),
    "a continuation of nothing": ("frame", frame(CONTINUATION, 1, b"", END_HEADERS)),
    "a frame within a block": ("frame", frame(HEADERS, 3, QUIET_GET[:2]) + frame(PING, 0, b"12345678")),
    "a ping of 7 octets": ("frame", frame(PING, 0, b"1234567")),
    "a ping on a stream": ("frame", frame(PING, 1, b"12345678")),
    "settings of 5 octets": ("frame", frame(SETTINGS, 0, b"12345")),
    "settings on a stream": ("frame", frame(SETTINGS, 1)),
    "a short goaway": ("frame", frame(7, 0, b"1234567")),
    "a short window update": ("frame", frame(WINDOW_UPDATE, 0, b"123")),
    "a long reset": ("frame", frame(RST_STREAM, 1, b"12345")),
    "a reset of the connection": ("frame", frame(RST_STREAM, 0, b"1234")),
    "a short priority": ("frame", frame(PRIORITY, 1, b"1234")),
    "a frame that is too large": ("frame", data(1, b"x" * 16385)),
    "a header frame that is too large": ("frame", headers(3, QUIET_GET + b"x" * 16384)),
    "an index that is not there": ("hpack", headers(3, indexed(62))),
    "index 0": ("hpack", headers(3, b"\x80")),
    "a literal that is cut off": ("hpack", headers(3, QUIET_GET[:-1])),
    "bad huffman code": ("hpack", headers(3, b"\0\x84\xff\xff\xff\xff\x00")),
    "a late size update": ("hpack", headers(3, QUIET_GET + table_size(0))),
    "bad trailers": ("hpack", headers(1, indexed(99))),
    "a table that is too large": (
        "table_too_large",
        headers(3, table_size(1 << 20) + QUIET_GET + literal(b"x", b"y" * 8000, INDEXING))
        + b"".join(headers(i, QUIET_GET + literal(b"x", b"y" * 15000, INDEXING)) for i in range(5, 15, 2)),
    ),
}
FROM_EITHER = [name for name in FAULTS if not ("idle" in name or "even" in name or "of a client" in name)]


@pytest.mark.parametrize("octets", [False, True])
@pytest.mark.parametrize("fault", FAULTS.keys())
def test_what_cannot_be_followed_is_carried_on_untouched(fault: str, octets: bool) -> None:
    reason, said = FAULTS[fault]
    said += b"and whatever comes then"
    talk = uploading()
    if octets:
        for i in range(len(said)):
            talk.caller.downstream(said[i : i + 1])
    else:
        talk.caller.downstream(said)
    talk.carried_on(reason)
    talk.caller.upstream(b"any answer")
    assert bytes(talk.caller.to_upstream) == said
    assert bytes(talk.caller.to_downstream) == b"any answer"
    assert {found.end for found in talk.caller.exchanges} == {End.UNREADABLE}
    assert talk.caller.refusal is None


@pytest.mark.parametrize("octets", [False, True])
@pytest.mark.parametrize("fault", FROM_EITHER)
def test_what_of_upstream_cannot_be_followed_is_carried_on_untouched(fault: str, octets: bool) -> None:
    reason, said = FAULTS[fault]
    said = said.replace(QUIET_GET, QUIET_OK) if reason == "frame" else said
    said += b"and whatever comes then"
    talk = uploading().upstream(HEAD).to_downstream(HEAD)
    if octets:
        for i in range(len(said)):
            talk.caller.upstream(said[i : i + 1])
    else:
        talk.caller.upstream(said)
    talk.carried_on(reason)
    talk.caller.downstream(b"any request")
    assert bytes(talk.caller.to_downstream) == said
    assert bytes(talk.caller.to_upstream) == b"any request"
    assert only(talk.caller.exchanges).end == End.UNREADABLE


@pytest.mark.parametrize("fault", FAULTS.keys())
def test_what_cannot_be_followed_is_refused_when_strict(fault: str) -> None:
    _, said = FAULTS[fault]
    talk = opened(strict=True).downstream(headers(1, QUIET_POST, END_HEADERS))
    talk.to_upstream(headers(1, QUIET_POST, END_HEADERS)).downstream(said)
    assert talk.caller.refusal is not None
    last, code, reason = told_goaway(talk.caller.refusal)
    assert last in (1, 3, 5, 7, 9, 11, 13)
    assert code == PROTOCOL_ERROR
    assert {found.end for found in talk.caller.exchanges} == {End.DOWNSTREAM_FAULT}
    assert {found.fault for found in talk.caller.exchanges} == {reason}
    assert talk.caller.refusal_to_upstream == b""


@pytest.mark.parametrize("fault", FROM_EITHER)
def test_what_of_upstream_cannot_be_followed_is_refused_when_strict(fault: str) -> None:
    _, said = FAULTS[fault]
    talk = opened(strict=True).downstream(headers(1, QUIET_POST, END_HEADERS))
    talk.to_upstream(headers(1, QUIET_POST, END_HEADERS)).upstream(said)
    exchange = only(talk.caller.exchanges)
    assert exchange.end == End.UPSTREAM_FAULT
    assert told_goaway(talk.caller.refusal_to_upstream) == (0, PROTOCOL_ERROR, exchange.fault)
    assert talk.caller.refusal is not None
    if fault == "padding as long as its frame":
        # Downstream was given the frame's head, so nothing can be said behind it.
        assert talk.caller.refusal == b""
    else:
        assert told_goaway(talk.caller.refusal) == (1, INTERNAL_ERROR, exchange.fault)


NOT_HTTP_2 = {
    "another preface": b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n" + settings_frame(),
    "a preface that goes wrong at its end": PREFACE[:-1] + b"?" + settings_frame(),
    "no settings": PREFACE + frame(PING, 0, b"12345678"),
    "an acknowledgement first": PREFACE + frame(SETTINGS, flags=ACK),
    "settings on a stream first": PREFACE + frame(SETTINGS, 1),
    "settings of 5 octets first": PREFACE + frame(SETTINGS, 0, b"12345"),
}


@pytest.mark.parametrize("octets", [False, True])
@pytest.mark.parametrize("said", NOT_HTTP_2.values(), ids=NOT_HTTP_2.keys())
def test_what_does_not_begin_as_http_2_is_carried_on_untouched(said: bytes, octets: bool) -> None:
    said += b"and so on"
    talk = conversation()
    for piece in [said[i : i + 1] for i in range(len(said))] if octets else [said]:
        talk.caller.downstream(piece)
    talk.to_upstream(said).carried_on("not_http2").upstream(b"HTTP/1.1 400").to_downstream(b"HTTP/1.1 400")


@pytest.mark.parametrize("octets", [False, True])
@pytest.mark.parametrize("said", [value[24:] for value in NOT_HTTP_2.values() if value.startswith(PREFACE)])
def test_an_upstream_that_does_not_speak_http_2_is_carried_on_untouched(said: bytes, octets: bool) -> None:
    talk = conversation().downstream(OPEN + headers(1, QUIET_GET)).to_upstream(OPEN + headers(1, QUIET_GET))
    said += b"HTTP/1.1 400 Bad Request\r\n\r\n"
    for piece in [said[i : i + 1] for i in range(len(said))] if octets else [said]:
        talk.caller.upstream(piece)
    talk.to_downstream(said).carried_on("not_http2").exchange(stream=1, end=End.UNREADABLE)


def test_an_upstream_that_does_not_speak_http_2_is_refused_when_strict() -> None:
    talk = (
        conversation(strict=True)
        .downstream(OPEN + headers(1, QUIET_GET))
        .to_upstream(OPEN + headers(1, QUIET_GET))
    )
    talk.upstream(b"HTTP/1.1 400 Bad Request\r\n\r\n").exchange(stream=1, end=End.UPSTREAM_FAULT)
    assert talk.caller.refusal is not None
    assert [found.kind for found in frames(talk.caller.refusal)] == [SETTINGS, 7]


def test_what_was_held_on_the_other_side_goes_on_exactly_once() -> None:
    talk = asked().upstream(ANSWER[:12]).nothing().downstream(data(0, b"x"))
    talk.to_upstream(data(0, b"x")).to_downstream(ANSWER[:12]).exchange(end=End.UNREADABLE)
    talk.carried_on("frame").upstream(ANSWER[12:]).to_downstream(ANSWER[12:])


def test_more_streams_than_can_be_followed_are_carried_on() -> None:
    talk = opened()
    for first in range(1, 2 * 4096, 2048):
        said = b"".join(headers(stream, QUIET_GET) for stream in range(first, first + 2048, 2))
        talk.downstream(said).to_upstream(said)
    talk.in_flight(4096)
    one_more = headers(8193, QUIET_GET) + b"rest"
    talk.downstream(one_more)
    talk.to_upstream(one_more).carried_on("too_many_streams").in_flight(1)
    assert {found.end for found in talk.caller.exchanges} == {End.UNREADABLE}
    assert len(talk.caller.exchanges) == 4096


def test_more_streams_than_can_be_followed_end_a_connection_on_which_one_was_refused() -> None:
    caller = opened().caller
    caller.downstream(headers(1, GET + b"".join(literal(b"x-%d" % i, b"") for i in range(101))))
    caller.exchanges.clear()
    caller.downstream(b"".join(headers(stream, QUIET_GET) for stream in range(3, 3 + 2 * 4096, 2)))
    assert caller.codec.in_flight == 4096
    caller.to_upstream.clear()
    caller.downstream(headers(9001, QUIET_GET) + b"rest")
    assert not caller.handed_over
    assert caller.to_upstream == b""
    assert caller.refusal is not None
    assert told_goaway(caller.refusal)[1] == INTERNAL_ERROR
    assert {found.end for found in caller.exchanges} == {End.DOWNSTREAM_FAULT}
    assert len(caller.exchanges) == 4096


def test_a_fragmented_block_that_cannot_be_decoded_is_carried_on_with_all_its_frames() -> None:
    said = fragmented(3, QUIET_GET + indexed(70), 4)
    talk = asked()
    for i in range(len(said)):
        talk.caller.downstream(said[i : i + 1])
    talk.to_upstream(said).carried_on("hpack").exchange(stream=1, end=End.UNREADABLE)


def test_the_answers_own_fields_are_readable_by_h2() -> None:
    """A response of upstream behind ids that were added reads as one of upstream's own does."""
    client = Client()
    client.ask()
    client.say()
    client.caller.upstream(settings_frame() + headers(1, OK) + headers(3, OK))
    events = client.h2.receive_data(bytes(client.caller.to_downstream)[: -len(headers(3, OK))])
    heads = [dict(listed(event.headers)) for event in events if isinstance(event, ResponseReceived)]
    assert [sorted(head) for head in heads] == [[b":status", b"x-request-id"]]
    assert GIVEN_BACK in bytes(client.caller.to_downstream)

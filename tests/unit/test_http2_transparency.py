"""What HTTP/2 passes through ARCA as it came, and the two kinds of header block that change on the way."""

from __future__ import annotations

import pytest

from protocols.exchange import End, Protocol
from tests.unit.conversation import REQUEST_ID, SPAN_ID, TRACE_ID
from tests.unit.http2_conversation import (
    ACK,
    ADDED,
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    GIVEN_BACK,
    GOAWAY,
    GRPC,
    HAS_PRIORITY,
    HEADERS,
    INTERNAL_ERROR,
    NO_ERROR,
    OK,
    OPEN,
    PADDED,
    PING,
    POST,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    QUIET_GET,
    QUIET_OK,
    QUIET_POST,
    SETTINGS,
    asked,
    conversation,
    data,
    ended,
    fragmented,
    frame,
    frames,
    goaway,
    headers,
    literal,
    only,
    opened,
    rst_stream,
    settings_frame,
    table_size,
    u32,
    window_update,
)

# Frames that may come from either side while stream 1 is open, and change nothing.
EITHER_SIDE = {
    "ping": frame(PING, 0, b"12345678"),
    "ping ack": frame(PING, 0, b"12345678", ACK),
    "settings": settings_frame((1, 8192), (3, 100), (4, 1 << 20), (0xABCD, 7)),
    "settings ack": frame(SETTINGS, flags=ACK),
    "window of the connection": window_update(0, 1 << 20),
    "window of a stream": window_update(1, 1),
    "window of a stream that was never opened": window_update(99, 1),
    "priority": frame(PRIORITY, 1, b"\x80\0\0\x03\xff"),
    "priority of an idle stream": frame(PRIORITY, 7, b"\0\0\0\x01\x10"),
    "unknown type": frame(0xBE, 1, b"whatever", 0xFF),
    "unknown type, empty": frame(0x0B, 0),
    "unknown type on the connection": frame(0x10, 0, b"\0\0\0\x01u=1"),
    "reserved bit": frame(PING, 1 << 31, b"12345678"),
    "goaway": goaway(1, NO_ERROR, b"see you"),
    "goaway with binary debug data": goaway((1 << 31) - 1, INTERNAL_ERROR, bytes(range(256))),
    "data": data(1, b"hello"),
    "data with unknown flags": frame(DATA, 1, b"hello", 0x72),
    "padded data": frame(DATA, 1, b"\x03hello\0\0\0", PADDED),
    "data that is all padding": frame(DATA, 1, b"\x05\0\0\0\0\0", PADDED),
    "data with padding that is not zero": frame(DATA, 1, b"\x02hi\xaa\xbb", PADDED),
    "empty data": data(1),
    "the largest frame": data(1, b"x" * 16384),
}


@pytest.mark.parametrize("side", ["downstream", "upstream"])
@pytest.mark.parametrize("said", EITHER_SIDE.values(), ids=EITHER_SIDE.keys())
def test_a_frame_passes_as_it_came(said: bytes, side: str) -> None:
    talk = asked(1, QUIET_POST, END_HEADERS)
    if side == "downstream":
        talk.downstream(said).to_upstream(said)
    else:
        talk.upstream(headers(1, QUIET_OK, END_HEADERS)).to_downstream(headers(1, QUIET_OK, END_HEADERS))
        talk.upstream(said).to_downstream(said)
    talk.in_flight(1)


@pytest.mark.parametrize("side", ["downstream", "upstream"])
@pytest.mark.parametrize("said", EITHER_SIDE.values(), ids=EITHER_SIDE.keys())
def test_a_frame_that_comes_octet_by_octet_passes_as_it_came(said: bytes, side: str) -> None:
    talk = asked(1, QUIET_POST, END_HEADERS)
    if side == "downstream":
        for i in range(len(said)):
            talk.caller.downstream(said[i : i + 1])
        talk.to_upstream(said)
    else:
        talk.upstream(headers(1, QUIET_OK, END_HEADERS)).to_downstream(headers(1, QUIET_OK, END_HEADERS))
        for i in range(len(said)):
            talk.caller.upstream(said[i : i + 1])
        talk.to_downstream(said)
    talk.in_flight(1)


def test_data_is_not_held_until_its_frame_is_complete() -> None:
    talk = asked(1, QUIET_POST, END_HEADERS)
    head = data(1, b"0123456789")[:9]
    talk.downstream(head[:8]).nothing().downstream(head[8:]).to_upstream(head)
    talk.downstream(b"012").to_upstream(b"012").downstream(b"3456789").to_upstream(b"3456789")


def test_the_preface_passes_as_it_comes() -> None:
    talk = conversation()
    for i in range(len(PREFACE)):
        talk.downstream(PREFACE[i : i + 1]).to_upstream(PREFACE[i : i + 1])
    talk.downstream(settings_frame()).to_upstream(settings_frame())


def test_what_upstream_says_before_downstream_does_passes() -> None:
    talk = conversation().upstream(settings_frame((3, 128))).to_downstream(settings_frame((3, 128)))
    talk.downstream(OPEN).to_upstream(OPEN).downstream(headers(1, GET)).to_upstream(headers(1, GET + ADDED))


def test_a_request_gets_a_trace_and_an_id_behind_its_own_fields_and_its_response_gives_the_id_back() -> None:
    talk = opened().downstream(headers(1, GET)).to_upstream(headers(1, GET + ADDED)).in_flight(1)
    talk.upstream(headers(1, OK, END_HEADERS)).to_downstream(headers(1, OK + GIVEN_BACK, END_HEADERS))
    talk.upstream(ended(1, b"hello")).to_downstream(ended(1, b"hello"))
    talk.exchange(
        protocol=Protocol.HTTP_2,
        end=End.COMPLETE,
        status=200,
        stream=1,
        stream_error=-1,
        method=b"GET",
        target=b"/",
        authority=b"a",
        request_id=REQUEST_ID,
        trace_id=TRACE_ID,
        span_id=SPAN_ID,
        parent_id=None,
        sampled=False,
        request_complete=True,
        response_complete=True,
        request_bytes=9 + len(GET),
        response_bytes=9 + len(OK) + 9 + 5,
        fault=None,
        rpc=None,
        tunnel=False,
    ).in_flight(0)


def test_the_id_that_came_is_kept_and_an_id_of_the_server_too() -> None:
    talk = asked(1, QUIET_GET).upstream(headers(1, OK))
    talk.to_downstream(headers(1, OK + literal(b"x-request-id", b"mine"))).exchange(request_id=b"mine")
    theirs = OK + literal(b"x-request-id", b"theirs")
    talk.downstream(headers(3, QUIET_GET)).to_upstream(headers(3, QUIET_GET))
    talk.upstream(headers(3, theirs)).to_downstream(headers(3, theirs)).exchange(request_id=b"mine")


def test_padding_and_priority_of_a_changed_head_stay() -> None:
    priority = b"\x80\0\0\x05\x21"
    flags = PADDED | HAS_PRIORITY | END_HEADERS | END_STREAM
    talk = opened().downstream(frame(HEADERS, 1, b"\x03" + priority + GET + b"\xaa\xbb\xcc", flags))
    talk.to_upstream(frame(HEADERS, 1, b"\x03" + priority + GET + ADDED + b"\xaa\xbb\xcc", flags))
    flags = PADDED | END_HEADERS
    talk.upstream(frame(HEADERS, 1, b"\x01" + OK + b"\0", flags))
    talk.to_downstream(frame(HEADERS, 1, b"\x01" + OK + GIVEN_BACK + b"\0", flags)).in_flight(1)


def test_a_head_in_many_fragments_is_held_until_it_is_whole_and_goes_on_in_one_frame_if_it_changed() -> None:
    block = GET + literal(b"x-long", b"v" * 1000)
    said = fragmented(1, block, 7)
    talk = opened()
    for i in range(len(said) - 1):
        talk.caller.downstream(said[i : i + 1])
    talk.nothing().in_flight(0).downstream(said[-1:]).to_upstream(headers(1, block + ADDED)).in_flight(1)


def test_a_head_in_many_fragments_that_does_not_change_keeps_them() -> None:
    said = fragmented(1, QUIET_GET, 5)
    talk = opened().downstream(said[:-3]).nothing().downstream(said[-3:]).to_upstream(said)
    said = fragmented(1, QUIET_OK, 1)
    talk.upstream(said).to_downstream(said).exchange(end=End.COMPLETE, response_bytes=len(said))


def test_padding_and_priority_stay_with_the_first_of_several_fragments() -> None:
    priority, half = b"\0\0\0\0\x0f", 4
    first = frame(HEADERS, 1, b"\x02" + priority + GET[:half] + b"\0\0", PADDED | HAS_PRIORITY)
    rest = frame(CONTINUATION, 1, GET[half:], END_HEADERS)
    talk = opened().downstream(first + rest)
    talk.to_upstream(
        frame(HEADERS, 1, b"\x02" + priority + GET + ADDED + b"\0\0", PADDED | HAS_PRIORITY | END_HEADERS)
    )


@pytest.mark.parametrize("over", [-1, 0, 1, 119])
def test_a_head_that_no_longer_fits_one_frame_goes_on_in_fragments(over: int) -> None:
    # How long the block is without its filler, and its filler's literal with the length of 3 octets.
    filler = 16384 - len(GET + ADDED) - len(literal(b"x", b"")) - 2 + over
    block = GET + literal(b"x", b"f" * filler)
    assert len(block + ADDED) == 16384 + over
    talk = opened().downstream(headers(1, block))
    said = frames(bytes(talk.caller.to_upstream))
    talk.caller.to_upstream.clear()
    assert b"".join(found.payload for found in said) == block + ADDED
    assert [len(found.payload) for found in said] == ([16384 + over] if over <= 0 else [16384, over])
    assert [found.kind for found in said] == [HEADERS, CONTINUATION][: len(said)]
    assert [found.flags for found in said] == (
        [END_HEADERS | END_STREAM] if over <= 0 else [END_STREAM, END_HEADERS]
    )
    talk.in_flight(1)


def test_a_head_in_frames_larger_than_16_kib_keeps_their_size() -> None:
    talk = opened().upstream(settings_frame((5, 40_000))).to_downstream(settings_frame((5, 40_000)))
    block = GET + literal(b"x", b"f" * 30_000)
    talk.downstream(headers(1, block)).to_upstream(
        frame(HEADERS, 1, (block + ADDED)[: len(block)], END_STREAM)
        + frame(CONTINUATION, 1, ADDED, END_HEADERS)
    )


def test_table_size_updates_stay_in_front() -> None:
    block = table_size(0) + table_size(4096) + GET
    opened().downstream(headers(1, block)).to_upstream(headers(1, block + ADDED))


def test_interim_responses_pass_in_their_order_without_an_id() -> None:
    early = literal(8, b"103") + literal(b"link", b"</a.css>; rel=preload")
    interim = (
        headers(1, literal(8, b"100"), END_HEADERS)
        + headers(1, early, END_HEADERS)
        + headers(1, literal(8, b"199"), END_HEADERS)
    )
    talk = opened().downstream(headers(1, GET)).to_upstream(headers(1, GET + ADDED))
    talk.upstream(interim).to_downstream(interim).in_flight(1)
    talk.upstream(headers(1, OK)).to_downstream(headers(1, OK + GIVEN_BACK))
    # OPEN, SETTINGS, the request, the interim responses: the final one was the fifth thing that happened.
    talk.exchange(status=200, first_byte=5.0, started=3.0, response_bytes=len(interim + headers(1, OK)))


def test_expect_100_continue_reaches_the_server_before_the_body() -> None:
    block = QUIET_POST + literal(b"expect", b"100-continue")
    talk = asked(1, block, END_HEADERS)
    interim = headers(1, literal(8, b"100"), END_HEADERS)
    talk.upstream(interim).to_downstream(interim)
    talk.downstream(ended(1, b"body")).to_upstream(ended(1, b"body"))
    talk.upstream(headers(1, QUIET_OK)).to_downstream(headers(1, QUIET_OK))
    talk.exchange(status=200, request_bytes=len(headers(1, block)) + 13)


def test_trailers_pass_in_both_directions() -> None:
    talk = asked(1, QUIET_POST, END_HEADERS)
    trailers = headers(1, literal(b"checksum", b"1") + literal(b"x-request-id", b"other"))
    said = data(1, b"abc") + trailers
    talk.downstream(said).to_upstream(said)
    answer = headers(1, QUIET_OK, END_HEADERS) + data(1, b"abc") + trailers
    talk.upstream(answer).to_downstream(answer)
    talk.exchange(request_id=b"mine", status=200, response_bytes=len(answer))


def test_an_empty_data_frame_ends_a_stream() -> None:
    talk = asked(1, QUIET_POST, END_HEADERS).downstream(ended(1)).to_upstream(ended(1))
    answer = headers(1, QUIET_OK, END_HEADERS) + ended(1)
    talk.upstream(answer).to_downstream(answer).exchange(request_complete=True, response_complete=True)


def test_a_padded_data_frame_ends_a_stream() -> None:
    last = frame(DATA, 1, b"\x02x\0\0", PADDED | END_STREAM)
    talk = asked(1, QUIET_POST, END_HEADERS).downstream(last).to_upstream(last)
    talk.upstream(headers(1, QUIET_OK)).to_downstream(headers(1, QUIET_OK))
    talk.exchange(request_complete=True, request_bytes=9 + len(QUIET_POST) + len(last))


def test_a_pushed_response_passes_with_its_promise_and_is_an_exchange_of_its_own() -> None:
    promise = frame(PUSH_PROMISE, 1, u32(2) + GET, END_HEADERS)
    talk = asked().upstream(promise).to_downstream(promise).in_flight(2)
    pushed = headers(2, OK, END_HEADERS) + ended(2, b"style")
    talk.upstream(pushed).to_downstream(pushed)
    talk.exchange(stream=2, method=b"GET", target=b"/", status=200, end=End.COMPLETE, request_complete=True)
    talk.upstream(headers(1, QUIET_OK)).to_downstream(headers(1, QUIET_OK)).exchange(stream=1).in_flight(0)


def test_a_padded_promise_in_fragments_passes_as_it_came() -> None:
    promise = frame(PUSH_PROMISE, 1, b"\x01" + u32(2) + GET[:3] + b"\0", PADDED)
    promise += frame(CONTINUATION, 1, GET[3:], END_HEADERS)
    talk = asked().upstream(promise).to_downstream(promise)
    talk.downstream(rst_stream(2, CANCEL)).to_upstream(rst_stream(2, CANCEL))
    # It was not asked for: declined, it has come to what its receiver wanted.
    talk.exchange(stream=2, target=b"/", end=End.COMPLETE, stream_error=-1)


def test_extended_connect_passes_and_its_data_flow_in_both_directions() -> None:
    block = literal(2, b"CONNECT") + literal(b":protocol", b"websocket") + GET[1:]
    talk = (
        opened()
        .downstream(headers(1, block, END_HEADERS))
        .to_upstream(headers(1, block + ADDED, END_HEADERS))
    )
    talk.upstream(headers(1, OK, END_HEADERS)).to_downstream(headers(1, OK + GIVEN_BACK, END_HEADERS))
    for _ in range(3):
        talk.downstream(data(1, b"up")).to_upstream(data(1, b"up"))
        talk.upstream(data(1, b"down")).to_downstream(data(1, b"down"))
    talk.in_flight(1).downstream(ended(1)).to_upstream(ended(1)).upstream(ended(1)).to_downstream(ended(1))
    talk.exchange(tunnel=True, method=b"CONNECT", status=200, end=End.COMPLETE)


def test_plain_connect_has_no_path() -> None:
    block = literal(2, b"CONNECT") + literal(1, b"a:443")
    talk = (
        opened()
        .downstream(headers(1, block, END_HEADERS))
        .to_upstream(headers(1, block + ADDED, END_HEADERS))
    )
    talk.upstream(headers(1, OK)).to_downstream(headers(1, OK + GIVEN_BACK)).downstream(ended(1)).to_upstream(
        ended(1)
    )
    talk.exchange(tunnel=True, method=b"CONNECT", target=None, authority=b"a:443")


def test_frames_of_streams_that_are_over_pass() -> None:
    talk = asked().upstream(headers(1, QUIET_OK)).to_downstream(headers(1, QUIET_OK)).exchange(stream=1)
    late = data(1, b"x") + headers(1, literal(b"a", b"b")) + rst_stream(1) + window_update(1, 5)
    talk.downstream(late).to_upstream(late).upstream(late).to_downstream(late).in_flight(0)


def test_a_hundred_interleaved_streams_are_a_hundred_exchanges() -> None:
    talk = opened()
    streams = range(1, 201, 2)
    for stream in streams:
        block = POST + literal(b"x-n", b"%d" % stream)
        talk.downstream(headers(stream, block, END_HEADERS)).to_upstream(
            headers(stream, block + ADDED, END_HEADERS)
        )
    talk.in_flight(100)
    for stream in streams:
        talk.downstream(data(stream, b"a" * stream)).to_upstream(data(stream, b"a" * stream))
    for stream in reversed(streams):
        answer = headers(stream, OK, END_HEADERS) + data(stream, b"b" * stream)
        talk.upstream(answer)
        talk.to_downstream(headers(stream, OK + GIVEN_BACK, END_HEADERS) + data(stream, b"b" * stream))
    for stream in streams:
        talk.downstream(ended(stream)).to_upstream(ended(stream))
    for stream in reversed(streams):
        talk.upstream(ended(stream)).to_downstream(ended(stream))
        talk.exchange(
            stream=stream,
            end=End.COMPLETE,
            request_bytes=9 + len(POST + literal(b"x-n", b"%d" % stream)) + 9 + stream + 9,
            response_bytes=9 + 1 + 9 + stream + 9,
        )
    talk.in_flight(0)


def test_the_host_field_is_the_authority_where_there_is_no_other() -> None:
    block = GET[:3] + literal(b"host", b"b")
    talk = opened().downstream(headers(1, block)).to_upstream(headers(1, block + ADDED))
    talk.upstream(headers(1, OK)).to_downstream(headers(1, OK + GIVEN_BACK)).exchange(authority=b"b")


def test_running_exchanges_are_told_by_when_they_began() -> None:
    talk = (
        asked(1, QUIET_POST, END_HEADERS).downstream(headers(3, QUIET_GET)).to_upstream(headers(3, QUIET_GET))
    )
    codec = talk.caller.codec
    assert [found.stream for found in codec.running(before=3.0)] == []
    assert [found.stream for found in codec.running(before=3.5)] == [1]
    assert [found.stream for found in codec.running(before=9.0)] == [1, 3]
    assert codec.protocol_name() == "http/2"


def test_a_request_began_when_the_first_octet_of_its_head_came() -> None:
    said = headers(1, QUIET_GET)
    talk = opened().downstream(said[:1]).nothing().downstream(said[1:20]).nothing().downstream(said[20:])
    talk.to_upstream(said).upstream(headers(1, QUIET_OK)).to_downstream(headers(1, QUIET_OK))
    talk.exchange(started=3.0)


def test_a_request_did_not_begin_with_the_frame_before_it() -> None:
    ping, said = frame(PING, 0, b"12345678"), headers(1, QUIET_GET)
    talk = opened().downstream(ping[:5]).nothing().downstream(ping[5:] + said).to_upstream(ping + said)
    talk.upstream(headers(1, QUIET_OK)).to_downstream(headers(1, QUIET_OK)).exchange(started=4.0)


# -- gRPC


def test_a_unary_call_is_read_from_its_heads_messages_and_trailers() -> None:
    block = (
        QUIET_POST[:2]
        + literal(4, b"/pkg.Svc/Do")
        + QUIET_POST[3:]
        + GRPC
        + literal(b"grpc-timeout", b"1500m")
    )
    talk = asked(1, block, END_HEADERS).in_flight(1)
    assert talk.caller.codec.in_flight_grpc == 1
    talk.downstream(ended(1, b"\0\0\0\0\x02hi")).to_upstream(ended(1, b"\0\0\0\0\x02hi"))
    head = headers(1, QUIET_OK + GRPC, END_HEADERS)
    talk.upstream(head).to_downstream(head)
    message = data(1, b"\x01\0\0\0\x03abc")
    talk.upstream(message[:10]).to_downstream(message[:10]).upstream(message[10:]).to_downstream(message[10:])
    trailers = headers(1, literal(b"grpc-status", b"5") + literal(b"grpc-message", b"no%20such%E2%82%AC"))
    talk.upstream(trailers).to_downstream(trailers)
    exchange = only(talk.caller.exchanges)
    assert exchange.protocol == Protocol.GRPC
    assert (exchange.method, exchange.target, exchange.status) == (b"pkg.Svc/Do", b"/pkg.Svc/Do", 200)
    assert (exchange.code, exchange.end) == ("NOT_FOUND", End.COMPLETE)
    assert exchange.rpc is not None
    assert (exchange.rpc.status, exchange.rpc.message) == (5, "no such€".encode())
    assert exchange.rpc.timeout == 1.5
    assert (exchange.rpc.request_messages, exchange.rpc.response_messages) == (1, 1)
    assert exchange.rpc.compressed
    assert not exchange.rpc.web
    # OPEN, SETTINGS, head, message, response head, and then the first octet of the response message.
    assert (exchange.first_byte, exchange.rpc.first_message) == (5.0, 6.0)
    assert talk.caller.codec.in_flight_grpc == 0


def test_messages_are_counted_wherever_frames_and_padding_cut_them() -> None:
    talk = asked(1, QUIET_POST + GRPC, END_HEADERS)
    messages = b"\0\0\0\0\x03abc" * 3 + b"\0\0\0\0\0"
    for octet in messages:
        said = frame(DATA, 1, b"\x02" + bytes((octet,)) + b"\x01\x01", PADDED)
        for i in range(len(said)):
            talk.caller.downstream(said[i : i + 1])
        talk.to_upstream(said)
    talk.downstream(ended(1)).to_upstream(ended(1))
    answer = headers(1, QUIET_OK + GRPC, END_HEADERS)
    answer += b"".join(data(1, messages[i : i + 4]) for i in range(0, len(messages), 4))
    answer += headers(1, literal(b"grpc-status", b"0"))
    talk.upstream(answer).to_downstream(answer)
    exchange = only(talk.caller.exchanges)
    assert exchange.rpc is not None
    assert (exchange.rpc.request_messages, exchange.rpc.response_messages) == (4, 4)
    assert (exchange.code, exchange.rpc.compressed, exchange.rpc.timeout) == ("OK", False, -1)


def test_a_trailers_only_response_says_the_status_in_its_head() -> None:
    talk = asked(1, QUIET_POST + GRPC, END_HEADERS | END_STREAM)
    only_head = headers(1, QUIET_OK + GRPC + literal(b"grpc-status", b"12"))
    talk.upstream(only_head).to_downstream(only_head)
    exchange = only(talk.caller.exchanges)
    assert exchange.rpc is not None
    assert (exchange.code, exchange.rpc.status, exchange.rpc.message) == ("UNIMPLEMENTED", 12, None)
    assert (exchange.rpc.response_messages, exchange.rpc.first_message) == (0, -1)


def test_an_unknown_status_is_named_by_its_number() -> None:
    talk = asked(1, QUIET_POST + GRPC).upstream(headers(1, QUIET_OK + literal(b"grpc-status", b"77")))
    assert only(talk.caller.exchanges).code == "77"


def test_a_call_without_a_status_has_none() -> None:
    talk = asked(1, QUIET_POST + GRPC).upstream(headers(1, QUIET_OK))
    exchange = only(talk.caller.exchanges)
    assert exchange.rpc is not None
    assert (exchange.rpc.status, exchange.code, exchange.status) == (-1, None, 200)


def test_grpc_web_over_http_2_has_its_trailers_in_the_body() -> None:
    web = literal(b"content-type", b"application/grpc-web+proto")
    talk = asked(1, QUIET_POST + web, END_HEADERS)
    talk.downstream(ended(1, b"\0\0\0\0\x01x")).to_upstream(ended(1, b"\0\0\0\0\x01x"))
    trailers = b"grpc-status: 3\r\ngrpc-message: bad%21\r\n"
    body = b"\0\0\0\0\x01y" + b"\x80" + u32(len(trailers)) + trailers
    answer = headers(1, QUIET_OK + web, END_HEADERS) + data(1, body[:9]) + ended(1, body[9:])
    talk.upstream(answer).to_downstream(answer)
    exchange = only(talk.caller.exchanges)
    assert exchange.rpc is not None
    assert exchange.rpc.web
    assert (exchange.code, exchange.rpc.message) == ("INVALID_ARGUMENT", b"bad!")
    assert (exchange.rpc.request_messages, exchange.rpc.response_messages) == (1, 1)


def test_goaway_frame_in_pieces_passes_with_all_its_debug_data() -> None:
    said = goaway(1, NO_ERROR, b"d" * 10_000)
    assert said[3] == GOAWAY
    talk = asked()
    for at in range(0, len(said), 777):
        talk.caller.upstream(said[at : at + 777])
    talk.to_downstream(said).in_flight(1)

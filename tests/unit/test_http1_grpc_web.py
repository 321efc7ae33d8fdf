"""gRPC-Web over HTTP/1.1: the call is read as its bytes pass, and every byte passes as it came."""

from __future__ import annotations

import base64
import struct
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.exchange import End, Exchange, Protocol
from protocols.http1 import Http1
from tests.unit.conversation import ADDED, GIVEN_BACK, Caller, Conversation, fixed_ids

bounded = settings(max_examples=100, deadline=None, derandomize=True, database=None)

TRAILERS: Final = b"grpc-status: 14\r\ngrpc-message: no%20route\r\n"


def frame(payload: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(payload)) + payload


def head(content_type: bytes, lines: bytes = b"", target: bytes = b"/shop.Cart/Add") -> bytes:
    return (
        b"POST "
        + target
        + b" HTTP/1.1\r\nHost: a\r\nContent-Type: "
        + content_type
        + b"\r\n"
        + lines
        + b"\r\n"
    )


def sized(payload: bytes) -> bytes:
    return b"Content-Length: %d\r\n" % len(payload)


def chunked(payload: bytes, size: int) -> bytes:
    parts = [payload[i : i + size] for i in range(0, len(payload), size)]
    return b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nX: y\r\n\r\n"


def answer(content_type: bytes, lines: bytes = b"", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\nContent-Type: " + content_type + b"\r\n" + lines + b"\r\n"


REQUEST_BODY: Final = frame(b"one")
REQUEST: Final = (
    head(b"application/grpc-web+proto", sized(REQUEST_BODY) + b"grpc-timeout: 300m\r\n") + REQUEST_BODY
)
RESPONSE_BODY: Final = frame(b"two") + frame(b"three", flags=1) + frame(TRAILERS, flags=0x80)
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"


def play(request: list[bytes], response: list[bytes], *, until_close: bool = False) -> Exchange:
    """The one exchange of this conversation, whose bytes must have passed with nothing but lines added."""
    caller = Caller(Http1(fixed_ids()))
    for piece in request:
        caller.downstream(piece)
    for piece in response:
        caller.upstream(piece)
    if until_close:
        caller.upstream_eof()
    assert caller.refusal is None
    assert not caller.handed_over
    assert caller.codec.in_flight == caller.codec.in_flight_grpc == 0
    assert caller.to_upstream.replace(ADDED, b"") == b"".join(request)
    assert caller.to_downstream.replace(GIVEN_BACK, b"") == b"".join(response)
    [exchange] = caller.exchanges
    assert exchange.end == End.COMPLETE
    return exchange


def told(exchange: Exchange) -> tuple[object, ...]:
    rpc = exchange.rpc
    assert exchange.protocol == Protocol.GRPC
    assert rpc is not None
    assert rpc.web
    assert (rpc.first_message >= 0) == (rpc.response_messages > 0)
    return (
        exchange.method,
        exchange.status,
        exchange.code,
        rpc.status,
        rpc.message,
        rpc.request_messages,
        rpc.response_messages,
        rpc.compressed,
    )


TOLD: Final = (b"shop.Cart/Add", 200, "UNAVAILABLE", 14, b"no route", 1, 2, True)


def response_with(framing: str, payload: bytes, content_type: bytes = b"application/grpc-web") -> bytes:
    match framing:
        case "sized":
            return answer(content_type, sized(payload)) + payload
        case "chunked":
            return answer(content_type, CHUNKED) + chunked(payload, 7)
        case _:
            return answer(content_type) + payload


FRAMINGS: Final = ["sized", "chunked", "until close"]


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_call_is_read_whole(framing: str) -> None:
    exchange = play([REQUEST], [response_with(framing, RESPONSE_BODY)], until_close=framing == "until close")
    assert told(exchange) == TOLD
    assert exchange.target == b"/shop.Cart/Add"
    assert exchange.authority == b"a"
    assert exchange.rpc is not None
    assert exchange.rpc.timeout == 0.3


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_call_is_read_wherever_its_response_is_cut(framing: str) -> None:
    response = response_with(framing, RESPONSE_BODY)
    for cut in range(len(response) + 1):
        pieces = [response[:cut], response[cut:]]
        assert told(play([REQUEST], pieces, until_close=framing == "until close")) == TOLD
    pieces = [response[i : i + 1] for i in range(len(response))]
    assert told(play([REQUEST], pieces, until_close=framing == "until close")) == TOLD


@pytest.mark.parametrize("framing", FRAMINGS)
def test_base64_that_is_padded_piece_by_piece_is_read(framing: str) -> None:
    text = b"application/grpc-web-text+proto"
    sent = base64.b64encode(REQUEST_BODY)
    parts = [frame(b"two"), frame(b"three!", flags=1), frame(TRAILERS, flags=0x80)]
    body = b"".join(base64.b64encode(part) for part in parts)
    assert b"=" in body[:-4]
    response = response_with(framing, body, text)
    request = head(text, sized(sent)) + sent
    for cut in range(0, len(response) + 1, 3):
        pieces = [response[:cut], response[cut:]]
        assert told(play([request], pieces, until_close=framing == "until close")) == TOLD


@pytest.mark.parametrize("framing", ["sized", "chunked"])
def test_the_messages_of_a_request_are_counted_wherever_it_is_cut(framing: str) -> None:
    payload = frame(b"one") + frame(b"two" * 30) + frame(b"")
    if framing == "sized":
        request = head(b"application/grpc-web", sized(payload)) + payload
    else:
        request = head(b"application/grpc-web", CHUNKED) + chunked(payload, 11)
    in_two = [[request[:cut], request[cut:]] for cut in range(len(request) + 1)]
    for pieces in [*in_two, [request[i : i + 1] for i in range(len(request))]]:
        exchange = play(pieces, [response_with("sized", RESPONSE_BODY)])
        assert told(exchange) == (*TOLD[:5], 3, *TOLD[6:])


@bounded
@given(
    st.lists(st.binary(max_size=30), max_size=4),
    st.sampled_from(FRAMINGS),
    st.booleans(),
    st.lists(st.integers(0, 2000), max_size=6),
)
def test_any_call_is_read_the_same_however_it_is_cut(
    messages: list[bytes], framing: str, text: bool, cuts: list[int]
) -> None:
    kind = b"application/grpc-web-text" if text else b"application/grpc-web"
    payload = b"".join(map(frame, messages)) + frame(TRAILERS, flags=0x80)
    response = response_with(framing, base64.b64encode(payload) if text else payload, kind)
    places = sorted(cut % (len(response) + 1) for cut in cuts)
    pieces = [response[i:j] for i, j in zip([0, *places], [*places, len(response)], strict=True)]
    exchange = play([REQUEST], pieces, until_close=framing == "until close")
    assert told(exchange) == (*TOLD[:5], 1, len(messages), False)


def test_a_long_download_is_looked_at_in_its_middle() -> None:
    body = frame(b"x" * 100_000) * 3 + frame(b"grpc-status:0\r\n", flags=0x80)
    response = response_with("sized", body)
    pieces = [response[i : i + 16384] for i in range(0, len(response), 16384)]
    assert told(play([REQUEST], pieces)) == (b"shop.Cart/Add", 200, "OK", 0, None, 1, 3, False)


def test_the_status_of_a_response_without_messages_is_in_its_head() -> None:
    lines = b"GRPC-Status: 5\r\ngrpc-message: a%25b\r\nContent-Length: 0\r\n"
    exchange = play([REQUEST], [answer(b"application/grpc-web+proto", lines)])
    assert told(exchange) == (b"shop.Cart/Add", 200, "NOT_FOUND", 5, b"a%b", 1, 0, False)


def test_a_status_in_the_head_is_not_changed_by_a_trailer_frame() -> None:
    body = frame(b"grpc-status: 0\r\n", flags=0x80)
    response = answer(b"application/grpc-web", b"grpc-status: 13\r\n" + sized(body)) + body
    assert told(play([REQUEST], [response])) == (b"shop.Cart/Add", 200, "INTERNAL", 13, None, 1, 0, False)


def test_a_status_without_a_name_is_told_by_its_number() -> None:
    body = frame(b"grpc-status: 99\r\n", flags=0x80)
    assert play([REQUEST], [response_with("sized", body)]).code == "99"


def test_a_response_that_is_not_grpc_web_has_no_messages_and_no_code() -> None:
    body = RESPONSE_BODY
    response = answer(b"text/html", sized(body), b"503 Service Unavailable") + body
    assert told(play([REQUEST], [response])) == (b"shop.Cart/Add", 503, None, -1, None, 1, 0, False)


@pytest.mark.parametrize("coded", [b"Content-Encoding: gzip\r\n", b"content-encoding: br, gzip\r\n"])
def test_a_body_that_is_compressed_as_a_whole_is_not_read(coded: bytes) -> None:
    request = head(b"application/grpc-web", coded + sized(REQUEST_BODY)) + REQUEST_BODY
    response = answer(b"application/grpc-web", coded + sized(RESPONSE_BODY)) + RESPONSE_BODY
    assert told(play([request], [response])) == (b"shop.Cart/Add", 200, None, -1, None, 0, 0, False)


def test_a_chunked_body_that_is_compressed_is_not_read() -> None:
    lines = b"Transfer-Encoding: gzip, chunked\r\n"
    response = answer(b"application/grpc-web", lines) + chunked(RESPONSE_BODY, 9)
    assert told(play([REQUEST], [response])) == (b"shop.Cart/Add", 200, None, -1, None, 1, 0, False)


def test_the_first_message_has_its_time_and_the_code_is_there_before_the_end() -> None:
    exchange = play(
        [REQUEST],
        [answer(b"application/grpc-web", sized(RESPONSE_BODY)), RESPONSE_BODY[:1], RESPONSE_BODY[1:]],
    )
    assert exchange.rpc is not None
    assert (exchange.started, exchange.first_byte, exchange.rpc.first_message, exchange.ended) == (1, 2, 3, 4)


def test_the_query_is_no_part_of_the_method() -> None:
    request = head(b"application/grpc-web", sized(REQUEST_BODY), b"/api/a.B/C?d=/e") + REQUEST_BODY
    exchange = play([request], [response_with("sized", RESPONSE_BODY)])
    assert (exchange.method, exchange.target) == (b"api/a.B/C", b"/api/a.B/C?d=/e")


@pytest.mark.parametrize(
    "request_head",
    [
        # A browser asks first whether it may ask.
        b"OPTIONS /a.B/C HTTP/1.1\r\nAccess-Control-Request-Headers: content-type,x-grpc-web\r\n\r\n",
        b"OPTIONS /a.B/C HTTP/1.1\r\nContent-Type: application/grpc-web\r\n\r\n",
        b"POST /a.B/C HTTP/1.1\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n",
        b"POST /a.B/C HTTP/1.1\r\nContent-Type: application/grpc-webfoo\r\nContent-Length: 0\r\n\r\n",
        b"POST /a.B/C HTTP/1.1\r\nX: application/grpc-web\r\nContent-Length: 0\r\n\r\n",
        b"POST /HEAD HTTP/1.1\r\nContent-Type: application/grpc-web\r\nContent-Length: 0\r\n\r\n",
        b"POST /CONNECT HTTP/1.1\r\nContent-Type: application/grpc-web\r\nContent-Length: 0\r\n\r\n",
        b"POST * HTTP/1.1\r\nContent-Type: application/grpc-web\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_no_call_stays_http(request_head: bytes) -> None:
    body = b"hello"
    exchange = play([request_head], [answer(b"application/grpc-web", sized(body)) + body])
    assert (exchange.protocol, exchange.rpc, exchange.code) == (Protocol.HTTP_1_1, None, None)
    assert exchange.method == request_head.split(b" ")[0]


def test_calls_and_other_requests_share_a_connection_and_are_told_apart() -> None:
    plain = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n" + REQUEST[:9]
    caller = Caller(Http1(fixed_ids()))
    caller.downstream(REQUEST + plain + REQUEST)
    assert (caller.codec.in_flight, caller.codec.in_flight_grpc) == (3, 2)
    caller.upstream(response_with("chunked", RESPONSE_BODY))
    assert (caller.codec.in_flight, caller.codec.in_flight_grpc) == (2, 1)
    caller.upstream(answer(b"application/grpc-web", sized(RESPONSE_BODY)) + RESPONSE_BODY)
    assert (caller.codec.in_flight, caller.codec.in_flight_grpc) == (1, 1)
    caller.upstream(response_with("sized", RESPONSE_BODY))
    first, second, third = caller.exchanges
    assert told(first) == told(third) == TOLD
    assert (second.protocol, second.method, second.rpc) == (Protocol.HTTP_1_1, b"POST", None)


def test_a_call_that_is_cut_short_keeps_what_was_read_of_it() -> None:
    response = response_with("sized", RESPONSE_BODY)
    talk = Conversation().downstream(REQUEST)
    talk.caller.to_upstream.clear()
    talk.caller.upstream(response[:-60])
    talk.caller.to_downstream.clear()
    talk.upstream_eof()
    [exchange] = talk.caller.exchanges
    assert exchange.end == End.UPSTREAM_FIN
    assert told(exchange) == (b"shop.Cart/Add", 200, None, -1, None, 1, 1, False)
    assert talk.caller.codec.in_flight_grpc == 0


def test_a_fault_in_the_coding_of_a_call_is_refused_as_elsewhere() -> None:
    response = answer(b"application/grpc-web", CHUNKED) + b"5\r\n" + frame(b"")
    caller = Caller(Http1(fixed_ids()))
    caller.downstream(REQUEST)
    caller.upstream(response)
    caller.upstream(b"x")
    assert caller.refusal == b""
    [exchange] = caller.exchanges
    assert exchange.end == End.UPSTREAM_FAULT
    assert told(exchange) == (b"shop.Cart/Add", 200, None, -1, None, 1, 1, False)

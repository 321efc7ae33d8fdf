"""What the HTTP/1 engine refuses, what it says to it, and what it carries on unread instead.

Texts are written out: they are what the person who debugs the sender gets to see.
"""

from __future__ import annotations

import errno

import pytest

from protocols.exchange import End, Protocol
from protocols.http1 import Http1, answer
from protocols.trace_context import Ids
from tests.unit.conversation import ADDED, GIVEN_BACK, REQUEST_ID, Caller, Conversation, fixed_ids

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_SENT = b"GET / HTTP/1.1\r\nHost: a\r\n" + ADDED + b"\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
OK_SENT = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + GIVEN_BACK + b"\r\nok"
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED_OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

KIB = 1024
OWN = 8 * 80  # bytes of a head that ARCA's own lines may have without being counted
NOT_HTTP = "this is not HTTP/1: expected 'METHOD target HTTP/1.x'"
REQUEST_LINE = (
    "malformed request line: expected 'METHOD target HTTP/1.x' with single spaces and no control characters"
)
BARE_LF = "a line ends with a bare LF: lines must end with CR LF"
BARE_CR = "a CR without LF in a line: lines must end with CR LF"
OBS_FOLD = "a header line begins with white space: folded lines are not allowed"
COLON = "white space before the colon of a header field is not allowed"
NAME = "malformed header field name: expected token characters and a colon"
VALUE = "control character in a header field value: only tab and visible characters are allowed"
BOTH = "Content-Length together with Transfer-Encoding is not allowed: send one of them"
DIFFER = "differing Content-Length values: exactly one is allowed"
LENGTH = "malformed Content-Length: expected decimal digits below 2^63"
CODING = "the last Transfer-Encoding must be chunked"
TWICE = "Transfer-Encoding names chunked more than once"
CODING_1_0 = "Transfer-Encoding is not allowed in HTTP/1.0"
LINE = "the first line is over 8 KiB"
BLOCK = "header block over 60 KiB"
FIELDS = "more than 100 header fields"
SIZE = "malformed chunk size: expected 1 to 16 hex digits"
EXTENSION = "malformed chunk extension: control character, bare CR or LF, or over 8 KiB"
CHUNK_END = "chunk data is not followed by CR LF: its size was wrong"
TRAILER = "malformed trailer field"
TRAILERS = "trailers over 60 KiB or 100 fields"
STATUS_LINE = "malformed status line: expected 'HTTP/1.x NNN reason'"

# Lines of a head, without their first line, that are wrong in requests and responses alike.
FIELD_FAULTS = [
    (b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400, BOTH),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", 400, BOTH),
    (b"transfer-encoding: CHUNKED\r\ncontent-length: 0\r\n", 400, BOTH),
    (b"Content-Length: 1\r\nContent-Length: 2\r\n", 400, DIFFER),
    (b"Content-Length: 1, 2\r\n", 400, DIFFER),
    (b"Content-Length: 1,1\r\nContent-Length: 3\r\n", 400, DIFFER),
    (b"Content-Length: \r\n", 400, LENGTH),
    (b"Content-Length: -1\r\n", 400, LENGTH),
    (b"Content-Length: +1\r\n", 400, LENGTH),
    (b"Content-Length: 0x1\r\n", 400, LENGTH),
    (b"Content-Length: 1 1\r\n", 400, LENGTH),
    (b"Content-Length: 1,\r\n", 400, LENGTH),
    (b"Content-Length: 1;\r\n", 400, LENGTH),
    (b"Content-Length: 9223372036854775808\r\n", 400, LENGTH),
    (b"Content-Length: 99999999999999999999999\r\n", 400, LENGTH),
    (b"Transfer-Encoding: chunked, chunked\r\n", 400, TWICE),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400, TWICE),
    (b"Transfer-Encoding: chunked, gzip\r\n", 501, CODING),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", 501, CODING),
    (b"X: y\n", 400, BARE_LF),
    (b"X: y\n\r\n", 400, BARE_LF),
    (b"\n", 400, BARE_LF),
    (b"X: y\rZ: 1\r\n", 400, BARE_CR),
    (b"X: y\r\r\n", 400, BARE_CR),
    (b"X: y\x00\r\n", 400, VALUE),
    (b"X: \x0b\r\n", 400, VALUE),
    (b"X: y\x7f\r\n", 400, VALUE),
    (b"X : y\r\n", 400, COLON),
    (b"X\t: y\r\n", 400, COLON),
    (b"Content-Length : 1\r\n", 400, COLON),
    (b" X: y\r\n", 400, OBS_FOLD),
    (b"X: y\r\n z\r\n", 400, OBS_FOLD),
    (b"X: y\r\n\tz: 1\r\n", 400, OBS_FOLD),
    (b": y\r\n", 400, NAME),
    (b"X\r\n", 400, NAME),
    (b"X y\r\n", 400, NAME),
    (b"X\x00: y\r\n", 400, NAME),
    (b"X(: y\r\n", 400, NAME),
    ("Ü: y\r\n".encode(), 400, NAME),
    (b"\xff: y\r\n", 400, NAME),
]
BODY_FAULTS = [
    (b"\r\n", 0, SIZE),
    (b"g\r\n", 0, SIZE),
    (b"-1\r\n", 0, SIZE),
    (b"0x1\r\n", 1, SIZE),
    (b" 1\r\n", 0, SIZE),
    (b"1 \r\n", 2, SIZE),
    (b"1 \t 1\r\n", 4, SIZE),
    (b" ;a\r\n", 0, SIZE),
    (b"1" + b" " * (8 * KIB + 1), 1 + 8 * KIB, SIZE),
    (b"1 ;a\n", 4, EXTENSION),
    (b"1\n", 1, SIZE),
    (b"1\rx", 2, SIZE),
    (b"1\r\r\n", 2, SIZE),
    (b"00000000000000001\r\n", 16, SIZE),
    (b"1;a\n", 3, EXTENSION),
    (b"1;a\rb", 4, EXTENSION),
    (b"1;a\x00\r\n", 3, EXTENSION),
    (b"1;" + b"a" * (8 * KIB + 1), 2 + 8 * KIB, EXTENSION),
    (b"1\r\nab\r\n", 4, CHUNK_END),
    (b"1\r\na\n", 4, CHUNK_END),
    (b"1\r\na\rb", 5, CHUNK_END),
    (b"1\r\na\r\n\r\n", 6, SIZE),
    (b"0\r\nX y\r\n\r\n", 4, TRAILER),
    (b"0\r\nX : y\r\n\r\n", 4, TRAILER),
    (b"0\r\n X: y\r\n\r\n", 3, TRAILER),
    (b"0\r\nX: y\r\n z\r\n", 9, TRAILER),
    (b"0\r\nX: \x00\r\n", 6, TRAILER),
    (b"0\r\nX: y\n\r\n", 7, TRAILER),
    (b"0\r\nX: y\rZ", 8, TRAILER),
    (b"0\r\n\rX", 4, TRAILER),
    (b"0\r\n: y\r\n", 3, TRAILER),
    (b"0\r\n" + b"a:b\r\n" * 101, 3 + 5 * 100 + 1, TRAILERS),
    (b"0\r\na: " + b"b" * 60 * KIB, 3 + 60 * KIB, TRAILERS),
]


def asked() -> Conversation:
    return Conversation().downstream(GET).to_upstream(GET_SENT)


def strict() -> Conversation:
    return Conversation(Http1(fixed_ids(), strict=True))


# -- requests


@pytest.mark.parametrize(("lines", "status", "text"), FIELD_FAULTS)
def test_a_request_with_such_a_field_is_refused(lines: bytes, status: int, text: str) -> None:
    (
        Conversation()
        .downstream(b"POST /p HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n" + GET)
        .refused(status, text)
        .exchange(
            protocol=Protocol.HTTP_1_1,
            method=b"POST",
            target=b"/p",
            status=status,
            fault=text,
            end=End.DOWNSTREAM_FAULT,
            request_complete=False,
        )
        .in_flight(0)
        .downstream(GET)
        .ended(End.DOWNSTREAM_FIN)
        .nothing()
    )


@pytest.mark.parametrize(
    ("head", "status", "text"),
    [
        (b"GET  / HTTP/1.1\r\n\r\n", 400, REQUEST_LINE),
        (b"GET /  HTTP/1.1\r\n\r\n", 400, REQUEST_LINE),
        (b"GET /\tx HTTP/1.1\r\n\r\n", 400, REQUEST_LINE),
        (b"GET /\x00 HTTP/1.1\r\n\r\n", 400, REQUEST_LINE),
        (b"GET /\x7f HTTP/1.1\r\n\r\n", 400, REQUEST_LINE),
        (b"GET /a b HTTP/1.1\r\n\r\n", 400, REQUEST_LINE),
        (b"GET /\rX HTTP/1.1\r\n\r\n", 400, REQUEST_LINE),
        (b"GET / HTTP/1.1\rX: HTTP/1.1\r\n\r\n", 400, BARE_CR),
        (b"GET / HTTP/1.1\n", 400, BARE_LF),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, CODING_1_0),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501, CODING),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n", 501, CODING),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding:\r\n\r\n", 501, CODING),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", 501, CODING),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked;q=1\r\n\r\n", 501, CODING),
    ],
)
def test_a_request_with_such_a_beginning_is_refused(head: bytes, status: int, text: str) -> None:
    Conversation().downstream(head).refused(status, text).exchange(
        status=status, fault=text, end=End.DOWNSTREAM_FAULT, method=head.split()[0]
    )


@pytest.mark.parametrize(("body", "passed", "text"), BODY_FAULTS)
def test_a_request_body_that_breaks_its_chunks_is_refused_at_the_byte(
    body: bytes, passed: int, text: str
) -> None:
    (
        Conversation()
        .downstream(CHUNKED)
        .to_upstream(CHUNKED[:-2] + ADDED + b"\r\n")
        .downstream(body)
        .to_upstream(body[:passed])
        .refused(431 if text == TRAILERS else 400, text)
        .exchange(
            end=End.DOWNSTREAM_FAULT, fault=text, request_id=REQUEST_ID, request_bytes=len(CHUNKED) + passed
        )
    )


def test_a_refusal_carries_the_request_id_when_there_is_one() -> None:
    talk = Conversation().downstream(CHUNKED + b"x").to_upstream(CHUNKED[:-2] + ADDED + b"\r\n")
    assert talk.caller.refusal is not None
    assert b"\r\nX-Request-ID: " + REQUEST_ID + b"\r\n\r\n" in talk.caller.refusal


def test_a_refused_head_request_is_answered_without_a_body() -> None:
    Conversation().downstream(b"HEAD / HTTP/1.1\r\nX : y\r\n\r\n").refused(400, COLON, body=False).exchange(
        method=b"HEAD"
    )


def test_a_refusal_says_what_was_wrong_in_one_line() -> None:
    assert answer(400, "so", request_id=b"7", cause="protocol_error") == (
        b"HTTP/1.1 400 Bad Request\r\nserver: arca\r\ncontent-type: text/plain; charset=latin-1\r\n"
        b"content-length: 3\r\nconnection: close\r\nx-arca-cause: protocol_error\r\n"
        b"X-Request-ID: 7\r\n\r\nso\n"
    )


# -- limits


def test_the_request_line_may_have_8_kib_and_no_byte_more() -> None:
    line = b"GET /" + b"a" * (8 * KIB - 15) + b" HTTP/1.1\r\n"
    assert len(line) == 8 * KIB + 1  # the LF does not count, the CR does
    Conversation().downstream(line + b"\r\n").to_upstream(line + ADDED + b"\r\n")
    for longer in (line.replace(b"/", b"/a") + b"\r\n", b"GET /" + b"a" * (8 * KIB - 4)):
        Conversation().downstream(longer).refused(414, LINE).exchange(
            method=b"GET", status=414, request_bytes=8193
        )


def test_a_header_block_may_have_60_kib_and_no_byte_more() -> None:
    line = b"GET / HTTP/1.1\r\n"
    block = b"a: " + b"b" * (60 * KIB - 7) + b"\r\n"
    assert len(block + b"\r\n") == 60 * KIB
    Conversation().downstream(line + block + b"\r\n").to_upstream(line + block + ADDED + b"\r\n")
    longer = line + block.replace(b":", b"::") + b"\r\n"
    Conversation().downstream(longer).refused(431, BLOCK).exchange(status=431, request_bytes=len(longer))
    # One that does not end is refused behind the room for ARCA's own lines: until then the rest may be such.
    Conversation().downstream(line + b"a: " + b"b" * 61 * KIB).refused(431, BLOCK).exchange(
        status=431, request_bytes=16 + 60 * KIB + OWN + 1
    )


B3 = b"b3: 0-0-d\r\nX-B3-TraceId: 1\r\nX-B3-SpanId: 1\r\nX-B3-ParentSpanId: 1\r\nX-B3-Sampled: 1\r\n"
TRACEPARENT = b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01\r\n"


def through(head: bytes) -> bytes:
    """What an ARCA makes of a head that it does not refuse."""
    caller = Caller(Http1(Ids(1.0)))
    caller.downstream(head)
    assert caller.refusal is None
    assert caller.to_upstream.endswith(b"\r\n\r\n")
    return bytes(caller.to_upstream)


@pytest.mark.parametrize(
    "own", [b"", b"X-Request-ID: \r\n", TRACEPARENT, TRACEPARENT * 2, B3, B3 + TRACEPARENT]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_head_at_its_limits_passes_as_many_arcas_as_there_are(own: bytes, first: bool) -> None:
    line = b"GET / HTTP/1.1\r\n"
    counted = b"a:b\r\n" * (100 - 5 * own.count(B3) - (own.count(TRACEPARENT) > 1))
    uncounted = min(len(own), own.count(b"\r\n") * 80)
    if own == TRACEPARENT * 2:
        uncounted = len(TRACEPARENT)
    large = b"a: " + b"b" * (60 * KIB - 7 - len(own) + uncounted) + b"\r\n"
    for others in (counted, large):
        head = line + (own + others if first else others + own) + b"\r\n"
        second = through(head)
        assert second != head
        # The second still gives B3 a parent where a new trace had none; then nothing grows.
        third = through(second)
        assert len(third) == len(second) or own.startswith(B3)
        assert len(through(third)) == len(third)
    Conversation().downstream(line + own + counted + b"a:b\r\n\r\n").refused(431, FIELDS).exchange()
    Conversation().downstream(line + own + b"a" + large + b"\r\n").refused(431, BLOCK).exchange()


def test_only_so_much_of_our_own_lines_is_not_counted() -> None:
    line = b"GET / HTTP/1.1\r\n"
    many = b"X-Request-ID: 1\r\n" * 102
    Conversation().downstream(line + many + b"\r\n").refused(431, FIELDS).exchange()
    for own in (
        b"X-Request-ID: " + b"1" * 60 * KIB + b"\r\n",
        b"X-B3-a: " + b"1" * (12 * KIB + 100) + b"\r\n",
    ):
        Conversation().downstream(line + own * 5 + b"\r\n").refused(431, BLOCK).exchange()


@pytest.mark.parametrize("others", [b"a:b\r\n" * 99, b"a: " + b"b" * (60 * KIB - 26) + b"\r\n"])
def test_a_response_at_its_limits_passes_as_many_arcas_as_there_are(others: bytes) -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + others + b"\r\n"
    assert len(response) - 17 == 60 * KIB or others.count(b"\n") == 99
    once = response[:-2] + GIVEN_BACK + b"\r\n"
    asked().upstream(response).to_downstream(once).exchange(status=200)
    asked().upstream(once).to_downstream(once).exchange(status=200)
    for longer in (response[:-2] + b"a:b\r\n\r\n", once[:-2] + b"a:b\r\n\r\n"):
        assert asked().upstream(longer).caller.exchanges.pop().status == 502


def test_a_long_request_id_is_given_back_where_there_is_room() -> None:
    line = b"X-Request-ID: " + b"1" * 1000 + b"\r\n"
    head = b"GET / HTTP/1.1\r\n" + line
    sent = head + ADDED[: -len(GIVEN_BACK)] + b"\r\n"
    for length, given in ((59 * KIB - 100, line), (59 * KIB, b"")):
        response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\na: " + b"b" * length + b"\r\n"
        talk = Conversation().downstream(head + b"\r\n").to_upstream(sent)
        talk.upstream(response + b"\r\n").to_downstream(response + given + b"\r\n").exchange(status=200)


def test_a_head_may_have_100_fields_and_no_more() -> None:
    line = b"GET / HTTP/1.1\r\n"
    Conversation().downstream(line + b"a:b\r\n" * 100 + b"\r\n").to_upstream(
        line + b"a:b\r\n" * 100 + ADDED + b"\r\n"
    )
    Conversation().downstream(line + b"a:b\r\n" * 101 + b"\r\n").refused(431, FIELDS).exchange(status=431)


@pytest.mark.parametrize(
    "body",
    [
        b"0000000000000001\r\na\r\n0\r\n\r\n",
        b"1;" + b"a" * (8 * KIB - 1) + b"\r\na\r\n0\r\n\r\n",
        b"1" + b" " * (8 * KIB - 2) + b";\r\na\r\n0\r\n\r\n",
        b"0\r\n" + b"a:b\r\n" * 100 + b"\r\n",
        b"0\r\na:" + b"b" * (60 * KIB - 6) + b"\r\n\r\n",
        b"FFFFFFFFFFFFFFFF\r\nand so on",
    ],
)
def test_chunks_and_trailers_at_their_limits_pass(body: bytes) -> None:
    Conversation().downstream(CHUNKED + body).to_upstream(CHUNKED[:-2] + ADDED + b"\r\n" + body)


def test_the_largest_content_length_passes() -> None:
    head = b"POST / HTTP/1.1\r\nContent-Length: 9223372036854775807\r\n"
    Conversation().downstream(head + b"\r\nx").to_upstream(head + ADDED + b"\r\nx").in_flight(1)


def test_equal_content_lengths_are_one() -> None:
    head = b"POST / HTTP/1.1\r\nContent-Length: 2, 2\r\nContent-Length: 02\r\n"
    Conversation().downstream(head + b"\r\nab" + GET).to_upstream(head + ADDED + b"\r\nab" + GET_SENT)


# -- order


def test_a_refusal_waits_for_the_responses_to_earlier_requests() -> None:
    (
        Conversation()
        .downstream(GET + GET + b"GET / HTTP/1.1\r\nX : y\r\n\r\n" + GET)
        .to_upstream(GET_SENT * 2)
        .in_flight(3)
        .downstream(GET)
        .nothing()
        .upstream(OK)
        .to_downstream(OK_SENT)
        .exchange(status=200, end=End.COMPLETE)
        .upstream(OK + b"unsolicited")
        .to_downstream(OK_SENT)
        .exchange(status=200, end=End.COMPLETE)
        .refused(400, COLON)
        .exchange(status=400, fault=COLON, end=End.DOWNSTREAM_FAULT)
    )


def test_a_refused_request_that_is_never_answered_has_no_status() -> None:
    bad = b"GET / HTTP/1.1\r\nX : y\r\n\r\n"
    talk = Conversation().downstream(GET + bad).to_upstream(GET_SENT).upstream_eof()
    talk.exchange(end=End.UPSTREAM_FIN).exchange(end=End.DOWNSTREAM_FAULT, fault=COLON, status=0)


def test_a_body_refused_while_its_answer_is_on_its_way_is_cut() -> None:
    talk = Conversation().downstream(CHUNKED).to_upstream(CHUNKED[:-2] + ADDED + b"\r\n")
    talk.upstream(OK[:-1]).to_downstream(OK_SENT[:-1]).downstream(b"x").cut()
    talk.exchange(end=End.DOWNSTREAM_FAULT, status=200, fault=SIZE)


def test_a_body_refused_after_its_answer_is_cut() -> None:
    talk = Conversation().downstream(CHUNKED).to_upstream(CHUNKED[:-2] + ADDED + b"\r\n")
    talk.upstream(OK).to_downstream(OK_SENT).downstream(b"x").cut()
    talk.exchange(end=End.DOWNSTREAM_FAULT, status=200, fault=SIZE, response_complete=True)


def test_a_request_refused_after_upstreams_fin_is_cut() -> None:
    # Downstream was sent that FIN already: there is no way to tell it more.
    talk = asked().upstream(OK).to_downstream(OK_SENT).exchange().upstream_eof()
    talk.downstream(b"GET / HTTP/1.1\r\nX : y\r\n\r\n").cut().exchange(
        end=End.DOWNSTREAM_FAULT, status=0, fault=COLON
    )


def test_nothing_goes_on_unread_behind_a_refused_request() -> None:
    bad = b"GET / HTTP/1.1\r\nX : y\r\n\r\n"
    talk = Conversation().downstream(GET + GET + bad).to_upstream(GET_SENT * 2)
    talk.upstream(b"SSH-2.0-x\r\n").cut().exchange(end=End.UPSTREAM_FAULT).exchange(end=End.UPSTREAM_FAULT)
    talk.exchange(end=End.DOWNSTREAM_FAULT, fault=COLON, status=0).downstream(GET).nothing()

    switching = b"HTTP/1.1 101 Switching Protocols\r\n"
    talk = Conversation().downstream(GET + GET + bad).to_upstream(GET_SENT * 2)
    talk.upstream(switching + b"\r\n").to_downstream(switching + GIVEN_BACK + b"\r\n").cut()
    talk.exchange(status=101).exchange(end=End.UPSTREAM_FAULT).exchange(end=End.DOWNSTREAM_FAULT, fault=COLON)


# -- responses


@pytest.mark.parametrize(("lines", "_status", "text"), FIELD_FAULTS)
def test_a_response_with_such_a_field_becomes_a_502(lines: bytes, _status: int, text: str) -> None:
    talk = asked().upstream(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n")
    talk.refused(502, f"the upstream's response was refused: {text}", cause="protocol_error")
    talk.exchange(status=502, fault=text, end=End.UPSTREAM_FAULT, first_byte=-1.0)


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", CODING_1_0),
        (b"HTTP/1.1 20 OK\r\nX: y\r\n\r\n", STATUS_LINE),
        (b"HTTP/1.1 2000 OK\r\n\r\n", STATUS_LINE),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", STATUS_LINE),
        (b"HTTP/1.1 099 OK\r\n\r\n", STATUS_LINE),
        (b"HTTP/1.1  200 OK\r\n\r\n", STATUS_LINE),
        (b"HTTP/1.x 200 OK\r\n\r\n", STATUS_LINE),
        (b"HTTP/1.1\r\n\r\n", STATUS_LINE),
        (b"HTTP/1.1 200 O\x00K\r\n\r\n", STATUS_LINE),
        (b"HTTP/1.1 200 OK\rX: y\r\n\r\n", BARE_CR),
        (b"HTTP/1.1 200 OK\n", BARE_LF),
        (b"HTTP/1.1 200 " + b"a" * 8 * KIB, LINE),
        (b"HTTP/1.1 200 OK\r\n" + b"a:b\r\n" * 101 + b"\r\n", FIELDS),
        (b"HTTP/1.1 200 OK\r\na:" + b"b" * 61 * KIB, BLOCK),
    ],
)
def test_a_response_with_such_a_head_becomes_a_502(response: bytes, text: str) -> None:
    talk = asked().upstream(response)
    talk.refused(502, f"the upstream's response was refused: {text}", cause="protocol_error")
    talk.exchange(status=502, fault=text, end=End.UPSTREAM_FAULT)


def test_a_502_may_follow_an_interim_response() -> None:
    early = b"HTTP/1.1 103 Early\r\n\r\n"
    talk = asked().upstream(early + b"HTTP/1.1 200 OK\n").to_downstream(early)
    talk.refused(502, f"the upstream's response was refused: {BARE_LF}", cause="protocol_error").exchange(
        status=502
    )


@pytest.mark.parametrize(("body", "passed", "text"), BODY_FAULTS)
def test_a_response_body_that_breaks_its_chunks_is_cut(body: bytes, passed: int, text: str) -> None:
    talk = asked().downstream(GET).to_upstream(GET_SENT).upstream(CHUNKED_OK + body)
    talk.to_downstream(CHUNKED_OK[:-2] + GIVEN_BACK + b"\r\n" + body[:passed]).cut()
    talk.exchange(status=200, fault=text, end=End.UPSTREAM_FAULT).exchange(
        status=0, fault=None, end=End.UPSTREAM_FAULT
    )


# -- what is not HTTP


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00",
        b"hello\r\n",
        b"GET /\r\n",
        b"GET / HTTP/2.0\r\n",
        b"GET / HTTP/1.1 \r\n",
        b" GET",
        b"\rG",
        b"X" * 33,
    ],
)
@pytest.mark.parametrize("before", [b"", GET])
def test_what_is_not_http_is_carried_unread(garbage: bytes, before: bytes) -> None:
    talk = Conversation()
    if before:
        talk.downstream(GET).to_upstream(GET_SENT).upstream(OK).to_downstream(OK_SENT).exchange(status=200)
    talk.downstream(garbage).to_upstream(garbage).carried_on("not_http").in_flight(1)
    talk.upstream(b"\n\x00").to_downstream(b"\n\x00").downstream(GET).to_upstream(GET)
    talk.ended(End.UPSTREAM_FIN).exchange(protocol=Protocol.TCP, end=End.COMPLETE, response_bytes=2)


@pytest.mark.parametrize(
    "line", [b"GET\t/ HTTP/1.1", b"GET\t/\tHTTP/1.1", b"GET /\tHTTP/1.1", b"GET \t/ HTTP/1.1"]
)
@pytest.mark.parametrize("before", [b"", GET])
def test_a_request_line_with_tabs_is_one_and_refused(line: bytes, before: bytes) -> None:
    talk = Conversation()
    if before:
        talk.downstream(GET).to_upstream(GET_SENT).upstream(OK).to_downstream(OK_SENT).exchange(status=200)
    rest = b"\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    talk.downstream(line[:5]).nothing().downstream(line[5:] + rest).refused(400, REQUEST_LINE)
    talk.exchange(end=End.DOWNSTREAM_FAULT, status=400, fault=REQUEST_LINE)
    Conversation().downstream(line + b"\n").refused(400, BARE_LF).exchange(fault=BARE_LF)


def test_tabs_in_what_is_no_request_line_are_carried_unread() -> None:
    talk = Conversation().downstream(b"a\tb").nothing().downstream(b"\tc\n").to_upstream(b"a\tb\tc\n")
    talk.carried_on("not_http")


def test_a_bare_lf_before_a_request_is_refused_once_one_was_read() -> None:
    Conversation().downstream(b"\n").to_upstream(b"\n").carried_on("not_http")
    talk = (
        asked()
        .upstream(OK)
        .to_downstream(OK_SENT)
        .exchange(status=200)
        .downstream(b"\r\n")
        .to_upstream(b"\r\n")
    )
    talk.downstream(b"\n" + GET).refused(400, BARE_LF)
    talk.exchange(end=End.DOWNSTREAM_FAULT, fault=BARE_LF, request_bytes=1, method=None)
    # In its turn, when others are in flight; and a request in lower case is held to the same rules.
    talk = asked().downstream(b"\n").nothing().upstream(OK).to_downstream(OK_SENT).exchange(status=200)
    talk.refused(400, BARE_LF).exchange(fault=BARE_LF)
    Conversation().downstream(b"get / HTTP/1.1\n").refused(400, BARE_LF).exchange(method=b"get")


def test_garbage_behind_a_request_takes_its_response_along() -> None:
    talk = (
        Conversation()
        .downstream(GET + b"\x00\x01")
        .to_upstream(GET_SENT + b"\x00\x01")
        .carried_on("not_http")
    )
    talk.exchange(end=End.UNREADABLE, method=b"GET", status=0).upstream(OK).to_downstream(OK)


def test_garbage_that_waits_for_more_to_be_told_goes_on_with_it() -> None:
    talk = Conversation().downstream(b"HELLO ").nothing().downstream(b"you\r\n").to_upstream(b"HELLO you\r\n")
    talk.carried_on("not_http")


@pytest.mark.parametrize(
    "garbage", [b"\x00", b"ICY 200 OK\r\n", b"HTTP/2 200\r\n", b"\r\nHTTP/1.1 200 OK\r\n"]
)
def test_a_response_that_is_not_http_is_carried_unread(garbage: bytes) -> None:
    talk = asked().downstream(GET[:5]).upstream(garbage).to_downstream(garbage).to_upstream(GET[:5])
    talk.carried_on("not_http").exchange(end=End.UNREADABLE, status=0)


@pytest.mark.parametrize("early", [True, False])
def test_a_response_that_nobody_asked_for_is_carried_unread(early: bool) -> None:
    talk = Conversation()
    if not early:
        talk = asked().upstream(OK).to_downstream(OK_SENT).exchange()
    talk.upstream(OK).to_downstream(OK).carried_on("unsolicited_response").downstream(b"x").to_upstream(b"x")


def test_bytes_behind_a_response_that_came_early_are_unsolicited() -> None:
    talk = Conversation().downstream(CHUNKED).to_upstream(CHUNKED[:-2] + ADDED + b"\r\n")
    talk.upstream(OK + b"x").to_downstream(OK_SENT + b"x").carried_on("unsolicited_response")
    talk.exchange(status=200, end=End.COMPLETE, request_complete=False)


def test_an_upgrade_that_nobody_asked_for_is_carried_unread_and_counted() -> None:
    switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
    talk = asked().upstream(switching + b"\r\n\x81").to_downstream(switching + GIVEN_BACK + b"\r\n\x81")
    talk.carried_on("unasked_101").exchange(status=101, end=End.COMPLETE, tunnel=False)
    talk.downstream(b"\x00").to_upstream(b"\x00").ended(End.UPSTREAM_FIN).exchange(protocol=Protocol.TCP)


def test_strict_refuses_an_upgrade_that_nobody_asked_for() -> None:
    text = "101 Switching Protocols to a request that asked for no upgrade"
    talk = strict().downstream(GET + GET).to_upstream(GET_SENT * 2).upstream(OK).to_downstream(OK_SENT)
    talk.exchange(status=200).upstream(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81")
    talk.refused(502, f"the upstream's response was refused: {text}", cause="protocol_error")
    talk.exchange(status=502, end=End.UPSTREAM_FAULT, fault=text)
    asking = b"GET / HTTP/1.1\r\nUpgrade: x\r\n"
    talk = strict().downstream(asking + b"\r\n").to_upstream(asking + ADDED + b"\r\n")
    granted = b"HTTP/1.1 101 Switching Protocols\r\n"
    talk.upstream(granted + b"\r\n").to_downstream(granted + GIVEN_BACK + b"\r\n").carried_on(None)
    talk.exchange(status=101, end=End.COMPLETE)


def test_strict_refuses_what_is_not_http() -> None:
    strict().downstream(b"hello there\r\n").refused(400, NOT_HTTP).exchange(
        end=End.DOWNSTREAM_FAULT, method=b"hello", target=b"there", request_bytes=13, fault=NOT_HTTP
    )
    strict().downstream(b"\x16\x03\x01").refused(400, NOT_HTTP).exchange(
        end=End.DOWNSTREAM_FAULT, method=None, target=None, request_bytes=1
    )


def test_strict_refuses_a_response_that_is_not_http() -> None:
    talk = strict().downstream(GET).to_upstream(GET_SENT).upstream(b"ICY 200 OK\r\n")
    talk.refused(502, f"the upstream's response was refused: {NOT_HTTP}", cause="protocol_error")
    talk.exchange(end=End.UPSTREAM_FAULT, status=502)


def test_strict_cuts_a_response_that_nobody_asked_for() -> None:
    strict().upstream(OK).cut()
    talk = strict().downstream(GET).to_upstream(GET_SENT).upstream(OK + b"x").to_downstream(OK_SENT).cut()
    talk.exchange(status=200, end=End.COMPLETE)


# -- no upstream

REFUSED = (errno.ECONNREFUSED, 502, "connect_refused", "nothing listens on 10.0.0.1:80")


def test_a_failed_dial_is_told_to_whoever_asked() -> None:
    talk = Conversation().downstream(GET + GET).to_upstream(GET_SENT * 2).dial_failed(*REFUSED)
    talk.refused(502, REFUSED[3], cause="connect_refused")
    talk.exchange(status=502, end=End.DIAL_FAILED, error=errno.ECONNREFUSED, request_id=REQUEST_ID)
    talk.exchange(status=0, end=End.DIAL_FAILED, error=errno.ECONNREFUSED).in_flight(0)
    talk.dial_failed(*REFUSED).downstream(GET).nothing()


@pytest.mark.parametrize("before", [b"", GET[:9]])
def test_a_failed_dial_waits_for_the_head(before: bytes) -> None:
    talk = Conversation().downstream(before).dial_failed(*REFUSED).nothing()
    assert talk.caller.refusal is None
    talk.downstream(GET[len(before) :] + GET).refused(502, REFUSED[3], cause="connect_refused")
    talk.exchange(status=502, end=End.DIAL_FAILED, method=b"GET", target=b"/", authority=b"a")


def test_a_failed_dial_answers_head_without_a_body() -> None:
    head = b"HEAD / HTTP/1.1\r\n\r\n"
    talk = Conversation().downstream(head).to_upstream(head[:-2] + ADDED + b"\r\n")
    talk.dial_failed(errno.ETIMEDOUT, 504, "connect_timeout", "no answer")
    talk.refused(504, "no answer", cause="connect_timeout", body=False).exchange(status=504)


def test_a_failed_dial_keeps_what_was_wrong_with_a_request_behind() -> None:
    bad = b"GET / HTTP/1.1\r\nX : y\r\n\r\n"
    talk = Conversation().downstream(GET + bad).to_upstream(GET_SENT).dial_failed(*REFUSED)
    talk.refused(502, REFUSED[3], cause="connect_refused")
    talk.exchange(end=End.DIAL_FAILED).exchange(end=End.DOWNSTREAM_FAULT, fault=COLON)


def test_what_is_not_http_is_cut_when_the_dial_failed() -> None:
    talk = (
        Conversation().dial_failed(*REFUSED).downstream(b"\x00").to_upstream(b"\x00").carried_on("not_http")
    )
    talk.dial_failed(*REFUSED).cut().exchange(
        protocol=Protocol.TCP, end=End.DIAL_FAILED, error=errno.ECONNREFUSED
    )
    talk.ended(End.DIAL_FAILED, errno.ECONNREFUSED).nothing()


def test_a_head_that_timed_out_is_told() -> None:
    talk = Conversation().downstream(GET[:-1]).ended(End.HEAD_TIMEOUT)
    talk.exchange(end=End.HEAD_TIMEOUT, method=b"GET", target=b"/", request_bytes=len(GET) - 1, status=0)

"""What HTTP/1 passes through ARCA as it came: the list of transparency.md, one test each."""

from __future__ import annotations

import errno

import pytest

from protocols.exchange import End, Exchange, Protocol
from protocols.http1 import Http1
from tests.unit.conversation import ADDED, GIVEN_BACK, REQUEST_ID, SPAN_ID, TRACE_ID, Conversation, fixed_ids

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_SENT = b"GET / HTTP/1.1\r\nHost: a\r\n" + ADDED + b"\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
OK_SENT = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + GIVEN_BACK + b"\r\nok"


def asked(head: bytes = GET, body: bytes = b"") -> Conversation:
    """A conversation in which this request has gone to upstream."""
    return Conversation().downstream(head + body).to_upstream(head[:-2] + ADDED + b"\r\n" + body)


def test_header_order_case_and_white_space_stay() -> None:
    head = b"GET /a?b=c%20d HTTP/1.1\r\nhOST:a\r\nX-Two: 1\r\naccept:  \t text/html ;q=1 \t \r\n"
    asked(head + b"X-Two:\r\nX-tWO: 2\r\n\r\n")
    response = b"HTTP/1.1 200  Very  fine \r\nserver:x\r\nCONTENT-length:   0  \r\nSet-Cookie: a\r\n"
    response += b"set-cookie: b\r\n\r\n"
    asked().upstream(response).to_downstream(response[:-2] + GIVEN_BACK + b"\r\n").exchange(status=200)


def test_bytes_over_ascii_in_values_targets_and_reasons_stay() -> None:
    asked("GET /ä HTTP/1.1\r\nX: ü\r\n\r\n".encode())
    response = "HTTP/1.1 200 schön\r\nContent-Length: 0\r\nX: é\r\n\r\n".encode("latin-1")
    asked().upstream(response).to_downstream(response[:-2] + GIVEN_BACK + b"\r\n").exchange(status=200)


def test_the_shortest_messages_pass() -> None:
    asked(b"G / HTTP/1.1\r\n\r\n").upstream(b"HTTP/1.1 200\r\nContent-Length:0\r\n\r\n").to_downstream(
        b"HTTP/1.1 200\r\nContent-Length:0\r\n" + GIVEN_BACK + b"\r\n"
    ).exchange(method=b"G", target=b"/", authority=None, status=200)


def test_http_1_0_stays_http_1_0_and_its_body_ends_with_the_connection() -> None:
    (
        asked(b"GET / HTTP/1.0\r\n\r\n")
        .upstream(b"HTTP/1.0 200 OK\r\n\r\nhello")
        .to_downstream(b"HTTP/1.0 200 OK\r\n" + GIVEN_BACK + b"\r\nhello")
        .upstream(b" world")
        .to_downstream(b" world")
        .in_flight(1)
        .upstream_eof()
        .exchange(protocol=Protocol.HTTP_1_0, status=200, end=End.COMPLETE, response_bytes=30)
        .in_flight(0)
    )


def test_http_1_0_with_keep_alive_goes_on() -> None:
    head = b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
    talk = asked(head).upstream(OK).to_downstream(OK_SENT).exchange(protocol=Protocol.HTTP_1_0)
    talk.downstream(head).to_upstream(head[:-2] + ADDED + b"\r\n")


def test_a_later_minor_version_passes() -> None:
    asked(b"GET / HTTP/1.2\r\nHost: a\r\n\r\n").upstream(OK).to_downstream(OK_SENT).exchange(
        protocol=Protocol.HTTP_1_1
    )


def test_expect_100_continue_reaches_the_server_before_the_body_and_its_answer_the_client() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    (
        asked(head)
        .upstream(b"HTTP/1.1 100 Continue\r\n\r\n")
        .to_downstream(b"HTTP/1.1 100 Continue\r\n\r\n")
        .downstream(b"body")
        .to_upstream(b"body")
        .upstream(OK)
        .to_downstream(OK_SENT)
        .exchange(status=200, end=End.COMPLETE, request_bytes=len(head) + 4)
    )


def test_expect_answered_with_a_final_response_passes_without_the_body() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    (
        asked(head)
        .upstream(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
        .to_downstream(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n" + GIVEN_BACK + b"\r\n")
        .downstream_eof()
        .upstream_eof()
        .exchange(status=417, end=End.COMPLETE, request_complete=False)
    )


def test_every_interim_response_passes_in_its_order() -> None:
    interim = (
        b"HTTP/1.1 102 Processing\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nContent-Length: 7\r\n\r\n"
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 199 Whatever\r\n\r\n"
    )
    talk = asked().upstream(interim).to_downstream(interim).in_flight(1)
    talk.upstream(OK).to_downstream(OK_SENT)
    # The time to the first byte is that of the final response: the third thing that happened.
    talk.exchange(status=200, first_byte=3.0, response_bytes=len(interim + OK))


def test_chunk_boundaries_extensions_and_trailers_stay() -> None:
    chunked = (
        b'004;name="a;b"\r\nWiki\r\n1 \t; a=b\r\n-\r\nA;x\r\n0123456789\r\n00000000000000Ff\r\n'
        + b"x" * 255
        + b"\r\n0;last=1\r\nTrailer-One: 1\r\ntrailer-TWO:\t2 \r\nX-Empty:\r\n\r\n"
    )
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, Chunked\r\nTE: trailers\r\nTrailer: a\r\n\r\n"
    response = b"HTTP/1.1 200 OK\r\ntransfer-encoding:chunked\r\n\r\n"
    (
        asked(head, chunked)
        .upstream(response + chunked)
        .to_downstream(response[:-2] + GIVEN_BACK + b"\r\n" + chunked)
        .exchange(request_bytes=len(head + chunked), response_bytes=len(response + chunked), end=End.COMPLETE)
        .downstream(GET)
        .to_upstream(GET_SENT)
    )


def test_connection_and_hop_by_hop_headers_stay() -> None:
    asked(
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Mine\r\nKeep-Alive: timeout=5\r\nX-Mine: 1\r\n"
        b"Proxy-Connection: x\r\nProxy-Authorization: Basic eA==\r\nTE: trailers\r\nVia: 1.1 b\r\n\r\n"
    )


def test_a_granted_upgrade_makes_the_connection_opaque() -> None:
    head = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    switching = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\r\n"
    (
        asked(head)
        .upstream(switching + b"\x81\x05hello")
        .to_downstream(switching[:-2] + GIVEN_BACK + b"\r\n\x81\x05hello")
        .carried_on(None)
        .exchange(status=101, end=End.COMPLETE, tunnel=True, target=b"/chat")
        .in_flight(1)
        .downstream(b"GET / HTTP/1.1\n\n\x00")
        .to_upstream(b"GET / HTTP/1.1\n\n\x00")
        .upstream(b"\x00\x01")
        .to_downstream(b"\x00\x01")
        .ended(End.DOWNSTREAM_FIN)
        .exchange(protocol=Protocol.WEBSOCKET, end=End.COMPLETE, request_bytes=17, response_bytes=9)
    )


def test_an_upgrade_to_another_protocol_is_opaque_tcp() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: tls/1.0\r\n\r\n"
    switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tls/1.0\r\n\r\n"
    talk = (
        asked(head)
        .upstream(switching)
        .to_downstream(switching[:-2] + GIVEN_BACK + b"\r\n")
        .exchange(status=101)
    )
    talk.carried_on(None).ended(End.UPSTREAM_RST, errno.ECONNRESET).exchange(
        protocol=Protocol.TCP, end=End.UPSTREAM_RST, error=errno.ECONNRESET
    )


def test_bytes_behind_an_upgrade_wait_for_its_answer_and_belong_to_what_was_granted() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
    switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"
    (
        Conversation()
        .downstream(head + b"eager")
        .to_upstream(head[:-2] + ADDED + b"\r\n")
        .read_on(False)
        .upstream(switching)
        .to_downstream(switching[:-2] + GIVEN_BACK + b"\r\n")
        .to_upstream(b"eager")
        .exchange(status=101)
        .carried_on(None)
        .read_on(True)
    )


def test_a_declined_upgrade_is_an_ordinary_exchange_and_the_next_request_is_read() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    (
        Conversation()
        .downstream(head + GET)
        .to_upstream(head[:-2] + ADDED + b"\r\n")
        .read_on(False)
        .upstream(OK[:-1])
        .to_downstream(OK_SENT[:-1])
        .to_upstream(GET_SENT)
        .read_on(True)
        .upstream(OK[-1:] + OK)
        .to_downstream(OK[-1:] + OK_SENT)
        .exchange(status=200, tunnel=True)
        .exchange(status=200, tunnel=False)
    )


def test_an_upgrade_that_is_declined_before_its_body_is_complete_is_read_on() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n"
    (
        asked(head, b"a")
        .upstream(OK)
        .to_downstream(OK_SENT)
        .downstream(b"b" + GET)
        .to_upstream(b"b" + GET_SENT)
        .exchange(status=200, tunnel=True)
    )


def test_bytes_behind_an_upgrade_wait_for_its_answer_although_downstream_sent_fin() -> None:
    # Passed on unread they would be a request that nobody checked, as soon as upstream declined.
    head = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n"
    talk = Conversation().downstream(head + GET).to_upstream(head[:-2] + ADDED + b"\r\n")
    talk.downstream_eof().fin_to_upstream(False)
    talk.upstream(OK).to_downstream(OK_SENT).to_upstream(GET_SENT).exchange(status=200).fin_to_upstream(True)
    talk.upstream(OK).to_downstream(OK_SENT).exchange(status=200)


def test_a_granted_connect_is_a_tunnel() -> None:
    head = b"CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n"
    granted = b"HTTP/1.1 200 Connection established\r\nContent-Length: 5\r\n\r\n"
    (
        Conversation()
        .downstream(head + b"\x16\x03\x01")
        .to_upstream(head[:-2] + ADDED + b"\r\n")
        .upstream(granted + b"\x16\x03")
        .to_downstream(granted[:-2] + GIVEN_BACK + b"\r\n\x16\x03")
        .to_upstream(b"\x16\x03\x01")
        .carried_on(None)
        .exchange(method=b"CONNECT", target=b"b:443", status=200, tunnel=True)
        .downstream_eof()
        .upstream(b"bye")
        .to_downstream(b"bye")
        .upstream_eof()
        .ended(End.DOWNSTREAM_FIN)
        .exchange(protocol=Protocol.TCP, end=End.COMPLETE, request_bytes=3, response_bytes=5)
    )


def test_a_refused_connect_is_an_ordinary_exchange() -> None:
    head = b"CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n"
    denied = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"
    (
        asked(head)
        .upstream(denied)
        .to_downstream(denied[:-4] + GIVEN_BACK + b"\r\nno")
        .exchange(status=403)
        .downstream(GET)
        .to_upstream(GET_SENT)
    )


def test_a_response_without_a_length_ends_with_the_connection() -> None:
    (
        asked()
        .upstream(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
        .to_downstream(b"HTTP/1.1 200 OK\r\n" + GIVEN_BACK + b"\r\nHTTP/1.1 200 OK\r\n\r\n")
        .upstream_eof()
        .exchange(status=200, end=End.COMPLETE, response_complete=True)
    )


def test_a_coding_that_is_not_chunked_makes_a_response_end_with_the_connection() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"
    talk = asked().upstream(head + b"0\r\n\r\n").to_downstream(head[:-2] + GIVEN_BACK + b"\r\n0\r\n\r\n")
    talk.upstream(b"x").to_downstream(b"x").upstream_eof().exchange(end=End.COMPLETE)


@pytest.mark.parametrize(
    ("method", "status"),
    [(b"HEAD", b"200 OK"), (b"GET", b"204 No Content"), (b"GET", b"304 Not Modified"), (b"HEAD", b"500 Oh")],
)
@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked", b"X: y"])
def test_responses_that_have_no_body_have_none_whatever_they_promise(
    method: bytes, status: bytes, framing: bytes
) -> None:
    head = b"HTTP/1.1 " + status + b"\r\n" + framing + b"\r\n\r\n"
    request = method + b" / HTTP/1.1\r\nHost: a\r\n\r\n"
    talk = asked(request).upstream(head).to_downstream(head[:-2] + GIVEN_BACK + b"\r\n")
    talk.exchange(method=method, end=End.COMPLETE, response_bytes=len(head)).downstream(GET).to_upstream(
        GET_SENT
    )


def test_pipelined_requests_pass_at_once_and_are_answered_in_order() -> None:
    paths = [b"/%d" % i for i in range(5)]
    requests = [b"POST %b HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc" % path for path in paths]
    sent = [b"POST %b HTTP/1.1\r\nContent-Length: 3\r\n" % path + ADDED + b"\r\nabc" for path in paths]
    talk = Conversation().downstream(b"".join(requests)).to_upstream(b"".join(sent)).in_flight(5)
    talk.upstream(OK * 5).to_downstream(OK_SENT * 5).in_flight(0)
    for path in paths:
        talk.exchange(target=path, status=200, end=End.COMPLETE)


def test_too_many_pipelined_requests_wait_for_answers_and_then_go_on() -> None:
    talk = Conversation().downstream(GET * 100).to_upstream(GET_SENT * 64).read_on(False).in_flight(64)
    talk.upstream(OK * 31).to_downstream(OK_SENT * 31)
    for _ in range(31):
        talk.exchange(status=200)
    talk.read_on(False).upstream(OK).to_downstream(OK_SENT).exchange(status=200)
    talk.to_upstream(GET_SENT * 32).read_on(False).in_flight(64)
    talk.upstream(OK * 64).to_downstream(OK_SENT * 64).to_upstream(GET_SENT * 4).read_on(True)
    for _ in range(64):
        talk.exchange(status=200)
    talk.in_flight(4)


def test_pipelined_requests_with_large_heads_wait_for_answers_sooner() -> None:
    trace = b"traceparent: 00-" + TRACE_ID + b"-" + SPAN_ID + b"-00\r\n"
    long_id = b"i" * 20_000
    head = b"GET / HTTP/1.1\r\nX-Request-ID: " + long_id + b"\r\n"
    request, sent = head + b"\r\n", head + trace + b"\r\n"
    given_back = OK_SENT.replace(REQUEST_ID, long_id)
    talk = Conversation().downstream(request * 10).to_upstream(sent * 4).read_on(False).in_flight(4)
    # As with their number: they are let in again at half. What is given back is whole, what is kept is not.
    talk.upstream(OK * 2).to_downstream(given_back * 2).read_on(False)
    talk.exchange(request_id=long_id[:1024]).exchange(request_id=long_id[:1024])
    talk.upstream(OK).to_downstream(given_back).to_upstream(sent * 3).in_flight(4)
    talk.exchange(status=200).upstream(OK * 4).to_downstream(given_back * 4).to_upstream(sent * 3)
    for _ in range(4):
        talk.exchange(status=200)
    talk.read_on(True).in_flight(3)


def test_of_requests_with_heads_as_large_as_may_be_two_are_in_flight() -> None:
    target, host = b"/" + b"t" * 8_000, b"Host: " + b"h" * 30_000 + b"\r\n"
    head = b"GET " + target + b" HTTP/1.1\r\n" + host + b"X-Request-ID: " + b"i" * 31_000 + b"\r\n"
    trace = b"traceparent: 00-" + TRACE_ID + b"-" + SPAN_ID + b"-00\r\n"
    talk = Conversation().downstream((head + b"\r\n") * 3).to_upstream((head + trace + b"\r\n") * 2)
    talk.upstream(OK).to_downstream(OK_SENT.replace(REQUEST_ID, b"i" * 31_000))
    talk.exchange(target=target, authority=b"h" * 1024, request_id=b"i" * 1024).in_flight(1)
    talk.upstream(OK).to_downstream(OK_SENT.replace(REQUEST_ID, b"i" * 31_000)).exchange(status=200)
    talk.to_upstream(head + trace + b"\r\n").in_flight(1)


def test_pipelined_requests_that_wait_go_on_when_downstream_sends_fin() -> None:
    talk = Conversation().downstream(GET * 100).to_upstream(GET_SENT * 64)
    talk.downstream_eof().to_upstream(GET_SENT * 36).in_flight(100).fin_to_upstream(True)


@pytest.mark.parametrize("target", [b"http://b.example:8080/a?b", b"*", b"/a//b/../c;d=%00", b"b"])
def test_every_form_of_target_stays(target: bytes) -> None:
    asked(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n").upstream(OK).to_downstream(
        OK_SENT
    ).exchange(target=target, authority=b"a")


@pytest.mark.parametrize("method", [b"PATCH", b"PROPFIND", b"M-SEARCH", b"get", b"X" * 32])
def test_every_method_passes(method: bytes) -> None:
    asked(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n").upstream(OK).to_downstream(OK_SENT).exchange(
        method=method
    )


def test_a_response_before_the_request_is_complete_passes_and_the_request_goes_on() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n"
    (
        asked(head, b"abc")
        .upstream(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        .to_downstream(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n" + GIVEN_BACK + b"\r\n")
        .in_flight(1)
        .downstream(b"def" + GET)
        .to_upstream(b"def" + GET_SENT)
        .exchange(status=413, end=End.COMPLETE, request_bytes=len(head) + 6, request_complete=True)
        .upstream(OK)
        .to_downstream(OK_SENT)
        .exchange(status=200)
    )


@pytest.mark.parametrize("size", [0, 1, 65_536, 10 * 1024 * 1024])
def test_bodies_of_any_size_are_passed_on_and_never_collected(size: int) -> None:
    piece = b"x" * 65_536
    head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    talk = asked(head)
    for at in range(0, size, len(piece)):
        part = piece[: size - at]
        talk.downstream(part).to_upstream(part)
    talk.upstream(response).to_downstream(response[:-2] + GIVEN_BACK + b"\r\n")
    for at in range(0, size, len(piece)):
        part = piece[: size - at]
        talk.upstream(part).to_downstream(part)
    talk.exchange(request_bytes=len(head) + size, response_bytes=len(response) + size, end=End.COMPLETE)


def test_the_middle_of_a_body_goes_on_as_the_very_object_that_came() -> None:
    codec = Http1(fixed_ids())
    codec.from_downstream(b"PUT / HTTP/1.1\r\nContent-Length: 20\r\n\r\n", 1.0)
    part = b"0123456789"
    assert codec.from_downstream(part, 2.0) is part
    codec.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n", 3.0)
    assert codec.from_upstream(part, 4.0) is part


def test_empty_lines_before_a_request_go_on_and_begin_no_exchange() -> None:
    talk = Conversation().downstream(b"\r\n\r\n" + GET).to_upstream(b"\r\n\r\n" + GET_SENT)
    talk.upstream(OK).to_downstream(OK_SENT).exchange(request_bytes=len(GET), started=1.0)
    # An old client's empty line behind a body.
    talk.downstream(b"\r").nothing().downstream(b"\n").to_upstream(b"\r\n").in_flight(0)
    assert not talk.caller.codec.awaits_head(1e9)
    talk.downstream(GET).to_upstream(GET_SENT).upstream(OK).to_downstream(OK_SENT).exchange(started=5.0)
    talk.downstream_eof().ended(End.DOWNSTREAM_FIN).nothing()


def test_a_head_waits_only_for_its_end() -> None:
    talk = Conversation().downstream(GET[:-1]).nothing().in_flight(0)
    assert talk.caller.codec.awaits_head(2.0)
    assert not talk.caller.codec.awaits_head(1.0)
    talk.downstream(GET[-1:]).to_upstream(GET_SENT)
    assert not talk.caller.codec.awaits_head(1e9)
    talk.upstream(OK[:10]).nothing().upstream(OK[10:]).to_downstream(OK_SENT).exchange(
        started=1.0, first_byte=3.0
    )


def test_downstream_may_half_close_behind_its_request() -> None:
    talk = asked().downstream_eof().fin_to_upstream(True)
    talk.upstream(OK).to_downstream(OK_SENT).exchange(status=200, end=End.COMPLETE)
    talk.upstream_eof().ended(End.DOWNSTREAM_FIN).nothing()


def test_a_head_cut_short_by_fin_goes_on_as_it_came_and_may_be_answered() -> None:
    (
        Conversation()
        .downstream(b"GET /a HTTP/1.1\r\nHo")
        .nothing()
        .downstream_eof()
        .to_upstream(b"GET /a HTTP/1.1\r\nHo")
        .in_flight(1)
        .upstream(b"HTTP/1.1 408 Slow\r\nContent-Length: 0\r\n\r\n")
        .to_downstream(b"HTTP/1.1 408 Slow\r\nContent-Length: 0\r\n\r\n")
        .exchange(
            method=b"GET",
            target=b"/a",
            status=408,
            request_complete=False,
            request_bytes=19,
            end=End.COMPLETE,
        )
    )


def test_a_body_cut_short_by_fin_leaves_the_answer_to_upstream() -> None:
    head = b"PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"
    talk = asked(head, b"abc").downstream_eof().nothing().upstream(OK).to_downstream(OK_SENT)
    talk.exchange(status=200, request_complete=False, end=End.COMPLETE).in_flight(0)


@pytest.mark.parametrize("came", [b"", b"HTTP/1.1 200 O"])
def test_upstream_closing_before_its_answer_is_mirrored_and_told(came: bytes) -> None:
    talk = asked().upstream(came).nothing().upstream_eof().to_downstream(came)
    talk.exchange(end=End.UPSTREAM_FIN, status=0, first_byte=-1.0, response_bytes=len(came)).in_flight(0)


def test_upstream_closing_within_its_answer_is_mirrored_and_told() -> None:
    talk = asked().upstream(OK[:-1]).to_downstream(OK_SENT[:-1]).upstream_eof()
    talk.exchange(end=End.UPSTREAM_FIN, status=200, response_complete=False, response_bytes=len(OK) - 1)


def test_chunked_response_cut_short_is_told() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    talk = asked().upstream(head + b"5\r\nhe").to_downstream(head[:-2] + GIVEN_BACK + b"\r\n5\r\nhe")
    talk.upstream_eof().exchange(end=End.UPSTREAM_FIN, status=200)


@pytest.mark.parametrize("length", [b"Content-Length: 90", b"Transfer-Encoding: chunked"])
def test_an_upload_goes_on_although_upstream_has_answered_and_sent_fin(length: bytes) -> None:
    head = b"PUT / HTTP/1.1\r\n" + length + b"\r\n\r\n"
    talk = (
        asked(head, b"4\r\nab").upstream(OK).to_downstream(OK_SENT).upstream_eof().exchange(end=End.COMPLETE)
    )
    talk.downstream(b"cd").to_upstream(b"cd").downstream(b"\r\n0\r\n\r\n").to_upstream(b"\r\n0\r\n\r\n")
    talk.downstream_eof().ended(End.DOWNSTREAM_FIN).nothing()


def test_a_request_that_crosses_the_servers_fin_is_told() -> None:
    # The idle keep-alive race: upstream closed, and downstream did not know it yet.
    talk = asked().upstream(OK).to_downstream(OK_SENT).exchange(status=200).upstream_eof().nothing()
    talk.downstream(GET).to_upstream(GET_SENT).in_flight(1)
    talk.downstream(GET).to_upstream(GET).in_flight(1)
    talk.ended(End.UPSTREAM_RST, errno.ECONNRESET).exchange(
        end=End.UPSTREAM_RST, status=0, error=errno.ECONNRESET
    )


def test_what_waits_for_upstream_goes_on_when_it_sends_fin() -> None:
    head = b"GET / HTTP/1.1\r\nUpgrade: x\r\n\r\n"
    talk = Conversation().downstream(head + b"rest").to_upstream(head[:-2] + ADDED + b"\r\n")
    talk.upstream_eof().exchange(end=End.UPSTREAM_FIN).to_upstream(b"rest").read_on(True)
    talk = Conversation().downstream(GET * 70).to_upstream(GET_SENT * 64)
    talk.upstream_eof().to_upstream(GET * 6).read_on(True)
    for _ in range(64):
        talk.exchange(end=End.UPSTREAM_FIN)


def test_what_is_in_flight_ends_as_the_sockets_did() -> None:
    talk = Conversation().downstream(GET + GET + GET[:9]).to_upstream(GET_SENT * 2)
    talk.upstream(OK[:-1]).to_downstream(OK_SENT[:-1]).ended(End.DOWNSTREAM_RST, errno.ECONNRESET)
    talk.exchange(end=End.DOWNSTREAM_RST, error=errno.ECONNRESET, status=200, ended=3.0)
    talk.exchange(end=End.DOWNSTREAM_RST, error=errno.ECONNRESET, status=0, method=b"GET", target=b"/")
    talk.exchange(end=End.DOWNSTREAM_RST, request_bytes=9, request_complete=False)
    talk.in_flight(0).ended(End.INTERNAL).nothing()


def test_a_request_id_that_came_is_kept_and_given_back_only_if_the_server_did_not() -> None:
    head = b"GET / HTTP/1.1\r\nx-request-ID:  my id \r\n\r\n"
    trace = b"traceparent: 00-" + TRACE_ID + b"-" + SPAN_ID + b"-00\r\n"
    talk = Conversation().downstream(head).to_upstream(head[:-2] + trace + b"\r\n")
    talk.upstream(OK).to_downstream(OK_SENT.replace(REQUEST_ID, b"my id")).exchange(request_id=b"my id")
    answered = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-REQUEST-ID: another\r\n\r\n"
    asked().upstream(answered).to_downstream(answered).exchange(request_id=REQUEST_ID)


def test_an_exchange_says_what_was_asked_and_when() -> None:
    talk = asked().upstream(OK[:-2]).to_downstream(OK_SENT[:-2]).upstream(OK[-2:]).to_downstream(OK[-2:])
    talk.exchange(
        protocol=Protocol.HTTP_1_1,
        method=b"GET",
        target=b"/",
        authority=b"a",
        status=200,
        error=0,
        fault=None,
        code=None,
        request_bytes=len(GET),
        response_bytes=len(OK),
        started=1.0,
        first_byte=2.0,
        ended=3.0,
        connect=-1.0,
        request_id=REQUEST_ID,
        trace_id=TRACE_ID,
        span_id=SPAN_ID,
        parent_id=None,
        sampled=False,
        tunnel=False,
        request_complete=True,
        response_complete=True,
        end=End.COMPLETE,
    )


def test_an_ended_exchange_does_not_hold_the_ones_after_it() -> None:
    talk = Conversation().downstream(GET * 3).to_upstream(GET_SENT * 3).upstream(OK).to_downstream(OK_SENT)
    assert talk.caller.exchanges[0].following is None
    talk.exchange().ended(End.DRAINED)
    assert [exchange.following for exchange in talk.caller.exchanges] == [None, None]


def test_an_exchange_shows_itself_in_a_word() -> None:
    assert repr(Exchange(Protocol.HTTP_1_1, 0.0)) == "<Exchange http/1.1 - - 0 COMPLETE>"

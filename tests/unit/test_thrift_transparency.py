"""Thrift calls and replies in every transport and encoding: what is told of them, and what goes on."""

from __future__ import annotations

import pytest

from protocols.exchange import End, Protocol
from protocols.thrift import Thrift
from tests.unit.conversation import Caller, Conversation, fixed_ids
from tests.unit.thrift_writing import (
    CALL,
    EVERYTHING,
    EXCEPTION,
    ONEWAY,
    REPLY,
    VALUE,
    VOID,
    WAYS,
    Body,
    application,
    declared,
    message,
)

UNCHANGED = [way for way in WAYS if way[0] != "header"]
in_every_way = pytest.mark.parametrize(("transport", "encoding"), WAYS)
untouched = pytest.mark.parametrize(("transport", "encoding"), UNCHANGED)


def conversation() -> Conversation:
    return Conversation(Thrift(fixed_ids()))


def framed(name: str, kind: int = CALL, sequence: int = 1, body: Body = VALUE) -> bytes:
    return message("framed", "binary", name, kind, sequence, body)


@in_every_way
def test_a_call_and_its_reply_are_one_exchange(transport: str, encoding: str) -> None:
    caller = Caller(Thrift(fixed_ids()))
    call = message(transport, encoding, "add", CALL, 7)
    reply = message(transport, encoding, "add", REPLY, 7, VALUE)
    caller.downstream(call)
    assert caller.codec.in_flight == 1
    caller.upstream(reply)
    assert caller.codec.in_flight == 0
    [exchange] = caller.exchanges
    assert exchange.protocol == Protocol.THRIFT
    assert exchange.end == End.COMPLETE
    assert (exchange.method, exchange.target, exchange.code, exchange.failed) == (b"add", None, None, False)
    assert (exchange.request_bytes, exchange.response_bytes) == (len(call), len(reply))
    assert exchange.request_complete
    assert exchange.response_complete
    assert (exchange.started, exchange.first_byte, exchange.ended) == (1, 2, 2)
    assert exchange.thrift is not None
    assert (exchange.thrift.transport, exchange.thrift.encoding) == (transport, encoding)
    assert (exchange.thrift.oneway, exchange.thrift.sequence) == (False, 7)
    assert (exchange.thrift.exception_type, exchange.thrift.exception_field, exchange.thrift.message) == (
        -1,
        0,
        None,
    )
    assert caller.to_downstream == reply


@untouched
def test_what_is_not_changed_goes_on_as_the_object_it_came_in(transport: str, encoding: str) -> None:
    engine = Thrift(fixed_ids())
    call, reply = message(transport, encoding, "add"), message(transport, encoding, "add", REPLY)
    for _ in range(2):
        assert engine.from_downstream(call, 1.0) is call
        assert engine.from_upstream(reply, 2.0) is reply


@untouched
def test_no_ids_are_made_up_where_they_have_no_place(transport: str, encoding: str) -> None:
    caller = Caller(Thrift(fixed_ids(1.0)))
    caller.downstream(message(transport, encoding, "add"))
    caller.upstream(message(transport, encoding, "add", REPLY))
    [exchange] = caller.exchanges
    assert exchange.request_id is exchange.trace_id is exchange.span_id is exchange.parent_id is None
    assert not exchange.sampled


@in_every_way
def test_a_declared_exception_is_told_by_its_field_and_its_first_text(transport: str, encoding: str) -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(message(transport, encoding, "get"))
    caller.upstream(message(transport, encoding, "get", REPLY, body=declared(3)))
    [exchange] = caller.exchanges
    assert (exchange.end, exchange.failed, exchange.code) == (End.COMPLETE, True, "exception_3")
    assert exchange.thrift is not None
    assert (exchange.thrift.exception_field, exchange.thrift.message) == (3, b"no such key")
    assert exchange.thrift.exception_type == -1


def test_texts_further_inside_an_exception_are_not_its_message() -> None:
    inner = (
        "struct",
        [(1, ("struct", [(1, "string")])), (2, ("list", "string")), (3, "string"), (4, "string")],
    )
    body = Body([(1, inner)], {1: {1: {1: "deep"}, 3: "its own", 4: "another"}}, seed=3)
    for transport in ("framed", "buffered"):
        caller = Caller(Thrift(fixed_ids()))
        caller.downstream(message(transport, "binary", "get"))
        caller.upstream(message(transport, "binary", "get", REPLY, body=body))
        [exchange] = caller.exchanges
        assert exchange.thrift is not None
        assert exchange.thrift.message == b"its own"


def test_an_exception_without_text_has_no_message() -> None:
    reply = framed("get", REPLY, 1, Body([(1, ("struct", [(1, "i32")]))]))
    conversation().downstream(framed("get")).to_upstream(framed("get")).upstream(reply).to_downstream(
        reply
    ).exchange(code="exception_1", failed=True).nothing()


@in_every_way
@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (0, "UNKNOWN"),
        (1, "UNKNOWN_METHOD"),
        (6, "INTERNAL_ERROR"),
        (10, "UNSUPPORTED_CLIENT_TYPE"),
        (11, "11"),
        (-3, "-3"),
    ],
)
def test_an_application_exception_is_told_by_the_name_of_its_type(
    transport: str, encoding: str, kind: int, code: str
) -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(message(transport, encoding, "get"))
    caller.upstream(message(transport, encoding, "get", EXCEPTION, body=application(kind)))
    [exchange] = caller.exchanges
    assert (exchange.end, exchange.failed, exchange.code) == (End.COMPLETE, True, code)
    assert exchange.thrift is not None
    assert (exchange.thrift.exception_type, exchange.thrift.message) == (kind, b"boom")


@pytest.mark.parametrize("transport", ["framed", "buffered"])
@pytest.mark.parametrize("size", [0, 1023, 1024, 1025, 100_000])
def test_the_message_of_an_exception_is_cut_off_at_1_kib(transport: str, size: int) -> None:
    caller = Caller(Thrift(fixed_ids()))
    for number in range(2):
        caller.downstream(message(transport, "compact", "get", sequence=number))
        caller.upstream(
            message(
                transport,
                "compact",
                "get",
                EXCEPTION,
                number,
                application(6, "é" * (size // 2) + "x" * (size % 2)),
            )
        )
    for exchange in caller.exchanges:
        assert exchange.thrift is not None
        assert exchange.thrift.message == ("é" * (size // 2) + "x" * (size % 2)).encode()[:1024]
        assert exchange.code == "INTERNAL_ERROR"
    assert len(caller.exchanges) == 2


@in_every_way
def test_a_void_reply_is_a_success(transport: str, encoding: str) -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(message(transport, encoding, "ping"))
    caller.upstream(message(transport, encoding, "ping", REPLY, body=VOID))
    [exchange] = caller.exchanges
    assert (exchange.end, exchange.failed, exchange.code) == (End.COMPLETE, False, None)


@in_every_way
def test_a_oneway_call_is_complete_with_its_last_byte(transport: str, encoding: str) -> None:
    caller = Caller(Thrift(fixed_ids()))
    call = message(transport, encoding, "fire", ONEWAY)
    caller.downstream(call[:-1])
    assert not caller.exchanges
    assert caller.codec.in_flight == 1
    caller.downstream(call[-1:])
    [exchange] = caller.exchanges
    assert (exchange.end, exchange.request_bytes, exchange.response_bytes) == (End.COMPLETE, len(call), 0)
    assert (exchange.started, exchange.first_byte, exchange.ended) == (1, -1, 2)
    assert exchange.thrift is not None
    assert exchange.thrift.oneway
    assert caller.codec.in_flight == 0


# -- which call a reply belongs to


def matched(calls: list[tuple[str, int]], replies: list[tuple[str, int]]) -> list[bytes | None]:
    """The methods of the calls, in the order in which they were answered."""
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(b"".join(framed(name, CALL, sequence) for name, sequence in calls))
    for name, sequence in replies:
        caller.upstream(framed(name, REPLY, sequence))
    return [exchange.method for exchange in caller.exchanges]


def test_replies_out_of_order_are_matched_by_sequence_id() -> None:
    calls = [("a", 1), ("b", 2), ("a", 3)]
    assert matched(calls, [("a", 3), ("b", 2), ("a", 1)]) == [b"a", b"b", b"a"]
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(framed("a", CALL, 1) + framed("a", CALL, -2))
    caller.upstream(framed("a", REPLY, -2))
    [exchange] = caller.exchanges
    assert exchange.thrift is not None
    assert exchange.thrift.sequence == -2


def test_of_calls_with_the_same_sequence_id_the_oldest_is_answered() -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(framed("a", CALL, 0))
    caller.downstream(framed("a", CALL, 0))
    caller.upstream(framed("a", REPLY, 0))
    assert [exchange.started for exchange in caller.exchanges] == [1]


def test_of_calls_with_the_same_sequence_id_the_one_of_the_reply_s_name_is_answered() -> None:
    assert matched([("fire", 0), ("get", 0)], [("get", 0)]) == [b"get"]


def test_a_server_that_gives_no_sequence_id_back_is_followed_by_names() -> None:
    assert matched([("a", 1), ("b", 2), ("b", 3)], [("b", 0), ("a", 0), ("b", 0)]) == [b"b", b"a", b"b"]


def test_a_multiplexed_call_is_answered_without_its_service() -> None:
    assert matched([("A:get", 0), ("B:put", 0)], [("put", 0), ("get", 0)]) == [b"B:put", b"A:get"]
    assert matched([("forget", 5)], [("get", 6)]) == []


def test_a_reply_that_nobody_asked_for_passes_unobserved() -> None:
    call, reply, stray = framed("get"), framed("get", REPLY), framed("other", REPLY, 99)
    conversation().downstream(call).to_upstream(call).upstream(stray).to_downstream(stray).in_flight(
        1
    ).upstream(reply).to_downstream(reply).exchange(method=b"get", response_bytes=len(reply)).nothing()


def test_calls_of_the_server_and_replies_of_the_client_pass_unobserved() -> None:
    call, reply = framed("get"), framed("get", REPLY)
    conversation().downstream(reply).to_upstream(reply).in_flight(0).upstream(call).to_downstream(
        call
    ).in_flight(0).downstream(call).to_upstream(call).upstream(reply).to_downstream(reply).exchange(
        method=b"get"
    ).nothing()


def test_a_reply_before_its_call_s_last_byte_ends_the_exchange_with_that_byte() -> None:
    call, reply = framed("get", body=EVERYTHING), framed("get", REPLY)
    conversation().downstream(call[:-1]).to_upstream(call[:-1]).upstream(reply).to_downstream(
        reply
    ).in_flight(1).nothing().downstream(call[-1:]).to_upstream(call[-1:]).exchange(
        end=End.COMPLETE, request_complete=True, response_complete=True, ended=2
    ).nothing()


# -- transports and encodings


@untouched
def test_a_server_may_answer_in_its_own_way(transport: str, encoding: str) -> None:
    for other_transport, other_encoding in WAYS:
        call = message(transport, encoding, "get")
        reply = message(other_transport, other_encoding, "get", EXCEPTION, body=application(1))
        conversation().downstream(call).to_upstream(call).upstream(reply).to_downstream(reply).exchange(
            code="UNKNOWN_METHOD", response_bytes=len(reply)
        ).nothing()


def test_frames_of_one_connection_may_hold_either_protocol() -> None:
    script = (
        message("framed", "binary", "a")
        + message("framed", "compact", "b")
        + message("framed", "binary-old", "c")
    )
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(script)
    caller.downstream_eof()
    caller.end(End.UPSTREAM_FIN)
    assert [(e.method, e.thrift and e.thrift.encoding) for e in caller.exchanges] == [
        (b"a", "binary"),
        (b"b", "compact"),
        (b"c", "binary-old"),
    ]
    assert caller.to_upstream == script


def test_what_follows_a_message_in_its_frame_is_skipped() -> None:
    call = message("buffered", "binary", "get")
    padded = (len(call) + 50).to_bytes(4) + call + b"\xff" * 50
    next_call = framed("put", sequence=2)
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(padded + next_call)
    assert caller.codec.in_flight == 2
    caller.upstream(framed("put", REPLY, 2) + framed("get", REPLY, 1))
    assert [e.request_bytes for e in caller.exchanges] == [len(next_call), len(padded)]


@untouched
def test_a_method_name_may_have_1024_bytes(transport: str, encoding: str) -> None:
    name = "é" * 512
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(message(transport, encoding, name))
    caller.upstream(message(transport, encoding, name, REPLY))
    [exchange] = caller.exchanges
    assert exchange.method == name.encode()


def test_an_empty_container_may_say_that_it_holds_anything() -> None:
    head = message("buffered", "binary", "get", body=VOID)[:-1]
    call = head + b"\x0f\x00\x01\x00\x00\x00\x00\x00" + b"\x0d\x00\x02\x63\x00\x00\x00\x00\x00" + b"\x00"
    conversation().downstream(call * 2).to_upstream(call * 2).in_flight(2).nothing()


def test_64_levels_are_read() -> None:
    shape: object = "i32"
    for _ in range(63):
        shape = ("struct", [(1, shape)])
    for encoding in ("binary", "compact"):
        caller = Caller(Thrift(fixed_ids()))
        caller.downstream(message("buffered", encoding, "get", body=Body([(1, shape)])) * 2)
        assert caller.fallback is None
        assert caller.codec.in_flight == 2


# -- recognised in the middle


@in_every_way
def test_bytes_that_went_on_before_recognition_are_not_changed_or_sent_again(
    transport: str, encoding: str
) -> None:
    call, reply = message(transport, encoding, "get"), message(transport, encoding, "get", REPLY)
    for cut in range(1, 9):
        caller = Caller(Thrift(fixed_ids()))
        caller.codec.passed_on(call[:cut], 0.5)
        caller.downstream(call[cut:])
        assert caller.to_upstream == call[cut:]
        caller.upstream(reply)
        [exchange] = caller.exchanges
        assert (exchange.method, exchange.request_bytes, exchange.started) == (b"get", len(call), 0.5)
        assert exchange.span_id is None
        assert caller.to_downstream == reply


def test_what_went_on_and_is_no_thrift_is_not_sent_again() -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.codec.passed_on(b"\x80\x01\x00\x07", 0.5)
    caller.downstream(b"more")
    assert caller.to_upstream == b"more"
    assert caller.fallback == "not_thrift"

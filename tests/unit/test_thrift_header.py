"""The header transport: trace headers are continued in its info headers, and nothing else of a frame changes.

What goes on is read again by Apache's library, which wrote what came.
"""

from __future__ import annotations

import pytest

from protocols.exchange import End
from protocols.thrift import Thrift
from tests.unit.conversation import REQUEST_ID, SPAN_ID, TRACE_ID, Caller, fixed_ids
from tests.unit.thrift_writing import (
    EXCEPTION,
    ONEWAY,
    REPLY,
    VALUE,
    Body,
    application,
    declared,
    header_infos,
    header_message,
    message,
)

TRACE = b"0af7651916cd43dd8448eb211c80319c"
PARENT = b"b7ad6b7169203331"
TRACEPARENT = b"00-" + TRACE + b"-" + PARENT
NEW = b"00-" + TRACE_ID + b"-" + SPAN_ID
KIB = 1024


def call(infos: dict[bytes, bytes] | None = None, *, encoding: str = "binary", zlib: bool = False) -> bytes:
    return message("header", encoding, "get", infos=infos, zlib=zlib)


def sent(frame: bytes, sample: float = 0.0) -> tuple[bytes, Caller]:
    """What upstream gets of this frame."""
    caller = Caller(Thrift(fixed_ids(sample)))
    caller.downstream(frame)
    assert caller.fallback is None
    return bytes(caller.to_upstream), caller


def with_head(head: bytes, payload: bytes = message("buffered", "binary", "get")) -> bytes:
    """A frame with this header, padded, before its payload."""
    head += bytes(-len(head) % 4)
    rest = b"\x0f\xff\x12\x34" + (77).to_bytes(4) + (len(head) // 4).to_bytes(2) + head + payload
    return len(rest).to_bytes(4) + rest


def varint(value: int) -> bytes:
    encoded = b""
    while value > 0x7F:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])


def pairs(*infos: tuple[bytes, bytes]) -> bytes:
    encoded = b"\x01" + varint(len(infos))
    for name, value in infos:
        encoded += varint(len(name)) + name + varint(len(value)) + value
    return encoded


@pytest.mark.parametrize("encoding", ["binary", "compact"])
@pytest.mark.parametrize("zlib", [False, True])
def test_absent_trace_headers_are_added(encoding: str, zlib: bool) -> None:
    frame = call({b"tenant": b"blue"}, encoding=encoding, zlib=zlib)
    passed, caller = sent(frame)
    assert header_infos(passed) == {
        b"tenant": b"blue",
        b"traceparent": NEW + b"-00",
        b"x-request-id": REQUEST_ID,
    }
    assert header_message(passed) == header_message(frame)
    reply = message("header", encoding, "get", REPLY, body=VALUE, zlib=zlib)
    caller.upstream(reply)
    assert caller.to_downstream == reply
    [exchange] = caller.exchanges
    assert (exchange.end, exchange.method, exchange.request_id) == (End.COMPLETE, b"get", REQUEST_ID)
    assert (exchange.trace_id, exchange.span_id, exchange.parent_id) == (TRACE_ID, SPAN_ID, None)
    assert (exchange.request_bytes, exchange.response_bytes) == (len(frame), len(reply))


def test_a_sampled_traceparent_is_replaced_in_its_place() -> None:
    infos = {
        b"a": b"1",
        b"TraceParent": TRACEPARENT + b"-01",
        b"tracestate": b"v=1",
        b"X-Request-Id": b"mine",
    }
    frame = call(infos)
    passed, caller = sent(frame)
    became = {**infos, b"TraceParent": b"00-" + TRACE + b"-" + SPAN_ID + b"-01"}
    assert list(header_infos(passed).items()) == list(became.items())
    assert len(passed) == len(frame)
    assert header_message(passed) == header_message(frame)
    caller.upstream(message("header", "binary", "get", REPLY))
    [exchange] = caller.exchanges
    assert (exchange.trace_id, exchange.span_id, exchange.parent_id) == (TRACE, SPAN_ID, PARENT)
    assert exchange.sampled
    assert exchange.request_id == b"mine"


def test_a_frame_that_needs_no_change_goes_on_as_the_object_it_came_in() -> None:
    frame = call({b"traceparent": TRACEPARENT + b"-00", b"x-request-id": b"mine"})
    engine = Thrift(fixed_ids())
    assert engine.from_downstream(frame, 1.0) is frame
    assert engine.from_downstream(frame, 1.0) is frame
    [exchange, _] = engine.running(2.0)
    assert (exchange.trace_id, exchange.span_id, exchange.parent_id) == (TRACE, None, PARENT)
    assert exchange.request_id == b"mine"


def test_an_invalid_traceparent_is_replaced_and_its_tracestate_dropped() -> None:
    passed, _ = sent(call({b"traceparent": b"nonsense", b"tracestate": b"v=1", b"z": b"2"}), sample=1.0)
    assert header_infos(passed) == {b"z": b"2", b"traceparent": NEW + b"-01", b"x-request-id": REQUEST_ID}


def test_b3_is_continued() -> None:
    frame = call({b"b3": TRACE + b"-" + PARENT + b"-1", b"x-request-id": b"mine"})
    passed, caller = sent(frame)
    assert header_infos(passed) == {
        b"b3": TRACE + b"-" + SPAN_ID + b"-1-" + PARENT,
        b"traceparent": b"00-" + TRACE + b"-" + SPAN_ID + b"-01",
        b"x-request-id": b"mine",
    }
    assert [e.parent_id for e in caller.codec.running(9)] == [PARENT]


def test_several_sections_of_info_headers_become_one() -> None:
    frame = with_head(b"\x00\x00" + pairs((b"a", b"1")) + pairs((b"traceparent", b"bad"), (b"b", b"2")))
    passed, _ = sent(frame)
    assert header_infos(passed) == {
        b"a": b"1",
        b"b": b"2",
        b"traceparent": NEW + b"-00",
        b"x-request-id": REQUEST_ID,
    }
    assert passed[4:12] == frame[4:12]
    assert header_message(passed) == header_message(frame)


def test_info_headers_of_another_type_go_on_behind_ours() -> None:
    unknown = b"\x07unknown\x00info"
    passed, _ = sent(with_head(b"\x00\x00" + pairs((b"a", b"1")) + unknown))
    assert header_infos(passed) == {b"a": b"1", b"traceparent": NEW + b"-00", b"x-request-id": REQUEST_ID}
    assert unknown in passed


@pytest.mark.parametrize(
    "infos",
    [
        b"\x01\x02\x01a\x01b",  # one pair of the two that it says
        b"\x01\x01\x01a\x7fb",  # a value beyond the head
        b"\x01\xff\xff\xff\xff\x7f",
        b"\x01" + b"\x80" * 12,
        pairs(*[(b"b3", b"0")] * 101),
    ],
)
def test_info_headers_that_cannot_be_read_go_on_as_they_came(infos: bytes) -> None:
    frame = with_head(b"\x00\x00" + infos)
    for size in (1, len(frame)):
        caller = Caller(Thrift(fixed_ids()))
        for at in range(0, len(frame), size):
            caller.downstream(frame[at : at + size])
        assert caller.to_upstream == frame
        [exchange] = caller.codec.running(10_000.0)
        assert (exchange.method, exchange.span_id) == (b"get", None)


def test_a_head_is_held_back_until_it_is_complete_and_nothing_behind_it() -> None:
    frame = call({b"a": b"1"})
    head = 14 + 4 * int.from_bytes(frame[12:14])
    caller = Caller(Thrift(fixed_ids()))
    for _ in range(2):
        for at in range(head - 1):
            caller.downstream(frame[at : at + 1])
            assert not caller.to_upstream
        caller.downstream(frame[head - 1 : head])
        assert caller.to_upstream
        caller.downstream(frame[head : head + 3])
        assert caller.to_upstream.endswith(frame[head : head + 3])
        caller.downstream(frame[head + 3 :])
        assert header_message(bytes(caller.to_upstream)) == header_message(frame)
        caller.to_upstream.clear()
    assert caller.codec.in_flight == 2


def test_a_head_of_more_than_60_kib_is_neither_held_back_nor_changed() -> None:
    infos = {b"k%d" % number: b"v" * 1000 for number in range(100)}
    frame = call(infos)
    assert len(frame) > 60 * KIB
    caller = Caller(Thrift(fixed_ids()))
    for at in range(len(frame)):
        caller.downstream(frame[at : at + 1])
        assert len(caller.to_upstream) == (at + 1 if at >= 13 else 0)
    assert caller.to_upstream == frame
    [exchange] = caller.codec.running(1e9)
    assert (exchange.method, exchange.request_bytes, exchange.request_complete) == (b"get", len(frame), True)
    assert exchange.trace_id is exchange.request_id is None


def test_nothing_is_added_where_a_limit_would_be_passed() -> None:
    full = call({b"k": b"v" * (60 * KIB - 100)})
    passed, caller = sent(full)
    assert passed == full
    assert [(e.trace_id, e.request_id) for e in caller.codec.running(9)] == [(None, None)]
    frame = call({b"a": b"1"})
    engine = Thrift(fixed_ids())
    engine.frame_limit = len(frame)
    assert engine.from_downstream(frame, 1.0) is frame


def test_a_long_request_id_is_kept_on_the_wire_and_cut_off_in_the_record() -> None:
    passed, caller = sent(call({b"x-request-id": b"i" * 5000}))
    assert header_infos(passed)[b"x-request-id"] == b"i" * 5000
    assert [e.request_id for e in caller.codec.running(9)] == [b"i" * 1024]


@pytest.mark.parametrize("head", [b"\x00\x01\x03", b"\x01\x00", b"\x00\x02\x01\x01", b"\x05\x00"])
def test_what_is_not_read_of_the_header_transport_is_carried_on(head: bytes) -> None:
    frame = with_head(head)
    first = message("framed", "binary", "get")
    for size in (1, len(frame)):
        caller = Caller(Thrift(fixed_ids()))
        caller.downstream(first)
        for at in range(0, len(frame), size):
            caller.downstream(frame[at : at + size])
        assert caller.fallback == "protocol"
        assert caller.to_upstream == first + frame
        unread, call_before = caller.exchanges
        assert (unread.end, unread.method) == (End.UNREADABLE, None)
        assert "which ARCA does not read" in (unread.fault or "")
        assert (call_before.end, call_before.method) == (End.UNREADABLE, b"get")
    strict = Caller(Thrift(fixed_ids(), strict=True))
    strict.downstream(frame)
    assert strict.refusal == b""
    assert [e.end for e in strict.exchanges] == [End.LIMIT]


def test_a_frame_of_another_transport_behind_goes_on_untouched() -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(call())
    caller.to_upstream.clear()
    plain = message("framed", "binary", "put", sequence=2)
    for at in range(len(plain)):
        caller.downstream(plain[at : at + 1])
    assert caller.to_upstream == plain
    assert [e.thrift and e.thrift.transport for e in caller.codec.running(1e9)] == ["header", "framed"]


def test_several_frames_in_one_read_are_each_changed() -> None:
    frames = [call({b"n": b"%d" % number}) for number in range(3)]
    apart = b"".join(sent(frame)[0] for frame in frames)
    together, caller = sent(b"".join(frames) + frames[0][:20])
    assert together == apart
    caller.downstream_eof()
    assert caller.to_upstream == apart + frames[0][:20]


@pytest.mark.parametrize("zlib", [False, True])
def test_exceptions_are_read_in_the_header_transport(zlib: bool) -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(message("header", "compact", "get", sequence=1))
    caller.downstream(message("header", "compact", "put", sequence=2))
    caller.downstream(message("header", "compact", "fire", ONEWAY, 3, zlib=zlib))
    replies = message("header", "compact", "put", REPLY, 2, declared(1), zlib=zlib)
    replies += message("header", "compact", "get", EXCEPTION, 1, application(5), zlib=zlib)
    for at in range(len(replies)):
        caller.upstream(replies[at : at + 1])
    assert [(e.method, e.code, e.thrift and e.thrift.message) for e in caller.exchanges] == [
        (b"fire", None, None),
        (b"put", "exception_1", b"no such key"),
        (b"get", "MISSING_RESULT", b"boom"),
    ]
    assert caller.to_downstream == replies


def test_only_the_beginning_of_a_payload_is_inflated() -> None:
    """An exception whose text lies behind 64 KiB that compress to nothing: it is told without its text."""
    body = Body([(3, "string"), (1, "string"), (2, "i32")], {3: "0" * 10_000_000, 1: "far away", 2: 6})
    reply = message("header", "binary", "get", EXCEPTION, 1, body, zlib=True)
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(call())
    caller.upstream(reply)
    [exchange] = caller.exchanges
    assert (exchange.failed, exchange.end, exchange.response_bytes) == (True, End.COMPLETE, len(reply))
    assert exchange.thrift is not None
    assert exchange.thrift.message is None


def test_a_payload_that_cannot_be_inflated_is_carried_on() -> None:
    frame = with_head(b"\x00\x01\x01" + pairs((b"a", b"1")), b"no zlib at all")
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(frame)
    assert caller.fallback == "not_thrift"
    [exchange] = caller.exchanges
    assert exchange.end == End.DOWNSTREAM_FAULT
    assert exchange.fault is not None
    assert exchange.fault.startswith("a payload that zlib cannot inflate")
    assert caller.to_upstream.endswith(b"no zlib at all")

"""How Thrift exchanges end, and what is carried on unread or refused because it cannot be read."""

from __future__ import annotations

import errno
import zlib

import pytest

from protocols.exchange import End
from protocols.thrift import Thrift
from tests.unit.conversation import Caller, Conversation, fixed_ids
from tests.unit.thrift_writing import CALL, ONEWAY, REPLY, VALUE, VOID, Body, message

GET = message("framed", "binary", "get", CALL, 1)
GOT = message("framed", "binary", "get", REPLY, 1, VALUE)
FIRE = message("framed", "binary", "fire", ONEWAY, 2)
UNFRAMED = message("buffered", "binary", "get")
HEAD = message("header", "binary", "get")


def conversation(*, strict: bool = False) -> Conversation:
    return Conversation(Thrift(fixed_ids(), strict))


# -- ends of the connection


def test_a_half_closed_client_gets_its_reply() -> None:
    conversation().downstream(GET).to_upstream(GET).downstream_eof().fin_to_upstream(True).upstream(
        GOT
    ).to_downstream(GOT).exchange(end=End.COMPLETE, method=b"get").upstream_eof().nothing()


def test_a_half_closed_client_that_gets_no_reply() -> None:
    conversation().downstream(GET).to_upstream(GET).downstream_eof().upstream_eof().exchange(
        end=End.DOWNSTREAM_FIN, request_complete=True, first_byte=-1
    ).ended(End.DOWNSTREAM_FIN).nothing()


def test_upstream_closes_instead_of_answering() -> None:
    conversation().downstream(GET).to_upstream(GET).upstream_eof().exchange(
        end=End.UPSTREAM_FIN, first_byte=-1
    ).nothing()


@pytest.mark.parametrize("cut", [2, 6, 30])
def test_upstream_closes_in_the_middle_of_its_reply(cut: int) -> None:
    got = GOT[: min(cut, len(GOT) - 1)]
    conversation().downstream(GET).to_upstream(GET).upstream(got).to_downstream(got).upstream_eof().exchange(
        end=End.UPSTREAM_FIN, first_byte=2, response_bytes=len(got), response_complete=False
    ).nothing()


@pytest.mark.parametrize("how", [End.DOWNSTREAM_RST, End.UPSTREAM_RST, End.DRAINED, End.INTERNAL])
def test_whatever_is_in_flight_ends_as_the_connection_does(how: End) -> None:
    conversation().downstream(GET + FIRE[:-1]).to_upstream(GET + FIRE[:-1]).in_flight(2).ended(
        how, errno.ECONNRESET
    ).exchange(end=how, error=errno.ECONNRESET, method=b"get", request_complete=True).exchange(
        end=how, error=errno.ECONNRESET, method=b"fire", request_complete=False
    ).in_flight(0).nothing()


@pytest.mark.parametrize("call", [GET[:3], GET[:9], UNFRAMED[:7], HEAD[:16]])
def test_a_call_that_broke_off_in_its_head_is_an_exchange_without_a_method(call: bytes) -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(call)
    assert caller.codec.awaits_head(10.0)
    assert not caller.codec.awaits_head(0.5)
    caller.downstream_eof()
    assert caller.to_upstream == call
    caller.end(End.DOWNSTREAM_FIN)
    [exchange] = caller.exchanges
    assert (exchange.end, exchange.method, exchange.request_bytes) == (End.DOWNSTREAM_FIN, None, len(call))


def test_a_connection_without_a_call_ends_without_an_exchange() -> None:
    conversation().downstream_eof().upstream_eof().ended(End.UPSTREAM_FIN).nothing()
    conversation().ended(End.DOWNSTREAM_RST).nothing()


def test_a_oneway_call_goes_on_when_upstream_has_closed_its_side() -> None:
    conversation().downstream(FIRE[:-1]).to_upstream(FIRE[:-1]).upstream_eof().nothing().downstream(
        FIRE[-1:]
    ).to_upstream(FIRE[-1:]).exchange(end=End.COMPLETE, method=b"fire").in_flight(0).nothing()


def test_a_call_after_upstream_s_end_ends_with_the_connection() -> None:
    conversation().upstream_eof().downstream(GET).to_upstream(GET).ended(End.UPSTREAM_FIN).exchange(
        end=End.UPSTREAM_FIN, method=b"get"
    ).nothing()


def test_nothing_is_said_after_the_end() -> None:
    conversation().downstream(GET).to_upstream(GET).ended(End.UPSTREAM_RST).exchange(
        end=End.UPSTREAM_RST
    ).downstream(GET).upstream(GOT).upstream_eof().ended(End.DOWNSTREAM_FIN).nothing()


def test_a_failed_dial_is_mirrored_to_the_call_that_waits() -> None:
    conversation().downstream(GET[:-1]).to_upstream(GET[:-1]).dial_failed(
        errno.ECONNREFUSED, 502, "connection_refused", "nobody listens"
    ).cut().exchange(end=End.DIAL_FAILED, error=errno.ECONNREFUSED, method=b"get", status=0).nothing()


@pytest.mark.parametrize("call", [GET, UNFRAMED, FIRE, HEAD])
def test_a_dial_that_failed_before_the_call_waits_for_its_name(call: bytes) -> None:
    talk = conversation().dial_failed(errno.EHOSTUNREACH, 502, "host_unreachable", "no way").nothing()
    talk.downstream(call[:5])
    talk.caller.to_upstream.clear()
    assert talk.caller.refusal is None
    talk.downstream(call[5:])
    talk.cut().exchange(
        end=End.DIAL_FAILED, error=errno.EHOSTUNREACH, method=b"fire" if call is FIRE else b"get"
    )
    assert not talk.caller.exchanges


def test_a_drain_says_nothing_and_ends_what_is_in_flight() -> None:
    talk = conversation().downstream(GET).to_upstream(GET)
    assert talk.caller.codec.begin_drain() == talk.caller.codec.farewell() == b""
    talk.ended(End.DRAINED).exchange(end=End.DRAINED)


def test_a_late_head_is_cut_off() -> None:
    talk = conversation().downstream(GET[:7])
    talk.caller.to_upstream.clear()
    talk.caller.refuse_late_head()
    talk.cut().exchange(end=End.HEAD_TIMEOUT, method=None, request_bytes=7).nothing()


def test_running_exchanges_are_listed() -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(GET)
    caller.downstream(GET)
    assert [exchange.started for exchange in caller.codec.running(2.0)] == [1.0]
    assert [exchange.started for exchange in caller.codec.running(9.0)] == [1.0, 2.0]


def test_calls_beyond_4096_in_flight_pass_unobserved_and_are_told_once_per_crossing() -> None:
    caller = Caller(Thrift(fixed_ids()))
    calls = [message("framed", "compact", "get", CALL, number, VOID) for number in range(4100)]
    caller.downstream(b"".join(calls))
    assert caller.codec.in_flight == 4096
    assert caller.exceeded == [("in_flight", "downstream")]
    caller.upstream(message("framed", "compact", "get", REPLY, 4095, VOID))
    caller.downstream(GET)
    assert caller.codec.in_flight == 4096
    assert len(caller.exceeded) == 1
    caller.downstream(GET)
    assert caller.exceeded == [("in_flight", "downstream")] * 2
    assert caller.to_upstream == b"".join(calls) + GET * 2


def test_of_one_read_so_many_oneway_calls_are_told_and_what_is_beyond_goes_on_unobserved() -> None:
    caller = Caller(Thrift(fixed_ids()))
    flood = message("framed", "compact", "put", ONEWAY, 1, VOID) * 17_000
    caller.downstream(flood)
    assert caller.to_upstream == flood
    assert len(caller.exchanges) == 16_384
    assert caller.exceeded == [("at_once", "downstream")]
    caller.downstream(GET)
    assert caller.codec.in_flight == 1


def test_the_names_of_calls_in_flight_are_kept_up_to_1_mib() -> None:
    caller = Caller(Thrift(fixed_ids()))
    for number in range(1100):
        caller.downstream(message("framed", "compact", "n" * 1000 + f"{number:04}", CALL, number, VOID))
    assert 1000 < caller.codec.in_flight < 1100
    assert caller.exceeded == [("in_flight", "downstream")]


# -- what cannot be read


def binary(body: bytes) -> bytes:
    """A call without a frame whose arguments are ``body``."""
    return b"\x80\x01\x00\x01\x00\x00\x00\x01a\x00\x00\x00\x01" + body


def compact(body: bytes) -> bytes:
    return b"\x82\x21\x01\x01a" + body


DEEP = Body([(1, "i32")])
for _ in range(64):
    DEEP = Body([(1, ("struct", DEEP.fields))])

FAULTS = {
    "no thrift": (
        b"GET / HTTP/1.1\r\n",
        "not_thrift",
        "bytes that begin neither a frame nor a message of Thrift",
    ),
    "strict magic": (
        b"\x80\x02\x00\x01",
        "not_thrift",
        "a message that begins as none of the binary or the compact",
    ),
    "message type 0": (b"\x80\x01\x00\x00", "not_thrift", "a message type other than call, reply, exception"),
    "message type 5": (b"\x82\xa1", "not_thrift", "a message type other than call, reply, exception"),
    "compact version": (
        b"\x82\x22",
        "not_thrift",
        "a message of the compact protocol with a version other than 1",
    ),
    "name of 1025": (
        b"\x80\x01\x00\x01\x00\x00\x04\x01",
        "not_thrift",
        "a method name of negative length or of more",
    ),
    "negative name": (
        b"\x80\x01\x00\x01\xff\xff\xff\xff",
        "not_thrift",
        "a method name of negative length or of",
    ),
    "long old name": (
        b"\x00\x00\x04\x01abcdefg",
        "not_thrift",
        "bytes that begin neither a frame nor a message",
    ),
    "old type": (
        b"\x00\x00\x00\x01a\x09",
        "not_thrift",
        "a message type other than call, reply, exception and",
    ),
    "endless sequence id": (
        b"\x82\x21" + b"\x80" * 11,
        "not_thrift",
        "a variable-length integer of more than 10",
    ),
    "endless field id": (
        compact(b"\x05" + b"\xff" * 11),
        "not_thrift",
        "a variable-length integer of more than 10",
    ),
    "void value": (
        binary(b"\x01\x00\x01"),
        "not_thrift",
        "a value of a type that the protocol does not have",
    ),
    "unknown value": (
        binary(b"\x63\x00\x01"),
        "not_thrift",
        "a value of a type that the protocol does not have",
    ),
    "compact unknown value": (
        compact(b"\x1e"),
        "not_thrift",
        "a value of a type that the protocol does not have",
    ),
    "void element": (
        binary(b"\x0f\x00\x01\x01\x00\x00\x00\x01"),
        "not_thrift",
        "a value of a type that the protocol",
    ),
    "void key": (
        binary(b"\x0d\x00\x01\x01\x0a\x00\x00\x00\x01"),
        "not_thrift",
        "a value of a type that the protocol",
    ),
    "compact void element": (
        compact(b"\x19\x10"),
        "not_thrift",
        "a value of a type that the protocol does not have",
    ),
    "negative list": (
        binary(b"\x0f\x00\x01\x08\xff\xff\xff\xff"),
        "not_thrift",
        "a string or container of negative",
    ),
    "negative map": (
        binary(b"\x0d\x00\x01\x08\x08\x80\x00\x00\x00"),
        "not_thrift",
        "a string or container of negati",
    ),
    "negative string": (
        binary(b"\x0b\x00\x01\x80\x00\x00\x00"),
        "not_thrift",
        "a string or container of negative",
    ),
    "compact size": (
        compact(b"\x18" + b"\xff\xff\xff\xff\x0f"),
        "not_thrift",
        "a string or container of negative",
    ),
    "65 levels": (
        message("buffered", "binary", "a", body=DEEP),
        "too_deep",
        "structs and containers more than 64 deep",
    ),
    "large frame": (
        b"\x00\xfa\x00\x01\x80\x01",
        "frame_too_large",
        "a frame of 16384001 bytes, of which ARCA reads 16384000 (limits.thrift_frame_bytes)",
    ),
    "short frame": (
        b"\x00\x00\x00\x05\x80\x01\x00\x01\x00",
        "not_thrift",
        "a message that goes on beyond its frame",
    ),
    "frame of one byte": (b"\x00\x00\x00\x01\x80", "not_thrift", "a message that goes on beyond its frame"),
    "half magic": (
        b"\x00\x00\x01\x00\x0f\xfe",
        "not_thrift",
        "bytes that begin neither a frame nor a message of",
    ),
    "short header frame": (
        b"\x00\x00\x00\x09\x0f\xff",
        "not_thrift",
        "bytes that begin neither a frame nor a message",
    ),
    "long header": (
        b"\x00\x00\x00\x0a\x0f\xff" + bytes(7) + b"\x01",
        "not_thrift",
        "a header transport frame whose head is longer than the frame",
    ),
    "no header": (
        b"\x00\x00\x00\x0a\x0f\xff" + bytes(8),
        "not_thrift",
        "a header transport frame whose head breaks off",
    ),
    "no payload": (
        b"\x00\x00\x00\x0e\x0f\xff" + bytes(7) + b"\x01" + bytes(4),
        "not_thrift",
        "a message that goes on beyond its frame",
    ),
}
# What ARCA does not read is no fault of who sent it.
OWN = {"too_deep": End.UNREADABLE, "frame_too_large": End.UNREADABLE}
pieces = pytest.mark.parametrize("size", [1, 2, 1000])


def in_pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pieces
@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_call_is_told_and_carried_on(name: str, size: int) -> None:
    data, reason, text = FAULTS[name]
    caller = Caller(Thrift(fixed_ids()))
    for piece in in_pieces(data + b"rest", size):
        caller.downstream(piece)
    assert caller.fallback == reason
    # Recognised by no more than a text with its length before it: perhaps it never was Thrift.
    assert len(caller.exchanges) == (name != "old type")
    for exchange in caller.exchanges:
        assert exchange.end == OWN.get(reason, End.DOWNSTREAM_FAULT)
        assert exchange.fault is not None
        assert exchange.fault.startswith(text)
    assert caller.codec.in_flight == 1  # of the engine that carries on
    assert caller.to_upstream == data + b"rest"
    caller.upstream(b"anything")
    assert caller.to_downstream == b"anything"


@pieces
@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_reply_is_told_and_carried_on(name: str, size: int) -> None:
    data, reason, text = FAULTS[name]
    # What has to be a call to be read so far has to be a reply here.
    data = data.replace(b"\x80\x01\x00\x01", b"\x80\x01\x00\x02", 1).replace(b"\x82\x21", b"\x82\x41", 1)
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(message("buffered", "binary", "a") + UNFRAMED)
    for piece in in_pieces(data + b"rest", size):
        caller.upstream(piece)
    assert caller.fallback == reason
    first, second = caller.exchanges
    assert (first.end, first.method, first.first_byte) == (OWN.get(reason, End.UPSTREAM_FAULT), b"a", 2)
    assert first.fault is not None
    assert first.fault.startswith(text)
    assert (second.end, second.method) == (End.UNREADABLE, b"get")
    assert caller.to_downstream == data + b"rest"


@pytest.mark.parametrize("name", FAULTS)
def test_with_strict_a_faulty_call_is_refused(name: str) -> None:
    data, reason, text = FAULTS[name]
    caller = Caller(Thrift(fixed_ids(), strict=True))
    caller.downstream(data)
    assert caller.refusal == b""
    assert caller.to_upstream == b""
    [exchange] = caller.exchanges
    assert exchange.end == (End.LIMIT if reason in OWN else End.DOWNSTREAM_FAULT)
    assert exchange.fault is not None
    assert exchange.fault.startswith(text)


@pytest.mark.parametrize(
    ("length", "end", "reason"),
    [
        (b"\xff\xff\xff\xff", End.DOWNSTREAM_FAULT, "not_thrift"),
        (b"\x80\x01\x00\x01", End.DOWNSTREAM_FAULT, "not_thrift"),
        (b"\x00\xfa\x00\x01", End.UNREADABLE, "frame_too_large"),
    ],
)
def test_later_frames_are_held_to_the_limit_too(length: bytes, end: End, reason: str) -> None:
    conversation().downstream(GET + length).to_upstream(GET + length).exchange(
        end=end, request_bytes=4
    ).exchange(end=End.UNREADABLE, method=b"get").carried_on(reason).nothing()


@pieces
def test_an_empty_frame_is_passed_over(size: int) -> None:
    """Of a client that flushes with nothing to say."""
    caller = Caller(Thrift(fixed_ids()))
    for piece in in_pieces(GET + bytes(4) + GET, size):
        caller.downstream(piece)
    for piece in in_pieces(bytes(4) + GOT + bytes(8) + GOT, size):
        caller.upstream(piece)
    assert caller.to_upstream == GET + bytes(4) + GET
    assert [(one.method, one.end) for one in caller.exchanges] == [(b"get", End.COMPLETE)] * 2
    assert caller.codec.in_flight == 0


def test_replies_are_given_to_no_other_call_once_the_server_gave_ids_back() -> None:
    caller = Caller(Thrift(fixed_ids()))
    calls = b"".join(message("framed", "compact", "get", CALL, number, VOID) for number in (1, 2))
    caller.downstream(calls)
    once = message("framed", "compact", "get", REPLY, 1, VOID)
    caller.upstream(once + once)
    assert len(caller.exchanges) == 1
    assert caller.codec.in_flight == 1


def test_a_reply_that_began_before_a_call_is_not_its_reply() -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.upstream(GOT[:-1])
    caller.downstream(GET)
    caller.upstream(GOT[-1:])
    assert not caller.exchanges
    caller.upstream(GOT)
    assert [one.end for one in caller.exchanges] == [End.COMPLETE]


def test_with_strict_calls_in_flight_end_with_what_was_refused() -> None:
    caller = Caller(Thrift(fixed_ids(), strict=True))
    caller.downstream(GET + b"\xff\xff\xff\xff")
    refused, before = caller.exchanges
    assert (refused.end, before.end) == (End.DOWNSTREAM_FAULT, End.DOWNSTREAM_FAULT)
    assert (refused.method, before.method, before.fault) == (None, b"get", None)
    assert caller.to_upstream == GET


def test_a_reset_behind_the_servers_end_is_its_end() -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.upstream_eof()
    caller.downstream(GET)
    caller.end(End.UPSTREAM_RST, errno.ECONNRESET)
    assert [(one.end, one.error) for one in caller.exchanges] == [(End.UPSTREAM_FIN, 0)]


def inflating(inside: bytes) -> bytes:
    body = b"\x02\x01\x01\x00" + zlib.compress(inside)
    head = b"\x0f\xff\x00\x00\x00\x00\x00\x01\x00\x01"
    return (len(head) + len(body)).to_bytes(4) + head + body


def test_what_is_read_of_what_one_read_inflates_has_a_bound() -> None:
    """An exception that is a long list of empty structs: much to read, and next to nothing on the wire."""
    caller = Caller(Thrift(fixed_ids()))
    call = message("framed", "compact", "a", CALL, 1, VOID)
    caller.downstream(call * 40)
    frame = inflating(b"\x82\x61\x01\x01a" + b"\x39\xfc\x80\x80\x04" + bytes(65536))
    caller.upstream(frame * 40)
    assert caller.to_downstream == frame * 40
    assert [(one.method, one.code, one.end) for one in caller.exchanges] == [
        (b"a", "UNKNOWN", End.COMPLETE)
    ] * 40
    assert caller.fallback is None


def test_what_is_behind_the_end_of_what_inflates_is_not_kept() -> None:
    call = b"\x82\x21\x01\x01"
    body = b"\x02\x01\x01\x00" + zlib.compress(call) + b"x" * 100_000
    head = b"\x0f\xff\x00\x00\x00\x00\x00\x01\x00\x01"
    frame = (len(head) + len(body)).to_bytes(4) + head + body
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(frame[:5000])
    assert caller.fallback == "not_thrift"
    [exchange] = caller.exchanges
    assert exchange.fault == "a message that goes on beyond its frame"


def test_any_number_of_calls_that_inflate_is_read() -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(inflating(b"\x82\x21\x01\x01a\x18\x80\x40" + b"x" * 8192 + b"\x00") * 1000)
    assert caller.codec.in_flight == 1000
    assert caller.fallback is None


@pytest.mark.parametrize("faulty", ["call", "reply"])
def test_a_call_that_is_being_sent_while_it_is_answered_is_told_once(faulty: str) -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(message("buffered", "binary", "a")[:-1])
    caller.upstream(message("buffered", "binary", "a", REPLY, 0, VALUE)[:-1])
    bad = b"\x7f\x00\x01"  # a field of no type
    if faulty == "call":
        caller.downstream(bad)
    else:
        caller.upstream(bad)
    end = End.DOWNSTREAM_FAULT if faulty == "call" else End.UPSTREAM_FAULT
    assert [(one.method, one.end) for one in caller.exchanges] == [(b"a", end)]


def test_a_call_that_is_never_sent_to_its_end_and_answered_is_told_once() -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(message("buffered", "binary", "a")[:-1])
    caller.downstream_eof()
    caller.upstream(message("buffered", "binary", "a", REPLY, 0, VALUE))
    caller.upstream_eof()
    caller.end(End.UPSTREAM_FIN)
    assert [(one.method, one.end) for one in caller.exchanges] == [(b"a", End.COMPLETE)]


def test_the_frame_limit_is_the_caller_s_to_set() -> None:
    engine = Thrift(fixed_ids())
    assert engine.frame_limit == 16_384_000
    engine.frame_limit = len(GET) - 5
    Conversation(engine).downstream(GET).to_upstream(GET).exchange(
        end=End.UNREADABLE,
        fault=f"a frame of {len(GET) - 4} bytes, of which ARCA reads {len(GET) - 5} "
        "(limits.thrift_frame_bytes)",
    ).carried_on("frame_too_large").nothing()


@pytest.mark.parametrize(
    "arguments",
    [
        binary(b"\x0f\x00\x01\x02\x7f\xff\xff\xff"),  # a list of 2^31 - 1 bool
        binary(b"\x0d\x00\x01\x04\x10\x7f\xff\xff\xff"),  # a map of as many doubles and uuids
        binary(b"\x0b\x00\x01\x7f\xff\xff\xff"),  # a string
        binary(b"\x0f\x00\x01\x0c\x7f\xff\xff\xff"),  # empty structs
        compact(b"\x19\xf1\xff\xff\xff\xff\x07"),
        compact(b"\x19\xf6\xff\xff\xff\xff\x07"),  # i64
        compact(b"\x1b\xff\xff\xff\xff\x07\x11"),
        compact(b"\x18\xff\xff\xff\xff\x07"),
    ],
)
def test_a_container_of_any_size_is_awaited_and_nothing_of_it_is_kept(arguments: bytes) -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(arguments)
    for _ in range(10):
        caller.downstream(bytes(100_000))
    assert caller.fallback is None
    assert len(caller.to_upstream) == len(arguments) + 1_000_000
    assert caller.codec.in_flight == 1
    caller.end(End.DOWNSTREAM_RST)
    [exchange] = caller.exchanges
    assert (exchange.method, exchange.request_complete) == (b"a", False)


def test_a_container_ends_where_its_elements_do() -> None:
    """10,000 elements of 24 bytes, which are skipped by multiplication, and a call behind them."""
    call = binary(b"\x0d\x00\x01\x04\x10" + (10_000).to_bytes(4) + bytes(240_000) + b"\x00")
    conversation().downstream(call + UNFRAMED).to_upstream(call + UNFRAMED).in_flight(2).nothing()


def test_bytes_after_a_fault_are_the_successor_s() -> None:
    caller = Caller(Thrift(fixed_ids()))
    caller.downstream(b"\x80\x01\x00\x09" + b"rest")
    caller.end(End.DOWNSTREAM_FIN)
    fault, opaque = caller.exchanges
    assert fault.request_bytes + opaque.request_bytes == 8

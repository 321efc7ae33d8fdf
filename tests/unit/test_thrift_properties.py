"""What holds for the Thrift engine whatever comes, and however it was cut into pieces.

Messages are structs of random shapes, written by Apache's library and by thriftpy2; or those bytes, spoilt.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from thriftpy2.protocol.binary import TBinaryProtocol
from thriftpy2.protocol.compact import TCompactProtocol
from thriftpy2.thrift import TPayload, TType
from thriftpy2.transport.memory import TMemoryBuffer

from protocols.exchange import End, Exchange
from protocols.thrift import Thrift
from tests.unit.conversation import Caller, fixed_ids
from tests.unit.thrift_writing import (
    CALL,
    EXCEPTION,
    ONEWAY,
    REPLY,
    VALUE,
    VOID,
    WAYS,
    Body,
    application,
    declared,
    header_infos,
    header_message,
    message,
)

# Bounded, and the same in every run: a failure is a change of the code.
bounded = settings(max_examples=100, deadline=None, derandomize=True, database=None, phases=[Phase.generate])

LEAVES = ["bool", "byte", "i16", "i32", "i64", "double", "string", "uuid"]
field_ids = st.one_of(st.integers(1, 40), st.integers(-(1 << 15), (1 << 15) - 1))
shapes = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.tuples(st.just("list"), inner),
        st.tuples(st.just("set"), inner),
        st.tuples(st.just("map"), inner, inner),
        st.tuples(st.just("struct"), st.lists(st.tuples(field_ids, inner), max_size=3)),
    ),
    max_leaves=4,
)
bodies = st.builds(Body, st.lists(st.tuples(field_ids, shapes), max_size=4), seed=st.integers(0, 99))
answers = st.one_of(
    st.just((REPLY, VOID)),
    st.just((REPLY, VALUE)),
    st.builds(lambda shape, seed: (REPLY, Body([(0, shape)], seed=seed)), shapes, st.integers(0, 99)),
    st.builds(lambda number: (REPLY, declared(number)), st.integers(1, 200)),
    st.builds(lambda kind: (EXCEPTION, application(kind)), st.integers(-2, 12)),
)


@dataclass
class Script:
    calls: bytes
    replies: bytes
    number: int  # of exchanges
    header: bool


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """Calls on one connection, and the replies to some of them in any order."""
    transport, encoding = draw(st.sampled_from(WAYS))
    zlib = transport == "header" and draw(st.booleans())
    count = draw(st.integers(1, 4))
    calls, replies = [], []
    for number in range(count):
        name = draw(st.sampled_from(["get", "Svc:put", "n" * 300]))
        oneway = draw(st.booleans()) if number else False
        kind = ONEWAY if oneway else CALL
        calls.append(message(transport, encoding, name, kind, number, draw(bodies), zlib=zlib))
        if not oneway:
            kind, body = draw(answers)
            replies.append(message(transport, encoding, name.split(":")[-1], kind, number, body, zlib=zlib))
    answered = draw(st.permutations(replies))[: draw(st.integers(0, len(replies)))]
    return Script(b"".join(calls), b"".join(answered), count, transport == "header")


def told(exchange: Exchange) -> tuple[object, ...]:
    call = exchange.thrift
    assert call is not None
    return (
        exchange.method,
        exchange.end,
        exchange.code,
        exchange.failed,
        exchange.request_bytes,
        exchange.response_bytes,
        exchange.request_complete,
        exchange.response_complete,
        call.transport,
        call.encoding,
        call.oneway,
        call.sequence,
        call.exception_type,
        call.exception_field,
        call.message,
    )


def played(calls: list[bytes], replies: list[bytes]) -> Caller:
    caller = Caller(Thrift(fixed_ids()))
    for piece in calls:
        caller.downstream(piece)
    for piece in replies:
        caller.upstream(piece)
    caller.downstream_eof()
    caller.upstream_eof()
    caller.end(End.UPSTREAM_FIN)
    assert caller.codec.in_flight == 0
    return caller


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted({edge % (len(data) + 1) for edge in at}), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges) if start < stop]


cuts = st.lists(st.integers(0, 1 << 20), max_size=12)


@bounded
@given(scripts(), cuts, cuts)
def test_how_the_bytes_were_cut_makes_no_difference(
    script: Script, here: list[int], there: list[int]
) -> None:
    whole = played([script.calls], [script.replies])
    assert whole.fallback is None
    assert len(whole.exchanges) == script.number
    assert whole.to_downstream == script.replies
    if not script.header:
        assert whole.to_upstream == script.calls
    for calls, replies in (
        (cut(script.calls, here), cut(script.replies, there)),
        (
            [script.calls[i : i + 1] for i in range(len(script.calls))],
            cut(script.replies, list(range(1 << 12))),
        ),
    ):
        pieces = played(calls, replies)
        assert pieces.to_upstream == whole.to_upstream
        assert pieces.to_downstream == whole.to_downstream
        assert sorted(map(repr, map(told, pieces.exchanges))) == sorted(map(repr, map(told, whole.exchanges)))


@bounded
@given(
    st.dictionaries(
        st.sampled_from(
            [b"traceparent", b"tracestate", b"b3", b"x-request-id", b"a", b"X-B3-TraceId", b"x-b3-sampled"]
        )
        | st.binary(max_size=20),
        st.sampled_from([b"", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"0", b"k=v", b"1" * 16])
        | st.binary(max_size=300),
    ),
    bodies,
    cuts,
    st.booleans(),
)
def test_a_frame_whose_head_changed_says_the_same_and_our_headers(
    infos: dict[bytes, bytes], body: Body, at: list[int], zlib: bool
) -> None:
    frame = message("header", "binary", "get", CALL, 5, body, infos=infos, zlib=zlib)
    caller = Caller(Thrift(fixed_ids()))
    for piece in cut(frame, at):
        caller.downstream(piece)
    passed = bytes(caller.to_upstream)
    assert header_message(passed) == header_message(frame)
    became = header_infos(passed)
    lower = {name.lower() for name in became}
    assert {b"traceparent", b"x-request-id"} <= lower
    ours = (b"traceparent", b"tracestate", b"b3", b"x-request-id")
    for name, value in infos.items():
        if name.lower() not in ours and not name.lower().startswith(b"x-b3-"):
            assert became.pop(name) == value
    assert all(name.lower() in ours or name.lower().startswith(b"x-b3-") for name in became)


@bounded
@given(
    scripts(), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4), cuts
)
def test_spoilt_bytes_arrive_and_every_exchange_ends(
    script: Script, spoilt: list[tuple[int, int]], at: list[int]
) -> None:
    calls, replies = bytearray(script.calls), bytearray(script.replies)
    for where, value in spoilt:
        target = replies if where & 1 and replies else calls
        target[(where >> 1) % len(target)] = value
    for strict in (False, True):
        caller = Caller(Thrift(fixed_ids(), strict))
        arrived = 0
        for piece in cut(bytes(calls), at):
            caller.downstream(piece)
            arrived += len(piece)
            if caller.refusal is None:
                assert len(caller.to_upstream) >= arrived - 60 * 1024
        for piece in cut(bytes(replies), at):
            before = len(caller.to_downstream)
            caller.upstream(piece)
            assert caller.refusal is not None or len(caller.to_downstream) - before == len(piece)
        caller.downstream_eof()
        caller.upstream_eof()
        caller.end(End.UPSTREAM_FIN)
        assert caller.codec.in_flight == 0
        assert all(exchange.ended >= exchange.started for exchange in caller.exchanges)
        if caller.refusal is None:
            assert caller.to_downstream == replies
            assert script.header or caller.to_upstream == calls
        else:
            assert strict
            assert calls.startswith(caller.to_upstream) or script.header
            assert replies.startswith(caller.to_downstream)


@bounded
@given(st.binary(max_size=300), st.binary(max_size=300), cuts, st.sampled_from(WAYS))
def test_any_bytes_arrive(here: bytes, there: bytes, at: list[int], way: tuple[str, str]) -> None:
    """Random ones, from the beginning or after a call and its reply."""
    for before, after in ((b"", b""), (message(*way, "a"), message(*way, "a", REPLY))):
        caller = Caller(Thrift(fixed_ids()))
        caller.downstream(before)
        begun = len(caller.to_upstream)
        caller.upstream(after)
        for piece in cut(here, at):
            caller.downstream(piece)
        for piece in cut(there, at):
            caller.upstream(piece)
        caller.downstream_eof()
        caller.upstream_eof()
        caller.end(End.DOWNSTREAM_RST)
        assert caller.to_downstream == after + there
        if not here.startswith(b"\x0f\xff", 4) and b"\x0f\xff" not in here:
            assert caller.to_upstream[begun:] == here


def untyped(thing: Any) -> Any:
    """Of a class that is made in ways its library does not declare."""
    return thing


class Arguments(TPayload):
    thrift_spec = {  # noqa: RUF012 - the name and form that thriftpy2 reads
        1: (TType.STRING, "key", False),
        2: (TType.LIST, "numbers", TType.I64, False),
        3: (TType.MAP, "flags", (TType.STRING, TType.BOOL), False),
        4: (TType.DOUBLE, "weight", False),
    }
    default_spec = [("key", None), ("numbers", None), ("flags", None), ("weight", None)]  # noqa: RUF012


@bounded
@given(
    st.text(max_size=40),
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=40),
    st.dictionaries(st.text(max_size=5), st.booleans(), max_size=20),
    st.sampled_from([TBinaryProtocol, TCompactProtocol]),
    st.integers(1, 50),
)
def test_messages_of_thriftpy2_are_read_to_their_end(
    key: str, numbers: list[int], flags: dict[str, bool], protocol: type, size: int
) -> None:
    memory = untyped(TMemoryBuffer)()
    writer = protocol(memory)
    for _ in range(3):
        writer.write_message_begin("get", CALL, 0)
        writer.write_struct(untyped(Arguments)(key=key, numbers=numbers, flags=flags, weight=1.5))
        writer.write_message_end()
    calls = bytes(memory.getvalue())
    caller = Caller(Thrift(fixed_ids()))
    for at in range(0, len(calls), size):
        caller.downstream(calls[at : at + size])
    running = caller.codec.running(1e9)
    assert [(e.method, e.request_complete, 3 * e.request_bytes) for e in running] == [
        (b"get", True, len(calls))
    ] * 3
    assert caller.to_upstream == calls

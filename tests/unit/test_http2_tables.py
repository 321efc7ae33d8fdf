"""Blocks that never go on, and the tables behind them: the receiver's has fewer entries than the sender's.

What refers to an entry that the receiver has not is spelled out, within a limit; what refers to another gets
the receiver's index; and what a block that was held back said of the table's size is told with the next.
"""

from __future__ import annotations

import random

import pytest

from protocols.exchange import End
from protocols.http2 import Http2
from tests.unit.conversation import REQUEST_ID, Caller, Conversation, fixed_ids
from tests.unit.http2_conversation import (
    CANCEL,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GET,
    GOAWAY,
    HEADERS,
    INDEXING,
    INTERNAL_ERROR,
    NEVER,
    OK,
    OPEN,
    PLAIN,
    PUSH_PROMISE,
    QUIET_GET,
    QUIET_OK,
    QUIET_POST,
    RST_STREAM,
    UNSAMPLED,
    Reader,
    TwoTables,
    asked,
    data,
    frame,
    frames,
    headers,
    indexed,
    is_trace,
    literal,
    only,
    opened,
    rst_stream,
    settings_frame,
    table_size,
    told_goaway,
    u32,
    window_update,
)

KIB = 1024
DOWNSTREAM, UPSTREAM = "downstream", "upstream"
TRACE, PARENT = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
CAME = b"00-" + TRACE + b"-" + PARENT + b"-01"
MANY = b"".join(literal(b"x-%d" % i, b"") for i in range(101))


def refuse(talk: Conversation, stream: int, block: bytes) -> None:
    """A request with this block is refused; its answer is not looked at."""
    talk.downstream(headers(stream, block + MANY)).to_upstream(b"").exchange(stream=stream, status=431)
    talk.caller.to_downstream.clear()


def ended_by(caller: Caller, limit: str) -> str:
    """Downstream went over ``limit``: it was told so with GOAWAY; answers in what words."""
    assert caller.exceeded[-1] == (limit, DOWNSTREAM)
    assert caller.refusal is not None
    _, code, reason = told_goaway(caller.refusal)
    assert code == ENHANCE_YOUR_CALM
    assert caller.codec.in_flight == 0
    return reason


# -- how many streams may be refused


@pytest.mark.parametrize("trailers", [False, True])
def test_the_101st_refused_stream_ends_the_connection(trailers: bool) -> None:
    talk = asked()
    caller = talk.caller
    for stream in range(3, 203, 2):
        if trailers:
            caller.downstream(headers(stream, QUIET_POST, END_HEADERS))
        caller.downstream(headers(stream, MANY if trailers else GET + MANY))
        assert only(caller.exchanges).status == 431
        assert caller.refusal is None
    if trailers:
        caller.downstream(headers(203, QUIET_POST, END_HEADERS))
    caller.to_upstream.clear()
    caller.downstream(headers(203, MANY if trailers else GET + MANY) + data(1, b"more"))
    assert "more than 100 streams" in ended_by(caller, "header_list")
    assert bytes(caller.to_upstream) == b""
    assert len(caller.exceeded) == 101
    assert [(found.stream, found.end) for found in caller.exchanges] == [
        (203, End.DOWNSTREAM_FAULT),
        (1, End.DOWNSTREAM_FAULT),
    ]
    assert caller.codec.from_downstream(headers(205, QUIET_GET), 99.0) == b""


@pytest.mark.parametrize("trailers", [False, True])
def test_the_101st_refused_response_ends_the_connection(trailers: bool) -> None:
    talk = opened()
    caller = talk.caller
    caller.downstream(headers(1, QUIET_GET))
    for stream in range(3, 205, 2):
        caller.downstream(headers(stream, QUIET_GET))
        caller.to_upstream.clear()
        if trailers:
            caller.upstream(headers(stream, QUIET_OK, END_HEADERS))
        assert caller.refusal is None
        caller.to_downstream.clear()
        caller.upstream(headers(stream, MANY + literal(b"y", b"") * 2))
        exchange = caller.exchanges.pop(0)
        assert (exchange.stream, exchange.end) == (stream, End.UPSTREAM_FAULT)
        assert exchange.status == (200 if trailers else 502)
    assert caller.refusal is not None
    assert [(found.stream, found.end) for found in caller.exchanges] == [(1, End.UPSTREAM_FAULT)]
    assert bytes(caller.to_downstream) == b""  # what answers the last of them comes with the refusal
    last = frames(caller.refusal)[0]
    assert (last.stream, last.kind) == (203, RST_STREAM if trailers else HEADERS)
    assert told_goaway(caller.refusal)[1] == INTERNAL_ERROR
    assert told_goaway(caller.refusal_to_upstream)[1] == ENHANCE_YOUR_CALM
    assert len(caller.exceeded) == 101


def test_the_101st_refused_stream_within_a_frame_of_upstream_cuts_the_connection() -> None:
    talk = asked(1, QUIET_POST, END_HEADERS)
    talk.upstream(headers(1, QUIET_OK, END_HEADERS) + data(1, b"x" * 50)[:20])
    talk.caller.to_downstream.clear()
    for stream in range(3, 203, 2):
        talk.downstream(headers(stream, GET + MANY)).exchange(stream=stream, status=431)
    talk.downstream(headers(203, GET + MANY)).cut()
    assert {found.end for found in talk.caller.exchanges} == {End.DOWNSTREAM_FAULT}
    talk.caller.exchanges.clear()
    talk.nothing()


# -- how much may be spelled out


def spell_until_refused(caller: Caller, stream: int, block: bytes, expanded: int) -> None:
    """Trailers of a stream that is over, again and again, each ``expanded`` octets long when spelled out."""
    said = headers(stream, block)
    taken = len(OPEN)
    for _ in range(1000):
        caller.to_upstream.clear()
        caller.downstream(said)
        taken += len(said)
        if caller.refusal is not None:
            break
        assert len(caller.to_upstream) > expanded
    assert caller.refusal is not None
    assert bytes(caller.to_upstream) == b""


@pytest.mark.parametrize("by", ["value", "name"])
def test_what_takes_too_much_to_spell_out_ends_the_connection_and_nothing_of_its_block_goes_on(
    by: str,
) -> None:
    if by == "value":
        # An entry that the receiver has not, for its value is no tracestate.
        talk = asked(1, QUIET_POST + literal(b"x", b""), END_HEADERS)
        talk.caller.downstream(headers(3, QUIET_GET + literal(b"tracestate", b"?" * 3900, INDEXING)))
        block, expanded = indexed(62) * 15, 15 * 3910
    else:
        # Another, for its block was refused.
        talk = asked(1, QUIET_POST + literal(b"x", b""), END_HEADERS)
        refuse(talk, 3, GET + literal(b"n" * 3900, b"", INDEXING))
        block, expanded = literal(62, b"", PLAIN) * 15, 15 * 3900
    caller = talk.caller
    caller.upstream(headers(1, QUIET_OK, END_HEADERS) + rst_stream(1))  # nobody reads its trailers now
    caller.exchanges.clear()
    caller.to_downstream.clear()
    caller.exceeded.clear()
    spell_until_refused(caller, 1, block, expanded)
    assert caller.exceeded == [("expansion", DOWNSTREAM)]
    assert "spell out" in ended_by(caller, "expansion")


@pytest.mark.parametrize("octets", [False, True])
def test_what_is_read_behind_a_block_gives_it_no_room_to_be_spelled_out(octets: bool) -> None:
    caller = asked(1, QUIET_POST, END_HEADERS).caller
    caller.downstream(headers(3, QUIET_GET + literal(b"tracestate", b"?" * 3900, INDEXING)))
    said = headers(1, indexed(62) * 9, END_HEADERS) * 4 + data(1, b"x" * 16_000)
    for piece in [said[i : i + 1] for i in range(len(said))] if octets else [said]:
        caller.downstream(piece)
    ended_by(caller, "expansion")


def test_a_block_whose_name_alone_takes_too_much_ends_the_connection_too() -> None:
    """The reference that is one too many is the last field of its block."""
    caller = opened().caller
    caller.downstream(headers(1, GET + literal(b"n" * 3900, b"", INDEXING) + MANY))
    caller.downstream(headers(3, QUIET_POST, END_HEADERS))
    caller.to_upstream.clear()
    # 17 * 3900 is more than 64 KiB and 16 times all that has come; 15 in one list are within 60 KiB.
    for stream in range(5, 400, 2):
        caller.downstream(headers(stream, QUIET_GET + literal(62, b"", NEVER) * 15))
        if caller.refusal is not None:
            break
        found = Reader()
        found.read(bytes(caller.to_upstream))
        assert found.lists[0][1][-15:] == [(b"n" * 3900, b"")] * 15
        caller.to_upstream.clear()
    assert caller.to_upstream == b""
    ended_by(caller, "expansion")


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_thousands_of_requests_that_repeat_an_indexed_traceparent_are_never_too_much(size: int) -> None:
    tables = TwoTables()
    # As small as a request can be: five octets in its block, and nothing else is ever said.
    first = GET[:3] + literal(1, b"a", INDEXING) + literal(b"traceparent", CAME, INDEXING)
    tables.say(headers(1, first))
    caller = tables.caller
    again = GET[:3] + indexed(63) + indexed(62)
    stream = 3
    for _ in range(6000 // size):
        said = b"".join(headers(i, again) for i in range(stream, stream + 2 * size, 2))
        caller.downstream(said)
        caller.upstream(b"".join(headers(i, OK) for i in range(stream, stream + 2 * size, 2)))
        stream += 2 * size
        assert caller.refusal is None
        assert not caller.exceeded
        tables.receiver.read(bytes(caller.to_upstream))
        caller.to_upstream.clear()
        caller.to_downstream.clear()
        caller.exchanges.clear()
    assert len(tables.receiver.lists) == 1 + 6000 // size * size
    ours = b"00-" + TRACE + b"-" + b"1" * 16 + b"-01"
    assert all((b"traceparent", ours) in fields for _, fields in tables.receiver.lists)


# -- tables behind a block that was held back


SIZES = [
    # held back, then at the beginning of the next; and what the receiver is told
    pytest.param([0, 4096], [], [0, 4096], id="emptied and restored"),
    pytest.param([100], [], [100], id="made smaller"),
    pytest.param([0], [], [0], id="made nothing"),
    pytest.param([0], [4096], [0, 4096], id="restored by the next"),
    pytest.param([200, 4000], [50, 300], [50, 300], id="smaller still"),
    pytest.param([50, 4000], [200, 300], [50, 300], id="larger again"),
    pytest.param([4096], [], [4096], id="as it was"),
    pytest.param([], [0, 4096], [0, 4096], id="only in the next"),
]


@pytest.mark.parametrize(("held", "then", "told"), SIZES)
@pytest.mark.parametrize("refused", [1, 2])
def test_sizes_that_a_refused_block_said_are_told_with_the_next(
    held: list[int], then: list[int], told: list[int], refused: int
) -> None:
    talk = opened()
    first = QUIET_GET + literal(b"x-old", b"1", INDEXING)
    talk.downstream(headers(1, first)).to_upstream(headers(1, first))
    updates = b"".join(map(table_size, held))
    refuse(talk, 3, updates + GET)
    if refused == 2:
        refuse(talk, 5, GET)
    block = QUIET_GET + literal(b"x-new", b"2", INDEXING)
    talk.downstream(headers(7, b"".join(map(table_size, then)) + block))
    talk.to_upstream(headers(7, b"".join(map(table_size, told)) + block))
    # Once is enough.
    talk.downstream(headers(9, QUIET_GET)).to_upstream(headers(9, QUIET_GET))


def test_the_smallest_and_the_last_size_of_several_refused_blocks_are_told() -> None:
    talk = opened()
    for stream, size in ((1, 3000), (3, 70), (5, 1000), (7, 900)):
        refuse(talk, stream, table_size(size) + GET)
    talk.downstream(headers(9, QUIET_GET)).to_upstream(
        headers(9, table_size(70) + table_size(900) + QUIET_GET)
    )


def test_sizes_of_refused_trailers_are_told_with_the_next_block_of_any_kind() -> None:
    talk = asked(1, QUIET_POST, END_HEADERS)
    talk.downstream(headers(3, QUIET_POST, END_HEADERS)).to_upstream(headers(3, QUIET_POST, END_HEADERS))
    talk.downstream(headers(1, table_size(0) + table_size(4096) + MANY)).to_upstream(rst_stream(1))
    talk.exchange(stream=1, status=431)
    talk.caller.to_downstream.clear()
    trailer = literal(b"x", b"y")
    talk.downstream(headers(3, trailer)).to_upstream(headers(3, table_size(0) + table_size(4096) + trailer))


def test_every_reference_to_what_a_refused_block_added_is_spelled_out() -> None:
    tables = TwoTables(sample=0.0)
    tables.request(QUIET_GET + literal(b"x-before", b"1", INDEXING))
    assert tables.request(GET + literal(b"x-held", b"2", INDEXING) + MANY) == []
    tables.caller.to_downstream.clear()
    tables.request(QUIET_GET + literal(b"x-after", b"3", INDEXING))
    assert tables.receiver.table == [(b"x-after", b"3"), (b"x-before", b"1")]
    caller = tables.caller
    again = indexed(62) + indexed(63) + indexed(64) + literal(63, b"4", NEVER) + literal(63, b"5", PLAIN)
    caller.downstream(headers(7, QUIET_GET + again + literal(63, b"6", INDEXING) + indexed(65)))
    went = indexed(62) + literal(b"x-held", b"2") + indexed(63)
    went += literal(b"x-held", b"4", NEVER) + literal(b"x-held", b"5", PLAIN)
    went += literal(b"x-held", b"6", INDEXING) + indexed(64)
    assert bytes(caller.to_upstream) == headers(7, QUIET_GET + went)


@pytest.mark.parametrize("pushed", [False, True])
def test_upstreams_references_to_what_its_refused_block_added_are_spelled_out(pushed: bool) -> None:
    talk = asked()
    talk.downstream(headers(3, QUIET_GET)).to_upstream(headers(3, QUIET_GET))
    held = literal(b"x-held", b"2", INDEXING) + MANY + literal(b"y", b"") * 3
    if pushed:
        talk.upstream(frame(PUSH_PROMISE, 1, u32(2) + GET + held, END_HEADERS))
        talk.to_upstream(rst_stream(2, CANCEL)).exchange(stream=2, end=End.UPSTREAM_FAULT)
        # What it goes on to say on the stream that was promised goes no further either.
        talk.upstream(headers(2, OK, END_HEADERS)).nothing()
        talk.upstream(data(2, b"pushed")).to_upstream(window_update(0, 6))
    else:
        talk.upstream(headers(1, OK + held)).to_upstream(rst_stream(1, CANCEL))
        talk.exchange(stream=1, end=End.UPSTREAM_FAULT, status=502)
        talk.caller.to_downstream.clear()
    talk.upstream(headers(3, QUIET_OK + indexed(62)))
    talk.to_downstream(headers(3, QUIET_OK + literal(b"x-held", b"2"))).exchange(stream=3, end=End.COMPLETE)


def test_the_refused_response_of_a_pushed_stream_is_reset_at_both_ends() -> None:
    promise = frame(PUSH_PROMISE, 1, u32(2) + GET, END_HEADERS)
    talk = asked().upstream(promise).to_downstream(promise)
    talk.upstream(headers(2, OK + MANY + literal(b"y", b"") * 2, END_HEADERS))
    talk.to_downstream(rst_stream(2, INTERNAL_ERROR)).to_upstream(rst_stream(2, CANCEL))
    talk.exchange(stream=2, end=End.UPSTREAM_FAULT, status=0)
    talk.upstream(data(2, b"pushed", END_STREAM)).to_upstream(window_update(0, 6)).in_flight(1)


def test_a_call_whose_response_is_refused_is_answered_internal() -> None:
    block = QUIET_POST + literal(b"content-type", b"application/grpc")
    talk = asked(1, block, END_HEADERS | END_STREAM)
    talk.upstream(headers(1, OK + MANY + literal(b"y", b"") * 2, END_HEADERS)).to_upstream(rst_stream(1))
    found = Reader()
    found.read(bytes(talk.caller.to_downstream))
    fields = dict(found.lists[0][1])
    assert (fields[b":status"], fields[b"grpc-status"]) == (b"200", b"13")
    assert b"100 header fields" in fields[b"grpc-message"]
    assert [said.kind for said in frames(bytes(talk.caller.to_downstream))] == [HEADERS]
    exchange = only(talk.caller.exchanges)
    assert (exchange.end, exchange.code, exchange.status) == (End.UPSTREAM_FAULT, "INTERNAL", 200)


# -- carried on only where nothing would be misread

BROKEN = frame(RST_STREAM, 1, b"short")
HELD_BACK = {
    "a refused request": headers(3, GET + MANY),
    "a missing entry": headers(3, QUIET_GET + literal(b"tracestate", b"?", INDEXING)),
}


@pytest.mark.parametrize("before", HELD_BACK)
@pytest.mark.parametrize("fault", [BROKEN, headers(99, indexed(100)), frame(0, 0, b"no stream")])
@pytest.mark.parametrize("side", [DOWNSTREAM, UPSTREAM])
def test_a_connection_whose_ends_differ_is_refused_rather_than_carried_on(
    before: str, fault: bytes, side: str
) -> None:
    caller = asked().caller
    caller.downstream(HELD_BACK[before])
    for heard in (caller.to_upstream, caller.to_downstream, caller.exchanges):
        heard.clear()
    (caller.downstream if side == DOWNSTREAM else caller.upstream)(fault)
    assert not caller.handed_over
    assert caller.to_upstream == caller.to_downstream == b""
    assert caller.refusal is not None
    _, code, reason = told_goaway(caller.refusal)
    assert code == INTERNAL_ERROR
    assert "cannot be followed any more" in reason
    assert frames(caller.refusal)[-1].kind == GOAWAY
    end = End.DOWNSTREAM_FAULT if side == DOWNSTREAM else End.UPSTREAM_FAULT
    assert {found.end for found in caller.exchanges} == {end}


@pytest.mark.parametrize(
    "trace", [literal(b"traceparent", CAME, INDEXING), literal(b"traceparent", UNSAMPLED, INDEXING)]
)
def test_a_connection_whose_entries_only_read_otherwise_is_carried_on(trace: bytes) -> None:
    talk = opened(sample=1.0)
    talk.caller.downstream(headers(1, QUIET_GET[: len(GET)] + trace))
    talk.caller.to_upstream.clear()
    talk.downstream(BROKEN).to_upstream(BROKEN).carried_on("frame").exchange(stream=1, end=End.UNREADABLE)


def test_a_missing_entry_that_was_evicted_is_no_obstacle() -> None:
    talk = opened()
    talk.caller.downstream(headers(1, QUIET_GET + literal(b"tracestate", b"?", INDEXING)))
    talk.caller.downstream(headers(3, table_size(0) + QUIET_GET))
    talk.caller.to_upstream.clear()
    talk.downstream(BROKEN).to_upstream(BROKEN).carried_on("frame")


# -- conversations at random


VALUES: dict[bytes, list[bytes]] = {
    b"traceparent": [CAME, UNSAMPLED, CAME[:-1], b"cc" + CAME[2:] + b"-x", b""],
    b"tracestate": [b"a=1", b"?", b"", b"a=1," + b"b" * 40],
    b"b3": [TRACE + b"-" + PARENT + b"-1", b"0", b"1", b"d", b"x", b""],
    b"x-b3-traceid": [TRACE, TRACE[:16], b"?"],
    b"x-b3-flags": [b"1", b"0"],
    b"x-other": [b"", b"1", b"z" * 300],
    b"x-" + b"l" * 200: [b"q"],
}


def drawn(chance: random.Random, sender: Reader, *, request: bool, refused: bool) -> bytes:
    """A block of fields in every form, that refers to what its sender's table has."""
    table, block = list(sender.table), b""
    if chance.random() < 0.15:
        table = []
        for _ in range(chance.choice([1, 2])):
            block += table_size(chance.choice([0, 60, 300, 1000, 4096]))
    if request:
        block += GET
    for _ in range(chance.randrange(8)):
        if table and chance.random() < 0.6:
            at = chance.randrange(len(table))
            if chance.random() < 0.5:
                block += indexed(62 + at)
                continue
            name: bytes | int = 62 + at
            value = chance.choice(VALUES.get(table[at][0], [b"v"]))
        else:
            name = chance.choice(list(VALUES))
            value = chance.choice(VALUES[name])
        how = chance.choice([INDEXING, INDEXING, PLAIN, NEVER])
        block += literal(name, value, how, huffman=chance.random() < 0.5)
        if how == INDEXING:
            table = []  # an entry that is added moves the others, and may evict some
    if refused:
        block += literal(b"x-held", b"back", INDEXING) * (chance.random() < 0.3) + MANY
    return block


@pytest.mark.parametrize("seed", range(150))
def test_what_goes_on_says_what_its_sender_said_whatever_was_held_back(seed: int) -> None:
    chance = random.Random(seed)
    caller = Caller(Http2(fixed_ids(0.5)))
    caller.downstream(OPEN)
    caller.upstream(settings_frame())
    caller.to_upstream.clear()
    sender, receiver = Reader(), Reader()
    stream = -1
    for _ in range(60):
        request, refused = chance.choice([(True, False)] * 3 + [(True, True), (False, False), (False, True)])
        if not request and stream < 0:
            continue
        block = drawn(chance, sender, request=request, refused=refused)
        stream += 2 * request
        flags = END_HEADERS if request and chance.random() < 0.6 else END_HEADERS | END_STREAM
        said = headers(stream, block, flags)
        sender.read(said)
        caller.downstream(said)
        assert caller.refusal is None
        assert not caller.handed_over
        before = len(receiver.lists)
        receiver.read(bytes(caller.to_upstream))
        caller.to_upstream.clear()
        if len(receiver.lists) == before:
            assert refused or not request
            continue
        ours, theirs = sender.lists[-1][1], receiver.lists[-1][1]
        if not request:
            assert theirs == ours
            continue
        assert not refused
        assert [
            pair for pair in theirs if not is_trace(pair[0]) and pair != (b"x-request-id", REQUEST_ID)
        ] == [pair for pair in ours if not is_trace(pair[0])]
        assert [name for name, _ in theirs].count(b"traceparent") == 1

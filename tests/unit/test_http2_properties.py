"""What holds for the HTTP/2 engine whatever comes, and however it was cut into pieces.

Conversations are made by the library ``h2`` at both ends, from operations drawn at random; or they are frames
put together at random, or the octets of either, spoilt. ``Caller`` drives the engine as a pair does.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import pytest
from h2.events import Event
from h2.exceptions import FlowControlError, FrameTooLargeError
from h2.settings import SettingCodes
from h2.stream import StreamState
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from protocols.exchange import End, Exchange, Rpc
from protocols.http2 import Http2
from tests.unit.conversation import Caller, fixed_ids
from tests.unit.http2_conversation import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    OPEN,
    PADDED,
    PREFACE,
    QUIET_GET,
    QUIET_OK,
    Field,
    Peers,
    Reader,
    fragmented,
    frame,
    headers,
    is_trace,
    left_out,
    listed,
    settings_frame,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from h2.connection import H2Connection

# Bounded, and the same in every run: a failure is a change of the code.
bounded = settings(max_examples=100, deadline=None, derandomize=True, database=None, phases=[Phase.generate])

DOWNSTREAM, UPSTREAM = "downstream", "upstream"
Script: TypeAlias = list[tuple[str, bytes]]

KIB: Final = 1024
MAX_BLOCK: Final = 128 * KIB
MAX_FRAME: Final = 16 * KIB


# -- operations, and what the two ends of h2 see of them

TRACE = b"0af7651916cd43dd8448eb211c80319c"
PARENT = b"b7ad6b7169203331"
OURS = (b"traceparent", b"tracestate", b"b3", b"x-request-id")

TRACE_FIELDS: dict[str, list[Field]] = {
    "no trace": [],
    "sampled": [(b"traceparent", b"00-" + TRACE + b"-" + PARENT + b"-01")],
    "not sampled": [(b"traceparent", b"00-" + TRACE + b"-" + PARENT + b"-00"), (b"tracestate", b"a=1")],
    "bad": [(b"traceparent", b"bad"), (b"tracestate", b"a=1")],
    "b3": [(b"b3", TRACE + b"-" + PARENT + b"-1")],
    "short b3": [(b"b3", b"0")],
    "id": [(b"x-request-id", b"mine")],
}
OTHER_FIELDS: dict[str, list[Field]] = {
    "none": [],
    "accept": [(b"accept", b"*/*")],
    "cookies": [(b"cookie", b"a=b"), (b"cookie", b"c=d")],
    "long": [(b"x-long", b"\\" * 7000)],  # 19 bits of Huffman code each, so more than one frame
    "octets": [(b"x-octets", b"\xff\x80")],
    "grpc": [(b"content-type", b"application/grpc"), (b"grpc-timeout", b"1S")],
}
BODIES = {
    "empty": b"",
    "one": b"x",
    "message": b"\0\0\0\0\2hi",
    "messages": b"\1\0\0\0\0" * 3,
    "3000": b"y" * 3000,
    "16384": b"z" * 16384,
}

trace = st.sampled_from(list(TRACE_FIELDS))
other = st.sampled_from(list(OTHER_FIELDS))
body = st.sampled_from(list(BODIES))
padding = st.sampled_from([None, None, 0, 1, 255])
which = st.integers(0, 5)

Operation: TypeAlias = "Callable[[Peers], None]"


def _stream(peers: Peers, number: int) -> int:
    """One of the newest streams."""
    return max(1, peers.client.highest_outbound_stream_id - 2 * number)


def _may_send(connection: H2Connection, stream: int) -> bool:
    found = connection.streams.get(stream)
    return found is not None and found.state_machine.state in (
        StreamState.OPEN,
        StreamState.HALF_CLOSED_REMOTE,
    )


def _has_answered(peers: Peers, stream: int) -> bool:
    return bool(peers.server.streams[stream].state_machine.headers_sent)


def ask(
    trace: str, other: str, content: str, pad: int | None, trailers: bool, end: bool, weight: int
) -> Operation:
    def operate(peers: Peers) -> None:
        client, body = peers.client, BODIES[content]
        stream = client.get_next_available_stream_id()
        head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/p.S/M"), (b":authority", b"a")]
        head += OTHER_FIELDS[other] + TRACE_FIELDS[trace]
        alone = end and not body and not trailers
        if weight and other != "long":  # which h2 puts 5 octets over the largest frame
            client.send_headers(stream, head, alone, weight, 0, weight % 2 == 0)
        else:
            client.send_headers(stream, head, alone)
        if body:
            client.send_data(stream, body, end and not trailers, pad)
        if trailers:
            client.send_headers(stream, [(b"x-checksum", b"1")], end_stream=True)

    return operate


def answer(
    number: int,
    interim: bool,
    trace: str,
    other: str,
    content: str,
    pad: int | None,
    trailers: bool,
    end: bool,
) -> Operation:
    def operate(peers: Peers) -> None:
        server, stream, body = peers.server, _stream(peers, number), BODIES[content]
        if not _may_send(server, stream) or _has_answered(peers, stream):
            return
        if interim:
            server.send_headers(stream, [(b":status", b"103"), (b"link", b"</a>")])
        alone = end and not body and not trailers
        fields = OTHER_FIELDS[other] + TRACE_FIELDS[trace]
        server.send_headers(stream, [(b":status", b"200"), (b"server", b"s"), *fields], alone)
        if body:
            server.send_data(stream, body, end and not trailers, pad)
        if trailers:
            server.send_headers(stream, [(b"grpc-status", b"0")], end_stream=True)

    return operate


def side(peers: Peers, client: bool) -> H2Connection:
    return peers.client if client else peers.server


def send(client: bool, number: int, content: str, end: bool) -> Operation:
    def operate(peers: Peers) -> None:
        stream = _stream(peers, number)
        if _may_send(side(peers, client), stream) and (client or _has_answered(peers, stream)):
            side(peers, client).send_data(stream, BODIES[content] or b"-", end)

    return operate


def reset(client: bool, number: int, code: int) -> Operation:
    def operate(peers: Peers) -> None:
        found = side(peers, client).streams.get(_stream(peers, number))
        if found is not None and not found.closed:
            side(peers, client).reset_stream(_stream(peers, number), code)

    return operate


def ping(client: bool) -> Operation:
    return lambda peers: side(peers, client).ping(b"12345678")


def change(client: bool, setting: SettingCodes, value: int) -> Operation:
    def operate(peers: Peers) -> None:
        # Two changes without a header block between them are more than the encoder of `hpack` can say.
        changed = side(peers, client).local_settings.header_table_size != 4096
        if setting == SettingCodes.HEADER_TABLE_SIZE and changed:
            return
        side(peers, client).update_settings({setting: value})

    return operate


def widen(client: bool, number: int, connection: bool) -> Operation:
    def operate(peers: Peers) -> None:
        stream = _stream(peers, number)
        if connection:
            side(peers, client).increment_flow_control_window(1000)
        elif _may_send(peers.client, stream) and _may_send(peers.server, stream):
            side(peers, client).increment_flow_control_window(1000, stream)

    return operate


def prioritize(number: int) -> Operation:
    return lambda peers: peers.client.prioritize(_stream(peers, number), 7, 0, False)


def push(number: int) -> Operation:
    def operate(peers: Peers) -> None:
        stream = _stream(peers, number)
        if not _may_send(peers.server, stream):
            return
        promised = peers.server.get_next_available_stream_id()
        head = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/css"), (b":authority", b"a")]
        peers.server.push_stream(stream, promised, head)
        peers.server.send_headers(promised, [(b":status", b"200")])
        peers.server.send_data(promised, b"pushed", end_stream=True)

    return operate


def leave(client: bool) -> Operation:
    return lambda peers: side(peers, client).close_connection(0, b"bye")


asking = st.builds(
    ask, trace, other, body, padding, st.booleans(), st.booleans(), st.sampled_from([0, 0, 16, 255])
)
answering = st.builds(answer, which, st.booleans(), trace, other, body, padding, st.booleans(), st.booleans())
size = st.sampled_from([50, 200, 1000, 4096, 16384])
operation = st.one_of(
    asking,
    asking,
    asking,
    answering,
    answering,
    answering,
    st.builds(send, st.booleans(), which, body, st.booleans()),
    st.builds(reset, st.booleans(), which, st.sampled_from([0, 2, 8, 0xDEAD])),
    st.builds(ping, st.booleans()),
    st.builds(change, st.booleans(), st.just(SettingCodes.HEADER_TABLE_SIZE), size),
    st.builds(
        change, st.booleans(), st.just(SettingCodes.MAX_FRAME_SIZE), st.sampled_from([16384, 20000, 65536])
    ),
    st.builds(
        change, st.booleans(), st.just(SettingCodes.INITIAL_WINDOW_SIZE), st.sampled_from([70000, 1 << 20])
    ),
    st.builds(widen, st.booleans(), which, st.booleans()),
    st.builds(prioritize, which),
    st.builds(push, which),
)
operations = st.builds(
    lambda first, some, last: [first, *some, *last],
    asking,
    st.lists(operation, max_size=14),
    st.lists(st.builds(leave, st.booleans()), max_size=1),
)


class Recorder(Peers):
    """``Peers`` without an engine, that writes down what each side said."""

    def __init__(self) -> None:
        super().__init__(None)
        self.script: Script = []

    def to_server(self, said: bytes) -> None:
        self.script.append((DOWNSTREAM, said))
        super().to_server(said)

    def to_client(self, said: bytes) -> None:
        self.script.append((UPSTREAM, said))
        super().to_client(said)


def perform(peers: Peers, todo: list[Operation]) -> Peers:
    peers.open()
    for operate in todo:
        # What a window or a frame has no room for is not sent.
        with contextlib.suppress(FlowControlError, FrameTooLargeError):
            operate(peers)
        peers.pump()
    return peers


def seen(events: list[Event]) -> list[dict[str, object]]:
    """The events with all that they say, but what ARCA may change in heads."""
    told = []
    for event in events:
        found: dict[str, object] = {"event": type(event).__name__}
        for name, value in vars(event).items():
            if name == "headers":
                value = [field for field in listed(value) if field[0] not in OURS]
            elif isinstance(value, Event):
                value = type(value).__name__
            found[name] = repr(value)
        told.append(found)
    return told


def conversation(todo: list[Operation]) -> Script:
    recorder = Recorder()
    perform(recorder, todo)
    return recorder.script


# -- how the engine takes a script


@dataclass(frozen=True)
class Outcome:
    to_upstream: bytes
    to_downstream: bytes
    exchanges: list[dict[str, object]]
    exceeded: list[tuple[str, str]]
    refusal: bytes | None
    refusal_to_upstream: bytes
    fallback: str | None
    handed_over: bool


TIMES = ("connect", "started", "first_byte", "ended", "first_message")


def facts(told: Exchange | Rpc) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in dir(type(told)):
        if name.startswith("_"):
            continue
        value = getattr(told, name)
        if name in TIMES:
            value = value >= 0
        found[name] = facts(value) if isinstance(value, Rpc) else value
    return found


def play(script: Script, *, strict: bool = False, closed: bool = True) -> Outcome:
    caller = Caller(Http2(fixed_ids(1.0), strict))
    caller.tick = 0.0
    taken = {DOWNSTREAM: 0, UPSTREAM: 0}
    for who, said in script:
        if who == DOWNSTREAM:
            caller.downstream(said)
        else:
            caller.upstream(said)
        taken[who] += len(said)
        if caller.refusal is None:
            # Whatever is added only makes this less: what is held is a frame or a block that is not complete.
            assert taken[DOWNSTREAM] - len(caller.to_upstream) <= MAX_BLOCK + MAX_FRAME + len(said)
            assert taken[UPSTREAM] - len(caller.to_downstream) <= MAX_BLOCK + MAX_FRAME + len(said)
    if closed:
        caller.downstream_eof()
        caller.upstream_eof()
    caller.end(End.DRAINED)
    assert caller.codec.in_flight == 0
    assert caller.codec.in_flight_grpc == 0
    return Outcome(
        bytes(caller.to_upstream),
        bytes(caller.to_downstream),
        [facts(exchange) for exchange in caller.exchanges],
        caller.exceeded,
        caller.refusal,
        caller.refusal_to_upstream,
        caller.fallback,
        caller.handed_over,
    )


@st.composite
def recut(draw: st.DrawFn, script: Script) -> Script:
    """The same octets in the same order, in other pieces."""
    pieces: Script = []
    for who, said in script:
        if draw(st.booleans()) and len(said) < 2000:
            pieces += [(who, said[i : i + 1]) for i in range(len(said))]
            continue
        cuts = sorted(draw(st.lists(st.integers(0, len(said)), max_size=6)))
        pieces += [(who, said[i:j]) for i, j in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    return pieces


def said_by(script: Script, who: str) -> bytes:
    return b"".join(said for side, said in script if side == who)


# -- properties


@bounded
@given(operations)
def test_both_ends_see_what_they_would_see_without_arca(todo: list[Operation]) -> None:
    direct = perform(Peers(None), todo)
    through = perform(Peers(Http2(fixed_ids(1.0))), todo)
    assert through.caller is not None
    assert not through.caller.exceeded
    assert through.caller.refusal is None
    assert not through.caller.handed_over
    assert seen(through.server_events) == seen(direct.server_events)
    assert seen(through.client_events) == seen(direct.client_events)


@bounded
@given(operations)
def test_tables_stay_in_step_and_nothing_but_heads_changes(todo: list[Operation]) -> None:
    script = conversation(todo)
    outcome = play(script)
    assert outcome.refusal is None
    assert not outcome.handed_over
    for who, came, went in (
        (DOWNSTREAM, said_by(script, DOWNSTREAM), outcome.to_upstream),
        (UPSTREAM, said_by(script, UPSTREAM), outcome.to_downstream),
    ):
        sender, receiver = Reader(), Reader()
        sender.read(came)
        receiver.read(went)
        assert all(is_trace(entry[0]) for entry in left_out(sender, receiver))
        if who == UPSTREAM:
            assert sender.table == receiver.table
        without = [
            [(stream, [pair for pair in fields if pair[0] not in OURS]) for stream, fields in reader.lists]
            for reader in (sender, receiver)
        ]
        assert without[0] == without[1]


@bounded
@given(st.data(), operations, st.booleans())
def test_conversations_pass_the_same_however_they_are_cut(
    data: st.DataObject, todo: list[Operation], closed: bool
) -> None:
    script = conversation(todo)
    assert play(data.draw(recut(script)), closed=closed) == play(script, closed=closed)


SPOILERS = [
    b"",
    b"\0",
    b"\xff",
    b"\0\0\0\1\4\0\0\0\x0d",
    b"\0\0\0\0\0\0\0\0\1",
    b"\0\0\4\3\0\0\0\0\1\0\0\0\x08",
    b"\0\0\x08\7\0\0\0\0\0\0\0\0\1\0\0\0\2",
    b"\0\0\0\4\0\0\0\0\0",
    frame(HEADERS, 1, QUIET_GET),
    headers(9, QUIET_GET),
    headers(1, QUIET_OK),
    headers(33, b"".join(b"\0\1%c\0" % (97 + i % 26) for i in range(120)), END_HEADERS),
    fragmented(35, QUIET_GET, 3),
    frame(0, 33, b"x" * 100),
    PREFACE,
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
]


@st.composite
def hostile(draw: st.DrawFn) -> Script:
    """A conversation with octets put in, taken out or replaced, or with what was said moved."""
    script = conversation(draw(operations))
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, len(script) - 1))
        who, said = script[i]
        at = draw(st.integers(0, len(said)))
        new = draw(st.sampled_from(SPOILERS) | st.binary(min_size=1, max_size=12))
        match draw(st.sampled_from(["put in", "at the front", "take out", "replace", "move", "other side"])):
            case "put in":
                script[i] = who, said[:at] + new + said[at:]
            case "at the front":
                script.insert(i, (who, new))
            case "take out":
                script[i] = who, said[:at] + said[at + draw(st.integers(1, 12)) :]
            case "replace":
                script[i] = who, said[:at] + new + said[at + len(new) :]
            case "move":
                script.insert(draw(st.integers(0, len(script) - 1)), script.pop(i))
            case _:
                script[i] = UPSTREAM if who == DOWNSTREAM else DOWNSTREAM, said
    return script


@settings(bounded, max_examples=250)
@given(st.data(), hostile(), st.booleans(), st.booleans())
def test_whatever_comes_ends_the_same_however_it_is_cut(
    data: st.DataObject, script: Script, strict: bool, closed: bool
) -> None:
    whole = play(script, strict=strict, closed=closed)
    assert play(data.draw(recut(script)), strict=strict, closed=closed) == whole
    if strict:
        assert not whole.handed_over or whole.fallback == "too_many_streams"


@bounded
@given(
    st.lists(st.tuples(st.sampled_from([DOWNSTREAM, UPSTREAM]), st.binary(max_size=60)), max_size=8),
    st.booleans(),
)
def test_random_octets_are_carried_on_as_they_came(script: Script, preface: bool) -> None:
    if preface:
        script = [(DOWNSTREAM, OPEN), (UPSTREAM, settings_frame()), *script]
    outcome = play(script)
    to_upstream, to_downstream = said_by(script, DOWNSTREAM), said_by(script, UPSTREAM)
    assert (
        outcome.to_upstream == to_upstream
        if outcome.refusal is None
        else to_upstream.startswith(outcome.to_upstream)
    )
    assert (
        outcome.to_downstream == to_downstream
        if outcome.refusal is None
        else to_downstream.startswith(outcome.to_downstream)
    )


any_frame = st.builds(
    frame,
    st.sampled_from([0, 0, 2, 3, 4, 6, 7, 8, 9, 10, 200]),
    st.sampled_from([0, 1, 1, 2, 3, 5, 7, 99]),
    st.sampled_from([b"", b"\0" * 4, b"\0" * 5, b"\0\4\0\1\0\0", b"12345678", b"\1a\0", b"\xff", b"x" * 300]),
    st.sampled_from([0, 0, END_STREAM, PADDED, END_HEADERS, 0xFF]),
)
quiet_request = st.builds(headers, st.sampled_from([1, 3, 5, 7]), st.just(QUIET_GET), st.sampled_from([4, 5]))
quiet_response = st.builds(headers, st.sampled_from([1, 3, 5, 7]), st.just(QUIET_OK), st.sampled_from([4, 5]))
from_either = st.one_of(
    st.tuples(st.just(DOWNSTREAM), any_frame | quiet_request),
    st.tuples(st.just(UPSTREAM), any_frame | quiet_response),
)


@settings(bounded, max_examples=250)
@given(st.data(), st.lists(from_either, max_size=12))
def test_frames_pass_as_they_came_or_the_connection_ends(data: st.DataObject, some: Script) -> None:
    """Requests and responses have ids of their own, so nothing is added: octets out are octets in."""
    script = [(DOWNSTREAM, OPEN), (UPSTREAM, settings_frame()), *some]
    outcome = play(data.draw(recut(script)))
    to_upstream, to_downstream = said_by(script, DOWNSTREAM), said_by(script, UPSTREAM)
    if outcome.refusal is None:
        assert outcome.to_upstream == to_upstream
        assert outcome.to_downstream == to_downstream
    else:
        assert outcome.exceeded
        assert to_upstream.startswith(outcome.to_upstream)
        assert to_downstream.startswith(outcome.to_downstream)


@settings(bounded, max_examples=150)
@given(hostile(), st.sampled_from(list(End)), st.data())
def test_every_exchange_ends_exactly_once_wherever_the_connection_ends(
    script: Script, how: End, data: st.DataObject
) -> None:
    script = data.draw(recut(script))
    caller = Caller(Http2(fixed_ids()))
    known: set[int] = set()
    for who, piece in script[: data.draw(st.integers(0, len(script)))]:
        if who == DOWNSTREAM:
            caller.downstream(piece)
        else:
            caller.upstream(piece)
        if caller.handed_over or caller.refusal is not None:
            break
        running = caller.codec.running(before=1e9)
        assert len(running) == caller.codec.in_flight
        assert sum(found.rpc is not None for found in running) == caller.codec.in_flight_grpc
        known |= {found.stream for found in [*running, *caller.exchanges]}
    caller.end(how)
    assert caller.codec.in_flight == 0
    streams = [found.stream for found in caller.exchanges if found.stream]
    assert len(streams) == len(set(streams))
    assert known <= set(streams)
    assert all(found.ended >= found.started for found in caller.exchanges)
    ended = len(caller.exchanges)
    caller.end(End.INTERNAL)
    assert len(caller.exchanges) == ended


@pytest.mark.parametrize("who", [DOWNSTREAM, UPSTREAM])
def test_every_cut_of_one_conversation(who: str) -> None:
    """Every boundary of a conversation that has all kinds of frames, one after the other."""
    script = conversation(
        [
            ask("sampled", "grpc", "message", 3, True, True, 16),
            answer(0, True, "no trace", "grpc", "messages", 2, True, True),
            change(True, SettingCodes.HEADER_TABLE_SIZE, 100),
            ask("b3", "cookies", "empty", None, False, True, 0),
            push(0),
            ping(False),
            widen(True, 0, True),
            reset(True, 0, 8),
            leave(False),
        ]
    )
    whole = play(script)
    octets = said_by(script, who)
    assert len(octets) > 200
    for i, (side_of, said) in enumerate(script):
        if side_of != who:
            continue
        for at in range(1, len(said)):
            pieces = [*script[:i], (who, said[:at]), (who, said[at:]), *script[i + 1 :]]
            assert play(pieces) == whole

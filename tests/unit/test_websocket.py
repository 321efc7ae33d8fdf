"""MQTT in the frames of a WebSocket connection: what the engine inside is shown, however framed and cut.

Frames are made by the library websockets, so that what they are is not what this project thinks; those
that no library makes are made by hand. The engine inside writes down what it is shown.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from protocols.codec import Codec, Opaque
from protocols.exchange import End, Exchange, Protocol
from protocols.websocket import WebSocket
from tests.unit.conversation import Caller

CLIENT_MASK = b"\x37\xfa\x21\x3d"  # RFC 6455 section 5.7


class Inner(Codec):
    """Writes down what it is shown, and returns what must never go on."""

    def __init__(self, shown: list[object]) -> None:
        self.shown = shown
        self.requests = self.responses = b""

    def from_downstream(self, data: bytes, now: float) -> bytes:
        self.requests += data
        return b"never to be seen"

    def from_upstream(self, data: bytes, now: float) -> bytes:
        self.responses += data
        return b"never to be seen"

    def downstream_eof(self, now: float) -> bytes:
        self.shown.append("downstream_eof")
        return b"never to be seen"

    def upstream_eof(self, now: float) -> bytes:
        self.shown.append("upstream_eof")
        return b"never to be seen"

    def end(self, how: End, error: int, now: float) -> None:
        self.shown.append((how, error))
        self.finished.append(Exchange(Protocol.MQTT, now))
        self.signals |= 1

    def gone_silent(self, now: float) -> None:
        self.shown.append("gone_silent")
        self.exceeded.append(("silence", "downstream"))
        self.signals |= 32

    def running(self, before: float) -> list[Exchange]:
        return [Exchange(Protocol.MQTT, before)]

    def protocol_name(self) -> str:
        return "mqtt"


def frame(payload: bytes, opcode: int = Opcode.BINARY, *, fin: bool = True, masked: bool = True) -> bytes:
    return Frame(Opcode(opcode), payload, fin).serialize(mask=masked)


def by_hand(first: int, second: int, rest: bytes) -> bytes:
    """A frame that no library makes, with the mask of the specification's examples where it is masked."""
    mask = CLIENT_MASK if second & 0x80 else b""
    return bytes([first, second]) + mask + rest


def begun(*, strict: bool = False) -> tuple[Caller, Inner]:
    inner = Inner([])
    return Caller(WebSocket(inner, strict)), inner


def test_the_bytes_go_on_as_the_objects_they_came_in() -> None:
    inner = Inner([])
    codec = WebSocket(inner)
    request, response = frame(b"request"), frame(b"response", masked=False)
    assert codec.from_downstream(request, 1.0) is request
    assert codec.from_upstream(response, 1.0) is response
    assert (inner.requests, inner.responses) == (b"request", b"response")


def test_the_frames_of_the_specification() -> None:
    """RFC 6455 section 5.7, with the opcode of a binary message."""
    caller, inner = begun()
    caller.downstream(b"\x82\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")
    caller.upstream(b"\x02\x03\x48\x65\x6c" + b"\x80\x02\x6c\x6f")
    assert (inner.requests, inner.responses) == (b"Hello", b"Hello")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 125, 126, 65_535, 65_536, 1_000_000])
@pytest.mark.parametrize("piece", [1 << 20, 4093])
def test_every_form_of_a_length(size: int, piece: int) -> None:
    payload = bytes(range(251)) * (size // 251 + 1)
    payload = payload[:size]
    caller, inner = begun()
    for say, masked in ((caller.downstream, True), (caller.upstream, False)):
        data = frame(payload, masked=masked)
        for i in range(0, len(data), piece):
            say(data[i : i + piece])
        say(frame(b"!", masked=masked))
    assert inner.requests == payload + b"!"
    assert inner.responses == payload + b"!"


def test_control_frames_between_the_fragments_of_a_message_carry_nothing_of_it() -> None:
    caller, inner = begun()
    caller.downstream(
        frame(b"one ", fin=False)
        + frame(b"hello", Opcode.PING)
        + frame(b"two ", Opcode.CONT, fin=False)
        + frame(b"", Opcode.PONG)
        + frame(b"", Opcode.CONT, fin=False)
        + frame(b"three", Opcode.CONT)
        + frame(b" four")
    )
    assert inner.requests == b"one two three four"


def test_what_follows_a_close_frame_is_not_read() -> None:
    caller, inner = begun()
    sent = frame(b"one") + frame(b"\x03\xe8", Opcode.CLOSE) + b"\xff\xff\xff"
    caller.downstream(sent)
    caller.downstream(b"\xff")
    caller.upstream(frame(b"two", masked=False))
    assert (inner.requests, inner.responses) == (b"one", b"two")
    assert caller.to_upstream == sent + b"\xff"
    assert not caller.handed_over


UNREADABLE = [
    ("text", frame(b"hello", Opcode.TEXT)),
    ("extension", by_hand(0xC2, 0x80, b"")),
    ("extension", by_hand(0x92, 0x80, b"")),
    ("mask", frame(b"hello", masked=False)),
    ("opcode", by_hand(0x83, 0x80, b"")),
    ("control_frame", by_hand(0x8B, 0x80, b"")),
    ("control_frame", by_hand(0x09, 0x80, b"")),
    ("control_frame", b"\x89\xfe\x00\x7e" + CLIENT_MASK + bytes(126)),
    ("fragment", frame(b"hello", Opcode.CONT)),
    ("fragment", frame(b"a", fin=False) + frame(b"b")),
    ("length", b"\x82\xff\x80\x00\x00\x00\x00\x00\x00\x01" + CLIENT_MASK + b"x"),
]


@pytest.mark.parametrize(("reason", "sent"), UNREADABLE)
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_frames_that_cannot_be_read_are_carried_on_untouched(reason: str, sent: bytes, piece: int) -> None:
    caller, inner = begun()
    sent = frame(b"first") + sent + b"whatever follows"
    for i in range(0, len(sent), piece):
        caller.downstream(sent[i : i + piece])
    caller.upstream(b"anything")
    assert caller.to_upstream == sent
    assert caller.to_downstream == b"anything"
    assert caller.fallback == reason
    assert isinstance(caller.codec, Opaque)
    assert caller.codec.protocol_name() == "websocket"
    assert inner.requests.startswith(b"first")
    assert inner.shown == [(End.UNREADABLE, 0)]
    assert len(caller.exchanges) == 1


def test_a_server_that_masks_its_frames_is_not_read() -> None:
    caller, _ = begun()
    caller.upstream(frame(b"hello"))
    assert caller.fallback == "mask"


def test_the_fault_of_a_frame_is_not_the_protocols_inside() -> None:
    codec = WebSocket(Inner([]))
    assert codec.protocol_name() == "mqtt"
    codec.from_downstream(frame(b"hello", Opcode.TEXT), 1.0)
    assert codec.protocol_name() == "websocket"


def test_strict_cuts_what_cannot_be_read() -> None:
    caller, inner = begun(strict=True)
    caller.downstream(frame(b"first") + frame(b"hello", Opcode.TEXT))
    assert caller.refusal == b""
    assert caller.to_upstream == b""
    assert inner.shown == [(End.UNREADABLE, 0)]


class Failing(Inner):
    """Gives up at once, as an engine does that cannot follow: by falling open, or by a refusal."""

    def __init__(self, signal: int) -> None:
        super().__init__([])
        self.signal = signal

    def from_downstream(self, data: bytes, now: float) -> bytes:
        self.signals |= self.signal
        return b""


def test_an_engine_that_gives_up_is_followed_by_opaque_carrying() -> None:
    codec = WebSocket(Failing(4))
    caller = Caller(codec)
    sent = frame(b"nonsense")
    caller.downstream(sent)
    assert caller.to_upstream == sent
    assert isinstance(caller.codec, Opaque)
    assert caller.codec.protocol_name() == "websocket"
    assert codec.protocol_name() == "mqtt"


def test_what_the_engine_inside_refuses_goes_no_further() -> None:
    codec = WebSocket(Failing(2), True)
    assert codec.from_downstream(frame(b"nonsense"), 1.0) == b""
    assert codec.signals == 2
    assert codec.from_downstream(frame(b"more"), 2.0) == b""


def test_ends_and_silence_are_told_to_the_engine_inside() -> None:
    caller, inner = begun()
    codec = caller.codec
    assert codec.silent_after == inner.silent_after
    codec.gone_silent(3.0)
    caller.downstream_eof()
    caller.upstream_eof()
    caller.end(End.UPSTREAM_RST, 104)
    assert inner.shown == ["gone_silent", "downstream_eof", "upstream_eof", (End.UPSTREAM_RST, 104)]
    assert caller.exceeded == [("silence", "downstream")]
    assert len(caller.exchanges) == 1
    assert not caller.to_upstream
    assert not caller.to_downstream
    assert len(codec.running(7.0)) == 1


# -- properties

payloads = st.binary(max_size=40) | st.sampled_from([b"x" * 125, b"y" * 126, b"z" * 300, b"w" * 65_536])


@st.composite
def messages(draw: st.DrawFn, *, masked: bool) -> tuple[bytes, bytes]:
    """Frames of one direction, and what their binary messages say."""
    wire = said = b""
    for _ in range(draw(st.integers(0, 4))):
        parts = draw(st.lists(payloads, min_size=1, max_size=3))
        for number, part in enumerate(parts):
            if draw(st.booleans()):
                control = draw(st.sampled_from([Opcode.PING, Opcode.PONG]))
                wire += frame(draw(st.binary(max_size=125)), control, masked=masked)
            opcode = Opcode.CONT if number else Opcode.BINARY
            wire += frame(part, opcode, fin=number == len(parts) - 1, masked=masked)
            said += part
    return wire, said


def cut(wire: bytes, at: list[int]) -> list[bytes]:
    bounds = sorted({0, len(wire), *(n % (len(wire) + 1) for n in at)})
    return [wire[a:b] for a, b in itertools.pairwise(bounds)]


cuts = st.lists(st.integers(0, 1 << 20), max_size=12)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(messages(masked=True), messages(masked=False), cuts, cuts)
def test_however_it_is_cut_the_engine_inside_is_shown_the_same(
    request: tuple[bytes, bytes],
    response: tuple[bytes, bytes],
    request_cuts: list[int],
    response_cuts: list[int],
) -> None:
    caller, inner = begun()
    for piece in cut(request[0], request_cuts):
        caller.downstream(piece)
    for piece in cut(response[0], response_cuts):
        caller.upstream(piece)
    assert (inner.requests, inner.responses) == (request[1], response[1])
    assert caller.to_upstream == request[0]
    assert caller.to_downstream == response[0]
    assert not caller.handed_over


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(
    messages(masked=True), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=4), cuts
)
def test_whatever_comes_goes_on_untouched_and_is_read_the_same_however_cut(
    request: tuple[bytes, bytes], changes: list[tuple[int, int]], at: list[int]
) -> None:
    wire = bytearray(request[0] or b"\x82")
    for position, byte in changes:
        wire[position % len(wire)] = byte
    sent = bytes(wire)
    whole, shown_whole = begun()
    whole.downstream(sent)
    pieces, shown_pieces = begun()
    for piece in cut(sent, at):
        pieces.downstream(piece)
    assert whole.to_upstream == pieces.to_upstream == sent
    assert whole.fallback == pieces.fallback
    assert shown_whole.requests == shown_pieces.requests
    assert shown_whole.shown == shown_pieces.shown

"""Many streams on one HTTP/2 connection, in frames written by hand: h2load cannot stop in the middle of a
connection for a look at the proxy's memory, nor hold requests open until a thousand of them are.

Requests go out in as few writes as they fit in; an answer counts when its stream ends after a status of 200.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench.load import standing_http2
from tests.bench.memory import worker
from tests.bench.processes import NotMeasured, memory_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.bench.load import Bench
    from tests.bench.peers import Peer, Standing

WARM_UP_STREAMS = 20_000
STREAMS = 100_000
STREAMS_HELD = 1_000

_AT_ONCE = 32
_SETTLE_SECONDS = 1.0
_PATIENCE_SECONDS = 30.0

# RFC 9113, sections 3.4, 4.1, 6 and 11.2
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER = struct.Struct(">HBBBI")  # length in 24 bits, type, flags, stream id
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1

# RFC 7541, appendix A: `:method GET` or `POST`, `:scheme http`, `:path /`, and `:authority` spelled out, all
# without a trace in the dynamic table; `:status 200` in an answer.
_GET, _POST = (method + b"\x86\x84\x01\x05bench" for method in (b"\x82", b"\x83"))
_STATUS_200 = 0x88


@dataclass(frozen=True, slots=True)
class StreamFigures:
    streams: int
    kib: int


@dataclass(frozen=True, slots=True)
class HeldFigures:
    """Streams open at the same time, how many of them were answered, and KiB of the worker for each."""

    held: int
    answered: int
    kib_per_stream: float


@dataclass(frozen=True, slots=True)
class Frame:
    type: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def split_frames(received: bytes) -> tuple[list[Frame], bytes]:
    """The whole frames, and what has come of the next one."""
    frames, at = [], 0
    while len(received) - at >= _HEADER.size:
        high, low, kind, flags, stream = _HEADER.unpack_from(received, at)
        end = at + _HEADER.size + (high << 8 | low)
        if end > len(received):
            break
        frames.append(Frame(kind, flags, stream & 0x7FFFFFFF, received[at + _HEADER.size : end]))
        at = end
    return frames, received[at:]


class Connection:
    """A client with the widest window there is for the connection, so that it never has to be updated."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self._next_stream = 1
        self._well_begun: set[int] = set()  # answered with 200, not yet ended
        self._pongs = 0
        self.answered = 0
        widest = struct.pack(">I", 0x7FFFFFFF - 65_535)
        self._socket.sendall(
            _PREFACE
            + frame(_SETTINGS, 0, 0)
            + frame(_WINDOW_UPDATE, 0, 0, widest)
            + frame(_PING, 0, 0, bytes(8))
        )
        self._hear_until(pongs=1)

    def close(self) -> None:
        self._socket.close()

    def ask(self, requests: int) -> None:
        """Asked and answered, so many streams one after another, `_AT_ONCE` of them under way."""
        end = self.answered + requests
        for _ in range(-(-requests // _AT_ONCE)):
            count = min(_AT_ONCE, end - self.answered)
            streams = self._new_streams(count)
            self._send(frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, _GET) for stream in streams)
            self._hear_until(answered=self.answered + count)

    def hold(self, requests: int) -> list[int]:
        """So many requests begun and not ended. An answered PING shows that all have passed the proxy."""
        streams = self._new_streams(requests)
        self._send(frame(_HEADERS, _END_HEADERS, stream, _POST) for stream in streams)
        self._send([frame(_PING, 0, 0, bytes(8))])
        self._hear_until(pongs=self._pongs + 1)
        return streams

    def end(self, streams: list[int]) -> None:
        expected = self.answered + len(streams)
        self._send(frame(_DATA, _END_STREAM, stream, b".") for stream in streams)
        self._hear_until(answered=expected)

    def _new_streams(self, count: int) -> list[int]:
        streams = list(range(self._next_stream, self._next_stream + 2 * count, 2))
        self._next_stream += 2 * count
        return streams

    def _send(self, frames: Iterable[bytes]) -> None:
        self._socket.sendall(b"".join(frames))

    def _hear_until(self, answered: int = 0, pongs: int = 0) -> None:
        while self.answered < answered or self._pongs < pongs:
            received = self._socket.recv(262_144)
            if not received:
                raise NotMeasured(f"the connection was closed after {self.answered} answers")
            frames, self._rest = split_frames(self._rest + received)
            for heard in frames:
                self._hear(heard)

    def _hear(self, heard: Frame) -> None:
        if heard.type in (_DATA, _HEADERS):
            self._hear_answer(heard)
        elif heard.type == _RST_STREAM:
            raise NotMeasured(f"stream {heard.stream} was reset: {heard.payload.hex()}")
        elif heard.type == _GOAWAY:
            raise NotMeasured(f"GOAWAY after {self.answered} answers: {heard.payload!r}")
        elif heard.type == _SETTINGS and not heard.flags & _ACK:
            self._socket.sendall(frame(_SETTINGS, _ACK, 0))
        elif heard.type == _PING and heard.flags & _ACK:
            self._pongs += 1

    def _hear_answer(self, heard: Frame) -> None:
        if heard.type == _HEADERS:
            if heard.payload[0] != _STATUS_200:
                raise NotMeasured(f"stream {heard.stream}: the answer begins with {heard.payload[:8].hex()}")
            self._well_begun.add(heard.stream)
        if heard.flags & _END_STREAM:
            if heard.stream not in self._well_begun:
                raise NotMeasured(f"stream {heard.stream} ended without an answer")
            self._well_begun.discard(heard.stream)
            self.answered += 1


def measure_streams(bench: Bench, subject: Peer) -> StreamFigures:
    with _connection(bench, subject) as (proxy, connection):
        pid = worker(proxy)
        connection.ask(WARM_UP_STREAMS)
        time.sleep(_SETTLE_SECONDS)
        warm = memory_of(pid).resident
        connection.ask(STREAMS)
        time.sleep(_SETTLE_SECONDS)
        grown = memory_of(pid).resident - warm
        proxy.require_done(connection.answered)
    return StreamFigures(STREAMS, grown)


def measure_held(bench: Bench, subject: Peer) -> HeldFigures:
    with _connection(bench, subject) as (proxy, connection):
        pid = worker(proxy)
        connection.ask(_AT_ONCE)
        asked = connection.answered
        before = memory_of(pid).resident
        streams = connection.hold(STREAMS_HELD)
        grown = memory_of(pid).resident - before
        connection.end(streams)
        proxy.require_done(connection.answered)
        return HeldFigures(len(streams), connection.answered - asked, grown / len(streams))


@contextlib.contextmanager
def _connection(bench: Bench, subject: Peer) -> Iterator[tuple[Standing, Connection]]:
    """One connection through the subject."""
    with (
        standing_http2(bench, subject) as proxy,
        contextlib.closing(Connection(proxy.port)) as connection,
    ):
        yield proxy, connection

"""The control channel between the supervisor and one worker: a socket pair that carries framed messages.

A frame is four bytes of length, big-endian, and so many bytes of MessagePack: one of the records below,
told apart by their tag. Neither side ever waits for the other: what cannot be sent at once stays in the
transport, and what may be lost (``Lines``) is dropped and counted when too much of it waits. Counters are
never dropped, because a worker whose channel is ``full`` does not take them out of its cells until there
is room again.
"""

# No `from __future__ import annotations`: msgspec reads these annotations when it builds its decoders.
import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Generic, Literal, TypeVar, cast

import msgspec
from msgspec import Struct

from proxy.metrics import Change
from proxy.settings import Settings

FRAME_MAX = 16 * 1024 * 1024  # bytes of one message
WAITING_MAX = 4 * 1024 * 1024  # bytes unsent, from which on Lines are dropped

_LENGTH = struct.Struct(">I")

Topic = Literal["connections", "exchanges"]


class Ready(Struct, frozen=True, tag=True):
    """Worker: my servers accept."""

    pid: int


class Counters(Struct, frozen=True, tag=True):
    """Worker: what its cells counted since the last time, and, even when empty, that its loop turns."""

    changes: list[Change]


class Lines(Struct, frozen=True, tag=True):
    """Worker: whole lines of the exchange log, each with its newline."""

    data: bytes


class Answer(Struct, frozen=True, tag=True):
    """Worker: the JSON array that ``Ask`` of the same ``id`` asked for."""

    id: int
    payload: bytes


class Drained(Struct, frozen=True, tag=True):
    """Worker: no pair is left, and this is my last message."""


class Server(Struct, frozen=True):
    """One inherited listening socket. Without a target, the kernel is asked for each connection's."""

    fd: int
    address: tuple[str, int]
    target: tuple[str, int] | None


class Start(Struct, frozen=True, tag=True):
    """Supervisor: the first message. ``max_connections``: this worker's share; ``drop_to``: uid and gid."""

    settings: Settings
    local_prefixes: list[str]
    servers: list[Server]
    max_connections: int
    drop_to: int | None


class Configure(Struct, frozen=True, tag=True):
    """Supervisor: from now on these."""

    settings: Settings
    local_prefixes: list[str]


class Drain(Struct, frozen=True, tag=True):
    """Supervisor: accept nothing more; what runs may go on for so many seconds; then end."""

    seconds: float


class Ask(Struct, frozen=True, tag=True):
    """Supervisor: answer with at most ``n`` of these, newest last."""

    id: int
    what: Topic
    n: int


class LogLevel(Struct, frozen=True, tag=True):
    level: str


FromWorker = Ready | Counters | Lines | Answer | Drained
FromSupervisor = Start | Configure | Drain | Ask | LogLevel

_encode = msgspec.msgpack.Encoder().encode

Received = TypeVar("Received")


class ChannelError(Exception):
    """The other side sent what it never sends, or a message is too long to be sent."""


class Channel(asyncio.Protocol, Generic[Received]):
    """One end. ``receive`` gets each message; ``lost`` is called once, when no more can come."""

    def __init__(
        self, kind: object, receive: Callable[[Received], None], lost: Callable[[Exception | None], None]
    ) -> None:
        self._decode: Callable[[bytes], Received] = msgspec.msgpack.Decoder(kind).decode
        self._receive = receive
        self._lost = lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._fault: ChannelError | None = None
        self._closed = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether so much waits unsent that what can wait, or be lost, should not be sent now."""
        return self._transport is not None and self._transport.get_write_buffer_size() > WAITING_MAX

    def send(self, message: FromWorker | FromSupervisor) -> None:
        """Never waits; does nothing when the other side is gone. Raises ChannelError over FRAME_MAX."""
        body = _encode(message)
        if len(body) > FRAME_MAX:
            raise ChannelError(f"a message of {len(body)} bytes is over the limit of {FRAME_MAX}")
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_LENGTH.pack(len(body)) + body)

    def send_lines(self, data: bytes) -> int:
        """Sends lines of the exchange log, unless too much waits; answers how many lines were dropped."""
        if self.full or len(data) > WAITING_MAX:
            return data.count(b"\n")
        self.send(Lines(data))
        return 0

    def close(self) -> None:
        """What waits is still sent."""
        if self._transport is not None:
            self._transport.close()

    async def closed(self, seconds: float) -> None:
        """Waits until what was sent is on its way, or the other side is gone, or the time is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods only

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            for body in _frames(self._buffer):
                self._receive(self._decode(body))
        except (ChannelError, msgspec.DecodeError) as error:
            self._fault = ChannelError(str(error))
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()
        self._lost(self._fault or exc)


def _frames(buffer: bytearray) -> Iterator[bytes]:
    """Takes the complete frames out of ``buffer``. Raises ChannelError on a length over FRAME_MAX."""
    at = 0
    try:
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > FRAME_MAX:
                raise ChannelError(f"a frame of {length} bytes is over the limit of {FRAME_MAX}")
            end = at + _LENGTH.size + length
            if len(buffer) < end:
                return
            body = bytes(memoryview(buffer)[at + _LENGTH.size : end])
            at = end
            yield body
    finally:
        del buffer[:at]


async def connect(channel: Channel[Received], end: socket.socket) -> None:
    """Puts ``channel`` on its end of the socket pair."""
    await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=end)


def to_supervisor(
    receive: Callable[[FromSupervisor], None], lost: Callable[[Exception | None], None]
) -> Channel[FromSupervisor]:
    """The worker's end."""
    return Channel(FromSupervisor, receive, lost)


def to_worker(
    receive: Callable[[FromWorker], None], lost: Callable[[Exception | None], None]
) -> Channel[FromWorker]:
    """The supervisor's end."""
    return Channel(FromWorker, receive, lost)

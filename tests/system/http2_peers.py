"""HTTP/2 ends that see and set every frame, so that a conversation can be held directly and through ARCA.

    def play(client: Http2Peer, server: Http2Peer) -> None:
        begin(client, server)
        passes(client, server, client.head(1, GET, END_STREAM), frame(PING, 0, 0, b"12345678"))

    seen = observed(play, *arca.connect())       # all that each end heard, and how it was told the end

A header block is put together from its frames and decoded: where ARCA adds a field it may need one frame
more. All else is compared byte for byte. ``Library`` is an end that python-hyper's h2 drives, for what needs
flow control; ``Program`` is a server of another make.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, Self

import h2.config
import h2.connection
import h2.events
import hpack

from tests.ports import free_port
from tests.system.arca import OPEN, Carrier, Peer, dialed
from tests.system.processes import PATIENCE, end, until

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.system.processes import Arca, Row

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# RFC 9113 section 6; CONTINUATION is never seen alone.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)


# Flags. END_STREAM is of DATA and HEADERS, ACK of SETTINGS and PING.
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, WITH_PRIORITY = 0x4, 0x8, 0x20

# Traces that begin in ARCA are not sampled, so that a test knows the whole of a traceparent.
UNSAMPLED_TRACES = "sample = 0.0\n"

CANCEL, REFUSED_STREAM, ENHANCE_YOUR_CALM = 8, 7, 11

Fields = list[tuple[bytes, bytes]]

GET: Fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a.test"), (b":path", b"/")]
POST: Fields = [(b":method", b"POST"), *GET[1:]]
OK: Fields = [(b":status", b"200"), (b"content-type", b"text/plain")]

_TRACEPARENT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]")
_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class Frame(NamedTuple):
    """One frame; ``stream`` with the reserved bit, as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Head(NamedTuple):
    """A header block with what its first frame said. ``flags`` is without END_HEADERS."""

    kind: int
    flags: int
    stream: int
    beside: bytes  # priority, or the stream that is promised
    padding: bytes
    fields: tuple[tuple[bytes, bytes, bool], ...]  # name, value, never to be indexed

    def values(self, name: bytes) -> list[bytes]:
        return [value for each, value, _ in self.fields if each == name]

    def value(self, name: bytes) -> bytes:
        (value,) = self.values(name)
        return value

    def without_added(self) -> Head:
        """Without the fields that ARCA adds: lower-case names, literal and, as to indexing, left open."""
        return self._replace(
            fields=tuple(
                field
                for field in self.fields
                if not (field[0] == b"traceparent" and _TRACEPARENT.fullmatch(field[1]))
                and not (field[0] == b"x-request-id" and _UUID.fullmatch(field[1]))
            )
        )


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4)
    return head + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(key.to_bytes(2) + value.to_bytes(4) for key, value in pairs))


SETTINGS_ACK = frame(SETTINGS, ACK, 0)


def data(stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return frame(DATA, flags, stream, payload)


def reset(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4))


def goaway(last: int, code: int = 0, text: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, 0, last.to_bytes(4) + code.to_bytes(4) + text)


def window(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4))


def integer(value: int, bits: int, first: int) -> bytes:
    """RFC 7541 section 5.1."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((first | value,))
    value -= most
    out = [first | most]
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


# RFC 7541 section 6.2: how a literal asks to be remembered.
INDEXED, UNINDEXED, NEVER = (6, 0x40), (4, 0x00), (4, 0x10)


def literal(name: bytes, value: bytes, how: tuple[int, int] = UNINDEXED) -> bytes:
    """A field with a name of its own, without Huffman coding."""
    return integer(0, *how) + integer(len(name), 7, 0) + name + integer(len(value), 7, 0) + value


class Http2Peer(Peer):
    """One end. ``seen`` is every frame and header block that it heard, in order."""

    def __init__(self, peer: Peer, is_server: bool) -> None:
        super().__init__(peer.socket)
        self.since = peer.since
        self.heard = peer.heard
        self.seen: list[Frame | Head] = []
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder(max_header_list_size=1 << 22)
        self._at = 0  # of heard
        self._preface_awaited = is_server

    def block(self, fields: Fields) -> bytes:
        return self.encoder.encode(fields)

    def head(self, stream: int, fields: Fields, flags: int = 0) -> bytes:
        """HEADERS with all of them in one frame; to be sent in the order that it was made."""
        return frame(HEADERS, flags | END_HEADERS, stream, self.block(fields))

    def next(self) -> Frame | Head:
        """The next frame or header block."""
        if self._preface_awaited:
            assert self._bytes(len(PREFACE)) == PREFACE
            self._preface_awaited = False
        came: Frame | Head = self._frame()
        if came.kind in (HEADERS, PUSH_PROMISE):
            assert isinstance(came, Frame)
            came = self._put_together(came)
        self.seen.append(came)
        return came

    def takes(self, kind: int, stream: int = 0) -> Frame:
        """The next frame is this."""
        came = self.next()
        assert isinstance(came, Frame), came
        assert (came.kind, came.stream) == (kind, stream), came
        return came

    def takes_head(self, stream: int) -> Head:
        """The next is a header block of this stream."""
        came = self.next()
        assert isinstance(came, Head), came
        assert came.stream == stream, came
        return came

    def finds(self, kind: int, stream: int = 0) -> Frame:
        """The next such frame, whatever comes before it."""
        while True:
            came = self.next()
            if (came.kind, came.stream) == (kind, stream):
                assert isinstance(came, Frame)
                return came

    def finds_head(self, stream: int) -> Head:
        """The next header block of this stream, whatever comes before it."""
        while True:
            came = self.next()
            if isinstance(came, Head) and came.stream == stream:
                return came

    def rest(self) -> str:
        """Hears all there is until the other end closes or resets, which is the answer."""
        while True:
            before = len(self.seen)
            try:
                self.next()
            except AssertionError:
                if self.ended != OPEN and len(self.seen) == before:
                    assert self._at == len(self.heard), f"{self.ended} in the middle of a frame"
                    return self.ended
                raise

    def _frame(self) -> Frame:
        start = self._at
        try:
            head = self._bytes(9)
            payload = self._bytes(int.from_bytes(head[:3]))
        except BaseException:
            self._at = start
            raise
        return Frame(head[3], head[4], int.from_bytes(head[5:9]), payload)

    def _bytes(self, size: int) -> bytes:
        while len(self.heard) < self._at + size:
            assert self._receive(1 << 18), f"{self.ended} behind {self.seen[-3:]}, {self.heard[self._at :]!r}"
        self._at += size
        return bytes(self.heard[self._at - size : self._at])

    def _put_together(self, first: Frame) -> Head:
        block, padding, beside = first.payload, b"", b""
        if first.flags & PADDED:
            length, block = block[0], block[1:]
            block, padding = block[: len(block) - length], block[len(block) - length :]
        if first.kind == PUSH_PROMISE:
            beside, block = block[:4], block[4:]
        elif first.flags & WITH_PRIORITY:
            beside, block = block[:5], block[5:]
        flags = first.flags
        while not flags & END_HEADERS:
            more = self._frame()
            assert (more.kind, more.stream) == (CONTINUATION, first.stream), more
            block += more.payload
            flags |= more.flags
        fields = tuple(
            (bytes(field[0]), bytes(field[1]), not field.indexable)
            for field in self.decoder.decode(block, raw=True)
        )
        flags = first.flags & ~END_HEADERS
        return Head(first.kind, flags, first.stream, beside, padding, fields)


class Seen(NamedTuple):
    """What the two ends of one connection saw, without what ARCA adds, and how each was told the end."""

    client: list[Frame | Head]
    client_end: str
    server: list[Frame | Head]
    server_end: str


def ends(connection: tuple[Peer, Peer]) -> tuple[Http2Peer, Http2Peer]:
    """Both ends of a connection, able to speak HTTP/2."""
    client, server = connection
    return Http2Peer(client, is_server=False), Http2Peer(server, is_server=True)


def begin(client: Http2Peer, server: Http2Peer, *pairs: tuple[int, int]) -> None:
    """Preface and SETTINGS both ways, acknowledged; ``pairs`` are the client's."""
    client.sends(PREFACE + settings(*pairs))
    server.takes(SETTINGS)
    server.sends(settings() + SETTINGS_ACK)
    client.takes(SETTINGS)
    client.takes(SETTINGS)
    client.sends(SETTINGS_ACK)
    server.takes(SETTINGS)


def passes(sender: Http2Peer, receiver: Http2Peer, *frames: bytes) -> list[Frame | Head]:
    """What the receiver makes of ``frames``, all sent at once."""
    sender.sends(b"".join(frames))
    return [receiver.next() for each in frames if each[3] != CONTINUATION]


def observed(play: Callable[[Http2Peer, Http2Peer], None], client: Http2Peer, server: Http2Peer) -> Seen:
    """Hold the conversation, then let the client end in order and the server do the same, unless they did."""
    with client, server:
        play(client, server)
        if client.socket.fileno() >= 0 and client.ended == OPEN and server.socket.fileno() >= 0:
            with contextlib.suppress(OSError):
                client.ends()
        server_end = server.rest() if server.socket.fileno() >= 0 else server.ended
        server.closes()
        client_end = client.rest() if client.socket.fileno() >= 0 else client.ended
    return Seen(_bare(client.seen), client_end, _bare(server.seen), server_end)


def _bare(seen: Iterable[Frame | Head]) -> list[Frame | Head]:
    return [each.without_added() if isinstance(each, Head) else each for each in seen]


def counted(arca: Arca, name: str, **labels: str) -> float:
    """The sum of a metric over the label sets that have these labels."""
    total = 0.0
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    for line in arca.get("/metrics", arca.metrics)[1].splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] == name and all(label in series for label in wanted):
            total += float(value)
    return total


def exchanges_since(arca: Carrier, began: float, count: int) -> list[Row]:
    """The exchanges that began since ``began``, in the order that they ended: exactly ``count``."""

    def found() -> list[Row]:
        return [row for row in arca.logged() if datetime.fromisoformat(str(row["time"])).timestamp() >= began]

    until(lambda: len(found()) >= count)
    rows = found()
    assert len(rows) == count, rows
    return rows


class Library:
    """An end that h2 drives: it obeys and enforces flow control, and raises on what the RFC forbids."""

    def __init__(self, connection: socket.socket, is_client: bool, upgraded: bytes | None = None) -> None:
        """``upgraded`` is the HTTP2-Settings of the request that asked for the upgrade, at a server."""
        self.socket = connection
        connection.settimeout(PATIENCE)
        config = h2.config.H2Configuration(client_side=is_client, header_encoding=False)
        self.h2 = h2.connection.H2Connection(config)
        if upgraded is None:
            self.h2.initiate_connection()
        else:
            self.h2.initiate_upgrade_connection(upgraded)
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        if out := self.h2.data_to_send():
            self.socket.sendall(out)

    def hears(self) -> list[h2.events.Event]:
        """What the next bytes mean."""
        came = self.socket.recv(1 << 16)
        assert came, "the connection ended"
        found = self.h2.receive_data(came)
        self.flush()
        return found

    def hears_requests(self) -> list[int]:
        """The streams whose requests the next bytes complete."""
        asked = []
        for event in self.hears():
            if isinstance(event, h2.events.StreamEnded):
                assert event.stream_id is not None
                asked.append(event.stream_id)
            elif isinstance(event, h2.events.DataReceived):
                assert event.stream_id is not None
                self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
        return asked

    def sends_body(self, stream: int, body: bytes) -> None:
        """All of it, as fast as the other end allows; what is heard meanwhile is of no interest."""
        view = memoryview(body)
        while view:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room:
                self.h2.send_data(stream, bytes(view[:room]))
                view = view[room:]
                self.flush()
            else:
                self.hears()
        self.h2.end_stream(stream)
        self.flush()

    def hears_body(self, pause: float = 0.0) -> tuple[int, bytes]:
        """The stream that ends next and its body; ``pause`` between reads is what a slow reader takes."""
        body = bytearray()
        while True:
            for event in self.hears():
                if isinstance(event, h2.events.DataReceived):
                    assert event.data is not None
                    assert event.stream_id is not None
                    assert event.flow_controlled_length is not None
                    body += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    assert event.stream_id is not None
                    return event.stream_id, bytes(body)
            self.flush()
            time.sleep(pause)


class Program:
    """A server in a process of its own that listens on ``port``; ``{port}`` in its command becomes that."""

    def __init__(self, *command: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.process = subprocess.Popen(
            [part.replace("{port}", str(self.port)) for part in command],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __enter__(self) -> Self:
        try:
            until(self._listens)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)

    def _listens(self) -> bool:
        assert self.process.poll() is None, f"{self.process.args!r} ended"
        try:
            dialed("127.0.0.1", self.port).closes()
        except ConnectionRefusedError:
            return False
        return True


class Front(Carrier):
    """An ARCA with one port more, ``served``, that leads to a server which is not the test's own."""

    def __init__(self, directory: Path, port: int, settings: str = "") -> None:
        self.served = free_port()
        forward = f"127.0.0.1:{self.served}=127.0.0.1:{port}"
        super().__init__(directory, UNSAMPLED_TRACES + settings, "--forward", forward)

    def __enter__(self) -> Self:
        super().__enter__()
        until(lambda: len(self.logged()) == 1)  # the connection that a Carrier begins with
        return self

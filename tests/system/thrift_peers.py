"""Thrift clients and servers of two makes, and what each of them said and heard.

    with Server(dialect) as server, Caller(dialect, server.port) as client:
        client.call("echo", "hello")             # an Outcome; server.saw is what the handler was asked

A ``Dialect`` says who speaks (thriftpy2 or Apache's library) and how. Both ends talk through a ``Recorded``
socket, so that besides what the two applications saw, the bytes of two conversations can be compared. The
code of Apache's side is made by the compiler ``thrift`` from everything.thrift, see ``generated``. Run as a
program, this file is one server, or one call, that a test can kill.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import thriftpy2
from thrift.protocol.TBinaryProtocol import (  # type: ignore[import-untyped]
    TBinaryProtocol,
    TBinaryProtocolAccelerated,
)
from thrift.protocol.TCompactProtocol import (  # type: ignore[import-untyped]
    TCompactProtocol,
    TCompactProtocolAccelerated,
)
from thrift.protocol.THeaderProtocol import THeaderProtocol  # type: ignore[import-untyped]
from thrift.protocol.TMultiplexedProtocol import TMultiplexedProtocol  # type: ignore[import-untyped]
from thrift.Thrift import TException, TMessageType  # type: ignore[import-untyped]
from thrift.TMultiplexedProcessor import TMultiplexedProcessor  # type: ignore[import-untyped]
from thrift.transport.THeaderTransport import (  # type: ignore[import-untyped]
    THeaderClientType,
    THeaderSubprotocolID,
    THeaderTransformID,
)
from thrift.transport.TSocket import TSocket  # type: ignore[import-untyped]
from thrift.transport.TTransport import (  # type: ignore[import-untyped]
    TBufferedTransport,
    TFramedTransport,
    TMemoryBuffer,
)
from thriftpy2.thrift import TApplicationException as Thriftpy2ApplicationException
from thriftpy2.thrift import TClient, TProcessor
from thriftpy2.thrift import TException as Thriftpy2Exception
from thriftpy2.thrift import TMultiplexedProcessor as Thriftpy2MultiplexedProcessor

from tests.system.arca import Peer
from tests.system.processes import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

FILE = Path(__file__).parent / "everything.thrift"
EVERYTHING = thriftpy2.load(str(FILE), module_name="everything_thrift")

# Without annotations of their own.
thriftpy2_protocol: Any = importlib.import_module("thriftpy2.protocol")
thriftpy2_transport: Any = importlib.import_module("thriftpy2.transport")
thriftpy2_multiplex: Any = importlib.import_module("thriftpy2.protocol.multiplex")

SERVICE = "Everything"  # of a multiplexed connection; OTHER is beside it
OTHER = "Other"

Pairs = list[tuple[bytes, bytes]]


class Dialect(NamedTuple):
    """Who speaks, and how. ``zlib`` is a transform of the header transport."""

    library: str
    transport: str
    encoding: str
    multiplexed: bool = False
    zlib: bool = False
    plain: bool = False  # the library's own Python instead of its C

    def __str__(self) -> str:
        extras = [name for name in ("multiplexed", "zlib", "plain") if getattr(self, name)]
        return "-".join([self.library, self.transport, self.encoding, *extras])


class Outcome(NamedTuple):
    """What the caller got: a value, or the name and the fields of an exception."""

    value: object
    error: str | None = None
    fields: dict[str, object] | None = None


def generated(directory: Path) -> str | None:
    """Let Apache's compiler make the code for everything.thrift; answers why that cannot be done."""
    if "arca_everything" in sys.modules:
        return None
    if shutil.which("thrift") is None:
        return "needs the program thrift (package thrift-compiler)"
    done = subprocess.run(
        ["thrift", "--gen", "py", "-out", str(directory), str(FILE)], capture_output=True, check=False
    )
    if done.returncode != 0:
        return f"the thrift compiler failed: {done.stderr.decode()}"
    sys.path.insert(0, str(directory))
    try:
        importlib.import_module("arca_everything.Wider")
    finally:
        sys.path.remove(str(directory))
    return None


class Recorded(socket.socket):
    """A connected socket that remembers what went through it. ``piecemeal`` sends each byte by itself."""

    sent: bytearray
    heard: bytearray
    piecemeal: bool

    @classmethod
    def of(cls, plain: socket.socket) -> Self:
        self = cls(plain.family, plain.type, plain.proto, fileno=plain.detach())
        self.sent, self.heard, self.piecemeal = bytearray(), bytearray(), False
        self.settimeout(PATIENCE)
        if self.family != socket.AF_UNIX:
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = super().recv(size, flags)
        if not flags & socket.MSG_PEEK:
            self.heard += data
        return data

    def send(self, data: Any, flags: int = 0) -> int:
        sent = super().send(bytes(data[:1]) if self.piecemeal else data, flags)
        self.sent += bytes(data[:sent])
        return sent

    def sendall(self, data: Any, flags: int = 0) -> None:
        if self.piecemeal:
            for at in range(len(data)):
                super().sendall(bytes(data[at : at + 1]), flags)
        else:
            super().sendall(data, flags)
        self.sent += bytes(data)


class Connection:
    """The library's protocol object on one connected socket."""

    def __init__(self, dialect: Dialect, connected: Recorded) -> None:
        self.dialect = dialect
        if dialect.library == "thriftpy2":
            handle = thriftpy2_transport.TSocket(sock=connected)
            handle.set_handle(connected)
            self.protocol = _thriftpy2_protocol(dialect, handle)
        else:
            handle = TSocket()
            handle.setHandle(connected)
            self.protocol = _apache_protocol(dialect, handle)

    def headers(self) -> dict[bytes, bytes]:
        """What the header block of the newest message said."""
        found: dict[bytes, bytes] = (
            dict(self.protocol.get_headers()) if self.dialect.transport == "header" else {}
        )
        return found


def _thriftpy2_protocol(dialect: Dialect, handle: Any) -> Any:
    names = {"framed": "FramedTransport", "buffered": "BufferedTransport"}
    name = ("T" if dialect.plain else "TCy") + names[dialect.transport]
    transport = getattr(thriftpy2_transport, name)(handle)
    if dialect.encoding == "compact":
        return thriftpy2_protocol.TCompactProtocol(transport)
    strict = dialect.encoding == "binary"
    make = thriftpy2_protocol.TBinaryProtocol if dialect.plain else thriftpy2_protocol.TCyBinaryProtocol
    return make(transport, strict_read=strict, strict_write=strict)


def _apache_protocol(dialect: Dialect, handle: Any) -> Any:
    compact = dialect.encoding == "compact"
    if dialect.transport == "header":
        number = THeaderSubprotocolID.COMPACT if compact else THeaderSubprotocolID.BINARY
        protocol = THeaderProtocol(handle, (THeaderClientType.HEADERS,), number)
        if dialect.zlib:
            protocol.add_transform(THeaderTransformID.ZLIB)
        return protocol
    transport = (TFramedTransport if dialect.transport == "framed" else TBufferedTransport)(handle)
    if compact:
        return (TCompactProtocol if dialect.plain else TCompactProtocolAccelerated)(transport)
    strict = dialect.encoding == "binary"
    make = TBinaryProtocol if dialect.plain else TBinaryProtocolAccelerated
    return make(transport, strictRead=strict, strictWrite=strict)


def _types(library: str) -> ModuleType:
    """Where the structs, exceptions and enums are."""
    found: ModuleType = (
        EVERYTHING if library == "thriftpy2" else importlib.import_module("arca_everything.ttypes")
    )
    return found


class Handler:
    """The service. ``saw`` is what it was asked, with the header block of the header transport."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self._server = server
        self._connection = connection
        self._types = _types(connection.dialect.library)

    def echo(self, text: str) -> str:
        self._sees("echo", text)
        return text

    def add(self, a: int, b: int) -> int:
        self._sees("add", a, b)
        return a + b

    def give_back(self, everything: object) -> object:
        self._sees("give_back", everything)
        return everything

    def nothing(self) -> None:
        self._sees("nothing")

    def note(self, text: str) -> None:
        self._sees("note", text)

    def refuse(self, number: int) -> str:
        self._sees("refuse", number)
        if number < 0:
            raise self._types.Busy(reasons=["a", "b"], again_at=12)
        raise self._types.Refused(number=number, why=f"{number} is refused")

    def fail(self, text: str) -> str:
        self._sees("fail", text)
        if self._connection.dialect.library == "thriftpy2":  # it does not answer what it does not know
            raise Thriftpy2ApplicationException(Thriftpy2ApplicationException.INTERNAL_ERROR, text)
        raise RuntimeError(text)

    def slow(self, seconds: float) -> str:
        self._sees("slow", seconds)
        self._server.release.wait(seconds)
        return self._server.answer

    def _sees(self, *asked: object) -> None:
        self._server.saw.append((*asked, self._connection.headers()))


class Server:
    """Serves each connection in a thread, until the ``with`` ends.

    ``connections`` are the sockets that it took, in order. ``release`` lets slow calls go on, to ``answer``.
    """

    def __init__(self, dialect: Dialect, host: str = "127.0.0.1", port: int = 0) -> None:
        self.dialect = dialect
        self.saw: list[tuple[object, ...]] = []
        self.connections: list[Recorded] = []
        self.release = threading.Event()
        self.answer = "at last"
        self.piecemeal = False  # answers leave byte by byte
        self._threads: list[threading.Thread] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=128)
        self.host, self.port = self._listener.getsockname()[:2]
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
        self._accepting.join(PATIENCE)
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)

    def forgets(self) -> None:
        """Begin anew with what was seen, when all that was asked is over."""
        until(lambda: not any(thread.is_alive() for thread in self._threads))
        self.saw.clear()
        self.connections.clear()
        self._threads.clear()
        self.release.clear()
        self.answer = "at last"
        self.piecemeal = False

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            connected = Recorded.of(accepted)
            connected.piecemeal = self.piecemeal
            self.connections.append(connected)
            thread = threading.Thread(target=self._serve, args=(connected,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connected: Recorded) -> None:
        connection = Connection(self.dialect, connected)
        processor = self._processor(Handler(self, connection))
        with connected, contextlib.suppress(TException, Thriftpy2Exception, OSError, EOFError):
            while True:
                processor.process(connection.protocol, connection.protocol)

    def _processor(self, handler: Handler) -> Any:
        if self.dialect.library == "thriftpy2":
            processor = TProcessor(EVERYTHING.Everything, handler)
            if not self.dialect.multiplexed:
                return processor
            multiplexed = Thriftpy2MultiplexedProcessor()
            for name in (SERVICE, OTHER):
                multiplexed.register_processor(name, processor)
            return multiplexed
        processor = importlib.import_module("arca_everything.Everything").Processor(handler)
        if not self.dialect.multiplexed:
            return processor
        multiplexed = TMultiplexedProcessor()
        for name in (SERVICE, OTHER):
            multiplexed.registerProcessor(name, processor)
        return multiplexed


class Caller:
    """A client on a connection of its own. ``name`` is its address as ARCA logs it."""

    def __init__(self, dialect: Dialect, port: int, host: str = "127.0.0.1", service: str = SERVICE) -> None:
        self.since = time.time() - 0.05
        self.socket = Recorded.of(socket.create_connection((host, port), timeout=PATIENCE))
        mine = self.socket.getsockname()
        self.name = f"[{mine[0]}]:{mine[1]}" if ":" in mine[0] else f"{mine[0]}:{mine[1]}"
        self.connection = Connection(dialect, self.socket)
        self._library = dialect.library
        protocol = self.connection.protocol
        if dialect.library == "thriftpy2":
            out = (
                thriftpy2_multiplex.TMultiplexedProtocol(protocol, service)
                if dialect.multiplexed
                else protocol
            )
            self._client = TClient(EVERYTHING.Wider, protocol, out)
        else:
            out = TMultiplexedProtocol(protocol, service) if dialect.multiplexed else protocol
            self._client = importlib.import_module("arca_everything.Wider").Client(protocol, out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def call(self, method: str, *arguments: object) -> Outcome:
        """What became of a call, whatever it was."""
        try:
            return Outcome(getattr(self._client, method)(*arguments))
        except (TException, Thriftpy2Exception, OSError, EOFError) as error:
            fields: dict[str, object] = {
                key: value
                for key, value in vars(error).items()
                if isinstance(value, int | str | list) and not key.startswith("_")
            }
            return Outcome(None, type(error).__name__, fields)

    def sets(self, *pairs: tuple[str, str]) -> None:
        """Info headers that go with the next call, header transport alone."""
        for key, value in pairs:
            self.connection.protocol.set_header(key.encode(), value.encode())

    def everything(self, depth: int = 2) -> object:
        """A struct with all of its fields but one set, and twice the same in it, so many levels deep."""
        return _everything(_types(self._library), depth)


def _everything(types: Any, levels: int) -> object:
    def made(depth: int) -> object:
        return types.All(
            yes=True, no=False, tiny=-128, small=-32768, number=-(2**31), large=2**63 - 1, real=-1.5e300,
            text="ünïcödé ✓ " * 30, blob=bytes(range(256)), colour=types.Colour.BLUE,
            point=types.Point(x=-1, y=0.1), flags=[True, False, True] * 7, octets=[-128, -1, 0, 127],
            numbers=[n * 10**15 for n in range(-9, 9)], reals=[0.0, -0.0, 1e-300, float("inf")],
            texts=["", "a", "b" * 300], members={1, -2, 3_000_000}, counts={"one": 1, "two": -2, "": 0},
            deep={-1: [{"a": {1, -32768}, "b": set()}, {}], 2: []},
            points=[types.Point(x=n, y=float(n)) for n in range(20)],
            places={"here": types.Point(x=1, y=2.0), "there": types.Point(x=3, y=4.0)},
            cube=[[[1, 2], []], [], [[3]]], truths={True: False, False: True},
            nothing=[], no_pairs={}, no_members=set(), colours=[types.Colour.RED, types.Colour.GREEN],
            more=[made(depth - 1), made(depth - 1)] if depth else [], far="far",
        )  # fmt: skip

    return made(levels)


# ---- messages by hand


class Message(NamedTuple):
    """A message with one string, as ``echo`` has it."""

    name: str
    kind: int
    sequence: int
    text: str
    pairs: Pairs


class Wire(NamedTuple):
    """How messages are put together and taken apart without a client: Apache's protocols on memory."""

    transport: str
    encoding: str

    def message(self, name: str, kind: int, sequence: int, text: str, field: int = 1) -> bytes:
        """One with a struct of a single string, as ``echo`` has it: field 1 of a call, 0 of a reply."""
        memory = TMemoryBuffer()
        protocol = self._protocol(memory)
        protocol.writeMessageBegin(name, kind, sequence)
        protocol.writeStructBegin("any")
        protocol.writeFieldBegin("text", 11, field)
        protocol.writeString(text)
        protocol.writeFieldEnd()
        protocol.writeFieldStop()
        protocol.writeStructEnd()
        protocol.writeMessageEnd()
        body: bytes = memory.getvalue()
        if self.transport == "header":
            return header_frame(2 if self.encoding == "compact" else 0, sequence, [], body)
        return len(body).to_bytes(4) + body if self.transport == "framed" else body

    def call(self, name: str, sequence: int, text: str) -> bytes:
        return self.message(name, TMessageType.CALL, sequence, text)

    def reply(self, name: str, sequence: int, text: str) -> bytes:
        return self.message(name, TMessageType.REPLY, sequence, text, 0)

    def read(self, data: bytes) -> tuple[Message, int] | None:
        """The first message, and its size with its frame; None if not all of it is there yet."""
        size = 4 + int.from_bytes(data[:4])
        body = data
        if self.transport != "buffered":
            if len(data) < 4 or len(data) < size:
                return None
            body = data[4:size]
        pairs: Pairs = []
        if self.transport == "header":
            (frame,) = taken_apart(data[:size])
            pairs, body = frame.pairs, frame.payload
        memory = TMemoryBuffer(body)
        protocol = self._protocol(memory)
        try:
            name, kind, sequence = protocol.readMessageBegin()
            protocol.readStructBegin()
            protocol.readFieldBegin()
            text = protocol.readString()
            protocol.readFieldEnd()
            protocol.readFieldBegin()
        except EOFError:
            return None
        if self.transport == "buffered":
            size = memory._buffer.tell()
        return Message(name, kind, sequence, text, pairs), size

    def _protocol(self, memory: Any) -> Any:
        if self.encoding == "compact":
            return TCompactProtocol(memory)
        strict = self.encoding == "binary"
        return TBinaryProtocol(memory, strictRead=strict, strictWrite=strict)


class ThriftPeer(Peer):
    """An end that speaks ``wire``; ``hears_message`` and not ``hears`` tells what it is told."""

    def __init__(self, peer: Peer, wire: Wire) -> None:
        super().__init__(peer.socket)
        self.since = peer.since
        self.wire = wire
        self._at = 0  # of heard

    def hears_message(self) -> Message:
        while (found := self.wire.read(bytes(self.heard[self._at :]))) is None:
            assert self._receive(), f"{self.ended} in {bytes(self.heard[self._at :])!r}"
        self._at += found[1]
        return found[0]

    def calls(self, name: str, sequence: int, text: str = "hello") -> None:
        self.sends(self.wire.call(name, sequence, text))

    def replies(self, name: str, sequence: int, text: str = "hello") -> None:
        self.sends(self.wire.reply(name, sequence, text))


def header_frame(protocol: int, sequence: int, pairs: Pairs, payload: bytes) -> bytes:
    """doc/specs/HeaderFormat.md, with one block of key/value info headers."""
    block = _varint(protocol) + _varint(0)
    if pairs:
        block += _varint(1) + _varint(len(pairs))
        for pair in pairs:
            for each in pair:
                block += _varint(len(each)) + each
    block += bytes(-len(block) % 4)
    head = struct.pack("!HHiH", 0x0FFF, 0, sequence, len(block) // 4)
    return (len(head) + len(block) + len(payload)).to_bytes(4) + head + block + payload


class HeaderFrame(NamedTuple):
    """One frame of the header transport; ``pairs`` are all its info headers, duplicates too."""

    flags: int
    sequence: int
    protocol: int
    transforms: list[int]
    pairs: Pairs
    payload: bytes


def frames(data: bytes | bytearray) -> Iterator[bytes]:
    """Each frame of a framed or header transport, with its length."""
    at = 0
    while at < len(data):
        size = 4 + int.from_bytes(data[at : at + 4])
        yield bytes(data[at : at + size])
        at += size


def taken_apart(data: bytes | bytearray) -> list[HeaderFrame]:
    return [_taken_apart(frame) for frame in frames(data)]


def _taken_apart(frame: bytes) -> HeaderFrame:
    magic, flags, sequence, words = struct.unpack("!HHiH", frame[4:14])
    assert magic == 0x0FFF
    block, at = frame[14 : 14 + 4 * words], 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = block[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def text() -> bytes:
        nonlocal at
        size = number()
        at += size
        return block[at - size : at]

    protocol = number()
    transforms = [number() for _ in range(number())]
    pairs: Pairs = []
    while at < len(block) and number() == 1:
        pairs += [(text(), text()) for _ in range(number())]
    assert not any(block[at:])  # padding
    assert len(block) - at < 4
    return HeaderFrame(flags, sequence, protocol, transforms, pairs, frame[14 + 4 * words :])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


KILLABLE = Dialect("thriftpy2", "framed", "binary")


def main(what: str, port: str) -> None:
    """``serve`` until killed, or ``call`` slowly; with KILLABLE."""
    if what == "serve":
        with Server(KILLABLE, port=int(port)):
            threading.Event().wait()
    else:
        with Caller(KILLABLE, int(port)) as client:
            client.call("slow", 600.0)


if __name__ == "__main__":
    main(*sys.argv[1:])

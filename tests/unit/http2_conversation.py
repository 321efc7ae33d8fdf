"""HTTP/2 for tests: frames and header blocks written octet by octet, and what an engine says, read again.

What is written here is the form on the wire, so that a test can say how a field was represented; what is read
is read by the library ``hpack``, which knows nothing of ARCA's own decoder. ``Peers`` has the library ``h2``
at both ends of an engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from h2.config import H2Configuration
from h2.connection import H2Connection
from hpack import Decoder
from hpack.hpack import encode_integer
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from protocols.http2 import Http2
from tests.unit.conversation import REQUEST_ID, SPAN_ID, TRACE_ID, Caller, Conversation, fixed_ids

if TYPE_CHECKING:
    from collections.abc import Iterable

    from h2.events import Event

    from protocols.exchange import Exchange

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 1, 2, 7, 8, 11

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

Field: TypeAlias = tuple[bytes, bytes]

_huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


# -- frames


def frame(kind: int, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def settings_frame(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, b"".join(name.to_bytes(2, "big") + u32(value) for name, value in pairs))


def headers(stream: int, block: bytes, flags: int = END_HEADERS | END_STREAM) -> bytes:
    return frame(HEADERS, stream, block, flags)


def data(stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return frame(DATA, stream, payload, flags)


def ended(stream: int, payload: bytes = b"") -> bytes:
    return frame(DATA, stream, payload, END_STREAM)


def rst_stream(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, stream, u32(code))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, stream, u32(increment))


def goaway(last: int, code: int = NO_ERROR, text: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, u32(last) + u32(code) + text)


def fragmented(stream: int, block: bytes, size: int, flags: int = END_STREAM) -> bytes:
    """``block`` in a HEADERS frame and CONTINUATION frames of ``size`` octets each."""
    pieces = [block[at : at + size] for at in range(0, len(block), size)]
    return b"".join(
        frame(
            CONTINUATION if i else HEADERS,
            stream,
            piece,
            (0 if i else flags) | (END_HEADERS if i == len(pieces) - 1 else 0),
        )
        for i, piece in enumerate(pieces)
    )


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes


def frames(said: bytes) -> list[Frame]:
    """What was said, as frames; the last of them must be complete."""
    found = []
    at = len(PREFACE) if said.startswith(PREFACE) else 0
    while at < len(said):
        end = at + 9 + int.from_bytes(said[at : at + 3], "big")
        assert end <= len(said), said[at:]
        stream = int.from_bytes(said[at + 5 : at + 9], "big") & 0x7FFFFFFF
        found.append(Frame(said[at + 3], said[at + 4], stream, bytes(said[at + 9 : end])))
        at = end
    return found


def told_goaway(said: bytes) -> tuple[int, int, str]:
    """The (last stream, code, text) of the GOAWAY that ends what was said."""
    last = frames(said)[-1]
    assert last.kind == GOAWAY, said
    return (
        int.from_bytes(last.payload[:4], "big"),
        int.from_bytes(last.payload[4:8], "big"),
        last.payload[8:].decode(),
    )


# -- header blocks (RFC 7541 section 6)

INDEXING, PLAIN, NEVER = (0x40, 6), (0x00, 4), (0x10, 4)


def indexed(index: int) -> bytes:
    return _integer(index, 7, 0x80)


def text(value: bytes, huffman: bool = False) -> bytes:
    if huffman:
        coded = bytes(_huffman.encode(value))
        return _integer(len(coded), 7, 0x80) + coded
    return _integer(len(value), 7, 0) + value


def literal(
    name: bytes | int,
    value: bytes,
    how: tuple[int, int] = PLAIN,
    *,
    huffman: bool = False,
    huffman_name: bool = False,
) -> bytes:
    """A literal whose name is spelled out, or that of the entry with this index."""
    high, bits = how
    if isinstance(name, int):
        return _integer(name, bits, high) + text(value, huffman)
    return bytes((high,)) + text(name, huffman_name) + text(value, huffman)


def table_size(size: int) -> bytes:
    return _integer(size, 5, 0x20)


def _integer(value: int, bits: int, high: int) -> bytes:
    out = encode_integer(value, bits)
    out[0] |= high
    return bytes(out)


# GET http://a/ and what ARCA adds to it.
GET: Final = indexed(2) + indexed(6) + indexed(4) + literal(1, b"a")
POST: Final = indexed(3) + indexed(6) + indexed(4) + literal(1, b"a")
TRACEPARENT: Final = b"00-" + TRACE_ID + b"-" + SPAN_ID + b"-00"
GIVEN_BACK: Final = literal(b"x-request-id", REQUEST_ID)
ADDED: Final = literal(b"traceparent", TRACEPARENT) + GIVEN_BACK
OK: Final = indexed(8)
# A request and a response that pass as they came: with ids, and a trace that is not recorded.
UNSAMPLED: Final = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-00"
QUIET_GET: Final = GET + literal(b"x-request-id", b"mine") + literal(b"traceparent", UNSAMPLED)
QUIET_POST: Final = POST + literal(b"x-request-id", b"mine") + literal(b"traceparent", UNSAMPLED)
QUIET_OK: Final = OK + literal(b"x-request-id", b"mine")
GRPC: Final = literal(b"content-type", b"application/grpc")
OPEN: Final = PREFACE + settings_frame()


def conversation(*, sample: float = 0.0, strict: bool = False) -> Conversation:
    return Conversation(Http2(fixed_ids(sample), strict))


def opened(*, sample: float = 0.0, strict: bool = False) -> Conversation:
    """A conversation in which both sides have sent their first SETTINGS."""
    talk = conversation(sample=sample, strict=strict)
    talk.downstream(OPEN).to_upstream(OPEN)
    return talk.upstream(settings_frame()).to_downstream(settings_frame())


def asked(stream: int = 1, block: bytes = QUIET_GET, flags: int = END_HEADERS | END_STREAM) -> Conversation:
    """``opened``, and this request, which passes as it is, has gone to upstream."""
    request = headers(stream, block, flags)
    return opened().downstream(request).to_upstream(request)


def only(exchanges: list[Exchange]) -> Exchange:
    """The one exchange that ended, taken out."""
    assert len(exchanges) == 1, exchanges
    return exchanges.pop()


# -- both ends' tables


@dataclass
class Reader:
    """Reads one direction's frames as its receiver does: header lists in order, and the table they leave."""

    decoder: Decoder = field(default_factory=lambda: Decoder(max_header_list_size=1 << 30))
    lists: list[tuple[int, list[Field]]] = field(default_factory=list)

    def read(self, said: bytes) -> None:
        self.decoder.max_allowed_table_size = 1 << 16
        block = b""
        for found in frames(said):
            if found.kind not in (HEADERS, CONTINUATION, PUSH_PROMISE):
                continue
            payload = found.payload
            if found.kind != CONTINUATION:
                if found.flags & PADDED:
                    payload = payload[1 : len(payload) - payload[0]]
                if found.kind == PUSH_PROMISE:
                    payload = payload[4:]
                elif found.flags & HAS_PRIORITY:
                    payload = payload[5:]
            block += payload
            if found.flags & END_HEADERS:
                self.lists.append((found.stream, listed(self.decoder.decode(block, raw=True))))
                block = b""

    @property
    def table(self) -> list[Field]:
        return [(bytes(name), bytes(value)) for name, value in self.decoder.header_table.dynamic_entries]


def listed(found: Iterable[tuple[bytes | str, bytes | str]]) -> list[Field]:
    return [(octets(name), octets(value)) for name, value in found]


def octets(value: bytes | str) -> bytes:
    return value.encode("latin-1") if isinstance(value, str) else bytes(value)


class TwoTables:
    """Sends requests through an engine, and follows the tables of the sender and of the receiver."""

    def __init__(self, sample: float = 1.0) -> None:
        self.caller = Caller(Http2(fixed_ids(sample)))
        self.sender = Reader()
        self.receiver = Reader()
        self.stream = -1
        self.swallowed = False  # set where a block did not go on
        self.caller.downstream(OPEN)
        self.caller.upstream(settings_frame())
        self.caller.to_upstream.clear()
        self.caller.to_downstream.clear()

    def request(self, block: bytes, flags: int = END_HEADERS | END_STREAM) -> list[Field]:
        """A new request with this block; answers the list that upstream reads, none where it is refused."""
        self.stream += 2
        return self.say(headers(self.stream, block, flags))

    def say(self, said: bytes) -> list[Field]:
        before = len(self.receiver.lists)
        self.sender.read(said)
        self.caller.downstream(said)
        assert self.caller.refusal is None
        assert not self.caller.handed_over
        self.receiver.read(bytes(self.caller.to_upstream))
        self.caller.to_upstream.clear()
        if len(self.receiver.lists) == before:
            self.swallowed = True
            return []
        self.check()
        return self.receiver.lists[-1][1]

    def check(self) -> None:
        """What the sender has, the receiver has in the same order, but for what did not go on."""
        assert self.swallowed or all(is_trace(entry[0]) for entry in left_out(self.sender, self.receiver))
        ours, told = self.sender.lists, self.receiver.lists
        assert without_trace(told[-1][1]) == without_trace(ours[-1][1])

    def differing(self) -> list[Field]:
        """What the sender has, and the receiver has not or has otherwise."""
        theirs = self.receiver.table
        return [entry for entry in self.sender.table if entry not in theirs]


def left_out(sender: Reader, receiver: Reader) -> list[Field]:
    """The sender's entries that the receiver, whose table has the others in their order, has not.

    Behind them the receiver may have older ones, to which no index refers any more.
    """
    theirs, at, missing = receiver.table, 0, []
    for entry in sender.table:
        if at < len(theirs) and _counterparts(entry, theirs[at]):
            at += 1
        else:
            missing.append(entry)
    return missing


def _counterparts(ours: Field, theirs: Field) -> bool:
    return ours == theirs or (ours[0] == theirs[0] and is_trace(ours[0]) and len(ours[1]) == len(theirs[1]))


def is_trace(name: bytes) -> bool:
    return name in (b"traceparent", b"tracestate", b"b3") or name.startswith(b"x-b3-")


def without_trace(fields: list[Field]) -> list[Field]:
    return [pair for pair in fields if not is_trace(pair[0]) and pair[0] != b"x-request-id"]


# -- h2 at both ends


class Peers:
    """``h2`` as client and as server, with an engine between them (or nothing, for comparison)."""

    def __init__(self, codec: Http2 | None) -> None:
        self.client = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self.server = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.caller = None if codec is None else Caller(codec)
        self.client_events: list[Event] = []
        self.server_events: list[Event] = []

    def open(self) -> None:
        self.client.initiate_connection()
        self.server.initiate_connection()
        self.pump()

    def pump(self) -> None:
        while True:
            request, response = self.client.data_to_send(), self.server.data_to_send()
            if not request and not response:
                return
            if request:
                self.to_server(request)
            if response:
                self.to_client(response)

    def to_server(self, said: bytes) -> None:
        if self.caller is None:
            self.server_events += self.server.receive_data(said)
        else:
            self.caller.downstream(said)
            self._deliver()

    def to_client(self, said: bytes) -> None:
        if self.caller is None:
            self.client_events += self.client.receive_data(said)
        else:
            self.caller.upstream(said)
            self._deliver()

    def _deliver(self) -> None:
        assert self.caller is not None
        request, response = bytes(self.caller.to_upstream), bytes(self.caller.to_downstream)
        self.caller.to_upstream.clear()
        self.caller.to_downstream.clear()
        if request:
            self.server_events += self.server.receive_data(request)
        if response:
            self.client_events += self.client.receive_data(response)

"""Thrift messages for tests, as Apache's library writes them, and what they are made of.

A body is a list of fields; a value is written by its shape: a type of its own, ``("list", shape)``,
``("set", shape)``, ``("map", shape, shape)`` or ``("struct", [(field id, shape), ...])``.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from thrift.protocol.TBinaryProtocol import TBinaryProtocol  # type: ignore[import-untyped]
from thrift.protocol.TCompactProtocol import TCompactProtocol  # type: ignore[import-untyped]
from thrift.protocol.THeaderProtocol import THeaderProtocol  # type: ignore[import-untyped]
from thrift.Thrift import TMessageType, TType  # type: ignore[import-untyped]
from thrift.transport.THeaderTransport import THeaderClientType, THeaderSubprotocolID, THeaderTransformID  # type: ignore[import-untyped]
from thrift.transport.TTransport import TFramedTransport, TMemoryBuffer  # type: ignore[import-untyped]

CALL: Final = int(TMessageType.CALL)
REPLY: Final = int(TMessageType.REPLY)
EXCEPTION: Final = int(TMessageType.EXCEPTION)
ONEWAY: Final = int(TMessageType.ONEWAY)

ENCODINGS: Final = ("binary", "binary-old", "compact")
# The header transport has a number for the binary protocol and for the compact one.
WAYS: Final = [
    (t, e) for t in ("framed", "buffered", "header") for e in ENCODINGS if (t, e) != ("header", "binary-old")
]

Shape = Any  # recursive: a name below, or a tuple
TYPES: Final = {
    "bool": TType.BOOL,
    "byte": TType.BYTE,
    "i16": TType.I16,
    "i32": TType.I32,
    "i64": TType.I64,
    "double": TType.DOUBLE,
    "string": TType.STRING,
    "uuid": TType.UUID,
    "list": TType.LIST,
    "set": TType.SET,
    "map": TType.MAP,
    "struct": TType.STRUCT,
}


def type_of(shape: Shape) -> int:
    return int(TYPES[shape if isinstance(shape, str) else shape[0]])


@dataclass
class Body:
    """The fields of a struct, whose values are drawn by ``seed`` unless ``values`` has them by field id."""

    fields: list[tuple[int, Shape]] = field(default_factory=list)
    values: dict[int, Any] = field(default_factory=dict)
    seed: int = 0


EVERYTHING: Final = Body(
    [
        (1, "bool"),
        (2, "byte"),
        (3, "i16"),
        (20, "i32"),
        (21, "i64"),
        (22, "double"),
        (23, "string"),
        (24, "uuid"),
        (25, ("list", "bool")),
        (26, ("list", "i64")),
        (27, ("set", "string")),
        (28, ("map", "string", ("list", ("struct", [(7, "bool"), (8, "i32"), (300, "string")])))),
        (29, ("map", "i32", "double")),
        (30, ("struct", [(1, ("struct", [(1, ("map", "byte", "uuid"))]))])),
        (31, ("list", ("map", "bool", "i16"))),
    ]
)
VOID: Final = Body()
VALUE: Final = Body([(0, "i32")])


def declared(field_id: int, *, code: int = 404, text: str = "no such key") -> Body:
    """The result of a call that raised the exception declared at ``field_id``."""
    return Body([(field_id, ("struct", [(1, "i32"), (2, "string")]))], {field_id: {1: code, 2: text}})


def application(kind: int, text: str = "boom") -> Body:
    """A TApplicationException."""
    return Body([(1, "string"), (2, "i32")], {1: text, 2: kind})


def write_struct(
    protocol: Any, fields: list[tuple[int, Shape]], values: dict[int, Any], random: Random
) -> None:
    protocol.writeStructBegin("s")
    for field_id, shape in fields:
        protocol.writeFieldBegin("f", type_of(shape), field_id)
        write_value(protocol, shape, values.get(field_id), random)
        protocol.writeFieldEnd()
    protocol.writeFieldStop()
    protocol.writeStructEnd()


def write_value(protocol: Any, shape: Shape, value: Any, random: Random) -> None:
    match shape:
        case "bool":
            protocol.writeBool(random.random() < 0.5)
        case "byte":
            protocol.writeByte(random.randrange(-128, 128))
        case "i16":
            protocol.writeI16(random.randrange(-(1 << 15), 1 << 15))
        case "i32":
            protocol.writeI32(random.randrange(-(1 << 31), 1 << 31) if value is None else value)
        case "i64":
            protocol.writeI64(random.randrange(-(1 << 63), 1 << 63))
        case "double":
            protocol.writeDouble(random.random())
        case "string":
            protocol.writeString("x" * random.choice((0, 1, 3, 200)) if value is None else value)
        case "uuid":
            protocol.writeUuid(uuid.UUID(int=random.getrandbits(128)))
        case ("struct", fields):
            write_struct(protocol, fields, value or {}, random)
        case ("list", of):
            size = random.choice((0, 1, 3, 20))
            protocol.writeListBegin(type_of(of), size)
            for _ in range(size):
                write_value(protocol, of, None, random)
            protocol.writeListEnd()
        case ("set", of):
            size = random.choice((0, 2))
            protocol.writeSetBegin(type_of(of), size)
            for _ in range(size):
                write_value(protocol, of, None, random)
            protocol.writeSetEnd()
        case ("map", key, of):
            size = random.choice((0, 1, 4))
            protocol.writeMapBegin(type_of(key), type_of(of), size)
            for _ in range(size):
                write_value(protocol, key, None, random)
                write_value(protocol, of, None, random)
            protocol.writeMapEnd()
        case _:
            raise ValueError(shape)


def message(
    transport: str,
    encoding: str,
    name: str,
    kind: int = CALL,
    sequence: int = 1,
    body: Body = EVERYTHING,
    *,
    infos: dict[bytes, bytes] | None = None,
    zlib: bool = False,
) -> bytes:
    """The bytes of one message."""
    memory = TMemoryBuffer()
    protocol: Any
    if transport == "header":
        number = THeaderSubprotocolID.COMPACT if encoding == "compact" else THeaderSubprotocolID.BINARY
        protocol = THeaderProtocol(memory, [THeaderClientType.HEADERS], default_protocol=number)
        if zlib:
            protocol.add_transform(THeaderTransformID.ZLIB)
        for key, value in (infos or {}).items():
            protocol.set_header(key, value)
        # The library's own protocols would take the message from here in C, and leave out its head.
        through = protocol.trans
    else:
        through = TFramedTransport(memory) if transport == "framed" else memory
        protocol = (
            TCompactProtocol(through)
            if encoding == "compact"
            else TBinaryProtocol(through, strictWrite=encoding == "binary")
        )
    protocol.writeMessageBegin(name, kind, sequence)
    inner = getattr(protocol, "_protocol", protocol)
    write_struct(inner, body.fields, body.values, Random(body.seed))
    protocol.writeMessageEnd()
    through.flush()
    return bytes(memory.getvalue())


def header_infos(frame: bytes) -> dict[bytes, bytes]:
    """The info headers of a frame of the header transport, as Apache's library reads them."""
    protocol = THeaderProtocol(TMemoryBuffer(frame), [THeaderClientType.HEADERS])
    protocol.readMessageBegin()
    return dict(protocol.get_headers())


def header_message(frame: bytes) -> tuple[str, int, int, bytes]:
    """Name, type and sequence id of such a frame's message, and its body, as Apache's library reads them."""
    memory = TMemoryBuffer(frame)
    protocol = THeaderProtocol(memory, [THeaderClientType.HEADERS])
    name, kind, sequence = protocol.readMessageBegin()
    body = protocol.trans._read_buffer.read()
    assert not memory._buffer.read(), "more than one frame"
    return name, kind, sequence, body

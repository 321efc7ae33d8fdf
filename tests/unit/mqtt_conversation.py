"""MQTT for tests: control packets written octet by octet, and conversations that have begun.

What is written here is the form on the wire. Properties that an engine wrote are read again by the library
``paho-mqtt``, which knows nothing of ARCA's own reader.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from protocols.mqtt import Mqtt
from tests.unit.conversation import SPAN_ID, TRACE_ID, Conversation, fixed_ids

if TYPE_CHECKING:
    from protocols.trace_context import Ids

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = range(1, 8)
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK = range(8, 12)
PINGREQ, PINGRESP, DISCONNECT, AUTH = range(12, 16)
DUPLICATE, RETAIN = 8, 1

TOPIC_ALIAS, SERVER_KEEP_ALIVE, ASSIGNED_CLIENT_ID, REASON_STRING, MAXIMUM_PACKET_SIZE = 35, 19, 18, 31, 39
NEW_TRACEPARENT: Final = b"00-" + TRACE_ID + b"-" + SPAN_ID + b"-00"
ADDED: Final = b"\x26\x00\x0btraceparent\x00\x37" + NEW_TRACEPARENT
CAME: Final = b"00-" + b"4" * 32 + b"-" + b"7" * 16 + b"-01"
CONTINUED: Final = b"00-" + b"4" * 32 + b"-" + SPAN_ID + b"-01"


def u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def text(value: bytes) -> bytes:
    return u16(len(value)) + value


def variable(number: int) -> bytes:
    """A variable byte integer, in as few bytes as it takes."""
    written = bytearray()
    while number >= 128:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


def packet(kind: int, body: bytes = b"", flags: int | None = None) -> bytes:
    if flags is None:
        flags = 2 if kind in {PUBREL, SUBSCRIBE, UNSUBSCRIBE} else 0
    return bytes((kind << 4 | flags,)) + variable(len(body)) + body


def properties(version: int, held: bytes) -> bytes:
    return variable(len(held)) + held if version == 5 else b""


def user(name: bytes, value: bytes) -> bytes:
    return b"\x26" + text(name) + text(value)


def connect(
    version: int = 5,
    *,
    client_id: bytes = b"me",
    keep_alive: int = 60,
    clean: bool = True,
    held: bytes = b"",
    will: tuple[bytes, bytes] | None = None,
    level: int | None = None,
) -> bytes:
    flags = (2 if clean else 0) | (4 if will else 0)
    body = text(b"MQIsdp" if version == 3 else b"MQTT") + bytes((level or version, flags)) + u16(keep_alive)
    body += properties(version, held) + text(client_id)
    if will is not None:
        body += properties(version, b"") + text(will[0]) + text(will[1])
    return packet(CONNECT, body)


def connack(version: int = 5, reason: int = 0, *, present: bool = False, held: bytes = b"") -> bytes:
    return packet(CONNACK, bytes((present, reason)) + properties(version, held))


def publish(
    version: int = 5,
    topic: bytes = b"a/b",
    payload: bytes = b"21.5",
    *,
    qos: int = 0,
    packet_id: int = 1,
    flags: int = 0,
    held: bytes = b"",
) -> bytes:
    body = text(topic) + (u16(packet_id) if qos else b"") + properties(version, held) + payload
    return packet(PUBLISH, body, qos << 1 | flags)


def answer(kind: int, packet_id: int, tail: bytes = b"") -> bytes:
    """PUBACK, PUBREC, PUBREL and PUBCOMP; ``tail`` is what version 5 may say behind."""
    return packet(kind, u16(packet_id) + tail)


def subscribe(version: int, packet_id: int, *filters: bytes, flags: int = 2) -> bytes:
    chosen = b"".join(text(one) + b"\x01" for one in filters)
    return packet(SUBSCRIBE, u16(packet_id) + properties(version, b"") + chosen, flags)


def suback(version: int, packet_id: int, *codes: int) -> bytes:
    return packet(SUBACK, u16(packet_id) + properties(version, b"") + bytes(codes))


def unsubscribe(version: int, packet_id: int, *filters: bytes) -> bytes:
    return packet(UNSUBSCRIBE, u16(packet_id) + properties(version, b"") + b"".join(map(text, filters)))


def unsuback(version: int, packet_id: int, *codes: int) -> bytes:
    said = properties(version, b"") + bytes(codes) if version == 5 else b""
    return packet(UNSUBACK, u16(packet_id) + said)


def established(
    version: int = 5,
    *,
    ids: Ids | None = None,
    strict: bool = False,
    observe: bool = False,
    connecting: bytes | None = None,
    accepting: bytes | None = None,
) -> Conversation:
    """A conversation whose session is established; both packets and their exchange were mentioned."""
    asked = connecting or connect(version)
    accepted = accepting or connack(version)
    conversation = Conversation(Mqtt(ids or fixed_ids(), strict, observe))
    conversation.downstream(asked).to_upstream(asked).upstream(accepted).to_downstream(accepted)
    return conversation.exchange(method=b"CONNECT", failed=False)


def read_publish(data: bytes) -> tuple[bytes, int, list[tuple[str, str]], bytes]:
    """Topic, packet identifier (0 without one), user properties and payload of one version 5 PUBLISH."""
    at, length, shift = 1, 0, 0
    while True:
        length |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 128:
            break
    assert at + length == len(data), "not one packet"
    end = at + 2 + int.from_bytes(data[at : at + 2], "big")
    topic = data[at + 2 : end]
    packet_id = 0
    if data[0] & 6:
        packet_id = int.from_bytes(data[end : end + 2], "big")
        end += 2
    held = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    _, used = held.unpack(data[end:])  # type: ignore[no-untyped-call]
    return topic, packet_id, list(getattr(held, "UserProperty", [])), data[end + used :]

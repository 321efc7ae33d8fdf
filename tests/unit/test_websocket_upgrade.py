"""HTTP/1's upgrade to a WebSocket that carries MQTT: which one is read, and that its first bytes are.

Frames are made by the library websockets; the engine of MQTT inside is the real one.
"""

from __future__ import annotations

import pytest
from websockets.frames import Frame, Opcode

from protocols.codec import Opaque
from protocols.exchange import Protocol
from protocols.http1 import Http1
from protocols.websocket import WebSocket
from tests.unit.conversation import ADDED, GIVEN_BACK, Caller, fixed_ids

ASKING = (
    b"GET /mqtt HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: mqtt, mqttv3.1\r\n"
)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
)
CONNECT = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04door"
CONNACK = b"\x20\x02\x00\x00"


def binary(payload: bytes, *, masked: bool) -> bytes:
    return Frame(Opcode.BINARY, payload).serialize(mask=masked)


def granted(more: bytes, *, strict: bool = False) -> Caller:
    """The upgrade with ``more`` lines in its 101."""
    caller = Caller(Http1(fixed_ids(), strict))
    caller.downstream(ASKING + b"\r\n")
    assert caller.to_upstream == ASKING + ADDED + b"\r\n"
    caller.upstream(SWITCHING + more + b"\r\n")
    assert caller.to_downstream == SWITCHING + more + GIVEN_BACK + b"\r\n"
    assert caller.fallback is None
    caller.to_upstream.clear()
    caller.to_downstream.clear()
    return caller


@pytest.mark.parametrize(
    "lines",
    [
        b"Sec-WebSocket-Protocol: mqtt\r\n",
        b"sec-websocket-protocol:mqttv3.1 \r\n",
        b"Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Extensions: \r\n",
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_mqtt_in_a_websocket_is_read_and_passes_untouched(lines: bytes, strict: bool) -> None:
    caller = granted(lines, strict=strict)
    assert isinstance(caller.codec, WebSocket)
    assert caller.codec.protocol_name() == "mqtt"
    request, answer = binary(CONNECT, masked=True), binary(CONNACK, masked=False)
    caller.downstream(request)
    assert caller.codec.in_flight == 1
    caller.upstream(answer)
    assert (bytes(caller.to_upstream), bytes(caller.to_downstream)) == (request, answer)
    http, mqtt = caller.exchanges
    assert (http.protocol, http.status) == (Protocol.HTTP_1_1, 101)
    assert (mqtt.protocol, mqtt.method, mqtt.code) == (Protocol.MQTT, b"CONNECT", "Connection Accepted")
    assert mqtt.mqtt is not None
    assert mqtt.mqtt.client_id == b"door"
    assert caller.codec.silent_after == caller.now + 90


def test_a_publish_of_version_5_in_a_websocket_is_observed_and_not_changed() -> None:
    caller = granted(b"Sec-WebSocket-Protocol: mqtt\r\n")
    caller.downstream(binary(b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x04door", masked=True))
    caller.upstream(binary(b"\x20\x03\x00\x00\x00", masked=False))
    caller.to_upstream.clear()
    publish = binary(b"\x30\x0b\x00\x04door\x00AJAR", masked=True)
    caller.downstream(publish)
    assert caller.to_upstream == publish
    assert [exchange.method for exchange in caller.exchanges[1:]] == [b"CONNECT", b"PUBLISH"]
    assert caller.exchanges[2].target == b"door"


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"Sec-WebSocket-Protocol: chat\r\n",
        b"Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
        b"Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: mqtt\r\n",
        b"X-Sec-WebSocket-Protocol: mqtt\r\n",
    ],
)
def test_any_other_websocket_is_opaque(lines: bytes) -> None:
    caller = granted(lines)
    assert isinstance(caller.codec, Opaque)
    assert caller.codec.protocol_name() == "websocket"


def test_bytes_that_waited_for_the_101_and_those_behind_it_are_read() -> None:
    caller = Caller(Http1(fixed_ids()))
    request, answer = binary(CONNECT, masked=True), binary(CONNACK, masked=False)
    caller.downstream(ASKING + b"\r\n" + request)
    assert caller.to_upstream == ASKING + ADDED + b"\r\n"
    granting = SWITCHING + b"Sec-WebSocket-Protocol: mqtt\r\n"
    caller.upstream(granting + b"\r\n" + answer)
    assert caller.to_upstream == ASKING + ADDED + b"\r\n" + request
    assert caller.to_downstream == granting + GIVEN_BACK + b"\r\n" + answer
    assert [exchange.method for exchange in caller.exchanges] == [b"GET", b"CONNECT"]


def test_what_is_not_mqtt_in_the_frames_is_carried_on_as_a_websocket() -> None:
    caller = granted(b"Sec-WebSocket-Protocol: mqtt\r\n")
    nonsense = binary(b"\x00\x00nonsense", masked=True)
    caller.downstream(nonsense)
    caller.downstream(b"more")
    assert caller.to_upstream == nonsense + b"more"
    assert caller.fallback == "not_mqtt"
    assert isinstance(caller.codec, Opaque)
    assert caller.codec.protocol_name() == "websocket"

"""MQTT between two compiled ends (mqtt_ends.c): publishers that saturate what is between, and a sink that
acknowledges. The sessions of the memory row are held here, for they say nothing.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from tests.bench.compiled import OPAQUE, serving, told_by
from tests.bench.memory import worker
from tests.bench.peers import Peer, standing
from tests.bench.processes import NotMeasured, memory_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.bench.load import Bench
    from tests.bench.peers import Require

CONNECTIONS = 16
SESSIONS = 2_000
KEEP_ALIVE_SECONDS = 60

Version = Literal[4, 5]  # the protocol level: MQTT 3.1.1, MQTT 5
Qos = Literal[0, 1]

_SETTLE_SECONDS = 1.0

# MQTT 3.1.1, sections 3.8, 3.9, 3.12 and 3.13
_SUBSCRIBE = b"\x82\x13" + b"\x00\x01" + b"\x00\x0ebench/sensor/+" + b"\x00"
_SUBACK = b"\x90\x03\x00\x01\x00"
_PINGREQ, _PINGRESP = b"\xc0\x00", b"\xd0\x00"
_DISCONNECT = b"\xe0\x00"
_SEEN_BY_SINK = re.compile(rb"1 (?P<properties>[0-9a-f]*)\Z")
_TRACEPARENT = b"\x26\x00\x0btraceparent\x00\x37"  # a user property, its name, and the size of its value


@dataclass(frozen=True, slots=True)
class PublishReport:
    """Packets that arrived; with QoS 1 how long each took to be acknowledged, too."""

    published: int
    seconds: float
    p50_ms: float | None
    p99_ms: float | None

    @property
    def requests(self) -> int:
        return self.published

    @property
    def requests_per_second(self) -> float:
        return self.published / self.seconds

    @property
    def faults(self) -> str:
        return ""  # what does not arrive ends the client


@dataclass(frozen=True, slots=True)
class SessionFigures:
    sessions: int
    kib_per_session: float


def mqtt_server(directory: Path, core: int) -> AbstractContextManager[int]:
    return serving(directory, "mqtt", core)


def run_mqtt(
    directory: Path, port: int, version: Version, qos: Qos, opaque: bool, seconds: float, core: int
) -> PublishReport:
    arguments = [
        "publish",
        str(port),
        str(version),
        str(qos),
        str(seconds),
        str(CONNECTIONS),
        str(int(opaque)),
    ]
    return told_by(directory, "mqtt", arguments, seconds, core, PublishReport)


def requires_arrival(version: Version, opaque: bool) -> Require:
    """What raises NotMeasured unless a PUBLISH arrives, in version 5 with a traceparent where one is due."""
    return partial(_require_arrival, version, opaque)


def _require_arrival(version: Version, opaque: bool, port: int, ids_expected: bool) -> None:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall((OPAQUE if opaque else b"") + _connect(version, "check"))
            _expect(connection, _connack(version))
            connection.sendall(publish(version, b"seen", b"?"))
            seen = _SEEN_BY_SINK.search(_packet(connection))
            connection.sendall(_DISCONNECT)
    except OSError as failure:
        raise NotMeasured(f"a PUBLISH failed: {failure}") from failure
    if seen is None:
        raise NotMeasured("the sink's answer does not say what it has seen")
    traced = _TRACEPARENT in bytes.fromhex(seen["properties"].decode())
    if traced != (version == 5 and ids_expected and not opaque):
        raise NotMeasured(f"a PUBLISH arrives {'with' if traced else 'without'} a traceparent")


def measure_sessions(bench: Bench, subject: Peer) -> SessionFigures:
    with (
        mqtt_server(bench.directory, bench.load_core) as port,
        standing(
            subject, bench.directory, port, bench.proxy_core, requires_arrival(4, opaque=False)
        ) as proxy,
    ):
        pid = worker(proxy)
        time.sleep(_SETTLE_SECONDS)
        before = memory_of(pid).resident
        with contextlib.ExitStack() as held:
            sessions = [held.enter_context(_session(proxy.port, number)) for number in range(SESSIONS)]
            time.sleep(_SETTLE_SECONDS)
            grown = memory_of(pid).resident - before
            for session in sessions:  # that each still answers is what shows that it was held
                session.sendall(_PINGREQ)
                _expect(session, _PINGRESP)
        proxy.require_done(3 * SESSIONS)  # CONNECT, SUBSCRIBE, PINGREQ
    return SessionFigures(SESSIONS, grown / SESSIONS)


@contextlib.contextmanager
def _session(port: int, number: int) -> Iterator[socket.socket]:
    """MQTT 3.1.1, a client with one subscription."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(_connect(4, f"bench-{number}"))
        _expect(connection, _connack(4))
        connection.sendall(_SUBSCRIBE)
        _expect(connection, _SUBACK)
        yield connection


def publish(version: Version, topic: bytes, payload: bytes) -> bytes:
    """QoS 0, without properties. MQTT 5.0 section 3.3."""
    body = struct.pack(">H", len(topic)) + topic + (b"\0" if version == 5 else b"") + payload
    return bytes([0x30, len(body)]) + body


def _connect(version: Version, client_id: str) -> bytes:
    """Clean start. MQTT 5.0 section 3.1."""
    body = b"\x00\x04MQTT" + struct.pack(">BBH", version, 2, KEEP_ALIVE_SECONDS)
    body += (b"\0" if version == 5 else b"") + struct.pack(">H", len(client_id)) + client_id.encode()
    return bytes([0x10, len(body)]) + body


def _connack(version: Version) -> bytes:
    return b"\x20\x03\x00\x00\x00" if version == 5 else b"\x20\x02\x00\x00"


def _expect(connection: socket.socket, expected: bytes) -> None:
    try:
        received = b""
        while len(received) < len(expected) and (more := connection.recv(len(expected) - len(received))):
            received += more
    except OSError as failure:
        raise NotMeasured(f"a session that should have been held failed: {failure}") from failure
    if received != expected:
        raise NotMeasured(f"{received!r} came instead of {expected!r}")


def _packet(connection: socket.socket) -> bytes:
    """What follows the fixed header of one packet. MQTT 5.0 section 2.1.4."""
    connection.recv(1)
    size = shift = 0
    while digit := connection.recv(1):
        size |= (digit[0] & 0x7F) << shift
        shift += 7
        if not digit[0] & 0x80:
            break
    return connection.recv(size, socket.MSG_WAITALL)

"""MQTT brokers and clients of several makes, and what they say; and control packets by hand.

    with Mosquitto(directory) as broker, Session(broker.port, version=5) as client:
        client.subscribes("a/#", qos=1)
        client.publishes("a/b", b"hello", qos=1)
        until(lambda: len(client.messages) == 1)

A ``Session`` is a client of paho's, with a thread. ``Packet`` and its friends put packets together and take
them apart. Run as a program with a port, this file is an amqtt broker there, which serves until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.ports import free_port
from tests.system.arca import Peer, dialed
from tests.system.processes import PATIENCE, end, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.system.namespaces import Namespace

V31, V311, V5 = 3, 4, 5
VERSIONS = (V31, V311, V5)

# Where Debian puts mosquitto's own plugins.
DYNAMIC_SECURITY = next(iter(glob.glob("/usr/lib/*/mosquitto_dynamic_security.so")), None)


class Mosquitto:
    """A broker with a listener for every need; each attribute below is the port of one.

    ``guarded`` knows the user ann with the password secret, who may publish and read below open/ alone;
    ``strict`` lets anybody in, and subscribe below open/ alone (before 3.1.1 nobody can be told).
    """

    def __init__(
        self, directory: Path, namespace: Namespace | None = None, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self._directory = directory
        self._namespace = namespace
        self.host = host
        self.port, self.guarded, self.strict = port or free_port(), free_port(), free_port()
        self.websockets, self.ipv6 = free_port(), free_port()

    def __enter__(self) -> Self:
        passwords, rights = self._directory / "passwords", self._directory / "rights"
        subprocess.run(
            ["mosquitto_passwd", "-b", "-c", str(passwords), "ann", "secret"], check=True, capture_output=True
        )
        rights.write_text("user ann\ntopic readwrite open/#\n")
        settings = f"""
            user root
            per_listener_settings true
            persistence false
            log_dest none
            max_inflight_messages 0
            max_queued_messages 0
            listener {self.port} {self.host}
            allow_anonymous true
        """
        if self._namespace is None:
            settings += f"""
                listener {self.guarded} 127.0.0.1
                allow_anonymous false
                password_file {passwords}
                acl_file {rights}
                listener {self.websockets} 127.0.0.1
                protocol websockets
                allow_anonymous true
                listener {self.ipv6} ::1
                allow_anonymous true
                listener {self.strict} 127.0.0.1
                allow_anonymous true
                plugin {DYNAMIC_SECURITY}
                plugin_opt_config_file {self._dynamic_security()}
            """
        file = self._directory / "mosquitto.conf"
        file.write_text("".join(line.strip() + "\n" for line in settings.splitlines()))
        where = contextlib.nullcontext() if self._namespace is None else self._namespace.inside()
        with where:
            self.process = subprocess.Popen(
                ["mosquitto", "-c", str(file)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            until(self._listens)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)

    def _listens(self) -> bool:
        assert self.process.poll() is None, "mosquitto ended"
        where = contextlib.nullcontext() if self._namespace is None else self._namespace.inside()
        ports = (self.port,) if self._namespace else (self.port, self.guarded, self.strict, self.websockets)
        try:
            with where:
                for port in ports:
                    dialed(self.host, port).closes()
        except ConnectionRefusedError:
            return False
        return True

    def _dynamic_security(self) -> Path:
        """Everybody may do everything but subscribe; that, below open/ alone."""
        file = self._directory / "dynamic-security.json"
        role = {
            "rolename": "reader",
            "acls": [{"acltype": "subscribePattern", "topic": "open/#", "allow": True}],
        }
        file.write_text(
            json.dumps(
                {
                    "defaultACLAccess": {
                        "publishClientSend": True, "publishClientReceive": True, "subscribe": False,
                        "unsubscribe": True,
                    },
                    "clients": [],
                    "groups": [{"groupname": "all", "roles": [{"rolename": "reader"}], "clients": []}],
                    "roles": [role],
                    "anonymousGroup": "all",
                }
            )
        )  # fmt: skip
        return file


def missing() -> str | None:
    """Why mosquitto cannot be used here, or None."""
    for program in ("mosquitto", "mosquitto_pub", "mosquitto_sub", "mosquitto_passwd"):
        if shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin") is None:
            return f"needs the program {program} (packages mosquitto and mosquitto-clients)"
    if DYNAMIC_SECURITY is None:
        return "needs mosquitto_dynamic_security.so, which comes with mosquitto 2"
    return None


# ---- paho


class Delivered(NamedTuple):
    """A message as a subscriber got it; properties of version 5 as pairs."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    user: tuple[tuple[str, str], ...] = ()
    content_type: str | None = None


class Session:
    """One connection of paho's. What it was told is in its attributes, in the order that it was told.

    ``accepted`` is reason and session-present of each CONNACK; ``granted`` the reasons of each SUBACK;
    ``acknowledged`` the reason of each PUBACK or PUBCOMP; ``gone`` the reasons of its end.
    """

    def __init__(
        self,
        port: int,
        version: int = V311,
        client_id: str = "",
        *,
        host: str = "127.0.0.1",
        clean: bool = True,
        keep_alive: int = 60,
        user: tuple[str, str] | None = None,
        will: tuple[str, bytes, int, bool] | None = None,
        transport: str = "tcp",
        connect_properties: dict[str, object] | None = None,
        expects: bool = True,
    ) -> None:
        """``expects``: wait until it is connected."""
        self.accepted: list[tuple[int, bool]] = []
        self.messages: list[Delivered] = []
        self.granted: list[list[int]] = []
        self.dropped: list[list[int]] = []
        self.acknowledged: list[int] = []
        self.gone: list[int] = []
        self.name = ""
        self.since = time.time() - 0.05
        self.version = version
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if version == V5 else clean,
            protocol=MQTTProtocolVersion(version),
            transport="websockets" if transport == "websockets" else "tcp",
            reconnect_on_failure=False,
        )
        self.client.max_inflight_messages_set(65535)
        self._take_callbacks()
        if user is not None:
            self.client.username_pw_set(*user)
        if will is not None:
            self.client.will_set(*will)
        if version == V5:
            made = properties(PacketTypes.CONNECT, connect_properties or {})
            self.client.connect(host, port, keep_alive, clean_start=clean, properties=made)
        else:
            self.client.connect(host, port, keep_alive)
        self.client.loop_start()
        if expects:
            try:
                until(lambda: self.client.is_connected())
            except BaseException:
                self.__exit__()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def subscribes(self, topic: str, qos: int = 0) -> list[int]:
        """The reason codes of the SUBACK."""
        count = len(self.granted)
        if self.version == V5:
            self.client.subscribe(topic, options=SubscribeOptions(qos=qos))
        else:
            self.client.subscribe(topic, qos)
        until(lambda: len(self.granted) > count)
        return self.granted[count]

    def unsubscribes(self, topic: str) -> None:
        count = len(self.dropped)
        self.client.unsubscribe(topic)
        until(lambda: len(self.dropped) > count)

    def publishes(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        wait: bool = True,
        **named: object,
    ) -> None:
        """``named`` are properties of version 5, with paho's names."""
        made = properties(PacketTypes.PUBLISH, named) if named else None
        info = self.client.publish(topic, payload, qos, retain, properties=made)
        if wait:
            info.wait_for_publish(PATIENCE)
            assert info.is_published()

    def hears(self, count: int) -> list[Delivered]:
        """All messages so far, when there are so many."""
        until(lambda: len(self.messages) >= count)
        return list(self.messages)

    def disconnects(self, reason: str | None = None) -> None:
        """In order; ``reason`` is a name of version 5."""
        if reason is None:
            self.client.disconnect()
        else:
            self.client.disconnect(ReasonCode(PacketTypes.DISCONNECT, reason))
        until(lambda: bool(self.gone))
        self.client.loop_stop()

    def drops(self) -> None:
        """The connection, without a DISCONNECT: as a client does whose process ends."""
        connection = self.client.socket()
        assert connection is not None
        with socket.socket(fileno=os.dup(connection.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)
        until(lambda: bool(self.gone))

    def _take_callbacks(self) -> None:
        def on_socket_open(_client: paho.Client, _data: object, opened: socket.socket) -> None:
            with socket.socket(fileno=os.dup(opened.fileno())) as twin:
                host, port = twin.getsockname()[:2]
            self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

        def on_connect(
            _client: paho.Client, _data: object, flags: paho.ConnectFlags, reason: ReasonCode, _p: object
        ) -> None:
            self.accepted.append((reason.value, flags.session_present))

        def on_message(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
            found = message.properties
            self.messages.append(
                Delivered(
                    message.topic, bytes(message.payload), message.qos, message.retain,
                    tuple(map(tuple, getattr(found, "UserProperty", ()))),
                    getattr(found, "ContentType", None),
                )
            )  # fmt: skip

        def on_subscribe(
            _client: paho.Client, _data: object, _mid: int, reasons: list[ReasonCode], _p: object
        ) -> None:
            self.granted.append([each.value for each in reasons])

        def on_unsubscribe(
            _client: paho.Client, _data: object, _mid: int, reasons: list[ReasonCode], _p: object
        ) -> None:
            self.dropped.append([each.value for each in reasons])

        def on_publish(
            _client: paho.Client, _data: object, _mid: int, reason: ReasonCode, _p: object
        ) -> None:
            self.acknowledged.append(reason.value)

        def on_disconnect(
            _client: paho.Client, _data: object, _flags: object, reason: ReasonCode, _p: object
        ) -> None:
            self.gone.append(reason.value)

        self.client.on_socket_open = on_socket_open  # type: ignore[assignment]
        self.client.on_connect = on_connect
        self.client.on_message = on_message
        self.client.on_subscribe = on_subscribe
        self.client.on_unsubscribe = on_unsubscribe
        self.client.on_publish = on_publish
        self.client.on_disconnect = on_disconnect


def properties(kind: int, named: dict[str, object]) -> Properties:
    made: Properties = Properties(kind)  # type: ignore[no-untyped-call]
    for name, value in named.items():
        setattr(made, name, value)
    return made


def mosquitto_client(program: str, *arguments: str) -> str:
    """What mosquitto_pub or mosquitto_sub printed."""
    done = subprocess.run(
        [program, "-h", "127.0.0.1", *arguments],
        capture_output=True, check=True, stdin=subprocess.DEVNULL, timeout=PATIENCE,
    )  # fmt: skip
    return done.stdout.decode()


# ---- packets by hand

(
    CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK,
    PINGREQ, PINGRESP, DISCONNECT, AUTH,
) = range(1, 16)  # fmt: skip

# MQTT 5.0 section 2.2.2.2: what tests need of the properties.
TOPIC_ALIAS, MAXIMUM_PACKET_SIZE, USER_PROPERTY = 0x23, 0x27, 0x26


class Packet(NamedTuple):
    """A control packet: type and flags in one, and what follows the remaining length."""

    first: int
    body: bytes

    @property
    def kind(self) -> int:
        return self.first >> 4

    def __bytes__(self) -> bytes:
        return bytes((self.first,)) + length(len(self.body)) + self.body


def packet(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    if kind in (PUBREL, SUBSCRIBE, UNSUBSCRIBE):
        flags = 2
    return bytes(Packet(kind << 4 | flags, body))


def length(value: int) -> bytes:
    """Section 1.5.5: a variable byte integer."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2) + data


def connect(
    version: int = V311,
    client_id: str = "raw",
    keep_alive: int = 60,
    given: bytes = b"",
    flags: int = 2,
    payload: bytes = b"",
) -> bytes:
    """``given`` are properties of version 5, without their length; ``payload`` what follows the client id."""
    name = text("MQIsdp" if version == V31 else "MQTT")
    extra = length(len(given)) + given if version == V5 else b""
    head = name + bytes((version, flags)) + keep_alive.to_bytes(2)
    return packet(CONNECT, head + extra + text(client_id) + payload)


def connack(version: int = V311, reason: int = 0, present: int = 0, given: bytes = b"") -> bytes:
    extra = length(len(given)) + given if version == V5 else b""
    return packet(CONNACK, bytes((present, reason)) + extra)


def publish(
    topic: str,
    payload: bytes = b"",
    qos: int = 0,
    number: int = 0,
    given: bytes | None = None,
    flags: int = 0,
) -> bytes:
    """``given`` are properties of version 5, without their length; None before it."""
    body = text(topic) + (number.to_bytes(2) if qos else b"")
    if given is not None:
        body += length(len(given)) + given
    return packet(PUBLISH, body + payload, flags | qos << 1)


def numbered(kind: int, number: int, rest: bytes = b"") -> bytes:
    """An acknowledgement, or anything else that begins with a packet identifier."""
    return packet(kind, number.to_bytes(2) + rest)


def user_property(key: str, value: str) -> bytes:
    return bytes((USER_PROPERTY,)) + text(key) + text(value)


class Published(NamedTuple):
    """A PUBLISH of version 5 taken apart; ``others`` are the properties but for user ones, as they came."""

    first: int
    topic: str
    number: int
    user: list[tuple[str, str]]
    others: bytes
    payload: bytes


def packets(data: bytes | bytearray) -> Iterator[Packet]:
    """The packets that are here as a whole."""
    at = 0
    while (found := _packet(data, at)) is not None:
        yield found[0]
        at = found[1]


def _packet(data: bytes | bytearray, at: int) -> tuple[Packet, int] | None:
    size = shift = 0
    here = at + 1
    while here < len(data):
        size |= (data[here] & 127) << shift
        shift += 7
        here += 1
        if data[here - 1] < 128:
            return (
                (Packet(data[at], bytes(data[here : here + size])), here + size)
                if (here + size <= len(data))
                else None
            )
    return None


def published(found: Packet) -> Published:
    body, at = found.body, 0

    def string() -> str:
        nonlocal at
        size = int.from_bytes(body[at : at + 2])
        at += 2 + size
        return body[at - size : at].decode()

    topic, number = string(), 0
    if found.first & 6:
        number = int.from_bytes(body[at : at + 2])
        at += 2
    size = shift = 0
    while True:
        size |= (body[at] & 127) << shift
        shift += 7
        at += 1
        if body[at - 1] < 128:
            break
    end, user, others = at + size, [], b""
    while at < end:
        kind = body[at]
        at += 1
        if kind == USER_PROPERTY:
            user.append((string(), string()))
        else:  # a topic alias is the one other that tests send
            assert kind == TOPIC_ALIAS
            others += body[at - 1 : at + 2]
            at += 2
    return Published(found.first, topic, number, user, others, body[end:])


class MqttPeer(Peer):
    """An end that reads packets."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(peer.socket)
        self.since = peer.since
        self.heard = peer.heard
        self._at = 0  # of heard

    def hears_packet(self) -> Packet:
        while (found := _packet(self.heard, self._at)) is None:
            assert self._receive(1 << 18), f"{self.ended} behind {bytes(self.heard[-50:])!r}"
        self._at = found[1]
        return found[0]

    def hears_packets(self, *expected: bytes) -> None:
        """The next packets are these."""
        for each in expected:
            assert bytes(self.hears_packet()) == each

    def hears_publish(self) -> Published:
        """The next packet is a PUBLISH of version 5."""
        found = self.hears_packet()
        assert found.kind == PUBLISH
        return published(found)


# ---- amqtt


def main(port: str) -> None:
    from amqtt.broker import Broker  # type: ignore[import-untyped]

    async def serve() -> None:
        broker = Broker(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        await broker.start()
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main(sys.argv[1])

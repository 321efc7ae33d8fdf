"""MQTT clients as applications have them: a publisher and a subscriber, both of version 5, and some more.

Run as a program of its own, on the stage, with the broker's address and the name of these clients as its
arguments; needs nothing but paho-mqtt. From its start to the end of its standard input the publisher
publishes at QoS 0, 1 and 2 and the subscriber gets it. Each line that it reads, a JSON object, asks for one
session besides, on a connection of its own and beside all others; how that went is printed as one line, and
at last what the two saw.

MQTT has no place for a request id. What an exchange is known by here is its session and its packet type, and
for a message the trace id besides: the publisher does not know it, for ARCA makes it, but the subscriber is
given it as a user property of the message.
"""

from __future__ import annotations

import json
import secrets
import select
import sys
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE = 0.04  # seconds between two messages
LIMIT = 10.0  # seconds; nothing in the play takes so long
SILENCE = 4.0  # seconds; mosquitto looks for the silent every five only
USER = "demo"
PASSWORD = "not a secret"
WRONG_PASSWORD = "a guess"

ORDERS = "orders"  # may be published to, and nobody subscribes
PRICES = "prices"  # may not be published to


class NotAsPlannedError(Exception):
    """What a client saw amiss, in words."""


class Broker(NamedTuple):
    """Where it is, and what no client publishes to or subscribes to but those of this program."""

    address: str
    topics: str

    @property
    def bolts(self) -> str:
        return f"{self.topics}/bolts"

    @property
    def opened(self) -> str:
        """Its one message is retained."""
        return f"{self.topics}/opened"


class Session:
    """One paho client. Unless it has a thread of its own, it lives while it waits for something."""

    def __init__(
        self,
        broker: Broker,
        name: str,
        keep_alive: int = 60,
        password: str = PASSWORD,
        version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
    ) -> None:
        self.name = name
        self.answer: str | None = None  # of the broker to CONNECT
        self.acknowledged: dict[int, str] = {}  # packet id: what the broker said
        self.subscribed: list[str] = []
        self.pinged = 0  # answers to PINGREQ
        self.received: list[MQTTMessage] = []
        self.paho = Client(
            CallbackAPIVersion.VERSION2,
            client_id=name,
            protocol=version,
            reconnect_on_failure=False,
        )
        self.paho.username_pw_set(USER, password)
        self.paho.on_connect = lambda _client, _data, _flags, reason, _properties: self._answered(str(reason))
        self.paho.on_publish = lambda _client, _data, number, reason, _properties: self.acknowledged.update(
            {number: str(reason)}
        )
        self.paho.on_subscribe = lambda _client, _data, _number, reasons, _properties: self.subscribed.extend(
            map(str, reasons)
        )
        self.paho.on_message = lambda _client, _data, message: self.received.append(message)
        self.paho.on_log = self._logged
        host, _, port = broker.address.rpartition(":")
        self.paho.connect(host.strip("[]"), int(port), keepalive=keep_alive)

    def known_as(self, packet: str, trace_id: str | None = None) -> str:
        """What an exchange of this session is known by at either ARCA."""
        return " ".join(each for each in (self.name, packet, trace_id) if each)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Lives until something is so."""
        latest = time.monotonic() + LIMIT
        while not condition():
            if time.monotonic() > latest:
                raise NotAsPlannedError(f"{what}: not within {LIMIT:g} s")
            if (error := self.paho.loop(0.05)) and not condition():
                raise NotAsPlannedError(f"{what}: {error.name} before that")

    def opened(self) -> None:
        self.until(lambda: self.answer, "an answer to CONNECT")
        if self.answer != "Success":
            raise NotAsPlannedError(f"CONNECT was answered by {self.answer}")

    def publish(self, topic: str, qos: int, payload: str = "") -> str:
        """Publishes as one who is traced already; answers the trace id."""
        trace_id = secrets.token_hex(16)
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.UserProperty = [("traceparent", f"00-{trace_id}-{secrets.token_hex(8)}-01")]
        number = self.paho.publish(topic, payload, qos, properties=properties).mid
        self.until(lambda: number in self.acknowledged, "an answer to PUBLISH")
        return trace_id

    def close(self) -> None:
        self.paho.disconnect()
        self.until(lambda: not self.paho.is_connected() and self.paho.socket() is None, "the end")

    def _answered(self, reason: str) -> None:
        self.answer = reason

    def _logged(self, _client: object, _data: object, _level: int, text: str) -> None:
        """paho tells of no PINGRESP otherwise."""
        self.pinged += text.startswith("Received PINGRESP")


def trace_of(message: MQTTMessage) -> str:
    properties = dict(getattr(message.properties, "UserProperty", ()))
    return str(properties.get("traceparent", "--")).split("-")[1] or "none"


# ---- what can be asked for: each answers how it ended, what its fault is known by, and what else it caused

Course = tuple[str, list[str], list[str]]


def refused(broker: Broker, name: str) -> Course:
    """A wrong password."""
    session = Session(broker, name, password=WRONG_PASSWORD)
    session.until(lambda: session.answer, "an answer to CONNECT")
    session.until(lambda: session.paho.socket() is None, "the end")
    return str(session.answer), [session.known_as("CONNECT")], []


def forbidden(broker: Broker, name: str) -> Course:
    """May not publish where it publishes."""
    return _published(Session(broker, name), PRICES, qos=1)


def twice_acknowledged(broker: Broker, name: str) -> Course:
    return _published(Session(broker, name), ORDERS, qos=2)


def _published(session: Session, topic: str, qos: int) -> Course:
    session.opened()
    trace_id = session.publish(topic, qos, "left-handed hammer")
    session.close()
    (reason,) = session.acknowledged.values()
    around = [session.known_as("CONNECT"), session.known_as("DISCONNECT")]
    return reason, [session.known_as("PUBLISH", trace_id)], around


def retained(broker: Broker, name: str) -> Course:
    """Subscribes to what was published before it came."""
    session = Session(broker, name)
    session.opened()
    session.paho.subscribe(broker.opened, qos=1)
    session.until(lambda: session.received and session.subscribed, "a retained message")
    session.close()
    (message,) = session.received
    around = [session.known_as(packet) for packet in ("CONNECT", "SUBSCRIBE", "DISCONNECT")]
    return (
        "retained" if message.retain else "not retained",
        [session.known_as("PUBLISH", trace_of(message))],
        around,
    )


def idle(broker: Broker, name: str) -> Course:
    """Has nothing to say, and pings in time."""
    session = Session(broker, name, keep_alive=2)
    session.opened()
    session.until(lambda: session.pinged, "an answer to PINGREQ")
    session.close()
    around = [session.known_as("CONNECT"), session.known_as("DISCONNECT")]
    return "pinged", [session.known_as("PINGREQ")], around


def silent(broker: Broker, name: str) -> Course:
    """Promises a packet a second, and is then as good as dead, if the broker does not end it before.

    In version 5 some brokers say DISCONNECT to it then and some do not; before, none can.
    """
    session = Session(broker, name, keep_alive=1, version=MQTTProtocolVersion.MQTTv311)
    session.opened()
    connection = session.paho.socket()
    assert connection is not None
    select.select([connection], [], [], SILENCE)
    connection.close()
    return "silent", [session.known_as("PINGREQ")], [session.known_as("CONNECT")]


def cut(broker: Broker, name: str) -> Course:
    """Is gone without a word."""
    session = Session(broker, name)
    session.opened()
    connection = session.paho.socket()
    assert connection is not None
    connection.close()
    return "gone", [session.known_as("DISCONNECT")], [session.known_as("CONNECT")]


COURSES = {
    each.__name__: each for each in (refused, forbidden, twice_acknowledged, retained, idle, silent, cut)
}


# ---- the healthy two


class Steady(threading.Thread):
    """A message after another, at QoS 0, 1 and 2, from one session to the other, until ``stopped`` is set."""

    def __init__(self, broker: Broker, name: str) -> None:
        super().__init__()
        self.stopped = threading.Event()
        self.ids: list[str] = []
        self.around: list[str] = []
        self.failures: list[str] = []
        self._broker = broker
        self._name = name

    def run(self) -> None:
        try:
            self._converse()
        except (OSError, NotAsPlannedError) as error:
            self.failures.append(str(error))

    def _converse(self) -> None:
        subscriber = Session(self._broker, f"{self._name}-subscriber")
        subscriber.opened()
        subscriber.paho.subscribe(f"{self._broker.topics}/#", qos=2)
        subscriber.until(lambda: subscriber.subscribed, "an answer to SUBSCRIBE")
        publisher = Session(self._broker, f"{self._name}-publisher")
        publisher.opened()
        for each in (subscriber, publisher):
            each.paho.loop_start()
        sent = self._publish_all(publisher)
        latest = time.monotonic() + LIMIT
        while len(subscriber.received) < len(sent) and time.monotonic() < latest:
            time.sleep(PAUSE)
        for each in (publisher, subscriber):
            each.paho.disconnect()
            each.paho.loop_stop()
        self._note(publisher, subscriber, sent)

    def _publish_all(self, publisher: Session) -> list[tuple[str, int]]:
        """Payloads and qualities of what was published."""
        sent: list[tuple[str, int]] = []
        while not self.stopped.wait(PAUSE):
            first = not sent
            topic, qos = (self._broker.opened, 1) if first else (self._broker.bolts, len(sent) % 3)
            payload = f"{self._name} {len(sent)}"
            information = publisher.paho.publish(topic, payload, qos, retain=first)
            information.wait_for_publish(LIMIT)
            sent.append((payload, qos))
        return sent

    def _note(self, publisher: Session, subscriber: Session, sent: list[tuple[str, int]]) -> None:
        got = [(message.payload.decode(), message.qos) for message in subscriber.received]
        if sorted(got) != sorted(sent):
            self.failures.append(f"{len(sent)} messages were published, and {len(got)} others received")
        for message in subscriber.received:
            for each in (publisher, subscriber):
                self.ids.append(each.known_as("PUBLISH", trace_of(message)))
        self.failures += [each for each in publisher.acknowledged.values() if each not in _FINE]
        self.around += [publisher.known_as("CONNECT"), publisher.known_as("DISCONNECT")]
        self.around += [subscriber.known_as(each) for each in ("CONNECT", "SUBSCRIBE", "DISCONNECT")]


_FINE = ("Success", "No matching subscribers")


# ---- the program


def main(address: str, name: str) -> None:
    broker = Broker(address, f"stock/{name}")
    steady = Steady(broker, name)
    steady.start()
    attempts = []
    for line in sys.stdin:
        attempts.append(threading.Thread(target=_attempt, args=(broker, json.loads(line))))
        attempts[-1].start()
    steady.stopped.set()
    for each in (steady, *attempts):
        each.join()
    _say({"ids": steady.ids, "around": steady.around, "failures": steady.failures})


def _attempt(broker: Broker, asked: dict[str, str]) -> None:
    try:
        outcome, judged, around = COURSES[asked["course"]](broker, asked["name"])
    except (OSError, NotAsPlannedError) as error:
        outcome, judged, around = str(error), [], []
    _say({"name": asked["name"], "outcome": outcome, "judged": judged, "around": around})


_saying = threading.Lock()


def _say(what: dict[str, object]) -> None:
    with _saying:
        print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

"""The play: what is injected, what a person would call it, and the verdict that it must get.

Pure. Expectations stand here and results nowhere: those come out of the exchange logs (``records.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from protocols.verdict import Cause, Domain

ROUNDS = 2  # of the whole play, for each address family
GIVES_UP_AFTER = 0.4  # seconds; curl --max-time
DEADLINE_MS = 300  # of a call that the gRPC service never answers
HANGS = 5.0  # seconds that the application takes for /hang; nobody in the play waits so long
SLOW = 0.25  # seconds for /slow, which is no fault


class Family(StrEnum):
    IPV4 = "IPv4"
    IPV6 = "IPv6"


class Host(StrEnum):
    """The two hosts of the stage, each with its own ARCA."""

    CLIENT = "client"
    SERVER = "server"


BOTH = (Host.CLIENT, Host.SERVER)


class Port(StrEnum):
    """What can be called on the server. The numbers are the stage's."""

    WEB = "web"  # nginx
    HTTP2 = "http2"  # the same, in HTTP/2 from the first byte
    GRPC = "grpc"
    THRIFT = "thrift"
    MQTT = "mqtt"
    CLOSED = "closed"  # nobody listens there


SERVED = (Port.WEB, Port.HTTP2, Port.GRPC, Port.THRIFT, Port.MQTT)


@dataclass(frozen=True, slots=True)
class Expected:
    """What an exchange must be called, and at whose ARCA it must be seen."""

    domain: Domain
    cause: Cause | None = None
    seen_at: tuple[Host, ...] = BOTH

    def __str__(self) -> str:
        return str(self.domain) if self.cause is None else f"{self.domain}/{self.cause}"


@dataclass(frozen=True, slots=True)
class _Scene:
    """One thing that is tried, again and again, and what both ARCAs must call it."""

    name: str
    what: str
    expected: Expected


@dataclass(frozen=True, slots=True)
class Request(_Scene):
    """A request by curl. ``curl_status`` is what curl must end with: the client sees what it always saw."""

    path: str
    port: Port = Port.WEB
    options: tuple[str, ...] = ()
    curl_status: int = 0


@dataclass(frozen=True, slots=True)
class _Asked(_Scene):
    """What the program that plays a client throughout is asked for, and how it must say that it ended."""

    outcome: str


@dataclass(frozen=True, slots=True)
class GrpcCall(_Asked):
    """A gRPC call, canceled by its client after so many messages, or with a deadline.

    A deadline is told to the service and kept by it alone: if both ends did, they would end the call at the
    same moment, and whose word came first on the wire, which is all that is seen, would be chance.
    """

    method: str
    cancel_after: int | None = None
    deadline_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ThriftCall(_Asked):
    """A Thrift call on a connection of its own."""

    method: str


@dataclass(frozen=True, slots=True)
class MqttSession(_Asked):
    """A session with the broker. One exchange of it is judged; CONNECT and what else it needs must be ok.

    ``course`` is what happens in it. One that takes its time goes on ``aside`` while the play does.
    """

    course: str
    aside: bool = False


Asked = GrpcCall | ThriftCall | MqttSession
Scene = Request | Asked


def _application(cause: Cause) -> Expected:
    return Expected(Domain.APPLICATION, cause)


_HTTP2 = ("--http2-prior-knowledge",)

REQUESTS = (
    Request("missing", "the server answers 404", _application(Cause.STATUS_4XX), "/missing"),
    Request("broken", "the server answers 500", _application(Cause.STATUS_5XX), "/broken"),
    Request(
        "refused",
        "nothing listens on the port",
        Expected(Domain.INFRASTRUCTURE, Cause.CONNECT_REFUSED, (Host.CLIENT,)),
        "/",
        Port.CLOSED,
    ),
    Request(
        "closed",
        "the server closes instead of answering",
        _application(Cause.CLOSED_EARLY),
        "/close",
        curl_status=52,  # empty reply from server
    ),
    Request(
        "cut",
        "the response ends in its middle",
        _application(Cause.CLOSED_EARLY),
        "/cut",
        curl_status=18,  # partial file
    ),
    Request(
        "gives-up",
        f"the client gives up after {GIVES_UP_AFTER:g} s",
        Expected(Domain.CLIENT, Cause.CANCELED),
        "/hang",
        options=("--max-time", str(GIVES_UP_AFTER)),
        curl_status=28,  # operation timed out
    ),
    Request(
        "h2-broken",
        "the server answers 500 over HTTP/2",
        _application(Cause.STATUS_5XX),
        "/broken",
        Port.HTTP2,
        _HTTP2,
    ),
    # Controls: what is slow, old, new or has a body, and is no fault at all.
    Request("slow", "control: slow, but answered", Expected(Domain.OK), "/slow"),
    Request("old", "control: HTTP/1.0", Expected(Domain.OK), "/", options=("--http1.0",)),
    Request("post", "control: a POST", Expected(Domain.OK), "/orders", options=("--data", "item=1&count=3")),
    Request("h2", "control: HTTP/2", Expected(Domain.OK), "/", Port.HTTP2, _HTTP2),
)

GRPC_CALLS = (
    GrpcCall(
        "grpc-missing",
        "the gRPC service answers NOT_FOUND",
        _application(Cause.GRPC_STATUS),
        "NOT_FOUND after 0 messages",
        "demo.Stock/Find",
    ),
    GrpcCall(
        "grpc-down",
        "the gRPC service answers UNAVAILABLE",
        _application(Cause.GRPC_STATUS),
        "UNAVAILABLE after 0 messages",
        "demo.Stock/Reserve",
    ),
    GrpcCall(
        "grpc-late",
        f"a gRPC call is over its {DEADLINE_MS} ms deadline",
        _application(Cause.DEADLINE_EXCEEDED),
        "DEADLINE_EXCEEDED after 0 messages",
        "demo.Stock/Price",
        deadline_ms=DEADLINE_MS,
    ),
    GrpcCall(
        "grpc-cut",
        "a gRPC stream breaks off with DATA_LOSS",
        _application(Cause.GRPC_STATUS),
        "DATA_LOSS after 3 messages",
        "demo.Stock/Export",
    ),
    GrpcCall(
        "grpc-cancel",
        "the client cancels a gRPC stream",
        Expected(Domain.CLIENT, Cause.CANCELED),
        "CANCELLED after 2 messages",
        "demo.Stock/Follow",
        cancel_after=2,
    ),
)

THRIFT_CALLS = (
    ThriftCall(
        "thrift-declared",
        "a Thrift method throws what it declares",
        _application(Cause.THRIFT_EXCEPTION),
        "NoSuchThing: there is no left-handed hammer",
        "reserve",
    ),
    ThriftCall(
        "thrift-undeclared",
        "a Thrift method fails, undeclared",
        _application(Cause.THRIFT_EXCEPTION),
        "TApplicationException 6",  # INTERNAL_ERROR
        "price",
    ),
    ThriftCall(
        "thrift-unknown",
        "a Thrift method that the service has not",
        _application(Cause.THRIFT_EXCEPTION),
        "TApplicationException 1",  # UNKNOWN_METHOD
        "weigh",
    ),
    ThriftCall(
        "thrift-closed",
        "the Thrift service closes in mid-call",
        _application(Cause.CLOSED_EARLY),
        "closed",
        "ship",
    ),
    ThriftCall("thrift-oneway", "control: Thrift oneway", Expected(Domain.OK), "no exception", "note"),
)

MQTT_SESSIONS = (
    MqttSession(
        "mqtt-password",
        "an MQTT client has a wrong password",
        _application(Cause.MQTT_REFUSED),
        "Not authorized",
        "refused",
    ),
    MqttSession(
        "mqtt-forbidden",
        "an MQTT client publishes where it may not",
        _application(Cause.MQTT_REFUSED),
        "Not authorized",
        "forbidden",
    ),
    MqttSession(
        "mqtt-silent",
        "an MQTT client silent past its keep-alive",
        Expected(Domain.CLIENT, Cause.KEEPALIVE_MISSED),
        "silent",
        "silent",
        aside=True,
    ),
    MqttSession(
        "mqtt-cut",
        "an MQTT client is gone without DISCONNECT",
        Expected(Domain.CLIENT, Cause.CANCELED),
        "gone",
        "cut",
    ),
    MqttSession(
        "mqtt-idle", "control: MQTT, idle and pinging", Expected(Domain.OK), "pinged", "idle", aside=True
    ),
    MqttSession(
        "mqtt-retained", "control: MQTT, a retained message", Expected(Domain.OK), "retained", "retained"
    ),
    MqttSession("mqtt-qos2", "control: MQTT, QoS 2", Expected(Domain.OK), "Success", "twice_acknowledged"),
)

# What goes on throughout, and must be ok.
STEADY_HTTP = "steady traffic, keep-alive, GET and POST"
STEADY_GRPC = "steady gRPC: unary, stream, both ways"
STEADY_THRIFT = "steady Thrift: calls and oneway"
STEADY_MQTT = "steady MQTT: QoS 0, 1, 2, to a subscriber"
MQTT_AROUND = "MQTT CONNECT, SUBSCRIBE, DISCONNECT"
STEADY_EXPECTED = Expected(Domain.OK)

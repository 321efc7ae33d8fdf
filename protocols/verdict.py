"""What a verdict is made of: closed lists of domains, causes, origins and phases, and the record of them.

Every room speaks these words and no others. How a verdict is reached is decided elsewhere
(``proxy.verdicts``); here is only what it may say. A value is what appears in the exchange log
and as a metric label, so none is ever renamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Domain(StrEnum):
    """Whose the outcome was."""

    OK = "ok"
    CLIENT = "client"
    APPLICATION = "application"
    INFRASTRUCTURE = "infrastructure"
    PROXY = "proxy"
    UNKNOWN = "unknown"


class Cause(StrEnum):
    """What happened. Causes that no evidence can show yet are absent until their evidence lands."""

    STATUS_4XX = "status_4xx"
    STATUS_5XX = "status_5xx"
    GRPC_STATUS = "grpc_status"
    THRIFT_EXCEPTION = "thrift_exception"
    MQTT_REFUSED = "mqtt_refused"
    PROTOCOL_ERROR = "protocol_error"
    CLOSED_EARLY = "closed_early"
    ABORTED = "aborted"
    CANCELED = "canceled"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    STALLED = "stalled"
    KEEPALIVE_MISSED = "keepalive_missed"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    UNREACHABLE = "unreachable"
    RESET = "reset"
    LIMIT = "limit"
    OVERLOAD = "overload"
    INTERNAL = "internal"
    UNKNOWN = "unknown"


class Origin(StrEnum):
    """Where it began."""

    DOWNSTREAM = "downstream"
    UPSTREAM = "upstream"
    NETWORK = "network"
    HOST = "host"
    PROXY = "proxy"


class Phase(StrEnum):
    """How far the exchange had come when it was decided."""

    CONNECT = "connect"
    TLS = "tls"
    REQUEST = "request"
    WAIT = "wait"
    RESPONSE = "response"
    IDLE = "idle"


class Source(StrEnum):
    """Which witness a piece of evidence comes from."""

    WIRE = "wire"
    BPF = "bpf"
    TCP_INFO = "tcp_info"
    ERRNO = "errno"
    PROCESS = "process"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One fact: ``value`` as ``source`` reported it, ``at_ms`` milliseconds after the exchange began."""

    source: Source
    name: str
    value: str | int | float
    at_ms: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an exchange. ``cause`` is None exactly when ``domain`` is ``ok``.

    ``confidence`` lies in 0..1 and is 1.0 only where the peer's own bytes or a kernel event prove it.
    ``explain`` is one English sentence with the figures in it; ``check`` a command an operator can run.
    """

    domain: Domain
    cause: Cause | None = None
    origin: Origin | None = None
    phase: Phase | None = None
    confidence: float = 1.0
    explain: str | None = None
    check: str | None = None
    evidence: tuple[Evidence, ...] = ()


OK = Verdict(Domain.OK)

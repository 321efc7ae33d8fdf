"""Every metric that ARCA has, as one table, and the cells of one process that count into them.

Workers and the supervisor share this module. A worker resolves a family and its labels to a cell once
(``Cells.counter(...)``), keeps the cell, and counts into it on the byte path; twice a second what
``Cells.changes()`` gathers is sent up. Nothing here renders: the supervisor does, by
``proxy.exposition``.

Labels can come from the wire (a method can be anything), so a family never takes more than a fixed number
of label sets; what comes after that is counted under ``_other``, and that it happened is counted too.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from proxy.cells import Counter, Gauge, Histogram

OTHER = "_other"
LABEL_SETS_MAX = 2_000  # per family; precedent: the memory complaints of istio#35414 and kyma#9867
# Per family, besides the standard ones of HTTP. Large gRPC services have tens of methods, a few about a
# hundred; a sidecar sees its own and those that it calls. With a few codes each, LABEL_SETS_MAX holds them.
METHODS_MAX = 256
LABEL_LENGTH_MAX = 128  # characters; a longer value is nobody's method name

# RFC 9110 section 9, RFC 5789 (PATCH) and the WebDAV methods of RFC 4918.
HTTP_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
    | {"PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK"}
)


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Family(NamedTuple):
    """One metric: its name as exposed, its help, its kind, and the names of its labels in their order."""

    name: str
    help: str
    kind: Kind
    labels: tuple[str, ...] = ()


# A family's position is its number on the channel, whose two ends are always of one version.
FAMILIES: tuple[Family, ...] = (
    Family(
        "arca_requests_total",
        "Exchanges that ended, by what became of them.",
        Kind.COUNTER,
        ("protocol", "direction", "method", "code", "domain", "cause"),
    ),
    Family(
        "arca_request_duration_seconds",
        "From the first byte of the request to the last byte of the response.",
        Kind.HISTOGRAM,
        ("protocol", "direction", "domain"),
    ),
    Family(
        "arca_request_ttfb_seconds",
        "From the first byte of the request to the first byte of the response.",
        Kind.HISTOGRAM,
        ("protocol", "direction"),
    ),
    Family(
        "arca_request_bytes_total",
        "Bytes of requests, heads and bodies.",
        Kind.COUNTER,
        ("protocol", "direction"),
    ),
    Family(
        "arca_response_bytes_total",
        "Bytes of responses, heads and bodies.",
        Kind.COUNTER,
        ("protocol", "direction"),
    ),
    Family("arca_requests_in_flight", "Exchanges that began and did not end.", Kind.GAUGE, ("protocol",)),
    Family(
        "arca_connections_total",
        "Connections by the protocol found on them.",
        Kind.COUNTER,
        ("protocol", "direction"),
    ),
    Family("arca_connections_active", "Connections being carried.", Kind.GAUGE),
    Family(
        "arca_connections_refused_total",
        "Connections reset rather than carried, and why: the limit, a loop.",
        Kind.COUNTER,
        ("reason",),
    ),
    Family("arca_connect_duration_seconds", "From dialing upstream to its answer.", Kind.HISTOGRAM),
    Family(
        "arca_detect_total",
        "How the protocol of a connection was found out.",
        Kind.COUNTER,
        ("protocol", "how"),
    ),
    Family(
        "arca_codec_fallbacks_total",
        "Connections carried as opaque TCP from some byte on, because a codec could not follow.",
        Kind.COUNTER,
        ("protocol", "reason"),
    ),
    Family(
        "arca_protocol_limits_total",
        "Limits on a protocol's cheap requests that a peer went over, and which side it was.",
        Kind.COUNTER,
        ("protocol", "limit", "side"),
    ),
    Family("arca_tcp_retransmits_total", "Segments the kernel sent again.", Kind.COUNTER, ("side",)),
    Family("arca_tcp_resets_total", "Connections reset.", Kind.COUNTER, ("side", "initiator", "reason")),
    Family(
        "arca_dropped_records_total",
        "Records a sink could not take in time.",
        Kind.COUNTER,
        ("sink",),
    ),
    Family(
        "arca_label_overflow_total",
        "Label sets counted under _other because the family had reached its cap.",
        Kind.COUNTER,
        ("family",),
    ),
    Family("arca_workers", "Worker processes that are ready.", Kind.GAUGE),
    Family("arca_worker_restarts_total", "Workers replaced because they ended unasked.", Kind.COUNTER),
    Family(
        "arca_build_info", "Always 1; what is running is in the labels.", Kind.GAUGE, ("version", "python")
    ),
)

NUMBERS: dict[str, int] = {family.name: number for number, family in enumerate(FAMILIES)}

# What travels: the family's number, the label values in its order, and a counter's increase, a gauge's value,
# or a histogram's [sum, bucket, count, bucket, count, ...] since the last message.
Change = tuple[int, tuple[str, ...], float | list[float]]


class LabelCap:
    """Which label sets one family may still take. A set once admitted stays admitted."""

    __slots__ = ("_admitted", "_method", "_methods", "_width")

    def __init__(self, family: Family) -> None:
        self._width = len(family.labels)
        self._method = family.labels.index("method") if "method" in family.labels else -1
        self._methods: set[str] = set()
        self._admitted: set[tuple[str, ...]] = set()

    def admit(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """``labels`` themselves, or with ``_other`` in the place of what is too much."""
        if labels in self._admitted:
            return labels
        if any(len(value) > LABEL_LENGTH_MAX for value in labels):
            labels = tuple(OTHER if len(value) > LABEL_LENGTH_MAX else value for value in labels)
        if self._method >= 0:
            labels = self._cap_method(labels)
        if labels in self._admitted:
            return labels
        if len(self._admitted) >= LABEL_SETS_MAX:
            return (OTHER,) * self._width
        self._admitted.add(labels)
        return labels

    def _cap_method(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        method = labels[self._method]
        if method in HTTP_METHODS or method in self._methods or method == OTHER:
            return labels
        if len(self._methods) < METHODS_MAX:
            self._methods.add(method)
            return labels
        return (*labels[: self._method], OTHER, *labels[self._method + 1 :])


class Cells:
    """The cells of one process, by family and label values.

    Asking twice gives the same cell. Raises TypeError for the wrong kind or number of labels and KeyError for
    a family that is not in the table: both are mistakes in the calling code.
    """

    __slots__ = ("_caps", "_cells")

    def __init__(self) -> None:
        self._cells: dict[tuple[int, tuple[str, ...]], Counter | Gauge | Histogram] = {}
        self._caps = [LabelCap(family) for family in FAMILIES]

    def counter(self, family: str, *labels: str) -> Counter:
        cell = self._resolve(family, labels, Kind.COUNTER)
        assert isinstance(cell, Counter)
        return cell

    def gauge(self, family: str, *labels: str) -> Gauge:
        cell = self._resolve(family, labels, Kind.GAUGE)
        assert isinstance(cell, Gauge)
        return cell

    def histogram(self, family: str, *labels: str) -> Histogram:
        cell = self._resolve(family, labels, Kind.HISTOGRAM)
        assert isinstance(cell, Histogram)
        return cell

    def changes(self) -> list[Change]:
        """What moved since the last call; empty when nothing did."""
        return [
            (number, labels, change)
            for (number, labels), cell in self._cells.items()
            if (change := cell.change()) is not None
        ]

    def _resolve(self, name: str, labels: tuple[str, ...], kind: Kind) -> Counter | Gauge | Histogram:
        number = NUMBERS[name]
        family = FAMILIES[number]
        if family.kind is not kind:
            raise TypeError(f"{name} is a {family.kind}, not a {kind}")
        cell = self._cells.get((number, labels))
        if cell is not None:
            return cell
        if len(labels) != len(family.labels):
            raise TypeError(f"{name} takes the labels {family.labels}, got {labels}")
        admitted = self._caps[number].admit(labels)
        if admitted != labels:
            self._count_overflow(name)
        cell = self._cells.get((number, admitted))
        if cell is None:
            cell = self._cells[number, admitted] = _new_cell(kind)
        return cell

    def _count_overflow(self, name: str) -> None:
        self.counter("arca_label_overflow_total", name).add(1)


def _new_cell(kind: Kind) -> Counter | Gauge | Histogram:
    match kind:
        case Kind.COUNTER:
            return Counter()
        case Kind.GAUGE:
            return Gauge()
        case Kind.HISTOGRAM:
            return Histogram()

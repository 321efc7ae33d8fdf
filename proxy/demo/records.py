"""What the two exchange logs say, and whether it is what was injected. Pure but for the reading of a file.

Each exchange is known by something that its client knows too: in HTTP and gRPC by the request id, which the
client sent or ARCA gave back to it; in Thrift by the sequence id; in MQTT by the client id and the packet's
type, and a message by its trace id besides, which the subscriber is given. So each at either proxy is
somebody's, or is reported as nobody's.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from protocols.verdict import Domain
from proxy.demo.play import BOTH, Host

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from proxy.demo.play import Expected


class Verdict(msgspec.Struct, frozen=True):
    domain: str
    cause: str | None
    confidence: float
    explain: str | None
    check: str | None

    def __str__(self) -> str:
        return self.domain if self.cause is None else f"{self.domain}/{self.cause}"


class Grpc(msgspec.Struct, frozen=True):
    """What a gRPC call has beside the exchange that carries it."""

    request_messages: int
    response_messages: int
    first_message_ms: float | None


class Thrift(msgspec.Struct, frozen=True):
    """What a Thrift call has beside its method."""

    transport: str
    encoding: str
    oneway: bool
    sequence: int


class Mqtt(msgspec.Struct, frozen=True):
    """What an MQTT exchange has beside its packet's type and topic."""

    version: int
    client_id: str | None
    sender: str  # of the packet that began it: "client" or "server"
    qos: int | None = None
    retain: bool | None = None


class Exchange(msgspec.Struct, frozen=True):
    """The keys of one line of the exchange log that the demo looks at."""

    protocol: str
    direction: str
    client: str
    server: str
    method: str | None
    target: str | None
    status: int | None
    request_id: str | None
    trace_id: str | None
    duration_ms: float
    verdict: Verdict
    code: str | None = None
    grpc: Grpc | None = None
    thrift: Thrift | None = None
    mqtt: Mqtt | None = None

    @property
    def known_as(self) -> str:
        """What its client knows it by, too."""
        if self.thrift is not None:
            return f"sequence {self.thrift.sequence}"
        if self.mqtt is not None:
            parts = (self.mqtt.client_id, self.method, self.trace_id)
            return " ".join(part for part in parts if part is not None)
        return self.request_id or "none"

    @property
    def is_message(self) -> bool:
        return self.mqtt is not None and self.method == "PUBLISH"

    @property
    def is_traced(self) -> bool:
        """Whether its protocol has a place for a trace id."""
        return self.thrift is None and (self.mqtt is None or self.is_message)

    @property
    def request(self) -> str:
        """What was asked for."""
        if self.grpc is not None:
            return self.method or ""
        if self.mqtt is not None and self.mqtt.sender == "server":
            return f"{self.method} {self.target or ''} to its subscriber".replace("  ", " ")
        path = None if self.target is None else self.target.partition("?")[0]
        return " ".join(part for part in (self.method, path) if part is not None)

    @property
    def answer(self) -> str:
        """What it came to, in its protocol's words. A gRPC call's HTTP status says nothing."""
        if self.grpc is not None:
            return self.code or "no status"
        if self.thrift is not None or self.mqtt is not None:
            ended_well = self.verdict.domain == Domain.OK
            return self.code or ("done" if ended_well else "no answer")
        return "no answer" if self.status is None else str(self.status)


_decode = msgspec.json.Decoder(Exchange).decode


class Log:
    """An exchange log that is being written, read as far as it has whole lines."""

    def __init__(self, path: Path) -> None:
        self.exchanges: list[Exchange] = []
        self._path = path
        self._position = 0

    def read_on(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._position += len(whole)
        self.exchanges += map(_decode, whole.splitlines())


Logs = dict[Host, Log]


class Edge(NamedTuple):
    """One kind of traffic between two addresses, as one ARCA saw it."""

    seen_at: Host
    client: str
    server: str
    direction: str
    protocol: str


@dataclass(slots=True)
class Tally:
    domains: Counter[str] = field(default_factory=Counter)
    durations: list[float] = field(default_factory=list)

    def percentile(self, part: float) -> float:
        """Nearest rank, in milliseconds: a duration that really occurred."""
        ordered = sorted(self.durations)
        return ordered[math.ceil(part * len(ordered)) - 1]


def edges(logs: Logs) -> dict[Edge, Tally]:
    """Every edge with its tally, sorted."""
    tallies: defaultdict[Edge, Tally] = defaultdict(Tally)
    for host, log in logs.items():
        for each in log.exchanges:
            client = each.client.rpartition(":")[0].strip("[]")  # its port is another one each time
            tally = tallies[Edge(host, client, each.server, each.direction, each.protocol)]
            tally.domains[each.verdict.domain] += 1
            tally.durations.append(each.duration_ms)
    return dict(sorted(tallies.items()))


class Outcome(NamedTuple):
    """One kind of outcome."""

    verdict: str
    request: str
    answer: str


def outcomes(logs: Logs) -> dict[Outcome, dict[Host, list[Exchange]]]:
    """All exchanges by what became of them, those that are not ok first."""
    found: defaultdict[Outcome, dict[Host, list[Exchange]]] = defaultdict(lambda: {host: [] for host in BOTH})
    for host, log in logs.items():
        for each in log.exchanges:
            found[Outcome(str(each.verdict), each.request, each.answer)][host].append(each)
    return dict(sorted(found.items(), key=lambda item: (item[0].verdict == "ok", item[0])))


@dataclass(frozen=True, slots=True)
class Injected:
    """A number of exchanges of one kind; ``wrong`` is what their client saw amiss."""

    what: str
    expected: Expected
    known_as: Sequence[str]
    wrong: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """How often each ARCA named it as expected; None where it should not have been seen, and was not."""

    injected: Injected
    named: Mapping[Host, int | None]
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    findings: tuple[Finding, ...]
    at_both: int  # exchanges with a trace id seen at both proxies
    joined: int  # of which both gave the same
    delivered: int  # MQTT messages that went to a subscriber
    shared: int  # of which both proxies gave delivery and publication the same trace id
    faults: int  # injected, at each proxy that must see it
    named: int  # of them, those that got their verdict
    called_faults: int  # exchanges that were not called ok at a proxy
    wrong: tuple[str, ...]  # everything that is not as it should be, in words


def judge(injected: Iterable[Injected], logs: Logs, directions: Mapping[Host, str]) -> Judgement:
    """Hold what was injected against what was named."""
    by_id: dict[Host, dict[str, list[Exchange]]] = {}
    for host, log in logs.items():
        by_id[host] = {}
        for each in log.exchanges:
            by_id[host].setdefault(each.known_as, []).append(each)

    findings = tuple(_find(each, by_id) for each in injected)
    wrong = [line for finding in findings for line in finding.wrong]

    claimed = {known_as for finding in findings for known_as in finding.injected.known_as}
    for host, exchanges in by_id.items():
        stray = [each for known_as, those in exchanges.items() if known_as not in claimed for each in those]
        wrong += [f"an exchange at the {host}'s ARCA that nobody began: {_words(each)}" for each in stray[:3]]

    for host, log in logs.items():
        others = Counter(each.direction for each in log.exchanges if each.direction != directions[host])
        wrong += [f"{n} exchanges at the {host}'s ARCA were called {other}" for other, n in others.items()]

    traced = [{each: _traces(those) for each, those in by_id[host].items()} for host in BOTH]
    pairs = [(traced[0][each], traced[1][each]) for each in traced[0].keys() & traced[1].keys()]
    at_both = sum(client | server != set() for client, server in pairs)
    joined = sum(client == server != set() and None not in client for client, server in pairs)
    if joined < at_both:
        wrong.append(f"{at_both - joined} of {at_both} requests had two trace ids")

    delivered, shared = _messages(logs)
    if shared < delivered:
        wrong.append(f"{delivered - shared} of {delivered} MQTT messages had another trace id when delivered")

    faulty = [finding for finding in findings if finding.injected.expected.domain != Domain.OK]
    return Judgement(
        findings,
        at_both,
        joined,
        delivered,
        shared,
        faults=sum(len(each.injected.known_as) * len(each.injected.expected.seen_at) for each in faulty),
        named=sum((each.named[host] or 0) for each in faulty for host in each.injected.expected.seen_at),
        called_faults=sum(
            each.verdict.domain != Domain.OK for log in logs.values() for each in log.exchanges
        ),
        wrong=tuple(wrong),
    )


def _messages(logs: Logs) -> tuple[int, int]:
    """How many MQTT messages were delivered, and how many of them have one trace id, at both ends of both."""
    seen: defaultdict[str | None, set[tuple[Host, str]]] = defaultdict(set)
    for host, log in logs.items():
        for each in log.exchanges:
            if each.is_message and each.mqtt is not None:
                seen[each.trace_id].add((host, each.mqtt.sender))
    deliveries = [those for those in seen.values() if any(sender == "server" for _, sender in those)]
    return len(deliveries), sum(len(those) == 4 for those in deliveries)


def _find(injected: Injected, by_id: Mapping[Host, Mapping[str, list[Exchange]]]) -> Finding:
    named: dict[Host, int | None] = {}
    wrong = [f"{injected.what}: {line}" for line in injected.wrong]
    if not injected.known_as:
        wrong.append(f"{injected.what}: it never came to that")
    for host in BOTH:
        expected_here = host in injected.expected.seen_at
        right = 0
        for known_as in injected.known_as:
            exchanges = by_id[host].get(known_as, [])
            got = " and ".join(_words(each) for each in exchanges) or "nothing"
            if not expected_here and exchanges:
                wrong.append(f"{injected.what}: the {host}'s ARCA saw what never came there: {got}")
            elif expected_here and [str(each.verdict) for each in exchanges] != [str(injected.expected)]:
                wrong.append(
                    f"{injected.what}: {injected.expected} expected at the {host}'s ARCA for "
                    f"{known_as}, got {got}"
                )
            else:
                right += 1
        named[host] = right if expected_here or right < len(injected.known_as) else None
    return Finding(injected, named, tuple(wrong))


def _traces(exchanges: list[Exchange]) -> set[str | None]:
    return {each.trace_id for each in exchanges if each.is_traced}


def _words(each: Exchange) -> str:
    return f"{each.verdict} ({each.request} -> {each.answer}: {each.verdict.explain})"

"""What the two exchange logs say, and whether it is what was injected. Pure but for the reading of a file.

A fault is found again by the request id that its client sent with it, the steady traffic by the ids that ARCA
gave back to its client; so each exchange at either proxy is somebody's, or is reported as nobody's.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

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

    @property
    def request(self) -> str:
        """What was asked for."""
        if self.grpc is not None:
            return self.method or ""
        path = None if self.target is None else self.target.partition("?")[0]
        return " ".join(part for part in (self.method, path) if part is not None)

    @property
    def answer(self) -> str:
        """What it came to, in its protocol's words. A gRPC call's HTTP status says nothing."""
        if self.grpc is not None:
            return self.code or "no status"
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
    """A number of requests of one kind, by their ids; ``wrong`` is what their client saw amiss."""

    what: str
    expected: Expected
    request_ids: Sequence[str]
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
    at_both: int  # requests seen at both proxies
    joined: int  # of which both gave the same trace id
    wrong: tuple[str, ...]  # everything that is not as it should be, in words


def judge(injected: Iterable[Injected], logs: Logs, directions: Mapping[Host, str]) -> Judgement:
    """Hold what was injected against what was named."""
    by_id: dict[Host, dict[str, list[Exchange]]] = {}
    for host, log in logs.items():
        by_id[host] = {}
        for each in log.exchanges:
            by_id[host].setdefault(each.request_id or "none", []).append(each)

    findings = tuple(_find(each, by_id) for each in injected)
    wrong = [line for finding in findings for line in finding.wrong]

    claimed = {request_id for finding in findings for request_id in finding.injected.request_ids}
    for host, exchanges in by_id.items():
        stray = [
            each for request_id, those in exchanges.items() if request_id not in claimed for each in those
        ]
        wrong += [f"an exchange at the {host}'s ARCA that nobody began: {_words(each)}" for each in stray[:3]]

    for host, log in logs.items():
        others = Counter(each.direction for each in log.exchanges if each.direction != directions[host])
        wrong += [f"{n} exchanges at the {host}'s ARCA were called {other}" for other, n in others.items()]

    shared = by_id[Host.CLIENT].keys() & by_id[Host.SERVER].keys()
    joined = sum(_traces(by_id[Host.CLIENT][each]) == _traces(by_id[Host.SERVER][each]) for each in shared)
    if joined < len(shared):
        wrong.append(f"{len(shared) - joined} of {len(shared)} requests had two trace ids")
    return Judgement(findings, len(shared), joined, tuple(wrong))


def _find(injected: Injected, by_id: Mapping[Host, Mapping[str, list[Exchange]]]) -> Finding:
    named: dict[Host, int | None] = {}
    wrong = [f"{injected.what}: {line}" for line in injected.wrong]
    if not injected.request_ids:
        wrong.append(f"{injected.what}: it never came to that")
    for host in BOTH:
        expected_here = host in injected.expected.seen_at
        right = 0
        for request_id in injected.request_ids:
            exchanges = by_id[host].get(request_id, [])
            got = " and ".join(_words(each) for each in exchanges) or "nothing"
            if not expected_here and exchanges:
                wrong.append(f"{injected.what}: the {host}'s ARCA saw what never came there: {got}")
            elif expected_here and [str(each.verdict) for each in exchanges] != [str(injected.expected)]:
                wrong.append(
                    f"{injected.what}: {injected.expected} expected at the {host}'s ARCA for request "
                    f"{request_id}, got {got}"
                )
            else:
                right += 1
        named[host] = right if expected_here or right < len(injected.request_ids) else None
    return Finding(injected, named, tuple(wrong))


def _traces(exchanges: list[Exchange]) -> set[str | None]:
    return {each.trace_id for each in exchanges}


def _words(each: Exchange) -> str:
    return f"{each.verdict} ({each.request} -> {each.answer}: {each.verdict.explain})"

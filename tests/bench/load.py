"""Measurements of speed: each takes one subject in one round, the subject started afresh for it.

A subject is a peer, or None for the way direct. The clock of CPU time stands around wrk's whole run, and
covers all processes of the proxy; what it did to start and to warm up is outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench.paced import PacedReport, run_paced
from tests.bench.peers import Peer, standing
from tests.bench.processes import NotMeasured, cpu_between, cpu_of_tree
from tests.bench.wrk import run_wrk

if TYPE_CHECKING:
    from pathlib import Path

WARM_UP_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measurements share: a directory, the server behind, and who runs on which core."""

    directory: Path
    upstream_port: int
    proxy_core: int
    load_core: int


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """One round under full load; CPU in microseconds per request, None without a proxy.

    `leader_us` is the part of the first process: ARCA's supervisor, which carries no connection.
    """

    requests_per_second: float
    cpu_us: float | None
    kernel_us: float | None
    leader_us: float | None
    p50_ms: float
    p99_ms: float
    faults: str


def measure_load(bench: Bench, subject: Peer | None, seconds: float) -> LoadFigures:
    with standing(subject, bench.directory, bench.upstream_port, bench.proxy_core) as proxy:
        leader = proxy.process.pid if proxy.process else None
        run_wrk(proxy.port, WARM_UP_SECONDS, bench.load_core)
        before = cpu_of_tree(leader) if leader else {}
        report = run_wrk(proxy.port, seconds, bench.load_core)
        after = cpu_of_tree(leader) if leader else {}
        proxy.require_done(report.requests)
    if not report.requests:
        raise NotMeasured(f"no request was answered: {report.faults}")
    used = cpu_between(before, after)
    microseconds = 1e6 / report.requests
    return LoadFigures(
        requests_per_second=report.requests_per_second,
        cpu_us=used.total * microseconds if leader else None,
        kernel_us=used.kernel * microseconds if leader else None,
        leader_us=(after[leader] - before[leader]).total * microseconds if leader else None,
        p50_ms=report.p50_ms,
        p99_ms=report.p99_ms,
        faults=report.faults,
    )


def measure_paced(bench: Bench, subject: Peer | None, seconds: float) -> PacedReport:
    with standing(subject, bench.directory, bench.upstream_port, bench.proxy_core) as proxy:
        run_paced(proxy.port, WARM_UP_SECONDS)
        report = run_paced(proxy.port, seconds)
        proxy.require_done(report.requests)
        return report

"""Measurements of speed: each takes one subject in one round, the subject started afresh for it.

A subject is a peer, or None for the way direct. The clock of CPU time stands around the load generator's
whole run, and covers all processes of the proxy; what it did to start and to warm up is outside.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tests.bench.h2load import run_h2load
from tests.bench.http2_upstream import http2_servers, require_answers, require_same_http2_work
from tests.bench.mqtt_packets import Qos, Version, mqtt_server, requires_arrival, run_mqtt
from tests.bench.paced import PacedReport, run_paced
from tests.bench.peers import Peer, Standing, standing
from tests.bench.processes import NotMeasured, cpu_between, cpu_of_tree
from tests.bench.rpc import require_same_rpc_work, rpc_server, run_calls
from tests.bench.thrift_calls import Transport, requires_echo, run_thrift, thrift_server
from tests.bench.wrk import run_wrk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WARM_UP_SECONDS = 1
WARM_UP_HTTP2_REQUESTS = 20_000


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
    p50_ms: float | None
    p99_ms: float | None
    faults: str


class LoadReport(Protocol):
    """What any load generator tells; percentiles where it knows them."""

    @property
    def requests(self) -> int: ...
    @property
    def requests_per_second(self) -> float: ...
    @property
    def p50_ms(self) -> float | None: ...
    @property
    def p99_ms(self) -> float | None: ...
    @property
    def faults(self) -> str: ...


def measure_load(bench: Bench, subject: Peer | None, seconds: float) -> LoadFigures:
    with standing(subject, bench.directory, bench.upstream_port, bench.proxy_core) as proxy:
        run_wrk(proxy.port, WARM_UP_SECONDS, bench.load_core)
        return _account(proxy, lambda: run_wrk(proxy.port, seconds, bench.load_core))


@contextlib.contextmanager
def standing_http2(bench: Bench, subject: Peer | None) -> Iterator[Standing]:
    """The subject is started twice: before the mirror to see that it does the work, then to be measured."""
    core = bench.proxy_core
    with http2_servers(bench.directory, bench.load_core) as servers:
        with standing(subject, bench.directory, servers.mirror_port, core, require_same_http2_work):
            pass
        with standing(subject, bench.directory, servers.load_port, core, require_answers) as proxy:
            yield proxy


def measure_http2(bench: Bench, subject: Peer | None, connections: int, seconds: float) -> LoadFigures:
    with standing_http2(bench, subject) as proxy:
        warm = run_h2load(proxy.port, connections, WARM_UP_HTTP2_REQUESTS, bench.load_core)
        requests = max(WARM_UP_HTTP2_REQUESTS, round(warm.requests_per_second * seconds))
        return _account(proxy, lambda: run_h2load(proxy.port, connections, requests, bench.load_core))


def measure_unary(bench: Bench, subject: Peer | None, at_once: int, seconds: float) -> LoadFigures:
    with (
        rpc_server(bench.directory, bench.load_core) as port,
        standing(subject, bench.directory, port, bench.proxy_core, require_same_rpc_work) as proxy,
    ):
        run_calls(proxy.port, at_once, WARM_UP_SECONDS, bench.load_core)
        return _account(proxy, lambda: run_calls(proxy.port, at_once, seconds, bench.load_core))


def measure_thrift(
    bench: Bench, subject: Peer | None, transport: Transport, opaque: bool, seconds: float
) -> LoadFigures:
    def run(port: int, lasting: float) -> LoadReport:
        return run_thrift(bench.directory, port, transport, opaque, lasting, bench.load_core)

    require = requires_echo(transport, opaque)
    with (
        thrift_server(bench.directory, bench.load_core) as port,
        standing(subject, bench.directory, port, bench.proxy_core, require) as proxy,
    ):
        run(proxy.port, WARM_UP_SECONDS)
        return _account(proxy, lambda: run(proxy.port, seconds))


def measure_mqtt(
    bench: Bench, subject: Peer | None, version: Version, qos: Qos, opaque: bool, seconds: float
) -> LoadFigures:
    def run(port: int, lasting: float) -> LoadReport:
        return run_mqtt(bench.directory, port, version, qos, opaque, lasting, bench.load_core)

    require = requires_arrival(version, opaque)
    with (
        mqtt_server(bench.directory, bench.load_core) as port,
        standing(subject, bench.directory, port, bench.proxy_core, require) as proxy,
    ):
        run(proxy.port, WARM_UP_SECONDS)
        return _account(proxy, lambda: run(proxy.port, seconds))


def _account(proxy: Standing, run: Callable[[], LoadReport]) -> LoadFigures:
    """The load, with the clock of the proxy's CPU time around it."""
    leader = proxy.process.pid if proxy.process else None
    before = cpu_of_tree(leader) if leader else {}
    report = run()
    after = cpu_of_tree(leader) if leader else {}
    if not report.requests:
        raise NotMeasured(f"no request was answered: {report.faults}")
    missing = proxy.require_done(report.requests)
    used = cpu_between(before, after)
    microseconds = 1e6 / report.requests
    return LoadFigures(
        requests_per_second=report.requests_per_second,
        cpu_us=used.total * microseconds if leader else None,
        kernel_us=used.kernel * microseconds if leader else None,
        leader_us=(after[leader] - before[leader]).total * microseconds if leader else None,
        p50_ms=report.p50_ms,
        p99_ms=report.p99_ms,
        faults=", ".join(part for part in (report.faults, missing) if part),
    )


def measure_paced(bench: Bench, subject: Peer | None, seconds: float) -> PacedReport:
    with standing(subject, bench.directory, bench.upstream_port, bench.proxy_core) as proxy:
        run_paced(proxy.port, WARM_UP_SECONDS)
        report = run_paced(proxy.port, seconds)
        proxy.require_done(report.requests)
        return report

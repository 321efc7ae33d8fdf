"""Measurements of the memory of the one worker: at rest, with idle pairs, and after many requests.

Resident memory is read when the worker has had a second to settle. Pairs and requests are measured on two
fresh starts, for what the pairs gave back would hide what the requests take.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench.peers import Peer, Standing, standing
from tests.bench.processes import Memory, NotMeasured, memory_of, worker_of
from tests.bench.upstream import REQUEST, is_whole_answer
from tests.bench.wrk import run_wrk

if TYPE_CHECKING:
    from tests.bench.load import Bench

IDLE_PAIRS = 5_000
WARM_UP_REQUESTS = 50_000
REQUESTS = 200_000

_SETTLE_SECONDS = 1.0
_LONGEST_RUN_SECONDS = 60.0
_SPARE_DESCRIPTORS = 200


@dataclass(frozen=True, slots=True)
class IdleFigures:
    """KiB of the worker with no connection, and what each of so many idle pairs added to it."""

    at_rest: Memory
    pairs: int
    kib_per_pair: float


@dataclass(frozen=True, slots=True)
class GrowthFigures:
    requests: int
    kib: int
    faults: str


def measure_idle(bench: Bench, subject: Peer) -> IdleFigures:
    with standing(subject, bench.directory, bench.upstream_port, bench.proxy_core) as proxy:
        pid = worker(proxy)
        time.sleep(_SETTLE_SECONDS)
        at_rest = memory_of(pid)
        with contextlib.ExitStack() as held:
            pairs = [held.enter_context(_connection(proxy.port)) for _ in range(_pairs_allowed())]
            for pair in pairs:
                _exchange(pair)
            time.sleep(_SETTLE_SECONDS)
            grown = memory_of(pid).resident - at_rest.resident
            for pair in pairs:  # that each still answers is what shows that it was held
                _exchange(pair)
    return IdleFigures(at_rest, len(pairs), grown / len(pairs))


def measure_growth(bench: Bench, subject: Peer) -> GrowthFigures:
    with standing(subject, bench.directory, bench.upstream_port, bench.proxy_core) as proxy:
        pid = worker(proxy)
        _, faults_before = _requests(proxy.port, WARM_UP_REQUESTS, bench.load_core)
        time.sleep(_SETTLE_SECONDS)
        warm = memory_of(pid)
        requests, faults = _requests(proxy.port, REQUESTS, bench.load_core)
        time.sleep(_SETTLE_SECONDS)
        grown = memory_of(pid).resident - warm.resident
    return GrowthFigures(requests, grown, faults_before or faults)


def worker(proxy: Standing) -> int:
    if proxy.process is None:
        raise NotMeasured("there is no proxy to measure")
    return worker_of(proxy.process.pid, proxy.port)


def _pairs_allowed() -> int:
    """The proxy holds two descriptors for a pair, within the same limit as ours."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(IDLE_PAIRS, (limit - _SPARE_DESCRIPTORS) // 2)


def _connection(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def _exchange(connection: socket.socket) -> None:
    answer = b""
    try:
        connection.sendall(REQUEST)
        while not is_whole_answer(answer):
            received = connection.recv(65536)
            if not received:
                raise NotMeasured("the proxy closed a pair that should have been held")
            answer += received
    except OSError as failure:
        raise NotMeasured(f"a pair that should have been held failed: {failure}") from failure


def _requests(port: int, wanted: int, core: int) -> tuple[int, str]:
    """At least that many requests, and what failed. wrk counts seconds, so the rate seen sets its runs."""
    done, seconds, faults = 0, 2.0, ""
    deadline = time.monotonic() + _LONGEST_RUN_SECONDS
    while done < wanted:
        if time.monotonic() > deadline:
            raise NotMeasured(f"only {done} requests in {_LONGEST_RUN_SECONDS:g} s")
        report = run_wrk(port, seconds, core)
        done += report.requests
        faults = faults or report.faults
        seconds = min(20.0, (wanted - done) / max(1.0, report.requests_per_second))
    return done, faults

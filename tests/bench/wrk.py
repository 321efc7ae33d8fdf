"""Full load by wrk: one thread, 32 keep-alive connections, and what its report says."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from tests.bench.processes import NotMeasured

CONNECTIONS = 32

_MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True, slots=True)
class WrkReport:
    requests: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    socket_errors: int
    bad_answers: int  # neither 2xx nor 3xx

    @property
    def faults(self) -> str:
        """What went wrong, for a person; empty when nothing did."""
        parts = []
        if self.socket_errors:
            parts.append(f"{self.socket_errors} socket errors")
        if self.bad_answers:
            parts.append(f"{self.bad_answers} answers not 2xx")
        return ", ".join(parts)


def run_wrk(port: int, seconds: float, core: int) -> WrkReport:
    """wrk counts whole seconds, so a fraction is rounded up."""
    duration = max(1, -int(-seconds // 1))
    pinned = ["taskset", "--cpu-list", str(core)]
    options = ["--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{duration}s"]
    options += ["--timeout", "10s", "--latency"]
    finished = subprocess.run(
        [*pinned, "wrk", *options, f"http://127.0.0.1:{port}/"],
        capture_output=True,
        text=True,
        timeout=duration + 30,
        check=False,
    )
    if finished.returncode:
        raise NotMeasured(f"wrk: {finished.stderr.strip() or finished.stdout.strip()}")
    return parse(finished.stdout)


def parse(report: str) -> WrkReport:
    """Reads what `wrk --latency` prints; raises ValueError when a figure is not there."""
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", report)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", report)
    return WrkReport(
        requests=int(_figure(report, r"^\s*(\d+) requests in ")),
        requests_per_second=float(_figure(report, r"^Requests/sec:\s+([\d.]+)")),
        p50_ms=_latency(report, 50),
        p99_ms=_latency(report, 99),
        socket_errors=sum(map(int, errors.groups())) if errors else 0,
        bad_answers=int(bad[1]) if bad else 0,
    )


def _latency(report: str, percent: int) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", _figure(report, rf"^\s+{percent}%\s+(\S+)")).groups()  # type: ignore[union-attr]
    return float(number) * _MILLISECONDS[unit]


def _figure(report: str, pattern: str) -> str:
    found = re.search(pattern, report, re.MULTILINE)
    if found is None:
        raise ValueError(f"wrk's report has nothing like {pattern!r}:\n{report}")
    return found[1]

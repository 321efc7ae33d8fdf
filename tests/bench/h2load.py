"""Full load by h2load: one thread, HTTP/2 by prior knowledge, 32 streams at once on each connection, and what
its report says. It tells no percentiles, so these rows have none.

A number of requests is asked for, not a time: h2load counts what a lost connection takes with it only then.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from tests.bench.processes import NotMeasured, program

STREAMS = 32

_LONGEST_RUN_SECONDS = 150.0


@dataclass(frozen=True, slots=True)
class H2loadReport:
    requests: int  # answered with 2xx or 3xx
    requests_per_second: float
    bad_answers: int  # 4xx and 5xx
    lost: int  # reset, or gone with their connection
    p50_ms: None = None
    p99_ms: None = None

    @property
    def faults(self) -> str:
        """What went wrong, for a person; empty when nothing did."""
        parts = []
        if self.lost:
            parts.append(f"{self.lost} requests without an answer")
        if self.bad_answers:
            parts.append(f"{self.bad_answers} answers not 2xx")
        return ", ".join(parts)


def run_h2load(port: int, connections: int, requests: int, core: int) -> H2loadReport:
    command = ["taskset", "--cpu-list", str(core), program("h2load"), "--clients", str(connections)]
    command += ["--max-concurrent-streams", str(STREAMS), "--requests", str(requests)]
    finished = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/"],
        capture_output=True,
        text=True,
        timeout=_LONGEST_RUN_SECONDS,
        check=False,
    )
    if finished.returncode:
        raise NotMeasured(f"h2load: {finished.stderr.strip() or finished.stdout.strip()}")
    return parse(finished.stdout)


def parse(report: str) -> H2loadReport:
    """Reads what `h2load --requests` prints; raises ValueError when a figure is not there.

    Its "failed" holds the bad answers too.
    """
    requests = _figures(report, r"^requests: \d+ total, .* (\d+) succeeded, (\d+) failed,")
    bad_answers = sum(_figures(report, r"^status codes: .* (\d+) 4xx, (\d+) 5xx"))
    succeeded, failed = requests
    speed = re.search(r"^finished in \S+ ([\d.]+) req/s", report, re.MULTILINE)
    if speed is None:
        raise ValueError(f"h2load's report tells no speed:\n{report}")
    return H2loadReport(succeeded, float(speed[1]), bad_answers, max(0, failed - bad_answers))


def _figures(report: str, pattern: str) -> list[int]:
    found = re.search(pattern, report, re.MULTILINE)
    if found is None:
        raise ValueError(f"h2load's report has nothing like {pattern!r}:\n{report}")
    return [int(figure) for figure in found.groups()]

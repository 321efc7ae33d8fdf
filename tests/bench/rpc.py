"""gRPC between grpcio and grpcio: the bench's side of it. The two ends are programs (rpc_ends.py), so that
each has an interpreter of its own and this process none of gRPC's threads.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tests.bench.memory import worker
from tests.bench.peers import Peer, standing
from tests.bench.processes import (
    NotMeasured,
    forget_peak,
    peak_since,
    running,
    wait_until_listening,
)
from tests.bench.upstream import require_new_ids
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.bench.load import Bench

MESSAGES_AT_ONCE = 8

_ENDS = [sys.executable, "-m", "tests.bench.rpc_ends"]

Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class CallsReport:
    calls: int  # answered with OK
    seconds: float
    p50_ms: float
    p99_ms: float
    failed: list[str]
    wrong: int  # answered with something else than was sent

    @property
    def requests(self) -> int:
        return self.calls

    @property
    def requests_per_second(self) -> float:
        return self.calls / self.seconds

    @property
    def faults(self) -> str:
        """What went wrong, for a person; empty when nothing did."""
        parts = []
        if self.failed:
            parts.append(f"{len(self.failed)} calls failed, the first with {self.failed[0]}")
        if self.wrong:
            parts.append(f"{self.wrong} answers differ from what was sent")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class MessageFigures:
    """How many messages came back as they were sent, and how many KiB the worker's memory rose at most."""

    at_once: int
    identical: int
    peak_kib: int


@contextlib.contextmanager
def rpc_server(directory: Path, core: int) -> Iterator[int]:
    """Runs it for the block; gives its port."""
    port, log = free_port(), directory / "rpc.log"
    with running([*_ENDS, "serve", str(port)], log, core) as process:
        wait_until_listening(process, port, log)
        yield port


def require_same_rpc_work(port: int, ids_expected: bool) -> None:
    """Raises NotMeasured unless calls are answered, with new ids added to each."""
    arrived = _client(list[str], ["ids", str(port)], 30.0)
    if ids_expected:
        require_new_ids(arrived)


def run_calls(port: int, at_once: int, seconds: float, core: int) -> CallsReport:
    client = ["calls", str(port), str(seconds), str(at_once)]
    return _client(CallsReport, client, seconds + 150.0, core)


def measure_messages(bench: Bench, subject: Peer) -> MessageFigures:
    with (
        rpc_server(bench.directory, bench.load_core) as port,
        standing(subject, bench.directory, port, bench.proxy_core, require_same_rpc_work) as proxy,
    ):
        pid = worker(proxy)
        before = forget_peak(pid)
        client = ["messages", str(proxy.port), str(MESSAGES_AT_ONCE)]
        identical = _client(int, client, 150.0, bench.load_core)
        return MessageFigures(MESSAGES_AT_ONCE, identical, peak_since(pid) - before)


def _client(told: type[Told], arguments: list[str], patience: float, core: int | None = None) -> Told:
    pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
    finished = subprocess.run(
        [*pinned, *_ENDS, *arguments], capture_output=True, text=True, timeout=patience, check=False
    )
    if finished.returncode:
        last = finished.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise NotMeasured(f"gRPC client, {arguments[0]}: {last[0]}")
    return msgspec.json.decode(finished.stdout, type=told)

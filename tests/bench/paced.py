"""A steady rate over keep-alive connections, latency counted from when each request was due.

The schedule is fixed before the first request and never waits for an answer, so a stall is counted for every
request that should have been sent during it (wrk2's answer to coordinated omission). HTTP/1.1 allows one
request at a time on a connection: one that is due while its connection is busy waits for it, and that wait is
latency too.

Neither uvloop nor epoll is used here: both round their timers to a millisecond, which is the limit being
measured. select(2) takes microseconds.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from collections import deque
from dataclasses import dataclass

from tests.bench.figures import percentile, schedule
from tests.bench.processes import NotMeasured
from tests.bench.upstream import REQUEST, is_whole_answer

CONNECTIONS = 16
RATE = 1_000


@dataclass(frozen=True, slots=True)
class PacedReport:
    requests: int
    p50_ms: float
    p99_ms: float


class _Line:
    """One keep-alive connection: the requests that are due on it, the first of them being answered."""

    __slots__ = ("answer", "due", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due: deque[float] = deque()
        self.answer = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def ask(self, due: float) -> None:
        self.due.append(due)
        if len(self.due) == 1:
            self.socket.sendall(REQUEST)

    def hear(self) -> float | None:
        """The latency in seconds when that completed an answer."""
        received = self.socket.recv(65536)
        if not received:
            raise NotMeasured("a connection was closed during the paced run")
        self.answer += received
        if not is_whole_answer(self.answer):
            return None
        latency = time.perf_counter() - self.due.popleft()
        self.answer = b""
        if self.due:
            self.socket.sendall(REQUEST)
        return latency


def run_paced(port: int, seconds: float) -> PacedReport:
    """`RATE` requests a second for that long."""
    lines = [_Line(port) for _ in range(CONNECTIONS)]
    gc.collect()
    gc.disable()  # a pause of the client would be counted against the proxy
    try:
        latencies = sorted(_drive(lines, schedule(RATE, seconds)))
    except TimeoutError as late:
        raise NotMeasured("an answer took over 10 s") from late
    finally:
        gc.enable()
        for line in lines:
            line.socket.close()
    return PacedReport(len(latencies), percentile(latencies, 0.50) * 1e3, percentile(latencies, 0.99) * 1e3)


def _drive(lines: list[_Line], offsets: list[float]) -> list[float]:
    latencies: list[float] = []
    start = time.perf_counter() + 0.05
    asked = 0
    while len(latencies) < len(offsets):
        now = time.perf_counter()
        while asked < len(offsets) and start + offsets[asked] <= now:
            lines[asked % len(lines)].ask(start + offsets[asked])
            asked += 1
        patience = max(0.0, start + offsets[asked] - now) if asked < len(offsets) else 10.0
        ready, _, _ = select.select(lines, [], [], patience)
        if not ready and asked == len(offsets):
            raise TimeoutError
        latencies += [latency for line in ready if (latency := line.hear()) is not None]
    return latencies

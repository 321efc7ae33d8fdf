"""Processes that the bench starts: each on the core it is told, with its output in a file, ended by its pid.

Every process leads a session of its own, so that Ctrl-C reaches only the bench and the bench ends what it
started: the leader is asked first (SIGTERM), then whatever it had below it and did not end is killed. Pidfds
name those (a worker may lead a session of its own), so that no number comes to mean another process.

Accounts are read from /proc: CPU time and memory of the whole tree below a leader.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class NotMeasured(Exception):  # noqa: N818 - it is an outcome that a row shows, not a fault of the bench
    """Why a row has no figures."""


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds of CPU, split as the kernel splits them."""

    user: float
    kernel: float

    @property
    def total(self) -> float:
        return self.user + self.kernel

    def __add__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user + other.user, self.kernel + other.kernel)

    def __sub__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user - other.user, self.kernel - other.kernel)


@dataclass(frozen=True, slots=True)
class Memory:
    """KiB of one process, by /proc/PID/smaps_rollup, which is exact where VmRSS is a per-CPU estimate."""

    resident: int
    proportional: int


@dataclass(frozen=True, slots=True)
class _Stat:
    pid: int
    parent: int
    cpu: CpuTime


def program(name: str) -> str:
    """Where it is installed; servers may be where only root looks."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise NotMeasured(f"{name} is not installed")
    return found


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, core: int) -> Iterator[subprocess.Popen[bytes]]:
    """The command on that core for as long as the block lasts; stdout and stderr go to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["taskset", "--cpu-list", str(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes], patience: float = 5.0) -> None:
    with contextlib.ExitStack() as held:
        members = [held.enter_context(_pidfd(stat.pid)) for stat in _tree(process.pid)]
        os.kill(process.pid, signal.SIGTERM)  # not Popen.send_signal, which reaps a process that has ended
        deadline = time.monotonic() + patience
        while not _has_exited(process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        for member in members:
            if member is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(member, signal.SIGKILL)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int | None]:
    """A handle of the process, None when it has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _has_exited(pid: int) -> bool:
    """Whether a child of ours has ended, leaving it unreaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_until_listening(
    process: subprocess.Popen[bytes], port: int, log: Path, patience: float = 20.0
) -> None:
    """Returns once the port accepts; raises NotMeasured with the end of the log when it does not."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if _has_exited(process.pid):
            raise NotMeasured(f"{_program(process)} ended at once: {last_words(log)}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise NotMeasured(f"{_program(process)} does not listen after {patience:g} s: {last_words(log)}")


def _program(process: subprocess.Popen[bytes]) -> str:
    assert isinstance(process.args, list)
    return Path(process.args[3]).name  # after `taskset --cpu-list N`


def last_words(log: Path, lines: int = 2, width: int = 200) -> str:
    """The end of a log, short enough for a row of the table."""
    text = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(line[:width] for line in text[-lines:]) or "it wrote nothing"


def cpu_of_tree(leader: int) -> dict[int, CpuTime]:
    """CPU time so far of the leader and of all processes below it, by pid."""
    return {stat.pid: stat.cpu for stat in _tree(leader)}


def cpu_between(before: Mapping[int, CpuTime], after: Mapping[int, CpuTime]) -> CpuTime:
    """What a tree used between two samples; raises NotMeasured when one of its processes ended meanwhile."""
    if ended := before.keys() - after.keys():
        raise NotMeasured(f"process {min(ended)} of the proxy ended during the measurement")
    used = CpuTime(0.0, 0.0)
    for pid, now in after.items():
        used += now - before.get(pid, CpuTime(0.0, 0.0))
    return used


def memory_of(pid: int) -> Memory:
    fields = _fields(Path(f"/proc/{pid}/smaps_rollup"))
    return Memory(resident=fields["Rss"], proportional=fields["Pss"])


def forget_peak(pid: int) -> int:
    """Sets the high-water mark of resident memory back to what the process holds now: the KiB returned."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _fields(Path(f"/proc/{pid}/status"))["VmRSS"]


def peak_since(pid: int) -> int:
    """The high-water mark in KiB since `forget_peak`."""
    return _fields(Path(f"/proc/{pid}/status"))["VmHWM"]


def worker_of(leader: int, port: int) -> int:
    """The one process below the leader (or else the leader) that holds a socket listening on the port."""
    inodes = _listening_inodes(port)
    holders = [stat.pid for stat in _tree(leader) if _holds(stat.pid, inodes)]
    workers = [pid for pid in holders if pid != leader] or holders
    if len(workers) != 1:
        raise NotMeasured(f"expected one worker to listen on port {port}, found {len(workers)}")
    return workers[0]


def _tree(leader: int) -> list[_Stat]:
    stats = list(_all_stats())
    members = {leader}
    while more := {stat.pid for stat in stats if stat.parent in members} - members:
        members |= more
    return [stat for stat in stats if stat.pid in members]


def _all_stats() -> Iterator[_Stat]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended while we looked
                yield _parse_stat(int(entry.name), (entry / "stat").read_text())


def _parse_stat(pid: int, text: str) -> _Stat:
    """proc(5): the name in parentheses may hold anything, so fields are counted after the last `)`."""
    fields = text[text.rindex(")") + 2 :].split()  # begins with field 3, the state
    utime, stime = int(fields[14 - 3]), int(fields[15 - 3])
    return _Stat(pid, int(fields[4 - 3]), CpuTime(utime / TICKS_PER_SECOND, stime / TICKS_PER_SECOND))


def _fields(path: Path) -> dict[str, int]:
    """The `Name:   123 kB` lines of a /proc file."""
    fields = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            fields[name] = int(value.split()[0])
    return fields


def _listening_inodes(port: int) -> set[str]:
    """Sockets in state LISTEN (0A) on the port, IPv4 and IPv6."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes


def _holds(pid: int, inodes: set[str]) -> bool:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(descriptor).removeprefix("socket:[").removesuffix("]") in inodes:
                return True
    return False

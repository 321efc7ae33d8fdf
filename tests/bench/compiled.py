"""The compiled ends of the Thrift and MQTT measurements: one C source each, compiled where the run keeps its
files.

In C because the ends are to cost less than what stands between them: one core carries both, and the proxy's
core is to be the one that is full.

Every subject is sent the same bytes. What is to be carried opaque is sent one byte before them, which the
server drops: no protocol begins with it, so that ARCA's detection decides on that byte alone.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tests.bench.processes import NotMeasured, program, running, wait_until_listening
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

OPAQUE = b"\xff"

_SOURCES = Path(__file__).parent
_SPARE_SECONDS = 90.0

Told = TypeVar("Told")


def ends(directory: Path, name: str) -> Path:
    """The program `<name>_ends`, compiled once in that directory. Raises NotMeasured when it cannot be."""
    made = directory / f"{name}_ends"
    if not made.exists():
        source = _SOURCES / f"{name}_ends.c"
        command = [program("gcc"), "-O2", "-Wall", "-Wextra", "-o", str(made), str(source)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            errors = [line for line in finished.stderr.splitlines() if "error:" in line]
            raise NotMeasured(f"gcc: {(errors or ['it says nothing'])[0]}")
    return made


@contextlib.contextmanager
def serving(directory: Path, name: str, core: int) -> Iterator[int]:
    """Runs the server's end for the block; gives its port."""
    port, log = free_port(), directory / f"{name}.log"
    with running([str(ends(directory, name)), "serve", str(port)], log, core) as process:
        wait_until_listening(process, port, log)
        yield port


def told_by(
    directory: Path, name: str, arguments: list[str], seconds: float, core: int, told: type[Told]
) -> Told:
    """What the client's end prints after those seconds."""
    pinned = ["taskset", "--cpu-list", str(core), str(ends(directory, name))]
    finished = subprocess.run(
        [*pinned, *arguments], capture_output=True, text=True, timeout=seconds + _SPARE_SECONDS, check=False
    )
    if finished.returncode:
        last = finished.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise NotMeasured(f"{name} client: {last[0]}")
    return msgspec.json.decode(finished.stdout, type=told)

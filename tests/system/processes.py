"""Real ARCA processes for tests: started on free ports, watched through admin, always ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 15.0  # seconds; how long a loaded machine may take for what takes milliseconds

Row = dict[str, object]


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.01)


def end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Ask it to end, and make it if it does not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Echo:
    """An upstream that gives back what it gets; each connection has a thread."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(accepted,), daemon=True).start()

    def _echo(self, accepted: socket.socket) -> None:
        with accepted:
            try:
                while data := accepted.recv(65536):
                    accepted.sendall(data)
            except OSError:
                return


class Arca:
    """One supervisor with its workers. ``wrapper`` is a command to run it under."""

    def __init__(
        self,
        *arguments: str,
        environment: dict[str, str] | None = None,
        wrapper: tuple[str, ...] = (),
        stdout: int = subprocess.DEVNULL,
        metrics: int | None = None,
    ) -> None:
        self.admin = free_port()
        self.metrics = metrics or free_port()
        command = [*wrapper, sys.executable, "-m", "proxy.cli", "run", *arguments]
        command += ["--admin", f"127.0.0.1:{self.admin}", "--metrics", f"127.0.0.1:{self.metrics}"]
        self.process = subprocess.Popen(
            command,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent.parent,
            env={**os.environ, **(environment or {})},
        )
        self._said: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        workers = self.workers()
        end(self.process)
        for pid in workers:
            if Path(f"/proc/{pid}").exists() and "proxy.worker" in command_line(pid):
                os.kill(pid, signal.SIGKILL)

    @property
    def said(self) -> str:
        """What it wrote to stderr so far."""
        return "".join(self._said)

    def workers(self) -> list[int]:
        """The pids of its worker processes."""
        return [pid for pid in children(self.process.pid) if "proxy.worker" in command_line(pid)]

    def wait_ready(self) -> Self:
        until(lambda: self.process.poll() is not None or self.ready())
        assert self.process.poll() is None, self.said
        return self

    def ready(self) -> bool:
        return self.get("/ready")[0] == 200

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        """Status and body; status 0 when nobody answers."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port or self.admin}{path}", timeout=5
            ) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def post(self, path: str) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin}{path}", method="POST")
        with urllib.request.urlopen(request, timeout=5) as response:
            return int(response.status)

    def config(self) -> Row:
        found: Row = json.loads(self.get("/config")[1])
        return found

    def metric(self, name: str) -> float:
        """The sum of a metric over its label sets."""
        lines = self.get("/metrics", self.metrics)[1].splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " "))
        )

    def ended(self, seconds: float = PATIENCE) -> int:
        """Waits for its end; answers the exit status."""
        status = self.process.wait(seconds)
        self._listener.join(5)
        return status

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._said.append(line)


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""

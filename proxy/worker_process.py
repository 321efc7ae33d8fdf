"""One worker process as the supervisor sees it: started, spoken to over its channel, waited for.

The process is a fresh interpreter (exec, not fork), so that it holds only what it imports itself. What it
writes to stderr passes through here: it goes on to our own stderr, and its last lines are kept, for they
are all that a worker which dies at start can say.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import sysconfig
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from proxy import channel
from proxy.channel import Answer, Ask, Ready

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.channel import FromSupervisor, FromWorker, Start, Topic

_ROOT = str(Path(__file__).resolve().parent.parent)
LAST_WORDS = 20  # lines


class WorkerProcess:
    """Made by ``spawn``. ``ready`` is set once the worker accepts."""

    def __init__(self, receive: Callable[[FromWorker], None]) -> None:
        self.ready = asyncio.Event()
        self.last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self._receive_on = receive
        self._channel = channel.to_worker(self._receive, lambda error: None)
        self._process: asyncio.subprocess.Process | None = None
        self._relay: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Future[bytes | None]] = {}
        self._questions = 0

    @classmethod
    async def spawn(cls, start: Start, receive: Callable[[FromWorker], None]) -> WorkerProcess:
        """Starts a worker on the sockets of ``start``. Raises OSError when no process can be made."""
        worker = cls(receive)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                worker._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # nothing of the current directory is imported: it need not be ours
                    "-m",
                    "proxy.worker",
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,  # ours may be the exchange log
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=[theirs.fileno(), *(server.fd for server in start.servers)],
                    env=_environment(),
                    start_new_session=True,  # Ctrl-C is for the supervisor
                )
            except BaseException:
                ours.close()
                raise
        worker._relay = asyncio.create_task(worker._relay_stderr())
        await channel.connect(worker._channel, ours)
        worker.send(start)
        return worker

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send(self, message: FromSupervisor) -> None:
        self._channel.send(message)

    async def ask(self, what: Topic, n: int, seconds: float) -> bytes | None:
        """The worker's JSON array; None when it did not answer in time, or ended."""
        self._questions += 1
        number = self._questions
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self.send(Ask(number, what, n))
        try:
            return await asyncio.wait_for(answer, seconds)
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            assert self._process is not None
            self._process.kill()

    async def ended(self) -> str:
        """Waits for the process; answers how it ended, in words."""
        assert self._process is not None
        status = await self._process.wait()
        if self._relay is not None:
            # A grandchild could hold the pipe open; nobody waits for that.
            await asyncio.wait({self._relay}, timeout=0.2)
            self._relay.cancel()
        self._channel.close()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(None)
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def _receive(self, message: FromWorker) -> None:
        match message:
            case Ready():
                self.ready.set()
            case Answer(id=number, payload=payload):
                waiting = self._asked.get(number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(payload)
                return
        self._receive_on(message)

    async def _relay_stderr(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # a line over the reader's limit of 64 KiB: its rest follows as lines
                continue
            if not line:
                return
            self.last_words.append(line.decode(errors="replace").rstrip())
            with contextlib.suppress(OSError):
                os.write(2, line)


def _environment() -> dict[str, str]:
    """Ours, and where these modules are when they are not installed: -P takes away the current directory."""
    if sysconfig.get_path("platlib") == _ROOT:
        return dict(os.environ)
    path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}

"""The exchange log: whole JSON lines to a file or to stdout, written by a thread of its own.

The file system may stall, the reader of a pipe may stop reading or go away: none of that may reach the
proxy. So blocks of lines wait in a queue of bounded size, and what does not fit or cannot be written is
dropped and counted. Lines are never interleaved, and a line that was cut by a full disk is ended before
the next begins.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import select
import stat
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WAITING_MAX = 16 * 1024 * 1024  # bytes: some seconds of a busy node's lines

_log = logging.getLogger("arca.exchanges")


class ExchangeLogError(Exception):
    """The log cannot be opened. Its text is one line for a person."""


class ExchangeLog:
    """``dropped`` is told how many lines were lost; it may be called from the writing thread."""

    def __init__(self, path: str, dropped: Callable[[int], None]) -> None:
        """Opens ``path`` ("-": stdout) for appending. Raises ExchangeLogError."""
        self._dropped = dropped
        self._descriptor = _open(path)
        self._queue: queue.SimpleQueue[bytes | int | None] = queue.SimpleQueue()
        # Two totals with one writer each need no lock; their difference is what waits.
        self._given = 0
        self._taken = 0
        self._torn = False  # the last line written has no end yet
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="exchange-log", daemon=True)
        self._thread.start()

    def put(self, lines: bytes) -> None:
        """Takes a block of whole lines, or drops it when too much waits. Never blocks."""
        if self._given - self._taken + len(lines) > WAITING_MAX:
            self._dropped(lines.count(b"\n"))
            return
        self._given += len(lines)
        self._queue.put(lines)

    def reopen(self, path: str) -> None:
        """From here on lines go to ``path``, opened anew. Raises ExchangeLogError; then the old one stays."""
        self._queue.put(_open(path))

    def close(self, seconds: float) -> None:
        """Writes what waits, for at most so long; the rest is dropped."""
        self._queue.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, int):
                os.close(self._descriptor)
                self._descriptor = item
                self._torn = self._failing = False
            else:
                self._write(item)
                self._taken += len(item)
        os.close(self._descriptor)

    def _write(self, lines: bytes) -> None:
        view = memoryview(b"\n" + lines if self._torn else lines)
        try:
            while view:
                view = view[self._write_some(view) :]
                self._torn = bool(view)
            self._failing = False
        except OSError as error:
            self._dropped(bytes(view).count(b"\n"))
            if not self._failing:
                self._failing = True
                _log.error("the exchange log cannot be written, lines are dropped: %s", error.strerror)

    def _write_some(self, view: memoryview) -> int:
        try:
            return os.write(self._descriptor, view)
        except BlockingIOError:
            # Somebody shares this pipe or terminal with us and made it non-blocking.
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            poll.poll()
            return 0


def _open(path: str) -> int:
    try:
        if path == "-":
            return os.dup(1)
        # O_NONBLOCK: a FIFO nobody reads is an error here, rather than a start that hangs.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o640)
    except OSError as error:
        why = "nobody reads this pipe" if error.errno == errno.ENXIO else error.strerror
        raise ExchangeLogError(f"the exchange log {path} cannot be opened: {why}") from None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.set_blocking(descriptor, True)
    return descriptor

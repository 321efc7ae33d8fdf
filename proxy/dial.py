"""One attempt to connect a pair to where it was going.

It has two steps. While the socket connects, the attempt can be given up. Then the socket becomes a transport,
and that step runs to its end whatever happens to the pair: a transport that is aborted before the event loop
has tied the Python socket to it leaves a socket object with a descriptor that is not its own any more, and
that closes somebody else's connection when it is collected. So the pair acts on its upstream side only
after ``connected``.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from typing import TYPE_CHECKING

from netfilter.destination import mark

if TYPE_CHECKING:
    import asyncio

    from proxy.pair import Pair

_log = logging.getLogger("arca.dial")


class Dial:
    """Ends with ``pair.connected`` or ``pair.dial_failed``, never before the call that makes it has returned.

    ``limit`` is in seconds, 0 for as long as the kernel tries; ``socket_mark`` is 0 for none.
    """

    __slots__ = ("_ending", "_handing_over", "_loop", "_pair", "_socket", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, pair: Pair, socket_mark: int, limit: float) -> None:
        self._loop = loop
        self._pair = pair
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Handle | None = None
        self._handing_over: asyncio.Task[None] | None = None
        host, port = pair.destination
        try:
            self._connect(host, port, socket_mark)
        except OSError as error:
            self._close()
            self._ending = loop.call_soon(pair.dial_failed, error.errno or errno.EIO)
        else:
            if limit:
                self._timer = loop.call_later(limit, self._fail, errno.ETIMEDOUT)

    def cancel(self) -> bool:
        """Give up; False when it is too late for that: ``connected`` or ``dial_failed`` will be called."""
        if self._handing_over is not None:
            return False
        if self._ending is not None:
            self._ending.cancel()
        self._close()
        return True

    def _connect(self, host: str, port: int, socket_mark: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if socket_mark:
            mark(self._socket, socket_mark)
        # The loop's sock_connect resolves its address in a thread, and loses the scope of a link-local one.
        error = self._socket.connect_ex(_socket_address(family, host, port))
        if error not in (0, errno.EINPROGRESS):
            raise OSError(error, "connect")
        self._loop.add_writer(self._socket, self._decided)

    def _decided(self) -> None:
        assert self._socket is not None
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._fail(error)
            return
        self._loop.remove_writer(self._socket)
        if self._timer is not None:
            self._timer.cancel()
        connected, self._socket = self._socket, None
        self._handing_over = self._loop.create_task(self._hand_over(connected, time.monotonic()))

    async def _hand_over(self, connected: socket.socket, at: float) -> None:
        try:
            await self._loop.create_connection(lambda: self._pair.upstream, sock=connected)
        except Exception as error:
            connected.close()
            if not isinstance(error, OSError):
                _log.exception("a connection could not be handed to the event loop")
            self._pair.dial_failed(getattr(error, "errno", None) or errno.EIO)
        else:
            self._pair.connected(at)

    def _fail(self, error: int) -> None:
        self._close()
        self._pair.dial_failed(error)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None


def _socket_address(family: int, host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    if family == socket.AF_INET:
        return (host, port)
    bare, _, scope = host.partition("%")
    return (bare, port, 0, int(scope) if scope else 0)

"""The listening sockets: one per worker and address, opened by the supervisor and kept open as long as it
lives.

The kernel spreads connections over the sockets of one address (SO_REUSEPORT). Because the supervisor
holds each of them besides the worker, the connections that wait in a killed worker's queue are still
there for the worker that replaces it. SO_REUSEPORT would also let a second ARCA join in silently, so each
address is first bound once without it: what is taken is then said, and by whom.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.addresses import Address

# The kernel cuts it to net.core.somaxconn, whose default since Linux 5.4 this is.
BACKLOG = 4096

_LISTEN_STATE = "0A"  # net/tcp_states.h, as /proc/net/tcp prints it


class AddressError(Exception):
    """An address cannot be listened on. Its text is one line for a person."""


def open_shared(address: Address, copies: int) -> list[socket.socket]:
    """``copies`` sockets that listen on ``address`` side by side. Raises AddressError."""
    opened: list[socket.socket] = []
    try:
        probe(address)
        while len(opened) < copies:
            opened.append(_bound(address, shared=True))
        for each in opened:
            each.listen(BACKLOG)
    except OSError as error:
        close(opened)
        raise _refused(address, error) from None
    except AddressError:
        close(opened)
        raise
    return opened


def open_alone(address: Address) -> socket.socket:
    """One socket that listens on ``address``. Raises AddressError."""
    try:
        alone = _bound(address, shared=False)
    except OSError as error:
        raise _refused(address, error) from None
    alone.listen(128)
    return alone


def probe(address: Address) -> None:
    """Raises AddressError when ``address`` is taken or cannot be bound."""
    try:
        _bound(address, shared=False).close()
    except OSError as error:
        raise _refused(address, error) from None


def close(sockets: Iterable[socket.socket]) -> None:
    for each in sockets:
        each.close()


def _bound(address: Address, *, shared: bool) -> socket.socket:
    bound = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # On Linux this passes over connections in TIME_WAIT, but never over another listener.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((address.host, address.port))
    except BaseException:
        bound.close()
        raise
    return bound


def _refused(address: Address, error: OSError) -> AddressError:
    if error.errno != errno.EADDRINUSE:
        return AddressError(f"cannot listen on {address}: {error.strerror}")
    owner = owner_of(address.port)
    by = f" by pid {owner[0]}, {owner[1]}" if owner else ""
    return AddressError(f"port {address.port} is taken{by} ({address})")


def owner_of(port: int) -> tuple[int, str] | None:
    """The pid and name of a process that listens on ``port``, as far as /proc lets this process see it."""
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            inodes |= listening_inodes(Path(table).read_text(), port)
        except OSError:
            continue
    links = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").iterdir() if links else ():
        if process.name.isdecimal() and _holds(process / "fd", links):
            return int(process.name), _name(process)
    return None


def listening_inodes(table: str, port: int) -> set[str]:
    """From the text of /proc/net/tcp or tcp6 (proc_net_tcp.rst), the inodes of listeners on ``port``."""
    inodes: set[str] = set()
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN_STATE and int(fields[1].rpartition(":")[2], 16) == port:
            inodes.add(fields[9])
    return inodes


def _holds(descriptors: Path, links: set[str]) -> bool:
    try:
        return any(os.readlink(each) in links for each in descriptors.iterdir())
    except OSError:  # not ours to see, or gone
        return False


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "unknown"

"""Where a redirected connection was going, and the mark that keeps the proxy's own from being redirected.

REDIRECT rewrites the destination to the proxy; conntrack remembers the original one and gives it to whoever
holds the accepted socket, by SO_ORIGINAL_DST. Called once per connection by every worker: no allocation
beyond the answer, no import beyond the standard library, and never a descriptor closed that the caller owns.
"""

import errno
import socket
import struct
from typing import NamedTuple

# include/uapi/linux/netfilter_ipv4.h and netfilter_ipv6/ip6_tables.h: one number at both levels.
_SO_ORIGINAL_DST = 80
_SOL_IP = 0
_SOL_IPV6 = 41

# sockaddr_in: family in host order, then port and address in network order, then 8 bytes of nothing.
_SOCKADDR_IN = struct.Struct("=2s2s4s8x")
# sockaddr_in6: family, port, flow label, address, and the interface index for a link-local address.
_SOCKADDR_IN6 = struct.Struct("=2s2s4s16sI")

# include/uapi/asm-generic/socket.h; the socket module of 3.11 has the name only where the headers had it.
_SO_MARK = 36

_MAPPED = "::ffff:"

# nf_conntrack_proto.c, getorigdst: no entry for this connection; not TCP, or a kernel without conntrack.
_UNKNOWN_TO_CONNTRACK = frozenset((errno.ENOENT, errno.ENOPROTOOPT, errno.EOPNOTSUPP))


class Address(NamedTuple):
    """An IP address and a port; link-local IPv6 carries its interface index: `fe80::1%2`."""

    host: str
    port: int


def original_destination(fd: int) -> Address | None:
    """Where the client of the accepted TCP socket `fd` was connecting to before any translation.

    None when conntrack does not know the connection. A connection that came straight to the proxy gives the
    proxy's own address. An IPv4 connection accepted by an IPv6 socket gives its IPv4 address. Raises OSError
    for a descriptor that is not an IP socket or no longer connected.
    """
    sock = socket.socket(fileno=fd)
    try:
        if sock.family == socket.AF_INET or _is_mapped(sock):
            packed = sock.getsockopt(_SOL_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
            return _ipv4(packed)
        return _ipv6(sock.getsockopt(_SOL_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size))
    except OSError as error:
        if error.errno in _UNKNOWN_TO_CONNTRACK:
            return None
        raise
    finally:
        sock.detach()


def local_address(fd: int) -> Address:
    """The address that the socket `fd` has on this host, after translation; IPv4 in its own form."""
    sock = socket.socket(fileno=fd)
    try:
        return unmapped(sock.getsockname())
    finally:
        sock.detach()


def unmapped(sockname: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    """What `getsockname` or `getpeername` gave, as an Address; `::ffff:10.0.0.1` becomes `10.0.0.1`."""
    host = sockname[0]
    if host.startswith(_MAPPED) and "." in host:
        host = host[len(_MAPPED) :]
    return Address(host, sockname[1])


def mark(sock: socket.socket, value: int) -> bool:
    """Set SO_MARK on `sock` so that the rules let its packets pass.

    False when this process may not (it takes CAP_NET_ADMIN, or CAP_NET_RAW since Linux 5.17): the rules then
    know the connection by the proxy's user and group. Raises OSError, saying so, for anything else.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, value)
    except PermissionError:
        return False
    except OSError as error:
        raise OSError(error.errno, f"SO_MARK {value:#x} was refused: {error.strerror}") from error
    return True


def _is_mapped(sock: socket.socket) -> bool:
    if sock.family != socket.AF_INET6:
        raise OSError(errno.EAFNOSUPPORT, f"not an IP socket: {sock.family!r}")
    host = sock.getsockname()[0]
    return host.startswith(_MAPPED) and "." in host


def _ipv4(packed: bytes) -> Address:
    _, port, address = _SOCKADDR_IN.unpack(packed)
    return Address(socket.inet_ntop(socket.AF_INET, address), int.from_bytes(port, "big"))


def _ipv6(packed: bytes) -> Address:
    _, port, _, address, scope = _SOCKADDR_IN6.unpack(packed)
    host = socket.inet_ntop(socket.AF_INET6, address)
    return Address(f"{host}%{scope}" if scope else host, int.from_bytes(port, "big"))

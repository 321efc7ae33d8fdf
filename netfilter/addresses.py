"""Which addresses are this host's own: a connection to one of them is inbound, to any other outbound.

The kernel's local routing table is the one source: it holds every assigned address, 127.0.0.0/8, and prefixes
made local by an AnyIP route, which no list of interfaces shows. `LocalAddresses` answers from a copy of it,
once per connection; `LocalAddressWatch` tells the supervisor when the copy is out of date.
"""

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

# include/uapi/linux/rtnetlink.h
_RT_TABLE_LOCAL = 255
_RTN_LOCAL = 2
_RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE, _RTM_DELROUTE = 20, 21, 24, 25
_GROUPS = 0x10 | 0x40 | 0x100 | 0x400  # RTMGRP_IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE

_NLMSGHDR = struct.Struct("=IHHII")  # length with this header, type, flags, sequence, port
_RTMSG = struct.Struct("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type; flags

# Remembered answers for addresses that are not spelled out in the table. Past this the memory starts anew:
# a scan over many destinations must cost time, not memory.
_REMEMBERED = 4096


class LocalAddresses:
    """The local addresses of one network namespace at one moment: `"10.0.0.7" in addresses`.

    Built from prefixes ("10.0.0.7/32", "127.0.0.0/8", "fd00::7/128"). Takes any spelling of an address, IPv4
    in IPv6 ("::ffff:10.0.0.7"), and a zone ("fe80::1%2", ignored). What is not an address is not local.
    """

    __slots__ = ("_exact", "_remembered", "_wide")

    def __init__(self, prefixes: Iterable[str]) -> None:
        networks = [ipaddress.ip_network(prefix) for prefix in prefixes]
        self._exact = frozenset(
            str(network.network_address) for network in networks if network.prefixlen == network.max_prefixlen
        )
        self._wide = tuple(network for network in networks if network.prefixlen < network.max_prefixlen)
        self._remembered: dict[str, bool] = {}

    def __contains__(self, host: str) -> bool:
        if host in self._exact:
            return True
        known = self._remembered.get(host)
        if known is None:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            known = self._remembered[host] = self._look_up(host)
        return known

    def _look_up(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return str(address) in self._exact or any(address in network for network in self._wide)


def read_local_prefixes() -> list[str]:
    """The local routing table of the calling thread's network namespace, sorted, as "address/length".

    Blocks for a few milliseconds. Raises OSError when the kernel refuses.
    """
    # pyroute2's sockets drive an event loop of their own, which fails inside a running one: hence a thread.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-routes") as thread:
        return thread.submit(_dump_local_table).result()


def _dump_local_table() -> list[str]:
    # Imported here: it costs 13 MB and a quarter of a second, which workers (they only ask) must not pay.
    from pyroute2 import IPRoute  # type: ignore[import-untyped]
    from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

    prefixes = set()
    try:
        with IPRoute() as route:
            for family in (socket.AF_INET, socket.AF_INET6):
                for message in route.get_routes(family=family, table=_RT_TABLE_LOCAL):
                    destination = message.get_attr("RTA_DST")
                    if message["type"] == _RTN_LOCAL:
                        everywhere = "0.0.0.0" if family == socket.AF_INET else "::"
                        prefixes.add(f"{destination or everywhere}/{message['dst_len']}")
    except NetlinkError as error:
        raise OSError(error.code, f"the local routing table cannot be read: {error}") from error
    return sorted(prefixes)


class LocalAddressWatch:
    """Tells when the local addresses may have changed. For an event loop: `add_reader(watch.fileno(), ...)`.

    Belongs to the network namespace of the thread that makes it. Make it *before* reading the table, so that
    no change falls between. Raises OSError when the kernel has no route netlink.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
        try:
            self._socket.bind((0, _GROUPS))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> bool:
        """Read all that is waiting; whether any of it concerns local addresses, or something was lost."""
        changed = False
        while True:
            try:
                changed |= concerns_local_addresses(self._socket.recv(65536))
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True  # the kernel dropped messages: what they said is not known

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def concerns_local_addresses(datagram: bytes) -> bool:
    """Whether a datagram of route netlink messages speaks of an address or of a local route. Pure.

    Other routes are passed over: a host with a routing daemon sees thousands of them.
    """
    at = 0
    while at + _NLMSGHDR.size <= len(datagram):
        length, kind, *_ = _NLMSGHDR.unpack_from(datagram, at)
        if kind in (_RTM_NEWADDR, _RTM_DELADDR):
            return True
        body = at + _NLMSGHDR.size
        if kind in (_RTM_NEWROUTE, _RTM_DELROUTE) and body + _RTMSG.size <= len(datagram):
            route_type = _RTMSG.unpack_from(datagram, body)[7]
            if route_type == _RTN_LOCAL:
                return True
        if length < _NLMSGHDR.size:
            return True  # not understood: reading the table once too often does no harm
        at += (length + 3) & ~3  # NLMSG_ALIGN
    return False

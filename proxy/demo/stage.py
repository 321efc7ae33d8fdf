"""Where the play is given: two network namespaces that know only each other, or without root the loopback.

Both stages answer the same questions (where the server listens, which URL a client uses, how a program is
started on a host, what `arca run` is told), so nothing else knows on which of them it is. The machine's own
network is not touched: the link between the namespaces is made inside them, and redirect rules are put into
the namespaces by ARCA itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from proxy.demo.play import BOTH, SERVED, Family, Host, Port

if TYPE_CHECKING:
    from collections.abc import Iterator

# Debian keeps nginx and iptables where an unprivileged user's PATH does not look.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

_NAME = re.compile(r"arca-demo-(\d+)-\w+")


def name(part: str) -> str:
    """The name of something that this process makes and removes; ``remove_leftovers`` knows it by its pid."""
    return f"arca-demo-{os.getpid()}-{part}"


class StageError(Exception):
    """The stage cannot be set. Its text is one line for a person."""


class Stage(Protocol):
    """What the actors ask of the place where they are."""

    title: str
    remarks: list[str]
    families: tuple[Family, ...]
    directions: dict[Host, str]  # what an ARCA must call the traffic that it sees

    def address(self, family: Family, port: Port) -> str:
        """Where a client finds the server."""

    def listens(self, port: Port) -> list[str]:
        """What the server of ``port`` is told to listen on."""

    def settings(self, host: Host) -> str:
        """The part of arca.toml that says what the ARCA of ``host`` takes."""

    def flags(self, host: Host) -> list[str]:
        """The flags of its `arca run` besides `-c`."""

    def admin(self, host: Host) -> str:
        """The address of its admin endpoints."""

    def on(self, host: Host) -> list[str]:
        """The command before a command that is to run on ``host``."""

    def close(self) -> None: ...


# ---- with root

_PORTS = {
    Port.WEB: 80,
    Port.HTTP2: 81,
    Port.GRPC: 9000,
    Port.THRIFT: 9090,
    Port.MQTT: 1883,
    Port.CLOSED: 8080,
}
_IFA_F_NODAD = 0x02  # linux/if_addr.h: otherwise the address cannot be used for a second or two


def root_lacks() -> str | None:
    """Why namespaces and rules cannot be had, or None when they can."""
    if os.geteuid() != 0:
        return "not root"
    for program, package in (
        ("nsenter", "util-linux"),
        ("iptables-restore", "iptables"),
        ("ip6tables-restore", "iptables"),
    ):
        if shutil.which(program, path=PATH) is None:
            return f"the program {program} is missing (package {package})"
    tried = subprocess.run(
        ["unshare", "--net", "true"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return None if tried.returncode == 0 else f"network namespaces are refused: {tried.stderr.strip()}"


class Route(Protocol):
    """The part of pyroute2.IPRoute, which has no types, that is used here."""

    def link(self, command: str, **what: object) -> object: ...
    def addr(self, command: str, **what: object) -> object: ...
    def link_lookup(self, *, ifname: str) -> list[int]: ...


class Namespaces:
    """Two hosts joined by a veth pair, with redirect rules at both: ARCA is in the way, and nobody knows."""

    title = "two network namespaces, redirect rules applied in both"

    def __init__(self) -> None:
        # Imported here: a quarter of a second, for nothing when the stage is the loopback.
        from pyroute2 import IPRoute, netns  # type: ignore[import-untyped]
        from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

        self.remarks: list[str] = []
        self.families: tuple[Family, ...] = (Family.IPV4,)
        self.directions = {Host.CLIENT: "outbound", Host.SERVER: "inbound"}
        self._netns = netns
        self._names = {host: name(host) for host in BOTH}
        try:
            for each in self._names.values():
                netns.create(each)
            with contextlib.ExitStack() as opened:
                routes = {host: opened.enter_context(IPRoute(netns=self._names[host])) for host in BOTH}
                peer = {"ifname": "eth0", "net_ns_fd": self._names[Host.SERVER]}
                routes[Host.CLIENT].link("add", ifname="eth0", kind="veth", peer=peer)
                for host, route in routes.items():
                    self._bring_up(host, route)
                try:
                    for host, route in routes.items():
                        self._add_ipv6(host, route)
                    self.families = (Family.IPV4, Family.IPV6)
                except NetlinkError as error:
                    self.remarks.append(f"Without IPv6, which the kernel does not give: {error}")
        except NetlinkError as error:
            self.close()
            raise StageError(f"the kernel refuses a link between two namespaces: {error}") from error
        except BaseException:
            self.close()
            raise

    def _bring_up(self, host: Host, route: Route) -> None:
        for interface in ("lo", "eth0"):
            (index,) = route.link_lookup(ifname=interface)
            if interface == "eth0":
                route.addr("add", index=index, address=_address(host, Family.IPV4), prefixlen=24)
            route.link("set", index=index, state="up")

    def _add_ipv6(self, host: Host, route: Route) -> None:
        (index,) = route.link_lookup(ifname="eth0")
        route.addr("add", index=index, address=_address(host, Family.IPV6), prefixlen=64, flags=_IFA_F_NODAD)

    def address(self, family: Family, port: Port) -> str:
        return f"{_bracketed(_address(Host.SERVER, family))}:{_PORTS[port]}"

    def listens(self, port: Port) -> list[str]:
        return [self.address(family, port) for family in self.families]

    def settings(self, host: Host) -> str:
        if host is Host.SERVER:
            return f"[rules]\napply = true\ninbound_ports = {[_PORTS[each] for each in SERVED]}\n"
        return f"[rules]\napply = true\noutbound_ports = {list(_PORTS.values())}\n"

    def flags(self, host: Host) -> list[str]:
        return []

    def admin(self, host: Host) -> str:
        return "127.0.0.1:15000"

    def on(self, host: Host) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self._names[host]}", "--"]

    def close(self) -> None:
        """The link, the addresses and what rules there may still be go with the namespaces."""
        for each in self._names.values():
            with contextlib.suppress(FileNotFoundError):
                self._netns.remove(each)


def _address(host: Host, family: Family) -> str:
    network = "10.72.0." if family is Family.IPV4 else "fd72::"
    return f"{network}{1 if host is Host.CLIENT else 2}"


# ---- without root

_LOOPBACK = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}


class Loopback:
    """Everything on 127.0.0.1 and ::1: the client is told to go to its ARCA, which goes to the server's."""

    title = "loopback, the client sent to its ARCA by hand"

    def __init__(self, why: str) -> None:
        self.remarks = [
            f"Without network namespaces and redirect rules: {why}.",
            "As root, after `make setup`, client and server are hosts of their own, netfilter takes their",
            "connections with neither end told, and outbound is told from inbound.",
        ]
        self.directions = dict.fromkeys(BOTH, "inbound")  # every address is this host's own
        # A port that is bound and not listened on refuses connections, and nobody else can come to listen.
        self._closed: dict[Family, socket.socket] = {}
        # The service itself, the server's ARCA before it, and the client's ARCA before that.
        self._ports: dict[tuple[Family, Port, str], int] = {}
        with contextlib.ExitStack() as held:  # all at once, so that no two get the same
            for family, host in _LOOPBACK.items():
                try:
                    self._closed[family] = _bound(host)
                except OSError as error:
                    self.remarks.append(f"Without {family}: {host} cannot be used ({error.strerror}).")
                    continue
                for port in Port:
                    for where in ("service", "server", "client"):
                        self._ports[family, port, where] = _port(held.enter_context(_bound(host)))
                self._ports[family, Port.CLOSED, "server"] = _port(self._closed[family])
            self._admin = {each: _port(held.enter_context(_bound("127.0.0.1"))) for each in BOTH}
        self.families = tuple(self._closed)

    def address(self, family: Family, port: Port) -> str:
        return self._at(family, port, "client")

    def listens(self, port: Port) -> list[str]:
        return [self._at(family, port, "service") for family in self.families]

    def settings(self, host: Host) -> str:
        return ""

    def flags(self, host: Host) -> list[str]:
        ports, here, there = (
            (SERVED, "server", "service") if host is Host.SERVER else (Port, "client", "server")
        )
        flags: list[str] = []
        for family in self.families:
            for port in ports:
                flags += ["--forward", f"{self._at(family, port, here)}={self._at(family, port, there)}"]
        return flags

    def admin(self, host: Host) -> str:
        return f"127.0.0.1:{self._admin[host]}"

    def on(self, host: Host) -> list[str]:
        return []

    def close(self) -> None:
        for each in self._closed.values():
            each.close()

    def _at(self, family: Family, port: Port, where: str) -> str:
        return f"{_bracketed(_LOOPBACK[family])}:{self._ports[family, port, where]}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _bound(host: str) -> socket.socket:
    """A socket with a port of its own."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.bind((host, 0))
    except OSError:
        made.close()
        raise
    return made


def _port(bound: socket.socket) -> int:
    return int(bound.getsockname()[1])


# ---- what an earlier demo left


def remove_leftovers() -> None:
    """Take away what a demo that was killed could not: only what has its name, and its pid is gone.

    Its processes have died with it; those that have not, and are in its namespaces, are killed.
    """
    for folder in Path(tempfile.gettempdir()).glob("arca-demo-*"):
        if _is_left_over(folder.name) and not folder.is_symlink() and folder.lstat().st_uid == os.geteuid():
            shutil.rmtree(folder, ignore_errors=True)
    if os.geteuid() != 0 or not any(_is_left_over(each) for each in _namespaces()):
        return
    from pyroute2 import netns

    inhabitants = netns.ns_pids()
    for each in _namespaces():
        if _is_left_over(each):
            for pid in inhabitants.get(each, ()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(FileNotFoundError):
                netns.remove(each)


def _namespaces() -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):
        yield from os.listdir("/run/netns")


def _is_left_over(found: str) -> bool:
    named = _NAME.match(found)
    if named is None:
        return False
    try:
        os.kill(int(named[1]), 0)
    except OSError as error:
        return error.errno == errno.ESRCH
    return False

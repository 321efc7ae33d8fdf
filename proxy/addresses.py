"""Addresses as people write them in the configuration: ``HOST:PORT``, ``[IPV6]:PORT``, ``:PORT``.

Parsing is pure. Only the target of an explicit forward may be a name, and only ``resolve`` asks the
resolver for it: once, at start, so that a later change of DNS cannot send a connection elsewhere than the
log says.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import NamedTuple

ADDRESS_FORMS = "HOST:PORT, [IPV6]:PORT or :PORT, HOST an IP address and PORT from 1 to 65535"
FORWARD_FORMS = (
    "LISTEN=TARGET, LISTEN as HOST:PORT or :PORT with an IP address, TARGET as NAME:PORT or IP:PORT"
)

# RFC 1123 section 2.1, with the underscore that container networks use.
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")


class Address(NamedTuple):
    """An IP address or, as a target only, a name; and a port of 1..65535."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


class Listener(NamedTuple):
    """Where connections are accepted and where they go; no target: where the kernel says each was going."""

    address: Address
    target: Address | None = None

    def __str__(self) -> str:
        return f"{self.address} for {self.target}" if self.target else str(self.address)


def parse_address(text: str) -> Address:
    """``:PORT`` means every IPv4 address. Raises ValueError."""
    host, port = _split(text)
    return Address(_canonical(host or "0.0.0.0"), port)


def parse_forward(text: str) -> Listener:
    """``LISTEN=TARGET``; a target without a host is this machine. Raises ValueError."""
    listen, equals, target = text.partition("=")
    if not equals:
        raise ValueError("there is no =")
    host, port = _split(target)
    if _NAME.fullmatch(host) and not _numeric(host):
        return Listener(parse_address(listen), Address(host, port))
    return Listener(parse_address(listen), Address(_canonical(host or "127.0.0.1"), port))


def resolve(target: Address) -> Address:
    """The first address of a name, IPv4 or IPv6 as the resolver orders them. Blocks. Raises OSError."""
    found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    return Address(str(found[0][4][0]), target.port)


def _split(text: str) -> tuple[str, int]:
    host, colon, port = text.strip().rpartition(":")
    if not colon:
        raise ValueError("there is no port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ValueError("only an IPv6 address stands in brackets")
    elif ":" in host:
        raise ValueError("an IPv6 address stands in brackets")
    # isdecimal alone would take the digits of every script.
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"{port!r} is no port")
    return host, int(port)


def _canonical(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        raise ValueError(f"{host!r} is no IP address") from None


def _numeric(host: str) -> bool:
    """Whether the last label is a number: then it is a mistyped IPv4 address (WHATWG URL, 3.5)."""
    return host.rstrip(".").rpartition(".")[2].isdecimal()

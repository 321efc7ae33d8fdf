"""Local or not, and which netlink messages say that this may have changed."""

import socket
import struct
import subprocess
import sys

import pytest

from netfilter import addresses
from netfilter.addresses import LocalAddresses, concerns_local_addresses
from netfilter.destination import Address, local_address, mark, original_destination, unmapped

LOCAL = LocalAddresses(
    ["127.0.0.0/8", "127.0.0.1/32", "10.1.2.3/32", "192.0.2.0/24", "::1/128", "fd00::7/128", "fd99::/64"]
)


@pytest.mark.parametrize(
    "host",
    [
        "10.1.2.3",
        "::ffff:10.1.2.3",
        "127.0.0.1",
        "127.9.9.9",
        "192.0.2.77",
        "::1",
        "fd00::7",
        "FD00:0::7",
        "fd00::7%2",
        "fd99::abcd",
    ],
)
def test_an_address_of_the_host_is_local_in_every_spelling(host: str) -> None:
    assert host in LOCAL
    assert host in LOCAL, "and still when the answer is remembered"


@pytest.mark.parametrize(
    "host", ["10.1.2.4", "::ffff:10.1.2.4", "fd00::8", "::", "", "localhost", "10.1.2.3:80"]
)
def test_any_other_address_is_not(host: str) -> None:
    assert host not in LOCAL
    assert host not in LOCAL


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_REMEMBERED", 16)
    local = LocalAddresses(["127.0.0.0/8"])
    for number in range(200):
        assert f"10.0.0.{number}" not in local
        assert f"127.0.0.{number}" in local
    assert len(local._remembered) <= 16


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def route(route_type: int) -> bytes:
    return struct.pack("=8BI", socket.AF_INET, 32, 0, 0, 255, 2, 254, route_type, 0)


@pytest.mark.parametrize(
    ("datagram", "concerns"),
    [
        (message(20, b"\0" * 8), True),
        (message(21, b"\0" * 8), True),
        (message(24, route(2)), True),
        (message(25, route(2)), True),
        (message(24, route(1)), False),
        (message(24, route(1)) + message(25, route(2)), True),
        (message(24, route(1) + b"\0\0\0\0\0") + b"\0\0\0" + message(20, b""), True),
        (message(16, b"\0" * 16), False),
        (b"", False),
        (b"\1\2\3", False),
        (struct.pack("=IHHII", 3, 16, 0, 0, 0), True),
    ],
)
def test_only_addresses_and_local_routes_are_a_change(datagram: bytes, concerns: bool) -> None:
    assert concerns_local_addresses(datagram) is concerns


def test_a_worker_does_not_pay_for_pyroute2() -> None:
    code = "import sys, netfilter.addresses, netfilter.destination; sys.exit('pyroute2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_original_destination_of_what_is_not_an_ip_socket_is_an_error_and_closes_nothing() -> None:
    left, right = socket.socketpair()
    with left, right:
        with pytest.raises(OSError, match="not an IP socket"):
            original_destination(left.fileno())
        left.sendall(b"still open")
        assert right.recv(16) == b"still open"


@pytest.mark.parametrize(
    ("sockname", "expected"),
    [
        (("10.0.0.1", 80), Address("10.0.0.1", 80)),
        (("::ffff:10.0.0.1", 80, 0, 0), Address("10.0.0.1", 80)),
        (("::ffff:0:1", 80, 0, 0), Address("::ffff:0:1", 80)),
        (("fd00::1", 80, 0, 0), Address("fd00::1", 80)),
    ],
)
def test_ipv4_in_ipv6_is_shown_as_ipv4(
    sockname: tuple[str, int] | tuple[str, int, int, int], expected: Address
) -> None:
    assert unmapped(sockname) == expected


def test_the_local_address_is_read_without_closing_the_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert local_address(listener.fileno()) == listener.getsockname()
        assert local_address(listener.fileno()) == listener.getsockname()


def test_a_refused_mark_is_reported_and_a_broken_socket_is_an_error() -> None:
    class Unprivileged(socket.socket):
        def setsockopt(self, *_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

    with Unprivileged() as sock:
        assert mark(sock, 15001) is False
    closed = socket.socket()
    closed.close()
    with pytest.raises(OSError, match="SO_MARK 0x3a99 was refused"):
        mark(closed, 15001)

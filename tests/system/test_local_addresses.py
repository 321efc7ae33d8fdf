"""The local addresses of a real namespace: read from the kernel, and watched while they change."""

import asyncio
import select
from collections.abc import Iterator

import pytest

from netfilter.addresses import LocalAddresses, LocalAddressWatch, read_local_prefixes
from tests.system.namespaces import Namespace, Network


@pytest.fixture
def host(namespaces_work: None) -> Iterator[Namespace]:
    """A host of its own, which the test itself is in."""
    with Network("host") as network, network["host"].inside() as namespace:
        yield namespace


def changed(watch: LocalAddressWatch, seconds: float = 2.0) -> bool:
    return bool(select.select([watch], [], [], seconds)[0]) and watch.drain()


def test_the_addresses_of_the_namespace_are_local_and_others_are_not(host: Namespace) -> None:
    local = LocalAddresses(read_local_prefixes())
    for address in (host.ipv4, host.ipv6, "127.0.0.1", "127.1.2.3", "::1", f"::ffff:{host.ipv4}"):
        assert address in local
    for address in ("10.77.0.200", "fd77::200", "10.77.0.255", "1.1.1.1"):
        assert address not in local


def test_a_prefix_made_local_by_an_anyip_route_is_local(host: Namespace) -> None:
    host.run("ip", "route", "add", "local", "10.80.0.0/16", "dev", "lo")
    host.run("ip", "-6", "route", "add", "local", "fd80::/64", "dev", "lo")
    local = LocalAddresses(read_local_prefixes())
    assert "10.80.3.4" in local
    assert "fd80::1234" in local


def test_the_table_can_be_read_inside_a_running_event_loop(host: Namespace) -> None:
    async def read() -> list[str]:
        return read_local_prefixes()

    assert f"{host.ipv4}/32" in asyncio.run(read())


def test_the_watch_reports_addresses_and_local_routes_and_nothing_else(host: Namespace) -> None:
    with LocalAddressWatch() as watch:
        assert not watch.drain()
        host.run("ip", "address", "add", "10.81.0.1/32", "dev", "lo")
        assert changed(watch)
        host.run("ip", "-6", "address", "add", "fd81::1/128", "dev", "lo", "nodad")
        assert changed(watch)
        while changed(watch, 0.2):
            pass
        host.run("ip", "route", "add", "10.82.0.0/16", "via", "10.77.0.9")
        assert not changed(watch, 0.3)
        host.run("ip", "route", "add", "local", "10.83.0.0/16", "dev", "lo")
        assert changed(watch)
        host.run("ip", "address", "del", "10.81.0.1/32", "dev", "lo")
        assert changed(watch)
        assert not watch.drain()

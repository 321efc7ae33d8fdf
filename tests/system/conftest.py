"""Fixtures of the system tests: what is missing on this machine is a skip with its reason, not a failure."""

import shutil
from collections.abc import Iterator

import pytest

from tests.system.namespaces import Network, unavailable


@pytest.fixture(scope="session")
def namespaces_work() -> None:
    """Skips the test where network namespaces cannot be made."""
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def iptables_work(namespaces_work: None) -> None:
    """Skips the test where the iptables tools are missing."""
    for tool in ("iptables-restore", "ip6tables-restore"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs the program {tool} (package iptables)")


@pytest.fixture(scope="module")
def network(namespaces_work: None) -> Iterator[Network]:
    """Two hosts, `client` and `server`, and `router` beside them; one network for all tests of a module."""
    with Network("client", "server", "router") as made:
        yield made

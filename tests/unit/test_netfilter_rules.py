"""The [rules] table: what is refused, and that the refusal names key, value and what is allowed."""

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netfilter.rules import EVERY_PORT, RuleError, RuleSettings, id_ranges, networks, port_ranges


def test_nothing_is_redirected_unless_it_is_named() -> None:
    settings = RuleSettings()
    assert (settings.inbound_ports, settings.outbound_ports, settings.apply) == ((), (), False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inbound_ports", 0),
        ("inbound_ports", 65536),
        ("inbound_ports", -1),
        ("inbound_ports", True),
        ("inbound_ports", "http"),
        ("inbound_ports", "80:90"),
        ("inbound_ports", "90-80"),
        ("inbound_ports", "80-"),
        ("inbound_ports", "1-99999"),
        ("inbound_ports", " 80"),
        ("inbound_ports", "80\n"),
        ("inbound_ports", "٨٠"),
        ("inbound_ports", ""),
        ("outbound_ports", "80,90"),
        ("exclude_inbound_ports", "0-80"),
        ("exclude_outbound_ports", 99999999999),
        ("inbound_cidrs", "10.0.0.256"),
        ("inbound_cidrs", "10.0.0.0/33"),
        ("inbound_cidrs", "10.0.0.7/8"),
        ("inbound_cidrs", "fd00::1/64"),
        ("exclude_inbound_cidrs", "localhost"),
        ("outbound_cidrs", "fe80::1%eth0"),
        ("exclude_outbound_cidrs", ""),
        ("exclude_outbound_cidrs", "10.0.0.0/8\n-A INPUT -j DROP"),
        ("interfaces", ""),
        ("interfaces", "sixteen-letters0"),
        ("interfaces", "a/b"),
        ("interfaces", "a b"),
        ("interfaces", "eth0\n"),
        ("interfaces", "+"),
        ("interfaces", "e+h"),
        ("interfaces", ".."),
        ("interfaces", "-j"),
        ("exclude_interfaces", '"'),
        ("exclude_uids", "root"),
        ("exclude_uids", -1),
        ("exclude_uids", 2**32 - 1),
        ("exclude_gids", "5-1"),
    ],
)
def test_a_value_that_cannot_become_a_rule_is_refused_by_name(key: str, value: object) -> None:
    table: dict[str, Any] = {key: (value,)}
    with pytest.raises(RuleError) as raised:
        RuleSettings(**table)
    assert (raised.value.key, raised.value.value) == (key, value)
    assert raised.value.allowed
    assert str(raised.value).startswith(f"{key}: {value!r} is not allowed; allowed: ")


def test_host_bits_in_a_network_are_refused_with_both_readings() -> None:
    with pytest.raises(RuleError) as raised:
        RuleSettings(outbound_cidrs=("10.0.0.7/8",))
    assert raised.value.allowed == "10.0.0.0/8 for the network, or 10.0.0.7 for the address"


@pytest.mark.parametrize("ports", [("*",), ("1-65535",), ("1-40000", "30000-65535")])
def test_excluding_every_port_is_refused_as_a_mistake(ports: tuple[str, ...]) -> None:
    with pytest.raises(RuleError, match="empty inbound_ports"):
        RuleSettings(inbound_ports=(80,), exclude_inbound_ports=ports)


@pytest.mark.parametrize("name", ["lo", "eth0", "eth+", "wlan0.7", "br-12ab34cd56ef", "veth@if7", "_x"])
def test_interface_names_of_every_kind_are_taken(name: str) -> None:
    assert RuleSettings(interfaces=(name,)).interfaces == (name,)


def test_a_wrong_value_in_a_file_is_reported_through_msgspec() -> None:
    with pytest.raises(msgspec.ValidationError, match="inbound_ports: 'http' is not allowed") as raised:
        msgspec.toml.decode(b"inbound_ports = ['http']", type=RuleSettings)
    assert isinstance(raised.value.__cause__, RuleError)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="inbound_port"):
        msgspec.toml.decode(b"inbound_port = [80]", type=RuleSettings)


def test_overlapping_ports_are_joined_and_neighbours_stay_apart() -> None:
    assert port_ranges("p", (81, 80, "8000-8100", 8050, "8090-8200", 80)) == (
        (80, 80),
        (81, 81),
        (8000, 8200),
    )
    assert port_ranges("p", (80, "*")) == (EVERY_PORT,)
    assert id_ranges("u", (0, "1000-1999", 1500)) == ((0, 0), (1000, 1999))


def test_a_network_named_twice_counts_once() -> None:
    assert [str(n) for n in networks("n", ("10.0.0.1", "10.0.0.1/32", "::1"))] == ["10.0.0.1/32", "::1/128"]


_RANGES = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(_RANGES))
def test_joining_keeps_exactly_the_ports_that_were_named(named: list[tuple[int, int]]) -> None:
    joined = port_ranges("p", [f"{first}-{last}" for first, last in named])
    assert {p for a, b in joined for p in range(a, b + 1)} == {p for a, b in named for p in range(a, b + 1)}
    assert all(before[1] < after[0] for before, after in itertools.pairwise(joined))

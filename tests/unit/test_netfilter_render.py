"""The generated rules against golden files, which are there to be read by a person.

`ARCA_GOLDEN=write pytest tests/unit/test_netfilter_render.py` writes them anew; then read the difference.
"""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netfilter.render import (
    NOTHING,
    OWN_CHAINS,
    Family,
    ProxyIdentity,
    multiport_groups,
    render,
    rule_set,
)
from netfilter.rules import RuleError, RuleSettings

GOLDEN = Path(__file__).parent / "golden"
SIDECAR = ProxyIdentity(port=15001, uid=15001, gid=15001, mark=15001, own_ports=(9090, 15000))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rules-sidecar", RuleSettings(inbound_ports=(80,))),
        (
            "rules-outbound-all",
            RuleSettings(
                outbound_ports=("*",),
                exclude_outbound_ports=(25, 3306, "6000-6999"),
                exclude_outbound_cidrs=("169.254.169.254", "10.96.0.0/12", "fd00:10:96::/112"),
                exclude_uids=(101, "1000-1999"),
                exclude_gids=(7,),
            ),
        ),
        (
            "rules-many-ports",
            RuleSettings(
                inbound_ports=(80, 443, *range(8000, 8012), "8080-8090", 9000, 9001, "9100-9200"),
                exclude_inbound_ports=(8081, 8443),
                loopback=True,
            ),
        ),
        (
            "rules-node",
            RuleSettings(
                inbound_ports=("*",),
                exclude_inbound_ports=(22,),
                inbound_cidrs=("10.0.0.0/8", "192.168.7.9", "fd00::/8"),
                exclude_inbound_cidrs=("10.9.0.0/16", "fd00:9::/32"),
                interfaces=("eth+", "cni0"),
                exclude_interfaces=("eth9",),
                forwarded=True,
                outbound_ports=(80, 443),
                outbound_cidrs=("10.0.0.0/8", "::/0"),
                loopback=True,
            ),
        ),
    ],
)
@pytest.mark.parametrize("family", Family)
def test_rules_are_as_in_the_golden_file(name: str, settings: RuleSettings, family: Family) -> None:
    golden = GOLDEN / f"{name}.ipv{family.value}"
    rendered = render(settings, SIDECAR, family)
    if os.environ.get("ARCA_GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(rendered)
    assert rendered == golden.read_text()


def test_a_family_or_direction_that_is_not_wanted_has_no_rules() -> None:
    assert rule_set(RuleSettings(), SIDECAR, Family.IPV4) == NOTHING
    assert rule_set(RuleSettings(inbound_ports=(80,), ipv6=False), SIDECAR, Family.IPV6) == NOTHING
    only_ipv4 = RuleSettings(inbound_ports=(80,), inbound_cidrs=("10.0.0.0/8",))
    assert rule_set(only_ipv4, SIDECAR, Family.IPV6) == NOTHING
    inbound = rule_set(RuleSettings(inbound_ports=(80,)), SIDECAR, Family.IPV4)
    assert [jump.builtin for jump in inbound.jumps] == ["PREROUTING"]
    outbound = rule_set(RuleSettings(outbound_ports=(80,)), SIDECAR, Family.IPV4)
    assert [jump.builtin for jump in outbound.jumps] == ["OUTPUT"]


def test_an_exclusion_of_every_network_lets_all_pass() -> None:
    rules = rule_set(
        RuleSettings(inbound_ports=(80,), exclude_inbound_cidrs=("0.0.0.0/0",)), SIDECAR, Family.IPV4
    )
    assert '-p tcp -m comment --comment "arca: excluded client" -j RETURN' in rules.chains[0].rules


def test_without_a_user_or_a_mark_there_is_no_rule_for_it() -> None:
    settings = RuleSettings(inbound_ports=(80,), outbound_ports=(80,))
    assert "owner" not in render(settings, ProxyIdentity(port=15001), Family.IPV4)
    assert "--mark" not in render(settings, ProxyIdentity(port=15001, uid=7, mark=0), Family.IPV4)


@pytest.mark.parametrize(
    ("proxy", "key"),
    [
        (ProxyIdentity(port=0), "listen"),
        (ProxyIdentity(port=15001, own_ports=(70000,)), "listen"),
        (ProxyIdentity(port=15001, mark=2**32), "mark"),
        (ProxyIdentity(port=15001, mark=-1), "mark"),
        (ProxyIdentity(port=15001, mark=0), "mark"),
        (ProxyIdentity(port=15001, uid=-1), "user"),
        (ProxyIdentity(port=15001, gid=2**32), "group"),
    ],
)
def test_a_proxy_that_the_rules_could_not_know_is_refused(proxy: ProxyIdentity, key: str) -> None:
    with pytest.raises(RuleError) as raised:
        rule_set(RuleSettings(outbound_ports=("*",)), proxy, Family.IPV4)
    assert raised.value.key == key


_RANGES = st.tuples(st.integers(1, 65535), st.integers(0, 3)).map(lambda p: (p[0], min(p[0] + p[1], 65535)))


@given(st.lists(_RANGES))
def test_multiport_groups_fit_and_lose_nothing(ranges: list[tuple[int, int]]) -> None:
    groups = list(multiport_groups(ranges))
    assert [port_range for group in groups for port_range in group] == ranges
    for group in groups:
        assert 1 <= sum(1 if first == last else 2 for first, last in group) <= 15


_PORTS = st.lists(st.integers(1, 65535) | st.just("*") | st.just("8000-8100"), max_size=40).map(tuple)
_CIDRS = st.lists(
    st.sampled_from(("10.0.0.0/8", "0.0.0.0/0", "fd00::/8", "192.0.2.1", "::1")), max_size=4
).map(tuple)
_INTERFACES = st.lists(st.sampled_from(("eth0", "eth+", "wg0")), max_size=3).map(tuple)


@given(
    settings=st.builds(
        RuleSettings,
        inbound_ports=_PORTS,
        inbound_cidrs=_CIDRS,
        exclude_inbound_cidrs=_CIDRS,
        interfaces=_INTERFACES,
        forwarded=st.booleans(),
        outbound_ports=_PORTS,
        outbound_cidrs=_CIDRS,
        exclude_outbound_cidrs=_CIDRS,
        loopback=st.booleans(),
    ),
    family=st.sampled_from(Family),
)
def test_whatever_is_asked_for_the_guards_against_loops_come_first(
    settings: RuleSettings, family: Family
) -> None:
    wanted = rule_set(settings, SIDECAR, family)
    chains = {chain.name: chain.rules for chain in wanted.chains}
    for name in ("ARCA_INBOUND", "ARCA_OUTBOUND"):
        if name in chains:
            onward = next(i for i, rule in enumerate(chains[name]) if not rule.endswith("-j RETURN"))
            before = "\n".join(chains[name][:onward])
            assert "--mark 0x3a99" in before
            assert "--dports 9090,15000,15001" in before
            if name == "ARCA_OUTBOUND":
                assert "--uid-owner 15001" in before
                assert "--gid-owner 15001" in before
    for name, rules in chains.items():
        assert name in OWN_CHAINS
        for rule in rules:
            assert re.search(
                r'-p tcp .*-m comment --comment "arca: [a-z -]+" -j \S+( --to-ports 15001)?$', rule
            )
            assert "\n" not in rule

"""From settings to the input of `iptables-restore --noflush`, for one address family. Pure.

Everything is in table nat, in chains of our own, reached by one jump from PREROUTING (connections that
arrive) and one from OUTPUT (connections that this host opens). Only the first packet of a connection visits
nat, so the length of the chains is no cost per packet.

    PREROUTING -> ARCA_INBOUND  (who passes by) -> ARCA_INBOUND_PORTS  (which ports) -> REDIRECT
    OUTPUT     -> ARCA_OUTBOUND (who passes by) -> ARCA_OUTBOUND_PORTS (which ports) -> REDIRECT

The jumps are inserted first, not appended: an earlier DNAT (kube-proxy's service rules, Docker's published
ports) ends the walk through the chain, and the connection would be missed. Being first loses nothing, since
the proxy's own connection to the original destination passes our OUTPUT chain and then meets the same rules.

Rules are written exactly as iptables-save prints them (addresses with their prefix length, marks in
hexadecimal, protocol before matches, comments quoted): `netfilter.plan` compares by text, and a system test
holds the round trip against the real tools.
"""

import enum
import ipaddress
import socket
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from netfilter.rules import (
    EVERY_PORT,
    PortRange,
    RuleError,
    RuleSettings,
    id_ranges,
    interface_names,
    networks,
    port_ranges,
)

INBOUND = "ARCA_INBOUND"
INBOUND_PORTS = "ARCA_INBOUND_PORTS"
OUTBOUND = "ARCA_OUTBOUND"
OUTBOUND_PORTS = "ARCA_OUTBOUND_PORTS"

OWN_CHAINS = (INBOUND, INBOUND_PORTS, OUTBOUND, OUTBOUND_PORTS)
"""Every chain name that is ours. Whatever stands in them, or jumps to them, is ours to replace and remove."""

# xt_multiport.h: XT_MULTI_PORTS. A range takes two of the places.
_MULTIPORT_PLACES = 15


class Family(enum.Enum):
    """An address family; each has its own tables and its own tools."""

    IPV4 = 4
    IPV6 = 6


class ProxyIdentity(NamedTuple):
    """What tells the proxy's own traffic from everyone else's, so that it is never redirected to itself."""

    port: int
    """The port it listens on, where connections are redirected to."""
    uid: int | None = None
    """The numeric user of the workers. None (no exception by user) when others share it, as with root."""
    gid: int | None = None
    mark: int = 15001
    """SO_MARK of every connection it opens; 0 for none, since unmarked traffic has that."""
    own_ports: tuple[int, ...] = ()
    """Its other ports on this host, such as metrics and admin."""


class Block(NamedTuple):
    """Rules with one purpose. `why` becomes comment lines of the printed text."""

    why: str
    rules: tuple[str, ...]


class Chain(NamedTuple):
    name: str
    blocks: tuple[Block, ...]

    @property
    def rules(self) -> tuple[str, ...]:
        """All rules in their order, as iptables-save prints them, without `-A <chain> `."""
        return tuple(rule for block in self.blocks for rule in block.rules)


class Jump(NamedTuple):
    """The rule in a built-in chain that leads into ours."""

    builtin: str
    rule: str


class RuleSet(NamedTuple):
    """All that ARCA has in table nat of one family; empty when it has nothing there."""

    jumps: tuple[Jump, ...] = ()
    chains: tuple[Chain, ...] = ()


NOTHING = RuleSet()


def rule_set(settings: RuleSettings, proxy: ProxyIdentity, family: Family) -> RuleSet:
    """The rules that `settings` ask for in `family`; a direction in which nothing is redirected has none.

    Raises RuleError when the proxy's ports or mark are out of range, or nothing would tell its own outbound
    connections from others, which would send them round in a loop.
    """
    _checked(proxy)
    if settings.outbound_ports and not proxy.mark and proxy.uid is None and proxy.gid is None:
        raise RuleError(
            "mark", proxy.mark, "a mark or a user of the proxy's own, where outbound_ports is set"
        )
    if not (settings.ipv4 if family is Family.IPV4 else settings.ipv6):
        return NOTHING
    jumps: list[Jump] = []
    chains: list[Chain] = []
    if inbound := _inbound(settings, proxy, family):
        jumps.append(Jump("PREROUTING", _rule("arca: inbound, before any other translation", INBOUND)))
        chains += inbound
    if outbound := _outbound(settings, proxy, family):
        jumps.append(Jump("OUTPUT", _rule("arca: outbound, before any other translation", OUTBOUND)))
        chains += outbound
    return RuleSet(tuple(jumps), tuple(chains))


def render(settings: RuleSettings, proxy: ProxyIdentity, family: Family) -> str:
    """What `arca rules print` shows: the whole input of iptables-restore for a table without our rules."""
    return restore_text(rule_set(settings, proxy, family), family)


def restore_text(wanted: RuleSet, family: Family, *, undo: Iterable[str] = ()) -> str:
    """One transaction: our chains made or emptied, `undo` lines, then jumps and rules.

    `undo` is what takes away leftovers (see `netfilter.plan`); it runs after the chains were emptied.
    """
    tool = "iptables-restore" if family is Family.IPV4 else "ip6tables-restore"
    lines = [
        f"# ARCA, IPv{family.value}: input of `{tool} --noflush`. Made from [rules] of arca.toml.",
        "*nat",
    ]
    lines += [f":{chain.name} - [0:0]" for chain in wanted.chains]
    lines += undo
    if wanted.jumps:
        lines += [
            "",
            "# First in the built-in chains, so that no earlier translation takes a connection away from us.",
        ]
        lines += [f"-I {jump.builtin} 1 {jump.rule}" for jump in wanted.jumps]
    for chain in wanted.chains:
        for block in chain.blocks:
            if block.why:
                lines += ["", *(f"# {line}" for line in block.why.splitlines())]
            lines += [f"-A {chain.name} {rule}" for rule in block.rules]
    return "\n".join([*lines, "", "COMMIT", ""])


def _inbound(settings: RuleSettings, proxy: ProxyIdentity, family: Family) -> tuple[Chain, ...]:
    ports = port_ranges("inbound_ports", settings.inbound_ports)
    sources = _included("inbound_cidrs", settings.inbound_cidrs, family)
    if not ports or sources is None:
        return ()
    interfaces = interface_names("interfaces", settings.interfaces)
    blocks = [
        Block(
            "Loops, first guard: what carries the proxy's mark is the proxy's own. The mark stays on a\n"
            "packet that goes over loopback, and never crosses into this host from outside.",
            _marked(proxy),
        ),
        Block(
            "What arrives on loopback was decided when it left, in OUTPUT.",
            (_rule("arca: loopback", "RETURN", interface="-i lo"),),
        ),
    ]
    if not settings.forwarded:
        blocks.append(
            Block(
                "Only routed here, not meant for this host (`forwarded = true` takes these too).",
                (_rule("arca: not for this host", "RETURN", match="-m addrtype ! --dst-type LOCAL"),),
            )
        )
    blocks += [
        _own_ports(proxy),
        Block(
            "Interfaces that are left alone (exclude_interfaces).",
            tuple(
                _rule("arca: excluded interface", "RETURN", interface=f"-i {name}")
                for name in interface_names("exclude_interfaces", settings.exclude_interfaces)
            ),
        ),
        Block(
            "Clients that are left alone (exclude_inbound_cidrs).",
            tuple(
                _rule("arca: excluded client", "RETURN", address=address)
                for address in _addresses(
                    "-s", "exclude_inbound_cidrs", settings.exclude_inbound_cidrs, family
                )
            ),
        ),
        Block(
            "What is left goes by its port" + _only_from(interfaces, sources),
            tuple(
                _rule("arca: inbound by port", INBOUND_PORTS, address=address, interface=interface)
                for interface in ([f"-i {name}" for name in interfaces] or [""])
                for address in ([_address("-s", source) for source in sources] or [""])
            ),
        ),
    ]
    excluded = port_ranges("exclude_inbound_ports", settings.exclude_inbound_ports)
    return Chain(INBOUND, _filled(blocks)), _by_port(INBOUND_PORTS, "inbound", ports, excluded, proxy)


def _outbound(settings: RuleSettings, proxy: ProxyIdentity, family: Family) -> tuple[Chain, ...]:
    ports = port_ranges("outbound_ports", settings.outbound_ports)
    destinations = _included("outbound_cidrs", settings.outbound_cidrs, family)
    if not ports or destinations is None:
        return ()
    own = [*_marked(proxy)]
    if proxy.uid is not None:
        own.append(_rule("arca: the user of the proxy", "RETURN", match=f"-m owner --uid-owner {proxy.uid}"))
    if proxy.gid is not None:
        own.append(_rule("arca: the group of the proxy", "RETURN", match=f"-m owner --gid-owner {proxy.gid}"))
    blocks = [
        Block(
            "Loops, first guard: the proxy's own connections pass, known by their mark, by its user and by\n"
            "its group. Any one of the three would do; a mark can be overwritten, a user can be shared.",
            tuple(own),
        ),
        _own_ports(proxy),
    ]
    if not settings.loopback:
        network = "127.0.0.0/8" if family is Family.IPV4 else "::1/128"
        blocks.append(
            Block(
                "Loopback is the host talking to itself (`loopback = true` takes it too).",
                (_rule("arca: loopback", "RETURN", address=f"-d {network}"),),
            )
        )
    if family is Family.IPV6:
        blocks.append(
            Block(
                "Link-local servers cannot be redirected on the way out: REDIRECT makes ::1 the\n"
                "destination, and no answer comes back from there to a link-local source.",
                (_rule("arca: link-local", "RETURN", address="-d fe80::/10"),),
            )
        )
    blocks += [
        Block(
            "Users and groups that are left alone (exclude_uids, exclude_gids).",
            tuple(
                _rule(
                    f"arca: excluded {kind}", "RETURN", match=f"-m owner --{option}-owner {_ids(first, last)}"
                )
                for kind, option, values in (
                    ("user", "uid", settings.exclude_uids),
                    ("group", "gid", settings.exclude_gids),
                )
                for first, last in id_ranges(f"exclude_{option}s", values)
            ),
        ),
        Block(
            "Servers that are left alone (exclude_outbound_cidrs).",
            tuple(
                _rule("arca: excluded server", "RETURN", address=address)
                for address in _addresses(
                    "-d", "exclude_outbound_cidrs", settings.exclude_outbound_cidrs, family
                )
            ),
        ),
        Block(
            "What is left goes by its port" + _only_to(destinations),
            tuple(
                _rule("arca: outbound by port", OUTBOUND_PORTS, address=address)
                for address in ([_address("-d", destination) for destination in destinations] or [""])
            ),
        ),
    ]
    excluded = port_ranges("exclude_outbound_ports", settings.exclude_outbound_ports)
    return Chain(OUTBOUND, _filled(blocks)), _by_port(OUTBOUND_PORTS, "outbound", ports, excluded, proxy)


def _marked(proxy: ProxyIdentity) -> tuple[str, ...]:
    if not proxy.mark:
        return ()
    return (_rule("arca: marked by the proxy", "RETURN", match=f"-m mark --mark {proxy.mark:#x}"),)


def _own_ports(proxy: ProxyIdentity) -> Block:
    """The same ports on another host are someone else's, hence the match on a local destination."""
    ports = port_ranges("listen", (proxy.port, *proxy.own_ports))
    return Block(
        "Loops, second guard: the proxy's own ports on this host (traffic, metrics, admin).",
        tuple(
            _rule("arca: own port", "RETURN", match=f"-m addrtype --dst-type LOCAL {_multiport(group)}")
            for group in multiport_groups(ports)
        ),
    )


def _by_port(
    name: str,
    direction: str,
    ports: tuple[PortRange, ...],
    excluded: tuple[PortRange, ...],
    proxy: ProxyIdentity,
) -> Chain:
    return Chain(
        name,
        _filled(
            [
                Block(
                    f"Ports that are left alone (exclude_{direction}_ports).",
                    tuple(
                        _rule("arca: excluded port", "RETURN", match=_multiport(group))
                        for group in multiport_groups(excluded)
                    ),
                ),
                Block(
                    f"To the proxy ({direction}_ports). It asks the kernel where the connection was going.",
                    tuple(
                        _rule(
                            "arca: to the proxy", f"REDIRECT --to-ports {proxy.port}", match=_multiport(group)
                        )
                        for group in multiport_groups(ports)
                    ),
                ),
            ]
        ),
    )


def multiport_groups(ranges: Iterable[PortRange]) -> Iterator[tuple[PortRange, ...]]:
    """The ranges in groups that fit one multiport match: 15 places, a single port takes one, a range two."""
    group: list[PortRange] = []
    places = 0
    for first, last in ranges:
        size = 1 if first == last else 2
        if places + size > _MULTIPORT_PLACES:
            yield tuple(group)
            group, places = [], 0
        group.append((first, last))
        places += size
    if group:
        yield tuple(group)


def _multiport(group: tuple[PortRange, ...]) -> str:
    if group == (EVERY_PORT,):
        return ""
    ports = ",".join(str(first) if first == last else f"{first}:{last}" for first, last in group)
    return f"-m multiport --dports {ports}"


def _rule(comment: str, target: str, *, address: str = "", interface: str = "", match: str = "") -> str:
    """In iptables-save's order of parts. A comment needs a space in it, or it is not quoted there."""
    parts = (address, interface, "-p tcp", match, f'-m comment --comment "{comment}"', f"-j {target}")
    return " ".join(part for part in parts if part)


def _included(
    key: str, values: tuple[str, ...], family: Family
) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] | None:
    """Networks of this family to restrict to; empty: no restriction; None: only the other family is named."""
    if not values:
        return ()
    return tuple(network for network in networks(key, values) if network.version == family.value) or None


def _addresses(option: str, key: str, values: tuple[str, ...], family: Family) -> Iterator[str]:
    for network in networks(key, values):
        if network.version == family.value:
            yield _address(option, network)


def _address(option: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    """The match as iptables-save prints it: by inet_ntop, with the length; nothing for "everywhere"."""
    if network.prefixlen == 0:
        return ""
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return f"{option} {socket.inet_ntop(family, network.network_address.packed)}/{network.prefixlen}"


def _ids(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _only_from(interfaces: tuple[str, ...], sources: tuple[object, ...]) -> str:
    limits = [name for name, values in (("interfaces", interfaces), ("inbound_cidrs", sources)) if values]
    return f", if it comes by or from what was named ({', '.join(limits)})." if limits else "."


def _only_to(destinations: tuple[object, ...]) -> str:
    return ", if it goes to a network that was named (outbound_cidrs)." if destinations else "."


def _filled(blocks: list[Block]) -> tuple[Block, ...]:
    return tuple(block for block in blocks if block.rules)


def _checked(proxy: ProxyIdentity) -> None:
    port_ranges("listen", (proxy.port, *proxy.own_ports))
    if not 0 <= proxy.mark < 2**32:
        raise RuleError("mark", proxy.mark, "a number from 1 to 4294967295, or 0 for no mark")
    if proxy.uid is not None:
        id_ranges("user", (proxy.uid,))
    if proxy.gid is not None:
        id_ranges("group", (proxy.gid,))

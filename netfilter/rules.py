"""The `[rules]` table of arca.toml: which connections are to be redirected, said by an operator.

Nothing here knows iptables; `netfilter.render` turns these settings into rules. The one idea: a value that
the kernel would refuse, silently change or misread is refused here, at start, with the key, the value and
what is allowed, so that a wrong configuration never becomes a half-working rule set.

An empty tuple means "no restriction" for every key but `inbound_ports` and `outbound_ports`, where it means
"redirect nothing in this direction": nothing is redirected that nobody named.
"""

import ipaddress
import re
from collections.abc import Iterable

import msgspec

_PORT = 'a port from 1 to 65535, a range such as "8000-8100", or "*" for every port'

PortRange = tuple[int, int]
"""First and last port, both included."""

EVERY_PORT: PortRange = (1, 65535)

IdRange = tuple[int, int]
"""First and last uid or gid, both included."""

# (uid_t)-1 means "no id" in every system call that takes one.
_LAST_ID = 2**32 - 2

# What names a network interface in practice. The kernel (net/core/dev.c, dev_valid_name) allows nearly every
# byte but '/', ':' and white space in at most 15 (IFNAMSIZ less the NUL); quotes and the like are left out
# because the name goes into the input of iptables-restore. iptables reads a trailing '+' as "any ending".
_INTERFACE = re.compile(r"(?=.{1,15}\Z)[A-Za-z0-9_][A-Za-z0-9_.@-]*\+?\Z")


class RuleError(ValueError):
    """A setting that cannot become a rule.

    `key` is the name inside `[rules]`, `value` what was given, `allowed` what would have been right.
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key}: {value!r} is not allowed; allowed: {allowed}")
        self.key = key
        self.value = value
        self.allowed = allowed


class RuleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to redirect to the proxy, and what never to.

    An exclusion always wins over an inclusion. All keys of one direction must hold together: a connection is
    redirected when its port *and* its network *and* (inbound) its interface are included.

    Raises RuleError on construction when a value cannot become a rule.
    """

    apply: bool = False
    """Whether `arca run` applies the rules when it starts and removes them when it stops."""
    ipv4: bool = True
    ipv6: bool = True

    inbound_ports: tuple[int | str, ...] = ()
    """Ports of this host whose arriving connections are redirected; `["*"]` for all."""
    exclude_inbound_ports: tuple[int | str, ...] = ()
    inbound_cidrs: tuple[str, ...] = ()
    """Networks that inbound connections must come from. A family without one is not redirected."""
    exclude_inbound_cidrs: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    """Interfaces that inbound connections must arrive on; `"eth+"` means every name that begins with eth."""
    exclude_interfaces: tuple[str, ...] = ()
    forwarded: bool = False
    """Also redirect connections that this host only routes (containers behind a bridge, pods on a node)."""

    outbound_ports: tuple[int | str, ...] = ()
    """Ports to which this host's own connections are redirected; `["*"]` for all."""
    exclude_outbound_ports: tuple[int | str, ...] = ()
    outbound_cidrs: tuple[str, ...] = ()
    """Networks that outbound connections must go to. A family without one is not redirected."""
    exclude_outbound_cidrs: tuple[str, ...] = ()
    exclude_uids: tuple[int | str, ...] = ()
    """Users, besides the proxy's own, whose connections pass: numbers or ranges such as `"1000-1999"`."""
    exclude_gids: tuple[int | str, ...] = ()
    loopback: bool = False
    """Also redirect outbound connections to 127.0.0.0/8 and ::1."""

    def __post_init__(self) -> None:
        for key in ("inbound_ports", "outbound_ports"):
            port_ranges(key, getattr(self, key))
        for key in ("exclude_inbound_ports", "exclude_outbound_ports"):
            if port_ranges(key, getattr(self, key)) == (EVERY_PORT,):
                included = key.removeprefix("exclude_")
                raise RuleError(
                    key, getattr(self, key), f"less than every port; to redirect nothing, empty {included}"
                )
        for key in ("inbound_cidrs", "exclude_inbound_cidrs", "outbound_cidrs", "exclude_outbound_cidrs"):
            networks(key, getattr(self, key))
        for key in ("interfaces", "exclude_interfaces"):
            interface_names(key, getattr(self, key))
        for key in ("exclude_uids", "exclude_gids"):
            id_ranges(key, getattr(self, key))


def port_ranges(key: str, values: Iterable[int | str]) -> tuple[PortRange, ...]:
    """The ports as ranges, sorted, overlapping ones joined; `EVERY_PORT` alone for all.

    Raises RuleError naming `key`.
    """
    ranges = [EVERY_PORT if value == "*" else _range(key, value, 1, 65535, _PORT) for value in values]
    return _joined(ranges)


def id_ranges(key: str, values: Iterable[int | str]) -> tuple[IdRange, ...]:
    """The uids or gids as ranges, sorted, overlapping ones joined. Raises RuleError naming `key`."""
    allowed = f'a number from 0 to {_LAST_ID}, or a range such as "1000-1999" (names are not looked up)'
    return _joined([_range(key, value, 0, _LAST_ID, allowed) for value in values])


def networks(key: str, values: Iterable[str]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """The networks in their order, duplicates dropped. Raises RuleError naming `key`.

    A network with host bits set is refused: iptables would mask it without a word, and the operator who wrote
    10.0.0.7/8 may have meant 10.0.0.7/32.
    """
    allowed = "an address or a network, such as 10.1.0.0/16 or fd00::/8"
    found = []
    for value in values:
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise RuleError(key, value, allowed) from None
        if "/" in value and ipaddress.ip_interface(value).ip != network.network_address:
            address = value.partition("/")[0]
            raise RuleError(key, value, f"{network} for the network, or {address} for the address")
        if "%" in value:
            raise RuleError(key, value, f"{allowed}, without a zone")
        found.append(network)
    return tuple(dict.fromkeys(found))


def interface_names(key: str, values: Iterable[str]) -> tuple[str, ...]:
    """The names in their order, duplicates dropped. Raises RuleError naming `key`."""
    for value in values:
        if not _INTERFACE.match(value) or value in (".", ".."):
            allowed = (
                'an interface name of 1 to 15 letters, digits and "_.-@", which may end in "+" for any ending'
            )
            raise RuleError(key, value, allowed)
    return tuple(dict.fromkeys(values))


def _range(key: str, value: int | str, least: int, most: int, allowed: str) -> tuple[int, int]:
    if isinstance(value, bool):
        raise RuleError(key, value, allowed)
    if isinstance(value, int):
        first, last = value, value
    else:
        match = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", value, re.ASCII)
        if match is None:
            raise RuleError(key, value, allowed)
        first, last = int(match[1]), int(match[2] or match[1])
    if not least <= first <= last <= most:
        raise RuleError(key, value, allowed)
    return first, last


def _joined(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Overlapping ranges become one; ranges that only touch stay apart, as the operator wrote them."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)

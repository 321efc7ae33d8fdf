"""The redirect rules that the settings as a whole ask for. Pure.

``netfilter`` knows the ``[rules]`` table and no other setting; what the rules must know of the proxy (its
port, its user, its mark) is put together here. Rules that lead to a port where nobody listens would cut a
host off, so ``not_listened_on`` says beforehand where somebody should.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netfilter.render import Family, ProxyIdentity, render
from proxy.addresses import Address, parse_address

if TYPE_CHECKING:
    from proxy.settings import Settings

# Where REDIRECT delivers depends on the interface a connection came in by; only these take all of them.
_EVERYWHERE = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}


def identity(settings: Settings) -> ProxyIdentity:
    """What tells ARCA's own traffic from everyone else's. Raises ValueError when ``listen`` is empty."""
    if not settings.listen:
        raise ValueError("connections cannot be redirected without a listen address")
    port = parse_address(settings.listen[0]).port
    own = [settings.metrics_address(), settings.admin_address()]
    own += [listener.address for listener in settings.listeners()]
    return ProxyIdentity(
        port=port,
        uid=settings.user,
        gid=settings.user,
        mark=settings.mark,
        own_ports=tuple(sorted({address.port for address in own if address is not None} - {port})),
    )


def not_listened_on(settings: Settings) -> list[Address]:
    """Where the rules would redirect to although nothing listens there. Raises ValueError as ``identity``."""
    port = identity(settings).port
    listening = {parse_address(text) for text in settings.listen}
    wanted = {Family.IPV4: settings.rules.ipv4, Family.IPV6: settings.rules.ipv6}
    needed = [Address(host, port) for family, host in _EVERYWHERE.items() if wanted[family]]
    return [address for address in needed if address not in listening]


def printed(settings: Settings) -> str:
    """The rules of both families, as iptables-restore and ip6tables-restore read them. Raises RuleError."""
    proxy = identity(settings)
    return "\n".join(render(settings.rules, proxy, family) for family in Family)

"""The rules in real namespaces: real iptables, real connections, original destinations read from the kernel.

One thread plays all parts: a connection is complete as soon as the kernel has queued it on a listener, so a
test connects from one namespace and then asks which listener of the other it arrived at.
"""

import os
import select
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from netfilter import commands
from netfilter.commands import NetfilterError
from netfilter.destination import Address, local_address, mark, original_destination
from netfilter.render import Block, Chain, Family, Jump, ProxyIdentity, RuleSet, rule_set
from netfilter.rules import RuleSettings
from tests.system.namespaces import INTERFACE, Namespace, Network

pytestmark = pytest.mark.usefixtures("iptables_work")

PROXY = ProxyIdentity(port=15001, uid=15001, gid=15002, mark=15001, own_ports=(9090, 15000))
WEB = RuleSettings(inbound_ports=(80,))
EVERYTHING_OUT = RuleSettings(outbound_ports=("*",))


@pytest.fixture
def server(network: Network) -> Iterator[Namespace]:
    """The host whose rules are tested; without rules again afterwards."""
    with network["server"].inside():
        yield network["server"]
        commands.remove()


@pytest.fixture
def client(network: Network) -> Iterator[Namespace]:
    """The other host; tests of outbound rules give it some, so they are removed here too."""
    yield network["client"]
    with network["client"].inside():
        commands.remove()


def listen(where: Namespace, port: int, family: socket.AddressFamily = socket.AF_INET6) -> socket.socket:
    """A listener on every address; the IPv6 one takes IPv4 too."""
    with where.inside():
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("", port))
        listener.listen()
        return listener


def unconnected(where: Namespace, host: str) -> socket.socket:
    with where.inside():
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.settimeout(3.0)
        return sock


def link_local(where: Namespace) -> str:
    shown = where.run("ip", "-6", "-o", "address", "show", "dev", INTERFACE, "scope", "link").stdout
    return shown.split()[3].partition("/")[0]


def interface_index(where: Namespace) -> int:
    with where.inside():
        return socket.if_nametoindex(INTERFACE)


def arrival(
    listeners: list[socket.socket], connection: socket.socket, target: tuple[str, int]
) -> socket.socket:
    """Connect, and accept from whichever of `listeners` got it."""
    connection.connect(target)
    ready, _, _ = select.select(listeners, [], [], 3.0)
    assert len(ready) == 1, "the connection arrived nowhere"
    accepted, _ = ready[0].accept()
    return accepted


def reaches_proxy(
    client: Namespace, server: Namespace, target: tuple[str, int], *, connection: socket.socket | None = None
) -> Address | None:
    """Connect from `client`; the original destination if `server`'s proxy got it, None if the server did."""
    with ExitStack() as stack:
        proxy = stack.enter_context(listen(server, PROXY.port))
        application = stack.enter_context(listen(server, target[1]))
        connection = stack.enter_context(connection or unconnected(client, target[0]))
        accepted = stack.enter_context(arrival([proxy, application], connection, target))
        if accepted.getsockname()[1] != PROXY.port:
            return None
        destination = original_destination(accepted.fileno())
        assert destination is not None
        assert accepted.fileno() >= 0, "the descriptor is still the caller's"
        return destination


# --- redirected connections and their original destination


def test_an_inbound_ipv4_connection_arrives_at_the_proxy_with_its_original_destination(
    client: Namespace, server: Namespace
) -> None:
    assert commands.apply(WEB, PROXY) == []
    with closing(listen(server, PROXY.port, socket.AF_INET)) as proxy:
        accepted = arrival([proxy], unconnected(client, server.ipv4), (server.ipv4, 80))
        with accepted:
            assert original_destination(accepted.fileno()) == Address(server.ipv4, 80)
            assert local_address(accepted.fileno()) == Address(server.ipv4, PROXY.port)


def test_an_ipv4_connection_accepted_by_a_dual_stack_socket_has_an_ipv4_destination(
    client: Namespace, server: Namespace
) -> None:
    commands.apply(WEB, PROXY)
    with closing(listen(server, PROXY.port)) as proxy:
        accepted = arrival([proxy], unconnected(client, server.ipv4), (server.ipv4, 80))
        with accepted:
            assert accepted.getsockname()[0] == f"::ffff:{server.ipv4}"
            assert original_destination(accepted.fileno()) == Address(server.ipv4, 80)
            assert local_address(accepted.fileno()) == Address(server.ipv4, PROXY.port)


def test_an_inbound_ipv6_connection_arrives_at_the_proxy_with_its_original_destination(
    client: Namespace, server: Namespace
) -> None:
    commands.apply(WEB, PROXY)
    assert reaches_proxy(client, server, (server.ipv6, 80)) == Address(server.ipv6, 80)


def test_a_link_local_destination_keeps_its_interface(client: Namespace, server: Namespace) -> None:
    commands.apply(WEB, PROXY)
    host = link_local(server)
    connection = unconnected(client, host)
    with closing(listen(server, PROXY.port)) as proxy, closing(connection):
        connection.connect((host, 80, 0, interface_index(client)))
        accepted, _ = proxy.accept()
        with accepted:
            assert original_destination(accepted.fileno()) == Address(f"{host}%{interface_index(server)}", 80)


def test_an_outbound_connection_to_a_link_local_server_is_left_alone(
    client: Namespace, server: Namespace
) -> None:
    with client.inside():
        commands.apply(EVERYTHING_OUT, PROXY)
    connection = unconnected(client, "::")
    with closing(listen(server, 80)) as application, closing(connection):
        connection.connect((link_local(server), 80, 0, interface_index(client)))
        application.accept()[0].close()


def test_an_outbound_connection_arrives_at_the_proxy_with_its_original_destination(
    client: Namespace, server: Namespace
) -> None:
    with client.inside():
        commands.apply(EVERYTHING_OUT, PROXY)
        for host in (server.ipv4, server.ipv6):
            assert reaches_proxy(client, client, (host, 8080)) == Address(host, 8080)


def test_a_connection_of_the_host_to_its_own_address_is_redirected_as_outbound(client: Namespace) -> None:
    with client.inside():
        commands.apply(EVERYTHING_OUT, PROXY)
        for host in (client.ipv4, client.ipv6):
            assert reaches_proxy(client, client, (host, 8080)) == Address(host, 8080)


def test_a_connection_that_came_straight_to_the_proxy_has_the_proxy_as_its_destination(
    client: Namespace, server: Namespace
) -> None:
    commands.apply(RuleSettings(inbound_ports=("*",)), PROXY)
    with closing(listen(server, PROXY.port)) as proxy:
        for host in (server.ipv4, server.ipv6):
            accepted = arrival([proxy], unconnected(client, host), (host, PROXY.port))
            with accepted:
                assert original_destination(accepted.fileno()) in (None, Address(host, PROXY.port))


def test_a_connection_unknown_to_conntrack_has_no_original_destination() -> None:
    with (
        Network("alone") as untracked,
        closing(listen(untracked["alone"], PROXY.port)) as proxy,
        closing(unconnected(untracked["alone"], "127.0.0.1")) as connection,
        arrival([proxy], connection, ("127.0.0.1", PROXY.port)) as accepted,
    ):
        assert original_destination(accepted.fileno()) is None


# --- what is left alone


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(RuleSettings(inbound_ports=(81,)), id="another port"),
        pytest.param(
            RuleSettings(inbound_ports=("*",), exclude_inbound_ports=("70-90",)), id="excluded port"
        ),
        pytest.param(
            RuleSettings(inbound_ports=(80,), exclude_inbound_cidrs=("10.77.0.0/24", "fd77::/64")),
            id="client",
        ),
        pytest.param(
            RuleSettings(inbound_ports=(80,), inbound_cidrs=("10.9.0.0/16", "fd99::/64")), id="not named"
        ),
        pytest.param(RuleSettings(inbound_ports=(80,), exclude_interfaces=(INTERFACE,)), id="interface"),
        pytest.param(RuleSettings(inbound_ports=(80,), interfaces=("wlan+",)), id="other interface"),
        pytest.param(RuleSettings(inbound_ports=(80,), ipv4=False, ipv6=False), id="families off"),
    ],
)
def test_what_is_excluded_or_not_included_inbound_reaches_the_application(
    client: Namespace, server: Namespace, settings: RuleSettings
) -> None:
    commands.apply(settings, PROXY)
    assert commands.check(settings, PROXY) == []
    for host in (server.ipv4, server.ipv6):
        assert reaches_proxy(client, server, (host, 80)) is None


def test_what_is_included_by_interface_and_network_is_redirected(
    client: Namespace, server: Namespace
) -> None:
    settings = RuleSettings(
        inbound_ports=("*",),
        interfaces=("wlan0", "eth+"),
        inbound_cidrs=("10.77.0.1", "fd77::1", "fd99::/64"),
    )
    commands.apply(settings, PROXY)
    for host in (server.ipv4, server.ipv6):
        assert reaches_proxy(client, server, (host, 80)) == Address(host, 80)


def test_a_family_with_no_network_named_is_left_alone(client: Namespace, server: Namespace) -> None:
    commands.apply(RuleSettings(inbound_ports=(80,), inbound_cidrs=("10.77.0.0/16",)), PROXY)
    assert reaches_proxy(client, server, (server.ipv4, 80)) is not None
    assert reaches_proxy(client, server, (server.ipv6, 80)) is None


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(RuleSettings(outbound_ports=(81,)), id="another port"),
        pytest.param(RuleSettings(outbound_ports=("*",), exclude_outbound_ports=(80,)), id="excluded port"),
        pytest.param(
            RuleSettings(outbound_ports=("*",), exclude_outbound_cidrs=("10.77.0.0/24", "fd77::/64")),
            id="server",
        ),
        pytest.param(RuleSettings(outbound_ports=("*",), exclude_uids=(0,)), id="user"),
        pytest.param(RuleSettings(outbound_ports=("*",), exclude_gids=("0-5",)), id="group"),
    ],
)
def test_what_is_excluded_outbound_reaches_the_server(
    client: Namespace, server: Namespace, settings: RuleSettings
) -> None:
    with client.inside():
        commands.apply(settings, PROXY)
        assert commands.check(settings, PROXY) == []
    for host in (server.ipv4, server.ipv6):
        assert reaches_proxy(client, server, (host, 80)) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_loopback_is_redirected_only_when_asked_for(client: Namespace, host: str) -> None:
    with client.inside():
        commands.apply(EVERYTHING_OUT, PROXY)
        assert reaches_proxy(client, client, (host, 8080)) is None
        commands.apply(RuleSettings(outbound_ports=("*",), loopback=True), PROXY)
        assert reaches_proxy(client, client, (host, 8080)) == Address(host, 8080)


def test_what_is_only_routed_is_redirected_only_when_asked_for(network: Network, client: Namespace) -> None:
    router, server = network["router"], network["server"]
    server.run("ip", "address", "replace", "10.78.0.1/32", "dev", "lo")
    router.run("ip", "route", "replace", "10.78.0.1", "via", server.ipv4)
    with router.inside():
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    client.run("ip", "route", "replace", "10.78.0.1", "via", router.ipv4)
    with router.inside():
        commands.apply(WEB, PROXY)
        assert reaches_proxy(client, server, ("10.78.0.1", 80)) is None
        commands.apply(RuleSettings(inbound_ports=(80,), forwarded=True), PROXY)
        assert reaches_proxy(client, router, ("10.78.0.1", 80)) == Address("10.78.0.1", 80)
        commands.remove()


# --- loops


def test_a_connection_with_the_mark_of_the_proxy_passes(client: Namespace, server: Namespace) -> None:
    with client.inside():
        commands.apply(EVERYTHING_OUT, PROXY)
    for host in (server.ipv4, server.ipv6):
        marked = unconnected(client, host)
        assert mark(marked, PROXY.mark)
        assert reaches_proxy(client, server, (host, 80), connection=marked) is None


@pytest.mark.parametrize(("set_id", "number"), [(os.seteuid, PROXY.uid), (os.setegid, PROXY.gid)])
def test_a_connection_of_the_user_or_group_of_the_proxy_passes(
    client: Namespace, server: Namespace, set_id: object, number: int
) -> None:
    assert callable(set_id)
    with client.inside():
        commands.apply(EVERYTHING_OUT, PROXY)
    for host in (server.ipv4, server.ipv6):
        with client.inside():
            set_id(number)  # the owner of a socket is who made it
            try:
                owned = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            finally:
                set_id(0)
        assert reaches_proxy(client, server, (host, 80), connection=owned) is None


def test_the_proxys_own_dial_to_the_local_application_is_not_redirected_again(server: Namespace) -> None:
    settings = RuleSettings(inbound_ports=("*",), outbound_ports=("*",), loopback=True)
    commands.apply(settings, PROXY)
    for host in (server.ipv4, server.ipv6, "127.0.0.1", "::1"):
        dial = unconnected(server, host)
        assert mark(dial, PROXY.mark)
        assert reaches_proxy(server, server, (host, 8080), connection=dial) is None


def test_the_proxys_own_ports_are_not_redirected_but_the_same_ports_elsewhere_are(
    client: Namespace, server: Namespace
) -> None:
    settings = RuleSettings(inbound_ports=("*",), outbound_ports=("*",), loopback=True)
    commands.apply(settings, PROXY)
    with client.inside():
        commands.apply(settings, PROXY)
        for host in (client.ipv4, client.ipv6, "127.0.0.1", "::1"):
            assert reaches_proxy(client, client, (host, 9090)) is None
        assert reaches_proxy(client, client, (server.ipv4, 9090)) == Address(server.ipv4, 9090)
        commands.remove()
    assert reaches_proxy(client, server, (server.ipv4, 9090)) is None


# --- apply, check, remove

FOREIGN = """
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -m comment --comment "\\"ours\\" -j ARCA_INBOUND" -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER -p tcp -m tcp --dport 8443 -j REDIRECT --to-ports 443
COMMIT
*filter
:MINE - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j MINE
-A MINE -j ACCEPT
COMMIT
*mangle
-A PREROUTING -p tcp -m tcp --dport 99 -j MARK --set-xmark 0x1/0xffffffff
COMMIT
"""


@pytest.fixture
def host(namespaces_work: None) -> Iterator[Namespace]:
    """A host of its own with nobody's rules, which the test itself is in."""
    with Network("host") as network, network["host"].inside() as namespace:
        yield namespace


def tables(host: Namespace) -> dict[str, list[str]]:
    """Every table of both families, without the comments (they hold the time) and the counters."""
    return {
        tool: [
            line.split(" [")[0] if line.startswith(":") else line
            for line in host.run(tool).stdout.splitlines()
            if not line.startswith("#")
        ]
        for tool in ("iptables-save", "ip6tables-save")
    }


LONG = RuleSettings(
    inbound_ports=(*range(2000, 2040), "8000-8100", "9000-9001"),
    exclude_inbound_ports=(22, 2001),
    inbound_cidrs=("0.0.0.0/0", "10.0.0.0/8", "10.1.2.3", "fd00::/8", "::ffff:1.2.3.4"),
    exclude_inbound_cidrs=("192.168.0.0/16", "fe80::/10"),
    interfaces=("eth+", "wg0.7"),
    exclude_interfaces=("docker0", "cni-1_a@b"),
    forwarded=True,
    outbound_ports=("*",),
    exclude_outbound_ports=("1-1024",),
    outbound_cidrs=("::/0", "10.0.0.0/8"),
    exclude_outbound_cidrs=("169.254.169.254", "fd00:0:0:1::/64"),
    exclude_uids=(0, "1000-1999"),
    exclude_gids=(7,),
)
"""Every kind of rule there is."""


@pytest.mark.parametrize("variant", ["nft", "legacy"])
@pytest.mark.parametrize("settings", [WEB, EVERYTHING_OUT, LONG], ids=["web", "out", "long"])
def test_rules_come_back_from_the_kernel_as_they_were_written(
    host: Namespace, settings: RuleSettings, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multi = shutil.which(f"xtables-{variant}-multi", path="/usr/sbin:/sbin")
    if multi is None:
        pytest.skip(f"needs xtables-{variant}-multi (package iptables)")
    for tool in ("iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"):
        (tmp_path / tool).symlink_to(multi)
    monkeypatch.setattr(commands, "_TOOL_PATH", str(tmp_path))
    if variant == "legacy" and host.run(tmp_path / "iptables-save", "-t", "nat", check=False).returncode != 0:
        pytest.skip("this kernel has no legacy iptables")
    commands.apply(settings, PROXY)
    assert commands.check(settings, PROXY) == []
    assert commands.remove()
    assert not commands.remove()


def test_applying_twice_is_the_same_as_once_and_keeps_the_counters(
    client: Namespace, server: Namespace
) -> None:
    commands.apply(WEB, PROXY)
    assert reaches_proxy(client, server, (server.ipv4, 80)) is not None
    once = tables(server)
    commands.apply(WEB, PROXY)
    assert tables(server) == once
    counted = server.run("iptables-save", "--counters", "--table", "nat").stdout
    jumps = [line for line in counted.splitlines() if "PREROUTING" in line and "ARCA" in line]
    assert len(jumps) == 1
    assert not jumps[0].startswith("[0:")


def test_applying_other_settings_replaces_the_rules(host: Namespace) -> None:
    commands.apply(LONG, PROXY)
    commands.apply(WEB, PROXY)
    assert commands.check(WEB, PROXY) == []
    assert not any("OUTBOUND" in line for lines in tables(host).values() for line in lines)


def test_rules_of_others_are_the_same_before_while_and_after(host: Namespace) -> None:
    commands.apply(WEB, PROXY)  # so that table nat of both families is there before, too
    commands.remove()
    for tool in ("iptables-restore", "ip6tables-restore"):
        host.run(
            tool,
            "--noflush",
            input=FOREIGN if tool == "iptables-restore" else FOREIGN.replace("127.0.0.0/8", "::1"),
        )
    before = tables(host)
    commands.apply(LONG, PROXY)
    applied = tables(host)
    for tool, lines in applied.items():
        assert [line for line in lines if "ARCA_" not in line or "DOCKER" in line] == before[tool]
    assert commands.check(LONG, PROXY) == []
    assert commands.remove()
    assert tables(host) == before


def test_removing_takes_away_duplicated_and_altered_jumps_too(host: Namespace) -> None:
    commands.apply(WEB, PROXY)
    commands.remove()
    before = tables(host)
    commands.apply(WEB, PROXY)
    jump = host.run("iptables", "-t", "nat", "-S", "PREROUTING").stdout.splitlines()[1]
    host.run("iptables-restore", "--noflush", input=f"*nat\n{jump}\n{jump}\nCOMMIT\n")
    host.run("iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "5", "-g", "ARCA_INBOUND")
    assert len(commands.check(WEB, PROXY)) == 2
    commands.remove()
    assert tables(host) == before


@pytest.mark.parametrize(
    ("by_hand", "noticed"),
    [
        pytest.param("-D ARCA_INBOUND 1", "ARCA_INBOUND: a rule is missing", id="rule deleted"),
        pytest.param("-F ARCA_INBOUND_PORTS", "ARCA_INBOUND_PORTS: a rule is missing", id="chain emptied"),
        pytest.param("-I ARCA_INBOUND 1 -p tcp -j RETURN", "a rule is not configured", id="rule added"),
        pytest.param(
            "-R ARCA_INBOUND_PORTS 1 -p tcp --dport 81 -j REDIRECT --to-ports 15001",
            "is missing",
            id="rule altered",
        ),
        pytest.param("-D PREROUTING 1", "the jump to ARCA_INBOUND is missing", id="jump deleted"),
        pytest.param("-A PREROUTING -p tcp -j ARCA_INBOUND", "leads into our chains", id="jump added"),
        pytest.param("-N ARCA_OUTBOUND", "nothing of it is configured", id="chain added"),
    ],
)
@pytest.mark.parametrize("tool", ["iptables", "ip6tables"])
def test_a_change_by_hand_is_noticed_and_applying_again_repairs_it(
    host: Namespace, tool: str, by_hand: str, noticed: str
) -> None:
    commands.apply(WEB, PROXY)
    assert commands.check(WEB, PROXY) == []
    host.run(tool, "-t", "nat", *by_hand.split())
    differences = commands.check(WEB, PROXY)
    assert any(noticed in line for line in differences), differences
    assert all(line.startswith("IPv4 " if tool == "iptables" else "IPv6 ") for line in differences)
    commands.apply(WEB, PROXY)
    assert commands.check(WEB, PROXY) == []


@pytest.mark.parametrize("tool", ["iptables", "ip6tables"])
def test_a_rule_of_others_before_ours_is_only_noted_and_applying_again_puts_ours_first(
    host: Namespace, tool: str
) -> None:
    commands.apply(WEB, PROXY)
    host.run(tool, "-t", "nat", *["-I", "PREROUTING", "1", "-p", "tcp", "-j", "ACCEPT"])
    assert commands.check(WEB, PROXY) == []
    (note,) = commands.remarks(WEB, PROXY)
    assert note.startswith("IPv4 " if tool == "iptables" else "IPv6 ")
    assert note.endswith("is not first; before it: -p tcp -j ACCEPT")
    commands.apply(WEB, PROXY)
    assert commands.remarks(WEB, PROXY) == []
    host.run(tool, "-t", "nat", *["-D", "PREROUTING", "-p", "tcp", "-j", "ACCEPT"])


def test_rules_that_are_not_there_are_reported(host: Namespace) -> None:
    differences = commands.check(WEB, PROXY)
    assert (
        "IPv4 PREROUTING: the jump to ARCA_INBOUND is missing, so nothing is redirected there" in differences
    )
    assert "IPv6 ARCA_INBOUND: the chain is missing" in differences


def test_a_rule_that_the_kernel_refuses_changes_nothing(host: Namespace) -> None:
    commands.apply(LONG, PROXY)
    before = tables(host)
    bad = RuleSet(
        (Jump("PREROUTING", "-p tcp -j ARCA_INBOUND"),),
        # xt_owner works in OUTPUT and POSTROUTING only.
        (
            Chain(
                "ARCA_INBOUND", (Block("", ("-p tcp -j RETURN", "-p tcp -m owner --uid-owner 1 -j RETURN")),)
            ),
        ),
    )
    with pytest.raises(NetfilterError) as raised:
        commands._change(Family.IPV4, bad)
    assert "iptables-restore" in str(raised.value)
    assert tables(host) == before


@pytest.mark.parametrize("earlier", [None, LONG], ids=["no rules before", "other rules before"])
def test_when_the_second_family_fails_the_first_is_as_it_was(
    host: Namespace, earlier: RuleSettings | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.apply(earlier or WEB, PROXY)
    if earlier is None:
        commands.remove()
    before = tables(host)
    broken = tmp_path / "ip6tables-restore"
    broken.write_text("#!/bin/sh\necho \"can't initialize ip6tables table 'nat'\" >&2; exit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(commands, "_TOOL_PATH", f"{tmp_path}:{commands._TOOL_PATH}")
    with pytest.raises(NetfilterError, match="modprobe nf_nat") as raised:
        commands.apply(WEB, PROXY)
    assert raised.value.action == "ip6tables-restore"
    assert tables(host) == before


def test_a_change_by_another_program_between_reading_and_writing_is_planned_anew(
    host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.apply(WEB, PROXY)
    read = commands._save
    reads: list[Family] = []

    def read_then_lose_the_race(family: Family) -> str:
        save = read(family)
        if family is Family.IPV4 and family not in reads:
            host.run("iptables", "-t", "nat", "-D", "PREROUTING", "1")
        reads.append(family)
        return save

    monkeypatch.setattr(commands, "_save", read_then_lose_the_race)
    assert commands.remove()
    assert reads.count(Family.IPV4) > 1
    assert not any("ARCA" in line for lines in tables(host).values() for line in lines)


def test_a_family_that_is_switched_off_may_have_no_nat_table_at_all(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("ip6tables-save", "ip6tables-restore"):
        (tmp_path / tool).write_text(
            "#!/bin/sh\necho \"can't initialize ip6tables table 'nat': Table does not exist\" >&2; exit 3\n"
        )
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setattr(commands, "_TOOL_PATH", f"{tmp_path}:{commands._TOOL_PATH}")
    only_ipv4 = RuleSettings(inbound_ports=(80,), ipv6=False)
    assert commands.apply(only_ipv4, PROXY) == []
    assert commands.check(only_ipv4, PROXY) == []
    assert commands.remove()
    with pytest.raises(NetfilterError, match="modprobe"):
        commands.apply(WEB, PROXY)


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_TOOL_PATH", "/nowhere")
    with pytest.raises(NetfilterError, match=r"iptables-save: .* install the package iptables"):
        commands.check(WEB, PROXY)


def test_a_host_without_ipv6_gets_the_ipv4_rules_and_a_warning(
    host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "has_ipv6", lambda: False)
    assert len(commands.apply(WEB, PROXY)) == 1
    assert commands.apply(RuleSettings(inbound_ports=(80,), ipv6=False), PROXY) == []
    assert commands.check(WEB, PROXY) == []
    assert any("ARCA" in line for line in tables(host)["iptables-save"])
    assert not any("ARCA" in line for line in tables(host)["ip6tables-save"])


def test_without_privileges_the_error_says_so(host: Namespace) -> None:
    os.setresuid(65534, 65534, 0)  # the third is the way back; a child does not get it
    try:
        with pytest.raises(NetfilterError, match="run as root, or with CAP_NET_ADMIN"):
            commands.apply(WEB, PROXY)
    finally:
        os.setresuid(0, 0, 0)


def test_the_rendered_chains_are_the_ones_in_the_kernel(host: Namespace) -> None:
    commands.apply(LONG, PROXY)
    live = [line for line in tables(host)["iptables-save"] if line.startswith("-A ARCA_")]
    wanted = rule_set(LONG, PROXY, Family.IPV4)
    assert live == [f"-A {chain.name} {rule}" for chain in wanted.chains for rule in chain.rules]

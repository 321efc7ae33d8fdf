"""How the rules leave: a redirected connection that runs is carried to its end, in a namespace where nothing
but ARCA's rules uses connection tracking (with the last of them the kernel stops translating).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netfilter import commands
from netfilter.render import OWN_CHAINS, ProxyIdentity
from netfilter.rules import RuleSettings
from tests.system.namespaces import Network
from tests.system.processes import PATIENCE, until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.system.namespaces import Namespace

pytestmark = pytest.mark.usefixtures("iptables_work")

ROOT = Path(__file__).parent.parent.parent
RULES = "workers = 1\n[limits]\ndrain_seconds = 60\n[rules]\napply = true\ninbound_ports = [80]\n"
QUESTION = b"GET /slow HTTP/1.1\r\nHost: server\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"


class SlowServer:
    """Port 80 of ``where``: says whose connection it is, once ``answer`` is set."""

    def __init__(self, where: Namespace) -> None:
        with where.inside():
            self._listening = socket.create_server(("", 80))
        self.asked = threading.Event()
        self.answer = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> SlowServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.set()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(accepted,), daemon=True).start()

    def _one(self, accepted: socket.socket) -> None:
        with accepted, contextlib.suppress(OSError):
            while accepted.recv(65536):
                self.asked.set()
                self.answer.wait(60)
                accepted.sendall(ANSWER + b"slow")


@pytest.fixture
def hosts() -> Iterator[tuple[Namespace, Namespace]]:
    """Client and server, in a network of this test alone: nobody tracks connections in it."""
    with Network("client", "server") as network:
        yield network["client"], network["server"]


class Redirecting:
    """ARCA on ``where``, with rules."""

    def __init__(self, where: Namespace, directory: Path, settings: str = RULES) -> None:
        self.where = where
        self.file = directory / "arca.toml"
        self.file.write_text(settings)
        self._errors = directory / "errors"
        with self._errors.open("wb") as errors:
            self.process: subprocess.Popen[bytes] = where.popen(
                *(sys.executable, "-m", "proxy.cli", "run", "-c", self.file), stderr=errors, cwd=ROOT
            )
        until(lambda: "ready: 1 workers" in self.said)

    @property
    def said(self) -> str:
        return self._errors.read_text()

    def chains(self) -> set[str]:
        save = self.where.run("iptables-save", "-t", "nat").stdout
        return {name for name in OWN_CHAINS if f":{name} " in save}

    def redirects(self) -> bool:
        return "-A PREROUTING" in self.where.run("iptables-save", "-t", "nat").stdout


def asks(client: Namespace, server: Namespace) -> socket.socket:
    with client.inside():
        connection = socket.create_connection((server.ipv4, 80), timeout=PATIENCE)
    connection.sendall(QUESTION)
    return connection


def hears(connection: socket.socket) -> bytes:
    heard = b""
    with contextlib.suppress(OSError):
        while not heard.endswith(b"slow") and (data := connection.recv(65536)):
            heard += data
    return heard


def test_a_running_exchange_gets_its_answer_after_sigterm_and_then_nothing_is_left(
    hosts: tuple[Namespace, Namespace], tmp_path: Path
) -> None:
    client, server = hosts
    with SlowServer(server) as slow:
        arca = Redirecting(server, tmp_path)
        with asks(client, server) as connection:
            assert slow.asked.wait(PATIENCE)
            arca.process.terminate()
            until(lambda: "draining for" in arca.said)
            assert not arca.redirects()
            assert arca.chains()
            arca.file.write_text(RULES.replace("80", "81"))
            arca.process.send_signal(signal.SIGHUP)
            until(lambda: "reloaded: rules.inbound_ports" in arca.said)
            slow.answer.set()
            assert hears(connection).endswith(b"slow")
            assert not arca.redirects()
        assert arca.process.wait(PATIENCE) == 0
        assert not arca.chains()


def test_a_running_exchange_gets_its_answer_after_the_rules_were_switched_off(
    hosts: tuple[Namespace, Namespace], tmp_path: Path
) -> None:
    client, server = hosts
    with SlowServer(server) as slow:
        arca = Redirecting(server, tmp_path)
        with asks(client, server) as connection:
            assert slow.asked.wait(PATIENCE)
            arca.file.write_text(RULES.replace("true", "false"))
            arca.process.send_signal(signal.SIGHUP)
            until(lambda: "rules detached" in arca.said)
            assert not arca.redirects()
            slow.answer.set()
            assert hears(connection).endswith(b"slow")
        arca.file.write_text(RULES)
        arca.process.send_signal(signal.SIGHUP)
        until(arca.redirects)  # and on again
        arca.process.terminate()
        assert arca.process.wait(PATIENCE) == 0
        assert not arca.chains()


def test_asked_twice_it_leaves_no_rules_either(hosts: tuple[Namespace, Namespace], tmp_path: Path) -> None:
    client, server = hosts
    with SlowServer(server) as slow:
        arca = Redirecting(server, tmp_path)
        with asks(client, server):
            assert slow.asked.wait(PATIENCE)
            arca.process.terminate()
            until(lambda: "draining for" in arca.said)
            arca.process.terminate()
            assert arca.process.wait(PATIENCE) == 0
        assert not arca.chains()


@pytest.mark.parametrize(
    "settings", ['listen = ["127.0.0.1:15001"]\n', 'forward = ["127.0.0.1:7000=127.0.0.1:80"]\n']
)
def test_rules_that_would_lead_nowhere_are_not_switched_on_by_a_reload(
    hosts: tuple[Namespace, Namespace], tmp_path: Path, settings: str
) -> None:
    _, server = hosts
    arca = Redirecting(server, tmp_path, "workers = 1\n" + settings)
    arca.file.write_text(RULES)
    arca.process.send_signal(signal.SIGHUP)
    until(lambda: "not reloaded, the old settings stay: " in arca.said)
    assert "rules.apply asks for 0.0.0.0:15001 in it" in arca.said
    assert not arca.chains()
    arca.process.terminate()
    assert arca.process.wait(PATIENCE) == 0
    assert "rules removed" not in arca.said


def test_a_rule_of_others_before_ours_leaves_it_ready_with_a_warning(
    hosts: tuple[Namespace, Namespace], tmp_path: Path
) -> None:
    _, server = hosts
    arca = Redirecting(server, tmp_path)
    server.run("iptables", "-t", "nat", "-I", "PREROUTING", "1", "-p", "udp", "-j", "ACCEPT")
    ready = json.loads(server.run("curl", "-sf", "http://127.0.0.1:15000/ready").stdout)
    note = "IPv4 PREROUTING: the jump to ARCA_INBOUND is not first; before it: -p udp -j ACCEPT"
    assert ready == {"ready": True, "reasons": [], "warnings": [f"rules: {note}"]}
    check = (sys.executable, "-m", "proxy.cli", "rules", "check", "-c", arca.file)
    assert server.run(*check).stdout == f"note: {note}\n"
    server.run("iptables", "-t", "nat", "-D", "PREROUTING", "2")
    assert server.run(*check, check=False).returncode == 1


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_detached_rules_redirect_nothing_new_and_can_be_attached_again(
    hosts: tuple[Namespace, Namespace], variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, server = hosts
    multi = Path(f"/usr/sbin/xtables-{variant}-multi")
    if not multi.exists():
        pytest.skip(f"this machine has no iptables-{variant}")
    for tool in ("iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"):
        (tmp_path / tool).symlink_to(multi)
    monkeypatch.setattr(commands, "_TOOL_PATH", os.fspath(tmp_path))
    if variant == "legacy" and server.run(tmp_path / "iptables-save", "-t", "nat", check=False).returncode:
        pytest.skip("this kernel has no legacy iptables")
    web = RuleSettings(inbound_ports=(80,))
    proxy = ProxyIdentity(port=15001, uid=15001, gid=15001)
    with server.inside():
        commands.apply(web, proxy)
        commands.detach()
        missing = commands.check(web, proxy)
        assert [line.partition(": ")[2] for line in missing] == [
            "the jump to ARCA_INBOUND is missing, so nothing is redirected there"
        ] * 2
        commands.detach()
        commands.apply(web, proxy)
        assert commands.check(web, proxy) == []
        commands.detach()
        assert commands.remove()
        assert not commands.remove()

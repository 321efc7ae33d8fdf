"""Intercepted for real: rules in network namespaces, nginx and curl, and nobody was told of ARCA.

The server's host redirects what comes in to port 80, the client's host what goes out to it. What the exchange
log says of a connection (direction, original destination, the client's own address) is held against what curl
and nginx know.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.system.arca import FIN, RST, Inside, dialed, verdict
from tests.system.namespaces import INTERFACE
from tests.system.processes import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.namespaces import Namespace, Network
    from tests.system.processes import Row

pytestmark = pytest.mark.usefixtures("iptables_work", "nginx")

INBOUND = 'workers = 1\n[rules]\napply = true\ninbound_ports = [80, "2500-2600"]\n'
OUTBOUND = "workers = 1\n[rules]\napply = true\noutbound_ports = [80]\n"
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def nginx(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Port 80 of the server's host tells what it was asked: its client, and the ids of the request."""
    directory = tmp_path_factory.mktemp("nginx")
    (directory / "nginx.conf").write_text(
        f"""
        daemon off; pid {directory}/pid; error_log {directory}/error.log; worker_processes 1; user root;
        events {{ worker_connections 512; }}
        http {{
            access_log off;
            server {{
                listen 80; listen [::]:80;
                location / {{ return 200 "$remote_addr|$http_x_request_id|$http_traceparent\\n"; }}
            }}
        }}
        """
    )
    server = network["server"]
    with (directory / "output").open("wb") as output:
        try:
            process = server.popen(
                "nginx",
                "-c",
                directory / "nginx.conf",
                "-e",
                directory / "error.log",
                stdout=output,
                stderr=output,
            )
        except FileNotFoundError:
            pytest.skip("needs the program nginx")

    def is_there() -> bool:
        assert process.poll() is None, (directory / "error.log").read_text()
        return server.run("curl", "-sf", "http://127.0.0.1/", check=False).returncode == 0

    until(is_there)
    yield
    process.terminate()
    process.wait()


class Fetched:
    """One request of curl's: what came back, and from which port it was sent."""

    def __init__(self, host: Namespace, url: str, *arguments: str) -> None:
        done = host.run(
            "curl",
            "-sS",
            "-g",
            "-i",
            "--max-time",
            "10",
            "-w",
            "\n%{local_ip} %{local_port}",
            *arguments,
            url,
        )
        text, _, mine = done.stdout.rpartition("\n")
        address, port = mine.split()
        self.client = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        head, _, self.body = text.replace("\r\n", "\n").partition("\n\n")
        self.status = int(head.split()[1])
        self.request_id = next(
            (line.split()[1] for line in head.splitlines() if line.lower().startswith("x-request-id:")), None
        )
        self.seen = self.body.strip().split("|")  # client, request id, traceparent as nginx had them


def chains(host: Namespace) -> str:
    return host.run("iptables-save").stdout + host.run("ip6tables-save").stdout


def only(arca: Inside, client: str) -> Row:
    until(lambda: any(row["client"] == client for row in arca.exchanges_so_far()))
    (row,) = (row for row in arca.exchanges_so_far() if row["client"] == client)
    return row


def traced(arca: Inside, other: Row) -> Row:
    """The exchange that has the request id and the trace id of another one."""

    def found() -> list[Row]:
        return [
            row
            for row in arca.exchanges_so_far()
            if (row["request_id"], row["trace_id"]) == (other["request_id"], other["trace_id"])
        ]

    until(lambda: len(found()) == 1)
    return found()[0]


@pytest.fixture
def inbound(network: Network, tmp_path: Path) -> Iterator[Inside]:
    with Inside(network["server"], tmp_path, INBOUND) as arca:
        yield arca.wait_ready()


@pytest.fixture
def outbound(network: Network, tmp_path: Path) -> Iterator[Inside]:
    with Inside(network["client"], tmp_path, OUTBOUND) as arca:
        yield arca.wait_ready()


def host_of(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_what_comes_in_is_intercepted(network: Network, inbound: Inside, family: str) -> None:
    server = host_of(getattr(network["server"], family))
    fetched = Fetched(network["client"], f"http://{server}/path?q=1")
    assert fetched.status == 200
    exchange = only(inbound, fetched.client)
    assert exchange["direction"] == "inbound"
    assert exchange["server"] == f"{server}:80"
    assert exchange["client"] == fetched.client
    assert (exchange["method"], exchange["target"], exchange["authority"]) == ("GET", "/path?q=1", server)
    assert (exchange["protocol"], exchange["status"]) == ("http/1.1", 200)
    assert verdict(exchange) == ("ok", None)
    assert exchange["request_id"] == fetched.request_id == fetched.seen[1]
    assert fetched.seen[2].startswith(f"00-{exchange['trace_id']}-")


def test_what_comes_in_over_a_link_local_address_is_intercepted(network: Network, inbound: Inside) -> None:
    shown = network["server"].run("ip", "-6", "address", "show", "dev", INTERFACE, "scope", "link").stdout
    found = re.search(r"inet6 (fe80::[0-9a-f:]+)", shown)
    assert found is not None, shown
    fetched = Fetched(network["client"], f"http://[{found[1]}%25{INTERFACE}]/")
    assert fetched.status == 200
    until(lambda: len(inbound.exchanges_so_far()) == 1)
    (exchange,) = inbound.exchanges_so_far()
    assert exchange["direction"] == "inbound"
    assert str(exchange["server"]).startswith(f"[{found[1]}%")


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_what_goes_out_is_intercepted_once(network: Network, outbound: Inside, family: str) -> None:
    """ARCA's own connection leaves through the same chain, and is not taken again."""
    server = host_of(getattr(network["server"], family))
    fetched = Fetched(network["client"], f"http://{server}/")
    assert fetched.status == 200
    exchange = only(outbound, fetched.client)
    assert exchange["direction"] == "outbound"
    assert exchange["server"] == f"{server}:80"
    assert fetched.seen[0] == getattr(network["client"], family)
    assert fetched.seen[1] == fetched.request_id == exchange["request_id"]
    time.sleep(0.7)
    assert len(outbound.exchanges_so_far()) == 1
    assert outbound.metric("arca_connections_refused_total") == 0


def test_two_in_a_row_keep_one_request_id_and_one_trace(
    network: Network, inbound: Inside, outbound: Inside
) -> None:
    server = network["server"].ipv4
    for given in ((), ("-H", "X-Request-ID: given"), ("-H", f"traceparent: 00-{'a' * 32}-{'b' * 16}-01")):
        fetched = Fetched(network["client"], f"http://{server}/", *given)
        out = only(outbound, fetched.client)
        came_in = traced(inbound, out)
        assert (out["direction"], came_in["direction"]) == ("outbound", "inbound")
        assert out["request_id"] == fetched.request_id == fetched.seen[1]
        assert fetched.seen[2].startswith(f"00-{out['trace_id']}-")
        if given and given[1].startswith("X"):
            assert fetched.request_id == "given"
        if given and given[1].startswith("t"):
            assert out["trace_id"] == "a" * 32
            assert out["parent_id"] == "b" * 16
            assert came_in["parent_id"] == (out["span_id"] or "b" * 16)


def test_a_server_that_speaks_first_is_heard_at_once(network: Network, inbound: Inside) -> None:
    server = network["server"]
    script = (
        "import socket; s = socket.create_server(('', 2525)); print('up', flush=True)\n"
        "c, _ = s.accept(); c.sendall(b'220 hello\\r\\n'); c.sendall(c.recv(100)); c.close()"
    )
    process = server.popen(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    with network["client"].inside():
        client = dialed(server.ipv4, 2525)
    with client:
        client.hears(b"220 hello\r\n")
        client.sends(b"QUIT\r\n")
        client.hears(b"QUIT\r\n")
        assert client.heard_end() == FIN
    exchange = only(inbound, client.name)
    assert (exchange["protocol"], exchange["server"]) == ("tcp", f"{server.ipv4}:2525")
    process.wait(PATIENCE)
    process.stdout.close()


def test_where_nothing_listens_http_is_told_and_the_rest_is_reset(network: Network, inbound: Inside) -> None:
    server = network["server"]
    fetched = Fetched(network["client"], f"http://{server.ipv4}:2600/")
    assert fetched.status == 502
    assert verdict(only(inbound, fetched.client)) == ("infrastructure", "connect_refused")
    with network["client"].inside(), dialed(server.ipv4, 2600) as client:
        client.sends(b"\xff")
        assert client.heard_end() == RST


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_connection_straight_to_the_redirect_listener_is_refused(
    network: Network, inbound: Inside, family: str
) -> None:
    server = getattr(network["server"], family)
    with (
        contextlib.suppress(ConnectionResetError),
        network["client"].inside(),
        dialed(server, 15001) as client,
    ):
        assert client.heard_end() == RST  # where it was not told before it could ask
    (exchange,) = inbound.exchanges(1)
    assert verdict(exchange) == ("proxy", "limit")
    assert inbound.ready()


def test_clients_that_reset_before_they_are_accepted_leave_nothing(network: Network, inbound: Inside) -> None:
    (worker,) = inbound.workers()
    os.kill(worker, signal.SIGSTOP)
    with network["client"].inside():
        clients = [dialed(network["server"].ipv4, 80) for _ in range(20)]
    for n, client in enumerate(clients):
        if n % 2:
            client.sends(b"GET / HTTP/1.1\r\n")
        client.resets()
    os.kill(worker, signal.SIGCONT)
    # Where they came from can no more be asked; where they were going can.
    until(lambda: len(inbound.exchanges_so_far()) == len(clients))
    until(lambda: json.loads(inbound.get("/connections")[1]) == [])
    assert Fetched(network["client"], f"http://{network['server'].ipv4}/").status == 200
    assert inbound.workers() == [worker]
    for row in inbound.exchanges_so_far():
        assert verdict(row) in (("client", "canceled"), ("ok", None)), row
        assert row["server"] == f"{network['server'].ipv4}:80"


def test_a_killed_worker_is_survived(network: Network, inbound: Inside) -> None:
    url = f"http://{network['server'].ipv4}/"
    assert Fetched(network["client"], url).request_id is not None
    (worker,) = inbound.workers()
    os.kill(worker, signal.SIGKILL)
    until(lambda: inbound.workers() not in ([], [worker]))
    fetched = Fetched(network["client"], url)  # it waits in the listener's queue, at worst
    assert fetched.status == 200
    assert fetched.request_id is not None
    assert "ARCA" in chains(network["server"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_when_it_ends_the_rules_are_gone_and_traffic_flows_directly(
    network: Network, inbound: Inside, number: signal.Signals
) -> None:
    server = network["server"]
    url = f"http://{server.ipv4}/"
    assert Fetched(network["client"], url).request_id is not None
    assert "ARCA" in chains(server)
    inbound.process.send_signal(number)
    assert inbound.ended() == 0
    assert "ARCA" not in chains(server)
    for address in (server.ipv4, server.ipv6):
        fetched = Fetched(network["client"], f"http://{host_of(address)}/")
        assert fetched.status == 200
        assert fetched.request_id is None
        assert fetched.seen[0] in (network["client"].ipv4, network["client"].ipv6)


def test_the_sidecar_example_works_as_it_stands(network: Network, tmp_path: Path) -> None:
    server = network["server"]
    command = ("arca", "run", "-c", str(ROOT / "deploy" / "sidecar.toml"))
    script = "import sys; from proxy.cli import main; sys.argv[0] = 'arca'; main()"
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = server.popen(sys.executable, "-c", script, *command[1:], stdout=out, stderr=err, cwd=ROOT)
    try:
        until(
            lambda: (
                server.run("curl", "-sf", "http://127.0.0.1:15000/ready", check=False).returncode == 0
                or process.poll() is not None
            )
        )
        assert process.poll() is None, (tmp_path / "err").read_text()
        fetched = Fetched(network["client"], f"http://{server.ipv4}/")
        assert fetched.request_id is not None
        until(lambda: (tmp_path / "out").read_bytes().endswith(b"\n"))
        row = json.loads((tmp_path / "out").read_text())
        assert (row["client"], row["direction"]) == (fetched.client, "inbound")
        metrics = network["client"].run("curl", "-sf", f"http://{server.ipv4}:9090/metrics").stdout
        assert "arca_build_info" in metrics
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert "ARCA" not in chains(server)

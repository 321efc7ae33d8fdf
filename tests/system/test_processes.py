"""Supervisor and workers as an operator meets them: signals, deaths, taken ports, wrong configurations."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from proxy.descriptors import RESERVE
from proxy.listeners import listening_inodes
from proxy.worker import REPORT_SECONDS
from tests.ports import free_port
from tests.system.processes import PATIENCE, Arca, Echo, command_line, until

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and other users need root")


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as upstream:
        yield upstream


class Forwarding(Arca):
    """ARCA with two workers in explicit mode, in front of ``echo``."""

    def __init__(self, echo: Echo, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.port = free_port()
        forward = f"127.0.0.1:{self.port}=127.0.0.1:{echo.port}"
        super().__init__("--workers", "2", "--forward", forward, *arguments, environment=environment)

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client


def echoes(client: socket.socket, said: bytes = b"\x00ping") -> bool:
    """Whether what is said comes back. The NUL makes it no protocol that ARCA knows."""
    try:
        client.sendall(said)
        heard = b""
        while len(heard) < len(said):
            data = client.recv(100)
            if not data:
                return False
            heard += data
        return heard == said
    except (ConnectionError, TimeoutError):
        return False


def refuses(arca: Forwarding) -> bool:
    try:
        arca.connect().close()
    except (ConnectionRefusedError, ConnectionResetError):  # reset: it still got into the queue
        return True
    return False


def running(pid: int) -> bool:
    return "proxy.worker" in command_line(pid)


def test_it_starts_carries_and_ends_with_0_on_sigterm(echo: Echo) -> None:
    with Forwarding(echo).wait_ready() as arca:
        workers = arca.workers()
        assert len(workers) == 2
        with arca.connect() as client:
            assert echoes(client)
        arca.process.terminate()
        assert arca.ended() == 0
        assert not any(running(pid) for pid in workers)


def test_sigint_ends_it_as_sigterm_does(echo: Echo) -> None:
    with Forwarding(echo).wait_ready() as arca:
        arca.process.send_signal(signal.SIGINT)
        assert arca.ended() == 0


def test_a_drain_lets_what_runs_go_on_and_takes_nothing_new(echo: Echo) -> None:
    with Forwarding(echo).wait_ready() as arca, arca.connect() as client:
        assert echoes(client)
        arca.process.terminate()
        until(lambda: "draining" in arca.get("/ready")[1])
        until(lambda: refuses(arca))
        assert echoes(client)
        client.close()
        began = time.monotonic()
        assert arca.ended() == 0
        assert time.monotonic() - began < 5  # well before drain_seconds: nothing is left to wait for


def test_what_ends_during_a_drain_is_told_while_it_lasts(echo: Echo, tmp_path: Path) -> None:
    log = tmp_path / "exchanges.jsonl"
    environment = {"ARCA_LIMITS_DRAIN_SECONDS": "60"}
    arguments = ("--workers", "1", "--exchanges", str(log))
    with Forwarding(echo, *arguments, environment=environment).wait_ready() as arca, arca.connect() as stays:
        with arca.connect() as ends:
            assert echoes(stays)
            assert echoes(ends)
            arca.process.terminate()
            until(lambda: not listening_inodes(Path("/proc/net/tcp").read_text(), arca.port))
            time.sleep(3 * REPORT_SECONDS)  # so that no report begun before the drain can tell
        until(lambda: log.read_bytes().count(b"\n") == 1)
        until(lambda: arca.metric("arca_connections_active") == 1)
        assert echoes(stays)
        arca.process.terminate()
        assert arca.ended() == 0


def test_what_runs_longer_than_drain_seconds_is_closed(echo: Echo) -> None:
    environment = {"ARCA_LIMITS_DRAIN_SECONDS": "0.5"}
    with Forwarding(echo, environment=environment).wait_ready() as arca, arca.connect() as client:
        assert echoes(client)
        arca.process.terminate()
        assert arca.ended(5) == 0
        assert not echoes(client)


def test_a_second_signal_ends_it_at_once(echo: Echo) -> None:
    environment = {"ARCA_LIMITS_DRAIN_SECONDS": "60"}
    with Forwarding(echo, environment=environment).wait_ready() as arca, arca.connect() as client:
        assert echoes(client)
        arca.process.terminate()
        until(lambda: "draining for" in arca.said)
        arca.process.terminate()
        assert arca.ended(10) == 0


def test_post_drain_is_a_sigterm(echo: Echo) -> None:
    with Forwarding(echo).wait_ready() as arca:
        assert arca.post("/drain") == 202
        assert arca.ended() == 0


def test_a_killed_worker_is_replaced_within_a_second_and_the_other_never_notices(echo: Echo) -> None:
    with contextlib.ExitStack() as stack:
        arca = stack.enter_context(Forwarding(echo).wait_ready())
        clients = [stack.enter_context(arca.connect()) for _ in range(32)]
        assert all(echoes(client) for client in clients)
        until(lambda: arca.metric("arca_connections_total") >= 32)
        victim, other = arca.workers()
        os.kill(victim, signal.SIGKILL)
        died = time.monotonic()
        until(lambda: len(arca.workers()) == 2 and victim not in arca.workers() and arca.ready())
        assert time.monotonic() - died < 1.0
        carried = [echoes(client) for client in clients]
        assert any(carried), "the other worker's connections go on"
        assert not all(carried), "the dead worker's connections are gone"
        assert other in arca.workers()
        for _ in range(8):
            with arca.connect() as client:
                assert echoes(client)
        until(lambda: arca.metric("arca_connections_total") >= 40)
        assert arca.metric("arca_worker_restarts_total") == 1
        assert arca.metric("arca_workers") == 2
        until(lambda: arca.metric("arca_connections_active") == sum(carried))


def test_connections_that_wait_for_a_dead_worker_are_taken_by_its_replacement(echo: Echo) -> None:
    with contextlib.ExitStack() as stack:
        arca = stack.enter_context(Forwarding(echo).wait_ready())
        victim = arca.workers()[0]
        os.kill(victim, signal.SIGSTOP)
        clients = [stack.enter_context(arca.connect()) for _ in range(16)]  # about half wait for the victim
        os.kill(victim, signal.SIGKILL)
        assert all(echoes(client) for client in clients)


def test_workers_end_by_themselves_when_the_supervisor_is_killed(echo: Echo) -> None:
    with Forwarding(echo).wait_ready() as arca:
        workers = arca.workers()
        arca.process.kill()
        until(lambda: not any(running(pid) for pid in workers))


def test_a_second_start_on_a_taken_port_says_so_and_does_no_harm(echo: Echo) -> None:
    with Forwarding(echo).wait_ready() as arca:
        forward = f"127.0.0.1:{arca.port}=127.0.0.1:{echo.port}"
        with Arca("--forward", forward) as second:
            assert second.ended() == 1
            owner = rf"arca: port {arca.port} is taken by pid {arca.process.pid}, "
            assert second.said.startswith(owner)
        with arca.connect() as client:
            assert echoes(client)


def test_a_taken_metrics_port_is_told_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Arca("--forward", f"127.0.0.1:{free_port()}=127.0.0.1:1", metrics=port) as arca:
            assert arca.ended() == 1
            assert arca.said.startswith(f"arca: port {port} is taken by pid {os.getpid()}, ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[limits]\nmax_connections = -1",
            "limits.max_connections: -1 is wrong: an integer from 1 to 1000000",
        ),
        ("wrokers = 1", "wrokers: there is no such key, did you mean workers? Allowed: listen, forward"),
        ("workers = ", "is not TOML: Invalid value (at line 1, column 11, the end)"),
        ('[rules]\ninbound_ports = ["http"]', 'rules.inbound_ports: "http" is wrong: a port from 1 to 65535'),
    ],
)
def test_a_wrong_configuration_ends_with_2_and_starts_nothing(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "arca.toml"
    file.write_text(text)
    with Arca("-c", str(file)) as arca:
        assert arca.ended() == 2
        assert arca.said.startswith(f"arca: {file}: {says}")
        assert len(arca.said.splitlines()) == 1


def test_sighup_takes_over_what_it_can_and_names_what_it_cannot(echo: Echo, tmp_path: Path) -> None:
    file = tmp_path / "arca.toml"
    file.write_text("slow = 1.0")
    with Forwarding(echo, "-c", str(file)).wait_ready() as arca, arca.connect() as client:
        file.write_text("slow = 0.5\nuser = 15002\n[limits]\ndrain_seconds = 3")
        arca.process.send_signal(signal.SIGHUP)
        until(lambda: "reloaded: slow, limits.drain_seconds" in arca.said)
        assert "not changed before a restart: user" in arca.said
        assert (arca.config()["slow"], arca.config()["user"]) == (0.5, 15001)
        assert echoes(client)


def test_sighup_with_a_wrong_configuration_keeps_the_old_one(echo: Echo, tmp_path: Path) -> None:
    file = tmp_path / "arca.toml"
    file.write_text("slow = 1.0")
    with Forwarding(echo, "-c", str(file)).wait_ready() as arca, arca.connect() as client:
        file.write_text("slow = -1")
        arca.process.send_signal(signal.SIGHUP)
        says = f"the old settings stay: arca: {file}: slow: -1 is wrong: a number above 0 to 86400"
        until(lambda: says in arca.said)
        assert arca.config()["slow"] == 1.0
        assert echoes(client)


def test_sighup_opens_the_exchange_log_anew(echo: Echo, tmp_path: Path) -> None:
    log = tmp_path / "exchanges.jsonl"
    with Forwarding(echo, "--exchanges", str(log)).wait_ready() as arca:
        with arca.connect() as client:
            assert echoes(client)
        until(lambda: log.read_bytes().count(b"\n") == 1)
        log.rename(tmp_path / "rotated")
        arca.process.send_signal(signal.SIGHUP)
        until(log.exists)
        with arca.connect() as client:
            assert echoes(client)
        until(lambda: log.read_bytes().count(b"\n") == 1)
    assert (tmp_path / "rotated").read_bytes().count(b"\n") == 1


def test_exchanges_to_a_stdout_that_is_closed_stop_nothing(echo: Echo) -> None:
    port = free_port()
    forward = f"127.0.0.1:{port}=127.0.0.1:{echo.port}"
    with Arca("--forward", forward, "--exchanges", "-", stdout=subprocess.PIPE).wait_ready() as arca:
        assert arca.process.stdout is not None
        arca.process.stdout.close()
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
                assert echoes(client)
        until(lambda: arca.metric("arca_dropped_records_total") >= 1)
        assert arca.ready()


def test_exchanges_of_both_workers_are_read_through_admin(echo: Echo) -> None:
    with Forwarding(echo).wait_ready() as arca:
        for _ in range(16):
            with arca.connect() as client:
                assert echoes(client)
        until(lambda: len(json.loads(arca.get("/exchanges?n=100")[1])) == 16)
        times = [each["time"] for each in json.loads(arca.get("/exchanges?n=100")[1])]
        assert times == sorted(times)
        newest = [each["time"] for each in json.loads(arca.get("/exchanges?n=3")[1])]
        assert newest == times[-3:]


def test_a_worker_that_does_not_answer_is_named_and_holds_nobody_up(echo: Echo) -> None:
    with Forwarding(echo).wait_ready() as arca:
        stopped = arca.workers()[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            began = time.monotonic()
            status, _ = arca.get("/connections")
            assert status == 200
            assert time.monotonic() - began < 4
        finally:
            os.kill(stopped, signal.SIGCONT)


def test_a_worker_that_hangs_makes_it_unready_until_it_goes_on(echo: Echo) -> None:
    with Forwarding(echo).wait_ready() as arca:
        stopped = arca.workers()[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            until(lambda: "has been silent for 5 s" in arca.get("/ready")[1])
            assert not arca.ready()
        finally:
            os.kill(stopped, signal.SIGCONT)
        until(arca.ready)


def test_workers_that_die_at_start_end_the_start_with_their_last_words(echo: Echo, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'proxy.worker' in sys.orig_argv:\n"
        "    os.write(2, b'no luck today\\n')\n"
        "    os._exit(3)\n"
    )
    with Forwarding(echo, environment={"PYTHONPATH": str(tmp_path)}) as arca:
        assert arca.ended() == 1
        last = arca.said.splitlines()[-1]
        assert last.startswith("arca: workers end as soon as they start: (pid ")
        assert last.endswith("ended with exit status 3: no luck today")


def test_more_connections_than_descriptors_are_reset_and_counted(echo: Echo) -> None:
    limited = ("sh", "-c", f'ulimit -n {RESERVE + 2 * 8} && exec "$@"', "arca")
    port = free_port()
    forward = f"127.0.0.1:{port}=127.0.0.1:{echo.port}"
    with contextlib.ExitStack() as stack:
        arca = stack.enter_context(Arca("--workers", "1", "--forward", forward, wrapper=limited).wait_ready())
        assert "enough for 8 of its 16384 connections" in arca.said
        carried = 0
        for _ in range(12):
            with contextlib.suppress(ConnectionError):  # a reset may come before connect() returns
                client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
                carried += echoes(stack.enter_context(client))
        assert carried == 8
        until(lambda: arca.metric("arca_connections_refused_total") == 4)


@needs_root
def test_workers_are_their_own_user_with_one_capability(echo: Echo) -> None:
    with Forwarding(echo).wait_ready() as arca:
        for pid in arca.workers():
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
            assert status["Uid"].split() == ["15001"] * 4
            assert status["Gid"].split() == ["15001"] * 4
            assert status["Groups"] == ""
            assert int(status["CapEff"], 16) in (1 << 12, 0)  # CAP_NET_ADMIN, where root itself has it
            assert status["NoNewPrivs"] == "1"


def test_a_worker_without_connections_is_small(echo: Echo) -> None:
    with Forwarding(echo).wait_ready() as arca:
        for pid in arca.workers():
            status = Path(f"/proc/{pid}/status").read_text()
            (resident,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            assert resident < 45 * 1024


# ---- with rules, in a network namespace that is thrown away

WITHOUT_NET_ADMIN = ("setpriv", "--bounding-set=-net_admin,-net_raw")
NAMESPACE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "arca")


class Peer:
    """A web server and its clients in the namespace of ``arca``, which they keep alive."""

    def __init__(self, arca: Arca) -> None:
        self._namespace = os.open(f"/proc/{arca.process.pid}/ns/net", os.O_RDONLY)
        serve = [sys.executable, "-m", "http.server", "8080", "--bind", "127.0.0.1"]
        self._server = subprocess.Popen(
            self._inside(*serve),
            pass_fds=[self._namespace],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Self:
        until(self._listening)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.wait()
        os.close(self._namespace)

    def _listening(self) -> bool:
        return bool(listening_inodes(Path(f"/proc/{self._server.pid}/net/tcp").read_text(), 8080))

    def fetch(self) -> str:
        """The status that curl gets."""
        curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:8080/"]
        done = subprocess.run(
            self._inside(*curl), pass_fds=[self._namespace], capture_output=True, text=True, check=False
        )
        return done.stdout

    def _inside(self, *command: str) -> list[str]:
        return ["nsenter", f"--net=/proc/self/fd/{self._namespace}", *command]


def nat_table(arca: Arca) -> str:
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{arca.process.pid}/ns/net", "iptables-save", "-t", "nat"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def redirecting(tmp_path: Path) -> Path:
    file = tmp_path / "arca.toml"
    file.write_text("workers = 2\n[rules]\napply = true\ninbound_ports = [80]\n")
    return file


@needs_root
def test_rules_are_there_once_it_is_ready_and_gone_when_it_ends(tmp_path: Path) -> None:
    file = redirecting(tmp_path)
    with Arca("-c", str(file), wrapper=NAMESPACE) as arca:
        until(lambda: "ready: 2 workers" in arca.said)
        assert "--dports 80 " in nat_table(arca)
        file.write_text(file.read_text().replace("80", "81"))
        arca.process.send_signal(signal.SIGHUP)
        until(lambda: "--dports 81 " in nat_table(arca))
        namespace = os.open(f"/proc/{arca.process.pid}/ns/net", os.O_RDONLY)
        try:
            arca.process.terminate()
            assert arca.ended() == 0
            left = subprocess.run(
                ["nsenter", f"--net=/proc/self/fd/{namespace}", "iptables-save", "-t", "nat"],
                capture_output=True,
                text=True,
                pass_fds=[namespace],
                check=True,
            )
        finally:
            os.close(namespace)
        assert "ARCA" not in left.stdout
        steps = ["rules detached", "draining for", "rules removed"]
        assert sorted(steps, key=arca.said.index) == steps


@needs_root
def test_rules_that_cannot_be_applied_end_the_start_and_nothing_stays(tmp_path: Path) -> None:
    file = redirecting(tmp_path)
    with Arca("-c", str(file), wrapper=(*NAMESPACE, *WITHOUT_NET_ADMIN)) as arca:
        assert arca.ended() == 1
        last = arca.said.splitlines()[-1]
        assert last.startswith("arca: iptables-save: ")
        assert last.endswith("run as root, or with CAP_NET_ADMIN and CAP_NET_RAW")
        assert "could not be removed" not in arca.said


@needs_root
def test_without_cap_net_admin_connections_go_unmarked_and_it_says_so(echo: Echo) -> None:
    port = free_port()
    forward = f"127.0.0.1:{port}=127.0.0.1:{echo.port}"
    with Arca("--forward", forward, "--workers", "1", wrapper=WITHOUT_NET_ADMIN).wait_ready() as arca:
        assert "without CAP_NET_ADMIN connections cannot be marked" in arca.said
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            assert echoes(client)


@needs_root
def test_a_user_that_cannot_be_taken_on_is_told(echo: Echo) -> None:
    forward = f"127.0.0.1:{free_port()}=127.0.0.1:{echo.port}"
    with Arca("--forward", forward, wrapper=("setpriv", "--bounding-set=-setuid")) as arca:
        assert arca.ended() == 1
        assert "worker: cannot become user 15001 (Operation not permitted)" in arca.said.splitlines()[-1]


@needs_root
def test_a_redirected_connection_reaches_its_server_and_goes_there_directly_afterwards(
    tmp_path: Path,
) -> None:
    file = tmp_path / "arca.toml"
    log = tmp_path / "exchanges.jsonl"
    file.write_text(
        f'workers = 1\nexchanges = "{log}"\n[rules]\napply = true\nloopback = true\noutbound_ports = [8080]\n'
    )
    with Arca("-c", str(file), wrapper=NAMESPACE) as arca:
        until(lambda: "ready: 1 workers" in arca.said)
        with Peer(arca) as peer:
            assert peer.fetch() == "200"
            until(lambda: log.read_bytes().count(b"\n") == 1)
            assert json.loads(log.read_bytes())["server"] == "127.0.0.1:8080"
            arca.process.terminate()
            assert arca.ended() == 0
            assert peer.fetch() == "200"
    assert log.read_bytes().count(b"\n") == 1

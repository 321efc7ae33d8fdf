"""`arca demo` as a user meets it: what it names, what it leaves behind, how it is interrupted."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from proxy.demo import actors, play, show, stage
from tests.system.namespaces import unavailable
from tests.system.processes import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOM = Path(__file__).parent.parent.parent
LIMIT = 60.0  # seconds: what a user is promised

# What the demo injects, as it says it, and what ARCA must call it.
FAULTS = {
    "the server answers 404": "application/status_4xx",
    "the server answers 500": "application/status_5xx",
    "nothing listens on the port": "infrastructure/connect_refused",
    "the server closes instead of answering": "application/closed_early",
    "the response ends in its middle": "application/closed_early",
    "the client gives up after 0.4 s": "client/canceled",
    "the server answers 500 over HTTP/2": "application/status_5xx",
    "control: slow, but answered": "ok",
    "control: HTTP/1.0": "ok",
    "control: a POST": "ok",
    "control: HTTP/2": "ok",
    "steady traffic, keep-alive, GET and POST": "ok",
}
GRPC_FAULTS = {
    "the gRPC service answers NOT_FOUND": "application/grpc_status",
    "the gRPC service answers UNAVAILABLE": "application/grpc_status",
    "a gRPC call is over its 300 ms deadline": "application/deadline_exceeded",
    "a gRPC stream breaks off with DATA_LOSS": "application/grpc_status",
    "the client cancels a gRPC stream": "client/canceled",
    "steady gRPC: unary, stream, both ways": "ok",
}

THRIFT_FAULTS = {
    "a Thrift method throws what it declares": "application/thrift_exception",
    "a Thrift method fails, undeclared": "application/thrift_exception",
    "a Thrift method that the service has not": "application/thrift_exception",
    "the Thrift service closes in mid-call": "application/closed_early",
    "control: Thrift oneway": "ok",
    "steady Thrift: calls and oneway": "ok",
}
MQTT_FAULTS = {
    "an MQTT client has a wrong password": "application/mqtt_refused",
    "an MQTT client publishes where it may not": "application/mqtt_refused",
    "an MQTT client silent past its keep-alive": "client/keepalive_missed",
    "an MQTT client is gone without DISCONNECT": "client/canceled",
    "control: MQTT, idle and pinging": "ok",
    "control: MQTT, a retained message": "ok",
    "control: MQTT, QoS 2": "ok",
    "steady MQTT: QoS 0, 1, 2, to a subscriber": "ok",
    "MQTT CONNECT, SUBSCRIBE, DISCONNECT": "ok",
}

# What a kind of call must come to in the list of outcomes, with the messages to the service and back.
CALLS = {
    ("application/grpc_status", "demo.Stock/Find -> NOT_FOUND"): (1, 0),
    ("application/grpc_status", "demo.Stock/Reserve -> UNAVAILABLE"): (1, 0),
    ("application/deadline_exceeded", "demo.Stock/Price -> DEADLINE_EXCEEDED"): (1, 0),
    ("application/grpc_status", "demo.Stock/Export -> DATA_LOSS"): (1, 3),
    ("client/canceled", "demo.Stock/Follow -> no status"): (1, 2),
    ("ok", "demo.Stock/Get -> OK"): (1, 1),
    ("ok", "demo.Stock/Watch -> OK"): (1, 5),
    ("ok", "demo.Stock/Sync -> OK"): (3, 3),
}

GAPS = actors.lacks()


def needs(protocol: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(protocol in GAPS, reason=GAPS.get(protocol, ""))


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces, rules and other users")

# Nobody's uid and none of root's powers but reading, so that it can use a Python in root's home.
AS_NOBODY = (
    *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    *("--inh-caps", "-all,+dac_read_search", "--ambient-caps", "-all,+dac_read_search"),
    *("--bounding-set", "-all,+dac_read_search"),
)


@pytest.fixture(autouse=True)
def programs() -> None:
    for program, package in actors.missing_programs():
        pytest.skip(f"needs the program {program} (package {package})")


class Demo:
    """One run. Its processes are known by a variable of their environment, wherever they went."""

    def __init__(self, *wrapper: str, terminal: bool = False) -> None:
        self._mark = f"DEMO_OF_TEST={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        self._read, write = pty.openpty() if terminal else os.pipe()
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "proxy.cli", "demo"],
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=write,
            cwd=ROOM,
            env={**os.environ, name: value},
            start_new_session=True,
        )
        os.close(write)
        self.said = b""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.ended()

    def ended(self) -> tuple[int, str]:
        """Exit status and output."""
        status = self.process.wait(LIMIT)
        self._listener.join(5)
        return status, self.said.decode()

    def processes(self) -> list[str]:
        """The command lines of what it started and still runs, its own among them."""
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self._mark.encode() in (each / "environ").read_bytes().split(b"\0"):
                    found.append((each / "cmdline").read_text().replace("\0", " "))
        return found

    def namespaces(self) -> list[str]:
        return [each for each in namespaces() if each.startswith(f"arca-demo-{self.process.pid}-")]

    def folders(self) -> list[Path]:
        return list(Path(tempfile.gettempdir()).glob(f"arca-demo-{self.process.pid}-*"))

    def assert_nothing_left(self) -> None:
        assert self.processes() == []
        assert self.namespaces() == []
        assert self.folders() == []

    def _listen(self) -> None:
        with contextlib.suppress(OSError), os.fdopen(self._read, "rb", buffering=0) as output:
            while data := output.read(65536):
                self.said += data


def namespaces() -> list[str]:
    return os.listdir("/run/netns") if Path("/run/netns").exists() else []


def host_rules() -> list[str]:
    """The machine's own rules, without their counters."""
    text = ""
    for tool in ("iptables-save", "ip6tables-save"):
        text += subprocess.run([tool], capture_output=True, text=True, check=False).stdout
    return [re.sub(r"\[\d+:\d+\]", "", line) for line in text.splitlines() if not line.startswith("#")]


def named(output: str) -> dict[str, str]:
    """What stands in the last table: each thing injected with the verdict it had to get, where it got it."""
    rows = [re.match(r" *(\S.*?) +(\d+) (ok|\w+/\w+) .*✓", line) for line in output.splitlines()]
    return {row[1]: row[3] for row in rows if row is not None}


def expected_faults() -> dict[str, str]:
    faults = dict(FAULTS)
    for protocol, more in (("gRPC", GRPC_FAULTS), ("Thrift", THRIFT_FAULTS), ("MQTT", MQTT_FAULTS)):
        faults |= {} if protocol in GAPS else more
    return faults


def calls(output: str) -> dict[tuple[str, str], tuple[int, int]]:
    """The gRPC calls in the list of outcomes: verdict and answer, with their numbers of messages."""
    kinds = re.finditer(
        r"^(\S+) +\d\.\d\d (demo\.Stock/\w+ -> .*?) +\d+ \+ \d+\n"
        r"(?: {4}.*\n)*? {4}messages: (\d+) to the service, (\d+) back",
        output,
        re.MULTILINE,
    )
    return {(kind[1], kind[2]): (int(kind[3]), int(kind[4])) for kind in kinds}


@pytest.fixture(scope="module")
def as_root() -> Iterator[tuple[Demo, int, str, float]]:
    """One run of the whole demo, looked at by several tests: itself, status, output, seconds."""
    if (reason := unavailable() or stage.root_lacks()) is not None:
        pytest.skip(reason)
    with Demo() as demo:
        status, output = demo.ended()
        yield demo, status, output, time.monotonic() - demo.began


def test_every_fault_gets_its_verdict_in_less_than_a_minute(as_root: tuple[Demo, int, str, float]) -> None:
    _, status, output, seconds = as_root
    assert status == 0, output
    assert named(output) == expected_faults()
    assert seconds < LIMIT


def test_both_directions_of_both_families_are_shown(as_root: tuple[Demo, int, str, float]) -> None:
    _, _, output, _ = as_root
    protocols = {80: "http/1.1", 81: "http/2"}
    for name, port in (("gRPC", 9000), ("Thrift", 9090), ("MQTT", 1883)):
        if name not in GAPS:
            protocols[port] = name.lower()
    for client, server in (("10.72.0.1", "10.72.0.2"), ("fd72::1", "[fd72::2]")):
        for host, direction in (("client", "outbound"), ("server", "inbound")):
            for port, protocol in protocols.items():
                ends = f"{client} -> {server}:{port}"
                edge = rf" {host} +{re.escape(ends)} +{direction} +{re.escape(protocol)} "
                latency = r".* \d+\.\d +\d+\.\d *$"
                assert re.search(edge + latency, output, re.MULTILINE), output


@needs("gRPC")
def test_grpc_calls_show_their_status_and_their_messages(as_root: tuple[Demo, int, str, float]) -> None:
    _, _, output, _ = as_root
    assert calls(output) == CALLS
    assert '"the stock is being counted, 100 % of it"' in " ".join(output.split())  # whole, however wrapped
    # A stream of five, 5 ms between two of them: its first message is there before its end.
    watched = re.search(r"messages: 1 to the service, 5 back, the first after (\S+) of (\S+) ms", output)
    assert watched is not None, output
    assert float(watched[2]) - float(watched[1]) >= 15.0


@needs("Thrift")
def test_thrift_calls_show_their_exception(as_root: tuple[Demo, int, str, float]) -> None:
    _, _, output, _ = as_root
    for outcome in (
        r"application/thrift_exception +1\.00 reserve -> exception_1 ",
        r"application/thrift_exception +1\.00 price -> INTERNAL_ERROR ",
        r"application/thrift_exception +1\.00 weigh -> UNKNOWN_METHOD ",
        r"application/closed_early +0\.90 ship -> no answer ",
        r"ok +1\.00 note -> done ",
        r"framed binary, sequence id \d+, no place for a trace id, at both",
    ):
        assert re.search(outcome, output), outcome
    assert '"there is no left-handed hammer"' in output


@needs("MQTT")
def test_mqtt_exchanges_show_their_reason_and_messages_keep_their_trace(
    as_root: tuple[Demo, int, str, float],
) -> None:
    _, _, output, _ = as_root
    for outcome in (
        r"application/mqtt_refused +1\.00 CONNECT -> Not authorized ",
        r"application/mqtt_refused +1\.00 PUBLISH prices -> Not authorized ",
        r"client/keepalive_missed +0\.\d\d PINGREQ -> no answer ",
        r"client/canceled +\d\.\d\d DISCONNECT -> no answer ",
        r"ok +1\.00 PUBLISH orders -> ",
        r"ok +1\.00 PUBLISH stock/IPv6/bolts to its subscriber -> ",
        r"MQTT 5, QoS 2, client demo-\d+-mqtt-qos2, trace id [0-9a-f]{32}, at both",
    ):
        assert re.search(outcome, output), outcome
    shared, delivered = re.findall(r"✓ (\d+) of (\d+) MQTT messages have it from their publisher", output)[0]
    assert int(shared) == int(delivered) > 50


def test_recall_and_precision_are_told(as_root: tuple[Demo, int, str, float]) -> None:
    _, _, output, _ = as_root
    told = r"✓ (\d+) of (\d+) faults got their verdict \(recall\), (\d+) of (\d+) that were called faults"
    assert len(set(re.findall(told, output)[0])) == 1


def test_the_same_ids_are_seen_at_both_proxies(as_root: tuple[Demo, int, str, float]) -> None:
    _, _, output, _ = as_root
    both, joined = re.findall(r"✓ (\d+) of (\d+) requests that both ARCAs saw have one trace id", output)[0]
    assert int(both) == int(joined) > 100
    assert re.search(r"request id demo-\d+-missing, trace id [0-9a-f]{32}, at both", output)


def test_nothing_is_left_behind(as_root: tuple[Demo, int, str, float]) -> None:
    demo, _, _, _ = as_root
    demo.assert_nothing_left()


def test_a_file_gets_no_escape_sequences_and_each_table_once(as_root: tuple[Demo, int, str, float]) -> None:
    _, _, output, _ = as_root
    assert "\x1b" not in output
    assert output.count("p50 ms") == 1


@needs_root
def test_ctrl_c_at_a_terminal_leaves_nothing_behind(namespaces_work: None) -> None:
    before = host_rules()
    with Demo(terminal=True) as demo:
        until(lambda: b"now: IPv4" in demo.said)
        assert host_rules() == before
        os.killpg(demo.process.pid, signal.SIGINT)  # as a terminal does
        status, output = demo.ended()
        assert status == 130
        assert "interrupted" in output
        assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l")  # the cursor is back
        demo.assert_nothing_left()
        assert host_rules() == before


@needs_root
def test_sigterm_while_the_stage_is_set_leaves_nothing_behind(namespaces_work: None) -> None:
    with Demo() as demo:
        until(lambda: bool(demo.namespaces()))
        demo.process.terminate()
        assert demo.ended()[0] == 143
        demo.assert_nothing_left()


@needs_root
def test_what_a_killed_demo_left_is_removed_by_the_next_and_nothing_else(namespaces_work: None) -> None:
    running = stage.name("of-a-running-demo")
    subprocess.run(["ip", "netns", "add", running], check=True)
    try:
        with Demo() as demo:
            until(lambda: len(demo.processes()) > 5)
            demo.process.kill()
            demo.ended()
            until(lambda: demo.processes() == [])  # they end with it
            assert demo.namespaces()
            stage.remove_leftovers()
            demo.assert_nothing_left()
        assert running in namespaces()
    finally:
        subprocess.run(["ip", "netns", "delete", running], check=True)


@needs_root
def test_without_root_it_runs_on_loopback_and_says_what_root_would_add() -> None:
    tried = subprocess.run([*AS_NOBODY, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"another user cannot be had: {tried.stderr.strip()}")
    with Demo(*AS_NOBODY) as demo:
        status, output = demo.ended()
        assert status == 0, output
        assert named(output) == expected_faults()
        assert "not root" in output
        assert "netfilter takes their" in output
        demo.assert_nothing_left()


def test_without_its_libraries_the_rest_is_played_and_the_gaps_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("grpc", "thriftpy2", "paho"):
        monkeypatch.setitem(sys.modules, module, None)  # as Python notes what cannot be imported
    monkeypatch.setattr(play, "ROUNDS", 1)
    monkeypatch.setattr(play, "REQUESTS", play.REQUESTS[:1])
    assert show.run() == 0
    said = capsys.readouterr().out
    assert "Without gRPC: grpcio is not installed" in said
    assert "Without Thrift: thriftpy2 is not installed" in said
    assert "Without MQTT: paho-mqtt is not installed" in said
    assert "client -> ARCA -> ARCA -> nginx\n" in said
    assert named(said).keys() == {play.REQUESTS[0].what, play.STEADY_HTTP}


@pytest.mark.skipif("MQTT" in GAPS, reason="needs paho-mqtt")
def test_a_missing_broker_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "MQTT" not in actors.lacks()
    monkeypatch.setattr(actors, "PATH", str(tmp_path))
    assert actors.lacks()["MQTT"] == (
        "the program mosquitto is missing (`make setup` as root, or install the package mosquitto)"
    )


def test_a_missing_program_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(actors, "PATH", str(tmp_path))
    assert show.run() == 1
    said = capsys.readouterr().out
    assert "needs nginx: run `make setup` as root, or install the package nginx-light" in said
    assert "needs curl" in said

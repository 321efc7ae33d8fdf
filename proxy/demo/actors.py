"""Who is on the stage: nginx with the application behind it, the other servers, two ARCAs, and the clients.

All but the application are real programs, started where the stage says, each in a session of its own: a
Ctrl-C at the terminal reaches the demo alone, which then ends them in order. Should the demo be killed, the
kernel ends them (setpriv --pdeathsig).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from proxy.demo import play
from proxy.demo.play import GrpcCall, Host, MqttSession, Port, ThriftCall
from proxy.demo.stage import PATH

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from proxy.demo.play import Asked, Family, Request
    from proxy.demo.stage import Stage

END_SECONDS = 5.0  # ARCA drains and nginx finishes long before
_NEEDED = (("nginx", "nginx-light"), ("curl", "curl"))


def missing_programs() -> list[tuple[str, str]]:
    """The programs that the play cannot do without and that are not there, each with its package."""
    return [(program, package) for program, package in _NEEDED if shutil.which(program, path=PATH) is None]


def lacks() -> dict[str, str]:
    """The protocols that cannot be played here, each with the reason."""
    reasons = {
        "gRPC": _modules_lack("grpcio", "grpc"),
        "Thrift": _modules_lack("thriftpy2", "thriftpy2"),
        "MQTT": _modules_lack("paho-mqtt", "paho")
        or _programs_lack("mosquitto", "mosquitto", "mosquitto_passwd"),
    }
    return {protocol: reason for protocol, reason in reasons.items() if reason is not None}


def _modules_lack(package: str, module: str) -> str | None:
    if importlib.util.find_spec(module) is not None:
        return None
    return f"{package} is not installed (`make setup` does it; or pip install 'arca[demo]')"


def _programs_lack(package: str, *programs: str) -> str | None:
    for program in programs:
        if shutil.which(program, path=PATH) is None:
            return (
                f"the program {program} is missing (`make setup` as root, or install the package {package})"
            )
    return None


class Actor:
    """A program that runs for the whole play. Its words go to a file, which is shown if it ends badly."""

    def __init__(
        self, title: str, command: Sequence[str], folder: Path, stdin: int = subprocess.DEVNULL
    ) -> None:
        self.title = title
        self._words = folder / f"{title.replace(' ', '-')}.log"
        self._said = folder / f"{title.replace(' ', '-')}.out"
        with self._words.open("wb") as words, self._said.open("wb") as said:
            self._process = _start(command, said.fileno(), words.fileno(), stdin)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ask_to_end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if not self.has_ended():
            self._process.send_signal(number)

    def ended(self) -> str | None:
        """Waits for its end, and makes it end if need be; None when all is well, else what is not."""
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"{self.title} did not end within {END_SECONDS:g} s and was killed"
        return None if status == 0 else f"{self.title} ended with status {status}: {self.last_words()}"

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def said(self) -> bytes:
        return self._said.read_bytes()

    def words(self) -> bytes:
        return self._words.read_bytes()

    def last_words(self) -> str:
        lines = self.words().decode(errors="replace").splitlines()
        return " / ".join(lines[-3:]) or "it said nothing"


def _start(
    command: Sequence[str], stdout: int, stderr: int, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    # What a user has set for an ARCA of his own must not reach these.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ARCA_")}
    setpriv = shutil.which("setpriv", path=PATH)
    with_us = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
    return subprocess.Popen(
        [*with_us, *command],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**environment, "PATH": PATH},
        start_new_session=True,
    )


# ---- the server


def nginx(stage: Stage, folder: Path) -> Actor:
    listens = "".join(f"        listen {address};\n" for address in stage.listens(Port.WEB))
    listens += "".join(f"        listen {address} http2;\n" for address in stage.listens(Port.HTTP2))
    (folder / "nginx.conf").write_text(
        _NGINX.format(
            # Its worker must reach files in a folder that is only ours.
            user="user root root;" if os.geteuid() == 0 else "",
            folder=folder,
            listens=listens,
        )
    )
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    return Actor("nginx", [*stage.on(Host.SERVER), *command], folder)


_NGINX = """\
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxied;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    default_type text/plain;
    server {{
{listens}
        location = / {{ return 200 "hello\\n"; }}
        location = /orders {{ return 201 "created\\n"; }}
        location = /missing {{ return 404 "no such thing\\n"; }}
        location = /broken {{ return 500 "out of order\\n"; }}
        location = /close {{ return 444; }}
        location / {{
            proxy_pass http://unix:{folder}/application;
            proxy_buffering off;
        }}
    }}
}}
"""


class Application:
    """What nginx asks for what it cannot do itself: to answer late, to hang, to stop in the middle."""

    def __init__(self, folder: Path) -> None:
        self._server = _Server(str(folder / "application"), _Answer)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False


class _Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        path = self.rfile.readline().split()[1]
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        match path:
            case b"/slow":
                self._answer(play.SLOW)
            case b"/hang":
                self._answer(play.HANGS)
            case b"/cut":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 2000)
            case _:
                self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def _answer(self, after: float) -> None:
        """... unless nginx, which says nothing more, hangs up before."""
        connection: socket.socket = self.connection
        if not select.select([connection], [], [], after)[0]:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ndone\n")


class Service(Actor):
    """A server that says when it listens."""

    def __init__(
        self, title: str, command: Sequence[str], folder: Path, stage: Stage, word: bytes = b"listening"
    ) -> None:
        self._word = word
        super().__init__(title, [*stage.on(Host.SERVER), *command], folder)

    def is_ready(self) -> bool:
        return self._word in self.said() + self.words()


def grpc_service(stage: Stage, folder: Path) -> Service:
    command = [*_program("grpc_service.py"), *stage.listens(Port.GRPC)]
    return Service("the gRPC service", command, folder, stage)


def thrift_service(stage: Stage, folder: Path) -> Service:
    command = [*_program("thrift_service.py"), *stage.listens(Port.THRIFT)]
    return Service("the Thrift service", command, folder, stage)


def mosquitto(stage: Stage, folder: Path) -> Service:
    """The MQTT broker, which knows one user and what he may do."""
    listeners = (address.rpartition(":") for address in stage.listens(Port.MQTT))
    (folder / "mosquitto.conf").write_text(
        _MOSQUITTO.format(
            # It must read files in a folder that is only ours.
            user="user root" if os.geteuid() == 0 else "",
            folder=folder,
            listens="".join(f"listener {port} {host.strip('[]')}\n" for host, _, port in listeners),
        )
    )
    (folder / "mosquitto.access").write_text(_MOSQUITTO_ACCESS)
    passwords = folder / "mosquitto.passwords"
    passwords.write_text("demo:not a secret\n")  # as mqtt_client.py says them
    program = shutil.which("mosquitto_passwd", path=PATH) or "mosquitto_passwd"
    subprocess.run([program, "-U", passwords], stdin=subprocess.DEVNULL, check=True)  # hashes it
    command = ["mosquitto", "-c", str(folder / "mosquitto.conf")]
    return Service("mosquitto", command, folder, stage, b"running")


_MOSQUITTO = """\
{user}
per_listener_settings false
{listens}
allow_anonymous false
password_file {folder}/mosquitto.passwords
acl_file {folder}/mosquitto.access
persistence false
log_dest stderr
log_type error
log_type warning
log_type information
connection_messages false
"""

_MOSQUITTO_ACCESS = """\
user demo
topic readwrite stock/#
topic write orders
"""


def _program(name: str) -> list[str]:
    """The command of a program that stands beside this file."""
    return [sys.executable, "-I", str(Path(__file__).with_name(name))]


# ---- the proxies


class Arca(Actor):
    """A real `arca run`, started as an operator would."""

    def __init__(self, host: Host, stage: Stage, folder: Path) -> None:
        self.exchanges = folder / f"{host}.jsonl"
        configuration = folder / f"{host}.toml"
        configuration.write_text(
            f'workers = 1\nexchanges = "{self.exchanges}"\nmetrics = ""\nadmin = "{stage.admin(host)}"\n'
            + stage.settings(host)
        )
        self._ready = [*stage.on(host), "curl", "-q", "-sSf", "--noproxy", "*", "--max-time", "1"]
        self._ready += ["-o", os.devnull, f"http://{stage.admin(host)}/ready"]
        arca = [sys.executable, "-m", "proxy.cli", "run", "-c", str(configuration), *stage.flags(host)]
        super().__init__(f"the {host}'s ARCA", [*stage.on(host), *arca], folder)

    def is_ready(self) -> bool:
        return _start(self._ready, subprocess.DEVNULL, subprocess.DEVNULL).wait() == 0


# ---- the clients


class Seen(msgspec.Struct):
    """What a steady client saw: what its healthy exchanges are known by, and every failure in words."""

    ids: list[str] = []
    around: list[str] = []  # of what is beside them, as an opened session is
    failures: list[str] = []


class Course(msgspec.Struct):
    """How something ended that a client was asked for, and what its exchanges are known by."""

    name: str | None = None
    outcome: str = ""
    judged: list[str] = []
    around: list[str] = []  # of what had to be done beside, and must be ok


class Attempt(Protocol):
    """One try of a scene, under way."""

    @property
    def course(self) -> Course:
        """How it went, when it has ended."""

    def has_ended(self) -> bool: ...

    def end(self) -> str | None:
        """What its client saw amiss, in words. It is made to end if it has not."""


class Client(Actor):
    """Healthy traffic, without a pause."""

    steady: str  # what that is called
    around: str  # and what it needs beside

    def seen(self) -> Seen:
        """What it printed when it had ended; nothing when it had no time to."""
        return msgspec.json.decode((self._lines() or [b"{}"])[-1], type=Seen)

    def _lines(self) -> list[bytes]:
        """Whole lines only."""
        return self.said().split(b"\n")[:-1]


class HttpClient(Client):
    """HTTP/1.1 requests, one after another."""

    steady = around = play.STEADY_HTTP

    def __init__(self, family: Family, stage: Stage, folder: Path) -> None:
        url = f"http://{stage.address(family, Port.WEB)}"
        command = [*stage.on(Host.CLIENT), *_program("client.py"), url]
        super().__init__(f"the {family} client", command, folder)


class AskedClient(Client):
    """One that does beside its healthy traffic what it is asked for, a line each."""

    protocol: str
    port: Port
    program: str

    def __init__(self, family: Family, stage: Stage, folder: Path) -> None:
        command = [*stage.on(Host.CLIENT), *_program(self.program), stage.address(family, self.port)]
        title = f"the {family} {self.protocol} client"
        super().__init__(title, [*command, *self._arguments(family)], folder, subprocess.PIPE)

    def _arguments(self, family: Family) -> list[str]:
        return []

    def ask(self, question: dict[str, str | int | None]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # that it has ended is noticed anyway
            self._process.stdin.write(msgspec.json.encode(question) + b"\n")
            self._process.stdin.flush()

    def course(self, name: str) -> Course | None:
        """How what was asked for by this name ended, or None before that."""
        courses = (msgspec.json.decode(line, type=Course) for line in self._lines())
        return next((each for each in courses if each.name == name), None)

    def ask_to_end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """It ends with its input. The signal would cut calls off."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


class GrpcClient(AskedClient):
    steady = around = play.STEADY_GRPC
    protocol, port, program = "gRPC", Port.GRPC, "grpc_client.py"


class ThriftClient(AskedClient):
    steady = around = play.STEADY_THRIFT
    protocol, port, program = "Thrift", Port.THRIFT, "thrift_client.py"

    def _arguments(self, family: Family) -> list[str]:
        """The first of its sequence ids: no two clients have one in common."""
        return [str(1 + list(play.Family).index(family) * 1_000_000)]


class MqttClient(AskedClient):
    """A publisher and a subscriber."""

    steady, around = play.STEADY_MQTT, play.MQTT_AROUND
    protocol, port, program = "MQTT", Port.MQTT, "mqtt_client.py"

    def _arguments(self, family: Family) -> list[str]:
        return [str(family)]


class Favour:
    """Something that a client does because it was asked."""

    def __init__(self, scene: Asked, name: str, client: AskedClient) -> None:
        self.client = client
        self._scene = scene
        self._name = name
        client.ask({"name": name, **_question(scene)})

    @property
    def course(self) -> Course:
        return self.client.course(self._name) or Course()

    def has_ended(self) -> bool:
        return self.client.course(self._name) is not None

    def end(self) -> str | None:
        if not self.has_ended():
            return "it did not end"
        outcome = self.course.outcome
        return None if outcome == self._scene.outcome else f"{outcome} instead of {self._scene.outcome}"


def _question(scene: Asked) -> dict[str, str | int | None]:
    match scene:
        case GrpcCall():
            return {
                "method": scene.method,
                "cancel_after": scene.cancel_after,
                "deadline_ms": scene.deadline_ms,
            }
        case ThriftCall():
            return {"method": scene.method}
        case MqttSession():
            return {"course": scene.course}


class Curl:
    def __init__(self, scene: Request, family: Family, request_id: str, stage: Stage) -> None:
        self.course = Course(judged=[request_id])
        self._scene = scene
        url = f"http://{stage.address(family, scene.port)}{scene.path}"
        command = ["curl", "-q", "-s", "--noproxy", "*", "--globoff", "-o", os.devnull, "-w", "%{http_code}"]
        command += ["--max-time", "10", *scene.options, "-H", f"X-Request-ID: {request_id}", url]
        read, write = os.pipe()
        self._output = os.fdopen(read, "r")
        try:
            self._process = _start([*stage.on(Host.CLIENT), *command], write, subprocess.DEVNULL)
        finally:
            os.close(write)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> str | None:
        if not self.has_ended():
            self._process.kill()
        status = self._process.wait()
        with self._output:
            http_status = self._output.read()
        if status == self._scene.curl_status:
            return None
        return f"curl ended with {status} instead of {self._scene.curl_status}, HTTP status {http_status}"

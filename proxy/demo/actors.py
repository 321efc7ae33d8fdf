"""Who is on the stage: nginx with the application behind it, a gRPC service, two ARCAs, and the clients.

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
from proxy.demo.play import Call, Host, Port, Request
from proxy.demo.stage import PATH

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from proxy.demo.play import Family
    from proxy.demo.stage import Stage

END_SECONDS = 5.0  # ARCA drains and nginx finishes long before
_NEEDED = (("nginx", "nginx-light"), ("curl", "curl"))


def missing_programs() -> list[tuple[str, str]]:
    """The programs that the play cannot do without and that are not there, each with its package."""
    return [(program, package) for program, package in _NEEDED if shutil.which(program, path=PATH) is None]


def grpc_lacks() -> str | None:
    """Why there can be no gRPC service and no client of it, or None when there can."""
    if importlib.util.find_spec("grpc") is not None:
        return None
    return "grpcio is not installed (`make setup` does it; or pip install 'arca[demo]')"


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

    def last_words(self) -> str:
        lines = self._words.read_text(errors="replace").splitlines()
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


class GrpcService(Actor):
    def __init__(self, stage: Stage, folder: Path) -> None:
        command = [*stage.on(Host.SERVER), *_program("grpc_service.py"), *stage.listens(Port.GRPC)]
        super().__init__("the gRPC service", command, folder)

    def is_ready(self) -> bool:
        return bool(self.said())


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
    """What a steady client saw: the ids of its healthy requests, and every failure in words."""

    request_ids: list[str] = []
    failures: list[str] = []


class Attempt(Protocol):
    """One try of a scene, under way."""

    request_id: str

    def has_ended(self) -> bool: ...

    def end(self) -> str | None:
        """What its client saw amiss, in words. It is made to end if it has not."""


class SteadyClient(Actor):
    """HTTP/1.1 requests, one after another."""

    steady = play.STEADY_HTTP

    def __init__(self, family: Family, stage: Stage, folder: Path) -> None:
        url = f"http://{stage.address(family, Port.WEB)}"
        command = [*stage.on(Host.CLIENT), *_program("client.py"), url]
        super().__init__(f"the {family} client", command, folder)

    def seen(self) -> Seen:
        """What it printed when it had ended; nothing when it had no time to."""
        return msgspec.json.decode(self.said() or b"{}", type=Seen)


class GrpcClient(Actor):
    """Healthy calls, one after another, and beside them on the same connection what it is asked for."""

    steady = play.STEADY_GRPC

    def __init__(self, family: Family, stage: Stage, folder: Path) -> None:
        command = [*stage.on(Host.CLIENT), *_program("grpc_client.py"), stage.address(family, Port.GRPC)]
        super().__init__(f"the {family} gRPC client", command, folder, subprocess.PIPE)

    def call(self, scene: Call, request_id: str) -> None:
        wanted: dict[str, str | int | None] = {"method": scene.method, "request_id": request_id}
        wanted["cancel_after"] = scene.messages if scene.cancel else None
        wanted["deadline_ms"] = scene.deadline_ms
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # that it has ended is noticed anyway
            self._process.stdin.write(msgspec.json.encode(wanted) + b"\n")
            self._process.stdin.flush()

    def ended_with(self, request_id: str) -> CallEnd | None:
        """How a call ended, or None before that."""
        ends = (msgspec.json.decode(line, type=CallEnd) for line in self._lines())
        return next((each for each in ends if each.request_id == request_id), None)

    def ask_to_end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """It ends with its input. The signal would cut calls off."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def seen(self) -> Seen:
        return msgspec.json.decode((self._lines() or [b"{}"])[-1], type=Seen)

    def _lines(self) -> list[bytes]:
        """Whole lines only."""
        return self.said().split(b"\n")[:-1]


class CallEnd(msgspec.Struct):
    """What the gRPC client says of a call."""

    request_id: str | None = None
    code: str = ""
    messages: int = 0


class GrpcCall:
    def __init__(self, scene: Call, request_id: str, client: GrpcClient) -> None:
        self.request_id = request_id
        self._scene = scene
        self._client = client
        client.call(scene, request_id)

    def has_ended(self) -> bool:
        return self._client.ended_with(self.request_id) is not None

    def end(self) -> str | None:
        end = self._client.ended_with(self.request_id)
        if end is None:
            return "the call did not end"
        if (end.code, end.messages) == (self._scene.code, self._scene.messages):
            return None
        return f"the call ended with {end.code} instead of {self._scene.code}, after {end.messages} messages"


class Curl:
    def __init__(self, scene: Request, family: Family, request_id: str, stage: Stage) -> None:
        self.request_id = request_id
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

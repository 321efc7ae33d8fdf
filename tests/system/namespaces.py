"""A small network of real hosts on one machine: network namespaces on one bridge, each with IPv4 and IPv6.

    with Network("client", "server") as network:
        server = network["server"]
        with server.inside():                    # sockets and child processes made here are the server's
            listener = socket.create_server((server.ipv4, 80))
        network["client"].run("curl", "-sS", f"http://{server.ipv4}/")

The bridge lives in a namespace of its own, so the machine's network is never touched; names are unique to the
process and the network, so tests may run side by side; leaving the `with` ends the processes started by
`popen` and removes everything, also after a failure. Needs root, iproute2 and a kernel with veth and bridge.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

# linux/sched.h. os.setns() came with Python 3.12.
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

INTERFACE = "eth0"
"""The name of the interface that every namespace has on the network, besides `lo`."""


def unavailable() -> str | None:
    """Why namespaces cannot be made here, or None when they can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if shutil.which("ip") is None:
        return "needs the program ip (package iproute2)"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"network namespaces are refused here: {done.stderr.strip()}"


class Namespace:
    """One host of a Network: its addresses, and ways to act in it."""

    def __init__(self, name: str, ipv4: str = "", ipv6: str = "") -> None:
        self.name = name
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self._processes: list[subprocess.Popen[bytes]] = []

    @contextlib.contextmanager
    def inside(self) -> Iterator[Self]:
        """Move the calling thread into the namespace for a while.

        A socket stays in the namespace it was made in, and a child process in the one it was started in; so
        what was made here goes on working after the block. Do not `await` inside.
        """
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _set_namespace(there)
            finally:
                os.close(there)
            try:
                yield self
            finally:
                _set_namespace(home)
        finally:
            os.close(home)

    def run(
        self,
        *command: str | Path,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - the name subprocess.run has for it
        timeout: float = 30.0,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, with its output as text; AssertionError with the output if it fails."""
        with self.inside():
            done = subprocess.run(
                command, input=input, capture_output=True, text=True, timeout=timeout, env=env, check=False
            )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{command} in {self.name}: status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def popen(
        self,
        *command: str | Path,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command; it is ended with the network if it has not ended before."""
        with self.inside():
            process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd)
        self._processes.append(process)
        return process

    def end_processes(self) -> None:
        """SIGTERM to what `popen` started, SIGKILL to what has not ended after five seconds."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


class Network:
    """Namespaces joined by one bridge: 10.77.0.0/24 and fd77::/64, one host number each from 1, in order."""

    def __init__(self, *names: str) -> None:
        prefix = f"arca-{os.getpid()}-{secrets.token_hex(2)}"
        self._switch = Namespace(f"{prefix}-switch")
        self._hosts = {
            name: Namespace(f"{prefix}-{name}", f"10.77.0.{number}", f"fd77::{number}")
            for number, name in enumerate(names, start=1)
        }
        self._made: list[Namespace] = []
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Namespace:
        return self._hosts[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes and remove all namespaces; their interfaces go with them."""
        for namespace in self._made:
            namespace.end_processes()
        for namespace in reversed(self._made):
            subprocess.run(["ip", "netns", "delete", namespace.name], capture_output=True, check=False)
        self._made.clear()

    def _make(self) -> None:
        for namespace in (self._switch, *self._hosts.values()):
            _ip(f"netns add {namespace.name}")
            self._made.append(namespace)
            _ip(f"-n {namespace.name} link set lo up")
        switch = self._switch.name
        _ip(f"-n {switch} link add br0 type bridge")
        _ip(f"-n {switch} link set br0 up")
        for number, host in enumerate(self._hosts.values(), start=1):
            port = f"port{number}"
            # No duplicate address detection: for a second or two it lets an address neither be bound nor be
            # a source. nodad is for the address given here, accept_dad for the link-local one.
            with host.inside():
                Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
            _ip(f"-n {switch} link add {port} type veth peer name {INTERFACE} netns {host.name}")
            _ip(f"-n {switch} link set {port} master br0 up")
            _ip(f"-n {host.name} address add {host.ipv4}/24 dev {INTERFACE}")
            _ip(f"-n {host.name} -6 address add {host.ipv6}/64 dev {INTERFACE} nodad")
            _ip(f"-n {host.name} link set {INTERFACE} up")


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True)


def _set_namespace(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")

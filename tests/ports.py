"""Ports for the servers of tests and of the bench, each given once.

They lie below the range from which the kernel takes the local port of a connection (ip_local_port_range,
32768 and up by default): a port that it gave for bind(0) may be given again, or become a connection's own,
before it is used.
"""

from __future__ import annotations

import itertools
import random
import socket

_PORTS = range(12_000, 32_000)  # above what well-known services of a developer's machine use

# Two runs on one machine begin at different places, so that they hardly ever ask for the same one at once.
_next = itertools.islice(itertools.cycle(_PORTS), random.randrange(len(_PORTS)), None)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has now and that this process was not given before."""
    for port in itertools.islice(_next, len(_PORTS)):
        with socket.socket() as asked:
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is no owner
            try:
                asked.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port in {_PORTS}")

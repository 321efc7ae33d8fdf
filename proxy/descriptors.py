"""Room for file descriptors: a carried connection takes two, and what is not there cannot be accepted.

The limit is one of each process and is inherited by the workers; raising the soft one to the hard one
needs no privilege, raising the hard one does.
"""

from __future__ import annotations

import resource

RESERVE = 256  # listeners, channel, event loop, modules being read


def raise_limit() -> int:
    """Raises this process's soft limit to the hard one; answers it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def capacity(limit: int) -> int:
    """How many connections a worker can carry with so many descriptors; at least one.

    More are reset and counted, which is better than accept() failing with EMFILE: nobody is told of that, and
    the connections wait in the listener's queue.
    """
    return max(1, (limit - RESERVE) // 2)


def shortage(limit: int, max_connections: int) -> str | None:
    """What to tell the operator when ``limit`` is too low for one worker's share of connections."""
    needed = 2 * max_connections + RESERVE
    if limit >= needed:
        return None
    return (
        f"a worker may open {limit} files, enough for {capacity(limit)} of its {max_connections} connections"
        f" (more are reset): raise the hard limit to {needed} (systemd: LimitNOFILE={needed};"
        f" shell: ulimit -Hn {needed}) or lower limits.max_connections"
    )

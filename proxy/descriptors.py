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


def shortage(limit: int, max_connections: int) -> str | None:
    """What to tell the operator when ``limit`` is too low for one worker's share of connections."""
    needed = 2 * max_connections + RESERVE
    if limit >= needed:
        return None
    carried = max(0, (limit - RESERVE) // 2)
    return (
        f"a worker may open {limit} files, enough for {carried} of its {max_connections} connections: raise"
        f" the hard limit to {needed} (systemd: LimitNOFILE={needed}; shell: ulimit -Hn {needed}) or lower"
        " limits.max_connections"
    )

"""`arca demo`: the main job on real traffic on one machine, ending by itself in about fifteen seconds.

Two hosts, a real nginx, mosquitto, a gRPC and a Thrift service, real clients, and one real `arca run` beside
each host, as two sidecars stand in a mesh. The play (``play.py``) injects faults one after another; what they
are called afterwards is read from the two exchange logs and from nowhere else, so the demo fails when ARCA
names one wrongly.

Whatever happens, what was begun is taken away again: signals are only noted, and the play stops at its next
step; so nothing is ever cut off between making a thing and remembering it.
"""

from __future__ import annotations

from proxy.demo.show import run

__all__ = ["run"]

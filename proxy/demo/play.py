"""The play: what is injected, what a person would call it, and the verdict that it must get.

Pure. Expectations stand here and results nowhere: those come out of the exchange logs (``records.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from protocols.verdict import Cause, Domain

ROUNDS = 2  # of the whole play, for each address family
GIVES_UP_AFTER = 0.4  # seconds; curl --max-time
HANGS = 5.0  # seconds that the application takes for /hang; nobody in the play waits so long
SLOW = 0.25  # seconds for /slow, which is no fault


class Family(StrEnum):
    IPV4 = "IPv4"
    IPV6 = "IPv6"


class Host(StrEnum):
    """The two hosts of the stage, each with its own ARCA."""

    CLIENT = "client"
    SERVER = "server"


BOTH = (Host.CLIENT, Host.SERVER)


@dataclass(frozen=True, slots=True)
class Expected:
    """What an exchange must be called, and at whose ARCA it must be seen."""

    domain: Domain
    cause: Cause | None = None
    seen_at: tuple[Host, ...] = BOTH

    def __str__(self) -> str:
        return str(self.domain) if self.cause is None else f"{self.domain}/{self.cause}"


@dataclass(frozen=True, slots=True)
class Scene:
    """One request by curl. ``curl_status`` is what curl must end with: the client sees what it always saw."""

    name: str
    what: str
    path: str
    expected: Expected
    curl_status: int = 0
    options: tuple[str, ...] = ()
    listener: bool = True  # whether anybody listens on the port


def _application(cause: Cause) -> Expected:
    return Expected(Domain.APPLICATION, cause)


SCENES = (
    Scene("missing", "the server answers 404", "/missing", _application(Cause.STATUS_4XX)),
    Scene("broken", "the server answers 500", "/broken", _application(Cause.STATUS_5XX)),
    Scene(
        "refused",
        "nothing listens on the port",
        "/",
        Expected(Domain.INFRASTRUCTURE, Cause.CONNECT_REFUSED, (Host.CLIENT,)),
        listener=False,
    ),
    Scene(
        "closed",
        "the server closes instead of answering",
        "/close",
        _application(Cause.CLOSED_EARLY),
        curl_status=52,  # empty reply from server
    ),
    Scene(
        "cut",
        "the response ends in its middle",
        "/cut",
        _application(Cause.CLOSED_EARLY),
        curl_status=18,  # partial file
    ),
    Scene(
        "gives-up",
        f"the client gives up after {GIVES_UP_AFTER:g} s",
        "/hang",
        Expected(Domain.CLIENT, Cause.CANCELED),
        curl_status=28,  # operation timed out
        options=("--max-time", str(GIVES_UP_AFTER)),
    ),
    # Controls: what is slow, old or has a body, and is no fault at all.
    Scene("slow", "control: slow, but answered", "/slow", Expected(Domain.OK)),
    Scene("old", "control: HTTP/1.0", "/", Expected(Domain.OK), options=("--http1.0",)),
    Scene("post", "control: a POST", "/orders", Expected(Domain.OK), options=("--data", "item=1&count=3")),
)

STEADY = "steady traffic, keep-alive, GET and POST"
STEADY_EXPECTED = Expected(Domain.OK)

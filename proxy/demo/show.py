"""The order of things: look what is there, set the stage, give the play, end everyone, judge, report."""

from __future__ import annotations

import contextlib
import itertools
import signal
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from proxy.demo import play, records, stage
from proxy.demo.actors import (
    Application,
    Arca,
    Curl,
    GrpcCall,
    GrpcClient,
    GrpcService,
    SteadyClient,
    grpc_lacks,
    missing_programs,
    nginx,
)
from proxy.demo.play import BOTH, Call, Host, Request
from proxy.demo.records import Injected, Log
from proxy.demo.screen import Screen
from proxy.demo.stage import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from proxy.demo.actors import Actor, Attempt
    from proxy.demo.play import Family, Scene
    from proxy.demo.stage import Stage

READY_SECONDS = 15.0
LATEST_SECONDS = 45.0  # from the start; the play takes about a third
_TICK = 0.02
_FRAME = 0.2  # seconds between two pictures
_PAUSE = 0.06  # between two scenes, for the eye
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

FAILED = 1

_Actor = TypeVar("_Actor", bound="Actor")


class InterruptedShowError(Exception):
    """Somebody wants it to end."""


class FailedShowError(Exception):
    """It cannot go on. Its text is one line for a person."""


class Signals:
    """Notes signals instead of obeying them, from its entering to its leaving."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Self:
        for each in _SIGNALS:
            self._before[each] = signal.signal(each, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for each, before in self._before.items():
            signal.signal(each, before)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number


def run() -> int:
    """The exit status: 0 when every fault got its verdict and everything ended well."""
    screen = Screen()
    if missing := missing_programs():
        for program, package in missing:
            screen.complain(
                f"arca demo needs {program}: run `make setup` as root, or install the package {package}"
            )
        return FAILED
    with Signals() as signals:
        try:
            return Show(screen, signals).run()
        except Exception as error:
            # Whatever fails after a signal fails because of it: a library's child may have heard it too.
            if signals.number:
                screen.complain("interrupted; what was made is removed again")
                return 128 + signals.number
            if not isinstance(error, StageError | FailedShowError):
                raise
            screen.complain(f"arca demo: {error}")
            return FAILED


class Show:
    """One evening."""

    def __init__(self, screen: Screen, signals: Signals) -> None:
        self._screen = screen
        self._signals = signals
        self._began = time.monotonic()
        self._logs: dict[Host, Log] = {}
        self._company: list[Actor] = []
        self._callers: dict[Family, GrpcClient] = {}
        self._tried: defaultdict[Scene, list[str]] = defaultdict(list)
        self._amiss: defaultdict[Scene, list[str]] = defaultdict(list)
        self._now = "starting"
        self._drawn = 0.0

    def run(self) -> int:
        stage.remove_leftovers()
        with contextlib.ExitStack() as left_over:
            folder = Path(left_over.enter_context(tempfile.TemporaryDirectory(prefix=stage.name(""))))
            why = stage.root_lacks()
            place: Stage = stage.Namespaces() if why is None else stage.Loopback(why)
            left_over.callback(place.close)
            self._logs = {host: Log(folder / f"{host}.jsonl") for host in BOTH}
            left_over.callback(self._end_company)

            no_grpc = grpc_lacks()
            self._screen.open(place, "arca run -c FILE" + (" --forward ..." if why else ""), no_grpc)
            left_over.callback(self._screen.close)
            application = Application(folder)
            left_over.callback(application.close)
            self._enter(nginx(place, folder))
            proxies = [self._enter(Arca(host, place, folder)) for host in BOTH]
            to_come: list[Arca | GrpcService] = [*proxies]
            if not no_grpc:
                to_come.append(self._enter(GrpcService(place, folder)))
            for each in to_come:
                self._until(each.is_ready, READY_SECONDS, f"{each.title} did not become ready")

            clients: list[SteadyClient | GrpcClient] = []
            for family in place.families:
                clients.append(self._enter(SteadyClient(family, place, folder)))
                if not no_grpc:
                    self._callers[family] = self._enter(GrpcClient(family, place, folder))
            clients += self._callers.values()
            self._play(place, play.REQUESTS if no_grpc else play.REQUESTS + play.CALLS)

            # Those who ask end first, then the proxies, then who answers.
            self._now = "ending"
            wrong = self._end(clients) + self._end(proxies)
            wrong += self._end([each for each in self._company if each not in [*clients, *proxies]])
            self._look()
            self._screen.close()
            judgement = records.judge(self._injected(clients), self._logs, place.directions)
        # Only now is everything taken away.
        wrong += judgement.wrong
        self._screen.report(self._logs, judgement, wrong, time.monotonic() - self._began)
        return FAILED if wrong else 0

    def _enter(self, actor: _Actor) -> _Actor:
        """From now on it must not fall, and is ended whatever happens."""
        self._company.append(actor)
        return actor

    def _play(self, place: Stage, scenes: Sequence[Scene]) -> None:
        numbers = itertools.count(1)
        self._wait(1.0)
        for _ in range(play.ROUNDS):
            for family in place.families:
                for scene in scenes:
                    self._act(scene, family, f"demo-{next(numbers)}-{scene.name}", place)
                    self._wait(_PAUSE)
        self._wait(0.5)

    def _act(self, scene: Scene, family: Family, request_id: str, place: Stage) -> None:
        self._now = f"{family}, {scene.what} (request id {request_id})"
        attempt = self._begin(scene, family, request_id, place)
        try:
            self._until(attempt.has_ended, 12.0, f"{scene.what}: its client did not end")
        finally:
            amiss = attempt.end()
        self._tried[scene].append(request_id)
        if amiss is not None:
            self._amiss[scene].append(amiss)

    def _begin(self, scene: Scene, family: Family, request_id: str, place: Stage) -> Attempt:
        match scene:
            case Request():
                return Curl(scene, family, request_id, place)
            case Call():
                return GrpcCall(scene, request_id, self._callers[family])

    def _injected(self, clients: list[SteadyClient | GrpcClient]) -> Iterator[Injected]:
        for scene, request_ids in self._tried.items():
            yield Injected(scene.what, scene.expected, request_ids, self._amiss[scene])
        for steady in dict.fromkeys(client.steady for client in clients):
            seen = [client.seen() for client in clients if client.steady == steady]
            request_ids = [request_id for each in seen for request_id in each.request_ids]
            failures = [failure for each in seen for failure in each.failures]
            yield Injected(steady, play.STEADY_EXPECTED, request_ids, failures)

    # ---- time

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._tick()

    def _until(self, condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise FailedShowError(otherwise)
            self._tick()

    def _tick(self) -> None:
        """A moment passes, in which somebody may have interrupted, or fallen."""
        if self._signals.number:
            raise InterruptedShowError
        if time.monotonic() - self._began > LATEST_SECONDS:
            slow = [f"{scene.what}: {line}" for scene, lines in self._amiss.items() for line in lines]
            raise FailedShowError("; ".join([f"it took more than {LATEST_SECONDS:g} s", *slow]))
        for actor in self._company:
            if actor.has_ended():
                raise FailedShowError(f"{actor.title} ended in the middle: {actor.last_words()}")
        if time.monotonic() - self._drawn > _FRAME:
            self._look()
        time.sleep(_TICK)

    def _look(self) -> None:
        for log in self._logs.values():
            log.read_on()
        self._screen.update(self._logs, self._now)
        self._drawn = time.monotonic()

    # ---- endings

    def _end(self, actors: Sequence[Actor]) -> list[str]:
        """Ends them side by side; answers what did not go well."""
        for actor in actors:
            actor.ask_to_end()
        return [wrong for actor in actors if (wrong := actor.ended()) is not None]

    def _end_company(self) -> None:
        """However the play went, nobody stays."""
        self._end([each for each in self._company if not each.has_ended()])

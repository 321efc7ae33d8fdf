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
    Favour,
    GrpcClient,
    HttpClient,
    MqttClient,
    ThriftClient,
    grpc_service,
    lacks,
    missing_programs,
    mosquitto,
    nginx,
    thrift_service,
)
from proxy.demo.play import BOTH, GrpcCall, Host, MqttSession, Request, ThriftCall
from proxy.demo.records import Injected, Log
from proxy.demo.screen import Screen
from proxy.demo.stage import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from proxy.demo.actors import Actor, AskedClient, Attempt, Client, Service
    from proxy.demo.play import Family, Scene
    from proxy.demo.stage import Stage

READY_SECONDS = 15.0
LATEST_SECONDS = 45.0  # from the start; the play takes about a third
_TICK = 0.02
_FRAME = 0.2  # seconds between two pictures
_PAUSE = 0.03  # between two scenes, for the eye
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

FAILED = 1

_SERVICES = {"gRPC": grpc_service, "Thrift": thrift_service, "MQTT": mosquitto}
_ASKED: tuple[type[AskedClient], ...] = (GrpcClient, ThriftClient, MqttClient)
_SCENES: dict[str, Sequence[Scene]] = {
    "gRPC": play.GRPC_CALLS,
    "Thrift": play.THRIFT_CALLS,
    "MQTT": play.MQTT_SESSIONS,
}

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


def _is_aside(scene: Scene) -> bool:
    return isinstance(scene, MqttSession) and scene.aside


class Show:
    """One evening."""

    def __init__(self, screen: Screen, signals: Signals) -> None:
        self._screen = screen
        self._signals = signals
        self._began = time.monotonic()
        self._logs: dict[Host, Log] = {}
        self._company: list[Actor] = []
        self._clients: list[Client] = []
        self._asked: dict[tuple[Family, type[AskedClient]], AskedClient] = {}
        self._tried: dict[Scene, list[str]] = {}
        self._around: defaultdict[str, list[str]] = defaultdict(list)
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

            gaps = lacks()
            self._screen.open(place, "arca run -c FILE" + (" --forward ..." if why else ""), gaps)
            left_over.callback(self._screen.close)
            application = Application(folder)
            left_over.callback(application.close)
            self._enter(nginx(place, folder))
            proxies = [self._enter(Arca(host, place, folder)) for host in BOTH]
            services = [
                self._enter(make(place, folder)) for name, make in _SERVICES.items() if name not in gaps
            ]
            to_come: list[Arca | Service] = [*proxies, *services]
            for each in to_come:
                self._until(each.is_ready, READY_SECONDS, f"{each.title} did not become ready")

            for family in place.families:
                self._clients.append(self._enter(HttpClient(family, place, folder)))
                for kind in _ASKED:
                    if kind.protocol not in gaps:
                        client = self._enter(kind(family, place, folder))
                        self._clients.append(client)
                        self._asked[family, kind] = client
            scenes: list[Scene] = [*play.REQUESTS]
            for name, more in _SCENES.items():
                scenes += () if name in gaps else more
            self._play(place, scenes)

            # Those who ask end first, then the proxies, then who answers.
            self._now = "ending"
            wrong = self._end(self._clients) + self._end(proxies)
            wrong += self._end([each for each in self._company if each not in [*self._clients, *proxies]])
            self._look()
            self._screen.close()
            judgement = records.judge(self._injected(), self._logs, place.directions)
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
        self._tried = {scene: [] for scene in scenes}
        self._wait(1.0)
        rounds = [family for _ in range(play.ROUNDS) for family in place.families]
        aside = [scene for scene in scenes if _is_aside(scene)]
        begun = [
            (scene, self._begin(scene, family, next(numbers), place))
            for family, scene in itertools.product(rounds, aside)
        ]
        for family, scene in itertools.product(rounds, scenes):
            if scene not in aside:
                self._finish(scene, self._begin(scene, family, next(numbers), place))
                self._wait(_PAUSE)
        self._now = "waiting for the end of what takes its time"
        for scene, attempt in begun:
            self._finish(scene, attempt)
        self._wait(0.5)

    def _begin(self, scene: Scene, family: Family, number: int, place: Stage) -> Attempt:
        name = f"demo-{number}-{scene.name}"
        self._now = f"{family}, {scene.what} ({name})"
        match scene:
            case Request():
                return Curl(scene, family, name, place)
            case GrpcCall():
                return Favour(scene, name, self._asked[family, GrpcClient])
            case ThriftCall():
                return Favour(scene, name, self._asked[family, ThriftClient])
            case MqttSession():
                return Favour(scene, name, self._asked[family, MqttClient])

    def _finish(self, scene: Scene, attempt: Attempt) -> None:
        try:
            self._until(attempt.has_ended, 12.0, f"{scene.what}: its client did not end")
        finally:
            amiss = attempt.end()
        self._tried[scene] += attempt.course.judged
        if isinstance(attempt, Favour):
            self._around[attempt.client.around] += attempt.course.around
        if amiss is not None:
            self._amiss[scene].append(amiss)

    def _injected(self) -> Iterator[Injected]:
        for scene, ids in self._tried.items():
            yield Injected(scene.what, scene.expected, ids, self._amiss[scene])
        healthy: defaultdict[str, list[str]] = defaultdict(list)
        failures: defaultdict[str, list[str]] = defaultdict(list)
        for client in self._clients:
            seen = client.seen()
            healthy[client.steady] += seen.ids
            healthy[client.around] += seen.around
            failures[client.steady] += seen.failures
        for what, ids in healthy.items():
            yield Injected(what, play.STEADY_EXPECTED, ids + self._around[what], failures[what])

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

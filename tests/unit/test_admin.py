"""The admin and metrics endpoints, spoken to over HTTP, before a proxy that is only what they ask of it."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
import pytest

from proxy.admin import LIST_MAX, MISSING_HEADER, Gathered, serve_admin, serve_metrics
from proxy.metrics import Cells
from proxy.settings import Settings
from proxy.totals import Totals

if TYPE_CHECKING:
    from proxy.channel import Topic
    from proxy.totals import Sample

GETS = ["/ready", "/live", "/config", "/connections", "/exchanges", "/stats"]


class Answered(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> object:
        return json.loads(self.body)


class FakeProxy:
    def __init__(self) -> None:
        self.settings = Settings()
        self.reasons: list[str] = []
        self.remarks: list[str] = []
        self.answers: list[bytes] = [b"[]"]
        self.missing: list[int] = []
        self.asked: list[tuple[str, int]] = []
        self.stopped = 0
        self.levels: list[str] = []
        self.totals = Totals()

    async def unready(self) -> list[str]:
        return self.reasons

    async def warnings(self) -> list[str]:
        return self.remarks

    def samples(self) -> list[Sample]:
        return self.totals.samples()

    async def gather(self, what: Topic, n: int, seconds: float) -> Gathered:
        self.asked.append((what, n))
        return Gathered(self.answers, self.missing)

    def stop(self) -> None:
        self.stopped += 1

    def set_log_level(self, level: str) -> None:
        self.levels.append(level)


@pytest.fixture
def proxy() -> FakeProxy:
    return FakeProxy()


def ask(
    proxy: FakeProxy,
    target: str,
    method: str = "GET",
    *,
    data: bytes | None = None,
    headers: dict[str, str] | None = None,
    metrics: bool = False,
) -> Answered:
    async def life() -> Answered:
        listening = socket.create_server(("127.0.0.1", 0))
        url = "http://{}:{}".format(*listening.getsockname())
        site = await (serve_metrics if metrics else serve_admin)(proxy, listening)
        try:
            async with (
                aiohttp.ClientSession() as client,
                client.request(method, url + target, data=data, headers=headers) as response,
            ):
                body = await response.read()
                lowered = {name.lower(): value for name, value in response.headers.items()}
                return Answered(response.status, lowered, body)
        finally:
            await site.cleanup()

    return asyncio.run(life())


def test_ready_is_200_when_nothing_is_missing(proxy: FakeProxy) -> None:
    assert ask(proxy, "/ready")[::2] == (200, b'{"ready":true,"reasons":[],"warnings":[]}\n')


def test_ready_is_200_with_what_is_worth_a_look(proxy: FakeProxy) -> None:
    proxy.remarks = ["rules: not first"]
    answered = ask(proxy, "/ready")
    assert answered.status == 200
    assert answered.json == {"ready": True, "reasons": [], "warnings": ["rules: not first"]}


def test_ready_is_503_with_the_reasons(proxy: FakeProxy) -> None:
    proxy.reasons = ["worker 1 is not ready"]
    answered = ask(proxy, "/ready")
    assert answered.status == 503
    assert answered.json == {"ready": False, "reasons": ["worker 1 is not ready"], "warnings": []}


def test_live_says_so_while_not_ready(proxy: FakeProxy) -> None:
    proxy.reasons = ["draining"]
    assert ask(proxy, "/live").status == 200


def test_config_is_the_effective_settings(proxy: FakeProxy) -> None:
    proxy.settings = Settings(slow=0.25)
    answered = ask(proxy, "/config")
    assert isinstance(answered.json, dict)
    assert answered.json["slow"] == 0.25
    assert answered.json["limits"]["drain_seconds"] == 10.0


def test_exchanges_of_all_workers_are_merged_by_time_and_the_newest_kept(proxy: FakeProxy) -> None:
    def lines(*seconds: int) -> bytes:
        return json.dumps([{"time": f"2026-11-22T12:00:{s:02}.000000Z"} for s in seconds]).encode()

    proxy.answers = [lines(1, 4, 5), lines(2, 3, 6)]
    answered = ask(proxy, "/exchanges?n=4")
    assert isinstance(answered.json, list)
    assert [each["time"][17:19] for each in answered.json] == ["03", "04", "05", "06"]
    assert MISSING_HEADER not in answered.headers


def test_a_worker_that_did_not_answer_is_named(proxy: FakeProxy) -> None:
    proxy.missing = [1, 3]
    answered = ask(proxy, "/connections")
    assert answered.status == 200
    assert answered.headers[MISSING_HEADER] == "1,3"


def test_lists_are_bounded_whatever_is_asked_for(proxy: FakeProxy) -> None:
    proxy.answers = [json.dumps([{}] * 900).encode()] * 2
    answered = ask(proxy, "/connections?n=5000")
    assert isinstance(answered.json, list)
    assert len(answered.json) == LIST_MAX
    assert proxy.asked == [("connections", LIST_MAX)]


@pytest.mark.parametrize("n", ["0", "-1", "x", "", "1.5", "9999999999", "%D9%A1"])
def test_a_wrong_n_is_told(proxy: FakeProxy, n: str) -> None:
    answered = ask(proxy, f"/exchanges?n={n}")
    assert answered.status == 400
    assert isinstance(answered.json, dict)
    assert answered.json["allowed"] == f"an integer from 1 to {LIST_MAX}; more is read as that"


def test_unknown_paths_methods_and_parameters_are_told_with_what_is_allowed(proxy: FakeProxy) -> None:
    answered = ask(proxy, "/nothing")
    assert answered.status == 404
    assert isinstance(answered.json, dict)
    assert "GET /ready" in answered.json["allowed"]
    answered = ask(proxy, "/ready", "POST")
    assert (answered.status, answered.headers["allow"]) == (405, "GET, HEAD")
    answered = ask(proxy, "/drain")
    assert (answered.status, answered.headers["allow"]) == (405, "POST")
    answered = ask(proxy, "/exchanges?limit=3")
    assert (answered.status, answered.json) == (
        400,
        {"error": "/exchanges does not take the parameter limit, or only once", "allowed": ["n"]},
    )
    assert ask(proxy, "/exchanges?n=1&n=2").status == 400


def test_get_and_head_change_nothing(proxy: FakeProxy) -> None:
    for path in [*GETS, "/drain", "/log-level?level=debug"]:
        for method in ("GET", "HEAD"):
            ask(proxy, path, method)
    assert (proxy.stopped, proxy.levels) == (0, [])


def test_drain_begins_the_end(proxy: FakeProxy) -> None:
    answered = ask(proxy, "/drain", "POST")
    assert (answered.status, answered.json) == (202, {"draining": True, "drain_seconds": 10.0})
    assert proxy.stopped == 1


def test_the_log_level_is_set_by_parameter_or_body(proxy: FakeProxy) -> None:
    assert ask(proxy, "/log-level?level=debug", "POST").json == {"level": "debug"}
    assert ask(proxy, "/log-level", "POST", data=b"error\n").json == {"level": "error"}
    assert proxy.levels == ["debug", "error"]


@pytest.mark.parametrize("body", [b"", b"loud", b"x" * 100_000, b"\xff\xfe"])
def test_a_wrong_log_level_is_told(proxy: FakeProxy, body: bytes) -> None:
    answered = ask(proxy, "/log-level", "POST", data=body)
    assert answered.status == 400
    assert isinstance(answered.json, dict)
    assert answered.json["allowed"] == ["debug", "info", "warning", "error"]
    assert proxy.levels == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:15000", "Host": "127.0.0.1:15000"},
        {"Origin": "http://127.0.0.1:8080", "Host": "127.0.0.1:15000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_changes_nothing(proxy: FakeProxy, headers: dict[str, str]) -> None:
    for target in ("/drain", "/log-level?level=debug"):
        answered = ask(proxy, target, "POST", headers=headers)
        assert answered.status == 403
        assert isinstance(answered.json, dict)
        assert answered.json["error"] == "a page of another site may not ask for this"
    assert (proxy.stopped, proxy.levels) == (0, [])


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "127.0.0.1:15000", "Origin": "http://127.0.0.1:15000", "Sec-Fetch-Site": "same-origin"},
        {"Host": "LocalHost:15000", "Origin": "http://localhost:15000"},
        {"Host": "[::1]:15000", "Sec-Fetch-Site": "none"},
        {"Host": "10.1.2.3"},
    ],
)
def test_its_own_page_and_every_program_may_ask(proxy: FakeProxy, headers: dict[str, str]) -> None:
    assert ask(proxy, "/log-level?level=debug", "POST", headers=headers).status == 200
    assert ask(proxy, "/ready", headers=headers).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:15000", "127.0.0.1.evil.example", "localhost.evil.example", "[::1"]
)
@pytest.mark.parametrize(("method", "target"), [("GET", "/config"), ("POST", "/drain")])
def test_a_name_that_points_here_is_not_served(proxy: FakeProxy, host: str, method: str, target: str) -> None:
    answered = ask(proxy, target, method, headers={"Host": host})
    assert answered.status == 421
    assert answered.json == {
        "error": f"this is not {host}",
        "allowed": "an IP address or localhost as Host",
    }
    assert proxy.stopped == 0


def test_metrics_are_served_under_any_name(proxy: FakeProxy) -> None:
    assert ask(proxy, "/metrics", headers={"Host": "node7.example"}, metrics=True).status == 200


def test_stats_are_the_totals(proxy: FakeProxy) -> None:
    cells = Cells()
    cells.counter("arca_connections_total", "tcp", "inbound").add(3)
    cells.histogram("arca_connect_duration_seconds").observe(0.5)
    proxy.totals.merge(0, cells.changes())
    answered = ask(proxy, "/stats")
    assert isinstance(answered.json, dict)
    assert answered.json["arca_connections_total"] == [
        {"labels": {"protocol": "tcp", "direction": "inbound"}, "value": 3}
    ]
    assert answered.json["arca_connect_duration_seconds"] == [
        {"labels": {}, "count": 1, "sum": 0.5, "p50": 0.501, "p99": 0.501}
    ]


def test_metrics_are_prometheus_text_or_openmetrics_on_request(proxy: FakeProxy) -> None:
    text = ask(proxy, "/metrics", metrics=True)
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"# TYPE arca_requests_total counter" in text.body
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    openmetrics = ask(proxy, "/metrics", headers=accept, metrics=True)
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.body.endswith(b"# EOF\n")


def test_the_metrics_address_serves_nothing_else(proxy: FakeProxy) -> None:
    assert ask(proxy, "/drain", "POST", metrics=True).status == 404
    assert ask(proxy, "/metrics", "POST", metrics=True).status == 405

"""Metrics: what is counted on the byte path comes out of the exposition, once, and in bounded memory."""

from __future__ import annotations

import math
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy.cells import BOUNDS, Counter, Gauge, Histogram
from proxy.exposition import render
from proxy.metrics import FAMILIES, LABEL_SETS_MAX, METHODS_MAX, NUMBERS, OTHER, Cells, Kind
from proxy.totals import Totals, quantile

CONNECT = "arca_connect_duration_seconds"


def exposed(totals: Totals, accept: str = "") -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, content_type = render(totals.samples(), accept)
    parse = parse_openmetrics if "openmetrics" in content_type else parse_text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


def request_labels(method: str) -> tuple[str, ...]:
    return ("http/1.1", "inbound", method, "200", "ok", "")


def test_bounds_are_ten_per_decade_from_100_us_to_100_s() -> None:
    assert len(BOUNDS) == 61
    assert (BOUNDS[0], BOUNDS[10], BOUNDS[40], BOUNDS[-1]) == (0.0001, 0.001, 1.0, 100.0)
    for number, bound in enumerate(BOUNDS):
        assert bound == pytest.approx(10 ** (number / 10 - 4), rel=0.005)


@given(st.lists(st.floats(min_value=0, max_value=1e6)))
def test_a_histogram_counts_each_value_in_the_first_bucket_that_holds_it(values: list[float]) -> None:
    cell = Histogram()
    expected = [0] * (len(BOUNDS) + 1)
    for value in values:
        cell.observe(value)
        expected[bisect_left(BOUNDS, value)] += 1
    change = cell.change() or [0.0]
    found = dict(zip(change[1::2], change[2::2], strict=True))
    assert found == {float(bucket): float(count) for bucket, count in enumerate(expected) if count}
    assert change[0] == pytest.approx(math.fsum(values))


def test_a_value_on_a_bound_belongs_to_that_bound() -> None:
    for number, bound in enumerate(BOUNDS):
        cell = Histogram()
        cell.observe(bound)
        assert cell.change() == [bound, number, 1]


def test_what_is_no_duration_counts_as_zero() -> None:
    cell = Histogram()
    cell.observe(-1.0)
    cell.observe(math.nan)
    assert cell.change() == [0, 0, 2]


def test_a_cell_tells_only_what_changed_since_the_last_time() -> None:
    counter, gauge, histogram = Counter(), Gauge(), Histogram()
    counter.add(2)
    gauge.add(3)
    gauge.add(-1)
    histogram.observe(1.0)
    assert (counter.change(), gauge.change(), histogram.change()) == (2, 2, [1.0, 40, 1])
    assert (counter.change(), gauge.change(), histogram.change()) == (None, None, None)
    counter.add(5)
    gauge.set(0)
    histogram.observe(1.0)
    assert (counter.change(), gauge.change(), histogram.change()) == (5, 0, [1.0, 40, 1])


def test_the_same_labels_are_the_same_cell() -> None:
    cells = Cells()
    assert cells.counter("arca_requests_total", *request_labels("GET")) is cells.counter(
        "arca_requests_total", *request_labels("GET")
    )


def test_mistakes_of_the_calling_code_are_errors() -> None:
    cells = Cells()
    with pytest.raises(KeyError):
        cells.counter("arca_nothing_total")
    with pytest.raises(TypeError, match="is a counter, not a gauge"):
        cells.gauge("arca_requests_total", *request_labels("GET"))
    with pytest.raises(TypeError, match="takes the labels"):
        cells.counter("arca_requests_total", "http/1.1")


def test_methods_beyond_the_cap_are_other_and_the_standard_ones_never_are() -> None:
    cells = Cells()
    for number in range(METHODS_MAX + 10):
        cells.counter("arca_requests_total", *request_labels(f"M{number}")).add(1)
    cells.counter("arca_requests_total", *request_labels("DELETE")).add(1)
    totals = Totals()
    totals.merge(0, cells.changes())
    by_method = {labels[2]: value for labels, value in totals.samples()[0].values.items()}
    assert by_method[OTHER] == 10
    assert by_method["DELETE"] == 1
    assert len(by_method) == METHODS_MAX + 2
    assert totals.value("arca_label_overflow_total", "arca_requests_total") == 10


def test_every_method_of_a_large_grpc_service_has_its_own_count() -> None:
    cells = Cells()
    for number in range(100):
        method = f"temporal.api.workflowservice.v1.WorkflowService/RespondWorkflowTask{number}"
        for code, domain, cause in (("OK", "ok", ""), ("UNAVAILABLE", "application", "grpc_status")):
            cells.counter("arca_requests_total", "grpc", "inbound", method, code, domain, cause).add(1)
    changes = [change for change in cells.changes() if change[0] == 0]
    assert len(changes) == 200
    assert all(OTHER not in labels for _, labels, _ in changes)


def test_a_family_has_a_hard_cap_on_label_sets_and_loses_no_count() -> None:
    cells = Cells()
    for number in range(LABEL_SETS_MAX + 50):
        cells.counter("arca_codec_fallbacks_total", "http/1.1", f"reason {number}").add(1)
    changes = [change for change in cells.changes() if change[0] == NUMBERS["arca_codec_fallbacks_total"]]
    assert len(changes) == LABEL_SETS_MAX + 1
    assert {labels: value for _, labels, value in changes}[OTHER, OTHER] == 50


def test_a_label_value_without_end_is_other() -> None:
    cells = Cells()
    cells.counter("arca_requests_total", *request_labels("M" * 1000)).add(1)
    ((_, labels, _),) = [change for change in cells.changes() if change[0] == 0]
    assert labels == request_labels(OTHER)


def test_workers_together_are_held_to_the_cap_too() -> None:
    totals = Totals()
    for worker in range(3):
        cells = Cells()
        for number in range(METHODS_MAX):
            cells.counter("arca_requests_total", *request_labels(f"W{worker}M{number}")).add(1)
        totals.merge(worker, cells.changes())
    values = totals.samples()[0].values
    assert len(values) == METHODS_MAX + 1
    assert sum(values.values()) == 3 * METHODS_MAX


def test_counters_never_go_down_and_gauges_vanish_when_a_worker_is_replaced() -> None:
    totals = Totals()
    for worker in (0, 1):
        cells = Cells()
        cells.counter("arca_connections_total", "tcp", "inbound").add(10)
        cells.gauge("arca_connections_active").add(4)
        cells.histogram(CONNECT).observe(0.5)
        totals.merge(worker, cells.changes())
    assert totals.value("arca_connections_active") == 8
    totals.forget(1)
    assert totals.value("arca_connections_active") == 4
    replacement = Cells()
    replacement.counter("arca_connections_total", "tcp", "inbound").add(1)
    totals.merge(1, replacement.changes())
    assert totals.value("arca_connections_total") == 21
    assert totals.value("arca_connections_total", "tcp", "outbound") == 0
    (connects,) = (s.distributions[()] for s in totals.samples() if s.family.name == CONNECT)
    assert (sum(connects.counts), connects.sum) == (2, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        (999, (), 1.0),
        (-1, (), 1.0),
        (0, ("too", "few"), 1.0),
        (0, request_labels("GET"), [1.0]),
        (NUMBERS[CONNECT], (), 1.0),
    ],
)
def test_what_no_cell_sends_is_refused(change: tuple[int, tuple[str, ...], float | list[float]]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Totals().merge(0, [change])


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0; charset=utf-8"])
def test_the_exposition_says_what_was_counted(accept: str) -> None:
    cells = Cells()
    cells.counter("arca_requests_total", *request_labels("GET")).add(3)
    cells.gauge("arca_connections_active").set(2)
    for value in (0.0001, 0.5, 1000.0):
        cells.histogram(CONNECT).observe(value)
    totals = Totals()
    totals.merge(0, cells.changes())
    found = exposed(totals, accept)
    labels = ("cause", ""), ("code", "200"), ("direction", "inbound"), ("domain", "ok")
    assert found["arca_requests_total", (*labels, ("method", "GET"), ("protocol", "http/1.1"))] == 3
    assert found["arca_connections_active", ()] == 2
    assert found[f"{CONNECT}_bucket", (("le", "0.0001"),)] == 1
    assert found[f"{CONNECT}_bucket", (("le", "100.0"),)] == 2
    assert found[f"{CONNECT}_bucket", (("le", "+Inf"),)] == 3
    assert found[f"{CONNECT}_count", ()] == 3
    assert found[f"{CONNECT}_sum", ()] == pytest.approx(1000.5001)


def test_families_without_labels_are_there_before_anything_happens() -> None:
    found = exposed(Totals())
    assert found["arca_worker_restarts_total", ()] == 0
    assert found["arca_connections_active", ()] == 0


def test_every_family_is_named_by_the_rules_of_prometheus() -> None:
    assert len(NUMBERS) == len(FAMILIES)
    for family in FAMILIES:
        assert family.name.startswith("arca_")
        assert family.name.endswith("_total") is (family.kind is Kind.COUNTER)
        assert family.name.endswith("_seconds") is (family.kind is Kind.HISTOGRAM)
        assert family.help.endswith(".")


def test_a_quantile_is_the_bound_of_its_bucket() -> None:
    cells = Cells()
    for value in [0.001] * 98 + [0.5, 1000.0]:
        cells.histogram(CONNECT).observe(value)
    totals = Totals()
    totals.merge(0, cells.changes())
    (connects,) = (s.distributions[()] for s in totals.samples() if s.family.name == CONNECT)
    assert quantile(connects, 0.5) == 0.001
    assert quantile(connects, 0.99) == 0.501
    assert quantile(connects, 1.0) == math.inf

"""The bench's arithmetic and its reading of wrk: the table must not depend on how it was added up."""

from __future__ import annotations

import pytest

from tests.bench import wrk
from tests.bench.figures import paired_difference, paired_ratio, percentile, schedule
from tests.bench.processes import CpuTime, NotMeasured, cpu_between
from tests.bench.turns import take_turns

REPORT = """\
Running 2s test @ http://127.0.0.1:8080/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   532.20us  101.32us   3.11ms   92.11%
    Req/Sec    60.51k     1.02k   62.09k    71.43%
  Latency Distribution
     50%  503.00us
     75%  560.00us
     90%  601.00us
     99%    1.25ms
  126441 requests in 2.10s, 31.83MB read
"""
RATES = """\
Requests/sec:  60207.45
Transfer/sec:     15.16MB
"""
FAULTS = """\
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 17
"""


def test_a_clean_wrk_report_has_its_figures_in_milliseconds() -> None:
    report = wrk.parse(REPORT + RATES)
    assert (report.requests, report.requests_per_second) == (126_441, 60_207.45)
    assert (report.p50_ms, report.p99_ms) == pytest.approx((0.503, 1.25))
    assert report.faults == ""


def test_a_wrk_report_with_errors_says_them() -> None:
    report = wrk.parse(REPORT + FAULTS + RATES)
    assert (report.socket_errors, report.bad_answers) == (10, 17)
    assert report.faults == "10 socket errors, 17 answers not 2xx"


@pytest.mark.parametrize(("printed", "milliseconds"), [("2.00s", 2000.0), ("1.50m", 90_000.0)])
def test_slow_answers_are_read_in_their_units(printed: str, milliseconds: float) -> None:
    assert wrk.parse((REPORT + RATES).replace("1.25ms", printed)).p99_ms == pytest.approx(milliseconds)


def test_a_wrk_report_without_a_figure_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(ValueError, match="Requests/sec"):
        wrk.parse(REPORT)


def test_the_schedule_is_even_and_known_beforehand() -> None:
    offsets = schedule(rate=1_000, seconds=0.005)
    assert offsets == pytest.approx([0.0, 0.001, 0.002, 0.003, 0.004])
    assert len(schedule(rate=1_000, seconds=8)) == 8_000


def test_percentiles_are_values_that_were_seen() -> None:
    ordered = [float(value) for value in range(1, 101)]
    assert percentile(ordered, 0.50) == 50.0
    assert percentile(ordered, 0.99) == 99.0
    assert percentile([7.0], 0.99) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_ratios_are_paired_by_round_before_the_median() -> None:
    # The second round was twice as slow for both: the ratio of medians (20 / 10) would be led by that.
    assert paired_ratio([20.0, 40.0, 11.0], [10.0, 40.0, 10.0]) == pytest.approx(1.1)
    assert paired_difference([3.0, 9.0, 4.0], [2.0, 7.0, 1.0]) == pytest.approx(2.0)


def test_rounds_without_both_figures_do_not_count() -> None:
    assert paired_ratio([None, 30.0, 50.0], [10.0, None, 25.0]) == pytest.approx(2.0)
    assert paired_ratio([None], [10.0]) is None
    assert paired_difference([1.0], [None]) is None


def test_cpu_time_counts_the_processes_that_came_meanwhile() -> None:
    before = {1: CpuTime(1.0, 2.0)}
    after = {1: CpuTime(1.5, 2.25), 7: CpuTime(0.25, 0.25)}
    assert cpu_between(before, after) == CpuTime(0.75, 0.5)


def test_cpu_time_is_not_guessed_when_a_process_ended_meanwhile() -> None:
    with pytest.raises(NotMeasured, match="process 7"):
        cpu_between({1: CpuTime(0, 0), 7: CpuTime(3, 3)}, {1: CpuTime(1, 1)})


def test_subjects_take_turns_and_one_that_fails_costs_only_itself() -> None:
    asked: list[str] = []

    def measure(subject: str) -> int:
        asked.append(subject)
        if subject == "b":
            raise NotMeasured("no ids")
        return len(asked)

    turns = take_turns(["a", "b"], 2, measure, lambda _: None)
    assert asked == ["a", "b", "a"]
    assert turns["a"].rounds == [1, 3]
    assert (turns["b"].rounds, turns["b"].reason, turns["b"].measured) == ([None, None], "no ids", False)

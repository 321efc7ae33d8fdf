"""Trace headers: what is read from those that came, what goes on, and what is dropped.

W3C Trace Context (sections 3.2 and 3.3) and B3; the rules for each are in transparency.md. Every id that is
made here consists of ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from protocols.http1 import Http1
from protocols.trace_context import Ids, TraceContext, continue_trace
from tests.unit.conversation import REQUEST_ID, SPAN_ID, TRACE_ID, Caller, fixed_ids

if TYPE_CHECKING:
    from protocols.exchange import Exchange

TRACE = b"0af7651916cd43dd8448eb211c80319c"
PARENT = b"b7ad6b7169203331"
SAMPLED = b"00-" + TRACE + b"-" + PARENT + b"-01"
UNSAMPLED = b"00-" + TRACE + b"-" + PARENT + b"-00"
NEW = b"00-" + TRACE_ID + b"-" + SPAN_ID + b"-00"


def continued(
    traceparent: bytes | list[bytes] | None = None,
    tracestate: bytes | list[bytes] | None = None,
    sample: float = 0.0,
    **b3: bytes,
) -> TraceContext:
    def listed(value: bytes | list[bytes] | None) -> list[bytes]:
        return [] if value is None else value if isinstance(value, list) else [value]

    names = {name.replace("_", "-").encode(): value for name, value in b3.items()}
    return continue_trace(fixed_ids(sample), listed(traceparent), listed(tracestate), names)


def sent(*lines: bytes, sample: float = 0.0) -> tuple[list[bytes], Exchange]:
    """The header lines that upstream gets when these come, and the exchange."""
    caller = Caller(Http1(fixed_ids(sample)))
    caller.downstream(b"GET / HTTP/1.1\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n")
    caller.upstream(b"HTTP/1.1 204 No\r\n\r\n")
    head = bytes(caller.to_upstream)
    assert head.endswith(b"\r\nX-Request-ID: " + REQUEST_ID + b"\r\n\r\n")
    return head.split(b"\r\n")[1:-3], caller.exchanges[0]


# -- traceparent


def test_a_sampled_traceparent_gets_our_span_as_its_parent() -> None:
    trace = continued(SAMPLED)
    assert trace.traceparent == b"00-" + TRACE + b"-" + SPAN_ID + b"-01"
    assert (trace.trace_id, trace.parent_id, trace.span_id) == (TRACE, PARENT, SPAN_ID)
    assert trace.sampled
    assert trace.in_place


def test_an_unsampled_traceparent_goes_on_as_it_came_whatever_the_rate() -> None:
    trace = continued(UNSAMPLED, sample=1.0)
    assert trace.traceparent is None
    assert (trace.trace_id, trace.parent_id, trace.span_id) == (TRACE, PARENT, None)
    assert not trace.sampled


@pytest.mark.parametrize("flags", [b"01", b"03", b"ff", b"81"])
def test_flags_are_kept(flags: bytes) -> None:
    assert continued(SAMPLED[:-2] + flags).traceparent == b"00-" + TRACE + b"-" + SPAN_ID + b"-" + flags


@pytest.mark.parametrize("flags", [b"02", b"fe"])
def test_only_the_last_bit_of_the_flags_samples(flags: bytes) -> None:
    assert continued(SAMPLED[:-2] + flags).traceparent is None


@pytest.mark.parametrize(
    "value", [b"01" + SAMPLED[2:], b"cc" + SAMPLED[2:] + b"-what", b"fe" + SAMPLED[2:] + b"-"]
)
def test_a_version_of_the_future_is_read_and_continued_as_00(value: bytes) -> None:
    trace = continued(value)
    assert (trace.trace_id, trace.parent_id) == (TRACE, PARENT)
    assert trace.traceparent == b"00-" + TRACE + b"-" + SPAN_ID + b"-01"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        SAMPLED[:-1],
        SAMPLED + b"0",
        SAMPLED + b"-",
        SAMPLED + b"-00",
        b"01" + SAMPLED[2:] + b"x",
        b"ff" + SAMPLED[2:],
        b"0" + SAMPLED[3:],
        b"0X" + SAMPLED[2:],
        b"FE" + SAMPLED[2:],
        SAMPLED.upper(),
        b"00-" + TRACE.upper() + b"-" + PARENT + b"-01",
        b"00-" + TRACE + b"-" + PARENT.upper() + b"-01",
        SAMPLED[:-2] + b"0A",
        SAMPLED[:-2] + b"0.",
        b"00-" + b"0" * 32 + b"-" + PARENT + b"-01",
        b"00-" + TRACE + b"-" + b"0" * 16 + b"-01",
        b"00-" + TRACE[:-1] + b"g-" + PARENT + b"-01",
        b"00-" + TRACE + b"-" + PARENT[:-1] + b"\xff-01",
        SAMPLED.replace(b"-", b"_"),
        SAMPLED[:35] + b"_" + SAMPLED[36:],
        SAMPLED[:52] + b"_" + SAMPLED[53:],
        b" " + SAMPLED,
    ],
)
def test_an_invalid_traceparent_counts_as_absent(value: bytes) -> None:
    trace = continued(value, b"a=1")
    assert trace.traceparent == NEW
    assert (trace.trace_id, trace.parent_id, trace.span_id) == (TRACE_ID, None, SPAN_ID)
    assert not trace.in_place
    assert not trace.keep_tracestate


def test_several_traceparents_count_as_absent() -> None:
    assert continued([SAMPLED, SAMPLED], b"a=1").traceparent == NEW
    assert not continued([SAMPLED, SAMPLED], b"a=1").keep_tracestate


def test_a_new_trace_is_sampled_by_its_rate() -> None:
    assert not continued().sampled
    assert continued(sample=1.0).traceparent == NEW[:-1] + b"1"
    # The last 14 digits of the id decide: 0x11111111111111 of 2^56 is a fifteenth.
    assert not continued(sample=1 / 15.01).sampled
    assert continued(sample=1 / 14.99).sampled


@pytest.mark.parametrize("sample", [-0.1, 1.1, float("nan")])
def test_a_rate_is_a_ratio(sample: float) -> None:
    with pytest.raises(ValueError, match="expected a ratio from 0 to 1"):
        Ids(sample)


def test_an_id_is_never_all_zero() -> None:
    trace = continue_trace(Ids(0.0, pool=bytes(100)), [], [], {})
    assert (trace.trace_id, trace.span_id) == (b"0" * 31 + b"1", b"0" * 15 + b"1")


def test_ids_differ_when_nobody_fixed_them() -> None:
    ids = Ids(0.0)
    made = {continue_trace(ids, [], [], {}).trace_id for _ in range(1000)}
    assert len(made) == 1000


# -- tracestate


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"a=1",
        b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        b"a=1 , b=2\t,\tc=3",
        b"a=1,,b=2, ,",
        b"fw529a3039@dt=FfAAFw;!~ x",
        b"1a@b=1",
        b"a_-*/0=1",
        b"a" * 256 + b"=" + b"b" * 256,
        b"a" * 241 + b"@" + b"b" * 14 + b"=1",
        b",".join(b"k%d=1" % i for i in range(32)),
    ],
)
def test_a_valid_tracestate_goes_on(value: bytes) -> None:
    assert continued(UNSAMPLED, value).keep_tracestate


@pytest.mark.parametrize(
    "value",
    [
        b"a",
        b"=1",
        b"a=",
        b"a= ",
        b"a=b=c",
        b"A=1",
        b"a b=1",
        b"a =1",
        b"1a=1",
        b"@a=1",
        b"a@=1",
        b"a@1b=1",
        b"a@b@c=1",
        b"a.b=1",
        b"a=\x01",
        b"a=b\tc",
        b"a=\xe4",
        b"a=1;b=2=3",
        b"a=1,a=2",
        b"a=1,b=1,a=1",
        b"a" * 257 + b"=1",
        b"a=" + b"b" * 257,
        b"a" * 242 + b"@b=1",
        b"a@" + b"b" * 15 + b"=1",
        b",".join(b"k%d=1" % i for i in range(33)),
    ],
)
def test_an_invalid_tracestate_is_dropped_and_its_traceparent_goes_on(value: bytes) -> None:
    trace = continued(UNSAMPLED, value)
    assert not trace.keep_tracestate
    assert trace.trace_id == TRACE
    assert trace.in_place


def test_several_tracestates_are_one_list() -> None:
    assert continued(UNSAMPLED, [b"a=1", b"b=2,", b"", b"c=3"]).keep_tracestate
    assert not continued(UNSAMPLED, [b"a=1", b"a=2"]).keep_tracestate
    assert not continued(UNSAMPLED, [b"a=1", b"!"]).keep_tracestate
    assert not continued(UNSAMPLED, [b"k%d=1" % i for i in range(33)]).keep_tracestate


# -- B3


@pytest.mark.parametrize("trace_id", [TRACE, TRACE[16:]])
def test_a_sampled_b3_single_is_continued_in_both_headers(trace_id: bytes) -> None:
    whole = trace_id.rjust(32, b"0")
    trace = continued(b3=trace_id + b"-" + PARENT + b"-1")
    assert trace.traceparent == b"00-" + whole + b"-" + SPAN_ID + b"-01"
    assert not trace.in_place
    assert (trace.trace_id, trace.parent_id, trace.span_id) == (whole, PARENT, SPAN_ID)
    assert trace.b3 == {b"b3": whole + b"-" + SPAN_ID + b"-1-" + PARENT}


def test_a_b3_single_with_its_parent_is_continued() -> None:
    trace = continued(b3=TRACE + b"-" + PARENT + b"-1-05e3ac9a4f6e3b90")
    assert trace.b3 == {b"b3": TRACE + b"-" + SPAN_ID + b"-1-" + PARENT}


def test_an_unsampled_b3_goes_on_as_it_came_beside_a_traceparent_that_agrees() -> None:
    trace = continued(b3=TRACE + b"-" + PARENT + b"-0", sample=1.0)
    assert trace.traceparent == UNSAMPLED
    assert (trace.span_id, trace.b3, trace.sampled) == (None, None, False)


def test_a_b3_that_leaves_the_decision_open_is_sampled_by_the_rate() -> None:
    value = TRACE + b"-" + PARENT
    assert continued(b3=value, sample=0.0).traceparent == UNSAMPLED
    assert continued(b3=value, sample=1.0).b3 == {b"b3": TRACE + b"-" + SPAN_ID + b"-1-" + PARENT}
    assert continued(x_b3_traceid=TRACE, x_b3_spanid=PARENT, sample=1.0).sampled


@pytest.mark.parametrize(("state", "sampled"), [(b"0", False), (b"1", True), (b"d", True)])
def test_a_b3_that_is_only_a_decision_begins_a_trace_and_goes_on(state: bytes, sampled: bool) -> None:
    trace = continued(b3=state, sample=0.0 if sampled else 1.0)
    assert (trace.sampled, trace.b3, trace.trace_id) == (sampled, None, TRACE_ID)
    assert trace.traceparent == NEW[:-1] + (b"1" if sampled else b"0")


def test_debug_survives_in_a_sampled_b3() -> None:
    trace = continued(b3=TRACE + b"-" + PARENT + b"-d")
    assert trace.b3 == {b"b3": TRACE + b"-" + SPAN_ID + b"-d-" + PARENT}
    assert continued(SAMPLED, b3=b"d").b3 == {b"b3": TRACE + b"-" + SPAN_ID + b"-d-" + PARENT}
    assert continued(UNSAMPLED, b3=b"d").b3 == {b"b3": TRACE + b"-" + PARENT + b"-0"}
    flags = continued(x_b3_traceid=TRACE, x_b3_spanid=PARENT, x_b3_flags=b"1")
    assert flags.sampled
    assert flags.b3 == {b"x-b3-traceid": TRACE, b"x-b3-spanid": SPAN_ID}
    taken = continued(UNSAMPLED, x_b3_traceid=TRACE, x_b3_spanid=PARENT, x_b3_flags=b"1")
    assert taken.b3 == {b"x-b3-traceid": TRACE, b"x-b3-spanid": PARENT, b"x-b3-flags": None}


@pytest.mark.parametrize("sampled", [b"1", b"true"])
def test_b3_in_several_headers_is_continued(sampled: bytes) -> None:
    trace = continued(
        x_b3_traceid=TRACE[16:],
        x_b3_spanid=PARENT,
        x_b3_parentspanid=b"05e3ac9a4f6e3b90",
        x_b3_sampled=sampled,
    )
    assert trace.trace_id == b"0" * 16 + TRACE[16:]
    assert trace.b3 == {
        b"x-b3-traceid": trace.trace_id,
        b"x-b3-spanid": SPAN_ID,
        b"x-b3-parentspanid": PARENT,
        b"x-b3-sampled": b"1",
    }


@pytest.mark.parametrize("sampled", [b"0", b"false"])
def test_b3_in_several_headers_may_say_no(sampled: bytes) -> None:
    assert (
        continued(x_b3_traceid=TRACE, x_b3_spanid=PARENT, x_b3_sampled=sampled, sample=1.0).traceparent
        == UNSAMPLED
    )
    assert not continued(x_b3_sampled=sampled, sample=1.0).sampled


def test_the_single_b3_header_goes_before_the_several() -> None:
    trace = continued(
        b3=TRACE + b"-" + PARENT + b"-1", x_b3_traceid=b"1" * 32, x_b3_spanid=b"2" * 16, x_b3_sampled=b"0"
    )
    assert trace.trace_id == TRACE
    assert trace.b3 is not None
    assert trace.b3[b"x-b3-traceid"] == TRACE
    assert trace.b3[b"x-b3-sampled"] == b"1"


@pytest.mark.parametrize(
    "b3",
    [
        {"b3": b""},
        {"b3": b"x"},
        {"b3": TRACE},
        {"b3": TRACE + b"-" + PARENT + b"-2"},
        {"b3": TRACE.upper() + b"-" + PARENT + b"-1"},
        {"b3": b"0" * 32 + b"-" + PARENT + b"-1"},
        {"b3": TRACE + b"-" + b"0" * 16 + b"-1"},
        {"b3": TRACE[1:] + b"-" + PARENT + b"-1"},
        {"x_b3_traceid": TRACE},
        {"x_b3_spanid": PARENT},
        {"x_b3_traceid": TRACE, "x_b3_spanid": PARENT[1:]},
        {"x_b3_traceid": TRACE[1:], "x_b3_spanid": PARENT},
        {"x_b3_traceid": b"0" * 16, "x_b3_spanid": PARENT},
        {"x_b3_traceid": TRACE, "x_b3_spanid": b"0" * 16},
    ],
)
def test_b3_ids_that_cannot_be_read_are_not_left_to_contradict_the_new_ones(b3: dict[str, bytes]) -> None:
    trace = continued(**b3)  # type: ignore[arg-type]
    assert trace.traceparent == NEW
    assert trace.b3 is not None
    assert set(trace.b3.values()) <= {TRACE_ID, SPAN_ID, TRACE_ID + b"-" + SPAN_ID + b"-0"}


def test_w3c_wins_and_b3_is_made_to_agree() -> None:
    other = b"1" * 32
    trace = continued(
        SAMPLED, b3=other + b"-" + PARENT + b"-0", x_b3_traceid=other, x_b3_spanid=PARENT, x_b3_sampled=b"0"
    )
    assert trace.trace_id == TRACE
    assert trace.b3 == {
        b"b3": TRACE + b"-" + SPAN_ID + b"-1-" + PARENT,
        b"x-b3-traceid": TRACE,
        b"x-b3-spanid": SPAN_ID,
        b"x-b3-sampled": b"1",
    }
    passed = continued(UNSAMPLED, b3=other + b"-" + PARENT + b"-1", x_b3_parentspanid=PARENT)
    assert passed.b3 == {b"b3": TRACE + b"-" + PARENT + b"-0", b"x-b3-parentspanid": None}


# -- through the engine, byte by byte


def test_headers_are_replaced_in_their_place_in_their_case() -> None:
    lines, exchange = sent(b"A: 1", b"TraceParent:\t" + SAMPLED + b" ", b"B: 2", b"tracestate: a=1", b"C: 3")
    continued_value = b"00-" + TRACE + b"-" + SPAN_ID + b"-01"
    assert lines == [
        b"A: 1",
        b"TraceParent:\t" + continued_value + b" ",
        b"B: 2",
        b"tracestate: a=1",
        b"C: 3",
    ]
    assert (exchange.trace_id, exchange.span_id, exchange.parent_id, exchange.sampled) == (
        TRACE,
        SPAN_ID,
        PARENT,
        True,
    )


def test_what_is_not_sampled_goes_on_byte_for_byte() -> None:
    came = [b"traceparent:" + UNSAMPLED, b"Tracestate:  a=1 ,\t", b"tracestate:", b"TRACESTATE: b=2"]
    lines, exchange = sent(*came, sample=1.0)
    assert lines == came
    assert (exchange.trace_id, exchange.span_id, exchange.parent_id, exchange.sampled) == (
        TRACE,
        None,
        PARENT,
        False,
    )


def test_invalid_lines_are_dropped_whole() -> None:
    lines, exchange = sent(b"traceparent: 00-x", b"A: 1", b"tracestate: a=1", b"traceparent: " + SAMPLED)
    assert lines == [b"A: 1", b"traceparent: " + NEW]
    assert (exchange.trace_id, exchange.parent_id) == (TRACE_ID, None)
    lines, _ = sent(b"traceparent: " + UNSAMPLED, b"tracestate: A=1", b"tracestate: b=1", b"A: 1")
    assert lines == [b"traceparent: " + UNSAMPLED, b"A: 1"]


def test_a_tracestate_without_a_traceparent_is_dropped() -> None:
    assert sent(b"tracestate: a=1")[0] == [b"traceparent: " + NEW]


def test_b3_lines_are_rewritten_in_their_place() -> None:
    lines, _ = sent(
        b"X-B3-TraceId: " + TRACE,
        b"a: b",
        b"x-b3-spanid:" + PARENT,
        b"X-B3-ParentSpanId: x",
        b"X-B3-Sampled: true",
    )
    assert lines == [
        b"X-B3-TraceId: " + TRACE,
        b"a: b",
        b"x-b3-spanid:" + SPAN_ID,
        b"X-B3-ParentSpanId: " + PARENT,
        b"X-B3-Sampled: 1",
        b"traceparent: 00-" + TRACE + b"-" + SPAN_ID + b"-01",
    ]
    lines, _ = sent(b"B3: " + TRACE + b"-" + PARENT + b"-d")
    assert lines[0] == b"B3: " + TRACE + b"-" + SPAN_ID + b"-d-" + PARENT
    lines, _ = sent(b"traceparent: " + UNSAMPLED, b"X-B3-Flags: 1", b"x-b3-parentspanid: " + PARENT, b"a: b")
    assert lines == [b"traceparent: " + UNSAMPLED, b"a: b"]


def test_headers_that_only_look_like_trace_headers_stay() -> None:
    came = [
        b"b4: 1",
        b"xxb3-traceid: 1",
        b"X-B3X: 1",
        b"traceparents: 1",
        b"x-b3-" + b"a" * 20 + b": 1",
        b"B: 3",
    ]
    assert sent(*came)[0] == [*came, b"traceparent: " + NEW]


def test_new_ids_go_on_and_into_the_exchange() -> None:
    lines, exchange = sent(sample=1.0)
    assert lines == [b"traceparent: " + NEW[:-1] + b"1"]
    assert (exchange.trace_id, exchange.span_id, exchange.parent_id, exchange.sampled) == (
        TRACE_ID,
        SPAN_ID,
        None,
        True,
    )
    assert exchange.request_id == REQUEST_ID


def test_a_request_id_is_a_version_4_uuid() -> None:
    caller = Caller(Http1(Ids(0.0, pool=b"\xff" * 100)))
    caller.downstream(b"GET / HTTP/1.1\r\n\r\n")
    assert b"X-Request-ID: ffffffff-ffff-4fff-bfff-ffffffffffff\r\n" in caller.to_upstream


def test_of_several_request_ids_the_first_is_meant_and_all_stay() -> None:
    caller = Caller(Http1(fixed_ids()))
    caller.downstream(b"GET / HTTP/1.1\r\nX-Request-Id: a\r\nx-request-id: b\r\n\r\n")
    assert bytes(caller.to_upstream).count(b"equest-") == 2
    caller.upstream(b"HTTP/1.1 204 No\r\n\r\n")
    assert caller.to_downstream == b"HTTP/1.1 204 No\r\nX-Request-ID: a\r\n\r\n"
    assert caller.exchanges[0].request_id == b"a"

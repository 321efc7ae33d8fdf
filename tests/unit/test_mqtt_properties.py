"""What holds for the MQTT engine whatever comes, and however it was cut into pieces.

A script is what the two sides say, in order: a session that was opened and packets of all types, some of
which answer each other. The engine is driven by ``Caller`` as a pair drives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.exchange import End, Exchange, MqttPacket, Protocol
from protocols.mqtt import Mqtt
from protocols.mqtt_packets import is_utf8
from tests.unit.conversation import Caller, fixed_ids
from tests.unit.mqtt_conversation import (
    ADDED,
    AUTH,
    CAME,
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBREC,
    PUBREL,
    TOPIC_ALIAS,
    answer,
    connack,
    connect,
    packet,
    properties,
    publish,
    read_publish,
    suback,
    subscribe,
    u16,
    unsuback,
    unsubscribe,
    user,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# Bounded, and the same in every run: a failure is a change of the code.
bounded = settings(max_examples=150, deadline=None, derandomize=True, database=None)

Event: TypeAlias = tuple[bool, bytes]  # whether downstream says it
Script: TypeAlias = list[Event]

MOST_HELD: Final = 60 * 1024
TIMES: Final = ("connect", "started", "first_byte", "ended")
DETAILS: Final = tuple(name for name in dir(MqttPacket) if not name.startswith("_") and name != "silence")


@dataclass(frozen=True)
class Outcome:
    to_upstream: bytes
    to_downstream: bytes
    exchanges: list[dict[str, object]]
    refusal: bytes | None
    fallback: str | None


def facts(exchange: Exchange) -> dict[str, object]:
    """All that an exchange says, its times only by whether they came."""
    told: dict[str, object] = {
        name: getattr(exchange, name)
        for name in dir(Exchange)
        if not name.startswith("_") and name not in TIMES and name != "mqtt"
    }
    if exchange.mqtt is not None:
        told |= {name: getattr(exchange.mqtt, name) for name in DETAILS}
    return told | {name: getattr(exchange, name) >= 0 for name in TIMES}


def play(script: Sequence[Event], *, strict: bool = False, observe: bool = False) -> Outcome:
    caller = Caller(Mqtt(fixed_ids(), strict, observe))
    caller.tick = 0.0  # no silence: how long it was is no matter of how bytes are cut
    said = {True: 0, False: 0}
    for is_downstream, data in script:
        (caller.downstream if is_downstream else caller.upstream)(data)
        said[is_downstream] += len(data)
        if not strict:
            assert said[True] - len(caller.to_upstream) <= MOST_HELD
            assert said[False] - len(caller.to_downstream) <= MOST_HELD
    caller.downstream_eof()
    caller.upstream_eof()
    caller.end(End.DOWNSTREAM_FIN)
    assert caller.codec.in_flight == 0
    return Outcome(
        bytes(caller.to_upstream),
        bytes(caller.to_downstream),
        # What is carried unread may have begun to pass before that was known: how much is no matter here.
        [facts(exchange) for exchange in caller.exchanges if exchange.protocol is Protocol.MQTT],
        caller.refusal,
        caller.fallback,
    )


# -- scripts

topics = st.sampled_from((b"a", b"plant/1/temperature", "ä/ö".encode(), b"t" * 130))
ids = st.integers(1, 4)
payloads = st.one_of(st.binary(max_size=40), st.just(b"\x30\x00" * 100))
users = st.lists(
    st.sampled_from(
        (user(b"k", b"v"), user(b"traceparent", CAME), user(b"tracestate", b"a=b"), user(b"", b""))
    ),
    max_size=3,
).map(b"".join)
aliases = st.sampled_from((b"", bytes((TOPIC_ALIAS,)) + u16(1), bytes((TOPIC_ALIAS,)) + u16(2)))


@st.composite
def publishes(draw: st.DrawFn, version: int) -> bytes:
    qos = draw(st.integers(0, 2))
    alias = draw(aliases)
    return publish(
        version,
        b"" if alias and version == 5 and draw(st.booleans()) else draw(topics),
        draw(payloads),
        qos=qos,
        packet_id=draw(ids),
        flags=draw(st.sampled_from((0, 1))) | (draw(st.sampled_from((0, 8))) if qos else 0),
        held=draw(users) + alias,
    )


@st.composite
def packets(draw: st.DrawFn, version: int, downstream: bool) -> bytes:
    """One valid packet of a side that may send it; whether it answers anything is left to chance."""
    tail = st.sampled_from(
        (b"", b"\x10", b"\x87\x00", b"\x80\x06\x1f\x00\x03why") if version == 5 else (b"",)
    )
    choices = [
        publishes(version),
        publishes(version),
        st.builds(answer, st.sampled_from((PUBACK, PUBREC, PUBREL, PUBCOMP)), ids, tail),
    ]
    if downstream:
        filters = st.lists(topics, min_size=1, max_size=3)
        choices += [
            st.builds(lambda i, f: subscribe(version, i, *f), ids, filters),
            st.builds(lambda i, f: unsubscribe(version, i, *f), ids, filters),
            st.just(packet(PINGREQ)),
        ]
    else:
        codes = st.lists(st.sampled_from((0, 1, 2, 0x80)), min_size=1, max_size=3)
        choices += [
            st.builds(lambda i, c: suback(version, i, *c), ids, codes),
            st.builds(lambda i, c: unsuback(version, i, *c), ids, codes),
            st.just(packet(PINGRESP)),
        ]
    if version == 5:
        choices.append(st.sampled_from((packet(AUTH, b"\x18" + properties(5, b"")), packet(AUTH))))
        if not downstream:
            choices.append(st.sampled_from((packet(DISCONNECT), packet(DISCONNECT, b"\x8b"))))
    return draw(st.one_of(choices))


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    version = draw(st.sampled_from((3, 4, 5)))
    script = [
        (True, connect(version, client_id=draw(st.sampled_from((b"", b"me"))))),
        (False, connack(version, draw(st.sampled_from((0, 0, 0, 5))))),
    ]
    for _ in range(draw(st.integers(0, 12))):
        downstream = draw(st.booleans())
        script.append((downstream, draw(packets(version, downstream))))
    if draw(st.booleans()):
        script.append((True, packet(DISCONNECT)))
    return script


def cut(script: Script, sizes: list[int]) -> Script:
    """The same, in pieces of these sizes by turns."""
    pieces: Script = []
    turn = 0
    for downstream, data in script:
        at = 0
        while at < len(data):
            pieces.append((downstream, data[at : at + sizes[turn % len(sizes)]]))
            at += sizes[turn % len(sizes)]
            turn += 1
    return pieces


def joined(script: Script) -> Script:
    """The same, with what one side says before the other answers in one piece."""
    pieces: Script = []
    for downstream, data in script:
        if pieces and pieces[-1][0] == downstream:
            pieces[-1] = (downstream, pieces[-1][1] + data)
        else:
            pieces.append((downstream, data))
    return pieces


def said(script: Sequence[Event], downstream: bool) -> bytes:
    return b"".join(data for side, data in script if side == downstream)


# -- what holds


@bounded
@given(script=scripts(), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_it_does_not_matter_how_the_bytes_were_cut(script: Script, sizes: list[int]) -> None:
    whole = play(script)
    assert play(cut(script, [1])) == whole
    assert play(cut(script, sizes)) == whole
    assert play(joined(script)) == whole
    assert whole.fallback is None


@bounded
@given(script=scripts())
def test_the_bytes_that_come_out_are_those_that_came_but_for_traceparent(script: Script) -> None:
    outcome = play(script)
    version = script[0][1][8] if script[0][1][2:8] == b"\x00\x04MQTT" else 3
    for downstream, went in ((True, outcome.to_upstream), (False, outcome.to_downstream)):
        if version < 5:
            assert went == said(script, downstream)
            continue
        at = 0
        for side, data in script:
            if side != downstream:
                continue
            at = _compare(data, went, at)
        assert at == len(went)


def _compare(data: bytes, went: bytes, at: int) -> int:
    """Hold one packet that came against what went on from ``at``; answers where the next begins."""
    if data[0] >> 4 != 3:
        assert went[at : at + len(data)] == data
        return at + len(data)
    size, shift, index = 0, 0, at + 1
    while True:
        size |= (went[index] & 127) << shift
        shift += 7
        index += 1
        if not went[index - 1] & 128:
            break
    new = went[at : index + size]
    before, after = read_publish(data), read_publish(new)
    assert new[0] == data[0]
    assert (after[0], after[1], after[3]) == (before[0], before[1], before[3])
    traces = [value for name, value in before[2] if name == "traceparent"]
    states = [value for name, value in before[2] if name == "tracestate"]
    found = [value for name, value in after[2] if name == "traceparent"]
    others = [pair for pair in before[2] if pair[0] != "traceparent"]
    assert [pair for pair in after[2] if pair[0] != "traceparent"] == others
    if len(traces) == 1:
        assert len(new) == len(data)
        assert found[0][:36] == traces[0][:36]
    elif traces or states:
        assert new == data
    else:
        assert len(found) <= 1
        assert len(new) in {len(data), *(len(data) + len(ADDED) + wider for wider in (0, 1, 2))}
    return index + size


@bounded
@given(script=scripts(), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_an_engine_that_only_observes_changes_and_holds_nothing(script: Script, sizes: list[int]) -> None:
    codec = Mqtt(fixed_ids(), observe=True)
    for downstream, data in cut(script, sizes):
        assert (codec.from_downstream if downstream else codec.from_upstream)(data, 1.0) == data
    observed = play(script, observe=True)
    assert [one["method"] for one in observed.exchanges] == [one["method"] for one in play(script).exchanges]


spoilings = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4
)


@bounded
@given(script=scripts(), spoilt=spoilings, sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_spoilt_bytes_arrive_as_they_came_and_are_read_alike_however_cut(
    script: Script, spoilt: list[tuple[float, int]], sizes: list[int]
) -> None:
    for where, value in spoilt:
        index = int(where * len(script))
        downstream, data = script[index]
        at = int((where * 7919) % 1 * len(data))
        script[index] = (downstream, data[:at] + bytes((value,)) + data[at + 1 :])
    observed = play(script, observe=True)
    assert observed.to_upstream == said(script, True)
    assert observed.to_downstream == said(script, False)
    assert play(cut(script, sizes), observe=True) == observed
    whole = play(script)
    assert play(cut(script, sizes)) == whole
    for came, went in ((said(script, True), whole.to_upstream), (said(script, False), whole.to_downstream)):
        assert len(went) >= len(came)
        assert went.endswith(came[-1:])


@bounded
@given(script=scripts(), spoilt=spoilings, sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_strict_cuts_what_is_malformed_and_nothing_else(
    script: Script, spoilt: list[tuple[float, int]], sizes: list[int]
) -> None:
    assert play(script, strict=True).refusal is None
    for where, value in spoilt:
        index = int(where * len(script))
        downstream, data = script[index]
        script[index] = (downstream, bytes((value,)) + data[1:])
    lenient, strict = play(script), play(script, strict=True)
    assert (lenient.fallback is None) == (strict.refusal is None)
    assert (play(cut(script, sizes), strict=True).refusal is None) == (strict.refusal is None)


@bounded
@given(first=st.binary(max_size=300), second=st.binary(max_size=300), opened=st.booleans())
def test_any_bytes_at_all_arrive_untouched(first: bytes, second: bytes, opened: bool) -> None:
    start: Script = [(True, connect(4)), (False, connack(4))] if opened else []
    script: Script = [*start, (True, first), (False, second)]
    outcome = play(script)
    assert outcome.to_upstream == said(script, True)
    assert outcome.to_downstream == said(script, False)


@bounded
@given(data=st.one_of(st.binary(max_size=40), st.text(max_size=20).map(lambda value: value.encode())))
def test_strings_are_judged_as_python_judges_utf8(data: bytes) -> None:
    try:
        expected = "\0" not in data.decode()
    except UnicodeDecodeError:
        expected = False
    assert is_utf8(data) == expected


def test_strings_at_the_edges_of_utf8() -> None:
    good = ("\x01", "\x7f", "\x80", "߿", "ࠀ", "퟿", "", "￿", "\U00010000", "\U0010ffff")
    for one in good:
        for before in range(9):
            assert is_utf8(b"a" * before + one.encode() + b"b" * 9), one
    bad = (b"\x00", b"\x80", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xf0\x8f\xbf\xbf")
    for broken in (
        *bad,
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xff",
        b"\xc2",
        b"\xe1\x80",
        b"\xf1\x80\x80",
    ):
        for before in range(9):
            assert not is_utf8(b"a" * before + broken), broken
            assert not is_utf8(b"a" * before + broken + b"b" * 9), broken


def test_one_byte_at_a_time_costs_no_more_than_the_bytes() -> None:
    """A CONNECT of 60 KiB in single bytes is looked at when it is complete, not 60,000 times."""
    big = packet(CONNECT, connect(5)[2:] + b"x" * 50_000)
    outcome = play(cut([(True, big)], [1]))
    assert outcome.to_upstream == big
    assert outcome.exchanges[0]["method"] == b"CONNECT"

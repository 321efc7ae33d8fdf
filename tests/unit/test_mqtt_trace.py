"""The user property ``traceparent`` of a version 5 PUBLISH: added, continued or left alone, and no other."""

from __future__ import annotations

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from protocols.mqtt import Mqtt
from tests.unit.conversation import SPAN_ID, TRACE_ID, Caller, fixed_ids
from tests.unit.mqtt_conversation import (
    ADDED,
    CAME,
    CONTINUED,
    DUPLICATE,
    MAXIMUM_PACKET_SIZE,
    NEW_TRACEPARENT,
    PUBACK,
    TOPIC_ALIAS,
    answer,
    connack,
    connect,
    established,
    packet,
    publish,
    read_publish,
    text,
    u16,
    u32,
    user,
    variable,
)

SIDES = pytest.mark.parametrize("by_upstream", [False, True])
KIB = 1024


def passed(caller: Caller, data: bytes, by_upstream: bool = False) -> bytes:
    """What goes on when a side says this."""
    went = caller.to_downstream if by_upstream else caller.to_upstream
    went.clear()
    (caller.upstream if by_upstream else caller.downstream)(data)
    return bytes(went)


def ids(caller: Caller) -> tuple[object, ...]:
    exchange = caller.exchanges.pop()
    return exchange.trace_id, exchange.parent_id, exchange.span_id, exchange.sampled


@SIDES
def test_a_publish_without_a_traceparent_gets_one_behind_its_properties(by_upstream: bool) -> None:
    caller = established(5).caller
    held = user(b"unit", b"C") + bytes((1, 1)) + bytes((2,)) + u32(60) + bytes((9,)) + text(b"\x00\xff")
    went = passed(caller, publish(5, held=held, payload=b"21.5"), by_upstream)
    assert went == publish(5, held=held + ADDED, payload=b"21.5")
    assert read_publish(went)[2] == [("unit", "C"), ("traceparent", NEW_TRACEPARENT.decode())]
    assert caller.exchanges[0].request_bytes == len(went) - len(ADDED)
    assert ids(caller) == (TRACE_ID, None, SPAN_ID, False)


def test_what_paho_reads_of_it_is_what_paho_wrote_and_one_more() -> None:
    held = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    held.PayloadFormatIndicator = 1
    held.MessageExpiryInterval = 30
    held.ContentType = "text/plain"
    held.ResponseTopic = "answers"
    held.CorrelationData = b"\x00\x01"
    held.UserProperty = [("a", "1"), ("a", "2")]
    before = held.pack()  # type: ignore[no-untyped-call]
    came = packet(3, text(b"a/b") + before + b"21.5")
    went = passed(established(5).caller, came)
    body = went[3:]  # the length takes two bytes now
    found = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    _, used = found.unpack(body[5:])  # type: ignore[no-untyped-call]
    assert body[5 + used :] == b"21.5"
    expected = held.json()  # type: ignore[no-untyped-call]
    expected["UserProperty"] = [*expected["UserProperty"], ("traceparent", NEW_TRACEPARENT.decode())]
    assert found.json() == expected  # type: ignore[no-untyped-call]


@SIDES
def test_a_traceparent_is_continued_in_its_place(by_upstream: bool) -> None:
    """So publisher and subscribers share a trace: a broker gives user properties on (section 3.3.2.3.7)."""
    caller = established(5).caller
    before, behind = user(b"tracestate", b"vendor=1"), user(b"b3", b"0")
    sent = publish(5, held=before + user(b"traceparent", CAME) + behind, qos=1)
    went = passed(caller, sent, by_upstream)
    assert went == publish(5, held=before + user(b"traceparent", CONTINUED) + behind, qos=1)
    (caller.downstream if by_upstream else caller.upstream)(answer(PUBACK, 1))
    assert ids(caller) == (b"4" * 32, b"7" * 16, SPAN_ID, True)


def test_publisher_and_subscriber_share_the_trace() -> None:
    caller = established(5, ids=fixed_ids(1.0)).caller
    delivered = passed(caller, publish(5))
    passed(caller, delivered, by_upstream=True)
    sent, received = caller.exchanges
    assert sent.trace_id == received.trace_id == TRACE_ID
    assert received.parent_id == sent.span_id
    assert (sent.sampled, received.sampled) == (True, True)


def test_a_trace_that_is_not_sampled_goes_on_as_it_came() -> None:
    caller = established(5).caller
    sent = publish(5, held=user(b"traceparent", CAME[:-2] + b"00"))
    assert passed(caller, sent) == sent
    assert ids(caller) == (b"4" * 32, b"7" * 16, None, False)


def test_a_later_version_of_the_same_length_is_continued_as_00_and_a_longer_one_left() -> None:
    caller = established(5).caller
    same = publish(5, held=user(b"traceparent", b"42" + CAME[2:]))
    assert passed(caller, same) == publish(5, held=user(b"traceparent", CONTINUED))
    longer = publish(5, held=user(b"traceparent", b"42" + CAME[2:] + b"-more"))
    assert passed(caller, longer) == longer
    assert ids(caller) == (b"4" * 32, b"7" * 16, None, False)


@pytest.mark.parametrize(
    "held",
    [
        user(b"traceparent", b""),
        user(b"traceparent", CAME.upper()[:-3] + b"-0X"),
        user(b"traceparent", b"00-" + b"0" * 32 + CAME[35:]),
        user(b"traceparent", CAME) * 2,
        user(b"traceparent", CAME) + user(b"traceparent", b"x"),
        user(b"tracestate", b"vendor=1"),
    ],
)
def test_what_cannot_be_continued_goes_on_as_it_came_and_nothing_is_added(held: bytes) -> None:
    caller = established(5).caller
    assert passed(caller, publish(5, held=held)) == publish(5, held=held)
    assert ids(caller) == (None, None, None, False)


@pytest.mark.parametrize("name", [b"Traceparent", b"traceparents", b"traceparen", b"x-traceparent"])
def test_user_properties_of_other_names_are_no_traceparent(name: bytes) -> None:
    held = user(name, CAME)
    assert passed(established(5).caller, publish(5, held=held)) == publish(5, held=held + ADDED)


def test_both_lengths_grow_from_one_byte_to_two_and_on() -> None:
    for size in (0, 40, 48, 49, 50, 56, 57, 127, 128, 129, 200, 16_300, 16_312, 16_383, 16_384):
        for filling in (0, 40, 50, 57, 120, 16_200, 16_320):
            caller = established(5).caller
            held = user(b"k", b"v" * (filling - 6)) if filling else b""
            sent = publish(5, held=held, payload=b"p" * size)
            went = passed(caller, sent)
            assert went == publish(5, held=held + ADDED, payload=b"p" * size)
            assert caller.exchanges[0].request_bytes == len(sent)


def test_a_publish_as_large_as_can_be_is_left_alone() -> None:
    for short, added in ((len(ADDED) - 1, False), (len(ADDED), True)):
        caller = established(5).caller
        rest = text(b"t") + b"\x00"
        length = 268_435_455 - short
        went = passed(caller, b"\x30" + variable(length) + rest)
        expected = b"\x30" + variable(length) + rest
        if added:
            expected = b"\x30" + variable(268_435_455) + text(b"t") + variable(len(ADDED)) + ADDED
        assert went == expected


@SIDES
def test_the_receivers_maximum_packet_size_is_not_passed(by_upstream: bool) -> None:
    sent = publish(5)
    for limit, added in ((len(sent) + len(ADDED) - 1, False), (len(sent) + len(ADDED), True)):
        said = bytes((MAXIMUM_PACKET_SIZE,)) + u32(limit)
        caller = established(
            5,
            connecting=connect(5, held=said if by_upstream else b""),
            accepting=connack(5, held=b"" if by_upstream else said),
        ).caller
        assert passed(caller, sent, by_upstream) == (publish(5, held=ADDED) if added else sent)
        continued = publish(5, held=user(b"traceparent", CAME))
        assert passed(caller, continued, by_upstream) == publish(5, held=user(b"traceparent", CONTINUED))


def test_before_connack_nothing_is_added_for_what_the_server_takes_is_not_known() -> None:
    caller = Caller(Mqtt(fixed_ids()))
    caller.downstream(connect(5))
    assert passed(caller, publish(5)) == publish(5)
    continued = publish(5, held=user(b"traceparent", CAME))
    assert passed(caller, continued) == publish(5, held=user(b"traceparent", CONTINUED))


@pytest.mark.parametrize("held", [b"", user(b"traceparent", CAME)])
def test_a_publish_sent_again_says_what_it_said_the_first_time(held: bytes) -> None:
    caller = established(5).caller
    first = passed(caller, publish(5, held=held, qos=1))
    caller.codec.from_downstream(publish(5), 9.0)
    again = passed(caller, publish(5, held=held, qos=1, flags=DUPLICATE))
    assert again[0] == first[0] | DUPLICATE
    assert again[1:] == first[1:]
    assert again[1:] != publish(5, held=held, qos=1)[1:]


@pytest.mark.parametrize("version", [3, 4])
def test_earlier_versions_have_no_place_for_it(version: int) -> None:
    caller = established(version).caller
    assert passed(caller, publish(version)) == publish(version)
    assert ids(caller) == (None, None, None, False)


def test_an_engine_that_only_observes_adds_nothing_but_reads() -> None:
    caller = established(5, observe=True).caller
    assert passed(caller, publish(5)) == publish(5)
    continued = publish(5, held=user(b"traceparent", CAME))
    assert passed(caller, continued) == continued
    assert ids(caller) == (b"4" * 32, b"7" * 16, None, False)


def test_an_alias_goes_on_as_it_came() -> None:
    caller = established(5).caller
    alias = bytes((TOPIC_ALIAS,)) + u16(9)
    assert passed(caller, publish(5, b"t", held=alias)) == publish(5, b"t", held=alias + ADDED)
    assert passed(caller, publish(5, b"", held=alias)) == publish(5, b"", held=alias + ADDED)


@SIDES
def test_a_publish_is_held_until_its_properties_are_there_and_no_longer(by_upstream: bool) -> None:
    caller = established(5).caller
    sent = publish(5, held=user(b"k", b"v"), payload=b"p" * 300)
    head = len(sent) - 300
    for at in range(head - 1):
        assert passed(caller, sent[at : at + 1], by_upstream) == b""
    expected = publish(5, held=user(b"k", b"v") + ADDED, payload=b"p" * 300)
    assert passed(caller, sent[head - 1 : head], by_upstream) == expected[:-300]
    assert passed(caller, sent[head : head + 7], by_upstream) == b"p" * 7
    assert passed(caller, sent[head + 7 :], by_upstream) == b"p" * 293


@pytest.mark.parametrize("size", [100, 1000, 59 * KIB])
def test_properties_over_60_kib_pass_at_once_and_unchanged(size: int) -> None:
    """In pieces of any size: it is known after the first bytes that they are too many to be held."""
    caller = established(5).caller
    held = user(b"k", b"v" * 40_000) + user(b"k", b"v" * 40_000)
    sent = publish(5, b"t", held=held)
    for at in range(0, len(sent), size):
        assert passed(caller, sent[at : at + size]) == sent[at : at + size]
    (exchange,) = caller.exchanges
    assert (exchange.target, exchange.trace_id, exchange.request_bytes) == (b"t", None, len(sent))


def test_the_largest_properties_that_are_held_are_changed() -> None:
    caller = established(5).caller
    room = 60 * KIB - (1 + 3 + 3 + 3) - 6
    sent = publish(5, b"t", held=user(b"k", b"v" * room), payload=b"p" * 5000)
    assert passed(caller, sent) == publish(5, b"t", held=user(b"k", b"v" * room) + ADDED, payload=b"p" * 5000)
    larger = publish(5, b"t", held=user(b"k", b"v" * (room + 1)), payload=b"p" * 5000)
    assert passed(caller, larger) == larger

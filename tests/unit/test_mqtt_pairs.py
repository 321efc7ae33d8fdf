"""Which packets of MQTT are one exchange, in every version and from either side, as they pass."""

from __future__ import annotations

import pytest

from protocols.exchange import End, Protocol
from protocols.mqtt import Mqtt
from tests.unit.conversation import Caller, Conversation, fixed_ids
from tests.unit.mqtt_conversation import (
    ASSIGNED_CLIENT_ID,
    AUTH,
    CONNACK,
    DISCONNECT,
    DUPLICATE,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBREC,
    PUBREL,
    REASON_STRING,
    RETAIN,
    TOPIC_ALIAS,
    answer,
    connack,
    connect,
    established,
    packet,
    properties,
    publish,
    suback,
    subscribe,
    text,
    u16,
    unsuback,
    unsubscribe,
    user,
)

VERSIONS = pytest.mark.parametrize("version", [3, 4, 5])
QUIET = user(b"tracestate", b"a=b")  # with it a PUBLISH of version 5 stays as it came


def last(caller: Caller) -> tuple[object, ...]:
    exchange = caller.exchanges.pop()
    assert exchange.mqtt is not None
    packet = exchange.mqtt
    return exchange.method, exchange.code, exchange.failed, packet.reason


def quiet(version: int, *, qos: int = 0, packet_id: int = 1, flags: int = 0) -> bytes:
    held = QUIET if version == 5 else b""
    return publish(version, qos=qos, packet_id=packet_id, flags=flags, held=held)


@VERSIONS
def test_connect_is_answered_by_connack(version: int) -> None:
    caller = Caller(Mqtt(fixed_ids()))
    asked = connect(version, keep_alive=30, clean=False, will=(b"gone/me", b"\x00\xff"))
    caller.downstream(asked)
    assert caller.codec.in_flight == 1
    caller.upstream(connack(version, present=True))
    (exchange,) = caller.exchanges
    assert bytes(caller.to_upstream) == asked
    assert (exchange.protocol, exchange.method, exchange.target) == (Protocol.MQTT, b"CONNECT", None)
    assert (exchange.end, exchange.by_upstream, exchange.failed) == (End.COMPLETE, False, False)
    assert (exchange.request_bytes, exchange.response_bytes) == (len(asked), len(connack(version)))
    assert (exchange.started, exchange.first_byte, exchange.ended) == (1.0, 2.0, 2.0)
    assert (exchange.request_complete, exchange.response_complete) == (True, True)
    mqtt = exchange.mqtt
    assert mqtt is not None
    assert (mqtt.version, mqtt.client_id, mqtt.keep_alive, mqtt.clean_start) == (version, b"me", 30, False)
    assert (mqtt.will_topic, mqtt.session_present) == (b"gone/me", -1 if version == 3 else 1)
    assert exchange.code == ("Success" if version == 5 else "Connection Accepted")


@pytest.mark.parametrize(
    ("version", "reason", "code"),
    [
        (3, 2, "Connection Refused, identifier rejected"),
        (4, 5, "Connection Refused, not authorized"),
        (4, 77, "0x4d"),
        (5, 0x87, "Not authorized"),
        (5, 0xFE, "0xfe"),
    ],
)
def test_a_refusing_connack_fails_and_no_session_ends_after_it(version: int, reason: int, code: str) -> None:
    conversation = Conversation(Mqtt(fixed_ids()))
    asked, refused = connect(version), connack(version, reason)
    conversation.downstream(asked).to_upstream(asked).upstream(refused).to_downstream(refused)
    conversation.exchange(method=b"CONNECT", end=End.COMPLETE, failed=True, code=code)
    conversation.upstream_eof().ended(End.UPSTREAM_FIN).nothing()


def test_a_server_without_version_5_answers_in_the_form_of_3_1_1() -> None:
    asked, refused = connect(5), connack(4, 1)
    conversation = Conversation(Mqtt(fixed_ids())).downstream(asked).to_upstream(asked)
    conversation.upstream(refused).to_downstream(refused)
    conversation.exchange(failed=True, code="Connection Refused, unacceptable protocol version")


def test_a_bridge_sets_the_highest_bit_of_the_level() -> None:
    established(4, connecting=connect(4, level=0x84)).in_flight(0)


def test_the_client_identifier_is_on_every_exchange_as_the_server_assigned_it() -> None:
    caller = Caller(Mqtt(fixed_ids()))
    caller.downstream(connect(5, client_id=b""))
    caller.upstream(connack(5, held=bytes((ASSIGNED_CLIENT_ID,)) + text(b"auto-7")))
    caller.downstream(packet(PINGREQ))
    caller.upstream(packet(PINGRESP))
    assert [exchange.mqtt and exchange.mqtt.client_id for exchange in caller.exchanges] == [b"auto-7"] * 2


@VERSIONS
@pytest.mark.parametrize("by_upstream", [False, True])
def test_each_quality_of_service_from_either_side(version: int, by_upstream: bool) -> None:
    caller = established(version).caller
    if by_upstream:
        sender, receiver = caller.upstream, caller.downstream
    else:
        sender, receiver = caller.downstream, caller.upstream
    tail = b"" if version < 5 else b"\x10"
    none = quiet(version, flags=RETAIN)
    once = quiet(version, qos=1, packet_id=7)
    exactly = quiet(version, qos=2, packet_id=8)

    sender(none)
    sender(once)
    assert caller.codec.in_flight == 1
    receiver(answer(PUBACK, 7, tail))
    sender(exactly)
    receiver(answer(PUBREC, 8, tail))
    sender(answer(PUBREL, 8))
    assert caller.codec.in_flight == 1
    receiver(answer(PUBCOMP, 8))

    first, second, third = caller.exchanges
    assert [one.by_upstream for one in caller.exchanges] == [by_upstream] * 3
    assert {one.method for one in caller.exchanges} == {b"PUBLISH"}
    assert {one.target for one in caller.exchanges} == {b"a/b"}
    assert {one.end for one in caller.exchanges} == {End.COMPLETE}
    assert [one.mqtt and (one.mqtt.qos, one.mqtt.packet_id) for one in caller.exchanges] == [
        (0, 0),
        (1, 7),
        (2, 8),
    ]
    assert first.mqtt is not None
    assert (first.mqtt.retain, first.code, first.mqtt.reason, first.first_byte) == (True, None, -1, -1)
    assert (first.request_bytes, first.response_bytes) == (len(none), 0)
    assert second.code == (None if version < 5 else "No matching subscribers")
    assert (second.request_bytes, second.response_bytes) == (len(once), 4 + len(tail))
    # What PUBREC said stands: PUBCOMP says only that it is over.
    assert third.code == (None if version < 5 else "No matching subscribers")
    assert third.first_byte == third.started + 1
    assert third.ended == third.started + 3
    assert (third.request_bytes, third.response_bytes) == (len(exactly) + 4, 8 + len(tail))
    assert not any(one.failed for one in caller.exchanges)


def test_a_pubrec_that_refuses_ends_the_exchange() -> None:
    caller = established(5).caller
    caller.downstream(quiet(5, qos=2, packet_id=9))
    why = bytes((REASON_STRING,)) + text(b"no room")
    caller.upstream(answer(PUBREC, 9, b"\x97" + properties(5, why)))
    (exchange,) = caller.exchanges
    assert (exchange.end, exchange.failed, exchange.code) == (End.COMPLETE, True, "Quota exceeded")
    assert exchange.mqtt is not None
    assert (exchange.mqtt.reason, exchange.mqtt.reason_string) == (0x97, b"no room")
    assert caller.codec.in_flight == 0


def test_both_sides_use_the_same_packet_identifier_at_once() -> None:
    caller = established(4).caller
    caller.downstream(publish(4, b"up", qos=1, packet_id=1))
    caller.upstream(publish(4, b"down", qos=1, packet_id=1))
    caller.downstream(answer(PUBACK, 1))
    caller.upstream(answer(PUBACK, 1))
    assert [(one.target, one.by_upstream) for one in caller.exchanges] == [(b"down", True), (b"up", False)]


def test_a_publish_sent_again_is_the_same_exchange() -> None:
    caller = established(4).caller
    sent = publish(4, qos=1, packet_id=3)
    again = publish(4, qos=1, packet_id=3, flags=DUPLICATE)
    caller.downstream(sent)
    caller.downstream(again)
    assert caller.codec.in_flight == 1
    caller.upstream(answer(PUBACK, 3))
    (exchange,) = caller.exchanges
    assert exchange.mqtt is not None
    assert exchange.mqtt.duplicate
    assert exchange.request_bytes == len(sent) + len(again)
    assert exchange.started == 3.0


def test_a_packet_identifier_used_again_too_early_is_a_fault_of_its_sender() -> None:
    conversation = established(4)
    first, second = publish(4, b"one", qos=1), publish(4, b"two", qos=1)
    conversation.downstream(first + second).to_upstream(first + second)
    conversation.exchange(
        target=b"one",
        end=End.DOWNSTREAM_FAULT,
        fault="packet identifier 1 was used again before it was answered",
    )
    conversation.upstream(answer(PUBACK, 1)).to_downstream(answer(PUBACK, 1)).exchange(target=b"two")
    conversation.in_flight(0)


def test_what_a_resumed_session_leaves_over() -> None:
    """Answers without a question pass unobserved; PUBREL without its PUBLISH is an exchange of its own."""
    conversation = established(4)
    for kind in (PUBACK, PUBREC, PUBCOMP):
        conversation.upstream(answer(kind, 5)).to_downstream(answer(kind, 5))
    conversation.upstream(suback(4, 5, 0)).to_downstream(suback(4, 5, 0)).upstream(unsuback(4, 5))
    conversation.to_downstream(unsuback(4, 5)).upstream(packet(PINGRESP)).to_downstream(packet(PINGRESP))
    conversation.downstream(answer(PUBREL, 6)).to_upstream(answer(PUBREL, 6)).in_flight(1)
    conversation.downstream(answer(PUBREL, 6)).to_upstream(answer(PUBREL, 6)).in_flight(1)
    conversation.upstream(answer(PUBCOMP, 6)).to_downstream(answer(PUBCOMP, 6))
    conversation.exchange(method=b"PUBREL", end=End.COMPLETE, request_bytes=8, response_bytes=4)


def test_an_answer_of_the_wrong_kind_answers_nothing() -> None:
    conversation = established(4)
    asked = subscribe(4, 5, b"a")
    conversation.downstream(asked).to_upstream(asked)
    for wrong in (answer(PUBACK, 5), answer(PUBCOMP, 5), answer(PUBREC, 5), unsuback(4, 5)):
        conversation.upstream(wrong).to_downstream(wrong).in_flight(1)


@VERSIONS
def test_subscribe_and_unsubscribe(version: int) -> None:
    caller = established(version).caller
    asked = subscribe(version, 2, b"$share/g/plant/+/t", b"b/#")
    caller.downstream(asked)
    caller.upstream(suback(version, 2, 1, 0x80))
    caller.downstream(unsubscribe(version, 3, b"b/#", b"c", b"d"))
    caller.upstream(unsuback(version, 3, 0, 0x11, 0))
    subscribed, unsubscribed = caller.exchanges
    assert bytes(caller.to_upstream) == asked + unsubscribe(version, 3, b"b/#", b"c", b"d")
    assert (subscribed.method, subscribed.target) == (b"SUBSCRIBE", b"$share/g/plant/+/t")
    assert (subscribed.failed, subscribed.code) == (True, "Unspecified error" if version == 5 else "Failure")
    assert subscribed.mqtt is not None
    assert (subscribed.mqtt.filters, subscribed.mqtt.filters_refused) == (2, 1)
    assert (unsubscribed.method, unsubscribed.target) == (b"UNSUBSCRIBE", b"b/#")
    assert unsubscribed.mqtt is not None
    assert (unsubscribed.mqtt.filters, unsubscribed.failed) == (3, False)
    assert unsubscribed.code == ("No subscription existed" if version == 5 else None)


def test_granted_subscriptions_are_named() -> None:
    for version in (4, 5):
        caller = established(version).caller
        caller.downstream(subscribe(version, 2, b"a", b"b"))
        caller.upstream(suback(version, 2, 0, 1))
        assert last(caller) == (b"SUBSCRIBE", "Granted QoS 1", False, 1)


def test_a_subscribe_of_3_1_sent_again_is_the_same_exchange() -> None:
    caller = established(3).caller
    caller.downstream(subscribe(3, 2, b"a"))
    caller.downstream(subscribe(3, 2, b"a", flags=2 | DUPLICATE))
    caller.upstream(suback(3, 2, 1))
    assert [(one.method, one.end) for one in caller.exchanges] == [(b"SUBSCRIBE", End.COMPLETE)]


def test_pings_are_answered_in_their_order() -> None:
    caller = established(4).caller
    caller.downstream(packet(PINGREQ) * 2)
    caller.upstream(packet(PINGRESP))
    caller.downstream(packet(PINGREQ))
    assert caller.codec.in_flight == 2
    caller.upstream(packet(PINGRESP) * 2)
    assert [(one.started, one.ended) for one in caller.exchanges] == [(3.0, 4.0), (3.0, 6.0), (5.0, 6.0)]


def test_authentication_goes_to_and_fro() -> None:
    """MQTT 5.0 section 4.12: the server asks within CONNECT, the client begins again later."""
    caller = Caller(Mqtt(fixed_ids()))
    more, again, done = (
        packet(AUTH, bytes((reason,)) + properties(5, b"\x15" + text(b"x"))) for reason in (0x18, 0x19, 0)
    )
    for say, what in (
        (caller.downstream, connect(5)),
        (caller.upstream, more),
        (caller.downstream, more),
        (caller.upstream, connack(5)),
        (caller.downstream, again),
        (caller.upstream, more),
        (caller.downstream, more),
        (caller.upstream, done),
    ):
        say(what)
    told = [(one.method, one.by_upstream, one.code) for one in caller.exchanges]
    assert told == [
        (b"AUTH", True, "Continue authentication"),
        (b"CONNECT", False, "Success"),
        (b"AUTH", False, "Continue authentication"),
        (b"AUTH", False, "Success"),
    ]
    assert caller.codec.in_flight == 0


def test_authentication_is_ended_by_the_servers_disconnect() -> None:
    caller = established(5).caller
    caller.downstream(packet(AUTH, b"\x19" + properties(5, b"")))
    caller.upstream(packet(DISCONNECT, b"\x87"))
    told = [(one.method, one.by_upstream, one.code, one.failed) for one in caller.exchanges]
    assert told == [
        (b"AUTH", False, "Not authorized", True),
        (b"DISCONNECT", True, "Not authorized", True),
    ]


def test_an_alias_stands_for_its_topic_in_its_own_direction() -> None:
    caller = established(5).caller
    alias = bytes((TOPIC_ALIAS,)) + u16(3)
    caller.downstream(publish(5, b"up", held=alias))
    caller.upstream(publish(5, b"down", held=alias))
    caller.downstream(publish(5, b"", held=alias))
    caller.upstream(publish(5, b"", held=alias))
    caller.downstream(publish(5, b"other", held=alias))
    caller.downstream(publish(5, b"", held=alias))
    caller.downstream(publish(5, b"", held=bytes((TOPIC_ALIAS,)) + u16(4)))
    assert [one.target for one in caller.exchanges] == [
        b"up",
        b"down",
        b"up",
        b"down",
        b"other",
        b"other",
        None,
    ]


def test_a_payload_passes_in_the_objects_that_it_came_in() -> None:
    """Packets of up to 256 MB pass in pieces, and nothing is collected of them."""
    codec = Mqtt(fixed_ids())
    codec.from_downstream(connect(4), 1.0)
    codec.from_upstream(connack(4), 1.0)
    head = b"\x30\xff\xff\xff\x7f" + text(b"big")
    left = 268_435_455 - 5
    assert codec.from_downstream(head, 2.0) == head
    piece = bytes(1 << 20)
    while left:
        part = piece if left >= len(piece) else piece[:left]
        assert codec.from_downstream(part, 3.0) is part
        left -= len(part)
    assert codec.finished[-1].method == b"PUBLISH"
    assert codec.finished[-1].request_bytes == 268_435_455 + 5
    assert codec.in_flight == 0


def test_every_packet_of_a_read_is_told_and_the_read_goes_on_as_it_came() -> None:
    codec = Mqtt(fixed_ids())
    codec.from_downstream(connect(4), 1.0)
    codec.from_upstream(connack(4), 1.0)
    codec.finished.clear()
    read = publish(4) * 1000 + publish(4, qos=1)[:5]
    assert codec.from_downstream(read, 2.0) is read
    assert len(codec.finished) == 1000


def test_what_went_on_before_recognition_is_read_and_not_said_again() -> None:
    asked = connect(5)
    codec = Mqtt(fixed_ids())
    codec.passed_on(asked[:7], 1.0)
    assert codec.from_downstream(asked[7:], 2.0) == asked[7:]
    codec.from_upstream(connack(5), 3.0)
    (exchange,) = codec.finished
    assert (exchange.started, exchange.request_bytes) == (1.0, len(asked))


def test_an_exchange_that_runs_is_found_by_its_age() -> None:
    caller = established(4).caller
    caller.downstream(publish(4, b"old", qos=1, packet_id=1))
    caller.upstream(publish(4, b"older", qos=2, packet_id=1))
    caller.downstream(packet(PINGREQ))
    assert [one.target for one in caller.codec.running(4.5)] == [b"old", b"older"]
    assert len(caller.codec.running(9.0)) == 3
    assert caller.codec.running(1.0) == []


def test_a_server_may_refuse_a_connect_that_it_has_not_wholly_read() -> None:
    asked, refused = connect(4), packet(CONNACK, b"\x00\x01")
    conversation = Conversation(Mqtt(fixed_ids())).downstream(asked[:9]).to_upstream(asked[:9])
    conversation.upstream(refused).to_downstream(refused)
    conversation.upstream_eof().ended(End.UPSTREAM_FIN).exchange(method=b"CONNECT", end=End.UPSTREAM_FIN)

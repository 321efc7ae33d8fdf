"""How MQTT exchanges end: DISCONNECT, silence, sockets, a dial that failed, what is malformed; and limits."""

from __future__ import annotations

import errno
import gc
from math import inf

import pytest

from protocols.exchange import End
from protocols.mqtt import Mqtt
from tests.unit.conversation import Caller, Conversation, fixed_ids
from tests.unit.mqtt_conversation import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBLISH,
    PUBREL,
    REASON_STRING,
    SERVER_KEEP_ALIVE,
    SUBACK,
    SUBSCRIBE,
    TOPIC_ALIAS,
    UNSUBSCRIBE,
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
    u32,
    user,
)

VERSIONS = pytest.mark.parametrize("version", [3, 4, 5])
SOCKETS = (End.DOWNSTREAM_FIN, End.DOWNSTREAM_RST, End.UPSTREAM_FIN, End.UPSTREAM_RST)
OTHERS = (End.DRAINED, End.INTERNAL, End.OVERLOAD, End.HEAD_TIMEOUT)


# -- sessions


@VERSIONS
def test_disconnect_and_then_fin_is_the_normal_end(version: int) -> None:
    conversation = established(version)
    conversation.downstream(packet(DISCONNECT)).to_upstream(packet(DISCONNECT))
    code = "Normal disconnection" if version == 5 else None
    conversation.exchange(method=b"DISCONNECT", end=End.COMPLETE, code=code, request_bytes=2, failed=False)
    conversation.downstream_eof().upstream_eof().ended(End.DOWNSTREAM_FIN).nothing()


@pytest.mark.parametrize("how", SOCKETS + OTHERS)
def test_a_session_that_no_disconnect_ended_is_told(how: End) -> None:
    conversation = established(4, connecting=connect(4, will=(b"gone", b"x")))
    conversation.ended(how, errno.ECONNRESET)
    conversation.exchange(
        method=b"DISCONNECT", end=how, error=errno.ECONNRESET, started=2.0, ended=3.0, request_bytes=0
    )
    conversation.nothing()


@pytest.mark.parametrize("how", SOCKETS)
def test_the_end_of_the_connection_ends_what_is_in_flight_the_oldest_first(how: End) -> None:
    caller = established(4).caller
    caller.downstream(publish(4, b"first", qos=1))
    caller.upstream(publish(4, b"second", qos=2))
    caller.downstream(packet(PINGREQ))
    caller.upstream(publish(4, b"third")[:-1])
    caller.downstream(publish(4, b"fourth")[:3])
    assert caller.codec.in_flight == 4
    caller.end(how)
    assert [(one.method, one.target, one.end) for one in caller.exchanges] == [
        (b"PUBLISH", b"first", how),
        (b"PUBLISH", b"second", how),
        (b"PINGREQ", None, how),
        (b"PUBLISH", b"third", how),
        (b"PUBLISH", None, how),
        (b"DISCONNECT", None, how),
    ]
    assert caller.exchanges[4].request_bytes == 3
    assert caller.codec.in_flight == 0


def test_fin_of_upstream_ends_what_waits_and_who_closed_first_ended_it() -> None:
    conversation = established(4)
    sent = publish(4, qos=1)
    conversation.downstream(sent).to_upstream(sent).upstream_eof()
    conversation.exchange(method=b"PUBLISH", end=End.UPSTREAM_FIN)
    conversation.exchange(method=b"DISCONNECT", end=End.UPSTREAM_FIN)
    conversation.downstream(packet(DISCONNECT)).to_upstream(packet(DISCONNECT)).downstream_eof()
    conversation.ended(End.UPSTREAM_FIN).nothing()
    closed = established(4).downstream_eof().upstream_eof()
    closed.exchange(method=b"DISCONNECT", end=End.DOWNSTREAM_FIN).ended(End.DOWNSTREAM_FIN).nothing()


def test_a_half_closed_client_still_hears_its_answers() -> None:
    conversation = established(4)
    sent = publish(4, qos=1) + packet(DISCONNECT)
    conversation.downstream(sent).to_upstream(sent).exchange(method=b"DISCONNECT").downstream_eof()
    conversation.upstream(answer(PUBACK, 1)).to_downstream(answer(PUBACK, 1))
    conversation.exchange(method=b"PUBLISH", end=End.COMPLETE)


def test_the_server_says_why_it_ends_a_session() -> None:
    conversation = established(5)
    said = packet(DISCONNECT, b"\x8b" + properties(5, bytes((REASON_STRING,)) + text(b"bye")))
    conversation.upstream(said).to_downstream(said)
    conversation.exchange(
        method=b"DISCONNECT", by_upstream=True, failed=True, code="Server shutting down", end=End.COMPLETE
    )
    conversation.upstream_eof().ended(End.UPSTREAM_FIN).nothing()


def test_a_session_taken_over_by_another_connection_is_said_by_code() -> None:
    conversation = established(5)
    said = packet(DISCONNECT, b"\x8e")
    conversation.upstream(said).to_downstream(said)
    conversation.exchange(by_upstream=True, failed=True, code="Session taken over", end=End.COMPLETE)


def test_nothing_at_all_was_said() -> None:
    Conversation(Mqtt(fixed_ids())).downstream_eof().upstream_eof().ended(End.DOWNSTREAM_FIN).nothing()


@pytest.mark.parametrize("bytes_said", [1, 2, 9, 15])
def test_a_connect_that_stops_in_the_middle_was_begun(bytes_said: int) -> None:
    asked = connect(4)[:bytes_said]
    conversation = Conversation(Mqtt(fixed_ids())).downstream(asked).to_upstream(asked)
    conversation.downstream_eof().upstream_eof().ended(End.DOWNSTREAM_FIN)
    conversation.exchange(method=b"CONNECT", end=End.DOWNSTREAM_FIN, request_bytes=bytes_said).nothing()


def test_what_was_held_of_a_publish_goes_on_before_fin() -> None:
    conversation = established(5)
    conversation.downstream(publish(5)[:5]).downstream_eof().to_upstream(publish(5)[:5]).upstream_eof()
    conversation.exchange(method=b"DISCONNECT", end=End.DOWNSTREAM_FIN).ended(End.DOWNSTREAM_FIN)
    conversation.exchange(method=b"PUBLISH", end=End.DOWNSTREAM_FIN, request_bytes=5)
    other = established(5).upstream(publish(5)[:5]).upstream_eof().to_downstream(publish(5)[:5])
    other.exchange(method=b"PUBLISH", by_upstream=True, end=End.UPSTREAM_FIN)
    other.exchange(method=b"DISCONNECT", end=End.UPSTREAM_FIN)


def test_nothing_is_said_when_arca_drains() -> None:
    conversation = established(5)
    assert conversation.caller.codec.begin_drain() == b""
    assert conversation.caller.codec.farewell() == b""
    conversation.ended(End.DRAINED).exchange(method=b"DISCONNECT", end=End.DRAINED)


def test_a_late_head_is_cut() -> None:
    conversation = Conversation(Mqtt(fixed_ids())).downstream(b"\x10").to_upstream(b"\x10")
    codec = conversation.caller.codec
    assert (codec.awaits_head(1.0), codec.awaits_head(1.5)) == (False, True)
    conversation.caller.refuse_late_head()
    conversation.cut().exchange(method=b"CONNECT", end=End.HEAD_TIMEOUT)
    assert not established(5).caller.codec.awaits_head(inf)


def test_a_session_that_is_over_leaves_nothing_for_the_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        for wrong in (b"", b"\x00\x00"):
            codec = Mqtt(fixed_ids())
            codec.from_downstream(connect(5), 1.0)
            codec.from_upstream(connack(5), 1.0)
            codec.from_downstream(publish(5, qos=1) + wrong, 1.0)
            codec.end(End.UPSTREAM_FIN, 0, 2.0)
            del codec
        assert gc.collect() == 0
    finally:
        gc.enable()


# -- a dial that failed


def test_a_dial_that_failed_is_mirrored_by_a_reset() -> None:
    conversation = Conversation(Mqtt(fixed_ids())).downstream(connect(4)).to_upstream(connect(4))
    conversation.dial_failed(errno.ECONNREFUSED, 502, "connect_refused", "no").cut()
    conversation.exchange(method=b"CONNECT", end=End.DIAL_FAILED, error=errno.ECONNREFUSED).nothing()


def test_a_dial_that_failed_before_connect_was_read_waits_for_it() -> None:
    asked = connect(4)
    conversation = Conversation(Mqtt(fixed_ids()))
    conversation.dial_failed(errno.ETIMEDOUT, 504, "connect_timeout", "no").nothing()
    conversation.downstream(asked[:8]).to_upstream(asked[:8]).downstream(asked[8:]).to_upstream(
        asked[8:]
    ).cut()
    conversation.exchange(method=b"CONNECT", end=End.DIAL_FAILED, error=errno.ETIMEDOUT)


# -- keep-alive


def silent(keep_alive: int, *, accepting: bytes | None = None, version: int = 5) -> Caller:
    asked = connect(version, keep_alive=keep_alive)
    return established(version, connecting=asked, accepting=accepting).caller


def test_silence_for_one_and_a_half_keep_alives_is_told_once() -> None:
    caller = silent(10)
    # From when it was let in: no client pings before that, however long it takes.
    assert caller.codec.silent_after == 2.0 + 15.0
    caller.downstream(packet(PINGREQ))
    caller.upstream(packet(PINGRESP))
    caller.exchanges.clear()
    assert caller.codec.silent_after == 3.0 + 15.0
    caller.codec.gone_silent(18.5)
    assert caller.codec.silent_after == inf
    caller.upstream(b"")
    (missed,) = caller.exchanges
    assert (missed.method, missed.end, missed.by_upstream) == (b"PINGREQ", End.KEEPALIVE_MISSED, False)
    assert missed.mqtt is not None
    assert (missed.mqtt.keep_alive, missed.mqtt.silence, missed.mqtt.client_id) == (10, 15.5, b"me")
    assert (missed.started, missed.ended) == (3.0, 18.5)
    caller.codec.gone_silent(30.0)
    caller.end(End.UPSTREAM_FIN)
    assert len(caller.exchanges) == 1


def test_a_client_that_is_heard_again_is_watched_again() -> None:
    caller = silent(10)
    caller.codec.gone_silent(17.5)
    caller.now = 20.0
    caller.downstream(packet(PINGREQ))
    assert caller.codec.silent_after == 21.0 + 15.0
    caller.end(End.DOWNSTREAM_FIN)
    assert [one.end for one in caller.exchanges] == [
        End.KEEPALIVE_MISSED,
        End.DOWNSTREAM_FIN,
        End.DOWNSTREAM_FIN,
    ]


def test_the_servers_keep_alive_goes_before_the_clients() -> None:
    said = connack(5, held=bytes((SERVER_KEEP_ALIVE,)) + u16(4))
    assert silent(10, accepting=said).codec.silent_after == 2.0 + 6.0
    none = connack(5, held=bytes((SERVER_KEEP_ALIVE,)) + u16(0))
    assert silent(10, accepting=none).codec.silent_after == inf


def test_without_a_keep_alive_or_a_session_no_silence_is_too_long() -> None:
    assert silent(0).codec.silent_after == inf
    caller = Caller(Mqtt(fixed_ids()))
    caller.downstream(connect(4, keep_alive=1))
    assert caller.codec.silent_after == inf
    caller = silent(10)
    caller.downstream(packet(DISCONNECT))
    assert caller.codec.silent_after == inf
    caller = silent(10)
    caller.downstream_eof()
    assert caller.codec.silent_after == inf


@pytest.mark.parametrize("how", [End.UPSTREAM_FIN, End.UPSTREAM_RST])
@pytest.mark.parametrize(("silence", "missed"), [(9.0, False), (10.5, True)])
def test_a_server_that_ends_the_connection_after_the_keep_alive(
    how: End, silence: float, missed: bool
) -> None:
    caller = silent(10)
    caller.now = 2.0 + silence - caller.tick
    if how == End.UPSTREAM_FIN:
        caller.upstream_eof()
    caller.end(how)
    (exchange,) = caller.exchanges
    assert (exchange.method, exchange.end) == (
        (b"PINGREQ", End.KEEPALIVE_MISSED) if missed else (b"DISCONNECT", how)
    )


def test_a_client_that_nobody_listened_to_was_not_silent() -> None:
    caller = silent(10)
    caller.codec.read_since = inf
    caller.codec.gone_silent(30.0)
    assert not caller.codec.finished
    caller.codec.read_since = 31.0
    caller.codec.gone_silent(caller.codec.silent_after + 0.5)
    assert not caller.codec.finished
    assert caller.codec.silent_after == 31.0 + 15.0
    caller.now = 40.0
    caller.upstream(packet(DISCONNECT, b"\x8d"))
    (exchange,) = caller.exchanges
    assert (exchange.end, exchange.code, exchange.failed) == (End.COMPLETE, "Keep Alive timeout", True)


def test_a_server_that_says_so_speaks_of_the_clients_silence() -> None:
    caller = silent(10)
    caller.now = 15.0
    caller.upstream(packet(DISCONNECT, b"\x8d"))
    caller.end(End.UPSTREAM_FIN)
    (exchange,) = caller.exchanges
    assert (exchange.method, exchange.code, exchange.end) == (
        b"DISCONNECT",
        "Keep Alive timeout",
        End.KEEPALIVE_MISSED,
    )
    assert exchange.mqtt is not None
    assert (exchange.mqtt.silence, exchange.mqtt.keep_alive) == (14.0, 10)


def test_what_the_server_asks_and_does_not_wait_for_is_not_answered_by_its_connack() -> None:
    caller = Caller(Mqtt(fixed_ids()))
    caller.downstream(connect(5))
    caller.upstream(packet(AUTH, b"\x18") + packet(CONNACK, b"\x00\x87"))
    asked, refused = sorted(
        caller.exchanges, key=lambda exchange: exchange.started + len(exchange.method or b"")
    )
    assert (asked.method, asked.by_upstream, asked.code, asked.failed) == (b"AUTH", True, None, False)
    # A CONNACK without properties has the form of 3.1.1, and a reason code of version 5.
    assert (refused.method, refused.code, refused.failed) == (b"CONNECT", "Not authorized", True)


def test_what_was_sent_behind_a_connect_is_refused_with_it() -> None:
    caller = Caller(Mqtt(fixed_ids()))
    caller.downstream(connect(5) + publish(5, b"news", qos=1, packet_id=1) + packet(PINGREQ))
    caller.upstream(packet(CONNACK, b"\x00\x87\x00"))
    caller.upstream_eof()
    assert {one.method for one in caller.exchanges} == {b"CONNECT", b"PUBLISH", b"PINGREQ"}
    assert {(one.code, one.failed, one.end) for one in caller.exchanges} == {
        ("Not authorized", True, End.COMPLETE)
    }
    assert caller.codec.in_flight == 0


def test_a_packet_on_its_way_when_connect_is_refused_is_told_when_it_ends() -> None:
    caller = Caller(Mqtt(fixed_ids()))
    late = publish(4, b"news", b"payload", qos=1, packet_id=1)
    caller.downstream(connect(4) + late[:-3])
    caller.upstream(connack(4, 5))
    assert [one.method for one in caller.exchanges] == [b"CONNECT"]
    caller.downstream(late[-3:] + late)
    assert [(one.method, one.failed, one.request_bytes) for one in caller.exchanges[1:]] == [
        (b"PUBLISH", True, len(late))
    ]
    assert caller.codec.in_flight == 0


def test_a_packet_identifier_at_the_end_of_what_is_looked_at_is_read() -> None:
    whole = publish(5, b"t" * (60 * 1024 - 8), b"payload", qos=1, packet_id=7)
    assert whole[60 * 1024 - 2 : 60 * 1024] == u16(7)
    caller = established(5).caller
    caller.downstream(whole)
    assert caller.to_upstream == whole
    assert caller.codec.in_flight == 1
    assert caller.codec.fallback is None


def test_a_late_packet_is_told_and_no_end_of_a_session_beside_it() -> None:
    caller = established(4).caller
    caller.downstream(packet(SUBSCRIBE, u16(1), 2)[:3])
    caller.refuse_late_head()
    assert [(one.method, one.end) for one in caller.exchanges] == [(b"SUBSCRIBE", End.HEAD_TIMEOUT)]


# -- what is malformed

IN_5 = properties(5, b"")
LONG = b"\xff\xff\xff\xff\x01"
FAULTS = [
    (5, b"\x00\x00", "packet type 0 is reserved"),
    (4, b"\xf0\x00", "packet type 0 is reserved, or 15 before version 5"),
    (4, b"\xc1\x00", "reserved flags"),
    (4, b"\x60\x02\x00\x01", "reserved flags"),
    (4, b"\x80\x06\x00\x01" + text(b"a") + b"\x00", "reserved flags"),
    (4, b"\x36\x05" + text(b"a") + u16(1), "QoS 3"),
    (4, packet(SUBSCRIBE, u16(1) + text(b"a") + b"\x03"), "QoS 3"),
    (4, b"\x30" + LONG, "a length of more than four bytes"),
    (4, b"\xc0" + LONG, "a length of more than four bytes"),
    (4, packet(PUBLISH, b"\x00"), "runs over the end"),
    (4, packet(PUBLISH, text(b"abc")[:4]), "runs over the end"),
    (4, packet(PUBLISH, text(b"abc") + b"\x00", 2), "runs over the end"),
    (5, packet(PUBLISH, text(b"abc")), "runs over the end"),
    (5, packet(PUBLISH, text(b"abc") + b"\x80"), "runs over the end"),
    (5, packet(PUBLISH, text(b"abc") + b"\x05" + b"\x00"), "runs over the end"),
    (5, packet(PUBLISH, text(b"abc") + LONG), "a length of more than four bytes"),
    (5, publish(5, held=user(b"k", b"v")[:-1]), "runs over the end"),
    (5, publish(5, held=b"\x02\x00"), "runs over the end"),
    (4, packet(SUBSCRIBE, u16(1) + text(b"abc")), "runs over the end"),
    (4, packet(PUBACK, b"\x00"), "runs over the end"),
    (4, publish(4, b"\xff"), "not UTF-8"),
    (4, publish(4, b"a\x00b"), "not UTF-8"),
    (5, publish(5, held=user(b"k", b"\xc3")), "not UTF-8"),
    (5, publish(5, held=user(b"\xed\xa0\x80", b"")), "not UTF-8"),
    (4, packet(SUBSCRIBE, u16(1) + text(b"\x80") + b"\x00"), "not UTF-8"),
    (4, publish(4, qos=1, packet_id=0), "packet identifier 0"),
    (4, answer(PUBACK, 0), "packet identifier 0"),
    (4, subscribe(4, 0, b"a"), "packet identifier 0"),
    (5, publish(5, held=b"\x04\x00"), "a property that MQTT 5 does not know"),
    (5, publish(5, held=b"\xa6\x00"), "a property that MQTT 5 does not know"),
    (5, publish(5, held=b"\x11" + u32(1)), "a property that this packet may not have"),
    (5, publish(5, held=(bytes((TOPIC_ALIAS,)) + u16(1)) * 2), "a property twice"),
    (5, packet(AUTH, b"\x18" + properties(5, (b"\x15" + text(b"x")) * 2)), "a property twice"),
    (4, connect(4), "a second CONNECT"),
    (4, connack(4), "the other side alone"),
    (5, suback(5, 1, 0), "the other side alone"),
    (4, packet(PINGRESP), "the other side alone"),
    (4, packet(SUBSCRIBE, u16(1)), "without a topic filter"),
    (5, packet(UNSUBSCRIBE, u16(1) + IN_5), "without a topic filter"),
]


@pytest.mark.parametrize(("version", "wrong", "fault"), FAULTS)
def test_what_is_malformed_is_told_and_carried_on(version: int, wrong: bytes, fault: str) -> None:
    before, behind = packet(PINGREQ), b"whatever"
    caller = established(version).caller
    caller.downstream(before + wrong + behind)
    assert bytes(caller.to_upstream) == before + wrong + behind
    assert caller.fallback == "not_mqtt"
    told, waited = caller.exchanges
    assert (told.end, told.by_upstream) == (End.DOWNSTREAM_FAULT, False)
    assert told.fault is not None
    assert fault in told.fault
    assert (waited.method, waited.end) == (b"PINGREQ", End.UNREADABLE)
    caller.upstream(b"anything")
    assert bytes(caller.to_downstream) == b"anything"


@pytest.mark.parametrize(("version", "wrong", "fault"), FAULTS)
def test_strict_cuts_it_and_does_not_pass_it(version: int, wrong: bytes, fault: str) -> None:
    conversation = established(version, strict=True).downstream(packet(PINGREQ) + wrong)
    conversation.to_upstream(packet(PINGREQ)).cut()
    conversation.exchange(end=End.DOWNSTREAM_FAULT)
    conversation.exchange(method=b"PINGREQ", end=End.DOWNSTREAM_FAULT)
    conversation.exchange(method=b"DISCONNECT", end=End.DOWNSTREAM_FAULT).nothing()


@pytest.mark.parametrize(
    ("version", "wrong", "method"),
    [
        (4, connect(4), b"CONNECT"),
        (4, subscribe(4, 1, b"a"), b"SUBSCRIBE"),
        (4, packet(PINGREQ), b"PINGREQ"),
        (4, packet(DISCONNECT), b"DISCONNECT"),
        (5, packet(DISCONNECT, b"\x8b\x05\x1f" + text(b"b\x00")), b"DISCONNECT"),
        (5, suback(5, 1, 0)[:-1] + b"\x80\x80\x80\x80", b"SUBACK"),
        (4, packet(SUBACK, u16(0) + b"\x00"), b"SUBACK"),
        (4, b"\x62\x02\x00\x00", b"PUBREL"),
    ],
)
def test_a_malformed_packet_of_the_server_is_the_servers(version: int, wrong: bytes, method: bytes) -> None:
    if method == b"SUBACK" and version == 5:
        wrong = packet(SUBACK, u16(1) + b"\x80\x80\x80\x80\x01")
    conversation = established(version).upstream(wrong).to_downstream(wrong).carried_on("not_mqtt")
    conversation.exchange(method=method, end=End.UPSTREAM_FAULT, by_upstream=True).nothing()


@pytest.mark.parametrize(
    ("first", "fault"),
    [
        (packet(PINGREQ), "the first packet is not CONNECT"),
        (packet(CONNECT, text(b"HTTP") + b"\x04\x02\x00\x3c" + text(b"me")), "another protocol name"),
        (connect(4, level=6), "another protocol level"),
        (packet(CONNECT, text(b"MQTT") + b"\x04\x03\x00\x3c" + text(b"me")), "the reserved flag of CONNECT"),
        (packet(CONNECT, text(b"MQTT") + b"\x04\x1a\x00\x3c" + text(b"me")), "QoS 3"),
        (packet(CONNECT, text(b"MQTT") + b"\x04\x82\x00\x3c" + text(b"me")), "runs over the end"),
        (packet(CONNECT, text(b"MQTT") + b"\x04\x42\x00\x3c" + text(b"me")), "runs over the end"),
        (packet(CONNECT, text(b"MQTT") + b"\x04\x06\x00\x3c" + text(b"me")), "runs over the end"),
        (packet(CONNECT, text(b"MQTT") + b"\x04"), "runs over the end"),
        (connect(5, client_id=b"\xff"), "not UTF-8"),
        (connect(5, held=b"\x23" + u16(1)), "may not have"),
    ],
)
def test_a_first_packet_that_is_none(first: bytes, fault: str) -> None:
    caller = Caller(Mqtt(fixed_ids()))
    caller.downstream(first)
    assert bytes(caller.to_upstream) == first
    assert caller.fallback == "not_mqtt"
    (told,) = caller.exchanges
    assert told.end == End.DOWNSTREAM_FAULT
    assert told.fault is not None
    assert fault in told.fault


def test_a_server_that_speaks_first_does_not_speak_mqtt() -> None:
    conversation = Conversation(Mqtt(fixed_ids())).upstream(packet(CONNACK, b"\0\0"))
    conversation.to_downstream(packet(CONNACK, b"\0\0")).carried_on("not_mqtt").exchange(
        end=End.UPSTREAM_FAULT
    )


def test_a_connect_of_3_1_may_leave_out_what_its_flags_announce() -> None:
    asked = packet(CONNECT, text(b"MQIsdp") + b"\x03\xc2\x00\x3c" + text(b"me"))
    established(3, connecting=asked).in_flight(0)


def test_what_is_held_on_the_other_side_goes_on_when_one_is_malformed() -> None:
    conversation = (
        established(5).upstream(publish(5)[:6]).downstream(b"\x00\x00 and on").to_upstream(b"\x00\x00 and on")
    )
    conversation.to_downstream(publish(5)[:6]).exchange(end=End.DOWNSTREAM_FAULT).carried_on("not_mqtt")
    conversation.upstream(publish(5)[6:]).to_downstream(publish(5)[6:])


# -- limits


def test_more_than_4096_in_flight_pass_unobserved_and_that_is_told_once_per_crossing() -> None:
    caller = established(4).caller
    caller.downstream(b"".join(publish(4, qos=1, packet_id=1 + one) for one in range(4100)))
    assert caller.codec.in_flight == 4096
    assert caller.exceeded == [("in_flight", "downstream")]
    caller.upstream(packet(PUBREL, u16(9), 2) + publish(4, b"still seen"))
    assert caller.exceeded == [("in_flight", "downstream")]
    assert [one.target for one in caller.exchanges] == [b"still seen"]
    caller.upstream(b"".join(answer(PUBACK, 1 + one) for one in range(4100)))
    assert caller.codec.in_flight == 0
    caller.upstream(b"".join(publish(4, qos=1, packet_id=1 + one) for one in range(4097)))
    assert caller.exceeded == [("in_flight", "downstream"), ("in_flight", "upstream")]


def test_of_one_read_so_many_exchanges_are_told_and_what_is_beyond_goes_on_unobserved() -> None:
    caller = established(4).caller
    flood = publish(4) * 17_000
    caller.to_upstream.clear()
    caller.downstream(flood)
    assert caller.to_upstream == flood
    assert len(caller.exchanges) == 16_384
    assert caller.exceeded == [("at_once", "downstream")]
    caller.downstream(publish(4))
    assert len(caller.exchanges) == 16_385
    assert len(caller.exceeded) == 1


def test_aliases_beyond_1024_or_64_kib_are_not_resolved() -> None:
    def named(alias: int, topic: bytes = b"") -> bytes:
        return publish(5, topic, held=bytes((TOPIC_ALIAS,)) + u16(alias))

    caller = established(5).caller
    caller.downstream(b"".join(named(one, b"t%d" % one) for one in range(1, 1027)))
    assert caller.exceeded == [("topic_alias", "downstream")]
    caller.exchanges.clear()
    caller.downstream(named(1024) + named(1025) + named(7, b"new") + named(7))
    assert [one.target for one in caller.exchanges] == [b"t1024", None, b"new", b"new"]

    caller = established(5).caller
    caller.upstream(b"".join(named(one, b"%05d" % one + b"x" * 2000) for one in range(1, 67)))
    assert caller.exceeded == [("topic_alias", "upstream")]
    caller.exchanges.clear()
    caller.upstream(named(64) + named(65))
    assert [one.target and (len(one.target), one.target[:5]) for one in caller.exchanges] == [
        (1024, b"00064"),
        None,
    ]


def test_a_topic_of_nearly_64_kib_passes() -> None:
    for version in (4, 5):
        for qos in (0, 1):
            sent = publish(version, b"t" * 65_000, qos=qos)
            caller = established(version).caller
            caller.to_upstream.clear()
            for at in range(0, len(sent), 1000):
                caller.downstream(sent[at : at + 1000])
            assert bytes(caller.to_upstream) == sent
            caller.to_upstream.clear()
            caller.downstream(packet(PINGREQ))
            assert bytes(caller.to_upstream) == packet(PINGREQ)
            assert caller.codec.in_flight == 1


def test_packets_with_more_to_look_at_than_60_kib_are_read_as_far_as_that() -> None:
    asked = subscribe(4, 2, *(b"%04d/" % one + b"f" * 500 for one in range(1000)))
    caller = established(4).caller
    caller.to_upstream.clear()
    caller.downstream(asked)
    assert bytes(caller.to_upstream) == asked
    caller.upstream(suback(4, 2, *([0] * 1000)))
    (exchange,) = caller.exchanges
    assert (exchange.target, exchange.request_bytes) == (b"0000/" + b"f" * 500, len(asked))
    assert exchange.mqtt is not None
    assert exchange.mqtt.filters == 120

"""What paho-mqtt 2 and mosquitto 2.0.11 said to each other, packet by packet, as an engine tells it.

Recorded on the loopback interface. In version 5 the broker was given what the engine made of the client's
packets, so what it delivers carries the traceparent that the publisher's packet got.
"""

from __future__ import annotations

from typing import Final

import pytest

from protocols.exchange import End, Exchange
from protocols.mqtt import Mqtt
from tests.unit.conversation import SPAN_ID, Caller, fixed_ids

# Each line begins with who says it: > the client, < the broker.
VERSION_3_1: Final = """
> 101400064d514973647003020002000670726f626533
< 20020000
> 821500010003612f2302000a2473686172652f672f6201
< 900400010201
> 30070003612f747030
< 30070003612f747030
> 32090003612f7400037031
< 32090003612f7400017031
> 40020001
< 40020003
> 34090003612f7400047032
< 50020004
> 62020004
< 34090003612f7400027032
> 50020002
< 70020004
< 62020002
> 70020002
> c000
< d000
> a20700050003612f23
< b0020005
> e000
"""

# Each line begins with who says it: > the client, < the broker.
VERSION_5: Final = """
> 101300044d5154540502000200000670726f626535
< 200900000622000a210014
> 82160001000003612f2302000a2473686172652f672f6201
< 90050001000201
> 30080003612f74007030
< 304f0003612f744726000b7472616365706172656e74003730302d3335333038343332363033343563316639663837356562
  3264333635363366652d363561376131646366623034306265342d30317030
> 320a0003612f740003007031
< 32510003612f7400014726000b7472616365706172656e74003730302d633439333539643061356466663739373165636539
  66373131643436306537632d323962643963313630663766663533632d30317031
> 40020001
< 40020003
> 340a0003612f740004007032
< 50020004
> 62020004
< 34510003612f7400024726000b7472616365706172656e74003730302d383532363261323561643333663237393661613735
  30663361653765663534632d666563666339613833623434653036392d30317032
> 50020002
< 70020004
> 32170007612f616c69617300050a2300012600016b00017631
< 62020002
> 70020002
< 325b0007612f616c69617300034e2600016b00017626000b7472616365706172656e74003730302d38396533353939326662
  396565393331313132346233396439616433643731332d366363663032323965343162323230652d303131
< 40020005
> 40020003
> 3210000000060a2300012600016b00017632
< 325b0007612f616c69617300044e2600016b00017626000b7472616365706172656e74003730302d39363830386232363466
  333431646335353765383834393933356131393138652d646531383137373933313966353136322d303132
> 40020004
< 40020006
> c000
< d000
> a2080007000003612f23
< b00400070000
> e000
"""


def recorded(text: str) -> list[tuple[bool, bytes]]:
    """Whether the client says it, and the packet."""
    lines = text.replace("\n  ", "").split("\n")
    return [(line[0] == ">", bytes.fromhex(line[2:])) for line in lines if line]


def told(exchange: Exchange) -> tuple[object, ...]:
    assert exchange.mqtt is not None
    assert exchange.end is End.COMPLETE
    who = "broker" if exchange.by_upstream else "client"
    packet = exchange.mqtt
    return who, exchange.method, exchange.target, packet.qos, packet.packet_id, exchange.code


EXPECTED_3_1: Final = [
    ("client", b"CONNECT", None, 0, 0, "Connection Accepted"),
    ("client", b"SUBSCRIBE", b"a/#", 0, 1, "Granted QoS 2"),
    ("client", b"PUBLISH", b"a/t", 0, 0, None),
    ("broker", b"PUBLISH", b"a/t", 0, 0, None),
    ("broker", b"PUBLISH", b"a/t", 1, 1, None),
    ("client", b"PUBLISH", b"a/t", 1, 3, None),
    ("client", b"PUBLISH", b"a/t", 2, 4, None),
    ("broker", b"PUBLISH", b"a/t", 2, 2, None),
    ("client", b"PINGREQ", None, 0, 0, None),
    ("client", b"UNSUBSCRIBE", b"a/#", 0, 5, None),
    ("client", b"DISCONNECT", None, 0, 0, None),
]
EXPECTED_5: Final = [
    ("client", b"CONNECT", None, 0, 0, "Success"),
    ("client", b"SUBSCRIBE", b"a/#", 0, 1, "Granted QoS 2"),
    ("client", b"PUBLISH", b"a/t", 0, 0, None),
    ("broker", b"PUBLISH", b"a/t", 0, 0, None),
    ("broker", b"PUBLISH", b"a/t", 1, 1, "Success"),
    ("client", b"PUBLISH", b"a/t", 1, 3, "Success"),
    ("client", b"PUBLISH", b"a/t", 2, 4, "Success"),
    ("broker", b"PUBLISH", b"a/t", 2, 2, "Success"),
    ("client", b"PUBLISH", b"a/alias", 1, 5, "Success"),
    ("broker", b"PUBLISH", b"a/alias", 1, 3, "Success"),
    ("broker", b"PUBLISH", b"a/alias", 1, 4, "Success"),
    ("client", b"PUBLISH", b"a/alias", 1, 6, "Success"),
    ("client", b"PINGREQ", None, 0, 0, None),
    ("client", b"UNSUBSCRIBE", b"a/#", 0, 7, "Success"),
    ("client", b"DISCONNECT", None, 0, 0, "Normal disconnection"),
]


@pytest.mark.parametrize("piece", [1, 7, 10_000])
@pytest.mark.parametrize(("text", "expected"), [(VERSION_3_1, EXPECTED_3_1), (VERSION_5, EXPECTED_5)])
def test_a_recorded_session_is_told_packet_by_packet(
    text: str, expected: list[tuple[object, ...]], piece: int
) -> None:
    caller = Caller(Mqtt(fixed_ids()))
    for by_client, packet in recorded(text):
        for at in range(0, len(packet), piece):
            (caller.downstream if by_client else caller.upstream)(packet[at : at + piece])
    assert caller.codec.in_flight == 0
    caller.downstream_eof()
    caller.end(End.DOWNSTREAM_FIN)
    assert [told(exchange) for exchange in caller.exchanges] == expected
    clients = {exchange.mqtt.client_id for exchange in caller.exchanges if exchange.mqtt is not None}
    assert clients == {b"probe3" if expected is EXPECTED_3_1 else b"probe5"}


def test_the_version_3_1_session_passes_as_it_came() -> None:
    codec = Mqtt(fixed_ids())
    for by_client, packet in recorded(VERSION_3_1):
        assert (codec.from_downstream if by_client else codec.from_upstream)(packet, 1.0) is packet


def test_only_publish_packets_of_the_version_5_session_change() -> None:
    caller = Caller(Mqtt(fixed_ids()))
    for by_client, packet in recorded(VERSION_5):
        went = caller.to_upstream if by_client else caller.to_downstream
        went.clear()
        (caller.downstream if by_client else caller.upstream)(packet)
        assert (went != packet) == (packet[0] >> 4 == 3)
        if packet[0] >> 4 == 3:
            # The client's grow by the property; in the broker's only the parent's id is another.
            grown = 71 if by_client else 0
            assert len(went) == len(packet) + grown
            assert went[-4:].endswith(packet[-1:])
            assert SPAN_ID in went

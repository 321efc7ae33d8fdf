"""What the return codes of MQTT 3.1 and 3.1.1 and the reason codes of MQTT 5.0 are called.

The words are those of the specifications: table 3.1 in section 3.2.2.3 and section 3.9.3 of 3.1.1, table 2-6
in section 2.4 of 5.0. Each table has a name for every number from 0 to 255: to look one up is to index it.
"""

from __future__ import annotations

from typing import Final

_CONNACK: Final = {
    0: "Connection Accepted",
    1: "Connection Refused, unacceptable protocol version",
    2: "Connection Refused, identifier rejected",
    3: "Connection Refused, Server unavailable",
    4: "Connection Refused, bad user name or password",
    5: "Connection Refused, not authorized",
}
_GRANTED: Final = {0: "Granted QoS 0", 1: "Granted QoS 1", 2: "Granted QoS 2"}
_REASONS: Final = {
    0x00: "Success",
    0x04: "Disconnect with Will Message",
    0x10: "No matching subscribers",
    0x11: "No subscription existed",
    0x18: "Continue authentication",
    0x19: "Re-authenticate",
    0x80: "Unspecified error",
    0x81: "Malformed Packet",
    0x82: "Protocol Error",
    0x83: "Implementation specific error",
    0x84: "Unsupported Protocol Version",
    0x85: "Client Identifier not valid",
    0x86: "Bad User Name or Password",
    0x87: "Not authorized",
    0x88: "Server unavailable",
    0x89: "Server busy",
    0x8A: "Banned",
    0x8B: "Server shutting down",
    0x8C: "Bad authentication method",
    0x8D: "Keep Alive timeout",
    0x8E: "Session taken over",
    0x8F: "Topic Filter invalid",
    0x90: "Topic Name invalid",
    0x91: "Packet Identifier in use",
    0x92: "Packet Identifier not found",
    0x93: "Receive Maximum exceeded",
    0x94: "Topic Alias invalid",
    0x95: "Packet too large",
    0x96: "Message rate too high",
    0x97: "Quota exceeded",
    0x98: "Administrative action",
    0x99: "Payload format invalid",
    0x9A: "Retain not supported",
    0x9B: "QoS not supported",
    0x9C: "Use another server",
    0x9D: "Server moved",
    0x9E: "Shared Subscriptions not supported",
    0x9F: "Connection rate exceeded",
    0xA0: "Maximum connect time",
    0xA1: "Subscription Identifiers not supported",
    0xA2: "Wildcard Subscriptions not supported",
}


def _table(names: dict[int, str]) -> tuple[str, ...]:
    return tuple(names.get(number, f"0x{number:02x}") for number in range(256))


CONNACK: Final = _table(_CONNACK)  # before version 5
SUBACK: Final = _table(_GRANTED | {0x80: "Failure"})  # before version 5
REASONS: Final = _table(_REASONS)  # of all packets of version 5 but these two
SUBACK_5: Final = _table(_REASONS | _GRANTED)
DISCONNECT_5: Final = _table(_REASONS | {0: "Normal disconnection"})

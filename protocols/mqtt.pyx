"""MQTT 3.1, 3.1.1 and 5.0, as a relay of control packets; sections are those of MQTT 5.0.

Packets go on as they came and when they come; what is needed of a packet that is not all here yet is copied aside.
The one packet that may change is the PUBLISH of version 5: it gets the user property ``traceparent`` when it has
none, and the one that it has is continued in its place. So it alone is held back, up to the end of its properties,
and never more than 60 KiB of it. A traceparent that cannot be continued (broken, several, or a tracestate alone)
goes on as it came and none is added: nobody is to find two.

Payloads are never looked at. An exchange is a packet with those that answer it, begun by either side; packet
identifiers are the sender's own, so each direction has its table of what it asked (section 2.2.1).
"""

from operator import attrgetter

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.string cimport memcpy

from protocols.assembly cimport Assembly
from protocols.codec cimport EXCEEDED, FINISHED, NEVER, Opaque, REFUSED, Refusal, SUCCEEDED
from protocols.exchange cimport (
    COMPLETE, DIAL_FAILED, DOWNSTREAM_FAULT, DOWNSTREAM_FIN, End, Exchange, HEAD_TIMEOUT, KEEPALIVE_MISSED, MQTT,
    MqttPacket, TCP, UNREADABLE, UPSTREAM_FAULT, UPSTREAM_FIN, UPSTREAM_RST,
)
from protocols.mqtt_packets cimport (
    AUTH, CONNACK, CONNECT, Connect, DISCONNECT, DUPLICATE, Fault, MAX_TEXT, NOT_CONNECT, NOT_THIS_SIDES,
    NOT_UTF8, NO_PACKET_ID, OVERRUN, PINGREQ, PINGRESP, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Packet, Properties,
    RETAIN, SECOND_CONNECT, SOUND, SUBACK, SUBSCRIBE, TRACEPARENT_LENGTH, Text, UNSUBACK, UNSUBSCRIBE, grown, measure,
    read_answer, read_connect, read_filters, read_grants, read_properties, well_formed, write_publish,
)
from protocols.trace_context cimport Ids, TraceContext, continue_trace, new_trace

from protocols import mqtt_reasons as reasons
from protocols.mqtt_packets import FAULTS

# Limits of what is kept for one connection (transparency.md).
cdef enum:
    MAX_IN_FLIGHT = 4096
    MAX_AT_ONCE = 16384           # exchanges that one call ends: a read may hold 65,536 packets of four bytes
    MAX_ALIASES = 1024
    MAX_ALIAS_OCTETS = 64 * 1024
    LONG_KEPT = 512

cdef enum:
    QOS_1 = 1
    QOS_2 = 2
    REFUSES = 0x80                # the first reason code that does (section 2.4)
    CONTINUE_AUTHENTICATION = 0x18
    KEEP_ALIVE_TIMEOUT = 0x8D

# Section 3.1.2.10: the server ends a connection on which one and a half times the keep-alive passed in silence;
# the client must not let the time itself pass.
cdef double GRACE = 1.5

cdef tuple METHODS = (
    None, b"CONNECT", b"CONNACK", b"PUBLISH", b"PUBACK", b"PUBREC", b"PUBREL", b"PUBCOMP", b"SUBSCRIBE", b"SUBACK",
    b"UNSUBSCRIBE", b"UNSUBACK", b"PINGREQ", b"PINGRESP", b"DISCONNECT", b"AUTH",
)
cdef enum:
    BEGINNING = (
        1 << CONNECT | 1 << PUBLISH | 1 << SUBSCRIBE | 1 << UNSUBSCRIBE | 1 << PINGREQ | 1 << DISCONNECT | 1 << AUTH
    )
cdef bytes _PUBLISH = METHODS[PUBLISH]
cdef bytes _PUBREL = METHODS[PUBREL]
cdef list CONNACK_NAMES = list(reasons.CONNACK)
cdef list SUBACK_NAMES = list(reasons.SUBACK)
cdef list NAMES = list(reasons.REASONS)
cdef list SUBACK_5_NAMES = list(reasons.SUBACK_5)
cdef list DISCONNECT_NAMES = list(reasons.DISCONNECT_5)

_STARTED = attrgetter("started")

# It is used up within one call.
cdef Assembly assembly = Assembly()


cdef inline bytes _cut(const unsigned char* f, Text* text):
    return f[text.at:text.at + min(text.length, <Py_ssize_t>MAX_TEXT)]


cdef class Lane:
    def __cinit__(self, bint downstream):
        self.downstream = downstream
        if downstream:
            self.foreign = 1 << CONNACK | 1 << SUBACK | 1 << UNSUBACK | 1 << PINGRESP
        else:
            # Until version 5 is spoken DISCONNECT is the client's alone.
            self.foreign = 1 << CONNECT | 1 << SUBSCRIBE | 1 << UNSUBSCRIBE | 1 << PINGREQ | 1 << DISCONNECT

    def __dealloc__(self):
        PyMem_Free(self.kept)

    cdef int keep(self, const unsigned char* p, Py_ssize_t n) except -1:
        cdef void* larger
        cdef Py_ssize_t room
        if self.kept_length + n > self.kept_room:
            room = max(2 * self.kept_room, self.kept_length + n, <Py_ssize_t>64)
            larger = PyMem_Realloc(self.kept, room)
            if larger == NULL:
                raise MemoryError
            self.kept = <unsigned char*>larger
            self.kept_room = room
        memcpy(self.kept + self.kept_length, p, n)
        self.kept_length += n
        return 0

    cdef forget(self):
        self.kept_length = 0
        self.holding = False
        if self.kept_room > LONG_KEPT:
            PyMem_Free(self.kept)
            self.kept = NULL
            self.kept_room = 0


cdef class Mqtt(Codec):
    """The engine of one connection; see ``codec.pyi`` for its methods and ``mqtt.pyi`` for its settings."""

    def __init__(self, Ids ids, bint strict = False, bint observe = False):
        self.ids = ids
        self.strict = strict
        self.observe = observe
        self.down = Lane(True)
        self.up = Lane(False)
        self.down.other = self.up
        self.up.other = self.down

    cpdef str protocol_name(self):
        return "mqtt"

    cpdef bytes from_downstream(self, bytes data, double now):
        cdef bytes out
        self.heard = now
        if self.keep_alive:
            self.silent_after = now + GRACE * self.keep_alive
            self.missed = False
        out = self._relay(self.down, data, now)
        if self.no_upstream and self.connect is not None and not self.over:
            self._unreachable(now)
        return out

    cpdef bytes from_upstream(self, bytes data, double now):
        self.heard_upstream = now
        return self._relay(self.up, data, now)

    cpdef passed_on(self, bytes data, double now):
        self.unchanging = True
        self.from_downstream(data, now)
        self.unchanging = False
        # What could not be read of it went on all the same.
        self.down.rest = None

    # -- packets -------------------------------------------------------------------------------------------

    cdef bytes _relay(self, Lane lane, bytes data, double now):
        cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(data)
        cdef const unsigned char* f
        cdef Py_ssize_t n = len(data), position = 0, copied = 0, begun = 0, used, wanted, available
        cdef Assembly out = assembly
        cdef Packet packet
        cdef Fault fault = SOUND
        cdef bint in_place

        if self.over:
            return b""
        out.length = 0
        while position < n:
            if lane.passing:
                used = min(<Py_ssize_t>lane.passing, n - position)
                lane.passing -= <unsigned int>used
                position += used
                self._count(lane, used)
                if lane.passing == 0:
                    self._packet_over(lane, now)
                continue
            begun = position
            in_place = lane.kept_length == 0
            if in_place:
                f = p + position
                available = n - position
                lane.began = now
                fault = self._in_turn(lane, f[0] >> 4)
                if fault != SOUND:
                    packet.type = f[0] >> 4
                    packet.head = 1
                    break
            else:
                used = min(lane.need - lane.kept_length, n - position)
                lane.keep(p + position, used)
                position += used
                if lane.holding:
                    copied = position
                if lane.kept_length < lane.need:
                    break
                f = lane.kept
                available = lane.kept_length
            wanted = measure(f, available, self.version, &packet, &fault)
            if fault != SOUND:
                break
            if wanted > available:
                lane.need = wanted
                if in_place:
                    lane.holding = self._changeable(&packet)
                    lane.keep(f, available)
                    if lane.holding:
                        out.add(p + copied, position - copied)
                        copied = n
                    position = n
                elif lane.holding and packet.cut:
                    # Too much to hold back: it goes on as it came.
                    out.add(lane.kept, lane.kept_length)
                    lane.holding = False
                continue
            fault = self._read(lane, f, &packet, (in_place or lane.holding) and self._changeable(&packet), now)
            if fault != SOUND:
                break
            if lane.traceparent is not None:
                if in_place:
                    out.add(p + copied, position - copied)
                    copied = position + packet.head
                self._write(lane, f, &packet, out)
            elif lane.holding:
                out.add(f, packet.head)
            self._count(lane, packet.head)
            if in_place:
                position += packet.head
            else:
                lane.forget()
            lane.passing = <unsigned int>(packet.size - packet.head)
            if lane.passing == 0:
                self._packet_over(lane, now)

        if fault != SOUND:
            if self.strict:
                position = max(begun, copied)
            else:
                lane.rest = p[position:n]
                if lane.holding:
                    lane.rest = lane.kept[:lane.kept_length] + lane.rest
            self._give_up(lane, fault, &packet, now)
        return out.passed(data if position == n else None, p, copied, position)

    cdef inline Fault _in_turn(self, Lane lane, int kind) noexcept:
        """Whether this side may send such a packet now (sections 3.1 and 3.2)."""
        if self.state == AWAITS_CONNECT:
            if lane.downstream:
                return SOUND if kind == CONNECT else NOT_CONNECT
            # A server may refuse what it has not wholly read.
            if self.down.kept_length == 0:
                return NOT_CONNECT
        elif kind == CONNECT and lane.downstream:
            return SECOND_CONNECT
        return NOT_THIS_SIDES if lane.foreign & (1 << kind) else SOUND

    cdef inline bint _changeable(self, Packet* packet) noexcept:
        return (
            packet.type == PUBLISH and self.version == 5 and not packet.cut and not self.observe and not self.unchanging
        )

    cdef _write(self, Lane lane, const unsigned char* f, Packet* packet, Assembly out):
        cdef const char* traceparent = PyBytes_AS_STRING(lane.traceparent)
        cdef Py_ssize_t behind = lane.place + TRACEPARENT_LENGTH
        if lane.place < 0:
            write_publish(out, f, packet, traceparent)
        else:
            out.add(f, lane.place)
            out.add(traceparent, TRACEPARENT_LENGTH)
            out.add(f + behind, packet.head - behind)
        lane.traceparent = None

    cdef Fault _read(self, Lane lane, const unsigned char* f, Packet* packet, bint changeable, double now) except *:
        """A packet whose beginning is all here, at ``f``: what it begins, continues or ends."""
        cdef int kind = packet.type
        if kind == PUBLISH:
            return self._read_publish(lane, f, packet, changeable, now)
        if kind == PUBACK or kind == PUBREC or kind == PUBREL or kind == PUBCOMP:
            return self._read_acknowledgement(lane, f, packet, now)
        if kind == PINGREQ:
            self._read_pingreq(lane, packet)
        elif kind == PINGRESP:
            self._read_pingresp(lane)
        elif kind == SUBSCRIBE or kind == UNSUBSCRIBE:
            return self._read_filters(lane, f, packet, now)
        elif kind == SUBACK or kind == UNSUBACK:
            return self._read_grants(lane, f, packet)
        elif kind == CONNECT:
            return self._read_connect(lane, f, packet)
        elif kind == CONNACK:
            return self._read_connack(lane, f, packet, now)
        elif kind == DISCONNECT:
            return self._read_disconnect(lane, f, packet, now)
        else:
            return self._read_auth(lane, f, packet)
        return SOUND

    # -- the session ---------------------------------------------------------------------------------------

    cdef Fault _read_connect(self, Lane lane, const unsigned char* f, Packet* packet) except *:
        cdef Connect connect
        cdef Exchange exchange
        cdef MqttPacket details
        cdef Fault fault = read_connect(f, packet, &connect)
        self.version = connect.version
        if fault != SOUND:
            return fault
        self.state = CONNECTING
        if connect.client_id.length:
            self.client_id = _cut(f, &connect.client_id)
        self.connect = exchange = self._begin(lane, packet, ASKS)
        details = exchange.mqtt
        details.keep_alive = connect.keep_alive
        details.clean_start = connect.clean_start
        if connect.has_will:
            details.will_topic = self.will_topic = _cut(f, &connect.will_topic)
        if self.version == 5:
            self.up.foreign &= ~(1 << DISCONNECT)
        self.up.max_packet = connect.maximum_packet_size
        self.up.settled = not packet.cut
        return SOUND

    cdef Fault _read_connack(self, Lane lane, const unsigned char* f, Packet* packet, double now) except *:
        """Section 3.2. A server that does not know version 5 answers it in the form of 3.1.1, without properties."""
        cdef Py_ssize_t at = packet.start + 2
        cdef Exchange exchange = self.connect, auth
        cdef Properties properties
        cdef Fault fault
        cdef bint in_5 = self.version == 5 and packet.size > at
        cdef int reason, keep_alive
        cdef list names
        if packet.head < at:
            return OVERRUN
        reason = f[at - 1]
        names = NAMES if in_5 or reason >= REFUSES else CONNACK_NAMES
        properties.client_id.length = properties.reason_string.length = properties.server_keep_alive = -1
        properties.maximum_packet_size = 0
        if in_5:
            fault = read_properties(f, &at, packet.head, CONNACK, packet.cut, &properties)
            if fault != SOUND:
                return fault
        if exchange is None:
            return SOUND
        self.connect = None
        if properties.client_id.length > 0:
            self.client_id = exchange.mqtt.client_id = _cut(f, &properties.client_id)
        if self.version > 3:
            exchange.mqtt.session_present = f[packet.start] & 1
        self._answer(lane, exchange, ANSWERS)
        self._say(exchange, reason, names, f, &properties.reason_string)
        exchange.failed = reason != 0 if not in_5 else reason >= REFUSES
        auth = self.down.auth
        if auth is not None:
            self._say(auth, reason, names, f, &properties.reason_string)
            auth.failed = exchange.failed
            auth.response_complete = True
            auth.first_byte = lane.began
            self._finish(auth, COMPLETE, now)
        auth = self.up.auth
        if auth is not None:
            # The server did not wait for what it had asked.
            self._finish(auth, COMPLETE, now)
        self.down.auth = self.up.auth = None
        if exchange.failed:
            self.state = DISCONNECTED
            # What was sent right behind CONNECT is refused with it.
            self.refused = True
            for exchange in self._in_flight():
                if exchange is lane.exchange or exchange.by_upstream:
                    continue
                self._say(exchange, reason, names, f, &properties.reason_string)
                exchange.failed = exchange.response_complete = True
                exchange.first_byte = max(lane.began, exchange.started)
                if exchange is self.down.exchange:
                    self.down.role = SAYS  # it ends with its last byte
                else:
                    self._finish(exchange, COMPLETE, now)
            self.down.asked = self.oldest_ping = self.newest_ping = None
            return SOUND
        self.state = ESTABLISHED
        self.down.max_packet = properties.maximum_packet_size
        self.down.settled = not packet.cut
        keep_alive = properties.server_keep_alive
        self.keep_alive = exchange.mqtt.keep_alive if keep_alive < 0 else keep_alive
        # Clients ping when they were let in, not before.
        self.heard = now
        if self.keep_alive and not self.downstream_closed:
            self.silent_after = now + GRACE * self.keep_alive
        return SOUND

    cdef Fault _read_disconnect(self, Lane lane, const unsigned char* f, Packet* packet, double now) except *:
        cdef Properties properties
        cdef Exchange exchange, auth = lane.other.auth
        cdef int reason
        cdef Fault fault = read_answer(f, packet, self.version, &reason, &properties)
        if fault != SOUND or self.state == DISCONNECTED:
            return fault
        exchange = self._begin(lane, packet, SAYS)
        if reason >= 0:
            self._say(exchange, reason, DISCONNECT_NAMES, f, &properties.reason_string)
            if auth is not None:
                self._say(auth, reason, DISCONNECT_NAMES, f, &properties.reason_string)
                auth.first_byte = lane.began
                auth.response_complete = True
                lane.other.auth = None
                self._finish(auth, COMPLETE, now)
        if (
            reason == KEEP_ALIVE_TIMEOUT and not lane.downstream and self.keep_alive and not self.missed
            and self._silence(now) > self.keep_alive
        ):
            # The server speaks of what the client did not do.
            exchange.end = KEEPALIVE_MISSED
            exchange.mqtt.keep_alive = self.keep_alive
            exchange.mqtt.silence = self._silence(now)
        self.state = DISCONNECTED
        self.keep_alive = 0
        self.silent_after = NEVER
        return SOUND

    cdef Fault _read_auth(self, Lane lane, const unsigned char* f, Packet* packet) except *:
        """Section 3.15: one side asks, the other answers, until CONNACK or DISCONNECT, or success of a later one."""
        cdef Properties properties
        cdef Exchange exchange = lane.other.auth
        cdef int reason
        cdef Fault fault = read_answer(f, packet, self.version, &reason, &properties)
        if fault != SOUND:
            return fault
        if exchange is not None:
            lane.other.auth = None
            self._answer(lane, exchange, ANSWERS)
            if reason >= 0:
                self._say(exchange, reason, NAMES, f, &properties.reason_string)
        elif lane.auth is None and self._room(lane):
            lane.auth = self._begin(lane, packet, ASKS)
        return SOUND

    cdef _read_pingreq(self, Lane lane, Packet* packet):
        cdef Exchange exchange
        if not self._room(lane):
            return
        exchange = self._begin(lane, packet, ASKS)
        if self.oldest_ping is None:
            self.oldest_ping = exchange
        else:
            self.newest_ping.following = exchange
        self.newest_ping = exchange

    cdef _read_pingresp(self, Lane lane):
        cdef Exchange exchange = self.oldest_ping
        if exchange is None:
            return
        self.oldest_ping = exchange.following
        if self.oldest_ping is None:
            self.newest_ping = None
        exchange.following = None
        self._answer(lane, exchange, ANSWERS)

    # -- PUBLISH -------------------------------------------------------------------------------------------

    cdef Fault _read_publish(
        self, Lane lane, const unsigned char* f, Packet* packet, bint changeable, double now
    ) except *:
        cdef Properties properties
        cdef Exchange exchange
        cdef MqttPacket details
        cdef bytes target
        cdef Py_ssize_t at
        cdef int qos = (packet.flags >> 1) & 3
        cdef Fault fault
        if packet.cut:
            # What aliases it sets is not known, so none is known any more.
            lane.aliases = None
            lane.alias_octets = 0
        if packet.topic.at + packet.topic.length + (2 if qos else 0) > packet.head:
            return SOUND  # a topic of nearly 64 KiB: more than is looked at
        if qos and packet.packet_id == 0:
            return NO_PACKET_ID
        if not well_formed(f + packet.topic.at, packet.topic.length):
            return NOT_UTF8
        properties.topic_alias = 0
        if self.version == 5:
            at = packet.properties
            if at:
                fault = read_properties(f, &at, packet.head, PUBLISH, packet.cut, &properties)
                if fault != SOUND:
                    return fault
            target = self._topic(lane, f, packet, properties.topic_alias)
        else:
            target = _cut(f, &packet.topic)
        if qos:
            exchange = None if lane.asked is None else lane.asked.get(packet.packet_id)
            if exchange is not None and packet.flags & DUPLICATE and exchange.method is _PUBLISH:
                exchange.mqtt.duplicate = True
                lane.exchange = exchange
                lane.role = ASKS_AGAIN
                if changeable:
                    self._trace_again(lane, f, packet, &properties, exchange)
                return SOUND
            if not self._room(lane):
                return SOUND
            exchange = self._begin(lane, packet, ASKS)
            self._enter(lane, exchange, now)
        else:
            if self.refused:
                return SOUND
            if len(self.finished) >= MAX_AT_ONCE:
                self._tell_crossed("at_once", lane)
                return SOUND
            exchange = self._begin(lane, packet, SAYS)
        exchange.target = target
        details = exchange.mqtt
        details.qos = qos
        details.retain = packet.flags & RETAIN
        details.duplicate = packet.flags & DUPLICATE
        if self.version == 5 and packet.properties:
            self._trace(lane, f, packet, &properties, exchange, changeable)
        return SOUND

    cdef bytes _topic(self, Lane lane, const unsigned char* f, Packet* packet, int alias):
        """The topic, said or meant by its alias (section 3.3.2.3.4); None where the alias was not kept."""
        cdef bytes topic
        if packet.topic.length:
            topic = _cut(f, &packet.topic)
            if alias:
                self._set_alias(lane, alias, topic)
            return topic
        if alias == 0:
            return b""
        return None if lane.aliases is None else lane.aliases.get(alias)

    cdef _set_alias(self, Lane lane, int alias, bytes topic):
        cdef bytes before
        if lane.aliases is None:
            lane.aliases = {}
        before = lane.aliases.pop(alias, None)
        if before is not None:
            lane.alias_octets -= len(before)
        if len(lane.aliases) < MAX_ALIASES and lane.alias_octets + len(topic) <= MAX_ALIAS_OCTETS:
            lane.aliases[alias] = topic
            lane.alias_octets += len(topic)
        elif not lane.alias_exceeded:
            lane.alias_exceeded = True
            self.exceeded.append(("topic_alias", "downstream" if lane.downstream else "upstream"))
            self.signals |= EXCEEDED

    cdef _trace(
        self, Lane lane, const unsigned char* f, Packet* packet, Properties* properties, Exchange exchange,
        bint changeable
    ):
        """Continue the trace that the packet is part of, or begin one. What becomes of it: the module's text."""
        cdef TraceContext context
        cdef Text* came = &properties.traceparent
        cdef Py_ssize_t size
        if properties.traceparents == 1:
            context = continue_trace(self.ids, [f[came.at:came.at + came.length]], [], {})
            if not context.in_place:
                return
            exchange.trace_id = context.trace_id
            exchange.parent_id = context.parent_id
            # One of a later version may be longer than what would take its place.
            if context.span_id is not None and changeable and came.length == TRACEPARENT_LENGTH:
                exchange.span_id = context.span_id
                exchange.sampled = context.sampled
                lane.traceparent = context.traceparent
                lane.place = came.at
        elif properties.traceparents == 0 and properties.tracestates == 0 and changeable and lane.settled:
            size = grown(packet)
            if size < 0 or lane.max_packet and size > lane.max_packet:
                return
            context = new_trace(self.ids)
            exchange.trace_id = context.trace_id
            exchange.span_id = context.span_id
            exchange.sampled = context.sampled
            lane.traceparent = context.traceparent
            lane.place = -1

    cdef _trace_again(
        self, Lane lane, const unsigned char* f, Packet* packet, Properties* properties, Exchange exchange
    ):
        """A packet that is sent again says what it said the first time."""
        cdef Text* came = &properties.traceparent
        cdef Py_ssize_t size
        cdef bytes value
        if exchange.span_id is None:
            return
        if exchange.parent_id is not None:
            value = f[came.at:came.at + came.length] if properties.traceparents == 1 else b""
            if len(value) == TRACEPARENT_LENGTH and value[3:35] == exchange.trace_id:
                lane.traceparent = b"00" + value[2:36] + exchange.span_id + value[52:]
                lane.place = came.at
        elif properties.traceparents == 0 and properties.tracestates == 0:
            size = grown(packet)
            if size >= 0 and not (lane.max_packet and size > lane.max_packet):
                lane.traceparent = b"00-%b-%b-%b" % (
                    exchange.trace_id, exchange.span_id, b"01" if exchange.sampled else b"00"
                )
                lane.place = -1

    cdef Fault _read_acknowledgement(self, Lane lane, const unsigned char* f, Packet* packet, double now) except *:
        """Sections 3.4 to 3.7. One that answers nothing is of a session that began on another connection."""
        cdef Properties properties
        cdef Exchange exchange
        cdef int reason, qos, kind = packet.type
        cdef Fault fault = read_answer(f, packet, self.version, &reason, &properties)
        if fault != SOUND:
            return fault
        if kind == PUBREL:
            exchange = None if lane.asked is None else lane.asked.get(packet.packet_id)
            if exchange is not None:
                if exchange.method is _PUBREL or exchange.mqtt.qos == QOS_2:
                    lane.exchange = exchange
                    lane.role = ASKS_AGAIN
            elif self._room(lane):
                exchange = self._begin(lane, packet, ASKS)
                exchange.mqtt.qos = QOS_2
                self._enter(lane, exchange, now)
            return SOUND
        exchange = self._asked(lane, packet)
        if exchange is None:
            return SOUND
        qos = exchange.mqtt.qos
        if kind == PUBREC:
            if qos != QOS_2 or exchange.method is not _PUBLISH:
                return SOUND
            self._answer(lane, exchange, ANSWERS if reason >= REFUSES else ACKNOWLEDGES)
        elif qos != (QOS_1 if kind == PUBACK else QOS_2):
            return SOUND
        else:
            self._answer(lane, exchange, ANSWERS)
        if lane.role == ANSWERS:
            del lane.other.asked[packet.packet_id]
        # That nobody was subscribed is said by PUBREC alone.
        if reason > 0 or reason == 0 and exchange.mqtt.reason < 0:
            self._say(exchange, reason, NAMES, f, &properties.reason_string)
        return SOUND

    # -- SUBSCRIBE, UNSUBSCRIBE ----------------------------------------------------------------------------

    cdef Fault _read_filters(self, Lane lane, const unsigned char* f, Packet* packet, double now) except *:
        cdef Exchange exchange
        cdef Text first
        cdef int count
        cdef Fault fault = read_filters(f, packet, self.version, &first, &count)
        if fault != SOUND:
            return fault
        exchange = None if lane.asked is None else lane.asked.get(packet.packet_id)
        if exchange is not None and packet.flags & DUPLICATE and exchange.method is METHODS[packet.type]:
            # MQTT 3.1 alone, where these are sent again (its section 4.2).
            exchange.mqtt.duplicate = True
            lane.exchange = exchange
            lane.role = ASKS_AGAIN
            return SOUND
        if not self._room(lane):
            return SOUND
        exchange = self._begin(lane, packet, ASKS)
        exchange.target = _cut(f, &first)
        exchange.mqtt.filters = count
        self._enter(lane, exchange, now)
        return SOUND

    cdef Fault _read_grants(self, Lane lane, const unsigned char* f, Packet* packet) except *:
        cdef Properties properties
        cdef Exchange exchange
        cdef int worst, refused
        cdef bint subscribed = packet.type == SUBACK
        cdef Fault fault = read_grants(f, packet, self.version, &worst, &refused, &properties)
        if fault != SOUND:
            return fault
        exchange = self._asked(lane, packet)
        if exchange is None or exchange.method is not METHODS[SUBSCRIBE if subscribed else UNSUBSCRIBE]:
            return SOUND
        del lane.other.asked[packet.packet_id]
        self._answer(lane, exchange, ANSWERS)
        exchange.mqtt.filters_refused = refused
        if worst >= 0:
            self._say(
                exchange, worst, (SUBACK_5_NAMES if self.version == 5 else SUBACK_NAMES) if subscribed else NAMES, f,
                &properties.reason_string,
            )
        return SOUND

    # -- exchanges -----------------------------------------------------------------------------------------

    cdef bint _room(self, Lane lane) except -1:
        """Whether one more that awaits an answer can be followed; what is beyond goes on unobserved."""
        if self.refused:
            return False  # nobody listens any more
        if self.in_flight < MAX_IN_FLIGHT:
            return True
        self._tell_crossed("in_flight", lane)
        return False

    cdef _tell_crossed(self, str limit, Lane lane):
        """Once for each time that a limit is gone over."""
        if not self.crossed:
            self.crossed = True
            self.exceeded.append((limit, "downstream" if lane.downstream else "upstream"))
            self.signals |= EXCEEDED

    cdef Exchange _make(self, bint by_upstream, int kind, double started):
        cdef Exchange exchange = Exchange.__new__(Exchange)
        cdef MqttPacket details = MqttPacket.__new__(MqttPacket)
        exchange.protocol = MQTT
        exchange.started = started
        exchange.method = METHODS[kind]
        exchange.by_upstream = by_upstream
        exchange.mqtt = details
        details.version = self.version
        details.client_id = self.client_id
        self.in_flight += 1
        return exchange

    cdef Exchange _begin(self, Lane lane, Packet* packet, Role role):
        """The exchange that begins with the packet being read."""
        cdef Exchange exchange = self._make(not lane.downstream, packet.type, lane.began)
        exchange.mqtt.packet_id = packet.packet_id
        lane.exchange = exchange
        lane.role = role
        return exchange

    cdef Exchange _asked(self, Lane lane, Packet* packet):
        """What the other side asked under the packet identifier of the answer being read; None if nothing."""
        return None if lane.other.asked is None else lane.other.asked.get(packet.packet_id)

    cdef _enter(self, Lane lane, Exchange exchange, double now):
        """Under its packet identifier, which a sender may not use again while it waits (section 2.2.1)."""
        cdef Exchange before
        cdef int id = exchange.mqtt.packet_id
        if lane.asked is None:
            lane.asked = {}
        else:
            before = lane.asked.get(id)
            if before is not None:
                before.fault = f"packet identifier {id} was used again before it was answered"
                self._finish(before, DOWNSTREAM_FAULT if lane.downstream else UPSTREAM_FAULT, now)
        lane.asked[id] = exchange

    cdef _answer(self, Lane lane, Exchange exchange, Role role):
        """The packet being read answers ``exchange``."""
        if exchange.first_byte < 0:
            # An answer in pieces may have begun before what it answers.
            exchange.first_byte = max(lane.began, exchange.started)
        lane.exchange = exchange
        lane.role = role

    cdef _say(self, Exchange exchange, int reason, list names, const unsigned char* f, Text* reason_string):
        exchange.mqtt.reason = reason
        exchange.code = names[reason]
        exchange.failed = reason >= REFUSES
        if reason_string.length >= 0:
            exchange.mqtt.reason_string = _cut(f, reason_string)

    cdef inline _count(self, Lane lane, Py_ssize_t n):
        if lane.exchange is not None:
            if lane.role < ACKNOWLEDGES:
                lane.exchange.request_bytes += n
            else:
                lane.exchange.response_bytes += n

    cdef _packet_over(self, Lane lane, double now):
        cdef Exchange exchange = lane.exchange
        if exchange is None:
            return
        lane.exchange = None
        if lane.role == ANSWERS:
            exchange.response_complete = True
            self._finish(exchange, COMPLETE, now)
        elif lane.role == ASKS:
            exchange.request_complete = True
        elif lane.role == SAYS:
            exchange.request_complete = True
            self._finish(exchange, exchange.end, now)

    cdef _finish(self, Exchange exchange, End how, double now):
        if exchange.ended >= 0:
            return
        exchange.end = how
        exchange.ended = now
        exchange.following = None
        self.in_flight -= 1
        if self.crossed and self.in_flight <= MAX_IN_FLIGHT // 2:
            self.crossed = False
        self.finished.append(exchange)
        self.signals |= FINISHED

    cdef list _in_flight(self):
        """All that began and did not end, the oldest first."""
        cdef list found = []
        cdef Lane lane
        cdef Exchange exchange = self.oldest_ping
        while exchange is not None:
            found.append(exchange)
            exchange = exchange.following
        for lane in (self.down, self.up):
            if lane.asked is not None:
                found.extend(lane.asked.values())
            for exchange in (lane.auth, lane.exchange, self.connect):
                if exchange is not None and exchange.ended < 0 and not any(exchange is other for other in found):
                    found.append(exchange)
        found.sort(key=_STARTED)
        return found

    cdef _partial(self, Lane lane):
        """A packet of which no more will come than a part of its beginning: it was begun nevertheless."""
        cdef Exchange exchange
        cdef int kind
        if lane.kept_length == 0:
            return
        kind = lane.kept[0] >> 4
        if BEGINNING & (1 << kind) and not (kind == DISCONNECT and self.state == DISCONNECTED):
            exchange = self._make(not lane.downstream, kind, lane.began)
            exchange.request_bytes = lane.kept_length
            if kind == PUBLISH:
                exchange.mqtt.qos = (lane.kept[0] >> 1) & 3
                exchange.mqtt.retain = lane.kept[0] & RETAIN
                exchange.mqtt.duplicate = lane.kept[0] & DUPLICATE
            # Whatever was passing before is over.
            lane.exchange = exchange
        lane.forget()

    cdef _end_all(self, End how, int error, double now):
        cdef Exchange exchange
        for exchange in self._in_flight():
            exchange.error = error
            self._finish(exchange, how, now)
        self.down.asked = self.up.asked = None
        self.down.auth = self.up.auth = self.down.exchange = self.up.exchange = None
        self.connect = self.oldest_ping = self.newest_ping = None

    cdef _end_session(self, End how, int error, double now):
        """A session that no DISCONNECT ended: section 3.14.4."""
        cdef Exchange exchange
        if self.state != ESTABLISHED:
            return
        self.state = DISCONNECTED
        if (
            (how == UPSTREAM_FIN or how == UPSTREAM_RST) and self.keep_alive and not self.missed
            and self._silence(now) > self.keep_alive
        ):
            self._tell_miss(now, True)
        elif not self.missed:
            exchange = self._make(False, DISCONNECT, max(self.heard, self.heard_upstream))
            exchange.mqtt.will_topic = self.will_topic
            exchange.error = error
            self._finish(exchange, how, now)
        self.keep_alive = 0
        self.silent_after = NEVER

    # -- keep-alive ----------------------------------------------------------------------------------------

    cpdef gone_silent(self, double now):
        self.silent_after = NEVER
        if self.state != ESTABLISHED or not self.keep_alive or self.missed or self.over:
            return
        if self._silence(now) > GRACE * self.keep_alive:
            self._tell_miss(now, False)
        else:
            self.silent_after = now + GRACE * self.keep_alive - max(self._silence(now), 0)

    cdef double _silence(self, double now) noexcept:
        """For how long downstream said nothing, while somebody listened; negative where nobody does."""
        return now - max(self.heard, self.read_since)

    cdef _tell_miss(self, double now, bint ended):
        """The packet that was due by now did not come; where the session ``ended`` for it, its will is due."""
        cdef Exchange exchange = self._make(False, PINGREQ, self.heard)
        self.missed = True
        exchange.mqtt.keep_alive = self.keep_alive
        exchange.mqtt.silence = self._silence(now)
        if ended:
            exchange.mqtt.will_topic = self.will_topic
        self._finish(exchange, KEEPALIVE_MISSED, now)

    # -- ends ----------------------------------------------------------------------------------------------

    cpdef bytes downstream_eof(self, double now):
        self.downstream_closed = True
        self.silent_after = NEVER
        self.keep_alive = 0
        return self._let_go(self.down)

    cpdef bytes upstream_eof(self, double now):
        cdef bytes rest
        cdef End how = DOWNSTREAM_FIN if self.downstream_closed else UPSTREAM_FIN
        if self.over:
            return b""
        rest = self._let_go(self.up)
        self._partial(self.up)
        self._end_all(how, 0, now)
        self._end_session(how, 0, now)
        return rest

    cpdef end(self, End how, int error, double now):
        if self.over:
            return
        self._partial(self.down)
        self._partial(self.up)
        self._end_all(how, error, now)
        self._end_session(how, error, now)
        self._stop()

    cpdef dial_failed(self, int error, int status, str cause, str text, double now):
        if self.over:
            return
        self.no_upstream = error
        if self.connect is not None:
            self._unreachable(now)

    cdef _unreachable(self, double now):
        self._end_all(DIAL_FAILED, self.no_upstream, now)
        self._cut_off()

    cpdef bint awaits_head(self, double since):
        return self.down.kept_length > 0 and self.down.began < since and not self.over and not self.no_upstream

    cpdef refuse_late_head(self, double now):
        # What is told of the packet that did not come is told of the session's end too.
        self.state = DISCONNECTED
        self.end(HEAD_TIMEOUT, 0, now)
        self._cut_off()

    cpdef list running(self, double before):
        cdef Exchange exchange
        return [exchange for exchange in self._in_flight() if exchange.started < before]

    cdef _give_up(self, Lane lane, Fault fault, Packet* packet, double now):
        """What is malformed is told with its side; the rest of the connection is carried unread, or cut."""
        cdef End how = DOWNSTREAM_FAULT if lane.downstream else UPSTREAM_FAULT
        cdef Exchange exchange = self._make(not lane.downstream, packet.type, lane.began)
        exchange.request_bytes = packet.head
        exchange.fault = FAULTS[fault]
        self._finish(exchange, how, now)
        lane.forget()
        if self.strict:
            self._end_all(how, 0, now)
            self._end_session(how, 0, now)
            self._cut_off()
            return
        lane.other.rest = self._let_go(lane.other)
        self._end_all(UNREADABLE, 0, now)
        self.fallback = "not_mqtt"
        self.successor = Opaque(TCP, now)
        self.signals |= SUCCEEDED
        self.silent_after = NEVER
        self._stop()

    cdef _stop(self):
        """Nothing is read any more; and no cycle is left for the collector, which seldom runs."""
        self.over = True
        self.down.other = self.up.other = None

    cdef bytes _let_go(self, Lane lane):
        """What was held back of a packet that will not be complete."""
        if not lane.holding:
            return b""
        lane.holding = False
        return lane.kept[:lane.kept_length]

    cpdef bytes take_held_request(self):
        cdef bytes rest = self.down.rest
        self.down.rest = None
        return b"" if rest is None else rest

    cpdef bytes take_held_response(self):
        cdef bytes rest = self.up.rest
        self.up.rest = None
        return b"" if rest is None else rest

    cdef _cut_off(self):
        """MQTT has no word for it that would be ours to say: both ends see a reset."""
        self.refusal = Refusal(b"")
        self.signals |= REFUSED
        self.silent_after = NEVER
        self._stop()

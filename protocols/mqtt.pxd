from protocols.assembly cimport Assembly
from protocols.codec cimport Codec
from protocols.exchange cimport End, Exchange, MqttPacket
from protocols.mqtt_packets cimport Fault, Packet, Properties, Text
from protocols.trace_context cimport Ids

# What the packet whose bytes are passing is to its exchange.
cdef enum Role:
    ASKS            # begins it
    SAYS            # is all of it: QoS 0, DISCONNECT
    ASKS_AGAIN      # PUBREL, or PUBLISH once more
    ACKNOWLEDGES    # PUBREC
    ANSWERS         # ends it

cdef enum State:
    AWAITS_CONNECT
    CONNECTING
    ESTABLISHED
    DISCONNECTED    # or refused, or its end was told


# One direction. Of what is not needed yet nothing is made: most sessions are idle.
cdef class Lane:
    cdef bint downstream
    cdef Lane other
    cdef unsigned int foreign        # a bit for each type of packet that this side may not send

    # The beginning of a packet that is not all here yet, and how much of it is to be looked at next.
    cdef unsigned char* kept
    cdef Py_ssize_t kept_length
    cdef Py_ssize_t kept_room
    cdef Py_ssize_t need
    cdef bint holding                # it was not passed on yet
    cdef double began                # when the first byte of the newest packet came

    # The rest of a packet whose beginning was read.
    cdef unsigned int passing
    cdef Exchange exchange           # that it belongs to, if any
    cdef Role role

    cdef dict asked                  # by packet identifier: what this side asked, and was not answered
    cdef Exchange auth               # the AUTH of this side that awaits an answer
    cdef unsigned int max_packet     # what the receiver takes, 0 for no limit
    cdef bint settled                # that is known
    cdef dict aliases                # topics by alias
    cdef Py_ssize_t alias_octets
    cdef bint alias_exceeded
    cdef bytes rest                  # not passed on when the engine gave up

    # What the PUBLISH that was just read is to say instead: this traceparent, at the place of its own or as one more.
    cdef bytes traceparent
    cdef Py_ssize_t place            # -1: as one more

    cdef int keep(self, const unsigned char* p, Py_ssize_t n) except -1
    cdef forget(self)


cdef class Mqtt(Codec):
    cdef Ids ids
    cdef bint strict
    cdef bint observe
    cdef bint over
    cdef bint unchanging             # what is being read went on already
    cdef bint downstream_closed
    cdef bint crossed                # one of the limits, and that was told
    cdef bint refused                # was the CONNECT
    cdef bint missed                 # a keep-alive, and that was told
    cdef State state
    cdef int version
    cdef int keep_alive              # seconds, 0 for none
    cdef bytes client_id
    cdef bytes will_topic            # what the server sends when no DISCONNECT ends the session (section 3.1.2.5)
    cdef double heard_upstream
    cdef int no_upstream             # errno of the dial that failed, 0 if none did
    cdef Lane down
    cdef Lane up
    cdef Exchange connect            # until it is answered
    cdef Exchange oldest_ping
    cdef Exchange newest_ping

    cdef bytes _relay(self, Lane lane, bytes data, double now)
    cdef Fault _in_turn(self, Lane lane, int kind) noexcept
    cdef bint _changeable(self, Packet* packet) noexcept
    cdef _write(self, Lane lane, const unsigned char* f, Packet* packet, Assembly out)
    cdef Fault _read(self, Lane lane, const unsigned char* f, Packet* packet, bint changeable, double now) except *
    cdef Fault _read_connect(self, Lane lane, const unsigned char* f, Packet* packet) except *
    cdef Fault _read_connack(self, Lane lane, const unsigned char* f, Packet* packet, double now) except *
    cdef Fault _read_publish(
        self, Lane lane, const unsigned char* f, Packet* packet, bint changeable, double now
    ) except *
    cdef bytes _topic(self, Lane lane, const unsigned char* f, Packet* packet, int alias)
    cdef _set_alias(self, Lane lane, int alias, bytes topic)
    cdef _trace(
        self, Lane lane, const unsigned char* f, Packet* packet, Properties* properties, Exchange exchange,
        bint changeable
    )
    cdef _trace_again(
        self, Lane lane, const unsigned char* f, Packet* packet, Properties* properties, Exchange exchange
    )
    cdef Fault _read_acknowledgement(self, Lane lane, const unsigned char* f, Packet* packet, double now) except *
    cdef Fault _read_filters(self, Lane lane, const unsigned char* f, Packet* packet, double now) except *
    cdef Fault _read_grants(self, Lane lane, const unsigned char* f, Packet* packet) except *
    cdef _read_pingreq(self, Lane lane, Packet* packet)
    cdef _read_pingresp(self, Lane lane)
    cdef Fault _read_disconnect(self, Lane lane, const unsigned char* f, Packet* packet, double now) except *
    cdef Fault _read_auth(self, Lane lane, const unsigned char* f, Packet* packet) except *

    cdef bint _room(self, Lane lane) except -1
    cdef _tell_crossed(self, str limit, Lane lane)
    cdef Exchange _make(self, bint by_upstream, int kind, double started)
    cdef Exchange _begin(self, Lane lane, Packet* packet, Role role)
    cdef Exchange _asked(self, Lane lane, Packet* packet)
    cdef _enter(self, Lane lane, Exchange exchange, double now)
    cdef _answer(self, Lane lane, Exchange exchange, Role role)
    cdef _say(self, Exchange exchange, int reason, list names, const unsigned char* f, Text* reason_string)
    cdef _count(self, Lane lane, Py_ssize_t n)
    cdef _packet_over(self, Lane lane, double now)
    cdef _finish(self, Exchange exchange, End how, double now)
    cdef list _in_flight(self)
    cdef _partial(self, Lane lane)
    cdef _end_all(self, End how, int error, double now)
    cdef _end_session(self, End how, int error, double now)
    cdef double _silence(self, double now) noexcept
    cdef _tell_miss(self, double now, bint ended)
    cdef _give_up(self, Lane lane, Fault fault, Packet* packet, double now)
    cdef _stop(self)
    cdef bytes _let_go(self, Lane lane)
    cdef _unreachable(self, double now)
    cdef _cut_off(self)

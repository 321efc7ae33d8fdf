"""The control packets of MQTT 3.1, 3.1.1 and 5.0 as bytes; sections are those of MQTT 5.0 where none is named.

A packet is looked at where it lies, from its first byte to the end of what says anything about it: the whole of
most, of PUBLISH what stands before the payload. ``measure`` says how many bytes that takes, in a few steps that
each ask for more only when what came before asks for it; so a packet in however many pieces is looked at a few
times, never once per piece. Of a packet with more than 60 KiB to look at the beginning is read, and what stands
behind it is nobody's here: it is ``cut``.

Only what could be read in two ways, or not at all, is a fault. What a receiver may refuse is its own to refuse.
"""

from libc.string cimport memcmp, memcpy, memset

from protocols.assembly cimport Assembly

FAULTS = (
    "",
    "packet type 0 is reserved, or 15 before version 5: types 1 to 14 are allowed, and 15 in version 5",
    "reserved flags in the first byte: PUBREL, SUBSCRIBE and UNSUBSCRIBE have 2, all others but PUBLISH 0",
    "the reserved flag of CONNECT: it must be 0",
    "QoS 3: 0, 1 and 2 are allowed",
    "a length of more than four bytes: at most 268,435,455 is allowed",
    "a field runs over the end of its packet",
    "a string that is not UTF-8, or has the character U+0000",
    "packet identifier 0: 1 to 65,535 are allowed",
    "a property that MQTT 5 does not know",
    "a property that this packet may not have",
    "a property twice that may be there once",
    "the first packet is not CONNECT",
    "a second CONNECT: one is allowed",
    "a packet that the other side alone may send",
    "CONNECT with another protocol name than MQTT or MQIsdp",
    "CONNECT with another protocol level than 3, 4 or 5",
    "SUBSCRIBE or UNSUBSCRIBE without a topic filter: at least one is required",
)

# Section 2.2.2.2, table 2-4.
cdef enum Kind:
    UNKNOWN = 0
    BYTE
    TWO_BYTES
    FOUR_BYTES
    VARIABLE
    BINARY
    STRING
    PAIR

cdef enum:
    SUBSCRIPTION_IDENTIFIER = 11
    ASSIGNED_CLIENT_IDENTIFIER = 18
    SERVER_KEEP_ALIVE = 19
    REASON_STRING = 31
    TOPIC_ALIAS = 35
    USER_PROPERTY = 38
    MAXIMUM_PACKET_SIZE = 39
    LAST_PROPERTY = 42

cdef struct Rule:
    unsigned char kind
    unsigned short owners  # a bit for each type of packet

cdef Rule RULES[LAST_PROPERTY + 1]


cdef void _fill_rules():
    cdef int id, owner
    memset(RULES, 0, sizeof(RULES))
    answers = (CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, DISCONNECT, AUTH)
    for id, kind, owners in (
        (1, BYTE, (PUBLISH, WILL)),                           # Payload Format Indicator
        (2, FOUR_BYTES, (PUBLISH, WILL)),                     # Message Expiry Interval
        (3, STRING, (PUBLISH, WILL)),                         # Content Type
        (8, STRING, (PUBLISH, WILL)),                         # Response Topic
        (9, BINARY, (PUBLISH, WILL)),                         # Correlation Data
        (SUBSCRIPTION_IDENTIFIER, VARIABLE, (PUBLISH, SUBSCRIBE)),
        (17, FOUR_BYTES, (CONNECT, CONNACK, DISCONNECT)),     # Session Expiry Interval
        (ASSIGNED_CLIENT_IDENTIFIER, STRING, (CONNACK,)),
        (SERVER_KEEP_ALIVE, TWO_BYTES, (CONNACK,)),
        (21, STRING, (CONNECT, CONNACK, AUTH)),               # Authentication Method
        (22, BINARY, (CONNECT, CONNACK, AUTH)),               # Authentication Data
        (23, BYTE, (CONNECT,)),                               # Request Problem Information
        (24, FOUR_BYTES, (WILL,)),                            # Will Delay Interval
        (25, BYTE, (CONNECT,)),                               # Request Response Information
        (26, STRING, (CONNACK,)),                             # Response Information
        (28, STRING, (CONNACK, DISCONNECT)),                  # Server Reference
        (REASON_STRING, STRING, answers),
        (33, TWO_BYTES, (CONNECT, CONNACK)),                  # Receive Maximum
        (34, TWO_BYTES, (CONNECT, CONNACK)),                  # Topic Alias Maximum
        (TOPIC_ALIAS, TWO_BYTES, (PUBLISH,)),
        (36, BYTE, (CONNACK,)),                               # Maximum QoS
        (37, BYTE, (CONNACK,)),                               # Retain Available
        (USER_PROPERTY, PAIR, (*answers, CONNECT, PUBLISH, WILL, SUBSCRIBE, UNSUBSCRIBE)),
        (MAXIMUM_PACKET_SIZE, FOUR_BYTES, (CONNECT, CONNACK)),
        (40, BYTE, (CONNACK,)),                               # Wildcard Subscription Available
        (41, BYTE, (CONNACK,)),                               # Subscription Identifier Available
        (42, BYTE, (CONNACK,)),                               # Shared Subscription Available
    ):
        RULES[id].kind = kind
        for owner in owners:
            RULES[id].owners |= 1 << owner


_fill_rules()


# -- data types, section 1.5 -----------------------------------------------------------------------------------

cdef inline int _variable(const unsigned char* p, Py_ssize_t n, unsigned int* value) noexcept nogil:
    """A variable byte integer (section 1.5.5): how many bytes it takes, 0 if they are not all here, -1 if too many."""
    cdef int i
    value[0] = 0
    for i in range(4):
        if i >= n:
            return 0
        value[0] |= <unsigned int>(p[i] & 0x7F) << (7 * i)
        if not p[i] & 0x80:
            return i + 1
    return -1


cdef inline bint _text(const unsigned char* p, Py_ssize_t* at, Py_ssize_t end, Text* text) noexcept nogil:
    """A string or binary data (sections 1.5.4 and 1.5.6) at ``at``, which is moved behind it; False if it runs over."""
    if end - at[0] < 2:
        return False
    text.at = at[0] + 2
    text.length = u16(p + at[0])
    if text.length > end - text.at:
        return False
    at[0] = text.at + text.length
    return True


cdef bint well_formed(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    """A string, section 1.5.4: well-formed UTF-8 (RFC 3629: none too long, no surrogates) without U+0000."""
    cdef Py_ssize_t i = 0
    cdef unsigned long long eight
    cdef unsigned char c, low, high
    cdef int more
    while i < n:
        if n - i >= 8:
            memcpy(&eight, p + i, 8)
            if not (eight | ((eight - 0x0101010101010101ULL) & ~eight)) & 0x8080808080808080ULL:
                i += 8
                continue
        c = p[i]
        i += 1
        if 0 < c < 0x80:
            continue
        low = 0x80
        high = 0xBF
        if 0xC2 <= c <= 0xDF:
            more = 1
        elif 0xE0 <= c <= 0xEF:
            more = 2
            if c == 0xE0:
                low = 0xA0
            elif c == 0xED:
                high = 0x9F
        elif 0xF0 <= c <= 0xF4:
            more = 3
            if c == 0xF0:
                low = 0x90
            elif c == 0xF4:
                high = 0x8F
        else:
            return False
        while more:
            if i >= n or not low <= p[i] <= high:
                return False
            low = 0x80
            high = 0xBF
            i += 1
            more -= 1
    return True


def is_utf8(bytes text):
    return well_formed(<const unsigned char*><const char*>text, len(text))


cdef inline Fault _string(const unsigned char* p, Py_ssize_t* at, Py_ssize_t end, Text* text) noexcept nogil:
    if not _text(p, at, end, text):
        return OVERRUN
    return SOUND if well_formed(p + text.at, text.length) else NOT_UTF8


# -- how much of a packet is to be looked at -------------------------------------------------------------------

cdef inline Fault _check_flags(Packet* packet, int version) noexcept nogil:
    """Section 2.1.3. MQTT 3.1 gives meaning to all flags of every packet, so in it none is reserved."""
    if packet.type == PUBLISH:
        return QOS_3 if (packet.flags >> 1) & 3 == 3 else SOUND
    if packet.type == WILL or packet.type == AUTH and version and version < 5:
        return RESERVED_TYPE
    if version == 3 or packet.type == CONNECT and version == 0:
        return SOUND
    if packet.type == PUBREL or packet.type == SUBSCRIBE or packet.type == UNSUBSCRIBE:
        return SOUND if packet.flags == 2 else RESERVED_FLAGS
    return SOUND if packet.flags == 0 else RESERVED_FLAGS


cdef Py_ssize_t measure(
    const unsigned char* p, Py_ssize_t n, int version, Packet* packet, Fault* fault
) noexcept nogil:
    """How many bytes of the packet at ``p`` it takes to go on; when that is no more than the ``n`` that are here,
    its beginning is complete and ``packet`` says where what is. ``n`` is at least 1. With a ``fault`` the answer
    means nothing; ``packet.head`` is always how many bytes were looked at.
    """
    cdef unsigned int remaining
    cdef int used
    cdef Py_ssize_t at
    # Never by what merely happens to be here already: that would depend on how the bytes were cut.
    n = min(n, <Py_ssize_t>MAX_HEAD)
    memset(packet, 0, sizeof(Packet))
    packet.type = p[0] >> 4
    packet.flags = p[0] & 0x0F
    packet.head = 1
    fault[0] = _check_flags(packet, version)
    if fault[0] != SOUND:
        return 0
    used = _variable(p + 1, n - 1, &remaining)
    if used <= 0:
        if used < 0:
            packet.head = 5
            fault[0] = REMAINING_LENGTH
        return min(n + 1, <Py_ssize_t>5)
    packet.start = packet.head = 1 + used
    packet.size = packet.start + remaining
    if packet.type == PUBLISH:
        at = _measure_publish(p, n, version, packet, fault)
    else:
        at = packet.size
    if at > MAX_HEAD:
        packet.cut = True
        at = MAX_HEAD
    packet.head = at
    return at


cdef Py_ssize_t _measure_publish(
    const unsigned char* p, Py_ssize_t n, int version, Packet* packet, Fault* fault
) noexcept nogil:
    """The same of PUBLISH (section 3.3.2): what stands before its payload."""
    cdef Py_ssize_t at = packet.start + 2
    cdef unsigned int length
    cdef int used
    if at > packet.size:
        fault[0] = OVERRUN
        return packet.size
    if at > n:
        return at
    packet.topic.at = at
    packet.topic.length = u16(p + packet.start)
    at += packet.topic.length
    if packet.flags & 6:
        at += 2
    if at > packet.size:
        fault[0] = OVERRUN
        return packet.start + 2
    if version != 5:
        if packet.flags & 6 and at <= n:
            packet.packet_id = u16(p + at - 2)
        return at
    if at >= packet.size:
        fault[0] = OVERRUN
        return packet.start + 2
    if packet.flags & 6 and at <= n:
        packet.packet_id = u16(p + at - 2)
    if at >= n:
        return at + 1
    used = _variable(p + at, min(n, packet.size) - at, &length)
    if used < 0:
        fault[0] = REMAINING_LENGTH
        return at + 4
    if used == 0:
        if n >= packet.size:
            fault[0] = OVERRUN
            return packet.size
        return n + 1
    packet.properties = at
    packet.fields = at + used
    if length > packet.size - packet.fields:
        fault[0] = OVERRUN
        return packet.fields
    return packet.fields + length


# -- what a packet says ----------------------------------------------------------------------------------------

cdef inline bint _is(const unsigned char* p, Text* text, const char* name, Py_ssize_t length) noexcept nogil:
    return text.length == length and memcmp(p + text.at, name, length) == 0


cdef Fault read_properties(
    const unsigned char* p, Py_ssize_t* at, Py_ssize_t end, Type owner, bint cut, Properties* found
) noexcept nogil:
    """Section 2.2.2: the properties of ``owner`` from ``at``, where their length stands, which is moved behind
    them. Those of a packet that was ``cut`` are read as far as they go.
    """
    cdef unsigned int length
    cdef int used, id
    cdef unsigned int number
    cdef Rule* rule
    cdef Text text, name
    cdef bint whole = True
    cdef Fault fault
    text.at = text.length = name.at = name.length = 0
    memset(found, 0, sizeof(Properties))
    found.client_id.length = found.reason_string.length = found.server_keep_alive = -1
    used = _variable(p + at[0], end - at[0], &length)
    if used <= 0:
        return REMAINING_LENGTH if used < 0 else SOUND if cut else OVERRUN
    at[0] += used
    if length > end - at[0]:
        if not cut:
            return OVERRUN
        whole = False
    else:
        end = at[0] + length
    while at[0] < end:
        id = p[at[0]]
        if id > LAST_PROPERTY or RULES[id].kind == UNKNOWN:
            return UNKNOWN_PROPERTY
        rule = &RULES[id]
        if not rule.owners & (1 << owner):
            return MISPLACED_PROPERTY
        if found.seen & (1ULL << id) and id != USER_PROPERTY and not (
            id == SUBSCRIPTION_IDENTIFIER and owner == PUBLISH
        ):
            return PROPERTY_TWICE
        found.seen |= 1ULL << id
        at[0] += 1
        number = 0
        fault = SOUND
        if rule.kind == BYTE:
            at[0] += 1
        elif rule.kind == TWO_BYTES:
            at[0] += 2
            if at[0] <= end:
                number = u16(p + at[0] - 2)
        elif rule.kind == FOUR_BYTES:
            at[0] += 4
            if at[0] <= end:
                number = u32(p + at[0] - 4)
        elif rule.kind == VARIABLE:
            used = _variable(p + at[0], end - at[0], &number)
            if used < 0:
                return REMAINING_LENGTH
            if used == 0:
                fault = OVERRUN
            at[0] += used
        elif rule.kind == BINARY:
            if not _text(p, at, end, &text):
                fault = OVERRUN
        elif rule.kind == STRING:
            fault = _string(p, at, end, &text)
        else:
            fault = _string(p, at, end, &name)
            if fault == SOUND:
                fault = _string(p, at, end, &text)
        if at[0] > end:
            fault = OVERRUN
        if fault == OVERRUN and not whole:
            break
        if fault != SOUND:
            return fault
        if id == USER_PROPERTY:
            if _is(p, &name, b"traceparent", 11):
                found.traceparents += 1
                found.traceparent = text
            elif _is(p, &name, b"tracestate", 10):
                found.tracestates += 1
        elif id == TOPIC_ALIAS:
            found.topic_alias = number
        elif id == SERVER_KEEP_ALIVE:
            found.server_keep_alive = number
        elif id == MAXIMUM_PACKET_SIZE:
            found.maximum_packet_size = number
        elif id == ASSIGNED_CLIENT_IDENTIFIER:
            found.client_id = text
        elif id == REASON_STRING:
            found.reason_string = text
    at[0] = end
    return SOUND


cdef inline Fault _unless_cut(Fault fault, Packet* packet) noexcept nogil:
    return SOUND if fault == OVERRUN and packet.cut else fault


cdef Fault read_connect(const unsigned char* p, Packet* packet, Connect* connect) noexcept nogil:
    """Section 3.1. ``connect.version`` is set as soon as it is known, whatever is wrong behind it."""
    memset(connect, 0, sizeof(Connect))
    return _unless_cut(_read_connect(p, packet, connect), packet)


cdef Fault _read_connect(const unsigned char* p, Packet* packet, Connect* connect) noexcept nogil:
    cdef Py_ssize_t at = packet.start, end = packet.head
    cdef Text text
    cdef Properties properties
    cdef int flags, i
    cdef Fault fault
    if not _text(p, &at, end, &text):
        return OVERRUN
    if not _is(p, &text, b"MQTT", 4) and not _is(p, &text, b"MQIsdp", 6):
        return UNKNOWN_NAME
    if end - at < 4:
        return OVERRUN
    # The bridges of mosquitto set the highest bit.
    connect.version = p[at] & 0x7F
    if not 3 <= connect.version <= 5:
        connect.version = 0
        return UNKNOWN_LEVEL
    flags = p[at + 1]
    if connect.version > 3 and packet.flags:
        return RESERVED_FLAGS
    if connect.version > 3 and flags & 1:
        return CONNECT_FLAG
    if (flags >> 3) & 3 == 3:
        return QOS_3
    connect.clean_start = flags & 2
    connect.has_will = flags & 4
    connect.keep_alive = u16(p + at + 2)
    at += 4
    if connect.version == 5:
        fault = read_properties(p, &at, end, CONNECT, packet.cut, &properties)
        if fault != SOUND:
            return fault
        connect.maximum_packet_size = properties.maximum_packet_size
    fault = _string(p, &at, end, &connect.client_id)
    if fault != SOUND:
        connect.client_id.length = 0
        return fault
    if connect.has_will:
        if connect.version == 5:
            fault = read_properties(p, &at, end, WILL, packet.cut, &properties)
            if fault != SOUND:
                return fault
        fault = _string(p, &at, end, &connect.will_topic)
        if fault != SOUND:
            connect.will_topic.length = 0
            return fault
        if not _text(p, &at, end, &text):
            return OVERRUN
    if flags & 0x80:
        # MQTT 3.1 section 3.1: there the remaining length goes before the flags, and the fields may be missing.
        if connect.version == 3 and at == end:
            return SOUND
        fault = _string(p, &at, end, &text)
        if fault != SOUND:
            return fault
    if flags & 0x40:
        if connect.version == 3 and at == end:
            return SOUND
        if not _text(p, &at, end, &text):
            return OVERRUN
    return SOUND


cdef inline Fault _packet_id(const unsigned char* p, Packet* packet, Py_ssize_t* at) noexcept nogil:
    """Section 2.2.1."""
    if packet.head - at[0] < 2:
        return OVERRUN
    packet.packet_id = u16(p + at[0])
    at[0] += 2
    return SOUND if packet.packet_id else NO_PACKET_ID


cdef Fault read_filters(
    const unsigned char* p, Packet* packet, int version, Text* first, int* count
) noexcept nogil:
    """Sections 3.8 and 3.10: the first topic filter of SUBSCRIBE or UNSUBSCRIBE, and how many there are."""
    cdef Py_ssize_t at = packet.start, end = packet.head
    cdef Text text
    cdef Properties properties
    cdef Fault fault = _packet_id(p, packet, &at)
    first.at = first.length = count[0] = 0
    if fault == SOUND and version == 5:
        fault = read_properties(p, &at, end, <Type>packet.type, packet.cut, &properties)
    while fault == SOUND and at < end:
        fault = _string(p, &at, end, &text)
        if fault == SOUND and packet.type == SUBSCRIBE:
            at += 1
            if at > end:
                fault = OVERRUN
            elif (p[at - 1] & 3) == 3:
                fault = QOS_3
        if fault == SOUND:
            if count[0] == 0:
                first[0] = text
            count[0] += 1
    if fault == SOUND and count[0] == 0 and not packet.cut:
        return NO_FILTER
    return _unless_cut(fault, packet)


cdef Fault read_answer(
    const unsigned char* p, Packet* packet, int version, int* reason, Properties* properties
) noexcept nogil:
    """PUBACK, PUBREC, PUBREL, PUBCOMP (section 3.4), and DISCONNECT and AUTH (3.14), which have no packet identifier.

    In version 5 a reason code left out is 0, and so is the length of properties left out.
    """
    cdef Py_ssize_t at = packet.start
    cdef Fault fault = SOUND
    reason[0] = -1
    memset(properties, 0, sizeof(Properties))
    properties.reason_string.length = -1
    if packet.type != DISCONNECT and packet.type != AUTH:
        fault = _packet_id(p, packet, &at)
    if fault != SOUND or version != 5:
        return fault
    reason[0] = 0
    if at < packet.head:
        reason[0] = p[at]
        at += 1
    if at < packet.head:
        fault = read_properties(p, &at, packet.head, <Type>packet.type, packet.cut, properties)
    return _unless_cut(fault, packet)


cdef Fault read_grants(
    const unsigned char* p, Packet* packet, int version, int* worst, int* refused, Properties* properties
) noexcept nogil:
    """SUBACK and UNSUBACK (sections 3.9 and 3.11): the highest of their codes, and how many of them refuse."""
    cdef Py_ssize_t at = packet.start
    cdef Fault fault = _packet_id(p, packet, &at)
    worst[0] = -1
    refused[0] = 0
    memset(properties, 0, sizeof(Properties))
    properties.reason_string.length = -1
    if fault == SOUND and version == 5:
        fault = read_properties(p, &at, packet.head, <Type>packet.type, packet.cut, properties)
    if fault != SOUND:
        return _unless_cut(fault, packet)
    if packet.type == UNSUBACK and version != 5:
        return SOUND
    while at < packet.head:
        worst[0] = max(worst[0], <int>p[at])
        refused[0] += p[at] >= 0x80
        at += 1
    return SOUND


# -- PUBLISH with one property more ----------------------------------------------------------------------------

cdef inline int _width(Py_ssize_t value) noexcept nogil:
    return 1 if value < 128 else 2 if value < 16384 else 3 if value < 2097152 else 4


cdef inline int _write_variable(unsigned char* p, Py_ssize_t value) noexcept nogil:
    cdef int i = 0
    while value >= 128:
        p[i] = (value & 0x7F) | 0x80
        value >>= 7
        i += 1
    p[i] = value
    return i + 1


cdef inline Py_ssize_t _grown_remaining(Packet* packet) noexcept nogil:
    cdef Py_ssize_t length = packet.head - packet.fields + OWN_PROPERTY
    return packet.size - packet.start + OWN_PROPERTY + _width(length) - (packet.fields - packet.properties)


cdef Py_ssize_t grown(Packet* packet) noexcept nogil:
    """What the packet's size becomes with a traceparent added, -1 if there can be none so large."""
    cdef Py_ssize_t remaining = _grown_remaining(packet)
    return -1 if remaining > MOST_REMAINING else 1 + _width(remaining) + remaining


cdef int write_publish(Assembly out, const unsigned char* p, Packet* packet, const char* traceparent) except -1:
    """The beginning of PUBLISH, up to its payload, with a user property behind the others."""
    cdef unsigned char number[8]
    out.add(p, 1)
    out.add(number, _write_variable(number, _grown_remaining(packet)))
    out.add(p + packet.start, packet.properties - packet.start)
    out.add(number, _write_variable(number, packet.head - packet.fields + OWN_PROPERTY))
    out.add(p + packet.fields, packet.head - packet.fields)
    out.add(b"\x26\x00\x0btraceparent\x00\x37", OWN_PROPERTY - TRACEPARENT_LENGTH)
    return out.add(traceparent, TRACEPARENT_LENGTH)

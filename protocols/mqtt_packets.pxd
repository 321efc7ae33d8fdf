from protocols.assembly cimport Assembly

# MQTT 5.0 section 2.1.2. WILL is no packet: properties of the will stand in CONNECT under their own rules.
cdef enum Type:
    WILL = 0
    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15

cdef enum:
    RETAIN = 0x1
    DUPLICATE = 0x8
    MOST_REMAINING = 268435455        # section 1.5.5
    # What is looked at of one packet, and held of one that may be changed (transparency.md).
    MAX_HEAD = 60 * 1024
    MAX_TEXT = 1024                   # what is kept of a topic, a filter, a client identifier, a reason string
    TRACEPARENT_LENGTH = 55
    OWN_PROPERTY = 1 + 2 + 11 + 2 + TRACEPARENT_LENGTH

# In the order of FAULTS.
cdef enum Fault:
    SOUND
    RESERVED_TYPE
    RESERVED_FLAGS
    CONNECT_FLAG
    QOS_3
    REMAINING_LENGTH
    OVERRUN
    NOT_UTF8
    NO_PACKET_ID
    UNKNOWN_PROPERTY
    MISPLACED_PROPERTY
    PROPERTY_TWICE
    NOT_CONNECT
    SECOND_CONNECT
    NOT_THIS_SIDES
    UNKNOWN_NAME
    UNKNOWN_LEVEL
    NO_FILTER

# A piece of the packet, as offsets from its first byte.
cdef struct Text:
    Py_ssize_t at
    Py_ssize_t length

# One packet, as far as its beginning tells.
cdef struct Packet:
    int type
    int flags
    Py_ssize_t start                  # of the variable header
    Py_ssize_t size                   # of the whole packet
    Py_ssize_t head                   # what is to be looked at: all of it, or what is before a payload
    bint cut                          # there was more to look at than MAX_HEAD
    int packet_id
    Text topic                        # PUBLISH
    Py_ssize_t properties             # of PUBLISH in version 5: where their length stands
    Py_ssize_t fields                 # and where the first of them does

cdef struct Properties:
    unsigned long long seen
    int traceparents
    int tracestates
    Text traceparent                  # the last that came
    Text client_id                    # as the server assigned it; length -1 without one
    Text reason_string                # length -1 without one
    int topic_alias                   # 0 without one
    int server_keep_alive             # -1 without one
    unsigned int maximum_packet_size  # 0 without one

cdef struct Connect:
    int version
    bint clean_start
    int keep_alive
    bint has_will
    Text client_id
    Text will_topic
    unsigned int maximum_packet_size

cdef inline int u16(const unsigned char* p) noexcept nogil:
    return (p[0] << 8) | p[1]

cdef inline unsigned int u32(const unsigned char* p) noexcept nogil:
    return (<unsigned int>p[0] << 24) | (<unsigned int>p[1] << 16) | (<unsigned int>p[2] << 8) | p[3]

cdef bint well_formed(const unsigned char* p, Py_ssize_t n) noexcept nogil
cdef Py_ssize_t measure(
    const unsigned char* p, Py_ssize_t n, int version, Packet* packet, Fault* fault
) noexcept nogil
cdef Fault read_properties(
    const unsigned char* p, Py_ssize_t* at, Py_ssize_t end, Type owner, bint cut, Properties* found
) noexcept nogil
cdef Fault read_connect(const unsigned char* p, Packet* packet, Connect* connect) noexcept nogil
cdef Fault read_filters(
    const unsigned char* p, Packet* packet, int version, Text* first, int* count
) noexcept nogil
cdef Fault read_answer(
    const unsigned char* p, Packet* packet, int version, int* reason, Properties* properties
) noexcept nogil
cdef Fault read_grants(
    const unsigned char* p, Packet* packet, int version, int* worst, int* refused, Properties* properties
) noexcept nogil
cdef int write_publish(Assembly out, const unsigned char* p, Packet* packet, const char* traceparent) except -1
cdef Py_ssize_t grown(Packet* packet) noexcept nogil

cpdef enum Protocol:
    HTTP_1_0 = 0
    HTTP_1_1 = 1
    HTTP_2 = 2
    GRPC = 3
    THRIFT = 4
    MQTT = 5
    WEBSOCKET = 6
    TLS = 7
    TCP = 8

cpdef enum End:
    COMPLETE = 0
    DOWNSTREAM_FIN = 1
    DOWNSTREAM_RST = 2
    UPSTREAM_FIN = 3
    UPSTREAM_RST = 4
    DIAL_FAILED = 5
    DOWNSTREAM_FAULT = 6
    UPSTREAM_FAULT = 7
    UNREADABLE = 8
    LOOP = 9
    OVERLOAD = 10
    DRAINED = 11
    HEAD_TIMEOUT = 12
    INTERNAL = 13
    DOWNSTREAM_RST_STREAM = 14
    UPSTREAM_RST_STREAM = 15
    UPSTREAM_GOAWAY = 16
    KEEPALIVE_MISSED = 17
    LIMIT = 18


cdef class Rpc:
    cdef public int status
    cdef public bytes message
    cdef public double timeout
    cdef public unsigned long long request_messages
    cdef public unsigned long long response_messages
    cdef public bint compressed
    cdef public double first_message
    cdef public bint web


cdef class ThriftCall:
    cdef public str transport
    cdef public str encoding
    cdef public bint oneway
    cdef public long long sequence
    cdef public int exception_type
    cdef public int exception_field
    cdef public bytes message


cdef class MqttPacket:
    cdef public int version
    cdef public int packet_id
    cdef public int qos
    cdef public bint retain
    cdef public bint duplicate
    cdef public int reason
    cdef public bytes reason_string
    cdef public bytes client_id
    cdef public int keep_alive
    cdef public bint clean_start
    cdef public int session_present
    cdef public bytes will_topic
    cdef public int filters
    cdef public int filters_refused
    cdef public double silence


cdef class Exchange:
    cdef public Protocol protocol
    cdef public End end
    cdef public int status
    cdef public int error
    cdef public unsigned int stream
    cdef public long long stream_error
    cdef public bint sampled
    cdef public bint request_complete
    cdef public bint response_complete
    cdef public bint tunnel
    cdef public bint by_upstream
    cdef public bint failed
    cdef public bytes method
    cdef public bytes target
    cdef public bytes authority
    cdef public bytes request_id
    cdef public bytes trace_id
    cdef public bytes span_id
    cdef public bytes parent_id
    cdef public str code
    cdef public str fault
    cdef public Rpc rpc
    cdef public ThriftCall thrift
    cdef public MqttPacket mqtt
    cdef public unsigned long long request_bytes
    cdef public unsigned long long response_bytes
    cdef public double connect
    cdef public double started
    cdef public double first_byte
    cdef public double ended
    cdef public Exchange following

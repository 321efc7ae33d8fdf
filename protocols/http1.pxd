from protocols.assembly cimport Assembly
from protocols.codec cimport Codec
from protocols.exchange cimport End, Exchange
from protocols.grpc cimport ContentType, WebMessages
from protocols.http1_body cimport Body
from protocols.http1_head cimport Fault, Head, NOT_HTTP, Scan
from protocols.trace_context cimport Ids, TraceContext


cdef class Http1(Codec):
    cdef Ids ids
    cdef bint strict
    cdef bint over
    cdef bint asked  # a request was read
    cdef bint asked_h2c  # the newest request lists h2c in its Upgrade
    cdef tuple no_upstream
    cdef bytes last_authority
    cdef Exchange oldest
    cdef Exchange newest
    cdef Py_ssize_t kept

    cdef int request_state
    cdef Body request_body
    cdef WebMessages request_web  # reads the payload of a gRPC-Web request; None for all others
    cdef Scan request_scan
    cdef double request_started
    cdef bytearray held_request
    cdef Fault request_fault
    cdef bint downstream_closed
    cdef bint upstream_closed

    cdef bint response_in_body
    cdef Body response_body
    cdef WebMessages response_web
    cdef Scan response_scan
    cdef double response_started
    cdef bytearray held_response

    cdef _begin_exchange(self, const unsigned char* p, Head* head, Assembly out)
    cdef _begin_rpc(self, const unsigned char* p, Head* head, Exchange exchange, ContentType web)
    cdef TraceContext _rewrite_trace(self, const unsigned char* p, Head* head, Assembly out)
    cdef _request_complete(self, double now)
    cdef Fault _advance_web(
        self, Body* body, WebMessages web, const unsigned char* p, Py_ssize_t n, Py_ssize_t* used
    ) except? NOT_HTTP
    cdef _note_response(self, Exchange exchange, double now)
    cdef _begin_rpc_response(self, const unsigned char* p, Head* head, Exchange exchange)
    cdef _begin_response(self, Exchange exchange, const unsigned char* p, double now)
    cdef _become_http2(self, Exchange exchange, double now)
    cdef _response_complete(self, double now)
    cdef _queue(self, Exchange exchange)
    cdef _queue_partial(self)
    cdef _finish(self, Exchange exchange, End how, double now)
    cdef _pop(self, double now)
    cdef _resume(self)
    cdef _end_all(self, End how, int error, double now)
    cdef _refuse_request(self, Fault fault, double now)
    cdef _answer_request_fault(self, double now)
    cdef _refuse_response(self, Fault fault, double now)
    cdef _refuse(self, bytes text, End rest, int error, double now)
    cdef _fall_open(self, str reason, double now)
    cdef _hand_over(self, Codec successor, double now)

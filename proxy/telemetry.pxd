from protocols.assembly cimport Assembly
from protocols.exchange cimport Exchange
from proxy.cells cimport Counter, Gauge, Histogram


cdef class Connection:
    cdef readonly str id
    cdef readonly str client
    cdef readonly str server
    cdef readonly bint inbound
    cdef readonly double opened
    cdef bytes json


cdef class Outcome:
    cdef Counter requests
    cdef Histogram duration
    cdef Histogram ttfb
    cdef Counter request_bytes
    cdef Counter response_bytes


cdef class Telemetry:
    cdef readonly object cells
    cdef object log
    cdef object full
    cdef public double slow
    cdef dict outcomes
    cdef Outcome healthy
    cdef long long healthy_kind
    cdef bytes healthy_method
    cdef object ring
    cdef object remember
    cdef Assembly lines
    cdef long waiting
    cdef long to_drop
    cdef Counter dropped
    cdef double wall_offset
    cdef long second
    cdef bytes second_text

    cpdef record(self, Exchange exchange, Connection connection, object tcp)
    cpdef record_running(self, Exchange exchange, Connection connection, object tcp, double now)
    cdef Outcome _outcome(self, Exchange exchange, Connection connection, object verdict)
    cdef Outcome _resolve(self, Exchange exchange, Connection connection, object verdict)
    cdef bint _drops(self) except -1
    cdef bint _is_full(self) except -1
    cdef int _log(self, Exchange exchange, Connection connection, object verdict, object tcp, double until) except -1
    cdef int _write(self, Assembly out, Exchange exchange, Connection connection, object verdict, object tcp,
                    double until) except -1
    cdef char* _time(self, char* p, double monotonic) except NULL
    cpdef list newest(self, int n)
    cpdef flush(self)

cdef class Ids:
    cdef bytes pool
    cdef Py_ssize_t position
    cdef readonly double sample
    cdef unsigned long long threshold

    cdef const unsigned char* take(self, Py_ssize_t n) except NULL
    cdef bytes uuid(self)
    cdef bytes hexadecimal(self, Py_ssize_t digits)
    cdef bint draw(self, const unsigned char* trace_id)


cdef class TraceContext:
    cdef readonly bytes trace_id
    cdef readonly bytes parent_id
    cdef readonly bytes span_id
    cdef readonly bint sampled
    cdef readonly bytes traceparent
    cdef readonly bint in_place
    cdef readonly bint keep_tracestate
    cdef readonly dict b3

    cdef bytes becomes(self, bytes name, bytes value)


cdef bint gather(bytes name, bytes value, list traceparents, list tracestates, dict b3) except -1
cdef TraceContext new_trace(Ids ids)
cpdef TraceContext continue_trace(Ids ids, list traceparents, list tracestates, dict b3)

"""The identity of a call: request ids, W3C Trace Context and B3, read and continued.

The rules are those of the W3C recommendation (https://www.w3.org/TR/trace-context/, sections 3.2 and 3.3)
and of B3 (openzipkin/b3-propagation); where both came, W3C wins and B3 is made to agree. Here is only
what the values become: which bytes of which message that touches is the engine's business.
"""

import os
import re

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcpy

cdef enum:
    POOL = 4096
    TRACEPARENT = 55  # version "-" trace-id "-" parent-id "-" flags

cdef const char* DIGITS = b"0123456789abcdef"

# tracestate, section 3.3.1.3: key "=" value. A key is a simple one, or tenant@system; a value holds printable
# ASCII without "," and "=" and does not end with a space.
_MEMBER = re.compile(
    rb"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    rb"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_MAX_MEMBERS = 32

_B3_SINGLE = re.compile(rb"([0-9a-f]{32}|[0-9a-f]{16})-([0-9a-f]{16})(?:-([01d])(?:-([0-9a-f]{16}))?)?")
_B3_TRACE = re.compile(rb"[0-9a-f]{32}|[0-9a-f]{16}")
_B3_SPAN = re.compile(rb"[0-9a-f]{16}")


cdef class Ids:
    """Where new ids come from, and the rate at which new traces are sampled.

    Randomness is drawn from the system 4 KiB at a time. ``pool`` gives the first bytes instead, for tests.
    """

    def __init__(self, double sample = 0.0, bytes pool = None):
        if not 0.0 <= sample <= 1.0:
            raise ValueError(f"sample is {sample}: expected a ratio from 0 to 1")
        self.sample = sample
        # Compared with the last 7 bytes of the trace id, so that all proxies decide alike about one trace.
        self.threshold = <unsigned long long>(sample * (<unsigned long long>1 << 56))
        self.pool = pool or b""

    cdef const unsigned char* take(self, Py_ssize_t n) except NULL:
        cdef const unsigned char* at
        if self.position + n > len(self.pool):
            self.pool = os.urandom(POOL)
            self.position = 0
        at = <const unsigned char*><const char*>self.pool + self.position
        self.position += n
        return at

    cdef bytes uuid(self):
        """A version 4 UUID (RFC 9562 section 5.4) in its 36 characters."""
        cdef const unsigned char* r = self.take(16)
        cdef char text[36]
        cdef int i, at = 0
        cdef unsigned char c
        for i in range(16):
            c = r[i]
            if i == 6:
                c = (c & 0x0F) | 0x40
            elif i == 8:
                c = (c & 0x3F) | 0x80
            if i == 4 or i == 6 or i == 8 or i == 10:
                text[at] = c"-"
                at += 1
            text[at] = DIGITS[c >> 4]
            text[at + 1] = DIGITS[c & 15]
            at += 2
        return text[:36]

    cdef bytes hexadecimal(self, Py_ssize_t digits):
        """A random id of 16 or 32 lower-case hex digits, never all zero."""
        cdef const unsigned char* r = self.take(digits // 2)
        cdef char text[32]
        cdef Py_ssize_t i
        for i in range(digits // 2):
            text[2 * i] = DIGITS[r[i] >> 4]
            text[2 * i + 1] = DIGITS[r[i] & 15]
        if _all_zero(<const unsigned char*>text, digits):
            text[digits - 1] = c"1"
        return text[:digits]

    cdef bint draw(self, const unsigned char* trace_id):
        """Whether a new trace is sampled, by the last 14 digits of its id."""
        cdef unsigned long long value = 0
        cdef int i
        for i in range(18, 32):
            value = (value << 4) | (trace_id[i] - c"0" if trace_id[i] <= c"9" else trace_id[i] - c"a" + 10)
        return value < self.threshold


cdef class TraceContext:
    """What a request's trace headers become.

    ``traceparent`` is the value to send, or None where the one that came goes on as it is; ``in_place`` says
    that it takes the place of the one that came, and is not a line of its own. ``b3`` maps a lower-case header
    name to its new value, or to None for a line to be dropped; headers that are not named in it pass.
    ``span_id`` is None where no span of ours was put on the wire.
    """

    cdef bytes becomes(self, bytes name, bytes value):
        """What a trace header that came with ``value`` is to say: that very value, another, or None for nothing."""
        if name == b"traceparent":
            return value if self.traceparent is None else self.traceparent if self.in_place else None
        if name == b"tracestate":
            return value if self.keep_tracestate else None
        return value if self.b3 is None else self.b3.get(name, value)


cdef bint gather(bytes name, bytes value, list traceparents, list tracestates, dict b3) except -1:
    """Put a header with this lower-case name where ``continue_trace`` wants it; False if it is no trace header."""
    if name == b"traceparent":
        traceparents.append(value)
    elif name == b"tracestate":
        tracestates.append(value)
    elif name == b"b3" or name.startswith(b"x-b3-"):
        b3.setdefault(name, value)
    else:
        return False
    return True


cdef bint _all_zero(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if p[i] != c"0":
            return False
    return True


cdef bint _is_hex(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if not (c"0" <= p[i] <= c"9" or c"a" <= p[i] <= c"f"):
            return False
    return True


cdef bint _valid_traceparent(bytes value):
    """Section 3.2: version 00 is 55 characters; a later version may go on after another dash; ff is none."""
    cdef const unsigned char* p = <const unsigned char*><const char*>value
    cdef Py_ssize_t n = len(value)
    if n < TRACEPARENT or not _is_hex(p, 2) or (p[0] == c"f" and p[1] == c"f"):
        return False
    if n > TRACEPARENT and ((p[0] == c"0" and p[1] == c"0") or p[TRACEPARENT] != c"-"):
        return False
    return (
        p[2] == c"-" and p[35] == c"-" and p[52] == c"-"
        and _is_hex(p + 3, 32) and not _all_zero(p + 3, 32)
        and _is_hex(p + 36, 16) and not _all_zero(p + 36, 16)
        and _is_hex(p + 53, 2)
    )


cdef bint _valid_tracestate(list values):
    """Section 3.3.1: all headers are one list; empty members are allowed, duplicate keys and 33 members are not."""
    cdef set keys = set()
    cdef bytes value, member, key
    for value in values:
        for member in value.split(b","):
            member = member.strip(b" \t")
            if not member:
                continue
            if not _MEMBER.fullmatch(member):
                return False
            key = member.partition(b"=")[0]
            if key in keys or len(keys) == _MAX_MEMBERS:
                return False
            keys.add(key)
    return True


cdef tuple _read_b3(dict b3):
    """(trace id of 32 digits or None, span id or None, sampled True, False or None) of what came.

    The single header goes before the several ones. Ids that break the grammar count as absent.
    """
    cdef bytes single = b3.get(b"b3")
    cdef bytes trace_id, span_id, state
    cdef object found, sampled = None
    if single is not None:
        found = _B3_SINGLE.fullmatch(single)
        if found is not None:
            trace_id, span_id, state, _ = found.groups()
            if trace_id.strip(b"0") and span_id.strip(b"0"):
                return trace_id.rjust(32, b"0"), span_id, None if state is None else state != b"0"
        elif single in (b"0", b"1", b"d"):
            return None, None, single != b"0"
    state = b3.get(b"x-b3-sampled")
    if b3.get(b"x-b3-flags") == b"1" or state in (b"1", b"true"):
        sampled = True
    elif state in (b"0", b"false"):
        sampled = False
    trace_id = b3.get(b"x-b3-traceid")
    span_id = b3.get(b"x-b3-spanid")
    if (
        trace_id is None or span_id is None
        or not _B3_TRACE.fullmatch(trace_id) or not _B3_SPAN.fullmatch(span_id)
        or not trace_id.strip(b"0") or not span_id.strip(b"0")
    ):
        return None, None, sampled
    return trace_id.rjust(32, b"0"), span_id, sampled


cdef dict _rewritten_b3(dict b3, bytes trace_id, bytes span_id, bytes parent_id, bint sampled):
    """The B3 headers that came, saying these ids."""
    cdef dict changed = {}
    cdef bytes flag = b"1" if sampled else b"0"
    cdef bytes single = b3.get(b"b3"), state = flag
    if single is not None:
        if sampled and b"d" in (single, *single.split(b"-")[2:3]):
            state = b"d"  # debug is a stronger "sampled", and not ours to take back
        changed[b"b3"] = b"-".join(
            (trace_id, span_id, state) if parent_id is None else (trace_id, span_id, state, parent_id)
        )
    if b"x-b3-traceid" in b3 or b"x-b3-spanid" in b3:
        changed[b"x-b3-traceid"] = trace_id
        changed[b"x-b3-spanid"] = span_id
    if b"x-b3-parentspanid" in b3:
        changed[b"x-b3-parentspanid"] = parent_id
    if b"x-b3-sampled" in b3:
        changed[b"x-b3-sampled"] = flag
    if b"x-b3-flags" in b3 and not sampled:
        changed[b"x-b3-flags"] = None
    return changed


cdef bytes _traceparent(bytes trace_id, bytes span_id, bint sampled):
    """The value of version 00, section 3.2."""
    cdef bytes value = PyBytes_FromStringAndSize(NULL, TRACEPARENT)
    cdef char* p = PyBytes_AS_STRING(value)
    memcpy(p, b"00-", 3)
    memcpy(p + 3, PyBytes_AS_STRING(trace_id), 32)
    p[35] = c"-"
    memcpy(p + 36, PyBytes_AS_STRING(span_id), 16)
    memcpy(p + 52, b"-01" if sampled else b"-00", 3)
    return value


cdef TraceContext new_trace(Ids ids):
    """A trace that begins here, sampled by the rate of ``ids``."""
    cdef TraceContext context = TraceContext.__new__(TraceContext)
    context.trace_id = ids.hexadecimal(32)
    context.span_id = ids.hexadecimal(16)
    context.sampled = ids.draw(<const unsigned char*><const char*>context.trace_id)
    context.traceparent = _traceparent(context.trace_id, context.span_id, context.sampled)
    return context


cpdef TraceContext continue_trace(Ids ids, list traceparents, list tracestates, dict b3):
    """What the trace headers of a request become.

    ``traceparents`` and ``tracestates`` are the values that came, in order; ``b3`` maps the lower-case names
    of the B3 headers that came to their values.
    """
    cdef TraceContext context = TraceContext.__new__(TraceContext)
    cdef bytes came, span_id
    cdef object trace_id, sampled
    if len(traceparents) == 1 and _valid_traceparent(traceparents[0]):
        came = traceparents[0]
        context.in_place = True
        context.trace_id = came[3:35]
        context.parent_id = came[36:52]
        context.sampled = int(came[53:55], 16) & 1
        context.keep_tracestate = _valid_tracestate(tracestates)
        if context.sampled:
            context.span_id = ids.hexadecimal(16)
            # A version we do not know is continued as the one we do (section 4.3).
            context.traceparent = b"00" + came[2:36] + context.span_id + came[52:55]
        if b3:
            span_id = context.span_id or context.parent_id
            context.b3 = _rewritten_b3(
                b3, context.trace_id, span_id, context.parent_id if context.span_id else None, context.sampled
            )
        return context

    trace_id, span_id, sampled = _read_b3(b3)
    if trace_id is None:
        context = new_trace(ids)
        if sampled is not None:
            context.sampled = sampled
            context.traceparent = context.traceparent[:53] + (b"01" if sampled else b"00")
        if b3.get(b"b3", b"1") not in (b"0", b"1", b"d") or b"x-b3-traceid" in b3 or b"x-b3-spanid" in b3:
            # Ids that cannot be continued are not left to contradict the new ones.
            context.b3 = _rewritten_b3(b3, context.trace_id, context.span_id, None, context.sampled)
        return context
    context.trace_id = trace_id
    context.parent_id = span_id
    context.sampled = ids.draw(<const unsigned char*><const char*>context.trace_id) if sampled is None else sampled
    if context.sampled:
        context.span_id = ids.hexadecimal(16)
        context.b3 = _rewritten_b3(b3, context.trace_id, context.span_id, span_id, True)
    context.traceparent = _traceparent(context.trace_id, context.span_id or span_id, context.sampled)
    return context

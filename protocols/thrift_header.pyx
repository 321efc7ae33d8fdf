"""The head of a frame of Thrift's header transport, and the trace headers in it.

The format is that of Apache Thrift's doc/specs/HeaderFormat.md: a frame length, magic, flags, a sequence id and the
size of the header in words of four bytes; then the payload's protocol, its transforms, and info headers, padded.
Info headers of the one known type are pairs of name and value. Headers of ours are put behind those that came, or
replace them in their place; everything else keeps its bytes and its order.

Info headers that cannot be read go on as they came: it is the payload that makes the call.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize

from protocols.thrift_messages cimport MAX_VARINT
from protocols.trace_context cimport Ids, continue_trace, gather

cdef enum:
    KEY_VALUE = 1
    BINARY_PROTOCOL = 0
    COMPACT_PROTOCOL = 2
    ZLIB_TRANSFORM = 1
    MAX_FOUND = 100              # trace headers among the info headers of a frame, as of fields in HTTP's heads
    LONGEST_NAME = 17            # x-b3-parentspanid


cdef inline bytes _varint(unsigned int value):
    cdef unsigned char encoded[5]
    cdef int n = 0
    while value > 0x7F:
        encoded[n] = <unsigned char>(value & 0x7F | 0x80)
        value >>= 7
        n += 1
    encoded[n] = <unsigned char>value
    return encoded[:n + 1]


cdef inline bytes _u32(unsigned int value):
    cdef unsigned char encoded[4]
    encoded[0] = value >> 24
    encoded[1] = (value >> 16) & 0xFF
    encoded[2] = (value >> 8) & 0xFF
    encoded[3] = value & 0xFF
    return encoded[:4]


cdef bint _take_varint(const unsigned char* p, Py_ssize_t n, Py_ssize_t* at, Py_ssize_t* value) noexcept nogil:
    """Read a varint of 31 bits at ``at`` and go on behind it; False where there is none."""
    cdef unsigned long long result = 0
    cdef int i
    for i in range(MAX_VARINT):
        if at[0] >= n:
            return False
        result |= <unsigned long long>(p[at[0]] & 0x7F) << (7 * i)
        at[0] += 1
        if p[at[0] - 1] < 0x80:
            value[0] = <Py_ssize_t>result
            return result <= 0x7FFFFFFF
    return False


cdef bint _take_string(
    const unsigned char* p, Py_ssize_t n, Py_ssize_t* at, Py_ssize_t* start, Py_ssize_t* length
) noexcept nogil:
    if not _take_varint(p, n, at, length) or length[0] > n - at[0]:
        return False
    start[0] = at[0]
    at[0] += length[0]
    return True


cdef class HeaderBlock:
    cdef int read(
        self, const unsigned char* p, Py_ssize_t n, Ids ids, bint may_change, unsigned int frame_limit
    ) except -1:
        """Read the head of a frame, the ``n`` bytes at ``p``: whole, or its beginning where it is too long.

        Trace headers are read where ``ids`` are given, and continued in ``became`` where the head may change.
        """
        cdef Py_ssize_t at = HEADER_PREFIX, protocol, count, id
        self.transform = BROKEN
        if not _take_varint(p, n, &at, &protocol) or not _take_varint(p, n, &at, &count):
            return 0
        if protocol != BINARY_PROTOCOL and protocol != COMPACT_PROTOCOL or count > 1:
            self.transform = OTHER
            return 0
        if count:
            if not _take_varint(p, n, &at, &id):
                return 0
            if id != ZLIB_TRANSFORM:
                self.transform = OTHER
                return 0
        self.transform = ZLIB if count else PLAIN
        if ids is not None:
            self._continue(p, n, at, ids, may_change, frame_limit)
        return 0

    cdef int _continue(
        self, const unsigned char* p, Py_ssize_t n, Py_ssize_t infos, Ids ids, bint may_change,
        unsigned int frame_limit
    ) except -1:
        """Continue the trace in the info headers, which begin at ``infos``."""
        cdef Py_ssize_t at = infos, kind, count, start, length, pair, pairs = 0, i, end = infos
        cdef Py_ssize_t value, value_length, copied
        cdef list found = [], traceparents = [], tracestates = [], pieces = []
        cdef dict b3 = {}
        cdef list sections = []  # where each lies: from its first pair to behind its last
        cdef bytes name, text, became, head
        cdef bint changed = False
        cdef TraceContext trace
        while at < n:
            if not _take_varint(p, n, &at, &kind):
                return 0
            if kind != KEY_VALUE:
                break
            if not _take_varint(p, n, &at, &count):
                return 0
            start = at
            for i in range(count):
                pair = at
                if not _take_string(p, n, &at, &value, &length):
                    return 0
                name = None
                if 1 < length <= LONGEST_NAME:
                    name = (<bytes>p[value:value + length]).lower()
                if not _take_string(p, n, &at, &value, &value_length):
                    return 0
                if name is None:
                    continue
                text = p[value:value + value_length]
                if name == b"x-request-id":
                    if self.request_id is None:
                        self.request_id = text
                elif gather(name, text, traceparents, tracestates, b3):
                    if len(found) == MAX_FOUND:
                        return 0
                    found.append((pair, value, at, name, text))
            pairs += count
            sections.append((start, at))
            end = at
        trace = continue_trace(ids, traceparents, tracestates, b3)
        self.trace = trace
        if not may_change:
            return 0

        # Several sections become one.
        for start, at in sections:
            copied = start
            while found and <Py_ssize_t>found[0][0] < at:
                pair, value, length, name, text = found.pop(0)
                became = trace.becomes(name, text)
                if became is text:
                    continue
                changed = True
                pieces.append(p[copied:pair])
                copied = length
                if became is None:
                    pairs -= 1
                else:
                    # The name as it was spelled, and what follows it anew.
                    pieces.append(self._named(p, pair))
                    pieces.append(_varint(len(became)))
                    pieces.append(became)
            pieces.append(p[copied:at])
        if trace.traceparent is not None and not trace.in_place:
            changed = True
            pieces.append(b"\x0btraceparent" + _varint(len(trace.traceparent)) + trace.traceparent)
            pairs += 1
        if self.request_id is None:
            text = ids.uuid()
            pieces.append(b"\x0cx-request-id" + _varint(len(text)) + text)
            pairs += 1
        else:
            text = self.request_id
            if not changed:
                return 0
        head = p[HEADER_PREFIX:infos]
        if pairs:
            head += b"\x01" + _varint(pairs)
        head += b"".join(pieces)
        if any(p[end:n]):
            head += p[end:n]  # what is not understood
        head += b"\0\0\0"[:3 & -len(head)]
        length = _frame_length(p) + len(head) - (n - HEADER_PREFIX)
        if len(head) + HEADER_PREFIX > MAX_HEADER or length > frame_limit:
            return 0
        self.request_id = text
        self.became = b"".join((
            _u32(<unsigned int>length), p[4:12], _u32(<unsigned int>(len(head) // 4))[2:], head,
        ))
        return 0

    cdef bytes _named(self, const unsigned char* p, Py_ssize_t pair):
        """The name of the pair at ``pair``, with its length before it; it was read before."""
        cdef Py_ssize_t at = pair, start, length
        _take_string(p, pair + MAX_VARINT + LONGEST_NAME, &at, &start, &length)
        return p[pair:at]


cdef inline Py_ssize_t _frame_length(const unsigned char* p) noexcept nogil:
    return <Py_ssize_t>p[0] << 24 | <Py_ssize_t>p[1] << 16 | <Py_ssize_t>p[2] << 8 | p[3]

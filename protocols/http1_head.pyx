"""The head of an HTTP/1 message: where it ends, what its lines say, and what is refused in it.

The grammar is RFC 9112 sections 2 to 6 and RFC 9110 section 5, read strictly: whatever two parsers could
read differently is a fault. Nothing is copied and nothing is changed here; a ``Head`` holds offsets into
the bytes that were given. No loop looks for the end of its bytes: each stops at a byte that it does not take,
and ``find_end`` has seen that every line ends with CR LF. ``FAULTS`` is the whole list of what can be wrong,
with the status that answers it and the sentence that tells the sender.
"""

from libc.string cimport memchr, memset

cdef enum:
    # With MAX_BLOCK and MAX_FIELDS the limits of transparency.md (Envoy's defaults are 60 KiB and 100 fields;
    # nginx's line is 8 KiB).
    MAX_LINE = 8 * 1024
    # No registered method is longer than 17 (IANA HTTP Method Registry).
    MAX_METHOD = 32

# Fault -> (status that answers a request with it, what is said).
FAULTS = {
    NOT_HTTP: (400, "this is not HTTP/1: expected 'METHOD target HTTP/1.x'"),
    BAD_REQUEST_LINE: (
        400,
        "malformed request line: expected 'METHOD target HTTP/1.x' with single spaces and no control characters",
    ),
    BAD_STATUS_LINE: (400, "malformed status line: expected 'HTTP/1.x NNN reason'"),
    BARE_LF: (400, "a line ends with a bare LF: lines must end with CR LF"),
    BARE_CR: (400, "a CR without LF in a line: lines must end with CR LF"),
    OBS_FOLD: (400, "a header line begins with white space: folded lines are not allowed"),
    SPACE_BEFORE_COLON: (400, "white space before the colon of a header field is not allowed"),
    BAD_NAME: (400, "malformed header field name: expected token characters and a colon"),
    BAD_VALUE: (400, "control character in a header field value: only tab and visible characters are allowed"),
    LENGTH_AND_CODING: (400, "Content-Length together with Transfer-Encoding is not allowed: send one of them"),
    LENGTHS_DIFFER: (400, "differing Content-Length values: exactly one is allowed"),
    BAD_LENGTH: (400, "malformed Content-Length: expected decimal digits below 2^63"),
    CODING_UNKNOWN: (501, "the last Transfer-Encoding must be chunked"),
    CHUNKED_TWICE: (400, "Transfer-Encoding names chunked more than once"),
    CODING_IN_1_0: (400, "Transfer-Encoding is not allowed in HTTP/1.0"),
    LINE_TOO_LONG: (414, "the first line is over 8 KiB"),
    HEAD_TOO_LARGE: (431, "header block over 60 KiB"),
    TOO_MANY_FIELDS: (431, "more than 100 header fields"),
    BAD_CHUNK_SIZE: (400, "malformed chunk size: expected 1 to 16 hex digits"),
    BAD_CHUNK_EXTENSION: (400, "malformed chunk extension: control character, bare CR or LF, or over 8 KiB"),
    BAD_CHUNK_END: (400, "chunk data is not followed by CR LF: its size was wrong"),
    BAD_TRAILER: (400, "malformed trailer field"),
    TRAILERS_TOO_LARGE: (431, "trailers over 60 KiB or 100 fields"),
    UNASKED_101: (502, "101 Switching Protocols to a request that asked for no upgrade"),
}


cdef void _fill_tables():
    cdef int c
    memset(TOKEN, 0, 256)
    memset(TEXT, 0, 256)
    for c in range(256):
        # field-value: VCHAR, obs-text, SP, HTAB (RFC 9110 section 5.5)
        TEXT[c] = c == 9 or (c >= 32 and c != 127)
        HEX[c] = -1
    for c in b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        TOKEN[c] = 1
    for c in range(10):
        HEX[c + c"0"] = c
    for c in range(6):
        HEX[c + c"a"] = HEX[c + c"A"] = 10 + c


_fill_tables()


cdef inline bint _is_version(const unsigned char* p) noexcept nogil:
    """Whether the 8 bytes at ``p`` are ``HTTP/1.`` DIGIT."""
    return (
        p[0] == c"H" and p[1] == c"T" and p[2] == c"T" and p[3] == c"P" and p[4] == c"/"
        and p[5] == c"1" and p[6] == c"." and c"0" <= p[7] <= c"9"
    )


cdef Fault _check_first_line(const unsigned char* p, Py_ssize_t n, bint ended, Scan* scan, bint request) noexcept nogil:
    """Can these ``n`` bytes be a first line, or, when it has not ``ended``, the beginning of one?

    A request line with tabs for its spaces is one: ``parse_request`` refuses it, for some servers read it.
    """
    cdef Py_ssize_t i, length
    cdef const char* version = b"HTTP/1."
    if request:
        for i in range(n):
            if i and (p[i] == c" " or p[i] == c"\t"):
                break
            if not TOKEN[p[i]] or i == MAX_METHOD:
                scan.position = i + 1
                return NOT_HTTP
    else:
        for i in range(min(n, 7)):
            if p[i] != <unsigned char>version[i]:
                scan.position = i + 1
                return NOT_HTTP
    length = n - 1 if ended else n
    if length > MAX_LINE:
        scan.position = MAX_LINE + 1
        return LINE_TOO_LONG
    if ended and request:
        if p[length - 1] == c"\r":
            length -= 1
        # Shortest: "G / HTTP/1.1"
        if length < 12 or not _is_version(p + length - 8) or not (
            p[length - 9] == c" " or p[length - 9] == c"\t"
        ):
            scan.position = n
            return NOT_HTTP
    return NONE


cdef Fault find_end(const unsigned char* p, Py_ssize_t n, Scan* scan, bint request) noexcept nogil:
    """Look for the empty line that ends a head, going on from where ``scan`` stands.

    Found: ``scan.complete``, and ``scan.position`` is one past it. Else more bytes are needed, or the fault
    says that they would not help. A fault is found at the same byte however the bytes were cut, and
    ``scan.position`` is one past that byte.
    """
    cdef const unsigned char* lf
    cdef Py_ssize_t end, length
    cdef Fault fault
    while True:
        lf = <const unsigned char*>memchr(p + scan.position, c"\n", n - scan.position)
        end = n if lf == NULL else lf - p + 1
        if scan.first_line_end == 0:
            fault = _check_first_line(p, end, lf != NULL, scan, request)
            if fault != NONE:
                return fault
            if lf != NULL:
                scan.first_line_end = end
        elif end - scan.first_line_end > MAX_BLOCK + MAX_OWN:
            # The exact limit needs the fields' names: see _parse_fields.
            scan.position = scan.first_line_end + MAX_BLOCK + MAX_OWN + 1
            return HEAD_TOO_LARGE
        scan.position = end
        if lf == NULL:
            return NONE
        length = end - 1 - scan.line
        if length == 0 or p[end - 2] != c"\r":
            return BARE_LF
        if length == 1:
            scan.complete = True
            return NONE
        scan.line = end


cdef bint same(const unsigned char* p, Py_ssize_t n, const char* lower, Py_ssize_t lower_length) noexcept nogil:
    """Whether the ``n`` bytes at ``p`` are the word ``lower``, compared without case."""
    cdef Py_ssize_t i
    cdef unsigned char c
    if n != lower_length:
        return False
    for i in range(n):
        c = p[i]
        if c"A" <= c <= c"Z":
            c |= 0x20
        if c != <unsigned char>lower[i]:
            return False
    return True


cdef bint named(const unsigned char* p, const Field* field, const char* lower, Py_ssize_t length) noexcept nogil:
    """Whether the field has this name; names are compared without case (RFC 9110 section 5.1)."""
    return same(p + field.start, field.name_length, lower, length)


cdef Fault _content_length(const unsigned char* p, Field* field, Head* head) noexcept nogil:
    """RFC 9112 section 6.3: a list of equal values may be read as that value, differing ones are refused."""
    cdef Py_ssize_t i = field.value, end = field.value + field.value_length
    cdef unsigned long long value, digit
    cdef bint digits
    while True:
        while i < end and (p[i] == c" " or p[i] == c"\t"):
            i += 1
        value = 0
        digits = False
        while i < end and c"0" <= p[i] <= c"9":
            digit = p[i] - c"0"
            if value > (<unsigned long long>0x7FFFFFFFFFFFFFFF - digit) // 10:
                return BAD_LENGTH
            value = value * 10 + digit
            digits = True
            i += 1
        if not digits:
            return BAD_LENGTH
        while i < end and (p[i] == c" " or p[i] == c"\t"):
            i += 1
        if i < end and p[i] != c",":
            return BAD_LENGTH
        if head.has_content_length and value != head.content_length:
            return LENGTHS_DIFFER
        head.has_content_length = True
        head.content_length = value
        if i >= end:
            return NONE
        i += 1


cdef Fault _codings(const unsigned char* p, Field* field, Head* head) noexcept nogil:
    """Transfer-Encoding, RFC 9112 section 6.1: ``head.chunked`` says whether the last coding so far is chunked."""
    cdef Py_ssize_t i = field.value, end = field.value + field.value_length, start, stop
    head.has_coding = True
    while i < end:
        start = i
        while i < end and p[i] != c",":
            i += 1
        stop = i
        i += 1
        while start < stop and (p[start] == c" " or p[start] == c"\t"):
            start += 1
        while stop > start and (p[stop - 1] == c" " or p[stop - 1] == c"\t"):
            stop -= 1
        if start == stop:
            continue
        if same(p + start, stop - start, b"chunked", 7):
            if head.chunked:
                return CHUNKED_TWICE
            head.chunked = True
        elif head.chunked:
            # chunked is not the last coding: for a request nothing ends the body
            return CODING_UNKNOWN
    return NONE


cdef bint _lists(const unsigned char* p, const Field* field, const char* lower, Py_ssize_t length) noexcept nogil:
    """Whether the word is an element of the field's list (RFC 9110 section 5.6.1)."""
    cdef Py_ssize_t i = field.value, end = field.value + field.value_length, start, stop
    while i < end:
        start = i
        while i < end and p[i] != c",":
            i += 1
        stop = i
        i += 1
        while start < stop and (p[start] == c" " or p[start] == c"\t"):
            start += 1
        while stop > start and (p[stop - 1] == c" " or p[stop - 1] == c"\t"):
            stop -= 1
        if same(p + start, stop - start, lower, length):
            return True
    return False


cdef inline void _own(Head* head, const Field* field) noexcept nogil:
    """The line's name is one of ours: see OWN_FIELDS."""
    head.own_bytes += min(field.end - field.start, <Py_ssize_t>OWN_LINE)


cdef Fault _parse_fields(const unsigned char* p, Py_ssize_t i, Py_ssize_t n, Head* head, bint request) noexcept nogil:
    cdef Field* field
    cdef Py_ssize_t j, end, begin = i
    cdef Fault fault
    cdef unsigned char initial
    end = n - 2
    while i < end:
        if head.field_count == MAX_FIELDS + OWN_FIELDS:
            return TOO_MANY_FIELDS
        field = &head.fields[head.field_count]
        head.field_count += 1
        field.start = i
        if p[i] == c" " or p[i] == c"\t":
            return OBS_FOLD
        while TOKEN[p[i]]:
            i += 1
        if p[i] != c":":
            if p[i] == c" " or p[i] == c"\t":
                j = i
                while p[j] == c" " or p[j] == c"\t":
                    j += 1
                return SPACE_BEFORE_COLON if p[j] == c":" else BAD_NAME
            return BAD_NAME
        field.name_length = i - field.start
        if field.name_length == 0:
            return BAD_NAME
        i += 1
        while p[i] == c" " or p[i] == c"\t":
            i += 1
        field.value = i
        while TEXT[p[i]]:
            i += 1
        if p[i] != c"\r":
            return BAD_VALUE
        if p[i + 1] != c"\n":
            return BARE_CR
        j = i
        while j > field.value and (p[j - 1] == c" " or p[j - 1] == c"\t"):
            j -= 1
        field.value_length = j - field.value
        i += 2
        field.end = i

        initial = p[field.start] | 0x20
        if initial == c"c":
            if named(p, field, b"content-length", 14):
                fault = _content_length(p, field, head)
                if fault != NONE:
                    return fault
            elif head.content_type < 0 and named(p, field, b"content-type", 12):
                head.content_type = head.field_count - 1
        elif initial == c"t":
            if named(p, field, b"transfer-encoding", 17):
                fault = _codings(p, field, head)
                if fault != NONE:
                    return fault
            elif request and named(p, field, b"traceparent", 11):
                head.trace_fields += 1
                if not head.traceparent:
                    head.traceparent = True
                    head.own_fields += 1
                    _own(head, field)
            elif request and named(p, field, b"tracestate", 10):
                head.trace_fields += 1
        elif initial == c"x":
            if named(p, field, b"x-request-id", 12):
                if head.request_id < 0:
                    head.request_id = head.field_count - 1
                    head.own_fields += 1
                    _own(head, field)
            elif field.name_length > 5 and (p[field.start + 2] | 0x20) == c"b" and p[field.start + 3] == c"3":
                head.trace_fields += 1
                _own(head, field)
        elif initial == c"h":
            if head.host < 0 and named(p, field, b"host", 4):
                head.host = head.field_count - 1
        elif initial == c"u":
            if named(p, field, b"upgrade", 7):
                head.upgrade = True
                head.websocket = same(p + field.value, field.value_length, b"websocket", 9)
                head.h2c = head.h2c or _lists(p, field, b"h2c", 3)
        elif initial == c"b":
            if field.name_length == 2 and p[field.start + 1] == c"3":
                head.trace_fields += 1
                _own(head, field)
        if head.field_count - head.own_fields > MAX_FIELDS:
            return TOO_MANY_FIELDS
    if n - begin - min(head.own_bytes, <Py_ssize_t>MAX_OWN) > MAX_BLOCK:
        return HEAD_TOO_LARGE
    if head.has_coding:
        if head.has_content_length:
            return LENGTH_AND_CODING
        if head.minor_version == 0:
            return CODING_IN_1_0
        if request and not head.chunked:
            return CODING_UNKNOWN
    return NONE


cdef inline void _reset(Head* head, Py_ssize_t n) noexcept nogil:
    head.length = n
    head.method_length = head.target = head.target_length = 0
    head.status = head.field_count = head.trace_fields = head.own_fields = 0
    head.own_bytes = 0
    head.host = head.request_id = head.content_type = -1
    head.traceparent = head.upgrade = head.websocket = head.h2c = False
    head.has_content_length = head.chunked = head.has_coding = False
    head.content_length = 0
    head.minor_version = 1


cdef Fault parse_request(const unsigned char* p, Py_ssize_t n, Head* head) noexcept nogil:
    """Read the ``n`` bytes of a complete request head into ``head``; ``find_end`` has seen its method."""
    cdef Py_ssize_t i = 0
    _reset(head, n)
    while TOKEN[p[i]]:
        i += 1
    if p[i] != c" ":
        return BAD_REQUEST_LINE
    head.method_length = i
    i += 1
    head.target = i
    while p[i] > 32 and p[i] != 127:
        i += 1
    head.target_length = i - head.target
    if head.target_length == 0 or p[i] != c" " or not _is_version(p + i + 1) or p[i + 9] != c"\r":
        return BAD_REQUEST_LINE
    if p[i + 10] != c"\n":
        return BARE_CR
    head.minor_version = p[i + 8] - c"0"
    return _parse_fields(p, i + 11, n, head, True)


cdef Fault parse_response(const unsigned char* p, Py_ssize_t n, Head* head) noexcept nogil:
    """Read the ``n`` bytes of a complete response head into ``head``."""
    cdef Py_ssize_t i
    _reset(head, n)
    # "HTTP/1.1 200" CR LF CR LF is 16 bytes
    if n < 16 or not _is_version(p) or p[8] != c" ":
        return BAD_STATUS_LINE
    head.minor_version = p[7] - c"0"
    for i in range(9, 12):
        if p[i] < c"0" or p[i] > c"9":
            return BAD_STATUS_LINE
        head.status = head.status * 10 + (p[i] - c"0")
    if head.status < 100 or not (p[12] == c" " or p[12] == c"\r"):
        return BAD_STATUS_LINE
    i = 12
    while TEXT[p[i]]:
        i += 1
    if p[i] != c"\r":
        return BAD_STATUS_LINE
    if p[i + 1] != c"\n":
        return BARE_CR
    return _parse_fields(p, i + 2, n, head, False)

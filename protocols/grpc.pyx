"""What gRPC and gRPC-Web say in header fields and message prefixes.

The grammar is gRPC's "PROTOCOL-HTTP2" and "PROTOCOL-WEB". Messages are counted as their bytes pass, in
whatever pieces those come; no byte of a message is ever collected or changed. The one thing that is
collected is the trailer frame that ends a gRPC-Web response, for that is where its status is.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.string cimport memset

from protocols.http1_head cimport HEX, same

cdef enum:
    PREFIX = 5             # Compressed-Flag and Message-Length
    COMPRESSED = 0x01      # flags of that first octet
    TRAILERS = 0x80        # gRPC-Web alone
    MAX_STATUS_DIGITS = 9
    # What is kept of a grpc-message, and what is read of a trailer frame (gRPC's own default for metadata).
    MAX_MESSAGE = 1024
    MAX_TRAILERS = 8 * 1024

_STATUS_NAMES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)

cdef signed char BASE64[256]


cdef void _fill_tables():
    cdef int i, c
    memset(BASE64, -1, 256)
    for i, c in enumerate(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"):
        BASE64[c] = i


_fill_tables()


# -- header fields ---------------------------------------------------------------------------------------------

cdef inline bint _ends_type(const unsigned char* p, Py_ssize_t n, Py_ssize_t i) noexcept nogil:
    """Whether nothing of the type's name follows at ``i``: a message format or parameters may."""
    return i == n or p[i] == c"+" or p[i] == c";" or p[i] == c" " or p[i] == c"\t"


cdef ContentType content_type(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    """Content-Type -> "application/grpc" [("+proto" / "+json" / {custom})], and the two of gRPC-Web."""
    if n < 16 or not same(p, 16, b"application/grpc", 16):
        return OTHER
    if _ends_type(p, n, 16):
        return RPC
    if n < 20 or not same(p + 16, 4, b"-web", 4):
        return OTHER
    if _ends_type(p, n, 20):
        return WEB
    if n >= 25 and same(p + 20, 5, b"-text", 5) and _ends_type(p, n, 25):
        return WEB_TEXT
    return OTHER


def content_type_of(bytes value):
    return content_type(<const unsigned char*>PyBytes_AS_STRING(value), len(value))


cpdef double timeout_seconds(bytes value):
    """Timeout -> "grpc-timeout" TimeoutValue TimeoutUnit; a TimeoutValue has at most 8 digits."""
    cdef Py_ssize_t digits = len(value) - 1
    cdef unsigned char unit
    if not 1 <= digits <= 8 or not value[:digits].isdigit():
        return -1.0
    unit = value[digits]
    if unit == c"H":
        return int(value[:digits]) * 3600.0
    if unit == c"M":
        return int(value[:digits]) * 60.0
    if unit == c"S":
        return int(value[:digits])
    # Divided, not multiplied by a fraction: 300m is 0.3 exactly as far as a double can be.
    if unit == c"m":
        return int(value[:digits]) / 1e3
    if unit == c"u":
        return int(value[:digits]) / 1e6
    if unit == c"n":
        return int(value[:digits]) / 1e9
    return -1.0


cpdef bytes percent_decoded(bytes message):
    """Status-Message is percent-encoded, and a bad escape must not cost what else it says."""
    cdef const unsigned char* p
    cdef Py_ssize_t i = 0, n, length = 0
    cdef unsigned char decoded[MAX_MESSAGE]
    if len(message) <= MAX_MESSAGE and b"%" not in message:
        return message
    p = <const unsigned char*>PyBytes_AS_STRING(message)
    n = len(message)
    while i < n and length < MAX_MESSAGE:
        if p[i] == c"%" and n - i > 2 and HEX[p[i + 1]] >= 0 and HEX[p[i + 2]] >= 0:
            decoded[length] = <unsigned char>(HEX[p[i + 1]] << 4 | HEX[p[i + 2]])
            i += 3
        else:
            decoded[length] = p[i]
            i += 1
        length += 1
    return decoded[:length]


cpdef int status_of(bytes value):
    """Status -> "grpc-status" 1*DIGIT."""
    if not 1 <= len(value) <= MAX_STATUS_DIGITS or not value.isdigit():
        return -1
    return int(value)


cpdef str status_name(int status):
    return _STATUS_NAMES[status] if 0 <= status < 17 else str(status)


# -- messages --------------------------------------------------------------------------------------------------

cdef inline bint _take_prefix(Messages* m, unsigned char c) noexcept nogil:
    """Take an octet of a prefix: Compressed-Flag, then Message-Length in four. Was it the last one?"""
    if m.prefix == 0:
        m.flags = c
        m.length = 0
    else:
        m.length = m.length << 8 | c
    m.prefix += 1
    if m.prefix < PREFIX:
        return False
    m.prefix = 0
    m.remaining = m.length
    return True


cdef int count_messages(Messages* m, const unsigned char* p, Py_ssize_t n, bint* compressed) noexcept nogil:
    """How many messages began in these ``n`` octets of DATA; ``compressed`` is set when one of them is, else left.

    A message begins with the first octet of its prefix.
    """
    cdef Py_ssize_t i = 0
    cdef int begun = 0
    while i < n:
        if m.remaining:
            if n - i <= <Py_ssize_t>m.remaining:
                m.remaining -= <unsigned int>(n - i)
                break
            i += m.remaining
            m.remaining = 0
        if m.prefix == 0:
            begun += 1
            if p[i] & COMPRESSED:
                compressed[0] = True
        _take_prefix(m, p[i])
        i += 1
    return begun


def messages_begun(pieces):
    cdef Messages m
    cdef bint compressed = False
    cdef bytes piece
    cdef int begun = 0
    memset(&m, 0, sizeof(Messages))
    for piece in pieces:
        begun += count_messages(&m, <const unsigned char*>PyBytes_AS_STRING(piece), len(piece), &compressed)
    return begun, compressed


cdef class WebMessages:
    """The body of a gRPC-Web request or response, read as it passes.

    Its messages have the prefixes of gRPC. A response ends with one more frame, whose flags say that it
    holds the trailers, as lines of HTTP/1. Nothing in a body is a fault: what cannot be read is not counted.
    """

    def __cinit__(self, bint text):
        self.text = text
        self.status = -1

    def feed(self, bytes data):
        return self.read(<const unsigned char*>PyBytes_AS_STRING(data), len(data))

    cdef int read(self, const unsigned char* p, Py_ssize_t n) except -1:
        return self._read_base64(p, n) if self.text else self._read_frames(p, n)

    cdef int _read_base64(self, const unsigned char* p, Py_ssize_t n) except -1:
        """Servers encode what they flush each by itself, so padding may stand anywhere: it ends a group."""
        cdef unsigned char decoded[1024]
        cdef Py_ssize_t i, length = 0
        cdef int begun = 0
        for i in range(n):
            if p[i] == c"=":
                self.bit_count = 0
            elif BASE64[p[i]] >= 0:
                self.bits = self.bits << 6 | <unsigned char>BASE64[p[i]]
                self.bit_count += 6
                if self.bit_count >= 8:
                    self.bit_count -= 8
                    decoded[length] = <unsigned char>(self.bits >> self.bit_count)
                    length += 1
                    if length == sizeof(decoded):
                        begun += self._read_frames(decoded, length)
                        length = 0
        return begun + self._read_frames(decoded, length)

    cdef int _read_frames(self, const unsigned char* p, Py_ssize_t n) except -1:
        cdef Py_ssize_t i = 0, length
        cdef int begun = 0
        cdef Messages* m = &self.frames
        while i < n:
            if m.remaining:
                length = min(n - i, <Py_ssize_t>m.remaining)
                if m.flags & TRAILERS and not self.trailers_read:
                    self.trailers.extend((p + i)[:min(length, MAX_TRAILERS - <Py_ssize_t>len(self.trailers))])
                m.remaining -= <unsigned int>length
                i += length
                if m.remaining == 0 and m.flags & TRAILERS:
                    self._read_trailers()
                continue
            if m.prefix == 0:
                if p[i] & TRAILERS:
                    self.trailers = bytearray()
                else:
                    begun += 1
                    self.compressed |= p[i] & COMPRESSED
            _take_prefix(m, p[i])
            i += 1
        self.count += begun
        return begun

    cdef int _read_trailers(self) except -1:
        """The trailer frame is complete: what its lines say. Only the first frame of them is looked at."""
        cdef bytes line, name, value
        cdef list lines
        if self.trailers_read:
            return 0
        lines = bytes(self.trailers).split(b"\n")
        if len(self.trailers) == MAX_TRAILERS:
            # The line that the limit cut says nothing certain.
            lines.pop()
        for line in lines:
            name, _, value = line.partition(b":")
            name = name.strip().lower()
            if name == b"grpc-status" and self.status < 0:
                self.status = status_of(value.strip())
            elif name == b"grpc-message" and self.message is None:
                self.message = percent_decoded(value.strip())
        self.trailers = None
        self.trailers_read = True
        return 0

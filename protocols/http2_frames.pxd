from protocols.assembly cimport Assembly

# RFC 9113 section 6
cdef enum Frame:
    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9

cdef enum Flag:
    END_STREAM = 0x1
    ACK = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    HAS_PRIORITY = 0x20

cdef enum:
    FRAME_HEADER = 9
    SMALLEST_MAX_FRAME = 16384    # every receiver takes these (section 4.2)
    # Envoy's defaults (transparency.md).
    MAX_CONTINUATIONS = 512
    MAX_EMPTY = 1                 # in a row
    # Ours: one encoded header block, which is collected until it is complete.
    MAX_BLOCK = 128 * 1024

cdef enum Found:
    COMPLETE_BLOCK
    INCOMPLETE
    BROKEN
    TOO_MANY_FRAMES
    TOO_MANY_EMPTY
    TOO_LARGE

# One complete header block within the bytes that were read.
cdef struct Block:
    Py_ssize_t size                # of its frames together, their headers included
    Py_ssize_t largest             # payload of its largest frame
    int frames
    int empty_frames
    int type
    int flags
    unsigned int stream
    unsigned int promised
    Py_ssize_t prefix              # octets of the first payload before the fragment
    Py_ssize_t padding

cdef inline Py_ssize_t u24(const unsigned char* p) noexcept nogil:
    return (p[0] << 16) | (p[1] << 8) | p[2]

cdef inline unsigned int u31(const unsigned char* p) noexcept nogil:
    """A stream identifier, or whatever else has a reserved bit before it."""
    return (<unsigned int>(p[0] & 0x7F) << 24) | (<unsigned int>p[1] << 16) | (<unsigned int>p[2] << 8) | p[3]

cdef inline unsigned int u32(const unsigned char* p) noexcept nogil:
    return (<unsigned int>p[0] << 24) | (<unsigned int>p[1] << 16) | (<unsigned int>p[2] << 8) | p[3]

cdef Found find_block(
    const unsigned char* f, Py_ssize_t n, Py_ssize_t max_frame, int empty, Block* block
) noexcept nogil
cdef int join_fragments(const unsigned char* f, Block* block, Assembly out) except -1
cdef int write_block(Assembly out, const unsigned char* f, Block* block, Assembly fragment) except -1
cdef bint well_formed(int kind, Py_ssize_t length, unsigned int stream) noexcept nogil

cdef enum:
    MAX_BLOCK = 60 * 1024
    MAX_FIELDS = 100
    # What ARCA itself adds must not make a second ARCA refuse what the first passed. So a line that one of us may
    # have written or rewritten is no field, for one X-Request-ID and one traceparent, and this much of it counts
    # for no byte (the longest is a b3 of 74), for those and for B3's six. Whatever else is sent is held to the
    # limits exactly; the second ARCA finds the lines there and adds none.
    OWN_FIELDS = 2
    OWN_LINE = 80
    MAX_OWN = 8 * OWN_LINE

cdef enum Fault:
    NONE = 0
    NOT_HTTP
    BAD_REQUEST_LINE
    BAD_STATUS_LINE
    BARE_LF
    BARE_CR
    OBS_FOLD
    SPACE_BEFORE_COLON
    BAD_NAME
    BAD_VALUE
    LENGTH_AND_CODING
    LENGTHS_DIFFER
    BAD_LENGTH
    CODING_UNKNOWN
    CHUNKED_TWICE
    CODING_IN_1_0
    LINE_TOO_LONG
    HEAD_TOO_LARGE
    TOO_MANY_FIELDS
    BAD_CHUNK_SIZE
    BAD_CHUNK_EXTENSION
    BAD_CHUNK_END
    BAD_TRAILER
    TRAILERS_TOO_LARGE
    UNASKED_101

# Where the search for the end of a head stands; offsets count from the head's first byte.
cdef struct Scan:
    Py_ssize_t position  # bytes looked at
    Py_ssize_t line      # where the line that is being looked at begins
    Py_ssize_t first_line_end
    bint complete

cdef struct Field:
    Py_ssize_t start
    Py_ssize_t name_length
    Py_ssize_t value
    Py_ssize_t value_length
    Py_ssize_t end

# What one head says; offsets count from the head's first byte. -1 is "not there".
cdef struct Head:
    Py_ssize_t length
    int minor_version
    Py_ssize_t method_length
    Py_ssize_t target
    Py_ssize_t target_length
    int status
    int field_count
    int host
    int request_id
    int content_type
    int trace_fields
    int own_fields
    Py_ssize_t own_bytes
    bint traceparent
    bint upgrade
    bint websocket
    bint h2c
    bint has_content_length
    bint chunked
    bint has_coding
    unsigned long long content_length
    Field fields[MAX_FIELDS + OWN_FIELDS]

cdef unsigned char TOKEN[256]
cdef unsigned char TEXT[256]
cdef signed char HEX[256]

cdef Fault find_end(const unsigned char* p, Py_ssize_t n, Scan* scan, bint request) noexcept nogil
cdef Fault parse_request(const unsigned char* p, Py_ssize_t n, Head* head) noexcept nogil
cdef Fault parse_response(const unsigned char* p, Py_ssize_t n, Head* head) noexcept nogil
cdef bint same(const unsigned char* p, Py_ssize_t n, const char* lower, Py_ssize_t lower_length) noexcept nogil
cdef bint named(const unsigned char* p, const Field* field, const char* lower, Py_ssize_t length) noexcept nogil

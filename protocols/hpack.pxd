cdef enum:
    # Fields of one block that are kept, and bytes of their texts. Past either, fields are only counted.
    MAX_KEPT = 110
    MAX_TEXTS = 64 * 1024
    # Size, as RFC 7541 section 4.1 counts, of what a dynamic table may hold here.
    MAX_STORED = 64 * 1024
    # Bytes that write_integer may write.
    MAX_INTEGER = 6

# How a field is represented (RFC 7541 sections 6.1, 6.2.1, 6.2.2, 6.2.3).
cdef enum Kind:
    INDEXED = 0
    INDEXING
    PLAIN
    NEVER

cdef enum HpackFault:
    SOUND = 0
    TRUNCATED
    INTEGER_TOO_LARGE
    BAD_INDEX
    BAD_HUFFMAN
    LATE_UPDATE
    UPDATE_ABOVE_LIMIT
    TABLE_TOO_LARGE

# One field of a block. The texts are valid until the next decode() of any Decoder.
cdef struct HpackField:
    Py_ssize_t start               # its representation's first byte within the block
    Py_ssize_t end                 # one past its last
    Kind kind
    Py_ssize_t value_start         # where the representation of the value begins, its length; end when INDEXED
    unsigned long long entry       # number of the dynamic entry that it refers to, whole or for its name; or 0
    unsigned long long added       # number of the dynamic entry that it added; or 0
    const unsigned char* name
    Py_ssize_t name_length
    const unsigned char* value
    Py_ssize_t value_length

# A text of the table; entries of the same name may share it.
cdef struct Text:
    Py_ssize_t holders
    Py_ssize_t length  # of the bytes that follow

cdef struct Entry:
    Text* name
    Text* value

cdef class Decoder:
    # The fields of the last block that are kept (the array is the process's, not this decoder's) and how many;
    # then how many it has in all, and the lengths of the names and values of all.
    cdef HpackField* fields
    cdef int count
    cdef readonly int total
    cdef readonly unsigned long long list_size
    # The dynamic table: a ring in which entry number i is at i & (capacity - 1), the entries that are live, and
    # the number of the newest that there ever was.
    cdef Entry* entries
    cdef unsigned int capacity
    cdef unsigned int live
    cdef unsigned long long inserted
    # Its size, the size to which the encoder last set it, and up to which it may set it.
    cdef unsigned long size
    cdef unsigned long max_size
    cdef unsigned long limit

    cdef HpackFault decode(self, const unsigned char* block, Py_ssize_t n) noexcept
    cdef void set_limit(self, unsigned long size) noexcept
    cdef unsigned long long oldest(self) noexcept

    cdef HpackFault _field(self, const unsigned char* block, Py_ssize_t n, Py_ssize_t* at) noexcept
    cdef Entry* _lookup(self, Py_ssize_t index, unsigned long long* number) noexcept
    cdef HpackFault _add(self, Text* name, HpackField* field) noexcept
    cdef bint _make_room(self) noexcept
    cdef void _evict(self, unsigned long down_to) noexcept

cdef int write_integer(
    unsigned char* out, unsigned int prefix_bits, unsigned char high_bits, Py_ssize_t value
) noexcept nogil

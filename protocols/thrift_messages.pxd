# Of the call, reply, exception and oneway that a message can be.
cdef enum MessageType:
    CALL = 1
    REPLY = 2
    EXCEPTION = 3
    ONEWAY = 4

cdef enum Encoding:
    BINARY = 0
    BINARY_OLD = 1
    COMPACT = 2

# Why reading stopped.
cdef enum Step:
    MORE         # every byte was read, and the message goes on
    HEAD_READ    # name, type and sequence id are known; to be called again for the rest
    OVER         # the message ended, or nothing more of it needs to be read where the frame says where it ends
    FAULTY       # `fault` says why

cdef enum Fault:
    NONE
    MAGIC
    VERSION
    TYPE
    NAME
    VARINT
    VALUE_TYPE
    SIZE
    TOO_DEEP

cdef enum:
    MAX_NAME = 1024
    MAX_TEXT = 1024
    MAX_DEPTH = 64
    MAX_VARINT = 10              # bytes of one of 64 bits

# A struct, list, set or map that has begun and not ended.
cdef struct Level:
    unsigned char kind
    unsigned char first          # type of the elements, or of the keys
    unsigned char second         # of a map's values
    short field                  # compact: id of the last field, from which the next one counts
    unsigned long long left      # elements to come; keys and values of a map are counted each

# Where the reading of one message stands. Nothing of it is kept but the texts, which are cut off.
cdef struct Reader:
    int state
    Fault fault
    bint brief                   # a frame says where the message ends: only what is noted below needs to be read
    Encoding encoding
    int type
    int sequence
    # A name is in `text` when HEAD_READ is returned; later it is the text of an exception.
    Py_ssize_t text_length
    bint text_read
    bint result_known            # of a reply: the first field of its result, 0 without one
    int result_field
    bint type_read
    int exception_type           # of TApplicationException

    bint wants_text              # the first string field of the struct that is being read is to be noted
    int field                    # id of the field that is being read
    int field_type
    unsigned long long skip      # bytes that nobody needs to look at
    unsigned int to_note         # bytes of the string that is being noted
    int need                     # bytes of the piece that is being read, 0 for a varint
    int have                     # of them, in `piece`; or of the varint
    unsigned long long varint
    int depth
    unsigned char piece[8]
    Level levels[MAX_DEPTH]
    unsigned char text[MAX_NAME]

cdef void begin_message(Reader* r, bint brief) noexcept nogil
cdef Step read_message(Reader* r, const unsigned char* p, Py_ssize_t n, Py_ssize_t* used) noexcept nogil

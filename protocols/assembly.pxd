# One owner, one use at a time: an engine's is used up before its call returns.
cdef class Assembly:
    cdef char* bytes
    cdef Py_ssize_t length
    cdef Py_ssize_t room

    cdef int add(self, const void* piece, Py_ssize_t n) except -1
    cdef bytes take(self)
    cdef bytes passed(self, bytes whole, const unsigned char* p, Py_ssize_t copied, Py_ssize_t position)
    cdef int add_line(self, const char* name, bytes value) except -1
    cdef char* reserve(self, Py_ssize_t n) except NULL

from protocols.exchange cimport Exchange

cpdef object decide(Exchange exchange, str server)

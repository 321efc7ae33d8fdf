from protocols.codec import Codec
from protocols.trace_context import Ids

class Thrift(Codec):
    """The engine of one Thrift connection.

    ``ids`` gives new ids and the sampling rate. With ``strict`` what cannot be read is refused, not carried.
    """

    frame_limit: int  # bytes; a frame that says it is longer is not read
    def __init__(self, ids: Ids, strict: bool = ...) -> None: ...

from protocols.codec import Codec
from protocols.trace_context import Ids

class Http2(Codec):
    def __init__(self, ids: Ids, strict: bool = False) -> None: ...

from protocols.codec import Codec
from protocols.trace_context import Ids

def answer(
    status: int,
    text: str,
    *,
    method: bytes | None = ...,
    request_id: bytes | None = ...,
    cause: str | None = ...,
) -> bytes:
    """The response that ARCA itself gives, the last on its connection: ``text`` says what was wrong."""

class Http1(Codec):
    """The engine of one HTTP/1 connection.

    ``ids`` gives new ids and the sampling rate. With ``strict`` what is not HTTP/1 is refused, not carried.
    """

    def __init__(self, ids: Ids, strict: bool = ...) -> None: ...

class Ids:
    """Where new ids come from, and the ratio of new traces that are sampled (0 to 1, else ValueError).

    ``pool`` gives the first random bytes, for tests.
    """

    sample: float
    def __init__(self, sample: float = ..., pool: bytes | None = ...) -> None: ...

class TraceContext:
    """What a request's trace headers become; see the module for which rule decides."""

    trace_id: bytes
    parent_id: bytes | None
    span_id: bytes | None
    sampled: bool
    traceparent: bytes | None
    in_place: bool  # the one traceparent that came is continued, not replaced by a new line
    keep_tracestate: bool
    b3: dict[bytes, bytes | None] | None

def continue_trace(
    ids: Ids, traceparents: list[bytes], tracestates: list[bytes], b3: dict[bytes, bytes]
) -> TraceContext: ...

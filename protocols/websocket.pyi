from protocols.codec import Codec

class WebSocket(Codec):
    """Reads the frames of a WebSocket connection and shows ``inner`` what the binary messages carry.

    Every byte goes on as it came: what ``inner`` returns is dropped, so it must be made to change nothing.
    What cannot be read, or ``inner`` gives up, is carried on opaque; with ``strict`` the connection is cut.
    """

    def __init__(self, inner: Codec, strict: bool = ...) -> None: ...

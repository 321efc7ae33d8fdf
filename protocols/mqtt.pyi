from protocols.codec import Codec
from protocols.trace_context import Ids

class Mqtt(Codec):
    """The engine of one MQTT connection.

    ``ids`` gives new ids and the sampling rate. With ``strict`` what is malformed is cut, not carried. With
    ``observe`` no byte is ever changed or held back.
    """

    def __init__(self, ids: Ids, strict: bool = False, observe: bool = False) -> None: ...

FAULTS: tuple[str, ...]  # what can be wrong with a packet, and what is allowed; the first is nothing

def is_utf8(text: bytes) -> bool:
    """Whether this may be a string of MQTT: well-formed UTF-8 without U+0000."""

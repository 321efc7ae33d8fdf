from protocols.exchange import Exchange
from protocols.verdict import Verdict

def decide(exchange: Exchange, server: str) -> Verdict:
    """The verdict on an exchange that ended; ``server`` is where it was going, as ``address:port``."""

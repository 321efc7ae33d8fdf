from protocols.exchange import Exchange
from protocols.verdict import Verdict

def decide(exchange: Exchange, server: str) -> Verdict:
    """The verdict on an exchange that ended; ``server`` is where it was going, as ``address:port``."""

def dial_answer(error: int, server: str) -> tuple[int, str, str]:
    """How HTTP is told that ``server`` could not be reached: status, cause, and one line of text."""

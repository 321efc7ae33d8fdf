"""What ARCA says about itself: one line per event on stderr, the same from every process."""

from __future__ import annotations

import logging


def configure_log(level: str) -> None:
    """``level`` as in the settings: debug, info, warning, error. May be called again to change it.

    It is the level of ARCA's own words; libraries are heard from ``warning`` on.
    """
    logging.basicConfig(
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s[%(process)d]: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
        level=logging.WARNING,
    )
    logging.getLogger("arca").setLevel(level.upper())

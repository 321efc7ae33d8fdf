"""Which ARCA this is."""

from importlib import metadata


def version() -> str:
    """The installed version; "unknown" in a source tree that was never installed."""
    try:
        return metadata.version("arca")
    except metadata.PackageNotFoundError:
        return "unknown"

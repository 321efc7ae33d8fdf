"""A client as applications have one: one kept-alive connection, GETs and POSTs, until SIGTERM.

Run as a program of its own, on the stage, with the URL as its argument; needs nothing but Python. It sends no
trace header and no request id: ARCA makes them, and gives the request id back with the response. At its end
it prints what it saw as one JSON object.
"""

from __future__ import annotations

import http.client
import json
import signal
import sys
import time
from urllib.parse import urlsplit

PAUSE = 0.04  # seconds between requests
BODY = b"x" * 20_000


def converse(url: str) -> dict[str, object]:
    """Requests until SIGTERM; answers the request ids that came back, and every failure in words."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
    ids: list[str] = []
    failures: list[str] = []
    turn = 0
    while not stopped:
        method, path, wanted = ("POST", "/orders", 201) if turn % 5 == 4 else ("GET", "/", 200)
        turn += 1
        try:
            connection.request(method, path, BODY if method == "POST" else None)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{method} {path}: {error!r}")
            connection.close()
        else:
            if response.status != wanted:
                failures.append(f"{method} {path}: status {response.status} instead of {wanted}")
            ids.append(response.headers.get("X-Request-ID", "none"))
        time.sleep(PAUSE)
    connection.close()
    return {"ids": ids, "failures": failures}


if __name__ == "__main__":
    print(json.dumps(converse(sys.argv[1])))

"""A small HTTP API on loopback that serves the airports in pages, and stumbles once.

    python examples/airports_api.py .demo/data/airports.csv

prints its address, then answers ``GET /airports?page=N`` with ``{"airports": [...], "next": N}``
(`next` is null on the last page). The first request for page 3 gets a 503.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

PAGE_SIZE = 100
LATENCY = 0.03
"""Seconds a request takes: a real API is not next door."""


class Airports(ThreadingHTTPServer):
    """The airports of `table`, a CSV file, on any free port of 127.0.0.1."""

    daemon_threads = True

    def __init__(self, table: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        with table.open(newline="") as lines:
            self.airports = list(csv.DictReader(lines))
        self.has_stumbled = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: Airports

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path != "/airports":
            self._answer(404, {"error": "there is only /airports"})
            return
        page = int(parse_qs(url.query).get("page", ["1"])[0])
        if page == 3 and not self.server.has_stumbled:
            self.server.has_stumbled = True
            self._answer(503, {"error": "try again"})
            return
        rows = self.server.airports[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        is_last = page * PAGE_SIZE >= len(self.server.airports)
        self._answer(200, {"airports": rows, "next": None if is_last else page + 1})

    def _answer(self, status: int, content: object) -> None:
        time.sleep(LATENCY)
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: the terminal belongs to the demo."""


if __name__ == "__main__":
    with Airports(Path(sys.argv[1])) as server:
        print(server.address, flush=True)
        server.serve_forever()

"""A server on 127.0.0.1 that hands requests on to another, and fails at some of them."""

import contextlib
import http.client
import http.server
import threading
import time
import urllib.parse
from collections.abc import Iterator

_PASSED = ("range", "content-type", "authorization", "if-none-match", "if-match")


class Faults:
    """What the next requests for bytes meet.

    Attributes:
      left: "refuse" for an answer of 503, or seconds to wait before the answer; each is met once.
      always: the same, met by every request once `left` is empty; None hands it on.
      asked: requests for bytes so far.
      most_at_once: how many were under way together.
    """

    def __init__(self):
        self.left, self.always = [], None
        self.asked = self.most_at_once = self._now = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def met(self):
        """Yields what a request meets."""
        with self._lock:
            self.asked += 1
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            fault = self.left.pop(0) if self.left else self.always
        try:
            yield fault
        finally:
            with self._lock:
                self._now -= 1


@contextlib.contextmanager
def before(url: str) -> Iterator[tuple[str, Faults]]:
    """Yields the address of a server that hands on to `url`, and its faults."""
    faults, there = Faults(), urllib.parse.urlparse(url).netloc

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            with faults.met() as fault:
                if fault == "refuse":
                    return self.answer(503, b"busy", {})
                time.sleep(fault or 0)
                connection = http.client.HTTPConnection(there, timeout=20)
                headers = {k: v for k, v in self.headers.items() if k.lower() in _PASSED}
                connection.request(self.command, self.path, headers=headers)
                found = connection.getresponse()
                self.answer(found.status, found.read(), dict(found.getheaders()))
                connection.close()

        do_HEAD = do_GET

        def answer(self, status, body, headers):
            with contextlib.suppress(OSError):  # nobody waits any more
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        server.server_close()

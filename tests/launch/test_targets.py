"""What targets render: by golden files, by shells, and by the schema of Kubernetes' JobSet."""

import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from recursia import modules, parsing
from recursia.launch.targets.target import Target
from recursia.verbs import train
from tests.helpers.jobs import CASES, COMMAND, job
from tests.helpers.refusals import refused

GOLDEN = pathlib.Path(__file__).parent / "golden"
MANIFESTS = {name: case for name, case in CASES.items() if name.startswith("gke")}


def script(name):
    target, made = CASES[name]
    target.check(made)
    return target.script(made)


def documents(text):
    """Returns what a script passes to programs in here-documents."""
    return re.findall(r"<<'END'\n(.*?)^END$", text, flags=re.MULTILINE | re.DOTALL)


def bash(text, *arguments, **variables):
    env = {"PATH": os.environ["PATH"], **variables}
    command = ["bash", *arguments]
    return subprocess.run(command, input=text, env=env, capture_output=True, text=True)


def test_every_target_has_a_golden_file():
    assert {type(target).title() for target, _ in CASES.values()} == {
        name.replace("_", "-") for name in modules.names(Target)
    }
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_script_is_the_golden_one(name):
    """After a change that is meant: RECURSIA_GOLDEN=write pytest tests/launch/test_targets.py."""
    path = GOLDEN / f"{name}.sh"
    if os.environ.get("RECURSIA_GOLDEN") == "write":
        path.write_text(script(name))
    assert script(name) == path.read_text()


@pytest.mark.parametrize("name", CASES)
def test_bash_reads_a_script_and_the_scripts_in_it(name):
    text = script(name)
    inner = [each for each in documents(text) if each.startswith("#!/bin/bash")]
    assert len(inner) == (not name.startswith(("local", "gke", "skypilot")))
    for each in (text, *inner):
        done = bash(each, "-n")
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_knows_every_field_of_a_manifest(name):
    """A field that the models do not know is dropped on the way through them."""
    target, made = MANIFESTS[name]
    manifest = target.manifest(made)
    assert JobsetV1alpha2JobSet.from_dict(manifest).to_dict() == manifest
    (sent,) = documents(script(name))
    assert yaml.safe_load(sent) == manifest
    pods = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    planted = {**pods["template"]["spec"], "gracePeriod": 1}
    pods["template"]["spec"] = planted
    assert JobsetV1alpha2JobSet.from_dict(manifest).to_dict() != manifest


def test_codes_that_are_settled_fail_a_job_set_and_others_start_it_again():
    target, made = CASES["gke_tpu"]
    spec = target.manifest(made)["spec"]
    (rule,) = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"operator": "In", "values": [2, 3, 4, 5]},
    }
    (policy,) = spec["failurePolicy"]["rules"]
    assert policy["action"] == "FailJobSet"
    assert policy["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert spec["failurePolicy"]["maxRestarts"] == made.restarts


def pod(target, made):
    """Returns the specification of a pod of a JobSet."""
    job_spec = target.manifest(made)["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job_spec["template"]["spec"]


def arguments_of(name):
    """Returns what `recursia` is given by a script, as a shell or Kubernetes passes it on."""
    target, made = CASES[name]
    if name in MANIFESTS:
        (container,) = pod(target, made)["containers"]
        passed = " ".join(map(shlex.quote, container["command"])).replace("$$(", "$(")
        line = passed.replace("$(JOB_COMPLETION_INDEX)", "1")
    elif name.startswith("skypilot"):
        line = target.task(made)["run"]
    else:
        text = (documents(script(name)) or [script(name)])[0]
        text = re.sub(r" \\\n *", " ", text)
        line = next(line for line in text.splitlines() if " train --config" in line)
    command = re.search(r"\S*recursia train .*?(?= &$| ;;$|$)", line)[0]
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}
    done = bash(f'said() {{ printf "%s\\0" "$@"; }}; said {command}', **nodes)
    assert done.returncode == 0, done.stderr
    program, *arguments = done.stdout.split("\0")[:-1]
    assert program == made.program
    return arguments


@pytest.mark.parametrize("name", CASES)
def test_the_command_arrives_as_it_was_given_and_train_takes_it(name):
    arrived = arguments_of(name)
    assert tuple(arrived[: len(COMMAND)]) == COMMAND
    parser = parsing.Parser(prog="recursia train")
    train.options(parser)
    rest, _ = parsing.split(arrived[1:])
    given = parser.parse_args(rest)
    joins = {"gke_gpu": ("pretrain-host-0-0.pretrain:8476", 2), "skypilot": ("10.0.0.1:8476", 2)}
    joins |= {"local": ("127.0.0.1:8476", 2)}
    assert (given.coordinator, given.num_processes) == joins.get(name, (None, None))


def test_a_host_of_gpus_is_one_task_that_sees_all_of_them():
    text = script("slurm")
    assert "--ntasks-per-node=1" in text and "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7" in text
    assert "JAX_LOCAL_DEVICE_IDS" not in script("slurm_array")


@pytest.mark.parametrize("code", [0, 1, 75])
def test_a_batch_script_queues_itself_again_after_75_alone(tmp_path, code):
    (inner,) = documents(script("slurm"))
    head = f"srun() {{ return {code}; }}; scontrol() {{ echo again $*; }}\n"
    for count, is_left in (("", True), ("8", True), ("9", False)):
        done = bash(head + inner, SLURM_JOB_ID="7", SLURM_RESTART_COUNT=count)
        assert done.returncode == code
        assert done.stdout == ("again requeue 7\n" if code == 75 and is_left else "")


@pytest.mark.parametrize(("code", "times"), [(0, 1), (3, 1), (75, 10), (134, 10)])
def test_a_host_starts_the_command_again_until_it_is_settled(tmp_path, code, times):
    (inner,) = documents(script("tpu_vm_spot"))
    head = f"docker() {{ echo started; return {code}; }}; sleep() {{ :; }}\n"
    text = inner.replace("/var/log/pretrain.log", str(tmp_path / "log"))
    done = bash(head + text)
    said = (tmp_path / "log").read_text()
    assert done.returncode == 0 and said.count("started") == times


def test_a_spot_resource_that_is_lost_is_asked_for_again(tmp_path):
    """As long as it is there; the second is lost too, and then someone deletes the third."""
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(
        f"""#!/bin/bash
echo "$4" "$5" >>{tmp_path}/asked
last="${{@: -1}}"
[ "$4" != create ] || cat "${{last##*=}}" >{tmp_path}/boot
[ "$4" = describe ] || exit 0
count=$(grep -c describe {tmp_path}/asked)
case $count in 1) echo ACTIVE ;; 3|4) echo SUSPENDED ;; *) exit 1 ;; esac
"""
    )
    gcloud.chmod(0o755)
    text = "sleep() { :; }\n" + script("tpu_vm_spot")
    done = bash(text, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    asked = [line.split()[0] for line in (tmp_path / "asked").read_text().splitlines()]
    again = ["describe", "delete", "create"]
    assert asked == ["create", "describe", "describe", *again, *again, *["describe"] * 5]
    assert (tmp_path / "boot").read_text() + "\n" == documents(text)[0]


@pytest.mark.slow
def test_gcloud_reads_the_commands_of_queued_resources(tmp_path):
    """By its own parser, before it asks for an account, of which it knows none here."""
    if shutil.which("gcloud") is None:
        pytest.skip("the Google Cloud CLI is not installed")
    alone = {"CONFIG": str(tmp_path), "CORE_DISABLE_PROMPTS": "1", "CORE_PROJECT": "none"}
    alone |= {"CORE_CHECK_GCE_METADATA": "false"}  # which would name an account
    alone |= {"API_ENDPOINT_OVERRIDES_TPU": "http://127.0.0.1:9/"}  # where nothing listens
    alone = {f"CLOUDSDK_{name}": value for name, value in alone.items()}
    said = lambda text: bash(text, HOME=str(tmp_path), **alone).stderr

    for name in ("tpu_vm", "tpu_vm_spot"):
        boot, then = script(name).split("create() {\n")
        create, _, watch = then.partition("\n}\n")
        whole = re.sub(r" \\\n *", " ", create + "\n" + watch)
        commands = re.findall(r"gcloud compute tpus .*?(?=\); then|$)", whole, re.MULTILINE)
        assert len(commands) == (3 if name == "tpu_vm_spot" else 1)
        for command in commands:
            assert "active account" in said(f"{boot}\n{command}"), command
    assert "unrecognized arguments" in said(f"{boot}\n{command} --unknown")


REFUSED = [
    ("local", {"topology": "cpu:2"}, "leave --topology out"),
    ("local", {"image": "x"}, "local starts no image"),
    ("local", {"seconds": 60}, "no time limit"),
    ("slurm", {"topology": "v5e:16x16"}, "slurm starts hosts with GPUs"),
    ("slurm", {"name": "a/b"}, "--name=a/b: for slurm takes letters", "--name=a-b"),
    ("gke_tpu", {"image": ""}, "needs --image=IMAGE"),
    ("gke_tpu", {"topology": "cpu:2"}, "TPU slices (v5e:16x16) or GPUs"),
    ("gke_tpu", {"name": "My_Run"}, "a DNS label", "--name=my-run"),
    ("gke_tpu", {"name": "x" * 41}, "at most 40"),
    ("gke_tpu", {"venv": "/env"}, "gke starts no venv"),
    ("gke_tpu", {"shared": ("/a",)}, "--shared=/a: give both"),
    ("gke_tpu", {"topology": "h100:8x2"}, "the command of XPK is given for TPU slices"),
    ("gke_gpu", {"commands": (COMMAND, COMMAND)}, "starts one command, got 2"),
    ("tpu_vm", {"topology": "h100:8x2"}, "tpu-vm starts TPU slices"),
    ("tpu_vm", {"venv": ""}, "--image=IMAGE, or --venv=DIR"),
    ("tpu_vm", {"image": "x"}, "give one of the two"),
    ("tpu_vm", {"name": "9lives"}, "a DNS label"),
    ("skypilot", {"topology": "v5e:4x4:2"}, "one TPU slice"),
    ("skypilot", {"restarts": 3}, "--restarts=3: skypilot", "leave it out"),
    ("skypilot_tpu", {"image": ""}, "--target.setup=COMMAND"),
]


@pytest.mark.parametrize(("name", "change", "parts"), [(n, c, p) for n, c, *p in REFUSED])
def test_what_a_target_cannot_start_is_refused(name, change, parts):
    target, made = CASES[name]
    where = job(change["topology"]).machines if "topology" in change else made.machines
    change = {"machines": where, **{k: v for k, v in change.items() if k != "topology"}}
    with refused(ValueError, *parts):
        target.check(dataclasses.replace(made, **change))


FREE = {"setup"}  # settings of text for a shell
ODD = ("a b", "it's", 'a"b', "$(x)", "a;b", "#a", "-a")
TOO = {"infra": ("a b",), "logs": ("a\\b",), "namespace": (*ODD, "a.b", "A")}


@pytest.mark.parametrize("name", CASES)
def test_every_setting_that_names_something_is_legal_where_it_goes(name):
    target, made = CASES[name]
    named = {field.name for field in dataclasses.fields(target) if field.type is str} - FREE
    assert named == set(target.NAMES)
    for setting in named:
        for value in TOO.get(setting, ODD):
            with refused(ValueError, f"--target.{setting}={value}: takes "):
                dataclasses.replace(target, **{setting: value}).check(made)


@pytest.mark.parametrize(
    ("name", "grace", "seconds", "parts"),
    [
        ("slurm", 0, 0, ["--target.grace=0", "1 to 65535"]),
        ("slurm", 65536, 0, ["--target.grace=65536", "1 to 65535"]),
        ("slurm", 300, 360, ["--hours=0.1", "360 seconds", "--target.grace=300", "again"]),
        ("gke_tpu", 0, 0, ["--target.grace=0", "no time to save"]),
    ],
)
def test_a_run_has_time_to_train_and_to_save(name, grace, seconds, parts):
    target, made = CASES[name]
    with refused(ValueError, *parts):
        dataclasses.replace(target, grace=grace).check(dataclasses.replace(made, seconds=seconds))
    dataclasses.replace(target, grace=1).check(dataclasses.replace(made, seconds=120))


def test_the_folder_of_logs_may_have_any_name():
    target, made = CASES["slurm_array"]
    text = dataclasses.replace(target, logs="/s/it's 5% #1/").script(made)
    (line,) = (line for line in text.splitlines() if "--output" in line)
    assert shlex.split(line, comments=False)[1:] == ["--output=/s/it's 5%% #1/pretrain-%A_%a.log"]


def test_a_script_may_be_longer_than_an_argument(tmp_path):
    class Runs(Target):
        ENGINE = "true"

    made = tmp_path / "made"
    assert Runs().sent(f"echo here >{made} # {'x' * (1 << 18)}") == ""
    assert made.read_text() == "here\n"


def test_the_command_of_xpk_is_one_line_of_shell():
    line = script("gke_tpu").splitlines()[0]
    parts = shlex.split(line.removeprefix("# The same through XPK: "))
    assert parts[:3] == ["xpk", "workload", "create"]
    assert f"--command={shlex.join(['recursia', *COMMAND])}" in parts

"""Google Kubernetes Engine: a JobSet that Kueue admits, and the command of XPK that is like it."""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any, ClassVar

import yaml

from recursia.errors import ConfigError
from recursia.launch.job import PORT, RESUMABLE, SETTLED, Job
from recursia.launch.machines import Machines
from recursia.launch.targets.target import Target, document

# Labels of node pools.
_TPUS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
_GPUS = {"a100": "nvidia-a100-80gb", "h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb"}
_GROUP = "host"  # name of the replicated job, in the names of pods
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "a DNS label: a-z, 0-9 and '-', at most 63"
_OBJECT = r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", "a-z, 0-9, '-' and '.', at most 63"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gke(Target):
    """A JobSet with one pod on each host.

    A pod that ends with a code after which the same command ends alike fails the set; after any
    other, all pods are started again, at most as often as `--restarts` says.

    Attributes:
      queue: Kueue's LocalQueue, which admits the job.
      namespace: of the queue and the job.
      cluster: for the command of XPK, on TPUs; "" leaves that command out.
      volume: a persistent volume claim, mounted at the folder of `--shared`; "" mounts none.
      service_account: of the pods; "" takes the namespace's default.
      spot: whether the pods run on spot nodes.
      grace: seconds between the signal to stop and the end of a pod.
    """

    ENGINE: ClassVar[str] = "kubectl"
    INSTALL: ClassVar[str] = "install kubectl and the cluster's credentials"
    TAKES: ClassVar[tuple[str, ...]] = ("image",)
    NAME: ClassVar[str] = r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?"
    NAME_IN_WORDS: ClassVar[str] = "a DNS label: a-z, 0-9 and '-', from a letter, at most 40"
    NAMES: ClassVar[Mapping[str, tuple[str, str]]] = {
        "queue": _OBJECT,
        "namespace": _LABEL,
        "cluster": _LABEL,
        "volume": _OBJECT,
        "service_account": _OBJECT,
    }

    queue: str
    namespace: str = "default"
    cluster: str = ""
    volume: str = ""
    service_account: str = ""
    spot: bool = False
    grace: int = 300

    def check(self, job: Job) -> None:
        """See `Target.check`."""
        super().check(job)
        if not job.image:
            raise ConfigError("--target=gke: needs --image=IMAGE, one that has recursia")
        if not job.machines.per_host:
            raise self.refuse_machines(job, "TPU slices (v5e:16x16) or GPUs (h100:8x2)")
        if self.cluster and not job.machines.is_tpu:
            raise ConfigError(
                f"--target.cluster={self.cluster}: the command of XPK is given for TPU slices; "
                "leave it out"
            )
        if not self.grace:
            raise ConfigError("--target.grace=0: leaves no time to save; takes seconds from 1")
        if bool(self.volume) != bool(job.shared) or len(job.shared) > 1:
            raise ConfigError(
                f"--target.volume={self.volume}, --shared={','.join(job.shared)}: give both, a "
                "claim and the one folder where pods see it, or neither"
            )

    def script(self, job: Job) -> str:
        """See `Target.script`."""
        text = yaml.safe_dump(self.manifest(job), sort_keys=False, width=1000)
        sent = document(f"kubectl apply --namespace={self.namespace} --filename=-", text)
        xpk = f"# The same through XPK: {shlex.join(self.xpk(job))}\n" if self.cluster else ""
        return xpk + sent

    def manifest(self, job: Job) -> dict[str, Any]:
        """Returns the JobSet."""
        rule = {
            "name": "settled",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
        }
        replicated = {
            "name": _GROUP,
            "replicas": job.machines.slices,
            "template": {"spec": self._job(job)},
        }
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {
                "name": job.name,
                "namespace": self.namespace,
                "labels": {"kueue.x-k8s.io/queue-name": self.queue},
                "annotations": _placed(job.machines),
            },
            "spec": {
                "failurePolicy": {"maxRestarts": job.max_restarts, "rules": [rule]},
                "replicatedJobs": [replicated],
            },
        }

    def _job(self, job: Job) -> dict[str, Any]:
        codes = {"operator": "In", "values": list(SETTLED)}
        spec: dict[str, Any] = {
            "parallelism": job.machines.hosts_per_slice,
            "completions": job.machines.hosts_per_slice,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": codes}]},
            "template": {"spec": self._pod(job)},
        }
        return {**spec, "activeDeadlineSeconds": job.seconds} if job.seconds else spec

    def _pod(self, job: Job) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.grace,
            "nodeSelector": _nodes(job.machines)
            | ({"cloud.google.com/gke-spot": "true"} if self.spot else {}),
            "containers": [self._container(job)],
        }
        if self.service_account:
            spec["serviceAccountName"] = self.service_account
        if self.volume:
            claim = {"persistentVolumeClaim": {"claimName": self.volume}}
            spec["volumes"] = [{"name": "shared", **claim}]
        if job.machines.is_tpu:  # pods of a slice reach each other faster so
            spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
        else:
            spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
        return spec

    def _container(self, job: Job) -> dict[str, Any]:
        resource = "google.com/tpu" if job.machines.is_tpu else "nvidia.com/gpu"
        limits = {resource: job.machines.per_host}
        container: dict[str, Any] = {
            "name": "train",
            "image": job.image,
            "command": [job.program, *map(_literal, job.commands[0]), *_joined(job)],
            "resources": {"requests": dict(limits), "limits": limits},
        }
        if job.environment:
            pairs = job.environment.items()
            container["env"] = [{"name": n, "value": _literal(value)} for n, value in pairs]
        if self.volume:
            container["volumeMounts"] = [{"name": "shared", "mountPath": job.shared[0]}]
        return container

    def xpk(self, job: Job) -> list[str]:
        """Returns the command of XPK for the same job."""
        return [
            *("xpk", "workload", "create", f"--cluster={self.cluster}", f"--workload={job.name}"),
            f"--tpu-type={job.machines.cloud_type}",
            f"--num-slices={job.machines.slices}",
            f"--docker-image={job.image}",
            f"--command={' '.join(job.words())}",
            *(f"--env={name}={value}" for name, value in job.environment.items()),
            f"--max-restarts={job.max_restarts}",
            f"--restart-on-exit-codes={RESUMABLE}",
            f"--termination-grace-period-seconds={self.grace}",
        ]


def _literal(text: str) -> str:
    """Returns text in which Kubernetes does not replace $(NAME)."""
    return text.replace("$(", "$$(")


def _joined(job: Job) -> list[str]:
    """Returns the flags that join GPU hosts; TPU hosts find each other."""
    if job.machines.is_tpu or job.machines.hosts == 1:
        return []
    return [
        f"--coordinator={job.name}-{_GROUP}-0-0.{job.name}:{PORT}",
        f"--num_processes={job.machines.hosts}",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]


def _placed(machines: Machines) -> dict[str, str]:
    """Returns the annotation that gives each slice a node pool of its own."""
    pool = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return pool if machines.is_tpu else {}


def _nodes(machines: Machines) -> dict[str, str]:
    """Returns the labels of the nodes."""
    if machines.is_gpu:
        return {"cloud.google.com/gke-accelerator": _GPUS[machines.chip]}
    return {
        "cloud.google.com/gke-tpu-accelerator": _TPUS[machines.chip],
        "cloud.google.com/gke-tpu-topology": machines.shape,
    }

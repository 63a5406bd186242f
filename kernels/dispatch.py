"""Chooses the implementation of an op when a program is lowered, for the platform of the program.

Until then an op is one equation of the program. So a program traced on a CPU can be lowered for an
absent TPU or GPU, and its FLOPs can be counted without looking into kernels.
"""

import dataclasses
import functools
import importlib
import logging
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from . import tuned

try:
    from jax._src.dispatch import prim_requires_devices_during_lowering as NEED_DEVICES
except ImportError:
    NEED_DEVICES = None

Platform = Literal["cpu", "tpu", "cuda"]
LOG = logging.getLogger("recursia.kernels")

# Parts of the names of NVIDIA's Hopper GPUs. Tensor cores of others have other instructions.
HOPPER = ("H100", "H200", "H800", "H20", "GH200")


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Attributes:
      name: its name as a `backend`.
      platform: the platform it runs on.
      run: takes the arguments of the reference.
      config: returns the sizes that it computes from the same arguments, as a `Config`: a frozen
        dataclass of integers, which `run` takes as `config`. None: it has no sizes. Both raise
        NotImplementedError, with the reason, for arguments that they do not support.
      devices: parts of the names of the kinds of device it runs on; none: on all of the platform.
    """

    name: str
    platform: Platform
    run: Callable[..., Any]
    config: Callable[..., Any] | None = None
    devices: tuple[str, ...] = ()

    def apply(
        self, op: "Op", arrays: Any, static: dict[str, Any], device: str | None = None, **how: Any
    ) -> Any:
        """Returns the results, with the sizes that were measured for a device if any were."""
        if device and self.devices and not any(name in device for name in self.devices):
            raise NotImplementedError(f"it runs on {', '.join(self.devices)}, not on {device}")
        if self.config is not None:
            how["config"] = self.sizes(op, arrays, static, device)
        return self.run(*arrays, **static, **how)

    def sizes(self, op: "Op", arrays: Any, static: dict[str, Any], device: str | None) -> Any:
        """Returns its `Config`: that of the table of a device, or else computed."""
        assert self.config is not None
        config = self.config(*arrays, **static)
        if device is None:
            return config
        return tuned.look_up(config, device, op.name, self.name, op.sized_by(*arrays))


def on_hopper(package: str, name: str, config: Callable[..., Any]) -> Implementation:
    """Returns the kernel `name` of a package's `gpu`, imported when the kernel is lowered.

    The import of Pallas's Mosaic GPU backend takes a quarter of a second, which most programs save.
    """

    def run(*args: Any, **how: Any) -> Any:
        return getattr(importlib.import_module(".gpu", package), name)(*args, **how)

    return Implementation("mosaic_gpu", "cuda", run, config, HOPPER)


@dataclasses.dataclass(frozen=True)
class Op:
    """A function of arrays with several implementations.

    With `backend="auto"` the first implementation of the platform that supports the arguments runs,
    or else the reference; the logger "recursia.kernels" says which one, and why. With "reference"
    or the name of an implementation, only that one may run.

    Attributes:
      name: name of the equation.
      reference: defines the results of all implementations; runs on every platform.
      implementations: in order of preference for each platform.
      flops: returns the FLOPs of the matrix products from the arrays; None if there are none.
      sized_by: returns what tables of measured sizes know the arrays by: shapes and dtypes.
    """

    name: str
    reference: Callable[..., Any]
    implementations: tuple[Implementation, ...]
    flops: Callable[..., int] | None = None
    sized_by: Callable[..., Any] = lambda *arrays: jax.tree.leaves(arrays)

    @functools.cached_property
    def primitive(self) -> Primitive:
        """The equation, with the tree of arrays, the backend and static arguments as parameters."""
        primitive = _Equation(self.name)
        primitive.multiple_results = True
        primitive.op = self
        primitive.def_impl(lambda *leaves, **kept: _compiled(primitive, **kept)(*leaves))
        primitive.def_abstract_eval(self._shapes)
        lower = lambda platform: (
            lambda context, *leaves, **kept: mlir.lower_fun(
                functools.partial(self._run, platform=platform, device=_device_kind(context))
            )(context, *leaves, **kept)
        )
        if NEED_DEVICES is not None:  # also of cuDNN's partitioning, which is inside of an op
            NEED_DEVICES.add(primitive)
        mlir.register_lowering(primitive, lower("cpu"))
        for platform in ("tpu", "cuda"):
            mlir.register_lowering(primitive, lower(platform), platform=platform)
        batching.primitive_batchers[primitive] = functools.partial(_one_by_one, primitive)
        return primitive

    def __call__(self, *arrays: Any, backend: str = "auto", **static: Any) -> Any:
        """Applies the op to arrays (or None) and hashable keyword arguments.

        Raises:
          ValueError: for an unknown backend.
          NotImplementedError: when lowered, if the named backend does not support the arguments.
        """
        names = ("auto", "reference", *(each.name for each in self.implementations))
        if backend not in names:
            raise ValueError(f"{self.name}: no backend {backend!r}; it has {', '.join(names)}.")
        leaves, tree = jax.tree.flatten(arrays)
        kept = tuple(sorted(static.items()))
        outs = self.primitive.bind(*leaves, tree=tree, backend=backend, static=kept)
        return jax.tree.unflatten(self._out(leaves, tree, kept)[1], outs)

    def _out(self, leaves: Any, tree: Any, static: Any) -> tuple[list[Any], Any]:
        return _shapes_of(self.reference, tuple((x.shape, x.dtype) for x in leaves), tree, static)

    def _shapes(self, *leaves: Any, tree: Any, backend: str, static: Any) -> list[Any]:
        outs, _ = self._out(leaves, tree, static)
        return [ShapedArray(out.shape, out.dtype) for out in outs]

    def _run(
        self, *leaves: Any, tree: Any, backend: str, static: Any, platform: Any, device: str | None
    ) -> list[Any]:
        arrays = jax.tree.unflatten(tree, leaves)
        name, outs, reasons = self.choose(arrays, dict(static), backend, platform, device)
        declined = "".join(f"; {other} declines: {why}" for other, why in reasons.items())
        # A warning only where a platform has kernels and none of them runs.
        level = logging.WARNING if reasons and name == "reference" else logging.DEBUG
        shapes = [leaf.shape for leaf in leaves]
        LOG.log(level, "%s%s on %s takes %s%s", self.name, shapes, platform, name, declined)
        return jax.tree.leaves(outs)

    def choose(
        self,
        arrays: Any,
        static: dict[str, Any],
        backend: str,
        platform: Platform,
        device: str | None = None,
    ) -> tuple[str, Any, dict[str, str]]:
        """Returns an implementation's name, its results, and why those tried before did not run.

        Without numbers to compute, as of no tokens, it is the reference.
        """
        is_auto, reasons = backend == "auto", {}
        wanted = lambda each: each.platform == platform if is_auto else each.name == backend
        is_empty = any(0 in leaf.shape for leaf in jax.tree.leaves(arrays))
        for each in () if is_empty else filter(wanted, self.implementations):
            if each.platform != platform:
                raise NotImplementedError(
                    f"{self.name}: backend {backend!r} runs on {each.platform}, not on {platform}; "
                    "take 'auto' or 'reference'"
                )
            try:
                return each.name, each.apply(self, arrays, static, device), reasons
            except NotImplementedError as reason:
                if not is_auto:
                    raise
                reasons[each.name] = str(reason)
        return "reference", self.reference(*arrays, **static), reasons


class _Equation(Primitive):
    op: Op


def _device_kind(context: Any) -> str | None:
    """Returns the kind of the devices that a program is lowered for; None if it is for any."""
    context = context.module_context.axis_context
    mesh = getattr(context, "mesh", None)
    if isinstance(mesh, jax.sharding.AbstractMesh):  # its `devices` are an error
        return getattr(mesh.abstract_device, "device_kind", None)
    devices = mesh.devices.flat if mesh else context.device_assignment
    return None if devices is None else next(iter(devices)).device_kind


@functools.lru_cache(maxsize=4096)  # called several times for each call of an op
def _shapes_of(reference: Callable, given: Any, tree: Any, static: Any) -> tuple[list[Any], Any]:
    """Returns the shapes of a reference's results, flat, and their tree."""
    arrays = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*each) for each in given])
    return jax.tree.flatten(jax.eval_shape(functools.partial(reference, **dict(static)), *arrays))


@functools.lru_cache
def _compiled(primitive: Primitive, **kept: Any) -> Callable[..., Any]:
    return jax.jit(functools.partial(primitive.bind, **kept))


def _one_by_one(primitive: Primitive, leaves: Any, axes: Any, **kept: Any) -> tuple[Any, Any]:
    """Batching rule: runs the op for one entry of the batch after another, on the whole device."""
    one = jax.custom_batching.sequential_vmap(functools.partial(primitive.bind, **kept))
    outs = jax.vmap(one, axes)(*leaves)
    return outs, [0] * len(outs)

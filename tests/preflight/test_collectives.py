"""Collectives of compiled programs: known programs have known ones, on every kind of machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from recursia import topology
from recursia.preflight import collectives, hlo, loops, traffic

MACHINES = ("cpu", "v5e:2x4", pytest.param("h100:8", marks=pytest.mark.gpu_compile))
MESH = {"data": 2, "fsdp": 4}
BOTH = P(("data", "fsdp"), None)
ROWS, WIDTH = 128, 256  # of one device, float32
SIZE = 4 * ROWS * WIDTH


def compiled(machine, f, *arguments):
    """Returns the program of `f(mesh)` of arrays over the mesh, given as shapes and splits."""
    devices = jax.devices() if machine == "cpu" else topology.devices(machine)
    mesh = Mesh(np.array(devices).reshape(2, 4), tuple(MESH), axis_types=(AxisType.Auto,) * 2)
    place = lambda shape, spec: jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=NamedSharding(mesh, spec)
    )
    lowered = jax.jit(f(mesh)).lower(*(place(*each) for each in arguments))
    return hlo.parse(lowered.compile().as_text())


def manual(body):
    """Returns `compiled`'s f: a function of each device's own rows."""
    return lambda mesh: jax.shard_map(
        body, mesh=mesh, in_specs=BOTH, out_specs=BOTH, check_vma=False
    )


def every_kind(x):
    def seven_times(c, _):
        c = jax.lax.all_gather(c, "fsdp", tiled=True)
        c = jax.lax.psum_scatter(c, "fsdp", tiled=True)
        c = jax.lax.ppermute(c, "fsdp", [(i, (i + 1) % 4) for i in range(4)])
        c = jax.lax.all_to_all(c.reshape(4, -1, WIDTH), "fsdp", 0, 0).reshape(c.shape)
        return 0.5 * jax.lax.psum(c, "data"), None

    def nested(c, _):
        twice = lambda c, _: (0.1 * jax.lax.psum(jnp.sin(c), ("data", "fsdp")), None)
        return jax.lax.scan(twice, c, None, length=2)[0], None

    x, _ = jax.lax.scan(seven_times, x, None, length=7)
    x, _ = jax.lax.scan(nested, x, None, length=3)
    return jax.lax.psum(jnp.cos(x), "data")


@pytest.fixture(scope="module", params=MACHINES)
def found(request):
    program = compiled(request.param, manual(every_kind), ((8 * ROWS, WIDTH), BOTH))
    return {(each.kind, each.group_size): each for each in collectives.collectives(program)}


def test_kinds_sizes_groups_and_executions_are_those_of_the_traced_program(found):
    """Operands as each device has them; an all-gather's and a reduce-scatter's whole array."""
    said = {key: (each.bytes, each.executions) for key, each in found.items()}
    assert said == {
        ("all-gather", 4): (4 * SIZE, 7),
        ("reduce-scatter", 4): (4 * SIZE, 7),
        ("collective-permute", 4): (SIZE, 7),
        ("all-to-all", 4): (SIZE, 7),
        ("all-reduce", 2): (SIZE, 8),
        ("all-reduce", 8): (SIZE, 6),
    }
    assert all(each.is_certain for each in found.values())


def test_groups_name_the_axes_of_the_mesh(found):
    axes = {key: each.axes(MESH) for key, each in found.items()}
    assert axes["all-gather", 4] == axes["collective-permute", 4] == ("fsdp",)
    assert axes["all-reduce", 2] == ("data",)
    assert axes["all-reduce", 8] == ("data", "fsdp")


def test_a_ring_sends_what_a_device_lacks(found):
    sent = {key: each.sent / SIZE for key, each in found.items()}
    assert sent["all-gather", 4] == sent["reduce-scatter", 4] == 3
    assert sent["all-to-all", 4] == 0.75
    assert sent["collective-permute", 4] == sent["all-reduce", 2] == 1
    assert sent["all-reduce", 8] == 1.75


@pytest.mark.parametrize("machine", MACHINES)
def test_partitioned_loops_count_once_for_each_step(machine):
    """A weight split over fsdp is gathered in the loop: forward, and again by the backward pass."""
    steps = 5

    def f(mesh):
        rows = NamedSharding(mesh, BOTH)

        def loss(w, x):
            def body(x, _):
                wide = jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows)
                return x + wide, None

            x, _ = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), x, None, length=steps)
            return (x**2).sum()

        return jax.grad(loss)

    shapes = ((WIDTH, WIDTH), P("fsdp", None)), ((8 * ROWS, WIDTH), BOTH)
    program = compiled(machine, f, *shapes)
    assert sorted(times_of_loops(program)) == [steps, steps]
    rows = collectives.collectives(program)
    gathers = sum(each.executions for each in rows if each.kind == "all-gather")
    assert gathers in (1, 2) or (gathers and gathers % steps == 0)  # hoisted, or in the loops


def times_of_loops(program):
    loop = [
        (computation, each)
        for name, computation in program.computations.items()
        for each in computation.instructions.values()
        if each.opcode == "while" and name in loops.runs(program)
    ]
    return [loops.trip_count(program, *each) for each in loop]


@pytest.mark.parametrize(
    ("condition", "step", "trips"),
    [
        (lambda i: i < 11, 1, 11),
        (lambda i: i <= 10, 2, 6),
        (lambda i: 3 > i, 1, 3),
        (lambda i: i != 12, 3, 4),
    ],
)
@pytest.mark.parametrize("machine", ("v5e:2x4",))
def test_a_trip_count_follows_from_condition_start_and_step(machine, condition, step, trips):
    """Where the compiler notes none: TPU programs."""

    def body(x):
        once = lambda s: (s[0] + step, 0.1 * jax.lax.psum(s[1], "data"))
        return jax.lax.while_loop(lambda s: condition(s[0]), once, (jnp.int32(0), x))[1]

    program = compiled(machine, manual(body), ((8 * ROWS, WIDTH), BOTH))
    assert times_of_loops(program) == [trips]


def test_a_loop_of_unknown_length_says_so():
    def body(x):
        once = lambda s: (s[0] + 1, 0.1 * jax.lax.psum(s[1], "data"))
        open_ = lambda s: s[1].max() > s[0]
        return jax.lax.while_loop(open_, once, (jnp.int32(0), x))[1]

    program = compiled("v5e:2x4", manual(body), ((8 * ROWS, WIDTH), BOTH))
    [row] = [r for r in collectives.collectives(program) if r.kind == "all-reduce"]
    assert row.executions == 1 and not row.is_certain


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("replica_groups={}", ((0, 1, 2, 3),)),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("replica_groups=[1,4]<=[4]", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3))),
        ("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", ((0, 1), (2, 3))),
    ],
)
def test_every_printed_form_of_groups_is_read(attributes, groups):
    text = f"""HloModule m, num_partitions=4

ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %r = f32[8]{{0}} all-reduce(%p), channel_id=1, {attributes}, to_apply=%add
}}
"""
    [row] = collectives.collectives(hlo.parse(text))
    assert row.groups == groups


def test_tuples_and_asynchronous_pairs_count_once():
    text = """HloModule m, num_partitions=2

%wrapped (q: s8[4]) -> s8[8] {
  %q = s8[4]{0} parameter(0)
  ROOT %g = s8[8]{0} all-gather(%q), replica_groups={{0,1}}, dimensions={0}
}

ENTRY %main (a: bf16[3,5], b: f32[], c: s8[4]) -> (bf16[3,5], f32[]) {
  %a = bf16[3,5]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  %c = s8[4]{0} parameter(2)
  %s = ((s8[4]{0}), s8[8]{0}, u32[]) async-start(%c), calls=%wrapped
  %u = s8[8]{0} async-done(%s), calls=%wrapped
  %r = (bf16[3,5]{1,0:T(8,128)(2,1)}, f32[]{:T(128)}) all-reduce-start(%a, %b), to_apply=%add
  ROOT %d = (bf16[3,5]{1,0:T(8,128)(2,1)}, f32[]{:T(128)}) all-reduce-done(%r)
}
"""
    rows = collectives.collectives(hlo.parse(text))
    assert {(r.kind, r.bytes, r.executions) for r in rows} == {
        ("all-reduce", 34, 1),
        ("all-gather", 8, 1),
    }


def test_a_computation_of_another_core_ends_and_counts():
    text = """HloModule m, num_partitions=2

%offloaded (q: f32[4]) -> f32[4] {
  %q = f32[4]{0} parameter(0), backend_config={"kernel":"
}} not an end"}
  ROOT %r = f32[4]{0} all-reduce(%q), replica_groups={{0,1}}, to_apply=%add
}, execution_thread="sparsecore"

ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %s = ((f32[4]{0}), f32[4]{0}, u32[]) call-start(%p), to_apply=%offloaded
  ROOT %d = f32[4]{0} call-done(%s)
}
"""
    [row] = collectives.collectives(hlo.parse(text))
    assert (row.kind, row.bytes, row.executions) == ("all-reduce", 16, 1)


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("module @m {}")


def test_memory_is_read_and_written_once_for_each_step():
    """A loop that adds a row of a table at each step reads the table once, not once a step."""
    steps, rows, width = 16, 512, 1024

    def f(table, x):
        add = lambda x, row: (jnp.tanh(x + row), None)
        return jax.lax.scan(add, x, table)[0]

    one = topology.devices("v5e:2x4")[0]
    place = lambda *shape: jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=jax.sharding.SingleDeviceSharding(one)
    )
    lowered = jax.jit(f).lower(place(steps, rows, width), place(rows, width))
    moved = traffic.hbm_bytes(hlo.parse(lowered.compile().as_text()))
    table = 4 * steps * rows * width
    assert table <= moved <= 4 * table  # and the state, where it does not stay near

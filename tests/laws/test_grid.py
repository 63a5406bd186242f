"""Which steps share: tables written by hand, counts in closed form, refusals."""

import pytest

from recursia import model
from recursia import params as parameters
from recursia.sharing import patterns
from tests.helpers.blocks import altered
from tests.helpers.tiny import BLOCK, VOCAB, tiny

D, N, K, H, F = 16, 4, 2, 4, 24
NORMS, ATTENTION, MLP = 2 * D, 2 * D * N * H + 2 * D * K * H, 3 * D * F
LAYER = NORMS + ATTENTION + MLP


def plan(layers, recursions, pattern="cycle", varies=()):
    """Returns the schedule of a core."""
    own = "recursion+block" if pattern == "none" else "block"
    slots = dict.fromkeys(BLOCK.slots, own) | {"router": "recursion"}
    ends = patterns.ends(pattern, None, None)
    return patterns.schedule(layers, (0,) * recursions, pattern, ends, slots, dict(varies))


def table_of(plan, slot):
    return tuple(map(tuple, plan.by_recursion(slot).tolist()))


# The middle patterns have 6 + 2 layers, so that their cores have the same tables.
@pytest.mark.parametrize(
    ("pattern", "layers", "order"),
    [
        ("none", 6, (0, 1, 2, 3, 4, 5)),
        ("cycle", 6, (0, 1, 0, 1, 0, 1)),
        ("sequence", 6, (0, 0, 0, 1, 1, 1)),
        ("middle_cycle", 8, (0, 1, 0, 1, 0, 1)),
        ("middle_sequence", 8, (0, 0, 0, 1, 1, 1)),
        ("middle_cycle", 5, (0, 0, 0)),
        ("middle_sequence", 5, (0, 0, 0)),
    ],
)
def test_published_patterns_meet_their_blocks_in_this_order(pattern, layers, order):
    made, ends = plan(layers, 3, pattern), patterns.ends(pattern, None, None)
    assert {tuple(made.entry(slot)[made.steps]) for slot in BLOCK.slots} == {order}
    assert ends == ((1, 1) if pattern.startswith("middle") else (0, 0))
    assert sum(ends) + made.num_steps == layers


@pytest.mark.parametrize(
    ("how", "table"),
    [
        ("block", ((0, 1, 2, 3),) * 4),
        ("one", ((0, 0, 0, 0),) * 4),
        ("recursion", ((0,) * 4, (1,) * 4, (2,) * 4, (3,) * 4)),
        ("recursion+block", ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15))),
        ("block+recursion", ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15))),
        ("block/2", ((0, 0, 1, 1),) * 4),
        ("block/4", ((0, 0, 0, 0),) * 4),
        ("recursion/2", ((0,) * 4, (0,) * 4, (1,) * 4, (1,) * 4)),
        ("recursion/2+block", ((0, 1, 2, 3), (0, 1, 2, 3), (4, 5, 6, 7), (4, 5, 6, 7))),
        ("recursion+block/2", ((0, 0, 1, 1), (2, 2, 3, 3), (4, 4, 5, 5), (6, 6, 7, 7))),
        ("recursion/2+block/2", ((0, 0, 1, 1),) * 2 + ((2, 2, 3, 3),) * 2),
    ],
)
def test_axes_and_groups_stand_for_these_tables(how, table):
    assert table_of(plan(16, 4, varies=(("mlp", how),)), "mlp") == table
    assert table_of(plan(16, 4, varies=(("mlp", table),)), "mlp") == table


def test_a_slot_that_does_not_vary_from_the_pattern_keeps_it():
    made = plan(6, 3, "none", (("mlp", "one"),))
    assert table_of(made, "attention") == ((0, 1), (2, 3), (4, 5))
    assert table_of(made, "mlp") == ((0, 0),) * 3


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [("none", 6), ("cycle", 2), ("sequence", 2), ("middle_cycle", 4), ("middle_sequence", 4)],
)
@pytest.mark.parametrize("depth", ["fixed", "expert_choice"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_unique_parameters_are_layers_embedding_norm_and_routers(pattern, layers, depth, is_tied):
    if depth == "expert_choice" and pattern.endswith("sequence"):
        return  # refused; see below
    config = tiny(depth, pattern, recursions=3, blocks=2, is_tied=is_tied)
    routers = 3 * D if depth == "expert_choice" else 0
    tables = VOCAB * D * (1 if is_tied else 2)
    assert parameters.count(model.specs(config)) == layers * LAYER + tables + D + routers


@pytest.mark.parametrize(
    ("varies", "core"),
    [
        ((("attention", "recursion+block"),), 2 * (NORMS + MLP) + 6 * ATTENTION),
        ((("norms", "recursion"),), 3 * NORMS + 2 * (ATTENTION + MLP)),
        ((("mlp", "one"),), 2 * (NORMS + ATTENTION) + MLP),
        ((("mlp", "block/2"),), 2 * (NORMS + ATTENTION) + MLP),
        ((("mlp", "recursion/3+block"),), 2 * LAYER),
        ((("mlp", ((0, 1), (1, 2), (3, 0))),), 2 * (NORMS + ATTENTION) + 4 * MLP),
        (tuple((slot, "one") for slot in BLOCK.slots), LAYER),
    ],
)
@pytest.mark.parametrize("pattern", ["cycle", "sequence"])
def test_each_slot_counts_once_for_each_entry_of_its_bank(pattern, varies, core):
    config = tiny(sharing_=pattern, recursions=3, blocks=2, varies=varies)
    assert parameters.count(model.specs(config)) == core + VOCAB * D + D


def test_routers_may_be_shared_too():
    one = tiny("expert_choice", recursions=4, blocks=1, varies=(("router", "one"),))
    two = tiny("expert_choice", recursions=4, blocks=1, varies=(("router", "recursion/2"),))
    shapes = [model.specs(config)["depth"]["router"]["out"].shape for config in (one, two)]
    assert shapes == [(1, D), (2, D)]


def test_an_mlp_router_has_two_matrices():
    linear = parameters.count(model.specs(tiny("expert_choice")))
    mlp = parameters.count(model.specs(tiny("expert_choice", router="mlp")))
    assert mlp - linear == 3 * (D * 2 * D + 2 * D - D)


@pytest.mark.parametrize(
    ("pattern", "layers", "recursions", "near"),
    [
        ("cycle", 7, 3, "6 or 9"),
        ("sequence", 7, 2, "6 or 8"),
        ("middle_cycle", 32, 4, "30 or 34"),
        ("cycle", 2, 3, "3"),
        ("middle_sequence", 2, 3, "5"),
    ],
)
def test_a_depth_that_does_not_divide_is_refused_with_the_nearest(
    pattern, layers, recursions, near
):
    with pytest.raises(ValueError, match=f"take num_layers {near}$") as refusal:
        plan(layers, recursions, pattern)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("varies", "why"),
    [
        ((("bias", "one"),), "no slot 'bias'; the slots are norms, attention, mlp, router"),
        ((("mlp", "depth"),), "varies.mlp: got 'depth'"),
        ((("mlp", "block+block"),), "varies.mlp: got 'block[+]block'"),
        ((("mlp", "block/x"),), "varies.mlp: got 'block/x'"),
        ((("mlp", ""),), "varies.mlp: got ''"),
        ((("mlp", "block/0"),), "groups of 0 do not divide"),
        ((("mlp", "block/3"),), "groups of 3 do not divide the 2"),
        ((("mlp", "recursion/2"),), "groups of 2 do not divide the 3"),
        ((("mlp", ((0, 1), (0, 1))),), "rows of .2, 2., the model 3 recursions of 2 blocks"),
        ((("mlp", ((0, 1), (0, 1), (0,))),), "rows of .2, 2, 1."),
        ((("mlp", ((0, 1), (0, 1), (0, 3))),), "must be 0 to 2, each used"),
        ((("mlp", ((0, 1), (0, 1), (0, -1))),), "must be 0 to 2, each used"),
    ],
)
def test_sharing_that_cannot_be_is_refused_in_one_line(varies, why):
    with pytest.raises(ValueError, match=why) as refusal:
        plan(6, 3, varies=varies)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("pattern", "varies", "why"),
    [
        ("sequence", (), "block by block"),
        ("middle_sequence", (), "block by block"),
        ("cycle", (("router", "block"),), "varies.router"),
        ("cycle", (("router", "recursion+block"),), "varies.router"),
    ],
)
def test_expert_choice_routes_whole_recursions_only(pattern, varies, why):
    with pytest.raises(ValueError, match=why) as refusal:
        tiny("expert_choice", pattern, varies=varies)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("field", ["num_heads", "head_dim", "mlp_dim"])
def test_widths_that_cannot_be_are_refused_by_name(field):
    with pytest.raises(ValueError, match=field):
        altered(BLOCK, **{field: 0})

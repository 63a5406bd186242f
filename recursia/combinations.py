"""What settings of a model cannot be combined, with the reason."""

from typing import Any

from recursia.injection import Injection

# What may differ between blocks of prelude and coda and those of the core.
SIZES = ("embed_dim", "mlp_dim", "expert_dim", "num_heads", "num_kv_heads", "head_dim")


def check(model: Any) -> None:
    """Refuses settings of an `architecture.Model` that cannot be combined, with the reason."""
    _check_ends(model)
    _check_parallel(model)
    _check_parameterisation(model)
    plan = model.schedule
    model.depth.check(plan, model.ends["coda"], model.inject)
    if not plan.makes_all_keys and len({block.mixer for block in model.step_blocks}) > 1:
        raise ValueError(
            "kv.kv_sharing: steps have different numbers of heads (weights.heads), and one "
            "cannot read the keys of another; take 'own', or heads of 1.0"
        )
    if plan.replays and not model.block.score_weights:
        raise ValueError(
            "kv.kv_sharing: this mixer has no queries that another step can replay, as their "
            "experts are chosen for each token by its state in that step; take kv.reads "
            "'keys_values', or a mixer such as 'grouped_query'"
        )
    if model.depth.scales_branches and model.block.carried_dim:
        raise ValueError(
            f"depth: {model.depth.kind} multiplies what branches add to the residual stream, "
            "and this feed-forward hands on more than that; take another, such as 'glu_moe'"
        )
    if model.depth.scales_branches and not (model.block.is_additive and model.loop_norm != "each"):
        raise ValueError(
            f"depth: {model.depth.kind} multiplies what branches add to the residual stream, "
            "and this block or loop_norm 'each' changes the stream itself; take a block such "
            "as 'pre_norm', and loop_norm 'none' or 'last'"
        )
    if model.loop_norm != "none" and model.block.final_norm() is None:
        raise ValueError(
            f"loop_norm: got {model.loop_norm!r}, and the block normalises its own result: it "
            "has no final norm; take 'none'"
        )
    if plan.order == "sequence" and model.loop_norm == "each":
        raise ValueError(
            "loop_norm: 'each' stands after a whole recursion, and sharing 'sequence' goes "
            "block by block; take a cycle, or 'last'"
        )
    if plan.order == "sequence" and model.inject != Injection():
        raise ValueError(
            "inject: enters as a recursion begins, and sharing 'sequence' goes "
            "block by block; take a cycle"
        )


def _check_parameterisation(model: Any) -> None:
    """Refuses blocks whose scales the parameterisation would change a second time, or not."""
    if model.parameterisation.branch(model.size) != 1 and not model.block.is_additive:
        raise ValueError(
            "parameterisation: multiplies what branches add to the residual stream, and this "
            "block changes the stream itself; take a block such as 'pre_norm'"
        )
    outside = model.parameterisation.size(model.end_block.embed_dim, model.num_layers)
    if outside != model.size:
        raise ValueError(
            "parameterisation: sets scales by one width, and end_sizes.embed_dim is "
            f"{model.end_block.embed_dim} beside block.embed_dim {model.block.embed_dim}; take "
            "the same"
        )
    if not model.parameterisation.sets_width:
        return
    if not model.weights.has_matrices:
        raise ValueError(
            "parameterisation: sets scales of matrices by width, and this kind of weights "
            "stores parts that they are made of; take another, such as 'lora'"
        )
    parts = {name: getattr(model.block, name) for name in ("mixer", "feedforward")}
    for place, part in (parts | {"end_feedforward": model.end_block.feedforward}).items():
        name = place.removeprefix("end_")
        init = getattr(getattr(part, name, part), "init", None)
        if getattr(init, "rule", None) != "normal":
            raise ValueError(
                f"parameterisation: sets initial scales by width, and so does the {place}; take "
                "one with init.rule 'normal', whose std is that of the base"
            )
    if rule := model.embed.width_rule:
        raise ValueError(f"parameterisation: sets initial scales by width, and so does {rule}")


def _check_ends(model: Any) -> None:
    """Refuses sizes of the ends that are none, or that what stands between cannot have."""
    names = [name for name, _ in model.end_sizes]
    if wrong := [n for n in names if n not in SIZES or names.count(n) > 1]:
        raise ValueError(f"end_sizes: got {wrong[0]!r}, takes each once of {', '.join(SIZES)}")
    if model.end_sizes and not any(model.ends.values()):
        raise ValueError(
            f"end_sizes: got {', '.join(names)}, and the model has no blocks outside the core; "
            "take prelude 1 or coda 1"
        )
    try:
        model.block.sized(**dict(model.end_sizes))
    except ValueError as error:
        raise ValueError(f"end_sizes.{error}") from None
    _check_end_feedforward(model)
    if model.is_resized and model.loop_norm != "none":
        raise ValueError(
            f"loop_norm: {model.loop_norm!r} applies the head's norm, {model.end_block.embed_dim} "
            f"wide, to states of the core, {model.block.embed_dim} wide; take 'none'"
        )
    if model.end_sizes and model.block.carried_dim:
        raise ValueError(
            "end_sizes: this feed-forward hands numbers on from block to block, which all have "
            "one size; take another, such as 'glu_moe'"
        )


def _check_end_feedforward(model: Any) -> None:
    """Refuses a feed-forward of the ends that has no blocks, or does not go with the core's."""
    if (own := model.end_feedforward) is None:
        return
    if not any(model.ends.values()):
        raise ValueError(
            "end_feedforward: is of prelude and coda, and the model has no blocks outside the "
            "core; take prelude 1 or coda 1"
        )
    if twice := [name for name, _ in model.end_sizes if hasattr(own, name)]:
        raise ValueError(
            f"end_sizes: got {twice[0]}, and end_feedforward has one of its own; set that instead"
        )
    carried, core = own.carried_dim(model.block.embed_dim), model.block.feedforward
    if carried and (carried != model.block.carried_dim or type(own) is not type(core)):
        raise ValueError(
            "end_feedforward: hands numbers on from block to block that the core's does not read; "
            "take one of its kind and size, or one that hands nothing on, such as 'swiglu'"
        )
    try:
        model.end_block  # noqa: B018
    except ValueError as error:
        raise ValueError(f"end_feedforward: {error}") from None


def _check_parallel(model: Any) -> None:
    """Refuses copies of a token that would part, or that could not share scores."""
    if model.parallel.num_copies == 1:
        return
    if not model.depth.is_uniform:
        raise ValueError(
            f"parallel.num_copies: under depth {model.depth.kind} each copy of a token would "
            "take recursions of its own, and a token has one depth; take depth.kind 'fixed', "
            "or 1"
        )
    if model.schedule.replays:
        raise ValueError(
            "parallel.num_copies: each step has a prefix of its own, which changes the scores "
            "that it would replay; take kv.reads 'keys_values', or 1"
        )

"""Notes on valid configurations: what is probably not intended, and what changes in training."""

from recursia import settings


def notes(run: settings.Run) -> list[str]:
    """Returns a line for each setting that is probably not intended, with its field first.

    The rules of an optimizer that changes them in training have a line too.
    """
    steps, depth, lines = run.train.num_steps, run.model.depth, []
    if conflict := run.schedule.conflict(steps):
        lines.append(conflict)
    for name in ("capacity_warmup_steps", "full_depth_steps"):
        if (phase := getattr(depth, name, 0)) >= steps:
            lines.append(
                f"model.depth.{name}: {phase} steps, and train.num_steps is {steps}: training ends "
                "before they do"
            )
    if rules := run.optimizer.phases(run.schedule.decay_start(steps), steps):
        lines.append(f"optimizer: {rules}")
    owners = {"block": run.model.block, "end_feedforward": run.model.end_feedforward}
    owners |= {"depth": depth}
    weights = [
        f"model.{owner}.{name}"
        for owner, config in owners.items()
        for name in (config.batch_losses() if config else ())
    ]
    if weights and run.train.num_microbatches > 1:
        lines.append(
            f"train.num_microbatches: {' and '.join(weights)} weighs a loss that is not a sum over "
            f"tokens; it is a mean over {run.train.num_microbatches} microbatches, and changes a "
            "little with their number"
        )
    return lines


def programs(run: settings.Run) -> list[str]:
    """Returns the phases of training and the number of programs, if there is more than one."""
    spans, plans, begin = [], set(), 1
    for end, depth, how in run.train.phases():
        if end < begin:
            continue
        parts = [f"at {depth} recursions"] if depth is not None else []
        parts += [f"tied by {how!r}"] if how is not None else []
        spans.append(f"steps {begin:,} to {end:,} {', '.join(parts) or 'as the model'}")
        plans.add((depth, how))
        begin = end + 1
    if len(plans) == 1:
        return []
    return [f"train: {'; '.join(spans)}; {len(plans)} programs are compiled, each once"]

"""Notes on valid configurations that are probably not intended."""

from recursia import settings


def notes(run: settings.Run) -> list[str]:
    """Returns a line for each setting that is probably not intended, with its field first."""
    steps, depth, lines = run.train.num_steps, run.model.depth, []
    if conflict := run.schedule.conflict(steps):
        lines.append(conflict)
    for name in ("capacity_warmup_steps", "full_depth_steps"):
        if (phase := getattr(depth, name, 0)) >= steps:
            lines.append(
                f"model.depth.{name}: {phase} steps, and train.num_steps is {steps}: training ends "
                "before they do"
            )
    owners = {"block": run.model.block, "depth": depth}
    weights = [
        f"model.{owner}.{name}"
        for owner, config in owners.items()
        for name in config.batch_losses()
    ]
    if weights and run.train.num_microbatches > 1:
        lines.append(
            f"train.num_microbatches: {' and '.join(weights)} weighs a loss that is not a sum over "
            f"tokens; it is a mean over {run.train.num_microbatches} microbatches, and changes a "
            "little with their number"
        )
    return lines

"""What a configuration says that is no mistake, but may not be meant."""

from recursia import settings


def notes(run: settings.Run) -> list[str]:
    """Returns what is no mistake, but may not be meant: a line each, with its field first."""
    steps, depth, said = run.train.num_steps, run.model.depth, []
    if conflict := run.schedule.conflict(steps):
        said.append(conflict)
    for name in ("capacity_warmup_steps", "full_depth_steps"):
        if (phase := getattr(depth, name, 0)) >= steps:
            said.append(
                f"model.depth.{name}: {phase} steps, and train.num_steps is {steps}: training ends "
                "before they do"
            )
    parts = {"block": run.model.block, "depth": depth}
    uneven = [
        f"model.{part}.{name}" for part, config in parts.items() for name in config.batch_losses()
    ]
    if uneven and run.train.num_microbatches > 1:
        said.append(
            f"train.num_microbatches: {' and '.join(uneven)} weighs a loss that is no sum over "
            f"tokens; it is a mean over {run.train.num_microbatches} parts of the batch, and "
            "differs a little from that of another number of parts"
        )
    return said

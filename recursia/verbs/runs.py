"""Verbs that make a run or use one: train, eval, generate, convert."""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

from recursia import console, streams
from recursia.errors import ConfigError


def train(options: argparse.Namespace) -> None:
    """Trains, or says what that would cost."""
    from recursia import config, distributed
    from recursia.train import loop

    run = config.load(options.config, options.overrides)
    if options.dry_run:
        from recursia import budget

        print(budget.render(budget.compare({options.config: run}, "none")))
        return
    if options.workdir is None:
        raise ConfigError("train: give --workdir=DIR, or --dry_run to see what it would cost")
    streams.print_nothing_of_note()
    with distributed.joined(_processes(options), is_preemptible=True):
        loop.train(run, options.workdir, options.overrides, options.config)


def evaluate(options: argparse.Namespace) -> int:
    """Scores a checkpoint; returns 1 if a depth that was asked for is not there."""
    from recursia import distributed
    from recursia.evaluate import depths

    with distributed.joined(_processes(options), is_preemptible=False):
        result = depths.evaluate(
            options.workdir,
            step=options.step,
            text=options.text,
            depths=options.depths,
            modes=(options.mode,) if options.mode else (),
            num_batches=options.num_batches,
            has_baselines=options.baselines,
            overrides=options.overrides,
        )
        if distributed.is_first():
            print(json.dumps(result) if options.json else depths.render(result))
    return 1 if "missing" in result else 0


def _processes(options: argparse.Namespace) -> Any:
    from recursia import distributed

    return distributed.Flags(options.coordinator, options.num_processes, options.process_id)


def generate(options: argparse.Namespace) -> None:
    """Prints prompts and how they go on."""
    from recursia.generate import prompts

    for text in prompts.continue_prompts(
        options.workdir,
        step=options.step,
        prompts=options.prompt,
        num_tokens=options.num_tokens,
        temperature=options.temperature,
        seed=options.seed,
        overrides=options.overrides,
    ):
        print(text, end="\n\n")


def recursive(options: argparse.Namespace) -> None:
    """Makes one model of another."""
    import jax

    from recursia import config
    from recursia.convert import recursive
    from recursia.workdir import trained

    run = config.load(options.config, options.overrides)
    with console.doing(f"loading {options.workdir}"):
        dense = trained.load(options.workdir, options.step)
        # One matrix after another: over several devices each would be a program of its own.
        params = jax.device_put(dense.params, jax.local_devices()[0])
    theirs = dense.model
    places = tuple(str(pathlib.Path(path).resolve()) for path in dense.paths)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, path=places))
    try:
        ours = run.model.sized(theirs.vocab_size)
        how = {"norms": options.norms, "adapters": options.adapters}
        key = jax.random.key(options.seed)
        with console.doing(f"making {options.config} of it"):
            weights = recursive.recursive(params, theirs, ours, options.start, **how, key=key)
    except ValueError as error:
        raise ConfigError(f"convert: {error}") from None
    trained.save(run, theirs.vocab_size, weights, dense.tokenizer, options.output)
    print(f"{options.output}: {options.config} made of {options.workdir} at step {dense.step}")

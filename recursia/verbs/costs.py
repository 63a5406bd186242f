"""Verbs that say what a model costs: budget, compile."""

import argparse
import json
from contextlib import nullcontext

from recursia import console
from recursia.errors import ConfigError


def budget(options: argparse.Namespace) -> None:
    """Prints what models cost, side by side."""
    from recursia import budget as cost
    from recursia import config, matching

    names = [options.config, *options.versus]
    if len(set(names)) < len(names):
        raise ConfigError(f"--versus={','.join(options.versus)}: a name stands twice; give others")
    if options.output and not options.versus:
        raise ConfigError("--output: writes the models of --versus; give --versus=B,C")
    if options.controls:
        return _controls(options)
    given = {
        name: config.load(name, options.overrides if not i else {}) for i, name in enumerate(names)
    }
    with console.doing("making models equal") if options.match != "none" else nullcontext():
        runs = matching.matched(given, options.match)
    first, *others = cost.compare(runs, options.match)
    for row in others:
        row["overrides"] = matching.overrides(given[row["name"]], runs[row["name"]])
    if options.output:
        made = {name: runs[name] for name in options.versus}
        about = f"changed until it equals {_typed(options)} by --match={options.match}."
        for row, path in zip(others, matching.write(options.output, made, about), strict=True):
            row["path"] = path
    if options.json:
        print(json.dumps({**first, "versus": {row["name"]: row for row in others}}))
        return
    print(cost.render([first, *others]))
    for row in others if options.match != "none" else ():
        print(f"--config={row['name']}", matching.typed(row["overrides"]))


def _controls(options: argparse.Namespace) -> None:
    from recursia import budget as cost
    from recursia import config, matching

    if options.versus or options.match != "none":
        raise ConfigError("--controls: takes neither --versus nor --match; run them by themselves")
    run = config.load(options.config, options.overrides)
    with console.doing("making controls"):
        made = matching.controls(run)
    first, *others = cost.compare({options.config: run, **made}, "none")
    paths = matching.write(options.controls, made, f"a control of {_typed(options)}.")
    for row, path in zip(others, paths, strict=True):
        equal = matching.CONTROLS[row["name"]]
        row |= {"path": path, "equal": equal, "error": row[equal] / first[equal] - 1}
    if options.json:
        controls = {row["name"]: row for row in others}
        print(json.dumps({**first, "versus": {}, "controls": controls}))
        return
    print(cost.render([first, *others]))
    for row in others:
        print(f"--config={row['path']}  {row['equal'].replace('_', ' ')} {row['error']:+.2%}")
    print("The control of equal parameters and equal FLOPs, parallel streams, is not there yet.")


def _typed(options: argparse.Namespace) -> str:
    """Returns the configuration as it was typed."""
    changes = (f"--config.{field}={value}" for field, value in options.overrides.items())
    return " ".join([f"--config={options.config}", *changes])


def compile(options: argparse.Namespace) -> int:
    """Prints what a step would cost on a machine that is not here; returns 1 if it does not fit."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # the machine meant is not this one
    from recursia import compiled, config, topology
    from recursia.preflight import ladder, render, report

    run = config.load(options.config, options.overrides)
    name = options.topology or run.topology
    if not name:
        raise ConfigError(
            f"compile: {options.config} names no topology; give one, such as --topology=v5e:16x16"
        )
    if options.decode and options.search:
        raise ConfigError("--decode: a search compiles training steps; give one of the two")
    if options.tries and not options.search:
        raise ConfigError(f"--tries={options.tries}: programs of a search; give --search")
    if options.output and not options.output.parent.is_dir():
        raise ConfigError(f"--output={options.output}: no folder {options.output.parent}; make it")
    if options.output and options.output.is_dir():
        raise ConfigError(f"--output={options.output}: is a folder; give a file in it")
    devices = topology.devices(name)
    if options.search:
        tries = options.tries or ladder.TRIES
        found = ladder.climb(run, name, devices, tries, console.say, compiled.where())
        result, shown = {**found[-1], "search": found}, render.table(found)
    else:
        with console.doing(f"compiling {options.config} for {name}"):
            result = report.examine(run, name, devices, with_decode=options.decode)
        if not result["fits"]:
            result["advice"] = ladder.advice(run, devices)
        shown = render.full(_typed(options), result)
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result) if options.json else shown)
    return 0 if result["fits"] else 1

"""The command line: `recursia VERB`. Each verb reads its arguments and calls one function.

Exit codes: 0 done, 1 a check failed, 2 wrong usage or configuration, 3 data, 4 diverged,
5 checkpoint, 75 stopped after a save.
"""

import argparse
import dataclasses
import glob
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence

from recursia import arguments
from recursia.errors import ConfigError, UserError

_ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd")


def main(typed: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. A user's mistake is one line on standard error."""
    rest, overrides = _split(list(sys.argv[1:] if typed is None else typed))
    parser = arguments.parser(VERBS)
    try:
        options = parser.parse_args(rest)
        if overrides and not options.takes_overrides:
            raise ConfigError(f"{options.verb}: takes no --config; remove it")
        options.overrides = overrides
        _quiet()
        return options.run(options) or 0
    except UserError as error:
        print(f"recursia: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as error:  # argparse: --help, or a wrong option
        return int(error.code or 0)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _split(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=v` and `--config.a.b v` out of the arguments, wherever they stand."""
    rest, overrides = [], {}
    items = iter(arguments)
    for item in items:
        if not item.startswith("--config."):
            rest.append(item)
            continue
        name, equals, value = item.removeprefix("--config.").partition("=")
        overrides[name] = value if equals else next(items, "")
    return rest, overrides


def _quiet() -> None:
    """Keeps libraries' chatter off a user's terminal."""
    import logging

    logging.getLogger("absl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Sharding info not provided")
    # Where compilers for TPU or GPU are installed, jax looks for the devices, in vain and aloud.
    here = (path for pattern in _ACCELERATORS for path in glob.iglob(pattern))
    if sys.platform == "linux" and not any(here):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _train(options: argparse.Namespace) -> None:
    from recursia import config, distributed
    from recursia.train import loop

    run = config.load(options.config, options.overrides)
    if options.dry_run:
        from recursia import budget

        print(budget.render(budget.compare({options.config: run}, "none")))
        return
    if options.workdir is None:
        raise ConfigError("train: give --workdir=DIR, or --dry_run to see what it would cost")
    with distributed.joined(_processes(options), is_preemptible=True):
        loop.train(run, options.workdir, options.overrides, options.config)


def _eval(options: argparse.Namespace) -> None:
    from recursia import distributed
    from recursia.evaluate import report

    with distributed.joined(_processes(options), is_preemptible=False):
        result = report.evaluate(
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
            print(json.dumps(result) if options.json else report.render(result))


def _processes(options: argparse.Namespace):
    from recursia import distributed

    return distributed.Flags(options.coordinator, options.num_processes, options.process_id)


def _generate(options: argparse.Namespace) -> None:
    from recursia.evaluate import report

    for text in report.continue_prompts(
        options.workdir,
        step=options.step,
        prompts=options.prompt,
        num_tokens=options.num_tokens,
        temperature=options.temperature,
        seed=options.seed,
        overrides=options.overrides,
    ):
        print(text, end="\n\n")


def _budget(options: argparse.Namespace) -> None:
    from recursia import budget, config, matching

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
    runs = matching.matched(given, options.match)
    first, *others = budget.compare(runs, options.match)
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
    print(budget.render([first, *others]))
    for row in others if options.match != "none" else ():
        print(f"--config={row['name']}", matching.typed(row["overrides"]))


def _controls(options: argparse.Namespace) -> None:
    from recursia import budget, config, matching

    if options.versus or options.match != "none":
        raise ConfigError("--controls: takes neither --versus nor --match; run them by themselves")
    run = config.load(options.config, options.overrides)
    made = matching.controls(run)
    first, *others = budget.compare({options.config: run, **made}, "none")
    paths = matching.write(options.controls, made, f"a control of {_typed(options)}.")
    for row, path in zip(others, paths, strict=True):
        equal = matching.CONTROLS[row["name"]]
        row |= {"path": path, "equal": equal, "error": row[equal] / first[equal] - 1}
    if options.json:
        controls = {row["name"]: row for row in others}
        print(json.dumps({**first, "versus": {}, "controls": controls}))
        return
    print(budget.render([first, *others]))
    for row in others:
        print(f"--config={row['path']}  {row['equal'].replace('_', ' ')} {row['error']:+.2%}")
    print("The control of equal parameters and equal FLOPs, parallel streams, is not there yet.")


def _typed(options: argparse.Namespace) -> str:
    """Returns the configuration as it was typed."""
    changes = (f"--config.{field}={value}" for field, value in options.overrides.items())
    return " ".join([f"--config={options.config}", *changes])


def _compile(options: argparse.Namespace) -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"  # the machine meant is not this one
    from recursia import config, topology
    from recursia.preflight import render, report, search

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
        say = lambda line: print(line, file=sys.stderr, flush=True)
        found = search.search(run, name, devices, options.tries or search.TRIES, say)
        result, shown = {**found[0], "search": found}, render.table(found)
    else:
        result = report.examine(run, name, devices, with_decode=options.decode)
        shown = render.full(_typed(options), result)
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result) if options.json else shown)
    return 0 if result["fits"] else 1


def _parity(options: argparse.Namespace) -> int:
    from recursia.evaluate import parity

    results, code = {}, 0
    for path in options.file:
        try:
            found = parity.check(path)
            results[path] = {"ok": found.ok, **dataclasses.asdict(found)}
        except UserError as error:
            results[path] = {"ok": False, "error": str(error)}
            code = error.exit_code
        if not options.json:
            print(_parity_line(path, results[path]))
    if options.json:
        print(json.dumps(results))
    return code or int(not all(result["ok"] for result in results.values()))


def _parity_line(path: str, result: dict) -> str:
    if "error" in result:
        return f"FAIL  {result['error']}"
    return (
        f"{'ok  ' if result['ok'] else 'FAIL'}  {path}: logits {result['logits_max_abs']:.1e}, "
        f"losses {result['loss_max_abs']:.1e}, gradients {result['gradient_max_rel']:.1e}"
        + ("" if result["is_routed_alike"] else ", other tokens routed")
    )


def _recursive(options: argparse.Namespace) -> None:
    import jax

    from recursia import config
    from recursia.convert import recursive
    from recursia.evaluate import report
    from recursia.train import earlier

    run = config.load(options.config, options.overrides)
    dense = report.load(options.workdir, options.step)
    theirs = dense.model
    places = tuple(str(pathlib.Path(path).resolve()) for path in dense.paths)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, path=places))
    try:
        ours = run.model.build(theirs.vocab_size)
        how = {"norms": options.norms, "adapters": options.adapters}
        key = jax.random.key(options.seed)
        weights = recursive.recursive(dense.params, theirs, ours, options.start, **how, key=key)
    except ValueError as error:
        raise ConfigError(f"convert: {error}") from None
    earlier.save(run, theirs.vocab_size, weights, dense.tokenizer, options.output)
    print(f"{options.output}: {options.config} made of {options.workdir} at step {dense.step}")


def _prepare(options: argparse.Namespace) -> None:
    from recursia.data import prepare

    fields = [field.name for field in dataclasses.fields(prepare.Options)]
    chosen = prepare.Options(**{name: getattr(options, name) for name in fields})
    manifest = prepare.prepare(tuple(options.input), options.output, **vars(chosen))
    print(json.dumps(manifest["splits"], indent=2))


def _inspect(options: argparse.Namespace) -> None:
    from recursia.data import prepare

    print(json.dumps(prepare.inspect(options.directory), indent=2, ensure_ascii=False))


VERBS = {
    "train": _train,
    "eval": _eval,
    "generate": _generate,
    "budget": _budget,
    "compile": _compile,
    "parity": _parity,
    "convert recursive": _recursive,
    "data prepare": _prepare,
    "data inspect": _inspect,
}

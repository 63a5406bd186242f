"""The command line: `recursia VERB`. Each verb reads its arguments and calls one function.

Exit codes: 0 done, 1 a check failed, 2 wrong usage or configuration, 3 data, 4 diverged,
5 checkpoint, 75 stopped after a save.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence

from recursia.errors import ConfigError, UserError

DEPTH = "Takes --config.depth.FIELD=VALUE, such as exit_threshold, besides."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. A user's mistake is one line on standard error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    rest, overrides = _split(arguments)
    parser = _parser()
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
    if os.environ.get("JAX_PLATFORMS") is None and not os.path.exists("/dev/nvidia0"):
        logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)


def _train(options: argparse.Namespace) -> None:
    from recursia import config
    from recursia.train import loop

    run = config.load(options.config, options.overrides)
    if options.dry_run:
        from recursia import budget

        print(budget.render(budget.compare({options.config: run}, "none")))
        return
    if options.workdir is None:
        raise ConfigError("train: give --workdir=DIR, or --dry_run to see what it would cost")
    loop.train(run, options.workdir, options.overrides)


def _eval(options: argparse.Namespace) -> None:
    from recursia.evaluate import report

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
    print(json.dumps(result) if options.json else report.render(result))


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
    theirs = dense.trainer.model
    places = tuple(str(pathlib.Path(path).resolve()) for path in dense.paths)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, path=places))
    try:
        ours = run.model.build(theirs.vocab_size)
        how = {"norms": options.norms, "adapters": options.adapters}
        key = jax.random.key(options.seed)
        weights = recursive.recursive(dense.params, theirs, ours, options.start, **how, key=key)
    except ValueError as error:
        raise ConfigError(f"convert: {error}") from None
    earlier.save(run, theirs.vocab_size, weights, options.output)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recursia",
        description="Pretrain language models whose depth is made by using the same weights again.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable, about: str, under=verbs) -> argparse.ArgumentParser:
        command = under.add_parser(name, help=about, description=about, allow_abbrev=False)
        command.set_defaults(run=run, takes_overrides=False)
        return command

    train = verb("train", _train, "Pretrain; the same command again resumes.")
    _config_option(train)
    train.add_argument("--workdir", type=pathlib.Path, help="the run's directory")
    train.add_argument("--dry_run", action="store_true", help="print what it would cost, and stop")

    evaluate = verb("eval", _eval, f"Score a checkpoint on text: bits per byte, nats. {DEPTH}")
    _run_options(evaluate)
    evaluate.set_defaults(takes_overrides=True)
    evaluate.add_argument("--text", help="a text or jsonl file; else the run's validation split")
    evaluate.add_argument("--depths", type=_depths, default=(), help="recursions, such as 1,2,3")
    evaluate.add_argument("--mode", choices=("eval", "causal"), help="default: both if they differ")
    evaluate.add_argument("--num_batches", type=_count, default=0, help="default: the whole text")
    evaluate.add_argument("--baselines", action="store_true", help="beside n-grams, gzip and xz")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")

    generate = verb("generate", _generate, f"Continue prompts with a checkpoint. {DEPTH}")
    _run_options(generate)
    generate.set_defaults(takes_overrides=True)
    generate.add_argument("--prompt", action="append", required=True, help="may be repeated")
    generate.add_argument("--num_tokens", type=int, default=128)
    generate.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest token")
    generate.add_argument("--seed", type=int, default=0)

    budget = verb("budget", _budget, "Parameters, FLOPs, cache and memory, side by side.")
    _config_option(budget)
    budget.add_argument("--versus", type=_names, default=(), help="other configs, by commas")
    about = "change steps, widths or layers until they cost what --config costs"
    budget.add_argument(
        "--match", choices=("none", "flops", "params", "cache"), default="none", help=about
    )
    budget.add_argument("--output", type=pathlib.Path, help="a folder for their configs, as files")
    about = "a folder for unshared models of equal parameters, FLOPs, and training FLOPs"
    budget.add_argument("--controls", type=pathlib.Path, help=about)
    budget.add_argument("--json", action="store_true", help="print one JSON object")

    parity = verb("parity", _parity, "Compare with what the authors' code computed.")
    parity.add_argument("file", nargs="+", metavar="FILE.npz")
    parity.add_argument("--json", action="store_true", help="print one JSON object")

    convert = verb("convert", lambda _: None, "Make one model of another.")
    convert = convert.add_subparsers(dest="convert_verb", required=True, metavar="recursive")
    about = "Make a recursive model of a dense run, or an unrolled one of a recursive run."
    recursive = verb("recursive", _recursive, about, convert)
    _run_options(recursive)
    _config_option(recursive)
    recursive.add_argument("--output", type=pathlib.Path, required=True, help="a new directory")
    starts = ("stepwise", "average", "lower", "upper", "random")
    recursive.add_argument("--start", choices=starts, default="stepwise", help="layers to take")
    recursive.add_argument("--norms", choices=starts, help="the same for norms; default: --start")
    recursive.add_argument("--adapters", choices=("nearest", "initial"), default="nearest")
    recursive.add_argument("--seed", type=int, default=0)

    data = verb("data", lambda _: None, "Prepare and look at data.")
    data = data.add_subparsers(dest="data_verb", required=True, metavar="prepare|inspect")
    _prepare_options(verb("prepare", _prepare, "Tokenise and pack text files.", data))
    inspect = verb("inspect", _inspect, "Say what a prepared directory holds.", data)
    inspect.add_argument("directory")
    return parser


def _prepare_options(parser: argparse.ArgumentParser) -> None:
    from recursia.data.prepare import Options

    parser.add_argument("--input", nargs="+", required=True, help=".txt, .jsonl; also .gz, .zst")
    parser.add_argument("--output", required=True, help="a new directory")
    for field in dataclasses.fields(Options):
        how = {"nargs": "*"} if isinstance(field.default, tuple) else {"type": type(field.default)}
        parser.add_argument(f"--{field.name}", default=field.default, **how)


def _config_option(parser: argparse.ArgumentParser) -> None:
    text = "FILE.py:PRESET or a shipped name such as mor:tiny; then --config.a.b=value"
    parser.add_argument("--config", required=True, help=text)
    parser.set_defaults(takes_overrides=True)


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="the run's directory")
    parser.add_argument("--step", type=int, help="a checkpoint; else the latest")


def _count(typed: str) -> int:
    if not typed.isdecimal():
        raise argparse.ArgumentTypeError(f"got {typed!r}, takes a number from 0")
    return int(typed)


def _names(typed: str) -> tuple[str, ...]:
    return tuple(name for name in typed.split(",") if name)


def _depths(typed: str) -> tuple[int, ...]:
    if not all(depth.isdecimal() for depth in _names(typed)):
        raise argparse.ArgumentTypeError(
            f"got {typed!r}, takes numbers of recursions such as 1,2,3"
        )
    return tuple(map(int, _names(typed)))

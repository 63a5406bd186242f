"""Verbs about files: parity, data."""

import argparse
import dataclasses
import json

from recursia import console
from recursia.errors import UserError


def parity(options: argparse.Namespace) -> int:
    """Prints how near files come to what their authors computed; returns 1 if one does not."""
    from recursia.evaluate import parity

    results, code = {}, 0
    for path in options.file:
        try:
            with console.doing(f"comparing {path}"):
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
    names = {"logits": "logits_max_abs", "losses": "loss_max_abs", "gradients": "gradient_max_rel"}
    if result["update_max_abs"]:  # of an optimizer
        names = {"updates": "update_max_abs", "in bfloat16": "rounded_update_max_abs"}
    apart = ", ".join(f"{name} {result[field]:.1e}" for name, field in names.items())
    routed = "" if result["is_routed_alike"] else ", other tokens routed"
    return f"{'ok  ' if result['ok'] else 'FAIL'}  {path}: {apart}{routed}"


def prepare(options: argparse.Namespace) -> None:
    """Prepares text and prints what came of it."""
    from recursia.data import prepare

    fields = [field.name for field in dataclasses.fields(prepare.Options)]
    chosen = prepare.Options(**{name: getattr(options, name) for name in fields})
    manifest = prepare.prepare(options.input, options.output, **vars(chosen))
    print(json.dumps(manifest["splits"], indent=2))


def inspect(options: argparse.Namespace) -> None:
    """Prints what a prepared directory holds."""
    from recursia.data import prepare

    print(json.dumps(prepare.inspect(options.directory), indent=2))

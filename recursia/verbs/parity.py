"""`recursia parity`: compares models with what their authors' code computed."""

import argparse
import dataclasses
import json
from typing import Any

from recursia import arguments, console, parsing
from recursia.errors import UserError

ABOUT = "Compare with what the authors' code computed."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    about = "what the authors' code computed, and with which weights"
    parser.add_argument("file", nargs="+", metavar="FILE.npz", type=parsing.place, help=about)
    arguments.json_option(parser)
    arguments.compiling_option(parser)


def run(given: argparse.Namespace) -> int:
    """Prints how near files come to what their authors computed; returns 1 if one does not."""
    from recursia.evaluate import parity

    results, code = {}, 0
    for path in given.file:
        try:
            with console.doing(f"comparing {path}"):
                found = parity.check(path)
            results[path] = {"ok": found.ok, **dataclasses.asdict(found)}
        except UserError as error:
            results[path] = {"ok": False, "error": str(error)}
            code = error.exit_code
        if not given.json:
            print(_parity_line(path, results[path]))
    if given.json:
        print(json.dumps(results))
    return code or int(not all(result["ok"] for result in results.values()))


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.command("presets")


def _parity_line(path: str, result: dict[str, Any]) -> str:
    if "error" in result:
        return f"FAIL  {result['error']}"
    names = {"logits": "logits_max_abs", "losses": "loss_max_abs", "gradients": "gradient_max_rel"}
    if result["update_max_abs"]:  # of an optimizer
        names = {"updates": "update_max_abs", "in bfloat16": "rounded_update_max_abs"}
    if result["recipe_max_rel"]:
        names |= {"recipe": "recipe_max_rel", "trained": "trained_max_abs"}
    apart = ", ".join(f"{name} {result[field]:.1e}" for name, field in names.items())
    routed = "" if result["is_routed_alike"] else ", other tokens routed"
    return f"{'ok  ' if result['ok'] else 'FAIL'}  {path}: {apart}{routed}"

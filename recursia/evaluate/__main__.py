"""The command line of lm-evaluation-harness with `--model recursia`: `python -m recursia.evaluate`.

The harness's release 0.4.13 looks for models in a table of its own and in no entry point of other
packages, so the model has to be imported before its command line starts.
"""

import importlib
import sys
import traceback

from recursia import console
from recursia.errors import UserError


def main() -> int:
    """Runs the harness; a user's mistake is one line on standard error."""
    try:
        importlib.import_module("recursia.evaluate.harness")
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except ModuleNotFoundError as error:
        console.say(f"{error}; pip install 'recursia[eval]'")
        return 2
    except UserError as error:
        console.say(f"recursia: {error}")
        return error.exit_code
    except ValueError as error:
        if not _is_of_harness(error):
            raise
        console.say(f"lm_eval: {' '.join(str(error).split())}")
        return 2
    return 0


def _is_of_harness(error: ValueError) -> bool:
    """Returns whether an error was raised by the harness's own code, as for an unknown task."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith("lm_eval.")


if __name__ == "__main__":
    sys.exit(main())

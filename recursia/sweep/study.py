"""The study of an adaptive search: Optuna's journal in a sweep's directory, and what it notes."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from recursia import buckets, console
from recursia.errors import ConfigError, StorageError
from recursia.sweep.search import Search

JOURNAL = "optuna.journal"
# What the study notes of a trial: who runs it, its directory, whose overrides it takes over, that
# it does not count, because another one is equal or was faster, and what became of it.
WORKER, NAME, AGAIN, SURPLUS, STATE = "worker", "name", "again", "surplus", "state"


@contextlib.contextmanager
def opened(place: pathlib.Path, search: Search) -> Iterator[Any]:
    """Yields the study of a directory, which is made if there is none."""
    try:
        with console.doing("opening the study"):
            import optuna
            from optuna.storages import JournalStorage
    except ImportError:
        raise ConfigError("sweep: a search needs Optuna; pip install 'recursia[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = place / JOURNAL
    try:
        with console.doing(f"reading {path}"):
            study = optuna.create_study(
                study_name="sweep",
                storage=JournalStorage(backend(path)),
                pruner=search.pruner or optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
    except StorageError:
        raise
    except Exception as error:  # whatever a damaged file does to Optuna
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{path}: cannot be read ({why}); move it away to search anew") from None
    try:
        yield study
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from None


def backend(path: pathlib.Path) -> Any:
    """Returns the journal of a study, as Optuna takes it: a file, or a folder in a bucket."""
    if buckets.is_place(path):
        from recursia.sweep.journal import Journal

        return Journal(path)
    from optuna.storages.journal import JournalFileBackend

    return JournalFileBackend(str(path))


def sampler(search: Search, number: int) -> Any:
    """Returns a sampler whose draws differ from those of every earlier trial and start.

    Raises:
      ConfigError: if the search's own cannot be made.
    """
    import optuna

    try:
        return (search.sampler or optuna.samplers.TPESampler)(seed=search.seed + number)
    except Exception as error:
        raise ConfigError(f"SEARCH.sampler: {type(error).__name__}: {error}") from None


def counted(trials: list[Any]) -> list[Any]:
    """Returns the trials that count: not those that were asked for again, or dropped."""
    replaced = {each.user_attrs.get(AGAIN) for each in trials}
    return [t for t in trials if t.number not in replaced and SURPLUS not in t.user_attrs]

"""Continuations of prompts by a trained run."""

import pathlib
from collections.abc import Iterator, Mapping

import jax

from recursia import console
from recursia.errors import ConfigError
from recursia.generate import decode
from recursia.workdir import trained as runs


def continue_prompts(
    workdir: pathlib.Path,
    *,
    step: int | None,
    prompts: list[str],
    num_tokens: int,
    temperature: float,
    seed: int,
    overrides: Mapping[str, str],
) -> Iterator[str]:
    """Yields each prompt with its continuation.

    Args:
      workdir: the run's directory.
      step: of the checkpoint; None takes the latest.
      prompts: texts to continue.
      num_tokens: number of tokens to draw at most.
      temperature: of the draws; 0 takes the likeliest token.
      seed: of the draws.
      overrides: fields of the depth policy to change, as typed.

    Raises:
      ConfigError: for an empty prompt, or a number out of range.
    """
    if num_tokens < 1 or temperature < 0:
        raise ConfigError(
            f"generate: got --num_tokens={num_tokens} --temperature={temperature}, takes at least "
            "1 and 0"
        )
    with console.doing(f"loading {workdir}"):
        trained = runs.load(workdir, step, overrides)
    for index, prompt in enumerate(prompts):
        if not (ids := trained.tokenizer.encode(prompt)):
            raise ConfigError("--prompt: is empty; give at least one token")
        with console.doing(f"continuing prompt {index + 1} of {len(prompts)}"):
            drawn = decode.generate(
                trained.params,
                trained.model,
                ids,
                num_tokens=num_tokens,
                window=trained.run.train.seq_len,
                temperature=temperature,
                end_of_text=trained.tokenizer.end_of_text,
                key=jax.random.fold_in(jax.random.key(seed), index),
            )
        yield prompt + trained.tokenizer.continuation(ids, drawn)

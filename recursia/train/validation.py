"""Validation scores and text samples of a model in training."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from recursia import scores, stall
from recursia.data.tokenizer import Tokenizer
from recursia.generate import decode
from recursia.generate.sampling import Sampling
from recursia.params import Params
from recursia.train.step import Trainer


@dataclasses.dataclass(frozen=True)
class Validation:
    """Scores and samples parameters.

    Attributes:
      trainer: of the run.
      tokenizer: of the run.
      paths: data directories with a validation split; none scores nothing.
      prompts: token ids of each prompt of `eval.prompts`.
    """

    trainer: Trainer
    tokenizer: Tokenizer
    paths: tuple[str, ...]
    prompts: tuple[list[int], ...]

    def row(self, params: Params) -> dict[str, Any]:
        """Returns the scores of the validation split, by their names in metrics.jsonl.

        A model that looks ahead as published is also scored in causal mode;
        `validation_causal_gap` is the difference, in nats per token.
        """
        run, config, mesh = self.trainer.run, self.trainer.model, self.trainer.mesh
        row: dict[str, Any] = {}
        for mode in config.modes if self.paths else ():
            score = scores.score(
                params,
                config,
                scores.validation_batches(run, self.paths, run.eval.num_batches, mesh),
                self.tokenizer.token_bytes(),
                mode=mode,
                mesh=mesh,
                rules=run.mesh.rules,
            )
            suffix = "" if mode == "eval" else "_causal"
            row[f"validation_loss{suffix}"] = score.nats_per_token
            row[f"validation_bits_per_byte{suffix}"] = score.bits_per_byte
            row[f"validation_mean_depth{suffix}"] = score.mean_depth
            row[f"validation_lens_loss{suffix}"] = score.lens_nats_per_token
        if "validation_loss_causal" in row:
            row["validation_causal_gap"] = row["validation_loss_causal"] - row["validation_loss"]
        return row

    def samples(self, step: int, params: Params) -> Iterator[tuple[str, str]]:
        """Yields each prompt with its continuation; the draws depend on the step."""
        run = self.trainer.run
        key = jax.random.fold_in(jax.random.key(run.train.seed), step)
        for index, (prompt, ids) in enumerate(zip(run.eval.prompts, self.prompts, strict=True)):
            with stall.waiting("sample"):
                drawn = decode.generate(
                    params,
                    self.trainer.model,
                    ids,
                    num_tokens=run.eval.sample_tokens,
                    window=run.train.seq_len,
                    sampling=Sampling(run.eval.temperature),
                    end_of_text=self.tokenizer.end_of_text,
                    key=jax.random.fold_in(key, index),
                )
            yield prompt, self.tokenizer.continuation(ids, drawn)

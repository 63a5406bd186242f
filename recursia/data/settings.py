"""The training and validation text of a run: prepared folders, or files to prepare."""

import dataclasses
from typing import Annotated, Literal

from recursia import typed
from recursia.ranges import LARGEST_SEED, between
from recursia.typed import Place

Texts = Annotated[str, typed.Path("(bundled|hf):.*", r"(?!\d)\w+(\.(?!\d)\w+)+:(?=.)")]
Tokens = Annotated[str, typed.Path("byte|bpe:.*")]


@dataclasses.dataclass(frozen=True)
class Data:
    """The training and validation text.

    Attributes:
      path: directories written by `recursia data prepare`, mixed by `weights`; `text` is then
        not read. If `path` or `text` is typed, the data of the configuration file is not read.
      weights: relative number of rows drawn from each path; empty draws equally from all.
      text: files to prepare inside the workdir if there is no `path`; "bundled:train" is the
        bundled corpus.
      validation_text: files of the validation split; empty holds out documents of `text`.
      validation_fraction: fraction of the documents of `text` to hold out if there are no
        validation files, in [0, 1); 0 validates on nothing.
      tokenizer: for `text`: "byte", "bpe:SIZE", a tokenizer.json, or a folder with GPT-2's files.
      end_of_text: name of the end-of-text token in such a file; empty tries the common names.
      cross_document_attention: whether tokens attend to earlier documents of their row.
      on_error: "stop" at a broken line, or "skip" it.
      seed: of the order of rows.
    """

    path: tuple[Place, ...] = ()
    weights: tuple[float, ...] = ()
    text: tuple[Texts, ...] = ()
    validation_text: tuple[Texts, ...] = ()
    validation_fraction: float = 0.05
    tokenizer: Tokens = "byte"
    end_of_text: str = ""
    cross_document_attention: bool = True
    on_error: Literal["stop", "skip"] = "stop"
    seed: int = 0

    def __post_init__(self):
        if not self.path and not self.text:
            raise ValueError("path: no data; give folders as data.path, or text files in data.text")
        if self.weights and len(self.weights) != len(self.path):
            raise ValueError(
                f"weights: got {len(self.weights)} for {len(self.path)} paths; give one each"
            )
        if not all(weight > 0 for weight in self.weights):
            raise ValueError(f"weights: got {self.weights}, takes numbers above 0")
        between(0, LARGEST_SEED, self, "seed")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction: got {self.validation_fraction}, takes a number in [0, 1)"
            )

"""A recursive model as the language model of lm-evaluation-harness (EleutherAI, 0.4.13).

Needs the extra `eval`. The harness asks for likelihoods and continuations of texts; here they
become tokens, are scored over all devices, and go back in the order in which they came. Several
processes ask the same and share the work, so the harness sees one. Neither it, as far as it is used
here, nor this needs PyTorch.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from recursia import buckets, console, distributed, model
from recursia.architecture import Model
from recursia.depth.policy import Mode
from recursia.errors import ConfigError
from recursia.evaluate import requests
from recursia.evaluate.continuations import Way, continuations
from recursia.evaluate.requests import Answer, Request
from recursia.evaluate.shapes import Place
from recursia.generate.continuation import Stops
from recursia.generate.sampling import Sampling
from recursia.workdir import trained as runs
from recursia.workdir.trained import Trained

FILTERS = ("top_k", "top_p", "min_p")
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", *FILTERS}
NO_CHANGE = {"num_beams": (1,), "repetition_penalty": (1,)}


class HarnessLM(TemplateLM):
    """A trained model at one depth, in one mode.

    Attributes:
      depths: of each task, recursions per token of each of its likelihood requests.
      cut: of each task, its requests that were longer than the model's context.
    """

    def __init__(
        self,
        trained: Trained,
        config: Model,
        params: Any,
        mode: Mode,
        *,
        seed: int = 0,
        about: str = "",
        say: Callable[[str], None] = console.say,
        begin: Callable[[], None] = lambda: None,
    ):
        """Takes what `model.at_depth` makes of a trained model.

        Args:
          trained: whose tokenizer, mesh and length of context are used.
          config: the model.
          params: of that model.
          mode: of likelihoods; continuations are drawn in causal mode, as decoding must.
          seed: of draws, where a task asks for them.
          about: names the model beside progress bars.
          say: prints a line.
          begin: is called before each progress bar, when prompts have been made.
        """
        super().__init__()
        train, mesh = trained.run.train, trained.mesh
        tokens = train.batch_size * train.seq_len
        self._place = Place(mode, mesh, trained.run.mesh.rules, train.seq_len, tokens)
        self._trained, self._config, self._params = trained, config, params
        self._seed, self._about, self._say, self._begin = seed, about, say, begin
        self.depths: dict[str, list[float]] = collections.defaultdict(list)
        self.cut: dict[str, int] = collections.Counter()

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "HarnessLM":
        """Loads a run, for the harness's own command line.

        Args:
          arg_dict: `workdir`, and perhaps `step`, `depth`, `mode` ("eval" or "causal"), `seed`.
          additional_config: sizes of batches and a device, which the run decides here.

        Raises:
          ConfigError: for other arguments, or a depth that the model has no weights for.
        """
        given = dict(arg_dict)
        workdir, mode = given.pop("workdir", None), given.pop("mode", "eval")
        counts = {name: given.pop(name, None) for name in ("step", "depth", "seed")}
        is_wrong = any(x is not None and not str(x).isdecimal() for x in counts.values())
        if given or workdir is None or mode not in ("eval", "causal") or is_wrong:
            raise ConfigError(
                f"--model_args: got {dict(arg_dict)}, takes workdir=DIR and, if wanted, the "
                "numbers step, depth and seed, and mode=eval or causal"
            )
        step, depth, seed = (x if x is None else int(x) for x in counts.values())
        trained = runs.load(buckets.path(str(workdir)), step)
        config, params = trained.model, trained.params
        if depth is not None:
            try:
                config, params = model.at_depth(config, params, depth)
            except ValueError as error:
                raise ConfigError(f"--model_args: {error}") from None
        return cls(trained, config, params, mode, seed=seed or 0)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> "HarnessLM":
        """Does the same for arguments as NAME=VALUE, by commas."""
        pairs = (each.partition("=") for each in arg_string.split(",") if each)
        return cls.create_from_arg_obj({name: value for name, _, value in pairs})

    def get_model_info(self) -> dict[str, Any]:
        """Returns what the harness writes beside its results."""
        depth = self._config.schedule.num_recursions
        return {"step": self._trained.step, "depth": depth, "mode": self._place.mode}

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text, and stands before one that has no context."""
        return self._trained.tokenizer.end_of_text

    @property
    def max_length(self) -> int:
        """Tokens that the model is given at most: as many as in training."""
        return self._place.context_length

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer."""
        return self._trained.tokenizer.name

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Returns the ids of a text; none is special."""
        return self._trained.tokenizer.encode(string)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Returns log-likelihood and greediness of the continuation of each context."""
        given: list[tuple[Any, ...]] = [request.args for request in requests]
        texts = [(context, after) for context, after in given]
        answers = self._answers(self._encoded(texts), [_task(request) for request in requests])
        found = [(answer.log_likelihood, answer.is_greedy) for answer in answers]
        for request, each in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, each)
        return found

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Returns the log-likelihood of each text, whose tokens are each predicted once."""
        texts = [request.args[0] for request in requests]
        windows, owners = [], []
        for owner, ids in enumerate(self._ids(texts)):
            rolling = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            for context, continuation in map(make_disjoint_window, rolling):
                windows.append(Request(tuple(context), tuple(continuation)))
                owners.append(owner)
        found = [0.0] * len(texts)
        tasks = [_task(requests[owner]) for owner in owners]
        for owner, answer in zip(owners, self._answers(windows, tasks), strict=True):
            found[owner] += answer.log_likelihood
        for request, each in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, each)
        return found

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Returns the same for contexts and continuations that are tokens already."""
        asked = [Request(tuple(context), tuple(after)) for _, context, after in requests]
        answers = self._answers(asked, [""] * len(asked))
        return [(answer.log_likelihood, answer.is_greedy) for answer in answers]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Returns the text that follows each context, up to where a task says it ends."""
        given: list[tuple[Any, ...]] = [request.args for request in requests]
        prompts = self._ids([text for text, _ in given])
        tasks = [_task(request) for request in requests]
        ways = [_way(how, task) for (_, how), task in zip(given, tasks, strict=True)]
        found = [""] * len(requests)
        with self._bar("continuing", len(requests), "prompts") as advance:
            for way in dict.fromkeys(ways):
                room = max(self.max_length - way.num_tokens, self.max_length // 2, 1)
                members = [index for index, each in enumerate(ways) if each == way]
                seen = [(prompts[index] or [self.prefix_token_id])[-room:] for index in members]
                for index, text in zip(members, self._continued(seen, way, advance), strict=True):
                    found[index] = text
                    self.cut[tasks[index]] += len(prompts[index]) > room
        self._say_cut(tasks)
        for request, each in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, each)
        return found

    def _continued(
        self, prompts: list[list[int]], way: Way, advance: Callable[[int], None]
    ) -> list[str]:
        how = {"tokenizer": self._trained.tokenizer, "seed": self._seed, "advance": advance}
        found = continuations(self._params, self._config, prompts, self._place, way, **how)
        return [each.text for each in found]

    def _answers(self, asked: Sequence[Request], tasks: Sequence[str]) -> list[Answer]:
        """Returns the answers, and keeps how deep each task went."""
        with self._bar("scoring", len(asked), "requests") as advance:
            place = self._place
            answers = requests.score(self._params, self._config, asked, place, advance)
        for request, answer, task in zip(asked, answers, tasks, strict=True):
            self.cut[task] += requests.is_cut(request, self.max_length)
            if request.continuation:
                self.depths[task].append(answer.mean_depth)
        self._say_cut(tasks)
        return answers

    @contextlib.contextmanager
    def _bar(self, doing: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        self._begin()
        if not distributed.is_first():
            yield lambda _: None
            return
        with console.bar(f"{doing} {self._about}".strip(), total, unit) as advance:
            yield advance

    def _say_cut(self, tasks: Sequence[str]) -> None:
        cut = {task: self.cut[task] for task in dict.fromkeys(tasks) if self.cut[task]}
        if cut and distributed.is_first():
            each = ", ".join(f"{count:,} of {task or 'all'}" for task, count in cut.items())
            self._say(
                "requests longer, with what follows, than the model's context of "
                f"{self.max_length:,} tokens: {each}; cut from the left, as the harness does"
            )

    def _encoded(self, texts: Sequence[tuple[str, str]]) -> list[Request]:
        """Returns contexts and continuations as tokens, split where the context's own end.

        Spaces that end a context begin the continuation, and the text that has no context follows
        the end of another: so does the harness.
        """
        split = []
        for context, continuation in texts:
            kept = context.rstrip() if context.strip() else ""
            split.append((kept, context[len(kept) :] + continuation))
        contexts = self._ids([context for context, _ in split])
        wholes = self._ids([context + after for context, after in split])
        found = []
        for context, whole in zip(contexts, wholes, strict=True):
            first = tuple(context) or (self.prefix_token_id,)
            found.append(Request(first, tuple(whole[len(context) :])))
        return found

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of texts, each distinct one encoded once."""
        distinct = list(dict.fromkeys(texts))
        encoded = self._trained.tokenizer.encode_batch(distinct)
        of = {text: ids.tolist() for text, ids in zip(distinct, encoded, strict=True)}
        return [of[text] for text in texts]


def _task(request: Instance) -> str:
    return request.task_name or ""


def _way(given: Mapping[str, Any], task: str) -> Way:
    """Returns how a task wants its prompts to be continued."""
    known: Any = normalize_gen_kwargs(dict(given))
    for name, value in known.items():
        if name not in KNOWN and value is not None and value not in NO_CHANGE.get(name, ()):
            raise ConfigError(
                f"{task}: asks for generation with {name}={value}, which there is not here; "
                f"there is {', '.join(sorted(KNOWN))}"
            )
    filters = {name: known[name] for name in FILTERS if known.get(name) is not None}
    if filters.get("top_k") == -1:  # as some of the harness's models say for all
        del filters["top_k"]
    temperature = float(known["temperature"]) if known["do_sample"] else 0.0
    try:
        sampling = Sampling(temperature, **filters) if temperature else Sampling(0.0)
        way = Way(Stops(tuple(filter(None, known["until"]))), int(known["max_gen_toks"]), sampling)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{task}: asks for generation with {error}") from None
    return way


register_model("recursia")(HarnessLM)

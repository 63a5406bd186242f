"""`recursia convert fold`: leaves out and shares layers of a trained model by what they do."""

import argparse
import dataclasses
import tempfile
from typing import Any

from recursia import arguments, buckets, console, parsing
from recursia.errors import ConfigError

ABOUT = "Fold a trained model: leave out layers, share weights in groups, share keys."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    arguments.run_options(parser)
    parser.add_argument("--output", type=parsing.workdir, required=True, help="a new directory")
    about = "a text or jsonl file to choose by; default: the run's validation split"
    parser.add_argument("--text", type=parsing.place, help=about)
    about = "of batch_size sequences, to read of it"
    parser.add_argument("--num_batches", type=parsing.integer(1), default=2, help=about)
    about = "layers to keep, those with the largest learned gates; default: all"
    parser.add_argument("--keep", type=parsing.integer(2), help=about)
    about = "updates of the gates"
    parser.add_argument("--gate_steps", type=parsing.integer(1), default=100, help=about)
    about = "how neighbouring layers are grouped: by how alike their states are, or in equal parts"
    choices = ("clustered", "contiguous")
    parser.add_argument("--groups", choices=choices, default="clustered", help=about)
    about = "groups, whose layers share all but norms; default: one for each layer"
    parser.add_argument("--num_groups", type=parsing.integer(1), help=about)
    about = "what the weights of a group are made of: its first layer, or the mean of all"
    parser.add_argument("--init", choices=("first", "average"), default="first", help=about)
    about = "layers at most that are to read the keys and values of another, unlike layer"
    parser.add_argument("--shared_keys", type=parsing.integer(0), default=0, help=about)
    about = "cosine of the last states, above which such keys are kept"
    parser.add_argument("--cosine", type=parsing.real(-1, 1), default=0.9, help=about)
    about = "share of heads that take the weights of a similar head of another layer"
    parser.add_argument("--shared_heads", type=parsing.real(0, 1), default=0.0, help=about)
    arguments.compiling_option(parser)


def run(given: argparse.Namespace) -> None:
    """Makes one model of another, and prints what was chosen and why."""
    import jax

    from recursia import scores
    from recursia.convert import calibration
    from recursia.evaluate import split
    from recursia.workdir import trained

    with console.doing(f"loading {given.workdir}"):
        loaded = trained.load(given.workdir, given.step)
        params = jax.device_put(loaded.params, jax.devices()[0])
    config, params = calibration.dense(params, loaded.model)
    _check(given, config.num_layers)
    with tempfile.TemporaryDirectory() as folder:
        if given.text:
            paths = (split.of_file(given.text, loaded.tokenizer, folder),)
        elif not (paths := split.of_run(loaded, given.workdir)):
            raise ConfigError(f"--text: {given.workdir} has no text of its own; give --text=FILE")
        mesh = loaded.mesh
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        batches = list(scores.validation_batches(loaded.run, paths, given.num_batches, mesh))
        token_bytes = loaded.tokenizer.token_bytes()
        how: dict[str, Any] = {"mode": "eval", "mesh": mesh, "rules": loaded.run.mesh.rules}

        def nats(params: Any, config: Any) -> float:
            laid = jax.device_put(params, everywhere)
            return scores.score(laid, config, batches, token_bytes, **how).nats_per_token

        before = nats(params, config)
        config, params = _folded(given, config, params, batches)
        print(f"loss {before:.4f} before, {nats(params, config):.4f} after (nats per token)")
    model = dataclasses.replace(config, vocab_size=loaded.run.model.vocab_size)
    made = dataclasses.replace(trained.settings_of(loaded, given.workdir), model=model)
    places = tuple(str(buckets.path(path).resolve()) for path in loaded.paths)
    if places:  # a checkpoint from elsewhere has none
        made = dataclasses.replace(made, data=dataclasses.replace(made.data, path=places))
    trained.save(made, loaded.model.vocab_size, params, loaded.tokenizer, given.output)
    print(f"{given.output}: made of {given.workdir} at step {loaded.step}")


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    learns = {"train.init_from": given.output, "distill.teacher": given.workdir}
    return arguments.training(given.output, learns)


def _check(given: argparse.Namespace, num_layers: int) -> None:
    if given.keep and given.keep > num_layers:
        raise ConfigError(f"--keep={given.keep}: the model has {num_layers} layers; take fewer")
    if given.num_groups and given.num_groups > (left := given.keep or num_layers):
        raise ConfigError(f"--num_groups={given.num_groups}: of {left} layers; take fewer")
    kept, groups = given.keep or num_layers, given.num_groups or num_layers
    if given.shared_heads and (given.shared_keys or given.num_groups):
        raise ConfigError(
            f"--shared_heads={given.shared_heads}: heads are shared one by one, and --num_groups "
            "and --shared_keys share those of a layer; give one of these"
        )
    if min(kept, groups) == num_layers and not (given.shared_keys or given.shared_heads):
        raise ConfigError(
            f"nothing is folded: {kept} of {num_layers} layers are kept, in {min(kept, groups)} "
            "groups; give a smaller --keep or --num_groups, or --shared_keys or --shared_heads"
        )


def _folded(given: argparse.Namespace, config: Any, params: Any, batches: Any) -> tuple[Any, Any]:
    """Returns the folded model and its parameters."""
    import jax
    import numpy as np

    from recursia.convert import calibration, dissimilar, gates, groups, heads, recursive

    if given.keep and given.keep < config.num_layers:
        with console.doing("learning gates"):
            found = gates.learned(params, config, batches, given.keep, given.gate_steps)
        kept = sorted(int(layer) for layer in np.argsort(-found, kind="stable")[: given.keep])
        for layer, gate in enumerate(found):
            print(f"layer {layer:3}  gate {gate:.3f}  {'kept' if layer in kept else 'left out'}")
        config, params = gates.without(params, config, kept)
    if given.num_groups:
        alike = groups.alignment(calibration.states(params, config, batches))
        chosen = groups.contiguous(config.num_layers, given.num_groups)
        if given.groups == "clustered":
            chosen = groups.clustered(alike, given.num_groups)
        for layer, group in enumerate(chosen):
            near = f"{alike[layer - 1, layer]:.4f}" if layer else "     -"
            print(f"layer {layer:3}  alignment with the one below {near}  group {group}")
        target, key = groups.shared(config, chosen), jax.random.key(0)
        made = recursive.recursive(params, config, target, given.init, norms="first", key=key)
        config, params = target, made
    if given.shared_keys:
        with console.doing("trying keys"):
            how = (given.shared_keys, given.cosine)
            config, params, trials = dissimilar.search(params, config, batches, *how)
        for t in trials:
            end = "kept" if t.is_kept else "not kept"
            print(
                f"layer {t.reader:3} reads keys of {t.owner:3}  distance {t.distance:.3f}  "
                f"cosine {t.cosine:.4f}  {end}"
            )
    if given.shared_heads:
        alike = heads.similarity(heads.units(params, config))
        if not (count := round(given.shared_heads * len(alike))):
            raise ConfigError(
                f"--shared_heads={given.shared_heads}: of {len(alike)} heads that is none; give at "
                f"least {1 / len(alike):.3f}"
            )
        owners = heads.chosen(alike, config.num_layers, count)
        each = len(alike) // config.num_layers
        for unit, owner in enumerate(owners):
            if owner != unit:
                places = "layer {:3} head {:3}  takes those of layer {:3} head {:3}"
                place = places.format(*divmod(unit, each), *divmod(owner, each))
                print(f"{place}  cosine {alike[unit, owner]:.4f}")
        config, params = heads.shared(params, config, owners)
    return config, params

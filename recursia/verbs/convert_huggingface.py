"""`recursia convert huggingface`: makes a run of a checkpoint from elsewhere."""

import argparse
import dataclasses
import shutil

from recursia import console, parsing
from recursia.errors import ConfigError

ABOUT = "Make a run of a Hugging Face folder, a GGUF or llama2.c file, or authors' safetensors."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    about = "a folder with config.json and safetensors, or a .gguf or .bin"
    parser.add_argument("--input", type=parsing.path, required=True, help=about)
    parser.add_argument("--output", type=parsing.path, required=True, help="a new run's directory")
    about = "a tokenizer.json, a folder, or a .bin of llama2.c; default: what lies with the model"
    parser.add_argument("--tokenizer", type=parsing.place, default="", help=about)
    about = "name of the token that ends a text; default: a usual one"
    parser.add_argument("--end_of_text", default="", help=about)
    about = "compute dtype of the run; parameters are float32"
    choices = ("float32", "bfloat16")
    parser.add_argument("--dtype", choices=choices, default="float32", help=about)
    about = "tokens of a sequence when the run is scored; default: the model's, at most 2048"
    parser.add_argument("--seq_len", type=parsing.integer(1), default=0, help=about)
    about = "sequences scored at a time"
    parser.add_argument("--batch_size", type=parsing.integer(1), default=8, help=about)


def run(given: argparse.Namespace) -> None:
    """Makes a run of a checkpoint."""
    import jax

    from recursia import model, settings, sharding
    from recursia.convert import arrival
    from recursia.convert.safely import new_folder
    from recursia.workdir import trained

    with new_folder(given.output) as part:
        found = arrival.find(given.input)
        tokenizer = arrival.tokenizer(found, given.tokenizer, given.end_of_text)
        config = dataclasses.replace(found.config, dtype=given.dtype)
        count = jax.device_count()
        mesh = sharding.MeshConfig(data=1, fsdp=count) if count > 1 else sharding.MeshConfig()
        try:
            run = settings.Run(
                model=config,
                data=settings.Data(text=("bundled:train",)),
                train=settings.Train(
                    num_steps=1000,
                    batch_size=given.batch_size,
                    seq_len=given.seq_len or min(found.length, 2048),
                ),
                mesh=mesh,
            )
        except ValueError as error:
            raise ConfigError(f"convert: {error}") from None
        with console.doing(f"reading {given.input}"):
            here = sharding.make_mesh(mesh)
            specs = model.specs(config)
            weights = found.params(sharding.fitting(specs, here, mesh.rules))
        shutil.rmtree(part)
        trained.save(run, config.vocab_size, weights, tokenizer, part)
    print(f"{given.output}: made of {given.input} ({found.kind})")

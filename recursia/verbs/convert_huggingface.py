"""`recursia convert huggingface`: makes a run of a checkpoint from elsewhere."""

import argparse

from recursia import arguments, console, parsing

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
    from recursia.convert import arrival
    from recursia.safely import new_folder
    from recursia.workdir import trained

    with new_folder(given.output) as part:
        found = arrival.find(given.input)
        tokenizer = arrival.tokenizer(found, given.tokenizer, given.end_of_text)
        how = {"dtype": given.dtype, "seq_len": given.seq_len, "batch_size": given.batch_size}
        ours = arrival.run(found, **how)
        with console.doing(f"reading {given.input}"):
            weights = arrival.laid(found)
            trained.save(ours, ours.model.vocab_size, weights, tokenizer, part)
    print(f"{given.output}: made of {given.input} ({found.kind})")


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.command("eval", workdir=given.output, text="FILE")

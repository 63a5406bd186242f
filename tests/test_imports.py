"""Imports run one way, and no generic part knows a published system by name."""

import ast
import pathlib
import re
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "recursia"
HERE = "recursia"

# What each part may import, besides itself. A part is a package, or a module at the top.
BASE = {"errors", "ranges"}
WEIGHTS = BASE | {"params", "batch", "kernels"}
CONFIGS = {"settings", "config", "notes", "kinds"}
LAYERS = WEIGHTS | {"sharding", "layers"}
BLOCKS = LAYERS | {"mixers", "feedforward", "blocks"}
MODEL = BLOCKS | {"kv", "injection", "embeddings", "sharing", "depth", "parameterisations"}
MODEL |= {"parallel"}
FORWARD = {"architecture", "model", "cache"}
MAY = {
    "errors": set(),
    "ranges": set(),
    "batch": set(),
    "console": set(),
    "storage": BASE,
    "objects": BASE | {"storage"},
    "buckets": BASE | {"objects"},
    "backlog": {"console"},
    "parts": {"backlog"},
    "jsonfile": set(),
    "jsonlines": {"errors", "buckets", "parts"},
    "safely": {"errors"},
    "parsing": BASE | {"buckets"},
    "meanings": set(),
    "modules": set(),
    "dotted": {"errors", "jsonfile"},
    "streams": BASE,
    "signals": BASE | {"console"},
    "compiled": BASE | {"console"},
    "kernels": set(),
    "chips": set(),
    "topology": BASE | {"chips"},
    "params": BASE,
    "sharding": BASE | {"params", "batch"},
    "replicas": BASE,
    "fragments": BASE | {"params"},
    "fsdp": BASE | {"params", "batch", "sharding"},
    "stall": BASE | {"console"},
    "distributed": BASE | {"stall"},
    "layers": LAYERS,
    "injection": LAYERS,
    "parallel": LAYERS | {"mixers", "depth"},
    "mixers": LAYERS,
    "embeddings": LAYERS | {"mixers"},
    "feedforward": LAYERS,
    "blocks": BLOCKS,
    "sharing": LAYERS | {"injection", "fsdp", "traced_flops"},
    "kv": BASE | {"sharing", "dotted"},
    "depth": LAYERS | {"injection", "sharing"},
    "parameterisations": BASE | {"params"},
    "combinations": {"injection"},
    "architecture": MODEL | {"combinations"},
    "layout": MODEL | {"architecture"},
    "layer_reports": MODEL | {"architecture"},
    "coordinates": MODEL | FORWARD | {"optimizers", "scaling"},
    "step_law": MODEL | FORWARD | {"accounting"},
    "stacks": MODEL | {"architecture"},
    "model": MODEL | {"architecture", "cache", "layer_reports", "layout", "stacks"},
    "cache": BASE | {"architecture", "layers", "mixers", "params", "sharing", "stacks"},
    "optimizers": BASE | {"params"},
    "traced_flops": set(),
    "step_costs": MODEL | {"architecture", "traced_flops"},
    "accounting": MODEL | FORWARD | {"step_costs", "optimizers"},
    "kinds": MODEL | {"optimizers", "modules", "dotted", "typed"},
    "settings": MODEL
    | {"architecture", "data", "learning_rate", "typed", "optimizers", "kinds", "replicas"},
    "typed": BASE,
    "presets": BASE | {"configs", "dotted"},
    "fields": MODEL | {"architecture", "settings", "kinds", "typed", "meanings"},
    "sections": {"dotted", "errors", "fields", "kinds", "presets", "typed"},
    "config": MODEL
    | {"architecture", "settings", "kinds", "typed", "presets", "fields", "sections"}
    | {"buckets", "jsonfile"},
    "changes": CONFIGS | {"errors"},
    "learning_rate": BASE,
    "notes": MODEL | {"architecture", "settings"},
    "data": BASE
    | {"corpus", "console", "storage", "buckets", "objects", "dotted", "jsonfile", "typed"},
    "losses": BASE | {"sharding"},
    "scores": LAYERS
    | FORWARD
    | {"depth", "losses", "settings", "data", "distributed", "console", "stall"},
    "workdir": BASE
    | FORWARD
    | {"params", "sharding", "settings", "config", "changes", "convert", "data", "distributed"}
    | {"console", "jsonfile", "jsonlines", "stall", "storage", "buckets", "parts", "backlog"},
    "generate": BASE
    | FORWARD
    | {"params", "layers", "sharing", "depth", "stacks", "workdir", "data", "console", "jsonlines"}
    | {"safely"},
    "prediction": BASE | FORWARD | {"depth", "evaluate"},
    "language_model": BASE
    | FORWARD
    | {"params", "settings", "data", "scores", "evaluate", "generate", "prediction"},
    "loaded": BASE
    | FORWARD
    | {"params", "sharding", "settings", "config", "budget", "data", "workdir", "console"}
    | {"language_model", "buckets"},
    "convert": MODEL
    | FORWARD
    | {"optimizers", "settings", "config", "kinds", "data", "sharding", "losses", "learning_rate"}
    | {"jsonfile"},
    "budget": BASE
    | {"accounting", "architecture", "data", "fragments", "model", "step_law"}
    | CONFIGS,
    "scaling": BLOCKS | {"architecture"},
    "matching": BLOCKS
    | {"architecture", "accounting", "budget", "changes", "depth", "scaling", "parallel"}
    | {"storage"}
    | CONFIGS,
    "train": MODEL
    | FORWARD
    | {"losses", "scores", "workdir", "accounting", "budget", "data", "generate", "fsdp"}
    | {"distributed", "console", "jsonlines", "signals", "chips", "stall", "buckets"}
    | {"dotted", "modules", "learning_rate", "replicas", "fragments"}
    | CONFIGS,
    "evaluate": BASE
    | FORWARD
    | {"params", "layers", "depth", "scores", "workdir", "data", "convert", "console"}
    | {"config", "accounting", "sharding", "distributed", "jsonlines", "generate"}
    | {"buckets", "safely"},
    "report": BASE
    | FORWARD
    | {"accounting", "budget", "buckets", "config", "console", "data", "depth", "evaluate"}
    | {"jsonfile", "jsonlines", "presets"}
    | {"layers", "losses", "scores", "settings", "sharding", "workdir"},
    "laws": MODEL | FORWARD | {"accounting", "traced_flops", "dotted"},
    "arguments": {"parsing", "presets", "changes", "distributed"},
    "launch": BASE
    | CONFIGS
    | {"buckets", "chips", "compiled", "console", "distributed", "meanings", "modules", "parsing"}
    | {"preflight", "sharding", "signals", "topology", "dotted"},
    "sweep": BASE
    | CONFIGS
    | {"presets", "fields", "budget", "accounting", "workdir", "jsonlines", "console", "signals"}
    | {"launch", "train", "parsing", "buckets", "storage", "objects", "parts", "jsonfile"},
    "verbs": BASE
    | {"buckets", "jsonlines"}
    | {
        "sweep",
        "config",
        "kinds",
        "coordinates",
        "parameterisations",
        "budget",
        "matching",
        "train",
        "evaluate",
        "scores",
        "generate",
        "convert",
        "data",
        "launch",
        "laws",
        "report",
    }
    | {
        "workdir",
        "compiled",
        "console",
        "streams",
        "distributed",
        "preflight",
        "topology",
        "safely",
    }
    | {"presets", "fields", "accounting", "arguments", "parsing", "meanings", "settings"},
    "cli": BASE | {"compiled", "console", "parsing", "signals", "verbs"},
    "preflight": MODEL
    | FORWARD
    | {"accounting", "budget", "changes", "chips", "topology", "train", "generate", "data"}
    | {"workdir", "buckets", "jsonfile"}
    | CONFIGS,
    "__main__": {"cli", "console", "signals", "streams"},
    "__init__": {"cli", "language_model", "loaded", "prediction"},
    "configs": {"configs"},
    "corpus": set(),
}
# What of a part alone: training prints samples of the decoder, not of a run in a directory; what
# works with any kind knows the base class.
HOLD = ("architecture", "model", "kinds", "settings", "accounting", "step_costs", "scaling")
NARROW = {
    ("train", "generate"): {"generate.decode", "generate.sampling"},
    **{(part, "blocks"): {"blocks.block"} for part in HOLD},
    **{(part, "depth"): {"depth.policy"} for part in (*HOLD, "scores", "generate")},
    **{(part, "mixers"): {"mixers.mixer"} for part in ("kinds", "embeddings", "cache")},
    ("kinds", "feedforward"): {"feedforward.feedforward"},
}

SYSTEMS = re.compile(
    r"vanilla|moeut|subformer|huginn|universal|ouro|sandwich|albert|mixture_of_recursions|(?<![a-z])mor(?![a-z])",
    re.IGNORECASE,
)
# A published way of counting FLOPs, by which its authors' budgets can be read.
COUNTED = re.compile(r"\bmor_(flops(_per_token)?|matched_(steps|error))\b|^mor_$")
# Blocks name the models that they are of; the others read the weights that authors released.
CITES = ("blocks", "convert", "evaluate.parity")


def modules():
    """Returns every module of the package by its dotted name without `recursia`."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__") or "__init__"] = path.read_text()
    return found


MODULES = modules()
NAMES = set(MODULES) | {"configs", "corpus", "kernels"}


def part_of(name):
    return name.partition(".")[0]


def imported(source):
    """Yields what a module imports of the package, as dotted names without `recursia`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the package in full"
            # `from recursia.train import losses` imports a module, `... import State` a name of it.
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [f if f.removeprefix(f"{HERE}.") in NAMES else node.module for f in full]
        else:
            continue
        yield from (n.removeprefix(f"{HERE}.") for n in names if n.startswith(f"{HERE}."))


def wrong_imports(name, source):
    """Returns what a module imports against the order."""
    part = part_of(name)
    wrong = []
    for target in imported(source):
        other = part_of(target)
        narrow = NARROW.get((name, other), NARROW.get((part, other)))
        if other != part and other not in MAY[part]:
            wrong.append(target)
        elif narrow is not None and other != part and target not in narrow:
            wrong.append(target)
    return wrong


def systems_named(source):
    """Returns the published systems that code names; docstrings and comments may cite."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    words = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            words += (
                [node.value] if isinstance(node.value, str) and id(node) not in docstrings else []
            )
            continue
        for field in ("id", "attr", "name", "asname", "arg", "module"):
            words += [value] if isinstance(value := getattr(node, field, None), str) else []
    return [word for word in words if SYSTEMS.search(COUNTED.sub("", word))]


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    assert part_of(name) in MAY, "a new part: say what it may import"
    assert wrong_imports(name, MODULES[name]) == []


def test_the_order_has_no_circle():
    left = {part: MAY[part] - {part} for part in MAY}
    while free := {part for part, needs in left.items() if not needs}:
        left = {part: needs - free for part, needs in left.items() if part not in free}
    assert not left


def test_no_two_modules_import_each_other():
    needs = {name: set(imported(source)) & set(MODULES) for name, source in MODULES.items()}
    while free := {name for name, others in needs.items() if not others}:
        needs = {name: others - free for name, others in needs.items() if name not in free}
    assert not needs


@pytest.mark.parametrize("name", [n for n in MODULES if not n.startswith(CITES)])
def test_generic_parts_name_no_published_system(name):
    # What a user types to name a shipped preset is an example in the command line's help.
    example = "such as mor:tiny" if name == "arguments" else ""
    assert systems_named(MODULES[name].replace(example, "")) == []


PLANTED = {
    "a block that knows it is shared": ("blocks.pre_norm", "from recursia.sharing import stack"),
    "a policy that sees a block": ("depth.fixed", "from recursia.blocks import pre_norm"),
    "sharing that sees a block": ("sharing.stack", "import recursia.blocks.block"),
    "a mixer that sees a feed-forward": ("mixers.momha", "from recursia import feedforward"),
    "a model that picks a policy": ("model", "from recursia.depth.fixed import Fixed"),
    "parameters that know the mesh": ("params", "from recursia.sharding import constrain"),
    "a config that scores": ("config", "def f():\n    from recursia.evaluate import depths"),
    "training that loads prompts": ("train.loop", "from recursia.generate import prompts"),
    "errors that know anything": ("errors", "from recursia import params"),
}


@pytest.mark.parametrize(("name", "source"), PLANTED.values(), ids=PLANTED)
def test_a_planted_import_is_seen(name, source):
    assert name in MODULES
    assert wrong_imports(name, source)
    assert wrong_imports(name, MODULES[name] + "\n" + source)


@pytest.mark.parametrize(
    "source",
    [
        "if kind == 'mor': pass",
        "def is_mor(config): pass",
        "from recursia.convert.reference import moeut",
        "x = config.mor_router",
        "class HuginnLoop: pass",
        "f(universal=True)",
        "print(f'{x} of vanilla')",
    ],
)
def test_a_planted_name_is_seen(source):
    assert systems_named(source)


def test_citations_and_words_that_only_look_alike_are_none():
    assert not systems_named('"""Mixture-of-Recursions (MoR)."""\ndef f():\n    """As MoR."""')
    assert not systems_named("more = tomorrow + memory  # as in mor")
    assert not systems_named("x = budget.mor_flops_per_token")


def test_kernels_import_nothing_of_the_rest():
    for path in sorted((ROOT.parent / "kernels").rglob("*.py")):
        depth = len(path.relative_to(ROOT.parent / "kernels").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith(HERE) for alias in node.names), path
            elif isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith(HERE), path
                assert node.level <= depth, path


def test_every_package_is_shipped():
    settings = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    homes = {name: ROOT.parent / folder for name, folder in settings["package-dir"].items()}
    folders = {HERE: ROOT, **homes}
    there = {
        ".".join((name, *path.parent.relative_to(folder).parts))
        for name, folder in folders.items()
        for path in folder.rglob("__init__.py")
    }
    assert there == set(settings["packages"])


def test_no_test_imports_another_test():
    """What several tests use lies in tests/helpers."""
    for path in (ROOT.parent / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
                assert node.module.startswith("tests.helpers"), path

"""Local task files ask what lm-evaluation-harness's own tasks ask of the same rows."""

import gzip
import json
import pathlib

import pytest

from recursia.errors import ConfigError, DataError
from recursia.evaluate import tasks

lm_eval = pytest.importorskip("lm_eval")
datasets = pytest.importorskip("datasets")

HERE = pathlib.Path(__file__).parent / "data_sets"
OWN = {
    "piqa": "piqa/piqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "blimp_adjunct_island": "blimp/adjunct_island.yaml",
    "blimp_wh_vs_that_no_gap": "blimp/wh_vs_that_no_gap.yaml",
    "mmlu_anatomy": "mmlu/default/mmlu_anatomy.yaml",
    "mmlu_world_religions": "mmlu/default/mmlu_world_religions.yaml",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of task files of all data sets."""
    place = tmp_path_factory.mktemp("tasks") / "tasks"
    counts = tasks.make(HERE, place)
    assert counts.keys() == tasks.TASKS.keys()
    return place


@pytest.fixture(scope="module")
def ours(made):
    """The tasks of that folder, by name."""
    from lm_eval.tasks import TaskManager

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(made.parent / "cache"))
        manager = TaskManager(include_path=str(made), include_defaults=False)
        return manager.load(sorted(tasks.TASKS))


def published(name):
    """Returns the harness's own task over published rows."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    settings = load_yaml(pathlib.Path(lm_eval.__path__[0]) / "tasks" / OWN[name])
    read = lambda path: datasets.Dataset.from_list(
        [json.loads(line) for line in path.read_text().splitlines()]
    )
    rows, shots = (HERE / "published" / f"{name}{part}.jsonl" for part in ("", "_dev"))
    splits = dict.fromkeys(("train", "validation", "test"), read(rows))
    splits |= {"dev": read(shots)} if shots.exists() else {}
    unused = ("tag", "group")
    settings = {key: value for key, value in settings.items() if key not in unused}
    return ConfigurableTask(config={**settings, "custom_dataset": lambda **_: splits})


def asked(task, shots=0):
    """Returns all that a task asks for, in order."""
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests(rank=0, world_size=1)
    return [(each.request_type, each.doc_id, each.idx, each.args) for each in task.instances]


def answers(task):
    """Returns the metrics of every row, were the first, the second, ... choice the likeliest."""
    found = []
    for doc in task.eval_docs:
        is_one = task.config.output_type == "loglikelihood"
        count = 1 if is_one else len(task.doc_to_choice(doc))
        for best in range(count):
            results = [(-1.0 - (each != best), True) for each in range(count)]
            found.append(task.process_results(doc, results))
    return found


@pytest.mark.parametrize("name", OWN)
def test_prompts_and_metrics_equal_those_of_the_harness(name, ours):
    task, own = ours["tasks"][name], published(name)
    rows = (HERE / "published" / f"{name}.jsonl").read_text().splitlines()
    assert {doc for _, doc, _, _ in asked(own)} == set(range(len(rows))) != set()
    assert asked(task) == asked(own)
    assert answers(task) == answers(own)
    assert task.aggregation().keys() == own.aggregation().keys()
    assert task.higher_is_better() == own.higher_is_better()


@pytest.mark.parametrize("name", [name for name in OWN if name.startswith("mmlu_")])
def test_examples_before_a_prompt_equal_those_of_the_harness(name, ours):
    ours_, own = asked(ours["tasks"][name], shots=2), asked(published(name), shots=2)
    assert ours_ == own != asked(published(name))


def test_groups_average_as_those_of_the_harness(ours, made):
    from lm_eval.tasks._yaml_loader import load_yaml

    root = pathlib.Path(lm_eval.__path__[0]) / "tasks"
    for name, own in (("blimp", "blimp/_blimp.yaml"), ("mmlu", "mmlu/default/_mmlu.yaml")):
        (mean,) = load_yaml(root / own)["aggregate_metric_list"]
        (ours_,) = load_yaml(made / f"{name}.yaml")["aggregate_metric_list"]
        assert mean["metric"] == ours_["metric"]
        assert mean["weight_by_size"] == ours_["weight_by_size"]
        members = ours["group_map"][name]
        assert members == [each for each in OWN if each.startswith(f"{name}_")]


def test_rows_may_be_packed_and_some_data_sets_missing(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    raw = (HERE / "piqa_validation.jsonl").read_bytes()
    (source / "piqa_validation.jsonl.gz").write_bytes(gzip.compress(raw))
    assert tasks.make(source, tmp_path / "tasks") == {"piqa": 2}
    assert {path.name for path in (tmp_path / "tasks").iterdir()} == {"piqa.yaml", "piqa.jsonl"}


BROKEN = {
    "no JSON": ("piqa_validation", '{"prompt": ', "bad JSON"),
    "a list": ("piqa_validation", "[1]", "a JSON list where an object is expected"),
    "no field": ("piqa_validation", '{"choices": ["a"], "gold": 0}', "no field 'prompt'"),
    "no text": ("boolq_validation", '{"prompt": 1, "gold": 0}', "'prompt' is int, takes text"),
    "gold": (
        "piqa_validation",
        '{"prompt": "a", "choices": ["b", "c"], "gold": 2}',
        "'gold' is 2, takes 0 to 1",
    ),
    "an empty choice": (
        "piqa_validation",
        '{"prompt": "a", "choices": ["b", ""], "gold": 0}',
        "'choices' has an empty text at place 1",
    ),
    "letters": (
        "mmlu_test",
        '{"prompt": "a", "choices": ["b"], "gold": 0, "subject": "s"}',
        "'choices' has 1 texts, takes 4",
    ),
    "a path": (
        "mmlu_test",
        '{"prompt": "a", "choices": ["b"], "gold": 0, "subject": "../s"}',
        "'subject' is '../s'",
    ),
    "no blank": (
        "winogrande_xl_validation",
        '{"sentence": "a", "option1": "b", "option2": "c", "gold": 0}',
        "no '_'",
    ),
    "no UTF-8": ("piqa_validation", '"\udcff"', "invalid UTF-8"),
}


@pytest.mark.parametrize(("name", "line", "why"), BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_told_with_its_number_and_nothing_is_written(name, line, why, tmp_path):
    good = (HERE / f"{name}.jsonl").read_text().splitlines()[0]
    source, output = tmp_path / "source", tmp_path / "out" / "tasks"
    source.mkdir()
    text = f"{good}\n\n{line}\n".encode(errors="surrogateescape")
    (source / f"{name}.jsonl").write_bytes(text)
    with pytest.raises(DataError) as error:
        tasks.make(source, output)
    said = str(error.value)
    assert said.startswith(f"{source / name}.jsonl:3: ") and why in said and "\n" not in said
    assert not output.exists() and list(output.parent.iterdir()) == []


def test_what_is_not_there_and_what_is_already_there(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(DataError, match=r"holds none of the files blimp\.jsonl"):
        tasks.make(tmp_path, tmp_path / "tasks")
    for place in (tmp_path / "none", HERE / "piqa_validation.jsonl"):
        with pytest.raises(DataError, match="is no folder"):
            tasks.make(place, tmp_path / "tasks")
    with pytest.raises(ConfigError, match="is there already"):
        tasks.make(HERE, tmp_path / "full")
    source = tmp_path / "source"
    source.mkdir()
    (source / "piqa_validation.jsonl").touch()
    with pytest.raises(DataError, match="0 rows"):
        tasks.make(source, tmp_path / "tasks")

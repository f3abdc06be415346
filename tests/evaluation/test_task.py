from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pldcli.errors import CheckpointError, DataError, PldError, UsageError
from pldcli.evaluation import depth
from pldcli.evaluation.task import TaskSource, evaluate_task, evaluate_task_depths, write_predictions
from pldcli.export import export
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.finetune import Finetuned
from pldcli.huggingface.load import load_pretrained
from pldcli.tasks.kinds import head_of
from tests.finetuning.conftest import WORDS, river_rows, write_rows

Learn = Callable[..., Finetuned]


@pytest.fixture(scope="module", params=["tiny", "tiny_rotary"])
def rough(
    request: pytest.FixtureRequest, learn: Learn, river_experiment: Callable[..., Experiment], tmp_path_factory: pytest.TempPathFactory
) -> Finetuned:
    """So little trained that its score is neither 0.5 nor 1, on rows of 9 tokens: texts are cut."""
    experiment = river_experiment(model=str(request.getfixturevalue(request.param)))
    return learn(experiment, tmp_path_factory.mktemp("rough") / "out", "epochs=2", "max_seq_len=9")


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RTE, some rows, as published."""
    root = tmp_path_factory.mktemp("glue")
    (root / "RTE").mkdir()
    for split, count in (("train", 80), ("dev", 30), ("test", 10)):
        rows = river_rows(count, len(split))
        heading, lines = ["index", "sentence1", "sentence2"], []
        for number, row in enumerate(rows):
            cells = [str(number), row["text"], f"a {WORDS[number % 30]}", "entailment" if row["label"] == "water" else "not_entailment"]
            lines.append(cells[: 3 if split == "test" else 4])
        table = [heading if split == "test" else [*heading, "label"], *lines]
        (root / "RTE" / f"{split}.tsv").write_text("".join("\t".join(row) + "\n" for row in table))
    return root


@pytest.fixture(scope="module")
def rte(learn: Learn, glue: Path, tiny_post: Path, tmp_path_factory: pytest.TempPathFactory) -> Finetuned:
    return learn(Experiment("glue/rte", str(tiny_post), data_dir=str(glue)), tmp_path_factory.mktemp("rte") / "out", "epochs=3")


def best(done: Finetuned) -> dict[str, Any]:
    return done.cells[done.best]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_score_of_fine_tuning_to_the_last_bit_on_a_file(rough: Finetuned, rivers: Path) -> None:
    found = evaluate_task(rough.out, TaskSource(str(rivers / "validation.jsonl")), device="cpu")
    [(name, (examples, scored))] = found.splits.items()
    assert (name, len(examples), found.precision, found.source) == ("validation", 50, "fp32", str(rough.model))
    assert scored.scores == best(rough)["scores"]["validation"]
    assert 0.3 < scored.scores["accuracy"] < 1.0
    assert any("longer than a row and cut" in note and "in validation" in note for note in found.notes)
    again = evaluate_task(rough.model, TaskSource(str(rivers / "validation.jsonl")), device="cpu")
    assert again.splits["validation"][1].predictions == scored.predictions, "the model's own directory is as good"


def test_the_predictions_of_fine_tuning(rough: Finetuned, rivers: Path, tmp_path: Path) -> None:
    found = evaluate_task(rough.out, TaskSource(str(rivers / "validation.jsonl")), device="cpu")
    write_predictions(found, tmp_path / "p.jsonl")
    assert (tmp_path / "p.jsonl").read_bytes() == (rough.out / "predictions-validation.jsonl").read_bytes()


def test_a_known_task(rte: Finetuned, glue: Path, tmp_path: Path) -> None:
    found = evaluate_task(rte.out, TaskSource("glue/rte", glue), device="cpu")
    assert list(found.splits) == ["validation"], "a split without labels has no score"
    assert found.splits["validation"][1].scores == best(rte)["scores"]["validation"]
    both = evaluate_task(rte.out, TaskSource("GLUE/rte", glue, unlabelled=True), device="cpu")
    assert list(both.splits) == ["validation", "test"] and both.splits["test"][1].scores == {}
    write_predictions(both, tmp_path / "p.jsonl")
    written = lines(tmp_path / "p.jsonl")
    assert [line["split"] for line in written] == ["validation"] * 30 + ["test"] * 10
    test = [{key: value for key, value in line.items() if key != "split"} for line in written[30:]]
    assert test == lines(rte.out / "predictions-test.jsonl")


def test_a_file_of_a_known_task(rte: Finetuned, glue: Path) -> None:
    found = evaluate_task(rte.out, TaskSource(str(glue / "RTE" / "dev.tsv")), device="cpu")
    assert found.splits["dev"][1].scores == best(rte)["scores"]["validation"]


def test_windows_are_cut_as_in_fine_tuning(learn: Learn, tiny: Path, tmp_path: Path) -> None:
    """Another stride gives other windows, and other scores."""
    paragraphs = []
    for number, row in enumerate(river_rows(120, 4)):
        text = row["text"] + " " + row["text"].replace("river", "cloud") + " of the " + " ".join(WORDS[:9])
        answers = [{"text": "cloud", "answer_start": text.index("cloud")}] if "cloud" in text else []
        paragraphs.append(
            {"context": text, "qas": [{"id": str(number), "question": "a cloud", "answers": answers, "is_impossible": not answers}]}
        )
    (tmp_path / "clouds.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}], "version": "v2.0"}))
    (tmp_path / "some.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs[:40]}], "version": "v2.0"}))
    experiment = Experiment(str(tmp_path / "clouds.json"), str(tiny), files={"validation": str(tmp_path / "some.json")})
    done = learn(experiment, tmp_path / "out", "epochs=3", "max_seq_len=16", "stride=2")
    assert done.task.unanswerable
    record = json.loads((done.model / "config.json").read_text())["pld_task"]
    assert (record["max_seq_len"], record["stride"], record["unanswerable"]) == (16, 2, True)
    source = TaskSource(str(tmp_path / "some.json"))
    found = evaluate_task(done.out, source, device="cpu").splits["some"][1]
    assert found.scores == best(done)["scores"]["validation"]
    assert {"", "cloud"} & {one.label for one in found.predictions}
    whole = export(done.out, tmp_path / "exported")
    assert evaluate_task(whole.path, source, device="cpu").splits["some"][1].predictions == found.predictions, "an export reads as it does"


# Depth


def test_all_blocks_give_the_plain_score(rough: Finetuned, rivers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "_MIN_SECONDS", 0.0)
    source = TaskSource(str(rivers / "validation.jsonl"))
    found = evaluate_task_depths(rough.out, source, "1,2", "first", device="cpu")
    one, two = found.score.scores
    assert (one.gates, two.gates) == ((True, False), (True, True))
    assert two.values == best(rough)["scores"]["validation"]
    assert one.tokens_per_second > 0 and found.score.num_blocks == 2
    smaller = export(rough.out, rough.out.parent / "smaller", keep_blocks=1, blocks="first")
    assert one.values == evaluate_task(smaller.path, source, device="cpu").splits["validation"][1].scores


def test_a_depth_needs_labels_and_blocks(rough: Finetuned, rivers: Path) -> None:
    with pytest.raises(DataError, match=r"test\.jsonl: no labels to score against"):
        evaluate_task_depths(rough.out, TaskSource(str(rivers / "test.jsonl")), "1,2", "first", device="cpu")
    with pytest.raises(UsageError, match="3"):
        evaluate_task_depths(rough.out, TaskSource(str(rivers / "validation.jsonl")), "3", "first", device="cpu")


# What does not fit


def one_line(error: pytest.ExceptionInfo[PldError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_label_that_the_model_does_not_know(rough: Finetuned, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "more.jsonl", [*river_rows(3, 0), {"text": "the river", "label": "swamp"}])
    with pytest.raises(DataError, match=r"more\.jsonl:4: .*swamp") as caught:
        evaluate_task(rough.out, TaskSource(str(path)), device="cpu")
    assert "land" in one_line(caught) and "water" in one_line(caught)


def test_other_columns(rough: Finetuned, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "other.jsonl", [{"a": "x", "b": "y"}])
    with pytest.raises(DataError, match=r"other\.jsonl: .*'text'") as caught:
        evaluate_task(rough.out, TaskSource(str(path)), device="cpu")
    one_line(caught)


def test_a_model_without_a_head(tiny: Path, rivers: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no head for a task; fine-tune it first: pld finetune .*validation\.jsonl --model"):
        evaluate_task(tiny, TaskSource(str(rivers / "validation.jsonl")), device="cpu")
    with pytest.raises(CheckpointError, match=r"pld finetune glue/rte --model \S+ --data-dir glue$"):
        evaluate_task(tiny, TaskSource("glue/rte", Path("glue")), device="cpu")


def test_a_suggested_command_can_be_typed(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "a b.jsonl").write_text("{}")
    with pytest.raises(CheckpointError, match=r"pld finetune '.*/a b\.jsonl' --model"):
        evaluate_task(tiny, TaskSource(str(tmp_path / "a b.jsonl")), device="cpu")


def test_a_model_of_another_task(rough: Finetuned, rte: Finetuned, glue: Path) -> None:
    with pytest.raises(CheckpointError, match=r"was fine-tuned for train \(classification of land, water\), not for glue/rte"):
        evaluate_task(rough.out, TaskSource("glue/rte", glue), device="cpu")
    with pytest.raises(CheckpointError, match=r"was fine-tuned for glue/rte .* not for glue/stsb"):
        evaluate_task(rte.out, TaskSource("glue/stsb", glue), device="cpu")


def test_nothing_there(rough: Finetuned, glue: Path, tmp_path: Path) -> None:
    for target, source, kind, message in (
        (tmp_path / "nowhere", TaskSource("glue/rte", glue), CheckpointError, "no such run or model directory"),
        (rough.out, TaskSource("glue/rtt", glue), UsageError, "did you mean 'glue/rte'"),
        (rough.out, TaskSource("nowhere.jsonl"), DataError, r"nowhere\.jsonl"),
        (rough.out, TaskSource("some.jsonl", glue), UsageError, "--data-dir is for tasks that `pld tasks` lists"),
    ):
        with pytest.raises(kind, match=message) as caught:
            evaluate_task(target, source, device="cpu")
        one_line(caught)


@pytest.fixture
def spoilt(rough: Finetuned, tmp_path: Path) -> Callable[..., Path]:
    """Copy the model and change its config.json; None takes an entry away."""

    def call(**changes: Any) -> Path:
        shutil.copytree(rough.model, tmp_path / "model")
        path = tmp_path / "model" / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        return tmp_path / "model"

    return call


@pytest.mark.parametrize(
    "damage", [{"kind": "poetry"}, {"labels": 3}, {"metrics": None}, {"max_seq_len": "long"}, {"max_seq_len": 4711}, {"stride": -1}]
)
def test_a_damaged_record(spoilt: Callable[..., Path], rough: Finetuned, rivers: Path, damage: dict[str, Any]) -> None:
    record = json.loads((rough.model / "config.json").read_text())["pld_task"] | damage
    with pytest.raises(CheckpointError, match=r"pld_task in config\.json is damaged") as caught:
        evaluate_task(
            spoilt(pld_task={k: v for k, v in record.items() if v is not None}), TaskSource(str(rivers / "validation.jsonl")), device="cpu"
        )
    one_line(caught)


def test_a_model_that_was_fine_tuned_elsewhere(spoilt: Callable[..., Path], rough: Finetuned, rivers: Path) -> None:
    """Its label names are all that it says; texts are read to the end there."""
    model = spoilt(pld_task=None)
    found = evaluate_task(model, TaskSource(str(rivers / "validation.jsonl")), device="cpu")
    assert found.task.labels == ("land", "water") and found.task.metrics == ("accuracy", "macro_f1")
    assert found.splits["validation"][1].scores["accuracy"] > 0.3
    assert [note for note in found.notes if "the text is taken from 'text', labels from 'label'" in note]
    with pytest.raises(UsageError, match="does not say what its outputs mean; name a task of `pld tasks`"):
        shutil.rmtree(model)
        evaluate_task(spoilt(pld_task=None, id2label=None), TaskSource(str(rivers / "validation.jsonl")), device="cpu")


def test_a_model_that_was_fine_tuned_elsewhere_reads_long_texts(spoilt: Callable[..., Path], rough: Finetuned, tmp_path: Path) -> None:
    """As many tokens as it has positions."""
    is_rotary = load_pretrained(rough.model).settings.position_embedding == "rotary"
    positions = 512 if is_rotary else 48
    model = spoilt(pld_task=None, **({"max_position_embeddings": positions} if is_rotary else {}))
    path = write_rows(tmp_path / "long.jsonl", [{"text": " ".join(["the"] * 200), "label": "land"}])
    found = evaluate_task(model, TaskSource(str(path)), device="cpu")
    assert found.splits["long"][1].num_tokens == min(202, positions)
    assert any("longer than a row and cut" in note for note in found.notes) == (positions == 48)


def test_outputs_without_names_are_numbers(spoilt: Callable[..., Path], rough: Finetuned, tmp_path: Path) -> None:
    model = spoilt(pld_task=None, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    rows = [{"text": row["text"], "label": int(row["label"] == "water")} for row in river_rows(50, 2)]
    found = evaluate_task(model, TaskSource(str(write_rows(tmp_path / "a.jsonl", rows))), device="cpu")
    assert found.splits["a"][1].scores["accuracy"] > 0.3 and {one.label for one in found.splits["a"][1].predictions} <= {0, 1}
    assert "it does not say what its outputs mean: taken as the numbers that the file has for labels" in found.notes
    with pytest.raises(DataError, match=r"a\.jsonl:1: the label 2 is not one of the model's labels"):
        evaluate_task(model, TaskSource(str(write_rows(tmp_path / "a.jsonl", [{"text": "the", "label": 2}]))), device="cpu")


def test_several_labels_of_a_model_that_was_fine_tuned_elsewhere(spoilt: Callable[..., Path], tmp_path: Path) -> None:
    model = spoilt(pld_task=None, problem_type="multi_label_classification")
    rows = [{"text": "the river", "label": "land|water"}, {"text": "a road", "label": "land"}, {"text": "by", "label": ""}]
    found = evaluate_task(model, TaskSource(str(write_rows(tmp_path / "a.jsonl", rows))), device="cpu")
    assert found.task.kind == "multi-label" and set(found.splits["a"][1].scores) == {"micro_f1", "macro_f1", "subset_accuracy"}
    assert found.splits["a"][0].labels == [[0, 1], [0], []]


def test_a_tagger_that_was_fine_tuned_elsewhere_is_no_classifier(learn: Learn, either: Path, rivers: Path, tmp_path: Path) -> None:
    """Of a rotary model both heads have the same layers."""
    (tmp_path / "rivers.conll").write_text("the O\nriver B-WET\n\na O\nriver B-WET\n\n" * 20)
    done = learn(Experiment(str(tmp_path / "rivers.conll"), str(either)), tmp_path / "out", "epochs=1")
    config = json.loads((done.model / "config.json").read_text())
    (done.model / "config.json").write_text(json.dumps(config | {"pld_task": None}))
    with pytest.raises(UsageError, match="does not say what its outputs mean; name a task of `pld tasks`"):
        evaluate_task(done.model, TaskSource(str(rivers / "validation.jsonl")), device="cpu")


def test_a_file_without_a_text_that_is_called_so(spoilt: Callable[..., Path], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "other.jsonl", [{"a": "x", "b": "y", "label": "land"}])
    with pytest.raises(DataError, match=r"other\.jsonl: cannot tell which column holds the text; .*its columns are: a, b, label") as caught:
        evaluate_task(spoilt(pld_task=None), TaskSource(str(path)), device="cpu")
    one_line(caught)


def test_a_head_of_another_size(spoilt: Callable[..., Path], glue: Path) -> None:
    """One of two outputs for a task of three labels."""
    (glue / "MNLI").mkdir(exist_ok=True)
    (glue / "MNLI" / "dev_matched.tsv").write_text("index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n")
    with pytest.raises(
        CheckpointError, match="its head has 2 outputs, glue/mnli needs 3; evaluate it on the task that it was fine-tuned for"
    ):
        evaluate_task(spoilt(pld_task=None), TaskSource("glue/mnli", glue), device="cpu")


def elsewhere(rte: Finetuned, place: Path, *labels: str) -> Path:
    """Copy a model for RTE without what it says of its task; its outputs are called so, swapped where the names are."""
    shutil.copytree(rte.model, place)
    config = json.loads((place / "config.json").read_text())
    del config["pld_task"]
    config["id2label"] = {str(number): label for number, label in enumerate(labels)}
    (place / "config.json").write_text(json.dumps(config))
    if labels[0].lower().startswith("not"):
        weights = load_file(place / "model.safetensors")
        save_file(
            {key: value.flip(0) if key.startswith("classifier") else value for key, value in weights.items()}, place / "model.safetensors"
        )
    return place


def test_outputs_in_another_order_are_taken_by_their_names(rte: Finetuned, glue: Path, tmp_path: Path) -> None:
    expected = best(rte)["scores"]["validation"]
    for number, labels in enumerate((("ENTAILMENT", "NOT_ENTAILMENT"), ("Not entailment", "Entailment"), ("LABEL_0", "LABEL_1"))):
        found = evaluate_task(elsewhere(rte, tmp_path / str(number), *labels), TaskSource("glue/rte", glue), device="cpu")
        assert found.splits["validation"][1].scores == expected
        said = [note for note in found.notes if note == "it does not say what its outputs mean: taken as entailment, not_entailment"]
        assert len(said) == (number == 2)
    with pytest.raises(CheckpointError, match="its outputs are yes, no, those of glue/rte are entailment, not_entailment") as caught:
        evaluate_task(elsewhere(rte, tmp_path / "other", "yes", "no"), TaskSource("glue/rte", glue), device="cpu")
    one_line(caught)


def test_f1_is_that_of_the_tasks_positive_label_whatever_the_order_of_outputs(learn: Learn, tiny_post: Path, tmp_path: Path) -> None:
    """Fine-tuned on an own file, labels are in the order of the alphabet; some rows of the task are wrong, so that no F1 is 1."""
    (tmp_path / "glue" / "QQP").mkdir(parents=True)
    lines = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"]
    for number, row in enumerate(river_rows(80, 5)[::2] + river_rows(20, 6)[1::2]):
        lines.append(f"{number}\t0\t1\t{row['text']}\tthe road\t{int(row['label'] == 'water' and number % 3 > 0)}")
    labels = {"water": "duplicate", "land": "not_duplicate"}
    own = [{"text1": row["text"], "text2": "the road", "label": labels[row["label"]]} for row in river_rows(160, 1)]
    (tmp_path / "glue" / "QQP" / "dev.tsv").write_text("\n".join(lines) + "\n")
    done = learn(Experiment(str(write_rows(tmp_path / "own.jsonl", own)), str(tiny_post)), tmp_path / "out")
    assert done.task.labels == ("duplicate", "not_duplicate")
    source = TaskSource("glue/qqp", tmp_path / "glue")
    _, scored = evaluate_task(done.out, source, device="cpu").splits["validation"]
    predicted = [one.label for one in scored.predictions]
    right = [int(line[-1]) for line in lines[1:]]
    f1 = [2 * sum(a == b == one for a, b in zip(predicted, right, strict=True)) / (predicted + right).count(one) for one in (0, 1)]
    assert scored.scores["f1"] == pytest.approx(f1[1]) and f1[0] > f1[1] > 0


def test_labels_that_are_numbers_are_those_of_the_task_whatever_the_order_of_outputs(rte: Finetuned, glue: Path, tmp_path: Path) -> None:
    folder = tmp_path / "glue" / "RTE"
    folder.mkdir(parents=True)
    heading, *rows = (glue / "RTE" / "dev.tsv").read_text().splitlines()
    numbers = {"entailment": "0", "not_entailment": "1"}
    cells = [row.split("\t") for row in rows]
    (folder / "dev.tsv").write_text("\n".join([heading, *("\t".join([*row[:3], numbers[row[3]]]) for row in cells)]) + "\n")
    model = elsewhere(rte, tmp_path / "model", "not_entailment", "entailment")
    found = evaluate_task(model, TaskSource("glue/rte", tmp_path / "glue"), device="cpu")
    assert found.splits["validation"][1].scores == best(rte)["scores"]["validation"]


def test_the_inner_layers_of_a_rotary_models_head_begin_the_next_one(rough: Finetuned) -> None:
    """In a directory of transformers they are the same layers, whatever the head."""
    loaded = load_pretrained(rough.model)
    head = loaded.with_head(head_of(rough.task), seed=99).task_head
    assert head is not None
    is_kept = torch.equal(head.dense.weight, loaded.weights["task_head.dense.weight"])
    assert is_kept == (loaded.settings.position_embedding == "rotary")

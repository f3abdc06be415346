from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pldcli.engine import objectives
from pldcli.engine.trainer import Trainer
from pldcli.errors import (
    CheckpointError,
    DataError,
    DeviceError,
    DivergedError,
    UsageError,
)
from pldcli.evaluation.prediction import score_split
from pldcli.finetuning import cell as cell_module
from pldcli.finetuning import experiment as experiment_module
from pldcli.finetuning import finetune as finetune_module
from pldcli.finetuning.config import cells
from pldcli.finetuning.experiment import data_fingerprint
from pldcli.finetuning.inputs import RunInputs
from pldcli.huggingface.load import load_pretrained
from pldcli.tasks.kinds import head_of
from pldcli.tasks.task import TaskData
from tests.conftest import meeting
from tests.finetuning.conftest import FAST, river_rows, save_tiny, write_rows

ROUGH = ("epochs=2",)
"""So few steps that the score is neither 0.5 nor 1: what reproduces it cannot do so by luck."""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "results.csv").read_text(encoding="utf-8"))))


def outcomes(done: Any) -> dict[str, Any]:
    """What must not depend on when and in how many processes it was computed."""
    volatile = ("train_seconds", "tokens_per_second", "wall_seconds", "threads", "history")
    cells = {name: {key: value for key, value in cell.items() if key not in volatile} for name, cell in done.cells.items()}
    for name, cell in done.cells.items():
        cells[name]["history"] = [{key: value for key, value in row.items() if "seconds" not in key} for row in cell["history"]]
    return cells


def weights(done: Any) -> bytes:
    return (done.model / "model.safetensors").read_bytes()


# Learning, and what is left behind


def test_a_task_is_learned(learned, rivers):
    [(name, cell)] = learned.cells.items()
    assert learned.best == name == "learning_rate=0.003,batch_size=16,epochs=6.0,dropout=0.0,precision=fp32,seed=0"
    assert cell["score"] > 0.95 and cell["steps"] == cell["total_steps"] == 60
    assert cell["scores"]["validation"].keys() == {"accuracy", "macro_f1"}
    assert [row["step"] for row in cell["history"]] == [10, 20, 30, 40, 50, 60]
    assert cell["history"][0]["eval/score"] < cell["score"], "it had to be learned"
    assert cell["history"][-1]["train/loss"] < 0.1 < cell["history"][0]["train/loss"]
    assert cell["examples"] == {"train": 160, "validation": 50, "test": 20}
    assert cell["train_tokens"] > 0 and cell["tokens_per_second"] == pytest.approx(cell["train_tokens"] / cell["train_seconds"])
    assert (learned.done_before, learned.notes) == (0, [])
    assert learned.read_back.difference < 1e-5


def test_train_tokens_are_those_of_the_texts(learned, words_tokenizer, rivers):
    texts = [row["text"] for row in lines(rivers / "train.jsonl")]
    assert next(iter(learned.cells.values()))["train_tokens"] == 6 * sum(len(text.split()) + 2 for text in texts)


def test_the_directory(learned):
    assert {entry.name for entry in learned.out.iterdir()} == {
        ".lock", "best.json", "cells", "experiment.json", "model", "predictions-test.jsonl", "predictions-validation.jsonl", "results.csv",
        "results.json", "results.md", "spread.png",
    }  # fmt: skip
    [cell] = (learned.out / "cells").iterdir()
    assert {entry.name for entry in cell.iterdir()} == {"result.json", "predictions-validation.jsonl"}, "its model moved up"
    assert json.loads((cell / "result.json").read_text()) == learned.cells[cell.name]
    assert [row["seed"] for row in table(learned.out)] == ["0"]


def test_the_tests_are_predicted_by_the_best_model(learned, rivers):
    found = lines(learned.out / "predictions-test.jsonl")
    assert [row["label"] for row in found] == [row["label"] for row in river_rows(20, 3)]
    assert [row["index"] for row in found] == list(range(20))


@pytest.mark.parametrize(("kind", "family"), [("tiny", "RobertaPreLayerNorm"), ("tiny_post", "Bert"), ("tiny_rotary", "ModernBert")])
def test_the_model_loads_without_us(kind, family, request, learn, river_experiment, rivers, tmp_path):
    """With label names, and the same probabilities from text through transformers' own tokenizer and pipeline."""
    import transformers

    done = learn(river_experiment(model=str(request.getfixturevalue(kind))), tmp_path / "out", "epochs=4")
    assert done.cells[done.best]["score"] > 0.9
    model = transformers.AutoModelForSequenceClassification.from_pretrained(done.model)
    assert type(model).__name__ == f"{family}ForSequenceClassification"
    assert model.config.id2label == {0: "land", 1: "water"}
    classify = transformers.pipeline("text-classification", model=str(done.model), device="cpu", top_k=None)
    texts = [row["text"] for row in lines(rivers / "validation.jsonl")]
    for text, ours in zip(texts, lines(done.out / "predictions-validation.jsonl"), strict=True):
        theirs = {entry["label"]: entry["score"] for entry in classify([text])[0]}
        assert theirs == pytest.approx(ours["scores"], abs=1e-5)
        assert max(theirs, key=theirs.get) == ours["label"]


def test_other_programs_find_the_same_score_in_the_predictions(learn, river_experiment, rivers, tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    done = learn(river_experiment(), tmp_path / "out", "epochs=2,3,4")
    assert any(0.5 < cell["score"] < 0.999 for cell in done.cells.values()), "a score that is not that of a constant or of the truth"
    truth = [row["label"] for row in lines(rivers / "validation.jsonl")]
    places = {name: done.out / "cells" / name for name in done.cells}
    for name, place in [*places.items(), (done.best, done.out)]:
        cell, predicted = done.cells[name], lines(place / "predictions-validation.jsonl")
        assert [row["index"] for row in predicted] == list(range(50))
        labels = [row["label"] for row in predicted]
        assert metrics.accuracy_score(truth, labels) == pytest.approx(cell["scores"]["validation"]["accuracy"], abs=1e-12)
        assert metrics.f1_score(truth, labels, average="macro") == pytest.approx(cell["scores"]["validation"]["macro_f1"], abs=1e-12)
        assert cell["score"] == pytest.approx(sum(cell["scores"]["validation"].values()) / 2)
        for row in predicted:
            assert sum(row["scores"].values()) == pytest.approx(1)
            assert max(row["scores"], key=row["scores"].get) == row["label"]


def test_a_number_is_learned(learn, either, tmp_path):
    rows = [{"text": row["text"], "score": row["text"].split().count("river") * 2.0 + 1.5} for row in river_rows(160, 1)]
    train = write_rows(tmp_path / "amounts.jsonl", rows)
    from pldcli.finetuning.experiment import Experiment

    done = learn(Experiment(str(train), str(either), kind="regression"), tmp_path / "out")
    assert done.task.metrics == ("pearson", "spearman")
    assert done.cells[done.best]["scores"]["validation"]["pearson"] > 0.9
    config = json.loads((done.model / "config.json").read_text())
    assert config["problem_type"] == "regression" and config["id2label"] == {"0": "score"}


def test_several_labels_are_learned_and_load_without_us(learn, either, tmp_path):
    import transformers

    from pldcli.evaluation.task import TaskSource, evaluate_task
    from pldcli.finetuning.experiment import Experiment

    topics = ("river", "engine", "the")
    rows = [{"text": row["text"], "labels": [one for one in topics if one in row["text"].split()]} for row in river_rows(400, 1)]
    train, test = write_rows(tmp_path / "topics.jsonl", rows[:300]), write_rows(tmp_path / "test.jsonl", rows[300:])
    done = learn(Experiment(str(train), str(either), files={"test": str(test)}), tmp_path / "out", "epochs=12")
    assert (done.task.kind, done.task.labels) == ("multi-label", ("engine", "river", "the"))
    scores = done.cells[done.best]["scores"]["validation"]
    assert scores["micro_f1"] > 0.8 and set(scores) == {"micro_f1", "macro_f1", "subset_accuracy"}
    assert done.cells[done.best]["score"] == pytest.approx((scores["micro_f1"] + scores["macro_f1"]) / 2)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(done.model)
    assert model.config.problem_type == "multi_label_classification" and model.config.id2label == {0: "engine", 1: "river", 2: "the"}
    classify = transformers.pipeline("text-classification", model=str(done.model), device="cpu", top_k=None)
    for row, ours in zip(rows[300:320], lines(done.out / "predictions-test.jsonl"), strict=False):
        theirs = {entry["label"]: entry["score"] for entry in classify([row["text"]])[0]}
        assert theirs == pytest.approx(ours["scores"], abs=1e-5)
        assert ours["label"] == [label for label in ("engine", "river", "the") if theirs[label] > 0.5]
    [(_, (_, scored))] = evaluate_task(done.model, TaskSource(str(test), None)).splits.items()
    assert scored.scores["micro_f1"] > 0.8


def test_tags_are_learned_and_load_without_us(learn, either, tmp_path):
    import transformers

    from pldcli.finetuning.experiment import Experiment

    text = "".join(
        "".join(f"{word} {'B-WET' if word == 'river' else 'O'}\n" for word in row["text"].split()) + "\n" for row in river_rows(160, 1)
    )
    (tmp_path / "rivers.conll").write_text(text)
    done = learn(Experiment(str(tmp_path / "rivers.conll"), str(either)), tmp_path / "out", "epochs=3")
    assert done.cells[done.best]["score"] > 0.9
    model = transformers.AutoModelForTokenClassification.from_pretrained(done.model)
    assert model.config.id2label == dict(enumerate(done.task.labels)) and set(done.task.labels) == {"O", "B-WET"}
    tokens = transformers.AutoTokenizer.from_pretrained(done.model)("the old river moved", return_tensors="pt")
    with torch.no_grad():
        best = model(**{name: tokens[name] for name in ("input_ids", "attention_mask")}).logits[0].argmax(-1).tolist()
    assert [model.config.id2label[label] for label in best][1:-1] == ["O", "O", "B-WET", "O"]


def test_answers_are_learned_and_load_without_us(learn, either, tmp_path):
    import transformers

    from pldcli.finetuning.experiment import Experiment

    paragraphs = []
    for number, row in enumerate(river_rows(240, 4)):
        if row["label"] == "water":
            answer = {"text": "river", "answer_start": row["text"].index("river")}
            paragraphs.append({"context": row["text"], "qas": [{"id": str(number), "question": "a river", "answers": [answer]}]})
    (tmp_path / "rivers.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}], "version": "1.1"}))
    done = learn(Experiment(str(tmp_path / "rivers.json"), str(either)), tmp_path / "out", "epochs=10", "max_seq_len=32", "stride=8")
    assert done.task.kind == "spans" and done.cells[done.best]["scores"]["validation"]["exact_match"] > 0.7
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(done.model)
    assert model.num_parameters() > 0 and done.read_back.difference < 1e-5


# The same again


def test_the_same_seed_gives_the_same_and_another_seed_another(learn, river_experiment, tmp_path):
    changes = ("epochs=2", "dropout=0.1")
    first, again, other = (learn(river_experiment(), tmp_path / name, *changes, f"seed={s}") for name, s in (("a", 3), ("b", 3), ("c", 4)))
    assert weights(first) == weights(again)
    assert outcomes(first) == outcomes(again)
    assert (first.out / "predictions-validation.jsonl").read_bytes() == (again.out / "predictions-validation.jsonl").read_bytes()
    assert weights(first) != weights(other)


@pytest.mark.usefixtures("forked")
def test_processes_side_by_side_give_the_same_as_one(learn, river_experiment, tmp_path, capfd):
    changes = ("epochs=1,2", "dropout=0.1")
    one = learn(river_experiment(), tmp_path / "one", *changes, seeds=2)
    two = learn(river_experiment(), tmp_path / "two", *changes, seeds=2, jobs=2)
    assert len(one.cells) == 4 and outcomes(one) == outcomes(two)
    assert one.best == two.best and weights(one) == weights(two)
    assert "Traceback" not in capfd.readouterr().err


def test_of_equal_cells_the_same_one_is_the_best_whatever_ends_first(learn, river_experiment, tmp_path, monkeypatch):
    """Else the model of the one is dropped for that of the other, trained anew, and dropped again, without end."""
    run, calls = finetune_module._run, []

    def from_the_last(*arguments):
        calls.append(None)
        assert len(calls) == 1, "the best cell is trained again"
        return reversed(list(run(*arguments)))

    monkeypatch.setattr(finetune_module, "_run", from_the_last)
    done = learn(river_experiment(), tmp_path / "out", "epochs=1", "learning_rate=1e-9,2e-9")
    scores = [cell["score"] for cell in done.cells.values()]
    assert scores[0] == scores[1] and done.best == next(iter(done.cells))


def test_small_forward_passes_change_nothing(learn, river_experiment, tmp_path):
    whole, parts = (learn(river_experiment(), tmp_path / size, *ROUGH, f"micro_batch_size={size}") for size in ("auto", "5"))
    for name, tensor in load_file(whole.model / "model.safetensors").items():
        torch.testing.assert_close(load_file(parts.model / "model.safetensors")[name], tensor, rtol=0, atol=2e-3)
    assert parts.cells[parts.best]["history"][0]["train/loss"] == pytest.approx(
        whole.cells[whole.best]["history"][0]["train/loss"], rel=1e-3
    )
    assert list(whole.cells) == list(parts.cells), "the size of a forward pass is no setting of a result"


def test_two_processes_give_the_same_scores(processes, river_experiment, learn, rivers, tiny, tmp_path):
    alone = learn(river_experiment(), tmp_path / "one", *ROUGH, "batch_size=24")
    line = ["finetune", rivers / "train.jsonl", "--validation", rivers / "validation.jsonl", "--model", tiny, "--out", tmp_path / "two"]
    line += [*FAST, *ROUGH, "batch_size=24", "--device", "cpu", "--json"]
    process = processes.pld(*line, "--gpus", 2)
    assert process.wait() == 0, process.err
    assert list(json.loads(process.out)["tasks"]) == ["train"] and process.err.count("seed=0: ") == 1, "one process speaks"
    [cell] = json.loads((tmp_path / "two" / "results.json").read_text())["cells"].values()
    assert cell["processes"] == 2
    ours = alone.cells[alone.best]
    assert cell["score"] == ours["score"] and cell["train_tokens"] == ours["train_tokens"]
    pairs = zip(*(lines(place / "predictions-validation.jsonl") for place in (alone.out, tmp_path / "two")), strict=True)
    assert all(one["scores"] == pytest.approx(two["scores"], abs=1e-4) for one, two in pairs)


def test_processes_that_were_told_different_things_are_refused(processes, rivers, tiny, tmp_path):
    line = ["finetune", rivers / "train.jsonl", "--model", tiny, "--out", tmp_path / "two", *FAST, *ROUGH, "--device", "cpu"]
    both = [processes.pld(*line, f"max_grad_norm={rank + 1}", environment=one) for rank, one in enumerate(meeting(2))]
    assert [process.wait() for process in both] == [2, 2], both[0].err + both[1].err
    for process in both:
        assert "error: process 1: max_grad_norm is 2.0, on process 0 1.0; start all processes with one command" in process.err


# Settings


def test_patience(learn, river_experiment, tmp_path, monkeypatch):
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.9, 0.9])
    monkeypatch.setattr(cell_module, "mean_score", lambda *_: next(scores))
    done = learn(river_experiment(), tmp_path / "out", "patience=2")
    cell = done.cells[done.best]
    assert (cell["steps"], cell["best_step"], cell["score"]) == (40, 20, 0.7), "an equal score is no better one"
    assert cell["total_steps"] == 60


def test_keep(learn, river_experiment, tmp_path, monkeypatch):
    def scored(keep: str) -> Any:
        scores = iter([0.5, 0.9, 0.6])
        with monkeypatch.context() as patch:
            patch.setattr(cell_module, "mean_score", lambda *_: next(scores))
            return learn(river_experiment(), tmp_path / keep, "epochs=3", f"keep={keep}", "schedule=constant", "warmup_fraction=0")

    best, last = scored("best"), scored("last")
    assert (best.cells[best.best]["best_step"], last.cells[last.best]["best_step"]) == (20, 30)
    assert (best.cells[best.best]["score"], last.cells[last.best]["score"]) == (0.9, 0.6)
    shorter = learn(river_experiment(), tmp_path / "two", "epochs=2", "keep=last", "schedule=constant", "warmup_fraction=0")
    assert weights(best) == weights(shorter) != weights(last), "the weights are those of the evaluation that counts"


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        (("epochs=2", "evaluations_per_epoch=2"), [5, 10, 15, 20]),
        (("epochs=1.5",), [10, 15]),
        (("epochs=0.1",), [1]),
        (("epochs=1", "evaluations_per_epoch=50"), list(range(1, 11))),
        (("epochs=1", "batch_size=1000"), [1]),
    ],
)
def test_when_it_is_evaluated(learn, river_experiment, tmp_path, changes, steps):
    done = learn(river_experiment(), tmp_path / "out", *changes)
    assert [row["step"] for row in done.cells[done.best]["history"]] == steps


def test_from_scratch(learn, river_experiment, words_tokenizer, tmp_path):
    """Weights come from the seed alone, whatever the model's were."""
    one = learn(river_experiment(from_scratch=True), tmp_path / "one", "epochs=0.1", "seed=5")
    assert one.start == "random weights shaped like tiny"
    shaken = save_tiny(tmp_path / "shaken", words_tokenizer, initializer_range=0.1)
    content = load_file(shaken / "model.safetensors")
    from safetensors.torch import save_file

    save_file({name: tensor + 1 for name, tensor in content.items()}, shaken / "model.safetensors")
    other = learn(river_experiment(from_scratch=True, model=str(shaken)), tmp_path / "other", "epochs=0.1", "seed=5")
    assert weights(one) == weights(other)
    plain = learn(river_experiment(), tmp_path / "plain", "epochs=0.1", "seed=5")
    assert weights(plain) != weights(one)


def test_the_score_is_that_of_the_saved_model(learn, river_experiment, tmp_path):
    from pldcli.engine.precision import Precision
    from pldcli.engine.runtime import Runtime
    from pldcli.huggingface.load import load_pretrained
    from pldcli.model import TaskHead
    from pldcli.tasks.kinds import KINDS

    experiment = river_experiment()
    done = learn(experiment, tmp_path / "out", *ROUGH)
    data, loaded = experiment.load_data(), load_pretrained(done.model)
    model = loaded.with_head(TaskHead("sequence", 2), trained=True)
    kind = KINDS["classification"]
    features = kind.encode(data.validation["validation"], data.task, loaded.tokenizer, max_seq_len=48, stride=8)
    runtime = Runtime(torch.device("cpu"))
    found = score_split(model, data.validation["validation"], features, data.task, Precision("fp32", runtime.device), runtime, pad_id=0)
    assert found.scores == done.cells[done.best]["scores"]["validation"]


# What goes wrong


def test_a_diverging_cell_does_not_count(learn, river_experiment, tmp_path):
    done = learn(river_experiment(), tmp_path / "out", "epochs=1", "max_grad_norm=0", "learning_rate=3e-3,1e37")
    good, bad = done.cells.values()
    assert good["score"] is not None and (bad["score"], bad["scores"]) == (None, {})
    assert "diverged" in bad["error"]
    assert done.best == next(iter(done.cells))
    [note] = done.notes
    assert note.startswith("diverged: learning_rate=1e+37")
    rows = table(done.out)
    assert (rows[1]["score"], rows[1]["accuracy"]) == ("", "") and "diverged" in rows[1]["error"]
    assert "| 1e+37 | 0 of 1 | diverged |" in (done.out / "results.md").read_text()
    assert learn(river_experiment(), tmp_path / "out", "epochs=1", "max_grad_norm=0", "learning_rate=3e-3,1e37").done_before == 2


def test_steps_that_are_left_out_are_told(learn, river_experiment, tmp_path, monkeypatch):
    """The tenth, at the end of the first epoch, whose loss is logged."""
    calls, loss_sums = [], objectives.TaskLoss.loss_sums

    def spoilt(*arguments):
        calls.append(1)
        return loss_sums(*arguments) * (float("nan") if len(calls) == 10 else 1)

    monkeypatch.setattr(objectives.TaskLoss, "loss_sums", spoilt)
    done = learn(river_experiment(), tmp_path / "out", "epochs=2")
    [(name, cell)] = done.cells.items()
    assert cell["skipped_steps"] == 1 and cell["history"][0]["train/loss"] is None and cell["history"][1]["train/loss"] > 0
    assert f"steps left out, since the loss or its gradient was not finite: 1 in {name}" in done.notes
    json.loads((done.out / "cells" / name / "result.json").read_text(), parse_constant=pytest.fail)


def test_windows_share_what_was_asked_for_or_it_is_refused(river_experiment, tmp_path):
    (tmp_path / "rivers.conll").write_text("the O\nriver B-WET\n\na O\nriver B-WET\n\n" * 20)
    inputs = RunInputs(river_experiment(task=str(tmp_path / "rivers.conll"), files={}))
    for words in (["max_seq_len=30", "stride=10"], ["max_seq_len=30"]):
        inputs.rows(cells(words)[0])
    with pytest.raises(UsageError, match="stride: windows of 30 tokens cannot share 11; 10 is the most, a third of max_seq_len"):
        inputs.rows(cells(["max_seq_len=30", "stride=11"])[0])


def test_the_fingerprint_of_data_is_that_of_their_text(river_experiment, monkeypatch):
    """In parts of any size; earlier results are known by it."""
    data = river_experiment().load_data()
    whole = hashlib.sha256(repr((str(data.task.kind), data.task.labels)).encode())
    for examples in data.splits:
        whole.update(repr((examples.split, examples.inputs, examples.labels)).encode())
    for size in (1, 7, 1_000):
        monkeypatch.setattr(experiment_module, "_PRINTED_AT_ONCE", size)
        assert data_fingerprint(data) == whole.hexdigest()
    pairs = TaskData(data.task, replace(data.train, inputs=(["a"], ["b'"]), labels=[], indices=[]), {}, {})
    expected = hashlib.sha256(repr((str(data.task.kind), data.task.labels)).encode() + b"""('train', (['a'], ["b'"]), [])""")
    assert data_fingerprint(pairs) == expected.hexdigest()


def test_all_cells_diverge(learn, river_experiment, tmp_path, pld, rivers, tiny):
    with pytest.raises(DivergedError, match=r"all 2 run\(s\): training diverged; lower learning_rate or raise warmup_fraction"):
        learn(river_experiment(), tmp_path / "out", "epochs=1", "max_grad_norm=0", "learning_rate=1e37", seeds=2)
    assert not (tmp_path / "out" / "model").exists()
    line = [
        "finetune",
        rivers / "train.jsonl",
        "--model",
        tiny,
        "--out",
        tmp_path / "cli",
        "learning_rate=1e37",
        "max_grad_norm=0",
        "epochs=1",
    ]
    outcome = pld(*line, "--device", "cpu")
    assert outcome.code == 6 and "error: all 1 run(s): training diverged" in outcome.err and "Traceback" not in outcome.err


def test_out_of_memory_names_what_to_try(learn, river_experiment, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    forward = Trainer.forward_backward
    monkeypatch.setattr(Trainer, "forward_backward", full)
    with pytest.raises(DeviceError, match="cpu: out of memory with 16 sequences per forward pass; try micro_batch_size=8"):
        learn(river_experiment(), tmp_path / "out", "epochs=1")
    with pytest.raises(DeviceError, match="with 1 sequences per forward pass; lower max_seq_len, or choose a smaller model"):
        learn(river_experiment(), tmp_path / "out", "epochs=1", "micro_batch_size=1")
    monkeypatch.setattr(Trainer, "forward_backward", forward)
    assert learn(river_experiment(), tmp_path / "out", "epochs=1", "micro_batch_size=8").done_before == 0, "the advice can be followed"


def test_an_error_in_one_of_several_processes_is_that_error(learn, river_experiment, tmp_path, monkeypatch):
    """The model vanishes after this process has read it."""
    experiment = river_experiment()

    def vanished(self: Any) -> str:
        from dataclasses import replace

        return type(self).to_json.original(replace(self, model="nowhere"))  # type: ignore[attr-defined]

    from pldcli.finetuning.experiment import Experiment

    vanished.original = Experiment.to_json  # type: ignore[attr-defined]
    monkeypatch.setattr(Experiment, "to_json", vanished)
    with pytest.raises(CheckpointError, match="nowhere: no such run or model directory"):
        learn(experiment, tmp_path / "out", "epochs=1", seeds=2, jobs=2)


@pytest.mark.parametrize(
    ("changes", "overrides", "kind", "message"),
    [
        ({}, ["max_seq_len=49"], UsageError, r"max_seq_len: 49 tokens do not fit the model's 48 positions; use max_seq_len=48"),
        ({"files": {}}, [], None, ""),
        ({"task": "nowhere.jsonl"}, [], DataError, r"nowhere\.jsonl: no such file"),
        ({"task": "glue/colla"}, [], UsageError, r"did you mean 'glue/cola'"),
        ({"model": "nowhere"}, [], CheckpointError, r"nowhere: no such run or model directory"),
        ({"data_dir": "x"}, [], UsageError, r"--data-dir and --train are for tasks that `pld tasks` lists"),
        ({"task": "glue/rte", "label_column": "x"}, [], UsageError, r"are for your own files"),
        ({"task": "glue/rte", "skip_bad": True, "files": {}}, [], UsageError, r"--skip-bad are for your own files"),
    ],
)
def test_one_line_for_what_does_not_fit(learn, river_experiment, tmp_path, changes, overrides, kind, message):
    if kind is None:
        done = learn(river_experiment(**changes), tmp_path / "out", "epochs=0.1")
        assert done.cells[done.best]["examples"] == {"train": 144, "validation": 16}, "a tenth is held out"
        return
    with pytest.raises(kind, match=message) as caught:
        learn(river_experiment(**changes), tmp_path / "out", "epochs=0.1", *overrides)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_leaves_nothing_behind(learn, river_experiment, tmp_path):
    with pytest.raises(UsageError, match="max_seq_len"):
        learn(river_experiment(), tmp_path / "out", "max_seq_len=49")
    assert not list(tmp_path.glob("out/cells/*"))
    assert learn(river_experiment(), tmp_path / "out", "max_seq_len=48", "epochs=0.1").done_before == 0, "and is not in the way"


def test_long_texts_are_cut_and_it_is_said(learn, river_experiment, rivers, tmp_path):
    done = learn(river_experiment(), tmp_path / "out", "max_seq_len=8", "epochs=0.1")
    counts = {split: sum(len(row["text"].split()) > 6 for row in lines(rivers / f"{split}.jsonl")) for split in ("train", "validation")}
    assert done.cells[done.best]["truncated"] == counts and min(counts.values()) > 0
    expected = f"longer than a row and cut: {counts['train']} of 160 in train, {counts['validation']} of 50 in validation"
    assert done.notes == [f"{expected}; max_seq_len is the row's length"]


def test_test_splits_are_tokenised_only_to_be_predicted(river_experiment, rivers, tmp_path, monkeypatch):
    """A worker never predicts them, and that of QQP has 390,965 rows."""
    from pldcli.engine.runtime import launch
    from pldcli.system.signals import StopRequest
    from pldcli.tasks.sequence import Classification

    encode, seen = Classification.encode, []

    def watched(self, examples, *arguments, **named):
        seen.append(examples.split)
        return encode(self, examples, *arguments, **named)

    monkeypatch.setattr(Classification, "encode", watched)
    files = {name: str(rivers / f"{name}.jsonl") for name in ("validation", "test")}
    [settings] = cells([*FAST, "epochs=0.2"])
    with launch("cpu") as runtime:
        inputs = RunInputs(river_experiment(files=files))
        result = cell_module.run_cell(inputs, settings, tmp_path / "cell", runtime, report=lambda *_: None, stop=StopRequest())
        assert sorted(seen) == ["train", "validation"] and result["examples"]["test"] == 20
        model = load_pretrained(tmp_path / "cell" / "model").with_head(head_of(inputs.data.task), trained=True)
        assert len(cell_module.predict_tests(inputs, settings, model, runtime)["test"]) == 20
        assert sorted(seen) == ["test", "train", "validation"]


# Text that the tokenizer does not know


def test_unknown_tokens_are_said(learn, river_experiment, tmp_path):
    rows = [row | {"text": f"{row['text']} ☃"} if i % 4 == 0 else row for i, row in enumerate(river_rows(40, 1))]
    train, validation = write_rows(tmp_path / "train.jsonl", rows), write_rows(tmp_path / "validation.jsonl", river_rows(12, 2))
    done = learn(river_experiment(task=str(train), files={"validation": str(validation)}), tmp_path / "out", "epochs=0.1")
    share = 10 / sum(len(row["text"].split()) for row in rows)
    cell = json.loads((done.out / "results.json").read_text())["cells"][done.best]
    assert cell["unknown"] == {"train": pytest.approx(share), "validation": 0.0}
    assert done.notes == [
        f"unknown to the model's tokenizer: {100 * share:.1f} % of the tokens in train; the model sees the same [UNK] for all of them"
    ]
    from pldcli.evaluation.task import TaskSource, evaluate_task

    assert (
        done.notes[0].replace("in train", "in snow")
        in evaluate_task(done.model, TaskSource(str(train.rename(tmp_path / "snow.jsonl")))).notes
    )


@pytest.mark.parametrize("kind", ["classification", "tags", "spans"])
def test_text_of_which_nothing_is_known_is_refused(learn, river_experiment, tmp_path, kind):
    words = {"text": "☃☃☃ ☂ ☄", "label": "land"}
    if kind == "tags":
        rows = [{"tokens": ["☃", "☂"], "ner_tags": ["O", "B-X"]}] * 20
    elif kind == "spans":
        answers = {"text": ["☂"], "answer_start": [2]}
        rows = [{"question": "☂", "context": "☃ ☂" + " ☃" * number, "answers": answers} for number in range(20)]
    else:
        rows = [words, words | {"label": "water"}] * 10
    train = write_rows(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match=r"train\.jsonl: the model's tokenizer knows nothing of this text: all of \d+ tokens are unknown"):
        learn(river_experiment(task=str(train), kind=kind, files={}), tmp_path / "out", "epochs=0.1")


def test_special_tokens_in_text_are_said(learn, river_experiment, rivers, tmp_path, monkeypatch):
    train = write_rows(tmp_path / "train.jsonl", [row | {"text": f"{row['text']} [SEP] the road"} for row in river_rows(40, 1)])
    notes = RunInputs(river_experiment(task=str(train))).notes
    assert f"{train}: column 'text': 40 of 40 rows hold [SEP], read as the special token, as transformers does" in notes
    assert sum("[SEP]" in note for note in notes) == 1


def test_a_model_is_kept_whatever_transformers_makes_of_it(learn, river_experiment, rivers, tmp_path, monkeypatch):
    from pldcli.huggingface import read_back
    from pldcli.huggingface.read_back import ReadBack

    def broken(*_):
        raise ImportError("no backend")

    monkeypatch.setattr(read_back, "largest_difference", broken)
    files = {name: str(rivers / f"{name}.jsonl") for name in ("validation", "test")}
    done = learn(river_experiment(files=files), tmp_path / "out", "epochs=0.1")
    assert done.read_back == ReadBack(None, "transformers cannot read it back: ImportError: no backend")
    assert (done.model / "README.md").is_file() and (done.out / "predictions-test.jsonl").is_file()

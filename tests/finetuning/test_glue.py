from __future__ import annotations

import io
import json
import math
import random
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pldcli.errors import DataError, DeviceError, DivergedError, UsageError
from pldcli.finetuning import cell as cell_module
from pldcli.finetuning.config import cells
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.finetune import Finetuned
from pldcli.finetuning.glue import GlueResult, finetune_glue
from pldcli.finetuning.results import group_cells
from pldcli.finetuning.submission import submit
from pldcli.huggingface.read_back import ReadBack
from pldcli.tasks.registry import find_task
from tests.finetuning.conftest import WORDS

ORDER = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
FEW = cells(["epochs=2", "learning_rate=2e-3", "batch_size=16", "precision=fp32", "dropout=0"])

Q, P = ("not_entailment", "entailment"), ("contradiction", "entailment")
LAYOUTS: dict[str, tuple[str, str, tuple[str, str]]] = {
    "CoLA": ("", "gj04\t{label}\t\t{one}", ("0", "1")),
    "SST-2": ("sentence\tlabel", "{one}\t{label}", ("0", "1")),
    "MRPC": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{label}\t1\t2\t{one}\t{two}", ("0", "1")),
    "STS-B": ("index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
              "{index}\tmain\tf\t2012\t{index}\tnone\tnone\t{one}\t{two}\t{label}", ("0.500", "4.250")),
    "QQP": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "{index}\t1\t2\t{one}\t{two}\t{label}", ("0", "1")),
    "MNLI": ("index\tpromptID\tsentence1\tsentence2\tgold_label", "{index}\t3\t{one}\t{two}\t{label}", P),
    "QNLI": ("index\tquestion\tsentence\tlabel", "{index}\t{one}\t{two}\t{label}", Q),
    "RTE": ("index\tsentence1\tsentence2\tlabel", "{index}\t{one}\t{two}\t{label}", Q),
    "WNLI": ("index\tsentence1\tsentence2\tlabel", "{index}\t{one}\t{two}\t{label}", ("0", "1")),
}  # fmt: skip
TEST_LAYOUTS = {
    "CoLA": ("index\tsentence", "{index}\t{one}"),
    "SST-2": ("index\tsentence", "{index}\t{one}"),
    "MRPC": ("index\t#1 ID\t#2 ID\t#1 String\t#2 String", "{index}\t1\t2\t{one}\t{two}"),
    "QQP": ("id\tquestion1\tquestion2", "{index}\t{one}\t{two}"),
}
"""Where it is more than the layout of training without its label."""


def table(folder: str, rows: int, seed: int, *, labels: bool = True) -> str:
    """Make up a file as published: half of the first sentences name the river."""
    draw = random.Random(f"{folder} {seed}")
    heading, line, spelled = LAYOUTS[folder]
    if not labels:
        heading, line = TEST_LAYOUTS.get(folder) or (heading.rpartition("\t")[0], line.rpartition("\t")[0])
    found = [heading] if heading else []
    for index in range(rows):
        words = [draw.choice(WORDS[1:]) for _ in range(draw.randint(3, 7))]
        if index % 2:
            words[draw.randrange(len(words))] = "river"
        found.append(line.format(index=index, one=" ".join(words), two=draw.choice(WORDS[1:]), label=spelled[index % 2]))
    return "\n".join(found) + "\n"


def write_folder(root: Path, folder: str) -> None:
    place = root / folder
    place.mkdir(parents=True)
    (place / "train.tsv").write_text(table(folder, 48, 0))
    for number, ending in enumerate(("_matched", "_mismatched") if folder == "MNLI" else ("",)):
        (place / f"dev{ending}.tsv").write_text(table(folder, 20, 1 + number))
        (place / f"test{ending}.tsv").write_text(table(folder, 6 + number, 3 + number, labels=False))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of GLUE, some dozen rows each, in the layouts in which it is published."""
    root = tmp_path_factory.mktemp("glue_data")
    for folder in LAYOUTS:
        write_folder(root, folder)
    (root / "AX").mkdir()
    (root / "AX" / "AX.tsv").write_text(table("MNLI", 5, 9, labels=False).replace("index\tpromptID", "index\tother"))
    return root


def call(data: Path, model: Path, base: Path, **options: Any) -> GlueResult:
    return finetune_glue(Experiment("glue/all", str(model), data_dir=str(data)), FEW, base=base, jobs=1, device="cpu", **options)


@pytest.fixture(scope="module")
def everything(data: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[GlueResult, Path]:
    base = tmp_path_factory.mktemp("all")
    return call(data, tiny, base, from_mnli=True), base


def test_all_tasks_in_the_leaderboards_order(everything: tuple[GlueResult, Path]) -> None:
    result, base = everything
    assert [done.task.name for done in result.tasks] == [f"glue/{name}" for name in ORDER]
    assert result.skipped == []
    after = {"mrpc", "stsb", "rte"}
    assert {path.name for path in base.iterdir()} == {"glue.json", *(f"{name}-from-mnli" if name in after else name for name in ORDER)}


def test_what_each_started_from_is_recorded(everything: tuple[GlueResult, Path], tiny: Path) -> None:
    result, base = everything
    starts = {done.task.name: done.start for done in result.tasks}
    mnli = str(base / "mnli" / "model")
    assert starts == {f"glue/{name}": mnli if name in ("mrpc", "stsb", "rte") else str(tiny) for name in ORDER}
    for name in ORDER:
        place = base / (f"{name}-from-mnli" if starts[f"glue/{name}"] == mnli else name)
        assert json.loads((place / "results.json").read_text())["start"] == starts[f"glue/{name}"]
        assert (place / "results.md").read_text().startswith(f"# glue/{name} from {starts[f'glue/{name}']}\n")


def metrics_of(done: Finetuned) -> dict[str, float]:
    """Read a task's numbers from its table."""
    [row] = json.loads((done.out / "results.json").read_text())["cells"].values()
    return {f"{split.removeprefix('validation').lstrip('_')} {name}".strip(): value for split, scores in row["scores"].items()
            for name, value in scores.items() if name not in ("mae", "rmse")}  # fmt: skip


def test_the_averages(everything: tuple[GlueResult, Path]) -> None:
    result, base = everything
    found = {done.task.name[5:]: metrics_of(done) for done in result.tasks}
    assert found["mnli"].keys() == {"matched accuracy", "mismatched accuracy"}
    means = [sum(values.values()) / len(values) for values in found.values()]
    assert result.average == pytest.approx(sum(means) / 9)
    numbers = [value for name, values in found.items() if name != "wnli" for value in values.values()]
    assert len(numbers) == 12
    if min(numbers) >= 0:
        product = 1.0
        for number in numbers:
            product *= number
        assert result.geometric_mean == pytest.approx(product ** (1 / 12))
    else:
        assert result.geometric_mean is None
    written = json.loads((base / "glue.json").read_text())
    assert (written["leaderboard_average"], written["paper_geometric_mean"]) == (result.average, result.geometric_mean)
    assert list(written["tasks"]) == [f"glue/{name}" for name in ORDER]
    assert written["tasks"]["glue/mnli"]["scores"].keys() == {"accuracy", "accuracy_mismatched"}


def test_again_does_nothing(everything: tuple[GlueResult, Path], data: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pldcli.engine.trainer import Trainer

    result, base = everything
    monkeypatch.setattr(Trainer, "_step", None)
    again = call(data, tiny, base, from_mnli=True)
    assert [done.done_before for done in again.tasks] == [1] * 9 and again.average == result.average


def test_the_zip_for_the_server(
    everything: tuple[GlueResult, Path], data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = everything
    experiment = Experiment("glue/all", str(tiny), data_dir=str(data))
    missing = submit(result.tasks, experiment, tmp_path / "glue.zip")
    rows = {"MNLI-mm.tsv": 7, "AX.tsv": 5}
    with zipfile.ZipFile(io.BytesIO((tmp_path / "glue.zip").read_bytes())) as archive:
        assert set(archive.namelist()) == {
            "CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "STS-B.tsv", "QQP.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "QNLI.tsv", "RTE.tsv", "WNLI.tsv",
            "AX.tsv",
        }  # fmt: skip
        for name in archive.namelist():
            lines = archive.read(name).decode().splitlines()
            assert lines[0] == "index\tprediction"
            assert [line.split("\t")[0] for line in lines[1:]] == [str(number) for number in range(rows.get(name, 6))], name
            labels = {line.split("\t")[1] for line in lines[1:]}
            if name == "STS-B.tsv":
                assert all(0 <= float(label) <= 5 for label in labels)
            elif name in ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"):
                assert labels <= {"entailment", "neutral", "contradiction"}
            else:
                assert labels <= ({"entailment", "not_entailment"} if name in ("RTE.tsv", "QNLI.tsv") else {"0", "1"}), name
        done = {one.task.name: one for one in result.tasks}
        predicted = [json.loads(line)["label"] for line in (done["glue/qqp"].out / "predictions-test.jsonl").read_text().splitlines()]
        assert archive.read("QQP.tsv").decode().split()[3::2] == [str(label) for label in predicted]
    assert "QQP.tsv (6 of 390,965 rows)" in missing and len(missing) == 11, "the made-up test sets are short, which is said"
    shutil.copytree(data / "AX", tmp_path / "broken" / "AX")
    broken = replace(experiment, data_dir=str(tmp_path / "broken"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError):
        submit(result.tasks, broken, tmp_path / "glue.zip", device="cuda")
    (tmp_path / "broken" / "AX" / "AX.tsv").write_text("index\tsentence1\n0\t1\n")
    with pytest.raises(DataError, match="has no column 'hypothesis'"):
        submit(result.tasks, broken, tmp_path / "glue.zip")


def test_tasks_without_data_are_left_out_with_a_word(data: Path, tiny: Path, tmp_path: Path) -> None:
    for folder in ("RTE", "WNLI"):
        shutil.copytree(data / folder, tmp_path / "some" / folder)
    (tmp_path / "some" / "WNLI" / "train.tsv").unlink()
    result = call(tmp_path / "some", tiny, tmp_path / "out")
    assert [done.task.name for done in result.tasks] == ["glue/rte"]
    assert (result.average, result.geometric_mean) == (None, None)
    assert len(result.skipped) == 8 and all("\n" not in line for line in result.skipped)
    assert [line for line in result.skipped if "glue/cola" in line and "put train.tsv" in line]
    assert "glue/wnli has no training examples; name a training file with --train" in result.skipped
    assert (result.failed, result.error) == ({}, None)
    assert json.loads((tmp_path / "out" / "glue.json").read_text())["skipped"] == result.skipped
    assert not (tmp_path / "out" / "cola").exists()


def test_a_damaged_file_is_an_error_once_the_other_tasks_are_done(data: Path, tiny: Path, tmp_path: Path, pld: Any) -> None:
    for folder in ("RTE", "WNLI", "CoLA"):
        shutil.copytree(data / folder, tmp_path / "some" / folder)
    wrong = tmp_path / "some" / "CoLA" / "dev.tsv"
    wrong.write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\t7\n")
    line = ["finetune", "glue/all", "--data-dir", tmp_path / "some", "--model", tiny, "--device", "cpu", "--jobs", 1]
    outcome = pld(*line, "--out", tmp_path / "out", "--json", "epochs=0.1")
    assert outcome.code == 3 and re.search(rf"error: glue/all: 1 of the tasks failed, the others are done: .*{wrong}", outcome.err)
    found = json.loads(outcome.out)
    assert list(found["tasks"]) == ["glue/rte", "glue/wnli"] and list(found["failed"]) == ["glue/cola"] and len(found["skipped"]) == 6
    assert json.loads((tmp_path / "out" / "glue.json").read_text())["failed"] == found["failed"]
    shown = pld(*line, "--out", tmp_path / "out", "epochs=0.1")
    assert shown.code == 3 and "failed: glue/cola: " in shown.out and shown.err.count("1 of 1 runs were done before") == 2


def test_a_task_that_diverges_does_not_stop_the_others(data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it tried again and again: the next call says so too, does nothing more, and names the way out."""
    for folder in ("MRPC", "RTE", "WNLI"):
        shutil.copytree(data / folder, tmp_path / "some" / folder)
    build, trained = cell_module.build_trainer, []

    def diverging(inputs: Any, *arguments: Any) -> Any:
        trainer = build(inputs, *arguments)
        trained.append(inputs.data.task.name)
        if inputs.data.task.name == "glue/mrpc":
            trainer.learning_rate = lambda step: math.inf
        return trainer

    monkeypatch.setattr(cell_module, "build_trainer", diverging)
    for done_before in (0, 1):
        result = call(tmp_path / "some", tiny, tmp_path / "out")
        assert [done.task.name for done in result.tasks] == ["glue/rte", "glue/wnli"]
        assert [done.done_before for done in result.tasks] == [done_before] * 2 and list(result.failed) == ["glue/mrpc"]
        assert isinstance(result.error, DivergedError) and result.error.exit_code == 6
        assert "glue/mrpc: all 1 run(s): training diverged; lower learning_rate" in str(result.error) and "--overwrite" in str(result.error)
        assert "glue/mrpc" in json.loads((tmp_path / "out" / "glue.json").read_text())["failed"]
    assert json.loads((tmp_path / "out" / "mrpc" / "results.json").read_text())["best"] is None
    assert trained == ["glue/mrpc", "glue/rte", "glue/wnli"]
    monkeypatch.undo()
    again = call(tmp_path / "some", tiny, tmp_path / "out", overwrite=True)
    assert [done.task.name for done in again.tasks] == ["glue/mrpc", "glue/rte", "glue/wnli"] and again.error is None


def test_tasks_that_would_start_from_a_model_that_failed(data: Path, tiny: Path, tmp_path: Path) -> None:
    for folder in ("MNLI", "RTE", "WNLI"):
        shutil.copytree(data / folder, tmp_path / "some" / folder)
    (tmp_path / "some" / "MNLI" / "train.tsv").write_text("index\tpromptID\n0\t1\n")
    result = call(tmp_path / "some", tiny, tmp_path / "out", from_mnli=True)
    assert [done.task.name for done in result.tasks] == ["glue/wnli"]
    assert list(result.failed) == ["glue/mrpc", "glue/stsb", "glue/mnli", "glue/rte"]
    assert "glue/rte: would start from the model of glue/mnli, which failed" in str(result.error)
    assert type(result.error) is DataError


def test_tasks_that_would_start_from_a_model_whose_files_are_not_here(data: Path, tiny: Path, tmp_path: Path) -> None:
    for folder in ("RTE", "WNLI"):
        shutil.copytree(data / folder, tmp_path / "some" / folder)
    result = call(tmp_path / "some", tiny, tmp_path / "out", from_mnli=True)
    assert [done.task.name for done in result.tasks] == ["glue/wnli"] and result.error is None
    assert "glue/rte: would start from the model of glue/mnli, whose files are not here" in result.skipped


def test_one_file_is_not_that_of_every_task(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"glue/all: --validation would be read for every task; name the tasks' directory with --data-dir"):
        finetune_glue(Experiment("glue/all", str(tiny), files={"validation": "v.csv"}), cells([]), base=tmp_path / "out")


def test_no_task_has_data(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no task of GLUE has training examples here; .*glue/cola"):
        call(tmp_path / "empty", tiny, tmp_path / "out")


def alone(data: Path, model: Path, pld: Any, task: str, *more: Any) -> Any:
    outcome = pld("finetune", task, "--data-dir", data, "--model", model, "--device", "cpu", "--jobs", 1, "epochs=0.1", *more, "--json")
    return json.loads(outcome.out)["tasks"] if outcome.code == 0 else outcome


def test_a_single_task_and_one_from_mnli(
    everything: tuple[GlueResult, Path], data: Path, tiny: Path, tmp_path: Path, pld: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, base = everything
    monkeypatch.chdir(tmp_path)
    place = Path("finetuned") / tiny.name
    shutil.copytree(base / "mnli", place / "mnli")
    [done] = alone(data, tiny, pld, "glue/rte", "--from-mnli").values()
    assert (done["out"], done["start"]) == (str(place / "rte-from-mnli"), str(place / "mnli" / "model"))
    [plain] = alone(data, tiny, pld, "glue/RTE").values()
    assert (plain["out"], plain["start"]) == (str(place / "rte"), str(tiny))
    [elsewhere] = alone(data, tiny, pld, "glue/rte", "--out", "mine").values()
    assert elsewhere["out"] == "mine"


def test_from_mnli_without_mnli_or_for_another_task(
    data: Path, tiny: Path, tmp_path: Path, pld: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = f"no model fine-tuned on MNLI in finetuned/{tiny.name}/mnli/model; run `pld finetune glue/mnli` from the same start first"
    assert line in alone(data, tiny, pld, "glue/mrpc", "--from-mnli").err
    outcome = alone(data, tiny, pld, "glue/cola", "--from-mnli")
    assert outcome.code == 2 and "glue/cola: --from-mnli is for glue/mrpc, glue/rte, glue/stsb" in outcome.err
    assert not list(tmp_path.iterdir())


def test_ax_alone_cannot_be_learned(data: Path, tiny: Path, tmp_path: Path, pld: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = alone(data, tiny, pld, "glue/ax")
    assert outcome.code == 3 and "glue/ax has no training examples; fine-tune glue/mnli: it predicts glue/ax too" in outcome.err


def test_the_start_is_read_once_for_all_tasks(data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("RTE", "WNLI"):
        shutil.copytree(data / folder, tmp_path / "some" / folder)
    read, open_model = [], Experiment.open_model

    def counted(self: Experiment) -> Any:
        read.append(self.model)
        return open_model(self)

    monkeypatch.setattr(Experiment, "open_model", counted)
    assert len(call(tmp_path / "some", tiny, tmp_path / "out").tasks) == 2 and read == [str(tiny)]


def test_a_submission_without_tests_is_refused(everything: tuple[GlueResult, Path], tmp_path: Path) -> None:
    result, _ = everything
    rte = next(done for done in result.tasks if done.task.name == "glue/rte")
    shutil.copytree(rte.out, tmp_path / "rte")
    (tmp_path / "rte" / "predictions-test.jsonl").unlink()
    from dataclasses import replace

    one = [replace(rte, out=tmp_path / "rte")]
    with pytest.raises(UsageError, match="--submission for glue/rte: no test split was predicted; the task's files need a test split"):
        submit(one, Experiment("glue/rte", "x"), tmp_path / "glue.zip")
    assert not (tmp_path / "glue.zip").exists()


def test_the_average_is_over_the_seeds_of_the_best_setting() -> None:
    def cell(seed: int, rate: float, score: float) -> dict[str, Any]:
        scores = dict.fromkeys(("accuracy", "f1", "matthews", "pearson", "spearman", "accuracy_mismatched"), score)
        settings = {"seed": seed, "learning_rate": rate}
        return {"settings": settings, "score": score, "scores": {"validation": scores}, "train_seconds": 1.0}

    runs = {"a": cell(0, 1.0, 0.5), "b": cell(1, 1.0, 0.9), "c": cell(0, 2.0, 0.8), "d": cell(1, 2.0, 0.8)}
    groups = group_cells(list(runs.values()))

    def task(name: str) -> Finetuned:
        done = {"task": find_task(name), "cells": runs, "groups": groups, "best": "b", "read_back": ReadBack(), "notes": []}
        return Finetuned(out=Path("x"), start="start", **done)  # type: ignore[arg-type]

    result = GlueResult([task(f"glue/{name}") for name in ORDER])
    assert result.average == pytest.approx(0.8), "not the best single run's 0.9"


def test_what_starts_after_mnli_takes_its_weights_also_where_mnli_began_from_scratch(tmp_path: Path) -> None:
    (tmp_path / "mnli" / "model").mkdir(parents=True)
    after = Experiment("glue/rte", "runs/a", from_scratch=True).after_mnli(tmp_path)
    assert (after.model, after.from_scratch) == (str(tmp_path / "mnli" / "model"), False)

"""Fine-tuning that is stopped, killed, repeated, widened, or pointed at a directory that holds something else."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pldcli.engine.trainer import Trainer
from pldcli.errors import OutputError, PreemptedError, StoppedError
from pldcli.finetuning import cell
from pldcli.finetuning.config import cells
from pldcli.finetuning.finetune import cell_name
from tests.finetuning.conftest import FAST, river_rows, save_tiny, write_rows
from tests.finetuning.test_finetune import lines, outcomes, table, weights

SLOW = """
import time
from pldcli import cli
from pldcli.engine.trainer import Trainer
step = Trainer._step
def slow(self, *arguments, **named):
    time.sleep(0.1)
    return step(self, *arguments, **named)
Trainer._step = slow
raise SystemExit(cli.run({arguments!r}))
"""


def stop_at(monkeypatch: pytest.MonkeyPatch, at: int, signal_number: int) -> None:
    """Have a signal arrive before some step, counted over all cells."""
    step, calls = Trainer._step, []

    def stopped(self: Any, number: int, groups: Any, stop: Any, **named: Any) -> Any:
        calls.append(number)
        if len(calls) == at:
            stop.signal_number = signal_number
        return step(self, number, groups, stop, **named)

    monkeypatch.setattr(Trainer, "_step", stopped)


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    step, seeds = Trainer._step, []

    def counted(self: Any, number: int, groups: Any, stop: Any, **named: Any) -> Any:
        seeds.append(self.seed)
        return step(self, number, groups, stop, **named)

    monkeypatch.setattr(Trainer, "_step", counted)
    return seeds


def test_a_process_that_is_killed_now_loses_work(learn, river_experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    stop_at(monkeypatch, 1, signal.SIGTERM)
    with pytest.raises(PreemptedError):
        learn(river_experiment(), tmp_path / "out", "epochs=1", seeds=1)
    assert (tmp_path / "begun").exists()


# Grids, seeds, going on


def test_more_seeds_and_a_larger_grid_do_only_what_is_new(learn, river_experiment, tmp_path, monkeypatch):
    learn(river_experiment(), tmp_path / "out", "epochs=1", seeds=1)
    steps = count_steps(monkeypatch)
    done = learn(river_experiment(), tmp_path / "out", "epochs=1", seeds=3)
    assert steps == [1] * 10 + [2] * 10 and done.done_before == 1
    assert [cell["settings"]["seed"] for cell in done.cells.values()] == [0, 1, 2]
    [group] = done.groups
    assert group.seeds == [0, 1, 2] and group.score.values == tuple(cell["score"] for cell in done.cells.values())
    steps.clear()
    wider = learn(river_experiment(), tmp_path / "out", "epochs=1,2", seeds=2)
    assert steps == [0] * 20 + [1] * 20 and wider.done_before == 2 and len(wider.groups) == 2
    assert [(one.label, one.seeds) for one in wider.groups] == [("epochs=1.0", [0, 1]), ("epochs=2.0", [0, 1])]
    steps.clear()
    assert learn(river_experiment(), tmp_path / "out", "epochs=1,2", seeds=2).done_before == 4 and not steps


def test_the_best_cell_has_the_model_and_the_predictions(learn, river_experiment, rivers, tmp_path):
    files = {name: str(rivers / f"{name}.jsonl") for name in ("validation", "test")}
    weak = learn(river_experiment(files=files), tmp_path / "out", "epochs=1")
    before = weights(weak), (weak.out / "predictions-test.jsonl").read_bytes()
    both = learn(river_experiment(files=files), tmp_path / "out", "epochs=1,6")
    assert both.cells[both.best]["settings"]["epochs"] == 6 and both.cells[both.best]["score"] > both.cells[weak.best]["score"]
    assert before[0] != weights(both) and before[1] != (both.out / "predictions-test.jsonl").read_bytes()
    place = both.out / "cells" / both.best
    assert (both.out / "predictions-validation.jsonl").read_bytes() == (place / "predictions-validation.jsonl").read_bytes()
    assert not list((both.out / "cells").glob("*/model"))
    alone = learn(river_experiment(files=files), tmp_path / "alone", "epochs=6")
    assert weights(alone) == weights(both)
    assert (alone.out / "predictions-test.jsonl").read_bytes() == (both.out / "predictions-test.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("number", "kind", "code", "word"), [(2, StoppedError, 130, "interrupted"), (15, PreemptedError, 75, "terminated")]
)
def test_a_stop_keeps_what_is_done(learn, river_experiment, tmp_path, monkeypatch, number, kind, code, word):
    """Of three cells with two evaluations each the second is stopped behind its first evaluation."""
    changes = ("epochs=2", "dropout=0.1")
    with monkeypatch.context() as patch:
        stop_at(patch, 20 + 14, number)
        with pytest.raises(kind, match=rf"{word}, 1 of 3 run\(s\) finished, .*; run the same command again to resume") as caught:
            learn(river_experiment(), tmp_path / "out", *changes, seeds=3)
    assert caught.value.exit_code == code
    visible = [path.name for path in (tmp_path / "out" / "cells").iterdir() if not path.name.startswith(".")]
    assert [name[-6:] for name in visible] == ["seed=0"], "nothing half-done"
    assert len(table(tmp_path / "out")) == 1, "the table has what there is"
    assert (tmp_path / "out" / "model" / "config.json").is_file()
    steps = count_steps(monkeypatch)
    done = learn(river_experiment(), tmp_path / "out", *changes, seeds=3)
    assert steps == [1] * 7 + [2] * 20 and done.done_before == 1, "it goes on at the fourteenth step"
    whole = learn(river_experiment(), tmp_path / "whole", *changes, seeds=3)
    assert outcomes(done) == outcomes(whole) and weights(done) == weights(whole)
    assert not [path for path in (done.out / "cells").iterdir() if path.name.startswith(".")], "what was saved on the way is gone"


@pytest.mark.parametrize("spoil", ["model.safetensors", "optimizer.safetensors", "best.safetensors", "state.json"])
def test_a_damaged_state_begins_anew(learn, river_experiment, tmp_path, monkeypatch, spoil):
    with monkeypatch.context() as patch:
        stop_at(patch, 14, 15)
        with pytest.raises(PreemptedError):
            learn(river_experiment(), tmp_path / "out", "epochs=2")
    [saved] = (tmp_path / "out" / "cells").glob(".*.unfinished")
    content = bytearray((saved / spoil).read_bytes())
    content[-3] ^= 1
    (saved / spoil).write_bytes(content)
    steps = count_steps(monkeypatch)
    done = learn(river_experiment(), tmp_path / "out", "epochs=2")
    assert len(steps) == 20
    assert weights(done) == weights(learn(river_experiment(), tmp_path / "whole", "epochs=2"))


def test_a_state_of_other_settings_is_not_taken(learn, river_experiment, tmp_path, monkeypatch):
    """The forward pass is smaller now: sums come in another order, so it begins anew rather than mix the two."""
    with monkeypatch.context() as patch:
        stop_at(patch, 14, 15)
        with pytest.raises(PreemptedError):
            learn(river_experiment(), tmp_path / "out", "epochs=2")
    steps = count_steps(monkeypatch)
    learn(river_experiment(), tmp_path / "out", "epochs=2", "micro_batch_size=4")
    assert len(steps) == 20


def test_a_stop_before_the_first_step(learn, river_experiment, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 2)
        with pytest.raises(StoppedError, match=r"0 of 1 run\(s\) finished"):
            learn(river_experiment(), tmp_path / "out", "epochs=1")
    assert learn(river_experiment(), tmp_path / "out", "epochs=1").done_before == 0


def test_patience_and_the_best_weights_survive_a_stop(learn, river_experiment, tmp_path, monkeypatch):
    """Scores of the evaluations at steps 10, 20, ..., the model's own computed again after a stop."""

    def scored(place: str, *stops: int) -> Any:
        values = {10: 0.5, 20: 0.9, 30: 0.6, 40: 0.7, 50: 0.8}
        with monkeypatch.context() as patch:
            step, now = Trainer._step, [0]

            def noted(self: Any, number: int, groups: Any, stop: Any, **named: Any) -> Any:
                now[0] = number + 1
                if number in stops and not (tmp_path / f"{place}-{number}").exists():
                    (tmp_path / f"{place}-{number}").touch()
                    stop.signal_number = 15
                return step(self, number, groups, stop, **named)

            patch.setattr(Trainer, "_step", noted)
            patch.setattr(cell, "mean_score", lambda *_: values.get(now[0], 0.9))
            for _ in stops:
                with pytest.raises(PreemptedError):
                    learn(river_experiment(), tmp_path / place, "patience=2")
                now[0] = 0
            return learn(river_experiment(), tmp_path / place, "patience=2")

    whole, stopped = scored("whole"), scored("stopped", 24, 33)
    for done in (whole, stopped):
        result = done.cells[done.best]
        assert (result["steps"], result["best_step"], result["score"]) == (40, 20, 0.9)
    assert weights(whole) == weights(stopped)


@pytest.mark.parametrize(("jobs", "number", "code"), [(1, signal.SIGTERM, 75), (2, signal.SIGINT, 130)])
def test_a_signal_to_a_real_process(processes, rivers, tiny, tmp_path, pld, jobs, number, code):
    line = [str(part) for part in (
        "finetune", rivers / "train.jsonl", "--validation", rivers / "validation.jsonl", "--model", tiny, "--out", tmp_path / "out",
        *FAST, "epochs=1", "--seeds", 8, "--jobs", jobs, "--device", "cpu",
    )]  # fmt: skip
    process = processes.python(SLOW.format(arguments=line))
    until = time.monotonic() + 60
    while not list((tmp_path / "out").glob("cells/*seed=0")) and time.monotonic() < until:
        time.sleep(0.02)
    process.kill(number)
    assert process.wait() == code, process.err
    assert re.search(r"error: .* of 8 run\(s\) finished, .*; run the same command again to resume\n", process.err), process.err
    kept = [path.name for path in (tmp_path / "out" / "cells").iterdir() if not path.name.startswith(".")]
    assert 1 <= len(kept) < 8
    outcome = pld(*line)
    assert outcome.code == 0, outcome.err
    assert f"{len(kept)} of 8 runs were done before" in outcome.err
    assert len(table(tmp_path / "out")) == 8


def test_the_model_is_always_that_of_the_best_cell_asked_for(learn, river_experiment, rivers, tmp_path):
    """A smaller grid later on: its best cell had lost before, and its model was dropped."""
    files = {name: str(rivers / f"{name}.jsonl") for name in ("validation", "test")}

    def call(place: str, *changes: str, **options: Any) -> Any:
        return learn(river_experiment(files=files), tmp_path / place, *changes, **options)

    both = call("out", "epochs=1,6")
    short = call("out", "epochs=1")
    alone = call("alone", "epochs=1")
    assert short.best == alone.best != both.best and short.done_before == 1
    assert weights(short) == weights(alone)
    for split in ("validation", "test"):
        name = f"predictions-{split}.jsonl"
        assert (short.out / name).read_bytes() == (alone.out / name).read_bytes(), name
    again = call("out", "epochs=1,6")
    assert again.done_before == 2 and weights(again) == weights(call("long", "epochs=6"))


@pytest.mark.parametrize("at", ["best.json", ".model-before", "model", "results.json", "README.md"])
def test_a_process_killed_while_the_best_moves_up(learn, river_experiment, tmp_path, monkeypatch, at):
    """Wherever that happens, the next call does what is missing and no more."""
    first = weights(learn(river_experiment(), tmp_path / "out", "epochs=1"))

    class Killed(BaseException):
        pass

    def before(way: str) -> Any:
        move = getattr(Path, way)

        def moved(self: Path, target: Path) -> Path:
            if Path(target).name == at and "cells" not in Path(target).parts:
                raise Killed
            return move(self, target)

        return moved

    with monkeypatch.context() as patch:
        for way in ("rename", "replace"):
            patch.setattr(Path, way, before(way))
        with pytest.raises(Killed):
            learn(river_experiment(), tmp_path / "out", "epochs=1,6")
    steps = count_steps(monkeypatch)
    done = learn(river_experiment(), tmp_path / "out", "epochs=1,6")
    assert not steps and done.done_before == 2
    whole = learn(river_experiment(), tmp_path / "whole", "epochs=1,6")
    assert weights(done) == weights(whole) != first
    assert (done.out / "predictions-validation.jsonl").read_bytes() == (whole.out / "predictions-validation.jsonl").read_bytes()
    assert [path.name for path in done.out.iterdir() if path.name.startswith(".")] == [".lock"]


def test_what_is_missing_at_the_end_is_made_again(learned, learn, river_experiment, rivers, tmp_path, monkeypatch):
    files = {name: str(rivers / f"{name}.jsonl") for name in ("validation", "test")}
    shutil.copytree(learned.out, tmp_path / "out")
    for name in ("predictions-test.jsonl", "predictions-validation.jsonl", "results.json", "results.md", "spread.png"):
        (tmp_path / "out" / name).unlink()
    steps = count_steps(monkeypatch)
    learn(river_experiment(files=files), tmp_path / "out")
    assert not steps
    for name in ("predictions-test.jsonl", "predictions-validation.jsonl", "best.json", "results.md"):
        assert (tmp_path / "out" / name).read_bytes() == (learned.out / name).read_bytes(), name


def test_a_cell_with_many_changes_has_a_short_name(learn, river_experiment, tmp_path):
    """File systems take 255 letters."""
    many = (
        *("schedule=cosine", "warmup_fraction=0.123456", "weight_decay=0.0123456", "beta2=0.98765", "eps=1.2345e-06", "keep=last"),
        *("max_grad_norm=1.2345", "max_seq_len=40", "stride=12", "evaluations_per_epoch=2", "patience=17", "epochs=0.1"),
    )
    one, other = (cells([*FAST, *many, f"beta2=0.98{digit}"])[0] for digit in (1, 2))
    assert len(cell_name(one)) < 160 and cell_name(one).endswith(",seed=0")
    assert cell_name(one) != cell_name(other), "what is cut still counts"
    done = learn(river_experiment(), tmp_path / "out", *many)
    assert learn(river_experiment(), tmp_path / "out", *many).done_before == 1 and len(done.best) < 160


# Whose directory


def test_another_model_or_other_data_is_refused(learn, learned, river_experiment, rivers, words_tokenizer, tmp_path):
    files = {name: str(rivers / f"{name}.jsonl") for name in ("validation", "test")}
    shutil.copytree(learned.out, tmp_path / "out")
    other = save_tiny(tmp_path / "other", words_tokenizer, num_hidden_layers=3)
    fewer = write_rows(tmp_path / "train.jsonl", river_rows(150, 1))
    for changes, what in (({"model": str(other)}, "model"), ({"task": str(fewer)}, "data"), ({"from_scratch": True}, "model"),
                          ({"task": str(fewer), "model": str(other)}, "data and model")):  # fmt: skip
        with pytest.raises(OutputError, match=f"out: holds results of another {what}; choose another place with --out, or add --overwrite"):
            learn(river_experiment(files=files, **changes), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "experiment.json").read_text()) == json.loads((learned.out / "experiment.json").read_text())
    assert learn(river_experiment(files=files), tmp_path / "out").done_before == 1, "nothing was touched"


def test_random_weights_of_another_shape_are_another_model(learn, river_experiment, words_tokenizer, tmp_path):
    deep = save_tiny(tmp_path / "deep", words_tokenizer, num_hidden_layers=3)
    learn(river_experiment(from_scratch=True), tmp_path / "out", "epochs=0.1")
    with pytest.raises(OutputError, match="results of another model"):
        learn(river_experiment(from_scratch=True, model=str(deep)), tmp_path / "out", "epochs=0.1")


def test_overwrite_leaves_nothing_of_before(learned, learn, river_experiment, rivers, tmp_path):
    """A cell of the same name, but of other data: neither its predictions nor those for the tests may stay."""
    shutil.copytree(learned.out, tmp_path / "out")
    write_rows(tmp_path / "train.jsonl", [row | {"label": "dry" if row["label"] == "land" else "wet"} for row in river_rows(100, 9)])
    write_rows(tmp_path / "validation.jsonl", [row | {"label": "dry" if row["label"] == "land" else "wet"} for row in river_rows(30, 8)])
    files = {"validation": str(tmp_path / "validation.jsonl"), "test": str(rivers / "test.jsonl")}
    done = learn(river_experiment(task=str(tmp_path / "train.jsonl"), files=files), tmp_path / "out", overwrite=True)
    assert done.best == learned.best and done.done_before == 0
    assert len(lines(done.out / "predictions-validation.jsonl")) == 30
    for split in ("validation", "test"):
        assert {row["label"] for row in lines(done.out / f"predictions-{split}.jsonl")} == {"dry", "wet"}
    without = learn(river_experiment(), tmp_path / "out", overwrite=True)
    assert not (without.out / "predictions-test.jsonl").exists(), "there is no test split now"


def test_overwrite_begins_anew_with_the_same_too(learned, learn, river_experiment, rivers, tmp_path, monkeypatch):
    shutil.copytree(learned.out, tmp_path / "out")
    files = {name: str(rivers / f"{name}.jsonl") for name in ("validation", "test")}
    steps = count_steps(monkeypatch)
    done = learn(river_experiment(files=files), tmp_path / "out", overwrite=True)
    assert len(steps) == 60 and done.done_before == 0 and weights(done) == weights(learned)


def test_places_that_hold_something_else(learn, river_experiment, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for name, what in (("file", "is a file"), ("full", "is not a fine-tuning directory"), ("file/below", "cannot be written")):
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=what):
                learn(river_experiment(), tmp_path / name, overwrite=overwrite)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_two_processes_in_one_place(learned, learn, river_experiment, rivers, tmp_path):
    shutil.copytree(learned.out, tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with (tmp_path / "out" / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for overwrite in (False, True):
            with pytest.raises(OutputError, match="another process is training here"):
                learn(river_experiment(), tmp_path / "out", overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before, "what the other process is writing stays"

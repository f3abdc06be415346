import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from pldcli import cli
from pldcli.data.prepared import open_prepared
from pldcli.engine.validation import fixed_batches
from pldcli.errors import CheckpointError, DataError, UsageError
from pldcli.evaluation.evaluate import evaluate
from pldcli.huggingface.load import load_pretrained
from pldcli.preparation.prepare import prepare
from pldcli.runs.checkpoint import list_checkpoints
from pldcli.runs.model_source import latest_run
from tests.conftest import TINY, MadeUpData, wait_for
from tests.system.test_launcher import ranks

SCORES = {"mlm_loss", "perplexity", "mlm_accuracy", "num_targets", "tokens_per_second"}


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    line = ["pretrain", "--preset", "bert-tiny-pld", *TINY, "eval.max_sequences=100000", "--data", str(prepared), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pld", *line])
        assert cli.run(line) == 0
    return out


def numbers(pld, target, prepared):
    outcome = pld("evaluate", target, "--data", prepared, "--json")
    assert outcome.code == 0, outcome.err
    values = json.loads(outcome.out)
    assert values.keys() == SCORES and values.pop("tokens_per_second") > 0
    return values


def test_the_same_number_always_and_everywhere(pld, run, prepared):
    found = numbers(pld, run, prepared)
    assert numbers(pld, run, prepared) == found
    assert numbers(pld, run / "model", prepared) == found
    without_data = json.loads(pld("evaluate", run, "--json").out)
    assert without_data["mlm_loss"] == found["mlm_loss"], "the run remembers its data"
    assert numbers(pld, list_checkpoints(run / "checkpoints")[-1], prepared) == pytest.approx(found, rel=1e-6)
    logged = [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "eval/mlm_loss" in row][-1]
    assert logged["eval/mlm_loss"] == pytest.approx(found["mlm_loss"], rel=1e-6)
    assert f"token frequencies alone score {logged['eval/frequency_loss']:.4f} there" in pld("evaluate", run).err
    assert found["perplexity"] == pytest.approx(math.exp(found["mlm_loss"]))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_two_processes_measure_the_same(pld, processes, run, prepared, tmp_path):
    alone = numbers(pld, run, prepared)
    line = ["evaluate", run, "--data", prepared, "--json", "--device", "cpu", "--save", tmp_path / "saved.json"]
    process = processes.pld(*line, "--gpus", 2)
    wait_for(lambda: set(ranks(process.number)) == {0, 1})
    assert process.wait() == 0, process.err
    both = json.loads(process.out)
    assert both.pop("tokens_per_second") > 0 and both == pytest.approx(alone, rel=1e-6)
    assert both.items() <= json.loads((tmp_path / "saved.json").read_text()).items()


def test_the_loss_is_what_it_is_called(run, prepared):
    """Against the full head over every position with ignored labels, row by row."""
    model = load_pretrained(run / "model").masked_lm().eval()
    total = hits = count = 0.0
    with torch.no_grad():
        for batch in fixed_batches(open_prepared(prepared), 32):
            labels = torch.full((batch.input_ids.numel(),), -100)
            labels[batch.positions] = batch.target_ids
            logits = model.mlm_logits(model(batch.input_ids, attention_mask_BT=batch.attention_mask)).flatten(0, 1)
            total += float(functional.cross_entropy(logits, labels, reduction="sum"))
            hits += int((logits.argmax(-1) == labels).sum())
            count += int((labels != -100).sum())
    score = evaluate(run, data=prepared).score
    assert score.num_targets == count > 20
    assert score.loss == pytest.approx(total / count, rel=1e-5)
    assert score.accuracy == pytest.approx(hits / count)


def test_masks_are_fixed_and_cover_the_split(prepared):
    data = open_prepared(prepared)
    first, second = (list(fixed_batches(data, 32)) for _ in range(2))
    assert all(torch.equal(a.input_ids, b.input_ids) and torch.equal(a.positions, b.positions) for a, b in zip(first, second, strict=True))
    tokens = sum(int((batch.attention_mask if batch.attention_mask is not None else batch.input_ids > -1).sum()) for batch in first)
    rows = sum(len(batch.input_ids) for batch in first)
    assert tokens == data.stream("validation").num_tokens + 2 * rows
    assert sum(len(batch.input_ids) for batch in fixed_batches(data, 32, max_sequences=3)) == 3


def test_a_run_without_a_model_is_scored_by_its_newest_whole_checkpoint(pld, run, prepared, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    result = evaluate(tmp_path / "run", data=prepared)
    assert result.source.name == "step-00000012" and result.seq_len == 32
    (result.source / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="this run has no model and no complete checkpoint yet"):
        evaluate(tmp_path / "run", data=prepared)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is damaged"):
        evaluate(result.source, data=prepared)


def test_another_tokenizer_is_refused(pld, run, tmp_path, prepared):
    (tmp_path / "other.txt").write_text("\n".join(f"some other words, number {n}" for n in range(2000)))
    prepare([tmp_path / "other.txt"], tmp_path / "other", document_per="line", vocab_size=300, processes=1, quiet=True)
    for target in (run, run / "model", list_checkpoints(run / "checkpoints")[-1]):
        with pytest.raises(DataError, match="was tokenized with another tokenizer"):
            evaluate(target, data=tmp_path / "other")
    outcome = pld("evaluate", run, "--data", tmp_path / "other")
    assert outcome.code == 3 and "pld prepare-data --tokenizer" in outcome.err and outcome.err.count("\n") == 1


def test_nothing_there(pld, run, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for target in ("nowhere", "empty"):
        outcome = pld("evaluate", target, "--data", prepared)
        assert outcome.code == 4 and target in outcome.err and outcome.err.count("\n") == 1
    outcome = pld("evaluate", "--data", prepared)
    assert outcome.code == 2 and outcome.err == "error: no run in runs; name a run or a model directory\n"
    outcome = pld("evaluate", run, "--data", "no-data")
    assert outcome.code == 3 and "no-data" in outcome.err


def test_the_latest_run(tmp_path):
    for number, name in enumerate(("b", "a", "c")):
        (tmp_path / name).mkdir()
        for place, age in (("config.yaml", 100), ("metrics.jsonl", {"b": 5, "a": 1, "c": 3}[name])):
            (tmp_path / name / place).write_text("")
            os.utime(tmp_path / name / place, (10**9 - age, 10**9 - age))
        assert latest_run(tmp_path).name == ("b", "a", "a")[number]
    (tmp_path / "no-run").mkdir()
    (tmp_path / "no-run" / "new").write_text("")
    assert latest_run(tmp_path).name == "a"
    (tmp_path / "c" / "link").symlink_to(tmp_path / "nothing")
    assert latest_run(tmp_path).name == "c", "the link was made now"
    with pytest.raises(UsageError):
        latest_run(tmp_path / "nowhere")


def test_reduced_precision_when_asked_for(run, prepared):
    exact, rough = (evaluate(run, data=prepared, precision=name) for name in ("fp32", "bf16"))
    assert (exact.precision, rough.precision) == ("fp32", "bf16")
    assert exact.score.loss != rough.score.loss == pytest.approx(exact.score.loss, rel=0.01)


def test_the_masks_are_those_of_every_other_day():
    """Literal places: other masks would make numbers of different versions incomparable."""
    batch = next(iter(fixed_batches(MadeUpData(), 32)))
    assert batch.positions[:8].tolist() == [6, 14, 22, 25, 39, 44, 51, 59]


def test_the_data_is_the_runs_own_unless_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from pldcli.runs.model_source import recorded_data

    run = tmp_path / "runs" / "a"
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run / "environment.json").write_text('{"starts": [{"data": "first"}, {"data": "second"}]}')
    for target in (run, run / "model", run / "checkpoints" / "step-00000001", Path("runs/a")):
        assert recorded_data(target) == Path("second")
    assert recorded_data(tmp_path / "elsewhere") == Path("data")

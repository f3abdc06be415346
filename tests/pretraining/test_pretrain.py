import errno
import hashlib
import json
import random
import re
import shutil
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from pldcli import cli, presets
from pldcli.engine.trainer import Trainer
from pldcli.errors import OutputError
from pldcli.model import StBert
from pldcli.pld import Schedule
from pldcli.preparation.prepare import prepare
from pldcli.pretraining import estimate, recorder
from pldcli.pretraining.recorder import RunRecorder
from pldcli.runs.checkpoint import list_checkpoints, read, verify
from pldcli.runs.run_directory import RunDirectory
from pldcli.system import locks
from tests.conftest import TINY, wait_for

RUN = (
    *TINY, "model.dropout=0.1", "pld.schedule=constant", "pld.draws_per_step=2", "train.log_every_steps=2", "checkpoint.every_steps=5",
    "eval.every_steps=6",
)  # fmt: skip
TRAINING_NAMES = {
    "step", "train/loss", "optim/learning_rate", "optim/grad_norm", "pld/theta", "pld/kept_blocks", "speed/tokens_per_second",
    "progress/tokens", "progress/train_seconds", "progress/wall_seconds", "progress/executed_flops",
}  # fmt: skip
PHASE_NAMES = {f"speed/{phase}_fraction" for phase in ("data_wait", "forward", "backward", "optimizer", "other")}
OUR_NAMES = {
    "progress/skipped_steps",
    "progress/shifted_sequences",
    "progress/rollbacks",
    *PHASE_NAMES,
    "progress/sequences",
    "data/packing_efficiency",
}
SLOW = """
import sys, time
from pldcli import cli
from pldcli.pld import Dropping, Schedule
plan = Schedule.plan
def slow(self, *arguments, **named):
    time.sleep(0.07)  # once per gate group of a step
    return plan(self, *arguments, **named)
Schedule.plan = slow
raise SystemExit(cli.run({arguments!r}))
"""


def arguments(prepared, out, *more):
    return ["pretrain", "--preset", "bert-tiny-pld", *RUN, "--data", str(prepared), "--out", str(out), *map(str, more)]


def rows(run, name="train/loss"):
    return [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if name in row]


def weights(run):
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def steps(run):
    return [int(path.name[5:]) for path in list_checkpoints(run / "checkpoints")]


def everything_below(path):
    return sorted(entry.relative_to(path) for entry in path.rglob("*"))


def stop_in_step(monkeypatch, number, signal_number=signal.SIGTERM):
    """Have a signal arrive while a step is under way."""
    plan = Schedule.plan

    def stopped(self, step, group, **named):
        if (step, group) == (number, 0):
            signal.raise_signal(signal_number)
        return plan(self, step, group, **named)

    monkeypatch.setattr(Schedule, "plan", stopped)


def run_stopped_once(pld, monkeypatch, line, step):
    """Run a command line that a signal stops after `step` steps, and again to its end; return the steps of the checkpoints between."""
    with monkeypatch.context() as patch:
        stop_in_step(patch, step)
        assert pld(*line).code == 75
    saved = steps(Path(line[line.index("--out") + 1]))
    outcome = pld(*line)
    assert outcome.code == 0 and f"resuming after step {step}" in outcome.out and saved[-1] == step
    return saved


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    line = arguments(prepared, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["/somewhere/pld", *line])
        assert cli.run(line) == 0
    return out


@pytest.fixture
def copy(whole, tmp_path):
    """The finished run again, to be spoilt."""
    shutil.copytree(whole, tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def stopped(pld, prepared, tmp_path, monkeypatch):
    """A run stopped in its eighth step."""
    with monkeypatch.context() as patch:
        stop_in_step(patch, 7)
        assert pld(*arguments(prepared, tmp_path / "stopped")).code == 75
    return tmp_path / "stopped"


# What a run leaves behind


def test_a_run_directory(whole):
    assert {entry.name for entry in whole.iterdir()} == {
        ".lock", "README.md", "checkpoints", "config.yaml", "environment.json", "metrics.jsonl", "model", "plots", "tensorboard",
    }  # fmt: skip
    assert steps(whole) == [10, 12], "two newest, the last step among them"
    for path in list_checkpoints(whole / "checkpoints"):
        verify(path)
        assert read(path).config == presets.load(whole / "config.yaml")
    assert list((whole / "tensorboard").glob("events.*"))
    assert {path.name for path in (whole / "plots").iterdir()} == {
        "loss.png",
        "kept_blocks.png",
        "learning_rate.png",
        "tokens_per_second.png",
    }


def test_metrics_have_the_promised_names(whole):
    training, evaluation = rows(whole), rows(whole, "eval/mlm_loss")
    assert [row["step"] for row in training] == [2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in evaluation] == [6, 12]
    assert {frozenset(row) for row in training} == {frozenset(TRAINING_NAMES | OUR_NAMES)}
    assert {frozenset(name for name in row if name.startswith("eval/")) for row in evaluation} == {
        frozenset(("eval/mlm_loss", "eval/perplexity", "eval/mlm_accuracy", "eval/frequency_loss"))
    }
    config = presets.load(whole / "config.yaml")
    for row in training:
        done = row["step"] - 1
        assert row["pld/theta"] == config.pld_schedule.theta(done) == 0.5
        kept = [config.pld_schedule.plan(done, group, seed=0).kept_blocks for group in range(2)]
        assert row["pld/kept_blocks"] == sum(kept) / 2
        assert row["progress/tokens"] == row["step"] * 8 * 32 and row["progress/sequences"] == row["step"] * 8
        assert 0 < row["progress/train_seconds"] < row["progress/wall_seconds"]
        assert row["data/packing_efficiency"] == 1
        assert row["speed/tokens_per_second"] > 0 and all(0 <= row[name] <= 1 for name in PHASE_NAMES)
    for name in ("progress/train_seconds", "progress/wall_seconds", "progress/executed_flops"):
        values = [row[name] for row in rows(whole, "step")]
        assert values == sorted(values)
    between = [(a["progress/tokens"], a["progress/train_seconds"]) for a in training]
    for (tokens, seconds), (more, later), row in zip(between, between[1:], training[1:], strict=False):
        assert row["speed/tokens_per_second"] == pytest.approx((more - tokens) / (later - seconds))
    assert training[-1]["train/loss"] < training[0]["train/loss"]


def test_theta_is_that_of_the_update_before(pld, prepared, tmp_path):
    more = ["pld.schedule=exponential", "pld.gamma=0.5", "train.total_steps=2", "train.log_every_steps=1", "pld.theta_bar=0.6"]
    assert pld(*arguments(prepared, tmp_path / "run", *more)).code == 0
    assert [row["pld/theta"] for row in rows(tmp_path / "run")] == pytest.approx([1.0, 0.4 * 0.6065306597 + 0.6])


def test_transformers_reads_the_model_and_its_tokenizer(whole, prepared):
    model = AutoModelForMaskedLM.from_pretrained(whole / "model")
    tokenizer = AutoTokenizer.from_pretrained(whole / "model")
    ids = tokenizer("Return the value of the name.", return_tensors="pt").input_ids
    ours = read(list_checkpoints(whole / "checkpoints")[-1])
    stbert = StBert(**vars(ours.config.model))
    stbert.load_state_dict(ours.weights)
    with torch.no_grad():
        theirs = model.eval()(ids).logits
        assert torch.allclose(theirs, stbert.eval().mlm_logits(stbert(ids)), atol=1e-4)
    assert tokenizer.mask_token_id is not None and len(tokenizer) == 512


def test_the_model_card(whole, prepared):
    card = (whole / "README.md").read_text()
    command = " ".join(["pld", *arguments(prepared, whole)])
    assert f"\n    {command}\n" in card, "what was typed, to be typed again"
    last = rows(whole)[-1]
    evaluation = rows(whole, "eval/mlm_loss")[-1]
    for text in (
        f"training loss of the last step | {last['train/loss']:.4f} |", f"{evaluation['eval/mlm_loss']:.4f}",
        "3,072 tokens in 96 sequences of 32, 12 steps", "constant to theta_bar 0.5", "corpus.txt", "512 entries",
        "roberta-prelayernorm", "2.00 of 3 blocks on average",
    ):  # fmt: skip
        assert text in card, text
    for picture in re.findall(r"!\[.*\]\((.*)\)", card):
        assert (whole / picture).read_bytes()[:4] == b"\x89PNG"
    assert "next-sentence" not in card


def test_the_environment(whole, prepared):
    [start] = json.loads((whole / "environment.json").read_text())["starts"]
    assert start["command"].startswith("pld pretrain --preset bert-tiny-pld")
    assert start["packages"]["torch"] == version("torch")
    assert (start["device"], start["precision"], start["processes"], start["micro_batch_size"]) == ("cpu", "fp32", 1, 4)
    assert start["data"] == str(prepared)


def test_what_is_said(pld, prepared, tmp_path):
    outcome = pld(*arguments(prepared, tmp_path / "run", "train.total_steps=4"))
    lines = outcome.out.splitlines()
    assert lines[0].startswith(
        f"{tmp_path / 'run'}: 0.1 M parameters, 4 steps of 8 x 32 tokens, fp32 on cpu, 1 process(es), micro-batch 4; about "
    )
    assert any(re.match(r"step 4/4  validation loss \d\.\d{4} \(unigram baseline: \d\.\d{4}\)  accuracy 0\.\d{3}", line) for line in lines)
    assert any(re.match(r"step 2/4  loss .* lr .* theta 0.500  blocks .* tokens/s", line) for line in lines)
    assert any(
        re.match(
            r"note: the unigram baseline \(token frequencies alone\) reaches \d\.\d{4}: this model has hardly learned from context yet; "
            rf"train longer, or ask for the model that learns most in the time: pld advise --data {prepared} --budget 1m$",
            line,
        )
        for line in lines
    )
    assert f"next: pld evaluate {tmp_path / 'run'} --data {prepared}" in lines
    assert any("read back with transformers, outputs differ by at most" in line for line in lines)
    assert outcome.err == ""


def test_equal_seeds_make_equal_bytes(pld, prepared, tmp_path, whole):
    assert (
        pld(*arguments(prepared, tmp_path / "again", "train.log_every_steps=5", "eval.every_steps=100", "train.micro_batch_size=4")).code
        == 0
    )
    assert weights(tmp_path / "again") == weights(whole)
    assert pld(*arguments(prepared, tmp_path / "other", "train.seed=1")).code == 0
    assert weights(tmp_path / "other") != weights(whole)


def test_sentence_pairs_and_post_norm(pld, prepared, tmp_path):
    more = ["objective.next_sentence=true", "data.layout=nsp-pairs", "model.norm=post", "train.total_steps=2"]
    assert pld(*arguments(prepared, tmp_path / "run", *more)).code == 0
    [row] = rows(tmp_path / "run")
    assert row["train/loss"] == pytest.approx(row["train/mlm_loss"] + row["train/nsp_loss"])
    card = (tmp_path / "run" / "README.md").read_text()
    assert "next-sentence head, which is left out" in card and "Post-LN (`bert`)" in card
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model").config.model_type == "bert"


# Stopping and going on


@pytest.mark.parametrize("more", [(), ("runtime.checkpoint_activations=true",)])
def test_a_stopped_run_goes_on_to_the_same_bits(pld, prepared, stopped, whole, more):
    before = rows(stopped)
    assert steps(stopped) == [5, 7] and not (stopped / "model").exists()
    outcome = pld(*arguments(prepared, stopped, *more))
    assert outcome.code == 0 and "resuming after step 7" in outcome.out
    assert weights(stopped) == weights(whole)
    mine, theirs = rows(stopped, "step"), rows(whole, "step")
    timeless = [[{k: v for k, v in row.items() if "seconds" not in k and "speed" not in k} for row in some] for some in (mine, theirs)]
    assert timeless[0] == timeless[1]
    for name in ("progress/train_seconds", "progress/wall_seconds"):
        values = [row[name] for row in mine]
        assert values == sorted(values) and values[: len(before)][-1] > 0
    assert rows(stopped)[: len(before)] == before
    assert len(json.loads((stopped / "environment.json").read_text())["starts"]) == 2


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "terminated"), (signal.SIGUSR1, 75, "terminated")],
)
def test_a_real_signal_saves_and_says_how_to_go_on(processes, pld, prepared, tmp_path, whole, number, code, word):
    out = tmp_path / "run"
    process = processes.python(SLOW.format(arguments=arguments(prepared, out, "checkpoint.every_steps=100")))
    wait_for(lambda: (out / "metrics.jsonl").is_file() and "train/loss" in (out / "metrics.jsonl").read_text())
    process.kill(number)
    assert process.wait() == code, process.err
    [step] = steps(out)
    assert f"error: {out}: {word}, saved at step {step}; run the same command again to resume\n" in process.err
    outcome = pld(*arguments(prepared, out))
    assert outcome.code == 0, outcome.err
    assert f"resuming after step {step}" in outcome.out
    assert weights(out) == weights(whole)


def test_a_run_stops_when_its_time_is_up(processes, pld, prepared, tmp_path, whole):
    out = tmp_path / "run"
    line = arguments(prepared, out, "checkpoint.every_steps=100")
    process = processes.python(SLOW.replace("0.07", "1.0").format(arguments=[*line, "--stop-after", "4s"]))
    assert process.wait() == 75, process.err
    assert f"error: {out}: time is up, " in process.err and "run the same command again to resume" in process.err
    assert len(steps(out)) <= 1  # none where this machine took all the time to begin
    assert pld(*line, "--stop-after", "10h").code == 0
    assert weights(out) == weights(whole)
    assert "--stop-after: '3' is not a time" in pld(*line, "--stop-after", "3").err


def test_a_file_system_that_does_not_answer_asks_for_nothing(pld, prepared, tmp_path, monkeypatch):
    stat = Path.stat

    def stale(self, **named):
        if self.name == "SAVE":
            raise OSError(errno.ESTALE, "Stale file handle", str(self))
        return stat(self, **named)

    monkeypatch.setattr(Path, "stat", stale)
    outcome = pld(*arguments(prepared, tmp_path / "run", "train.total_steps=2"))
    assert outcome.code == 0, outcome.err


def test_a_checkpoint_can_be_asked_for(processes, pld, prepared, tmp_path, whole):
    """By a file in the run directory, which goes once the checkpoint is there; the run goes on as it would have."""
    out = tmp_path / "run"
    eager = SLOW.replace("raise", "from pldcli.pretraining import recorder\nrecorder._LOOK_SECONDS = 0.0\nraise")
    process = processes.python(eager.format(arguments=arguments(prepared, out, "checkpoint.every_steps=100")))
    wait_for(lambda: (out / "metrics.jsonl").is_file() and "train/loss" in (out / "metrics.jsonl").read_text())
    (out / "SAVE").touch()
    wait_for(lambda: not (out / "SAVE").exists())
    step = steps(out)[0]
    verify(out / "checkpoints" / f"step-{step:08d}")
    process.kill(signal.SIGKILL)
    process.wait()
    assert f"saved at step {step}, as SAVE asked" in process.out
    outcome = pld(*arguments(prepared, out, "checkpoint.every_steps=100"))
    assert outcome.code == 0, outcome.err
    assert weights(out) == weights(whole)


@pytest.mark.parametrize("background", ["off", "on"])
def test_kill_9_at_any_moment(processes, pld, prepared, tmp_path, whole, background):
    out, draw = tmp_path / "run", random.Random(time.time_ns())
    line = arguments(prepared, out, "checkpoint.every_steps=1", "eval.every_steps=100", f"checkpoint.background={background}")
    killed = 0
    for attempt in range(5):
        process = processes.pld(*line)
        if attempt in (0, 1):  # while it sets up
            wait_for(lambda: out.exists())
        else:  # while it saves
            newest = max(steps(out), default=0)
            wait_for(lambda newest=newest: max(steps(out), default=0) > newest or (out / "README.md").exists())
        delay = draw.random() * 0.1
        time.sleep(delay)
        process.kill(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        for path in list_checkpoints(out / "checkpoints")[-1:]:
            verify(path)
    assert killed >= 2
    outcome = pld(*line)
    assert outcome.code == 0, outcome.err
    assert weights(out) == weights(whole)
    assert [row["step"] for row in rows(out)] == [2, 4, 6, 8, 10, 12]
    assert steps(out) == [11, 12] and len(list((out / "checkpoints").iterdir())) == 2, "nothing half-written stays"


def test_a_process_killed_before_the_first_line_was_written(pld, prepared, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").touch()
    (out / ".config.yaml.tmp-1234").write_text("model:")
    assert pld(*arguments(prepared, out, "train.total_steps=1")).code == 0


@pytest.mark.parametrize("step", [6, 12])
def test_a_signal_breaks_off_a_validation_that_is_made_again(pld, prepared, tmp_path, whole, monkeypatch, step):
    line, batches, read = arguments(prepared, tmp_path / "run"), recorder.fixed_batches, []

    def interrupted(*arguments, **named):
        is_scored = (tmp_path / "run" / "metrics.jsonl").read_text().count('"train/loss"') == step // 2 and read != []
        read.append(0)
        if not is_scored:
            yield from batches(*arguments, **named)
            return
        several = list(batches(*arguments, **named, batch_size=4))
        assert len(several) > 1
        for batch in several:
            read[-1] += 1
            signal.raise_signal(signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(recorder, "fixed_batches", interrupted)
        outcome = pld(*line)
    assert outcome.code == 75 and f"saved at step {step}" in outcome.err
    assert read[-1] == 1, "the rest of the batches was left out"
    assert step in steps(tmp_path / "run") and [row["step"] for row in rows(tmp_path / "run", "eval/mlm_loss")] == [6][: step // 12]
    assert pld(*line).code == 0
    assert weights(tmp_path / "run") == weights(whole)
    for name in ("train/loss", "eval/mlm_loss"):
        assert [(row["step"], row[name]) for row in rows(tmp_path / "run", name)] == [(row["step"], row[name]) for row in rows(whole, name)]


def test_a_signal_before_the_first_step(pld, prepared, tmp_path, monkeypatch):
    stop_in_step(monkeypatch, 0, signal.SIGINT)
    outcome = pld(*arguments(prepared, tmp_path / "run"))
    assert outcome.code == 130 and "interrupted, nothing to save yet" in outcome.err
    monkeypatch.undo()
    assert pld(*arguments(prepared, tmp_path / "run", "train.total_steps=1")).code == 0, "there is no checkpoint to be true to"


def test_stopped_again_before_a_step_was_done(pld, prepared, stopped, monkeypatch):
    stop_in_step(monkeypatch, 7)
    outcome = pld(*arguments(prepared, stopped))
    assert outcome.code == 75 and "saved at step 7" in outcome.err
    assert steps(stopped) == [5, 7]


def test_loss_scaling_goes_on(pld, prepared, tmp_path, monkeypatch):
    more = ["runtime.precision=fp16", "train.total_steps=6", "model.num_hidden_layers=2"]
    assert pld(*arguments(prepared, tmp_path / "whole", *more)).code == 0
    with monkeypatch.context() as patch:
        stop_in_step(patch, 3)
        assert pld(*arguments(prepared, tmp_path / "run", *more)).code == 75
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000003" / "state.json").read_text())
    assert state["scaler"]["_growth_tracker"] == 3
    assert pld(*arguments(prepared, tmp_path / "run", *more)).code == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert json.loads((list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "state.json").read_text())["scaler"]["_growth_tracker"] == 6


def test_a_finished_run_says_so(pld, prepared, copy, whole):
    (copy / "plots" / "loss.png").unlink()
    before = everything_below(copy), (copy / "metrics.jsonl").read_bytes(), (copy / "environment.json").read_bytes()
    outcome = pld(*arguments(prepared, copy))
    assert outcome.code == 0
    assert outcome.out == f"{copy} is finished: 12 steps, model in {copy / 'model'}; next: pld evaluate {copy} --data {prepared}\n"
    assert before == (everything_below(copy), (copy / "metrics.jsonl").read_bytes(), (copy / "environment.json").read_bytes())


def test_a_finished_run_says_so_where_nothing_can_be_written(pld, prepared, copy, whole, monkeypatch):
    def locked(*arguments):
        raise OutputError("cannot be written (read-only file system)")

    monkeypatch.setattr(locks, "locked", locked)
    outcome = pld(*arguments(prepared, copy))
    assert outcome.code == 0 and "is finished: 12 steps" in outcome.out
    assert pld(*arguments(prepared, copy), "--resume", "never").code == 7


@pytest.mark.parametrize("lost", ["model", "README.md"])
def test_a_run_killed_at_its_very_end_is_finished(pld, prepared, copy, whole, lost):
    (shutil.rmtree if (copy / lost).is_dir() else Path.unlink)(copy / lost)
    assert pld(*arguments(prepared, copy)).code == 0
    assert weights(copy) == weights(whole)
    assert (copy / "README.md").read_text() == (whole / "README.md").read_text().replace(str(whole / "model"), str(copy / "model"))
    assert rows(copy, "step") == rows(whole, "step")


def test_another_configuration_is_refused(pld, prepared, stopped):
    before = (stopped / "config.yaml").read_text(), rows(stopped, "step")
    outcome = pld(*arguments(prepared, stopped, "train.total_steps=24"))
    assert outcome.code == 4 and "train.total_steps 12 -> 24" in outcome.err and outcome.err.count("\n") == 1
    assert before == ((stopped / "config.yaml").read_text(), rows(stopped, "step"))
    control = ["train.log_every_steps=3", "checkpoint.keep=1", "eval.every_steps=100", "train.micro_batch_size=2"]
    assert pld(*arguments(prepared, stopped, *control)).code == 0
    assert steps(stopped) == [12]
    assert [row["step"] for row in rows(stopped)] == [2, 4, 6, 9, 12]


def test_other_data_is_refused(pld, prepared, stopped, tmp_path):
    (tmp_path / "other.txt").write_text("\n".join(f"a line of text with number {n}" for n in range(3000)))
    prepare(
        [tmp_path / "other.txt"], tmp_path / "other", document_per="line", tokenizer=prepared / "tokenizer.json", processes=1, quiet=True
    )
    outcome = pld(*arguments(tmp_path / "other", stopped))
    assert outcome.code == 4 and "other prepared data" in outcome.err


def test_never_starts_over_beside_the_old_run(pld, prepared, stopped, monkeypatch):
    before = everything_below(stopped)
    outcome = pld(*arguments(prepared, stopped, "--resume", "never", "train.total_steps=1"))
    assert outcome.code == 0 and f"the run that was there is now {stopped}.1" in outcome.out
    assert everything_below(stopped.with_name("stopped.1")) == before
    assert [row["step"] for row in rows(stopped)] == [1]
    stop_in_step(monkeypatch, 1)
    outcome = pld(*arguments(prepared, stopped, "--resume", "never"))
    assert outcome.code == 75 and "run the same command with --resume auto to resume" in outcome.err
    assert stopped.with_name("stopped.2").is_dir()


def test_a_named_checkpoint(pld, prepared, stopped, tmp_path, whole, monkeypatch):
    older = stopped / "checkpoints" / "step-00000005"
    with monkeypatch.context() as patch:
        stop_in_step(patch, 5)
        assert pld(*arguments(prepared, stopped, "--resume", older)).code == 75
    assert steps(stopped) == [5], "nothing was saved since, and the run is where it was set back to"
    with monkeypatch.context() as patch:
        stop_in_step(patch, 6)
        outcome = pld(*arguments(prepared, stopped, "--resume", older))
    assert outcome.code == 75 and "resuming after step 5" in outcome.out and "saved at step 6" in outcome.err
    assert steps(stopped) == [5, 6], "the later one belongs to steps that will be done again"
    outcome = pld(*arguments(prepared, tmp_path / "new", "--resume", stopped))
    assert outcome.code == 0 and "resuming after step 6" in outcome.out
    assert weights(tmp_path / "new") == weights(whole)


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_no_such_checkpoint(pld, prepared, tmp_path, place):
    (tmp_path / "empty").mkdir()
    outcome = pld(*arguments(prepared, tmp_path / "run", "--resume", tmp_path / place))
    assert outcome.code == 4 and str(tmp_path / place) in outcome.err and outcome.err.count("\n") == 1


def test_a_damaged_checkpoint(pld, prepared, stopped, whole):
    newest = stopped / "checkpoints" / "step-00000007" / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    outcome = pld(*arguments(prepared, stopped))
    assert outcome.code == 0
    assert "warning: " in outcome.out and "step-00000007/optimizer.safetensors: is damaged: " in outcome.out
    assert "resuming after step 5" in outcome.out
    assert weights(stopped) == weights(whole)
    assert [row["step"] for row in rows(stopped)] == [2, 4, 6, 8, 10, 12]


def test_only_damaged_checkpoints(pld, prepared, stopped):
    for path in list_checkpoints(stopped / "checkpoints"):
        (path / "state.json").write_text("{}")
    outcome = pld(*arguments(prepared, stopped))
    assert outcome.code == 4 and "no checkpoint verifies; start over with --resume never" in outcome.err


# Places that cannot be used


@pytest.mark.parametrize("more", [(), ("--resume", "never")])
def test_two_trainers_in_one_place(pld, prepared, copy, more):
    with RunDirectory(copy).lock():
        outcome = pld(*arguments(prepared, copy, *more))
    assert outcome.code == 7 and "another process is training here" in outcome.err
    assert copy.is_dir() and not copy.with_name("whole.1").exists()


def test_places_that_hold_something_else(pld, prepared, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for place, what in (("file", "is a file"), ("full", "is not a run directory"), ("file/below", "cannot be written")):
        outcome = pld(*arguments(prepared, tmp_path / place))
        assert outcome.code == 7 and what in outcome.err and outcome.err.count("\n") == 1, outcome
    assert everything_below(tmp_path) == [Path("file"), Path("full"), Path("full/thesis.tex")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.global_batch_size=9"], "train.global_batch_size: 9 sequences do not divide"),
        (["train.micro_batch_size=3"], "3 does not divide the 4 sequences of a gate group on one process; try train.micro_batch_size=2"),
        (["data.seq_len=513"], "data.seq_len: 513 tokens do not fit model.max_position_embeddings 512"),
        (["model.vocab_size=100"], "model.vocab_size: 100 rows cannot hold the 512 entries"),
        (["pld.theta_bar=0"], "pld.theta_bar: must be greater than 0, not 0"),
        (["train.total_step=3"], "train.total_steps"),
    ],
)
@pytest.mark.parametrize("how", [(), ("--dry-run",)])
def test_what_does_not_fit(pld, prepared, tmp_path, changes, message, how):
    outcome = pld(*arguments(prepared, tmp_path / "run", *changes, *how))
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_damaged_data(pld, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    [shard] = (tmp_path / "data").glob("train-*.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    for data in (tmp_path / "data", tmp_path / "missing"):
        outcome = pld(*arguments(data, tmp_path / "run"))
        assert outcome.code == 3 and str(data) in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_divergence_saves_nothing_ruined(pld, prepared, tmp_path):
    out = tmp_path / "run"
    outcome = pld(*arguments(prepared, out, "optim.learning_rate=1e37", "optim.max_grad_norm=0", "checkpoint.every_steps=1"))
    assert outcome.code == 6 and re.fullmatch(r"error: steps? \d+.*: training diverged: .*\n", outcome.err)
    for path in list_checkpoints(out / "checkpoints"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path / "model.safetensors").values())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()]
)
def test_out_of_memory_names_what_to_try(pld, prepared, tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "forward_backward", full)
        outcome = pld(*arguments(prepared, tmp_path / "run"))
        assert outcome.code == 5
        assert outcome.err == "error: cpu: out of memory with 4 sequences per forward pass; try train.micro_batch_size=2\n"
        outcome = pld(*arguments(prepared, tmp_path / "run", "train.global_batch_size=10"))
        assert "out of memory with 5 sequences per forward pass; try train.micro_batch_size=1\n" in outcome.err, "what divides 5"
        outcome = pld(*arguments(prepared, tmp_path / "run", "train.micro_batch_size=1"))
        assert "choose a smaller model or shorter sequences" in outcome.err
    assert pld(*arguments(prepared, tmp_path / "run", "train.micro_batch_size=2", "train.total_steps=1")).code == 0, (
        "the advice can be followed"
    )


def test_other_errors_are_not_taken_for_memory(pld, prepared, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes")

    monkeypatch.setattr(Trainer, "forward_backward", broken)
    outcome = pld(*arguments(prepared, tmp_path / "run"))
    assert outcome.code == 1 and "shapes" in outcome.err


# Looking before leaping


def test_a_dry_run_writes_nothing(pld, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = pld(*arguments(prepared, tmp_path / "run", "--dry-run"))
    assert outcome.code == 0 and everything_below(tmp_path) == []
    for text in (
        "total_steps: 12", "parameters", "FLOPs per token, dense", "FLOPs per token, scheduled", "3,072 in 96 sequences",
        "epochs", "2 gate group(s) x 1 forward(s) x 4 sequences", "memory", "disk", "on this machine, from measured steps",
    ):  # fmt: skip
        assert text in outcome.out, text
    assert "warning" not in outcome.out


def test_a_dry_run_of_several_processes_says_what_each_does(pld, prepared, tmp_path):
    outcome = pld(*arguments(prepared, tmp_path / "run", "train.global_batch_size=32", "--dry-run", "--gpus", "4"))
    for text in ("4 process(es)", "2 gate group(s) x 1 forward(s) x 4 sequences per process", "from measured steps of one process, alone"):
        assert text in outcome.out, text
    outcome = pld(*arguments(prepared, tmp_path / "run", "--dry-run", "--gpus", "3"))
    assert outcome.code == 2 and "8 sequences do not divide over 2 gate groups x 3 processes" in outcome.err


@pytest.mark.parametrize("how", [("--dry-run",), ()])
def test_warnings(pld, prepared, tmp_path, monkeypatch, how):
    monkeypatch.setattr(estimate, "measure_step_seconds", lambda *_: 30.0)
    stop_in_step(monkeypatch, 0)
    outcome = pld(*arguments(prepared, tmp_path / "run", "train.total_steps=40000", *how))
    assert outcome.code == (0 if how else 75)
    assert re.search(r"warning: this run would take about 13\.9 days here", outcome.out)
    passes = float(re.search(r"warning: this run passes over the text ([\d,]+) times", outcome.out)[1].replace(",", ""))
    tokens = json.loads((prepared / "manifest.json").read_text())["counts"]["train"]["tokens"]
    assert passes == pytest.approx(40000 * 8 * 30 / tokens, rel=0.02)


@pytest.mark.parametrize("when", ["record", "_save", "finish"])
def test_a_directory_that_is_moved_away_is_not_begun_a_second_time(pld, prepared, tmp_path, monkeypatch, when):
    out, elsewhere, real = tmp_path / "run", tmp_path / "elsewhere", getattr(RunRecorder, when)

    def moved(self, *given):
        if out.exists():
            out.rename(elsewhere)
        return real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, when, moved)
        outcome = pld(*arguments(prepared, out))
    assert outcome.code == 7 and "is gone: it was moved or removed" in outcome.err and not out.exists()
    elsewhere.rename(out)
    assert pld(*arguments(prepared, out)).code == 0

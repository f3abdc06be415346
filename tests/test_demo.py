from __future__ import annotations

import io
import json
import signal
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pldcli import demo as engine
from pldcli import presets
from pldcli.data.prepared import open_prepared
from pldcli.demo import demo
from pldcli.errors import OutputError, StoppedError
from pldcli.pretraining.pretrain import pretrain
from pldcli.pretraining.twins import shortened, train_in_turn
from pldcli.runs.metrics import read_metrics
from pldcli.system import atomic
from tests.conftest import Processes, wait_for


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demonstration of seconds."""
    monkeypatch.setattr(engine, "_CHANGES", (*engine._CHANGES, "model.hidden_size=32", "model.intermediate_size=64", "eval.every_steps=10"))
    monkeypatch.setattr(engine, "_CORPUS_BYTES", 300_000)


def test_both_runs_see_equal_tokens_and_only_one_drops(small: None, tmp_path: Path) -> None:
    shown = io.StringIO()
    done = demo(tmp_path / "demo", steps=30, console=Console(file=shown, width=200))
    dense, dropped = done.runs
    assert dense.position.step == dropped.position.step == 30
    assert dense.position.tokens == dropped.position.tokens == 30 * 16 * 32
    assert dense.kept_fraction == pytest.approx(1.0)
    assert dense.predicted_saving == 0.0
    assert 0.6 < dropped.kept_fraction < 0.95
    assert dropped.position.executed_flops < 0.95 * dense.position.executed_flops
    assert dense.score.loss != dropped.score.loss
    assert done.blind == [dense.name, dropped.name]  # after 30 steps nothing is learned, and that is said
    for system in ("preln", "pld"):
        rows = read_metrics(tmp_path / "demo" / "runs" / system / "metrics.jsonl")
        assert rows[-1]["step"] == 30
        assert (tmp_path / "demo" / "runs" / system / "model" / "model.safetensors").is_file()
        [start] = json.loads((tmp_path / "demo" / "runs" / system / "environment.json").read_text())["starts"]
        assert f"--preset modern-tiny-{system} " in start["command"]
        assert "train.total_steps=30 " in start["command"]
    for name in ("loss_by_tokens.png", "loss_by_train_seconds.png"):
        assert (tmp_path / "demo" / name).read_bytes().startswith(b"\x89PNG")
    held_out = " ".join((tmp_path / "demo" / "held-out.txt").read_text(encoding="utf-8").casefold().split())
    assert len(done.masks) == 3
    for mask in done.masks:
        assert mask.text.count("[MASK]") == 1
        assert mask.text.replace("[MASK]", mask.word) in held_out
        assert [len(guesses) for guesses in mask.guesses] == [3, 3]


def test_a_run_of_the_demonstration_is_what_its_command_trains_alone(small: None, tmp_path: Path) -> None:
    demo(tmp_path / "demo", steps=12, console=Console(quiet=True))
    data = tmp_path / "demo" / "data"
    card = (tmp_path / "demo" / "runs" / "pld" / "README.md").read_text(encoding="utf-8")
    [words] = [line.split() for line in card.splitlines() if "pld pretrain" in line]
    changes = [word for word in words if "=" in word and not word.startswith("OMP")]
    vocabulary = {"model.vocab_size": open_prepared(data).vocab_size}
    config = presets.resolve(words[words.index("--preset") + 1], changes, from_data=vocabulary).config
    pretrain(config, prepared=open_prepared(data), out=tmp_path / "alone", console=Console(quiet=True))
    weights = [(place / "model" / "model.safetensors").read_bytes() for place in (tmp_path / "alone", tmp_path / "demo" / "runs" / "pld")]
    assert weights[0] == weights[1]


def test_the_clock_shortens_runs_to_ones_that_could_have_been_planned(
    small: None, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_CHANGES", (*engine._CHANGES, "eval.every_steps=6000"))  # at the end only
    data = open_prepared(prepared)
    configs = {system: engine._config(system, 6000, data.vocab_size) for system in ("preln", "pld")}
    began = time.monotonic()
    trained = train_in_turn(
        configs,
        prepared=data,
        directory=tmp_path / "runs",
        until=began + 4.0,
        command=lambda name, config: f"{name} {config.train.total_steps}",
        console=Console(quiet=True),
    )
    took = time.monotonic() - began
    lengths = {config.train.total_steps for config, _ in trained.values()}
    assert len(lengths) == 1
    [steps] = lengths
    assert 20 < steps < 6000
    assert took < 30.0
    dense, dropped = (result.position for _, result in trained.values())
    assert dropped.wall_seconds - dropped.train_seconds < dense.train_seconds  # a run does not count the other's turns
    for name, (config, result) in trained.items():
        assert result.position.step == steps
        assert config == shortened(configs[name], steps)
        assert presets.load(tmp_path / "runs" / name / "config.yaml") == config
        rates = [row["optim/learning_rate"] for row in read_metrics(result.run.metrics) if "optim/learning_rate" in row]
        assert rates[-1] == pytest.approx(config.optim.learning_rate / round(0.25 * steps))  # of the last update: one part of the decay
        [start] = json.loads(result.run.environment.read_text())["starts"]
        assert start["command"] == f"{name} {steps}"
    config, result = trained["pld"]
    pretrain(config, prepared=data, out=tmp_path / "planned", console=Console(quiet=True))
    assert (tmp_path / "planned" / "model" / "model.safetensors").read_bytes() == (result.run.model / "model.safetensors").read_bytes()


def test_ctrl_c_saves_both_runs_and_says_how_to_go_on(processes: Processes, tmp_path: Path) -> None:
    process = processes.python(
        "from pldcli import cli\n"
        "from pldcli import demo\n"
        "demo._CORPUS_BYTES = 300_000\n"
        f"print('exit code', cli.run(['demo', '--out', {str(tmp_path / 'demo')!r}, '--steps', '100000']))"
    )
    runs = tmp_path / "demo" / "runs"
    logs = [runs / system / "metrics.jsonl" for system in ("preln", "pld")]
    wait_for(lambda: all(log.is_file() and log.stat().st_size for log in logs))
    process.kill(signal.SIGINT)
    assert process.wait() == 0
    assert "exit code 130" in process.out
    assert f"pld pretrain --preset {runs / 'preln' / 'config.yaml'}" in process.err.splitlines()[-1]
    saved = [sorted(path.name for path in (runs / system / "checkpoints").iterdir()) for system in ("preln", "pld")]
    steps = [int(names[-1].removeprefix("step-")) for names in saved]
    assert abs(steps[0] - steps[1]) <= 1 and f"saved at step {steps[0]:,}; " in process.err


def test_a_stop_while_text_is_prepared_leaves_nothing(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: object, **named: object) -> None:
        raise StoppedError("stopped; nothing is left behind")

    monkeypatch.setattr(engine, "prepare", stopped)
    with pytest.raises(StoppedError):
        demo(tmp_path / "demo", console=Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_in_the_way_of_the_same_command(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = atomic.write_text

    def full(path: Path, content: str) -> None:
        if path.name == "held-out.txt":
            raise OutputError("the disk is full", where=str(path))
        write(path, content)

    monkeypatch.setattr(atomic, "write_text", full)
    with pytest.raises(OutputError, match="the disk is full"):
        demo(tmp_path / "demo", console=Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_does_not_write_over_anything(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="already there"):
        demo(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_threads_is_given_back(small: None, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        demo(tmp_path / "demo", steps=2, console=Console(quiet=True))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

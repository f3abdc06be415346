import sys
import time
from pathlib import Path

import pytest

from pldcli.config import flatten
from pldcli.errors import DataError
from pldcli.pretraining import pretrain as engine
from tests.pretraining.test_pretrain_init import save_source


@pytest.fixture
def calls(monkeypatch, prepared, tmp_path):
    """What reaches the engine."""
    found = []

    def record(name):
        def call(*args, **kwargs):
            found.append((name, args, kwargs | {"prepared": kwargs["prepared"].path}))
            raise DataError("seen")

        return call

    for name in ("pretrain", "dry_run"):
        monkeypatch.setattr(engine, name, record(name))
    monkeypatch.chdir(tmp_path)
    for data in ("data", "elsewhere"):
        Path(data).symlink_to(prepared)
    return found


def test_defaults(pld, calls, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pld", "pretrain"])
    assert pld("pretrain").code == 3
    [(name, (config,), given)] = calls
    assert name == "pretrain"
    expected = {"prepared": Path("data"), "out": Path("runs/bert-base-pld"), "resume": "auto", "command": "pld pretrain"}
    assert given == expected | {"source": None, "stop_at": None}
    flat = flatten(config)
    assert (flat["model.num_hidden_layers"], flat["model.vocab_size"], flat["pld.theta_bar"], flat["runtime.device"]) == (
        12,
        512,
        0.5,
        "auto",
    )


def test_every_option(pld, calls, monkeypatch):
    line = [
        "pretrain",
        "--preset",
        "bert-tiny-preln",
        "train.total_steps=9",
        "--data",
        "elsewhere",
        "--out",
        "my place",
        "--resume",
        "never",
    ]
    line += ["--device", "cpu", "--stop-after", "2m", "optim.learning_rate=1e-4"]
    monkeypatch.setattr(sys, "argv", ["pld", *line])
    pld(*line)
    [(_, (config,), given)] = calls
    assert 110 < given.pop("stop_at") - time.monotonic() <= 120
    assert given == {
        "prepared": Path("elsewhere"), "out": Path("my place"), "resume": "never", "source": None,
        "command": "pld pretrain --preset bert-tiny-preln train.total_steps=9 --data elsewhere --out 'my place' --resume never "
        "--device cpu --stop-after 2m optim.learning_rate=1e-4",
    }  # fmt: skip
    flat = flatten(config)
    found = [
        flat[key] for key in ("train.total_steps", "optim.learning_rate", "runtime.device", "model.num_hidden_layers", "pld.theta_bar")
    ]
    assert found == [9, 1e-4, "cpu", 8, 1.0]


def test_what_is_short_for_a_setting(pld, calls):
    pld("pretrain", "--on-divergence", "rollback", "--device", "cpu")
    [(_, (config,), _)] = calls
    assert (config.train.on_divergence, config.runtime.device) == ("rollback", "cpu")


def test_dry_run(pld, calls):
    pld("pretrain", "--dry-run", "model.vocab_size=1000", "--data", "elsewhere")
    [(name, (config,), given)] = calls
    assert (name, given) == ("dry_run", {"prepared": Path("elsewhere"), "source": None, "processes": 1})
    assert config.model.vocab_size == 1000, "what is typed counts"


def test_a_dry_run_of_several_processes_starts_none(pld, calls):
    pld("pretrain", "--dry-run", "--gpus", "8")
    [(name, _, given)] = calls
    assert (name, given["processes"]) == ("dry_run", 8)


def test_a_preset_file_names_the_run(pld, calls):
    Path("mine.yaml").write_text("extends: bert-tiny-pld\n")
    pld("pretrain", "--preset", "mine.yaml")
    assert calls[0][2]["out"] == Path("runs/mine")


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (["--preset", "bert-huge"], 2, "bert-huge"),
        (["train.totl_steps=3"], 2, "train.total_steps"),
        (["--device", "tpu"], 2, "runtime.device"),
        (["--on-divergence", "ignore"], 2, "train.on_divergence"),
        (["--data", "nowhere"], 3, "nowhere"),
        (["--allow-bin"], 2, "--allow-bin does nothing without --init-from; leave it out"),
        (["--resme", "auto"], 2, "--resme"),
        (["train.total_steps"], 2, "train.total_steps"),
    ],
)
def test_mistakes_never_reach_the_engine(pld, calls, line, code, message):
    outcome = pld("pretrain", *line)
    assert outcome.code == code and message in outcome.err and outcome.err.count("\n") == 1
    assert not calls


def test_the_card_of_several_processes_names_torchrun(pld, calls, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/pldcli/__main__.py", "pretrain", "--data", "my data"])
    pld("pretrain")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    pld("pretrain")
    for name, value in {"LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    pld("pretrain")
    assert [given["command"] for _, _, given in calls] == [
        "pld pretrain --data 'my data'",
        "torchrun --nproc-per-node 2 -m pldcli pretrain --data 'my data'",
        "torchrun --nnodes 2 --nproc-per-node 1 -m pldcli pretrain --data 'my data'",
    ]


def test_the_model_to_begin_with_is_read_once_and_handed_on(pld, calls, prepared, tmp_path, monkeypatch):
    from pldcli.runs import model_source

    source, opened = save_source(tmp_path / "source", prepared, "pre"), []
    monkeypatch.setattr(model_source, "open_model", lambda *a, inner=model_source.open_model, **n: opened.append(a) or inner(*a, **n))
    pld("pretrain", "--init-from", source, "data.seq_len=24")
    [(_, (config,), given)] = calls
    assert len(opened) == 1 and given["source"].where == str(source)
    assert config.model.hidden_size == given["source"].settings.hidden_size == 16

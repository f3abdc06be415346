import json
from pathlib import Path

import pytest

from pldcli.engine import evaluate as engine
from pldcli.engine.evaluate import Evaluated
from pldcli.engine.evaluation import MaskedLmScore


@pytest.fixture
def calls(monkeypatch):
    found = []

    def record(*args, **kwargs):
        found.append((args, kwargs))
        return Evaluated(Path("runs/r/model"), Path("data"), "fp32", 128, MaskedLmScore(2.0, 0.25, 1234, 5000, 2.0))

    monkeypatch.setattr(engine, "evaluate", record)
    monkeypatch.setattr(engine, "latest_run", lambda: Path("runs/latest"))
    return found


def test_the_arguments_that_reach_the_engine(pld, calls):
    pld("evaluate", "some/run", "--data", "d", "--precision", "bf16", "--device", "cuda")
    outcome = pld("evaluate")
    assert calls == [
        ((Path("some/run"),), {"data": Path("d"), "precision": "bf16", "device": "cuda"}),
        ((Path("runs/latest"),), {"data": None, "precision": "fp32", "device": "auto"}),
    ]
    assert outcome.err == "evaluating runs/latest\n"


def test_json(pld, calls):
    outcome = pld("evaluate", "--json")
    expected = {
        "mlm_loss": 2.0,
        "perplexity": pytest.approx(7.389056),
        "mlm_accuracy": 0.25,
        "num_targets": 1234,
        "tokens_per_second": 2500.0,
    }
    assert json.loads(outcome.out) == expected, "nothing else on stdout"


def test_text(pld, calls):
    lines = pld("evaluate", "r").out.splitlines()
    assert lines[0] == "runs/r/model on data, validation split, 128 tokens per row, fp32"
    assert [line.split() for line in lines[1:]] == [
        ["masked-LM", "loss", "2.0000"], ["perplexity", "7.39"], ["accuracy", "0.2500"], ["targets", "1,234"], ["tokens/s", "2,500"],
    ]  # fmt: skip


def test_mistakes(pld, calls):
    assert pld("evaluate", "--precision", "fp8").code == 2
    assert pld("evaluate", "a", "b").code == 2
    assert not calls

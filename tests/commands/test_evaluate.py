import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pldcli.engine.validation import LmScore
from pldcli.evaluation import evaluate as engine
from pldcli.evaluation import tables
from pldcli.evaluation import task as task_engine
from pldcli.evaluation.depth import DepthReport, DepthScore
from pldcli.evaluation.evaluate import Evaluated
from pldcli.evaluation.fill_mask import Candidate
from pldcli.evaluation.zero_shot import GroupScore, MinimalPairs, PairScore, PseudoPerplexity, TextScore
from pldcli.runs import model_source
from pldcli.system.seal import paths_sha256

MATERIALS = {
    "validation": LmScore(2.0, 0.25, 1234, 5000, 2.0),
    "text": LmScore(2.0, 0.25, 1234, 5000, 2.0),
    "pseudo-perplexity": PseudoPerplexity((TextScore(3, -6.0), TextScore(1, -2.0))),
    "minimal-pairs": MinimalPairs(
        (PairScore(-1.0, -2.0), PairScore(-2.0, -2.0)), {"UID": {"[a]": GroupScore(0.5, 2)}}, {"pairs.jsonl": GroupScore(0.5, 2)}
    ),
}
FILLED = [[Candidate(7, "[UNK]", 0.75, "the [UNK] is")]]
DEPTHS = DepthReport(
    (DepthScore((True, False, True), {"mlm_loss": 2.5}, 150.0, 1.5), DepthScore((True,) * 3, {"mlm_loss": 2.0}, 100.0, 1.0)), 3, "why"
)


@pytest.fixture
def calls(monkeypatch):
    found = []

    def recorder(name, score):
        def record(*args, **kwargs):
            found.append((name, args, kwargs))
            what = "data, validation split" if (name, kwargs.get("material")) == ("evaluate", "validation") else "that"
            return Evaluated(Path("runs/r/model"), what, "fp32", 128, score(kwargs.get("material")))

        return record

    for name, score in (("evaluate", MATERIALS.get), ("fill_mask", lambda _: FILLED), ("evaluate_depths", lambda _: DEPTHS)):
        monkeypatch.setattr(engine, name, recorder(name, score))
    monkeypatch.setattr(model_source, "latest_run", lambda: Path("runs/latest"))
    return found


VALIDATION = {"material": "validation", "inputs": [], "text_field": "text"}
OPENING = {"data": None, "precision": "fp32", "device": "auto", "allow_bin": False}


def test_the_arguments_that_reach_the_engine(pld, calls):
    pld("evaluate", "some/run", "--data", "d", "--precision", "bf16", "--device", "cuda", "--allow-bin")
    outcome = pld("evaluate")
    assert calls == [
        ("evaluate", (Path("some/run"),), {**VALIDATION, "data": Path("d"), "precision": "bf16", "device": "cuda", "allow_bin": True}),
        ("evaluate", (Path("runs/latest"),), VALIDATION | OPENING),
    ]
    assert outcome.err == "evaluating runs/latest\n"


def test_what_is_measured(pld, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in (
        ["--text", "a", "--text", "b", "--text-field", "body"],
        ["--pseudo-perplexity", "a"],
        ["--minimal-pairs", "a"],
        ["--fill", "the [MASK] is", "--top", "3"],
        ["--depth", "2,3"],
        ["--depth", "2,3", "--blocks", "even", "--minimal-pairs", "a", "--out", "x.svg"],
    ):
        assert pld("evaluate", "r", *line).code == 0
    r, a, named = Path("r"), [Path("a")], {"text_field": "text", **OPENING}
    assert calls == [
        ("evaluate", (r,), {"material": "text", "inputs": [Path("a"), Path("b")], **named, "text_field": "body"}),
        ("evaluate", (r,), {"material": "pseudo-perplexity", "inputs": a, **named}),
        ("evaluate", (r,), {"material": "minimal-pairs", "inputs": a, **named}),
        ("fill_mask", (r, "the [MASK] is"), {"top": 3, **OPENING}),
        ("evaluate_depths", (r, "2,3", "keep-prob"), {"material": "validation", "inputs": [], **named}),
        ("evaluate_depths", (r, "2,3", "even"), {"material": "minimal-pairs", "inputs": a, **named}),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["depth.png", "x.svg"]


def test_json_of_everything(pld, calls, tmp_path):
    def values(*line):
        return json.loads(pld("evaluate", "r", *line, "--json").out)

    assert values("--text", "a") == values()
    whole = {"pseudo_perplexity": pytest.approx(7.389056), "pseudo_log_likelihood": -8.0, "num_tokens": 4, "num_texts": 2}
    assert values("--pseudo-perplexity", "a") == whole
    texts = [{"num_tokens": 3, "pseudo_log_likelihood": -6.0}, {"num_tokens": 1, "pseudo_log_likelihood": -2.0}]
    assert values("--pseudo-perplexity", "a", "--each") == whole | {"texts": texts}
    pairs = values("--minimal-pairs", "a", "--each")
    assert pairs.pop("pairs") == [{"good": -1.0, "bad": -2.0, "right": True}, {"good": -2.0, "bad": -2.0, "right": False}]
    half = {"accuracy": 0.5, "num_pairs": 2}
    assert pairs.pop("files") == {"pairs.jsonl": half}
    assert pairs == {**half, "mean_accuracy": 0.5, "num_ties": 1, "groups": {"UID": {"[a]": {"accuracy": 0.5, "num_pairs": 2}}}}
    saved = tmp_path / "deep" / "pairs.json"
    assert pld("evaluate", "r", "--minimal-pairs", "a", "--save", saved).code == 0
    prints = {"data": paths_sha256([Path("a")])}
    assert json.loads(saved.read_text()) == {"model": "r", "inputs": ["a"], "fingerprints": prints} | values("--minimal-pairs", "a")
    assert pld("evaluate", "r", "--save", saved).code == 0
    assert json.loads(saved.read_text())["fingerprints"] == {}, "of nothing there is none"
    candidate = {"token_id": 7, "token": "[UNK]", "probability": 0.75, "text": "the [UNK] is"}
    assert values("--fill", "the [MASK] is") == {"text": "the [MASK] is", "masks": [[candidate]]}
    picture = tmp_path / "d.png"
    depths = values("--depth", "2,3", "--out", picture)
    assert depths["depths"][0] == {"blocks": 2, "kept": [1, 3], "mlm_loss": 2.5, "tokens_per_second": 150.0, "relative_speed": 1.5}
    assert (depths["num_blocks"], depths["chosen"], depths["picture"], len(depths["depths"])) == (3, "why", str(picture), 2)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_one_of_several_processes_says_what_came_out(pld, calls, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    lines = [
        ["--save", "score.json"],
        ["--json"],
        ["--depth", "2,3"],
        ["--fill", "the [MASK]"],
        ["--minimal-pairs", "a", "--save", "p.json"],
    ]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for line in lines:
        outcome = pld("evaluate", *line)
        assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert len(calls) == len(lines) and not list(tmp_path.iterdir())
    monkeypatch.setenv("RANK", "0")
    assert all(pld("evaluate", *line).out for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["depth.png", "p.json", "score.json"]


def test_one_of_several_processes_writes_the_predictions(pld, monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(task_engine, "evaluate_task", lambda *_, **named: SimpleNamespace(notes=()))
    monkeypatch.setattr(task_engine, "write_predictions", lambda found, path: written.append(path))
    monkeypatch.setattr(tables, "show_task", lambda found: None)
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert pld("evaluate", "r", "--task", "t", "--predictions", tmp_path / rank).code == 0
    assert written == [tmp_path / "0"]


@pytest.mark.parametrize("option", ["--predictions", "--save"])
def test_a_directory_in_place_of_a_file_is_told_before_anything_is_measured(pld, calls, tmp_path, option):
    outcome = pld("evaluate", "r", "--task", "t", option, tmp_path)
    assert (outcome.code, outcome.out, outcome.err) == (7, "", f"error: {tmp_path}: is a directory; name a file with {option}\n")
    assert not calls


def test_tables(pld, calls, tmp_path):
    lines = pld("evaluate", "r", "--depth", "2,3", "--out", tmp_path / "d.svg").out.splitlines()
    assert lines[:2] == ["runs/r/model on that, 128 tokens per row, fp32", "kept: why"]
    assert [line.split() for line in lines[2:5]] == [
        ["blocks", "masked-LM", "loss", "tokens/s", "speed", "kept"],
        ["2", "of", "3", "2.5000", "150", "1.50x", "1", "3"],
        ["3", "of", "3", "2.0000", "100", "1.00x", "1-3"],
    ]
    assert lines[5] == f"picture written to {tmp_path / 'd.svg'}"
    fill = pld("evaluate", "r", "--fill", "the [MASK] is").out.splitlines()
    assert [line.split() for line in fill] == [["token", "probability", "id", "text"], ["[UNK]", "0.7500", "7", "the", "[UNK]", "is"]]
    pairs = [line.split() for line in pld("evaluate", "r", "--minimal-pairs", "a").out.splitlines()]
    assert pairs[1:4] == [["accuracy", "0.5000"], ["pairs", "2"], ["ties", "1", "(count", "as", "wrong)"]]
    assert pairs[5:] == [["UID", "accuracy", "pairs"], ["[a]", "0.5000", "2"]]
    texts = [line.split() for line in pld("evaluate", "r", "--pseudo-perplexity", "a").out.splitlines()]
    assert texts[1:] == [["pseudo-perplexity", "7.39"], ["log-likelihood", "-8.0"], ["texts", "2"], ["tokens", "4"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--text", "a", "--fill", "b"], "--text and --fill exclude each other; give one of them"),
        (
            ["--minimal-pairs", "a", "--pseudo-perplexity", "b"],
            "--pseudo-perplexity and --minimal-pairs exclude each other; give one of them",
        ),
        (["--fill", "[MASK]", "--depth", "3"], "--depth and --fill exclude each other; give one of them"),
        (["--fill", "[MASK]", "--gpus", "2"], "--gpus and --fill exclude each other; give one of them"),
        (["--pseudo-perplexity", "a", "--gpus", "2"], "--gpus and --pseudo-perplexity exclude each other; give one of them"),
        (["--minimal-pairs", "a", "--gpus", "2"], "--gpus and --minimal-pairs exclude each other; give one of them"),
        (["--depth", "2", "--gpus", "2"], "--gpus and --depth exclude each other; give one of them"),
        (["--top", "3"], "--top does nothing without --fill; leave it out"),
        (["--top", "0"], "--top does nothing without --fill; leave it out"),
        (["--blocks", "even"], "--blocks does nothing without --depth; leave it out"),
        (["--out", "a.png"], "--out does nothing without --depth; leave it out"),
        (["--depth", "3", "--out", "a.txt"], "a.txt: a picture's name must end in .png or .svg"),
        (["--each", "--json"], "--each does nothing without --pseudo-perplexity or --minimal-pairs; leave it out"),
        (["--each", "--minimal-pairs", "a"], "--each does nothing without --json; leave it out"),
        (["--each", "--json", "--minimal-pairs", "a", "--depth", "2"], "--each and --depth exclude each other; give one of them"),
        (["--task", "a.csv", "--predictions", "p", "--depth", "2"], "--predictions and --depth exclude each other; give one of them"),
        (["--text-field", "body"], "--text-field does nothing without --text or --pseudo-perplexity; leave it out"),
        (["--text-field", "body", "--minimal-pairs", "a"], "--text-field does nothing without --text or --pseudo-perplexity; leave it out"),
        (["--data-dir", "d"], "--data-dir does nothing without --task; leave it out"),
        (["--skip-bad", "--text", "a"], "--skip-bad does nothing without --task; leave it out"),
    ],
)
def test_options_that_do_not_go_together(pld, calls, line, message):
    outcome = pld("evaluate", "r", *line)
    assert (outcome.code, outcome.err) == (2, f"error: {message}\n")
    assert not calls


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


def test_a_loss_that_is_not_finite_is_null(pld, monkeypatch, tmp_path):
    score = replace(MATERIALS["validation"], loss=math.nan)
    monkeypatch.setattr(engine, "evaluate", lambda *_, **named: Evaluated(Path("r"), "that", "fp32", 128, score))
    found = json.loads(pld("evaluate", "r", "--json", "--save", tmp_path / "s.json").out, parse_constant=pytest.fail)
    assert (found["mlm_loss"], found["num_targets"]) == (None, 1234)
    assert json.loads((tmp_path / "s.json").read_text(), parse_constant=pytest.fail)["mlm_loss"] is None


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

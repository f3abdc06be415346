"""A causal model from the command line, from training to what its readers say of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pldcli.runs.metrics import read_metrics
from pldcli.tokenization.tokenizer import load_prepared_tokenizer
from tests.conftest import TINY

transformers = pytest.importorskip("transformers")

CHANGES = [
    *(change for change in TINY if not change.startswith("train.total_steps")),
    *("train.total_steps=6", "train.log_every_steps=1", "eval.every_steps=3", "checkpoint.every_steps=3", "model.vocab_size=512"),
    *("model.max_position_embeddings=48", "pld.draws_per_step=2"),
]


@pytest.fixture(scope="module")
def run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pldcli.cli import run

    out = tmp_path_factory.mktemp("runs") / "gpt"
    assert run(["pretrain", "--preset", "gpt-small-pld", "--data", str(prepared), "--out", str(out), *CHANGES]) == 0
    return out


def test_its_metrics_and_its_card(run: Path) -> None:
    rows = read_metrics(run / "metrics.jsonl")
    validations = [row for row in rows if "eval/clm_loss" in row]
    assert [row["step"] for row in validations] == [3, 6]
    assert all({"eval/perplexity", "eval/clm_accuracy", "eval/frequency_loss"} <= row.keys() for row in validations)
    assert not any("mlm" in name for row in rows for name in row)
    card = (run / "README.md").read_text(encoding="utf-8")
    loss = f"{validations[-1]['eval/clm_loss']:.4f}"
    for part in ("pipeline_tag: text-generation", "(`gpt2`) decoder", "AutoModelForCausalLM", "| objective | causal LM |", loss):
        assert part in card, part
    assert "read back" not in card and "MaskedLM" not in card


def test_transformers_reads_the_model(run: Path, prepared: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "model")
    assert model.config.model_type == "gpt2"
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    special = load_prepared_tokenizer(prepared).special
    assert tokenizer("The list").input_ids[0] == special.cls_id
    assert (tokenizer.cls_token_id, tokenizer.sep_token_id, model.config.eos_token_id) == (special.cls_id, special.sep_id, special.sep_id)


@pytest.mark.parametrize("target", ["", "checkpoints/step-00000006", "model"])
def test_it_is_evaluated_on_next_tokens(pld: Callable[..., Any], run: Path, prepared: Path, target: str) -> None:
    """The same number from the run, its last checkpoint and its exported model."""
    result = pld("evaluate", run / target, "--data", prepared, "--json", "--device", "cpu")
    assert result.code == 0, result.err
    scores = json.loads(result.out)
    assert list(scores) == ["clm_loss", "perplexity", "clm_accuracy", "num_targets", "tokens_per_second"]
    shown = pld("evaluate", run, "--data", prepared, "--device", "cpu")
    assert f"next-token loss  {scores['clm_loss']:.4f}" in shown.out
    assert "token frequencies alone score" in shown.err
    assert result.err.count("note:") == 1


def test_on_other_text_it_has_the_same_kind_of_score(pld: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Return the list of names.\n\nThe value is a string.\n", encoding="utf-8")
    result = pld("evaluate", run, "--text", tmp_path / "text.txt", "--json", "--device", "cpu")
    scores = json.loads(result.out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "model").eval()
    documents = [tokenizer(text, add_special_tokens=False).input_ids for text in ("Return the list of names.", "The value is a string.")]
    sep = tokenizer.sep_token_id
    ids = torch.tensor([[tokenizer.cls_token_id, *documents[0], sep, *documents[1], sep]])
    assert ids.shape[1] < 32, "one row"
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=ids).loss)
    assert scores["clm_loss"] == pytest.approx(expected, abs=1e-5)
    assert scores["num_targets"] == len(documents[0]) + len(documents[1]) + 2


def test_minimal_pairs_are_judged_by_the_likelihood_of_whole_sentences(pld: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    pairs = [("Return the list of names.", "Return the list of of."), ("The value is a string.", "The the."), ("a", "b c d e")]
    lines = [json.dumps({"sentence_good": good, "sentence_bad": bad}) for good, bad in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    result = pld("evaluate", run, "--minimal-pairs", tmp_path / "pairs.jsonl", "--each", "--json", "--device", "cpu")
    assert result.code == 0, result.err
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "model").eval()

    def likelihood(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            return -float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)

    for found, (good, bad) in zip(json.loads(result.out)["pairs"], pairs, strict=True):
        assert (found["good"], found["bad"]) == (pytest.approx(likelihood(good), abs=1e-3), pytest.approx(likelihood(bad), abs=1e-3))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("evaluate", "RUN", "--fill", "a [MASK]"),
            "--fill: RUN/model is a causal model, which predicts the next token and fills no masks; ",
        ),
        (("evaluate", "RUN", "--pseudo-perplexity", "TEXT"), "--pseudo-perplexity: RUN/model is a causal model, which predicts"),
        (("finetune", "glue/rte", "--model", "RUN"), "RUN/model: is a causal model, whose first token sees nothing of a text; "),
    ],
)
def test_what_a_causal_model_cannot_do_is_said(
    pld: Callable[..., Any], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], line: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Return the list.\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    result = pld(*({"RUN": str(run), "TEXT": str(text)}.get(argument, argument) for argument in arguments))
    assert (result.code, result.out) == (4 if "finetune" in arguments else 2, "")
    assert result.err.startswith(f"error: {line.replace('RUN', str(run))}") and result.err.count("\n") == 1


def test_a_smaller_one_is_exported(pld: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    result = pld("export", run, "--keep-blocks", "2", "--out", tmp_path / "smaller")
    assert result.code == 0, result.err
    assert "outputs differ by at most" in result.out + result.err
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "smaller").config.n_layer == 2


def test_an_encoder_with_some_causal_steps_stays_an_encoder(pld: Callable[..., Any], prepared: Path, tmp_path: Path) -> None:
    """Its log says which loss a step had, its validation and export are those of masked LM."""
    changes = [change for change in CHANGES if not change.startswith("pld.")]
    result = pld(
        "pretrain", "--preset", "bert-tiny-pld", "--data", prepared, "--out", tmp_path / "run", *changes, "objective.causal_share=0.5"
    )
    assert result.code == 0, result.err
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    training = [row for row in rows if "train/loss" in row]
    kinds = [[name for name in ("train/mlm_loss", "train/clm_loss") if name in row] for row in training]
    assert all(len(names) == 1 and row[names[0]] == row["train/loss"] for names, row in zip(kinds, training, strict=True))
    assert len({names[0] for names in kinds}) == 2
    assert [row["step"] for row in rows if "eval/mlm_loss" in row] == [3, 6] and not any("eval/clm_loss" in row for row in rows)
    assert transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model").config.model_type == "roberta-prelayernorm"
    assert "causal LM in 50% of the steps" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


def test_a_causal_run_and_a_masked_one_do_not_compare(pld: Callable[..., Any], run: Path, prepared: Path, tmp_path: Path) -> None:
    changes = [change for change in CHANGES if not change.startswith("pld.")]
    assert pld("pretrain", "--preset", "bert-tiny-preln", "--data", prepared, "--out", tmp_path / "bert", *changes).code == 0
    result = pld("compare", run, tmp_path / "bert", "--out", tmp_path / "comparison")
    assert result.code == 0, result.err
    assert "do not compare: other kind of targets" in result.out + result.err

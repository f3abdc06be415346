"""`pld pretrain --init-from`: begin with the weights of another model."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pldcli import presets
from pldcli.config import ModelConfig
from pldcli.data.prepared import open_prepared
from pldcli.engine.validation import fixed_batches, token_shares
from pldcli.huggingface.load import load_pretrained
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert
from pldcli.preparation.prepare import prepare
from pldcli.runs.checkpoint import list_checkpoints
from pldcli.runs.metrics import read_metrics
from pldcli.tokenization.tokenizer import load_prepared_tokenizer
from tests.conftest import TINY, Outcome
from tests.pretraining.test_pretrain import stop_in_step

RUN = (*(change for change in TINY if not change.startswith("model.")), "data.seq_len=24", "train.log_every_steps=1")
STILL = ("optim.learning_rate=1e-30", "optim.weight_decay=0", "train.total_steps=1")
"""Steps that move nothing: what comes out is what went in."""


def save_source(place: Path, prepared: Path, norm: Any, **changes: Any) -> Path:
    tokenizer = load_prepared_tokenizer(prepared)
    sizes: dict[str, Any] = {
        "num_hidden_layers": 3,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": 24,
        "norm": norm,
        "initializer_range": 0.1,
        "layer_norm_eps": 1e-6,
        "dropout": 0.25,
    }
    settings = ModelConfig(**(sizes | changes))
    place.mkdir(parents=True)
    save_pretrained(place, StBert(**vars(settings), seed=5), settings, tokenizer=tokenizer, seq_len=24)
    return place


def save_modernbert(place: Path, prepared: Path) -> Path:
    """Have transformers write one: without biases, and with windows shorter than a row."""
    transformers = pytest.importorskip("transformers")
    tokenizer = load_prepared_tokenizer(prepared)
    sizes = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 24}
    more = {"global_attn_every_n_layers": 2, "local_attention": 8, "mlp_dropout": 0.25, "initializer_range": 0.1, "pad_token_id": 0}
    config = transformers.ModernBertConfig(vocab_size=tokenizer.vocab_size, **sizes, **more)
    torch.manual_seed(5)
    transformers.ModernBertForMaskedLM(config).save_pretrained(place)
    tokenizer.save(place)
    return place


@pytest.fixture(scope="module", params=["pre", "post", "modernbert"])
def source(request: pytest.FixtureRequest, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("source") / request.param
    return save_modernbert(place, prepared) if request.param == "modernbert" else save_source(place, prepared, request.param)


@pytest.fixture
def begin(pld: Callable[..., Outcome], prepared: Path, tmp_path: Path) -> Callable[..., Outcome]:
    def call(source: Path, *more: object, out: str = "run", data: Path = prepared, preset: str = "bert-tiny-pld") -> Outcome:
        line = ["--data", data, "--out", tmp_path / out, *(["--init-from", source] if source else [])]
        return pld("pretrain", "--preset", preset, *RUN, *line, *more)

    return call


def final(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Compare up to what such a learning rate can move."""
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], rtol=0, atol=1e-25) for name in one)


def losses(run: Path, name: str) -> list[float]:
    return [row[name] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if name in row]


def test_the_weights_are_those(begin, pld, prepared, source, tmp_path):
    outcome = begin(source, *STILL, "eval.max_sequences=100000")
    assert outcome.code == 0, outcome.err
    theirs, ours = load_file(source / "model.safetensors"), final(tmp_path / "run")
    assert equal(theirs, ours)
    before = json.loads(pld("evaluate", source, "--data", prepared, "--json").out)
    assert losses(tmp_path / "run", "eval/mlm_loss") == [pytest.approx(before["mlm_loss"], rel=1e-6)]


def test_the_shape_is_the_models_and_dropout_the_runs(begin, source, tmp_path):
    assert begin(source, *STILL).code == 0
    config = presets.load(tmp_path / "run" / "config.yaml")
    theirs = load_pretrained(source).settings
    assert config.train.init_from == str(source)
    for name, value in vars(theirs).items():
        assert getattr(config.model, name) == (value if name != "dropout" else config.model.dropout), name
    assert config.model.dropout != theirs.dropout
    assert begin(source, *STILL, "model.dropout=0.3", out="other").code == 0
    assert presets.load(tmp_path / "other" / "config.yaml").model.dropout == 0.3


def test_layer_dropping_can_be_on(begin, source, tmp_path):
    """Both ways it learns from where the other model stood."""
    more = ("train.total_steps=12", "optim.learning_rate=1e-3", "pld.schedule=constant", "pld.theta_bar=0.5")
    assert begin(source, *more).code == 0
    kept = losses(tmp_path / "run", "pld/kept_blocks")
    assert min(kept) < 3
    assert not all(
        torch.equal(a, b) for a, b in zip(final(tmp_path / "run").values(), load_file(source / "model.safetensors").values(), strict=True)
    )
    assert begin(source, *more, "pld.theta_bar=1", out="dense").code == 0
    assert set(losses(tmp_path / "dense", "pld/kept_blocks")) == {3.0}


def test_going_on_does_not_need_the_source(begin, prepared, tmp_path, monkeypatch):
    source = save_source(tmp_path / "source", prepared, "pre")
    more = ("train.total_steps=6", "checkpoint.every_steps=100", "optim.learning_rate=1e-3")
    assert begin(source, *more, out="whole").code == 0
    with monkeypatch.context() as patch:
        stop_in_step(patch, 3, signal.SIGTERM)
        assert begin(source, *more).code == 75
    shutil.rmtree(source)
    [checkpoint] = list_checkpoints(tmp_path / "run" / "checkpoints")
    outcome = begin(source, *more, "--resume", checkpoint, out="other")
    assert outcome.code == 0, outcome.err
    outcome = begin(source, *more)
    assert outcome.code == 0, outcome.err
    assert "resuming after step 3" in outcome.out
    whole = final(tmp_path / "whole")
    for name in ("run", "other"):
        assert all(torch.equal(whole[key], tensor) for key, tensor in final(tmp_path / name).items())
    assert begin(source, *more, "--resume", "never").code == 4, "a new beginning does"


def test_a_run_and_a_checkpoint_of_one(begin, source, tmp_path):
    more = ("train.total_steps=2", "optim.learning_rate=1e-3")
    assert begin(source, *more, out="first").code == 0
    first = tmp_path / "first"
    for place in (first, first / "model", list_checkpoints(first / "checkpoints")[-1]):
        assert begin(place, *STILL, "--resume", "never", out="next").code == 0
        assert equal(final(tmp_path / "next"), final(first)), place


def test_a_dry_run_begins_with_it_too(begin, source, tmp_path):
    outcome = begin(source, "--dry-run")
    assert outcome.code == 0 and f"init_from: {source}" in outcome.out and "hidden_size: 16" in outcome.out
    assert not (tmp_path / "run").exists()


def test_a_fresh_masked_lm_head_is_said(begin, prepared, tmp_path):
    """A fine-tuned model, or an encoder alone, has none."""
    import transformers

    source = save_source(tmp_path / "source", prepared, "post")
    transformers.utils.logging.set_verbosity_error()
    transformers.AutoModel.from_pretrained(source).save_pretrained(tmp_path / "encoder")
    shutil.copy(source / "tokenizer.json", tmp_path / "encoder")
    outcome = begin(tmp_path / "encoder", *STILL)
    assert outcome.code == 0, outcome.err
    assert f"note: {tmp_path / 'encoder'} has no masked-LM head: that head begins at random\n" in outcome.err
    theirs, ours = load_file(source / "model.safetensors"), final(tmp_path / "run")
    encoder = {name for name in theirs if name.startswith("bert.")}
    assert equal({name: theirs[name] for name in encoder}, {name: ours[name] for name in encoder})
    assert not equal(theirs, ours)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data prepared with a tokenizer of its own."""
    place = tmp_path_factory.mktemp("other")
    (place / "other.txt").write_text("\n".join(f"some other words, number {n}" for n in range(1000)))
    prepare([place / "other.txt"], place / "data", document_per="line", vocab_size=100, processes=1, quiet=True)
    return place / "data"


def test_another_tokenizer(begin, source, other, tmp_path):
    outcome = begin(source, data=other)
    assert outcome.code == 3 and outcome.err.count("error: ") == 1
    assert f"{other}: was tokenized with another tokenizer than that of {source}" in outcome.err
    assert f"prepare it again with `pld prepare-data --tokenizer {source}`" in outcome.err
    assert not (tmp_path / "run").exists()


def test_the_advice_for_another_tokenizer_can_be_followed(pld, begin, source, other, tmp_path):
    outcome = pld("prepare-data", other.parent / "other.txt", "--out", tmp_path / "again", "--document-per", "line", "--tokenizer", source)
    assert outcome.code == 0, outcome.err
    assert begin(source, *STILL, data=tmp_path / "again").code == 0


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (
            ["model.hidden_size=32"],
            2,
            "model.hidden_size: 32 does not fit the 16 of {source}; leave it out: the model's own value is taken",
        ),
        (["model.num_hidden_layers=2"], 2, "model.num_hidden_layers: 2 does not fit the 3 of {source}"),
        (["data.seq_len=25"], 2, "model.max_position_embeddings 24; shorten the sequences: the model reads no more"),
    ],
)
def test_a_shape_that_does_not_fit(begin, source, tmp_path, more, code, message):
    outcome = begin(source, *more)
    assert outcome.code == code and message.format(source=source) in outcome.err and outcome.err.count("error: ") == 1, outcome.err
    assert not (tmp_path / "run").exists()


def test_an_objective_after_which_the_model_could_not_be_exported(begin, source):
    if json.loads((source / "config.json").read_text())["model_type"] == "modernbert":
        pytest.skip("its format is a decoder's, too")
    outcome = begin(source, "objective.kind=causal")
    message = "objective.kind: a model with the shape of train.init_from cannot be exported after causal LM; use masked"
    assert outcome.code == 2 and message in outcome.err


def test_no_such_model(begin, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in (("nowhere", "no such run or model directory"), ("empty", "is no run and no Hugging Face directory")):
        outcome = begin(tmp_path / name)
        assert outcome.code == 4 and f"{tmp_path / name}: {message}" in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_pickle_only_when_asked(begin, prepared, tmp_path):
    source = save_source(tmp_path / "source", prepared, "post")
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(weights, source / "pytorch_model.bin")
    outcome = begin(source, *STILL)
    assert outcome.code == 4 and "--allow-bin" in outcome.err and outcome.err.count("\n") == 1
    assert begin(source, *STILL, "--allow-bin").code == 0
    assert equal(weights, final(tmp_path / "run"))


def test_another_source_is_another_run(begin, prepared, source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_step(patch, 1)
        assert begin(source, "train.total_steps=3").code == 75
    other = save_source(tmp_path / "other", prepared, load_pretrained(source).settings.norm)
    outcome = begin(other, "train.total_steps=3")
    assert outcome.code == 4 and "train.init_from" in outcome.err and outcome.err.count("error: ") == 1, outcome.err


def test_a_head_that_begins_at_the_frequencies_is_as_good_as_they_are(pld: Callable[..., Outcome], prepared: Path, tmp_path: Path) -> None:
    losses = {}
    for choice in ("false", "true"):
        out = tmp_path / choice
        changes = (*TINY, *STILL, f"train.unigram_bias={choice}", "model.initializer_range=1e-4")
        assert pld("pretrain", "--preset", "bert-tiny-pld", *changes, "--data", prepared, "--out", out).code == 0
        [row] = [row for row in read_metrics(out / "metrics.jsonl") if "eval/mlm_loss" in row]
        losses[choice] = row["eval/mlm_loss"]
    data = open_prepared(prepared)
    assert losses["false"] == pytest.approx(math.log(data.vocab_size), abs=0.05)  # every entry is as likely as the others
    logs = np.log(token_shares(data.stream("train"), data.vocab_size, data.special) + 1e-12)
    targets = np.concatenate([batch.target_ids.numpy() for batch in fixed_batches(data, 32, max_sequences=64)])
    assert losses["true"] == pytest.approx(-logs[targets].mean(), abs=0.02)

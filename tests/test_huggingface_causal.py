"""Causal models: written as `gpt2` or `modernbert-decoder` for transformers, and their directories read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pldcli.config import Config, ModelConfig, ObjectiveConfig
from pldcli.data.loader import NO_TARGET, SpanSamples, to_batch
from pldcli.data.next_token import NextTokens
from pldcli.engine.objectives import MaskedLm
from pldcli.errors import CheckpointError, UsageError
from pldcli.huggingface.load import load_pretrained
from pldcli.huggingface.read_back import largest_difference, read_back
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert
from pldcli.tokenization.tokenizer import Tokenizer, load_tokenizer
from pldcli.tokenization.training import train_tokenizer
from tests.conftest import made_up_stream
from tests.test_huggingface import rewrite_config, rewrite_weights, shaken

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

MAX_TOKENS = 40
GPT: dict[str, Any] = {"embedding_norm": False, "lm_head": "plain", "type_vocab_size": 0}
ROTARY: dict[str, Any] = {
    "position_embedding": "rotary",
    "feed_forward": "geglu",
    "type_vocab_size": 0,
    "first_attention_norm": False,
    "global_layers": 3,
    "local_attention": 8,
}
NO_BIASES = {"attention_bias": False, "mlp_bias": False, "norm_bias": False}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": GPT,
    "local layers": ROTARY,
    "all global": ROTARY | {"global_layers": 1, "global_rope_theta": 500.0},
    "odd window": ROTARY | {"global_layers": (1,), "local_attention": 7, "feed_forward": "swiglu"},
    "no biases": ROTARY | NO_BIASES,
}


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    pairs = [(a, n) for a in ("old", "quiet", "green") for n in ("river", "market")]
    return train_tokenizer([f"The {a} {n} is {b}, no. {len(a + n)}." for a, n in pairs for b in ("far", "near")] * 5, vocab_size=80)


Export = Callable[..., tuple[Path, StBert]]


@pytest.fixture
def export(tmp_path: Path, words: Tokenizer) -> Export:
    def call(**changes: Any) -> tuple[Path, StBert]:
        directory = tmp_path / "ours"
        directory.mkdir()
        sizes = {"num_hidden_layers": 5, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "dropout": 0.0}
        settings = ModelConfig(**sizes, vocab_size=words.vocab_size, max_position_embeddings=MAX_TOKENS, **changes)
        model = shaken(StBert(**dict(settings))).eval()
        save_pretrained(directory, model, settings, tokenizer=words, seq_len=18, causal=True)
        return directory, model

    return call


def random_ids(tokenizer: Tokenizer, rows: int = 3, tokens: int = MAX_TOKENS) -> Tensor:
    return torch.randint(5, tokenizer.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(4))


def ours(model: StBert, ids: Tensor, **how: Any) -> Tensor:
    return model.mlm_logits(model(ids, causal=True, **how)).detach()


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_loads_a_causal_model_that_says_the_same(export: Export, words: Tokenizer, shape: str) -> None:
    directory, model = export(**SHAPES[shape])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    assert theirs.config.model_type == ("gpt2" if shape == "gpt2" else "modernbert-decoder")
    ids, mask = random_ids(words), torch.arange(MAX_TOKENS) < torch.tensor([[40], [23], [1]])
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(ours(model, ids, attention_mask_BT=mask)[mask], expected[mask], rtol=0, atol=1e-4)
    difference = read_back(directory, model, words).difference
    assert difference is not None and difference < 1e-4
    assert (model.mlm_logits(model(ids)) - expected).abs().max() > 0.1, "seeing all of the text would be something else"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_written_model_is_read_back(export: Export, shape: str) -> None:
    directory, model = export(**SHAPES[shape])
    loaded = load_pretrained(directory)
    assert loaded.causal and loaded.seq_len == 18
    again = loaded.masked_lm().state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    settings = {name: value for name, value in dict(loaded.settings).items() if name in SHAPES[shape]}
    assert settings == SHAPES[shape]


def test_the_loss_is_that_of_gpt2(export: Export, words: Tokenizer) -> None:
    """Where every token is a target, and with labels that say which are."""
    directory, model = export(**GPT)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    batch = to_batch(SpanSamples(made_up_stream(), words.special, 18, seed=0).rows(np.arange(4)), NextTokens(words.special))
    objective = MaskedLm(token_losses=("clm",))
    mean = objective.loss_sums(model, batch, None, None) / objective.num_targets(batch)[0]
    labels = torch.full_like(batch.input_ids, NO_TARGET)
    labels.view(-1)[batch.positions + 1] = batch.target_ids
    with torch.no_grad():
        expected = theirs(input_ids=batch.input_ids, labels=labels).loss
    torch.testing.assert_close(mean.detach(), expected[None], rtol=1e-5, atol=0)
    assert labels[:, 1:-1].ge(0).all() and (labels[:, [0, -1]] == NO_TARGET).all()


@pytest.mark.parametrize("shape", ["gpt2", "local layers"])
def test_it_goes_on_with_a_text(export: Export, words: Tokenizer, shape: str) -> None:
    """Through generation with its cache: token by token what ours finds the likeliest behind an open text."""
    directory, model = export(**SHAPES[shape])
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    given = tokenizer("The old river", return_tensors="pt")
    assert given["input_ids"][0, 0] == words.special.cls_id and words.special.sep_id not in given["input_ids"]
    ids = given["input_ids"]
    found = theirs.generate(ids, attention_mask=given["attention_mask"], max_new_tokens=12, do_sample=False, eos_token_id=None)
    for _ in range(12):
        ids = torch.cat([ids, ours(model, ids)[:, -1:].argmax(-1)], 1)
    assert found.tolist() == ids.tolist()


def test_its_tokenizer_wraps_text_as_any_other_where_data_is_prepared(export: Export, words: Tokenizer) -> None:
    directory, _ = export(**GPT)
    again = load_tokenizer(directory)
    assert (again.fingerprint, again.special) == (words.fingerprint, words.special)
    ids = again.fast.encode("The old river").ids
    assert ids == words.fast.encode("The old river").ids and ids[-1] == words.special.sep_id


def test_the_released_gpt2_is_refused(export: Export) -> None:
    """Its GELU is an approximation, its head tied."""
    directory, _ = export(**GPT)
    rewrite_config(directory, activation_function="gelu_new")
    with pytest.raises(CheckpointError, match="unusable activation_function: 'gelu_new', this program reads 'gelu' only"):
        load_pretrained(directory)
    rewrite_config(directory, activation_function="gelu", attn_pdrop="a")
    with pytest.raises(CheckpointError, match="unusable attn_pdrop: 'a'"):
        load_pretrained(directory)
    rewrite_config(directory, attn_pdrop=0.1)
    rewrite_weights(directory, lambda weights: {**weights, "lm_head.weight": weights["transformer.wte.weight"] + 1})
    with pytest.raises(CheckpointError, match="has a decoder of its own, not tied to the word embeddings"):
        load_pretrained(directory).masked_lm()


def test_a_model_of_transformers_own_is_read(tmp_path: Path, words: Tokenizer) -> None:
    sizes = {"vocab_size": words.vocab_size, "n_positions": 20, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**sizes, activation_function="gelu", bos_token_id=2, eos_token_id=3)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(words.json_text, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    loaded = load_pretrained(tmp_path)
    assert (loaded.causal, loaded.settings.intermediate_size, loaded.settings.dropout) == (True, 64, 0.1)
    assert largest_difference(tmp_path, loaded.masked_lm().eval(), random_ids(words, tokens=20)) < 1e-5


# What cannot be exported is refused before anything is trained


@pytest.mark.parametrize(
    ("changes", "kind", "line"),
    [
        (
            {},
            "causal",
            "model.type_vocab_size: 2 cannot be exported to transformers with the rest of this model; the nearest type is gpt2; "
            "set model.type_vocab_size=0 model.embedding_norm=false model.lm_head=plain",
        ),
        (
            GPT | {"embedding_norm": True},
            "causal",
            "model.embedding_norm: true cannot be exported to transformers with the rest of this model; the nearest type is gpt2; "
            "set model.embedding_norm=false",
        ),
        (
            ROTARY | {"lm_head": "plain"},
            "causal",
            "model.lm_head: plain cannot be exported to transformers with the rest of this model; the nearest type is modernbert-decoder; "
            "set model.lm_head=transform",
        ),
        (
            GPT | {"norm": "post"},
            "causal",
            "model.norm: post cannot be exported to transformers with the rest of this model; the nearest type is gpt2; set model.norm=pre",
        ),
    ],
)
def test_a_causal_model_that_transformers_cannot_express_is_refused(changes: dict[str, Any], kind: Any, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        Config(model=ModelConfig(**changes), objective=ObjectiveConfig(kind=kind))
    assert str(caught.value) == line


def test_gpt2_is_no_encoder() -> None:
    with pytest.raises(UsageError, match=r"the nearest type is (roberta-prelayernorm|bert|modernbert); set model\."):
        Config(model=ModelConfig(**GPT))
    assert Config(model=ModelConfig(**ROTARY), objective=ObjectiveConfig(kind="causal")).objective.is_causal


def test_config_json_of_gpt2(export: Export, words: Tokenizer) -> None:
    directory, _ = export(**GPT)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    special = words.special
    assert config == {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": 5,
        "n_embd": 16,
        "n_head": 2,
        "vocab_size": words.vocab_size,
        "n_positions": MAX_TOKENS,
        "n_inner": 24,
        "activation_function": "gelu",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": 1e-12,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "pad_token_id": special.pad_id,
        "bos_token_id": special.cls_id,
        "eos_token_id": special.sep_id,
        "pld_seq_len": 18,
    }

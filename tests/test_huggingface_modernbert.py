"""Rotary, gated models: written as `modernbert` for transformers, and its directories read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pldcli.config import ModelConfig
from pldcli.errors import CheckpointError, UsageError
from pldcli.huggingface.load import load_pretrained
from pldcli.huggingface.read_back import largest_difference, read_back
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert, TaskHead
from pldcli.tokenization.tokenizer import Tokenizer
from pldcli.tokenization.training import train_tokenizer
from tests.test_huggingface import our_logits, random_input, rewrite_config, rewrite_weights, shaken
from tests.test_huggingface_heads import CLASSES, HEADS, NAMES, TASKS, Name, as_one

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

MAX_TOKENS, WINDOW = 40, 8
NO_BIASES = {"attention_bias": False, "mlp_bias": False, "norm_bias": False}
SHAPES: dict[str, dict[str, Any]] = {
    "local layers": {"global_layers": 3},
    "all global": {"global_layers": 1, "global_rope_theta": 500.0},
    "any pattern": {"global_layers": (1, 4), "feed_forward": "swiglu"},
    "all local": {"global_layers": (), "local_rope_theta": 77.0},
    "no biases": {"global_layers": 2, **NO_BIASES},
    "some biases": {"mlp_bias": False, "norm_bias": False, "global_layers": 2},
}


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    pairs = [(a, n) for a in ("old", "quiet", "green") for n in ("river", "market")]
    return train_tokenizer([f"The {a} {n} is {b}, no. {len(a + n)}." for a, n in pairs for b in ("far", "near")] * 5, vocab_size=80)


def make_settings(tokenizer: Tokenizer, **changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "num_hidden_layers": 5,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": MAX_TOKENS,
        "position_embedding": "rotary",
        "feed_forward": "geglu",
        "first_attention_norm": False,
        "type_vocab_size": 0,
        "local_attention": WINDOW,
        "global_layers": 3,
        "global_rope_theta": 160_000.0,
    }
    return ModelConfig(**(values | changes))


Export = Callable[..., tuple[Path, StBert]]


@pytest.fixture
def export(tmp_path: Path, words: Tokenizer) -> Export:
    def call(*, name: Name | None = None, pooling: str = "first", **changes: Any) -> tuple[Path, StBert]:
        directory = tmp_path / "ours"
        directory.mkdir()
        settings = make_settings(words, **changes)
        shape = HEADS[name] if name else None
        head = TaskHead(shape.kind, shape.num_outputs, 0.1, pooling) if shape else None
        model = shaken(StBert(**vars(settings), masked_lm=head is None, task_head=head))
        task = {"task": TASKS[name], "max_seq_len": 16} if name else {}
        save_pretrained(directory, model, settings, tokenizer=words, seq_len=18, **task)
        return directory, model

    return call


def inputs(vocab_size: int) -> tuple[Tensor, Tensor]:
    """Rows of three lengths, padded; one is five windows long."""
    ids = random_input(3, MAX_TOKENS, vocab_size)
    mask = torch.arange(MAX_TOKENS) < torch.tensor([[MAX_TOKENS], [13], [2]])
    ids[~mask] = 0
    return ids, mask


def config_of(directory: Path) -> Any:
    return json.loads((directory / "config.json").read_text())


# Out


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_computes_the_same_logits(export: Export, shape: str, attention: str, words: Tokenizer) -> None:
    directory, model = export(**SHAPES[shape])
    theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(directory, attn_implementation=attention, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(theirs).__name__ == "ModernBertForMaskedLM"
    ids, mask = inputs(words.vocab_size)
    ours, got = our_logits(model, ids, attention_mask_BT=mask), theirs.eval()(input_ids=ids, attention_mask=mask.long()).logits
    assert ours.std() > 0.5
    torch.testing.assert_close(got[mask], ours[mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs(input_ids=ids).logits, our_logits(model, ids), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_local_layer_is_told_from_a_global_one(export: Export, words: Tokenizer) -> None:
    """The comparison above would see a window that is one token too wide."""
    directory, model = export(global_layers=())
    ids, _ = inputs(words.vocab_size)
    rewrite_config(directory, local_attention=WINDOW + 2)
    assert largest_difference(directory, model, ids) > 1e-2
    rewrite_config(directory, local_attention=WINDOW + 1)
    assert largest_difference(directory, model, ids) < 1e-5, "half of it on each side, rounded down"


@pytest.mark.parametrize("shape", SHAPES)
def test_every_weight_is_written_once(export: Export, shape: str) -> None:
    directory, model = export(**SHAPES[shape])
    written = load_file(directory / "model.safetensors")
    assert sum(tensor.numel() for tensor in written.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert "decoder.weight" not in written and "auto_map" not in config_of(directory)


def test_readers_before_layer_types_find_their_keys_where_these_say_the_same(export: Export, words: Tokenizer) -> None:
    directory, _ = export(global_layers=3, local_rope_theta=500.0)
    config = config_of(directory)
    assert config["layer_types"] == [f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full", "sliding")]
    assert (config["global_attn_every_n_layers"], config["global_rope_theta"], config["local_rope_theta"]) == (3, 160_000.0, 500.0)
    assert config["rope_parameters"]["sliding_attention"] == {"rope_type": "default", "rope_theta": 500.0}
    read = transformers.AutoConfig.from_pretrained(directory)
    assert (read.layer_types, read.rope_parameters) == (config["layer_types"], config["rope_parameters"])
    assert (read.pad_token_id, read.cls_token_id, read.sep_token_id) == (0, words.special.cls_id, words.special.sep_id)


def test_a_pattern_without_a_period_has_layer_types_only(export: Export) -> None:
    directory, _ = export(global_layers=(0, 1))
    assert "global_attn_every_n_layers" not in config_of(directory)


def test_fill_mask_works_on_the_directory(export: Export) -> None:
    directory, model = export()
    fill = transformers.pipeline("fill-mask", model=str(directory), device="cpu")
    answers = fill("The old [MASK] is far.", top_k=3)
    encoded = fill.tokenizer("The old [MASK] is far.", return_tensors="pt")
    assert list(encoded) == ["input_ids", "attention_mask"]
    place = encoded["input_ids"][0].tolist().index(fill.tokenizer.mask_token_id)
    best = our_logits(model, encoded["input_ids"])[0, place].softmax(-1).topk(3)
    assert [answer["token"] for answer in answers] == best.indices.tolist()


def test_the_check_on_the_spot_reads_padding_and_beyond_the_windows(export: Export, words: Tokenizer) -> None:
    directory, model = export()
    checked = read_back(directory, model, words)
    assert checked.difference is not None and checked.difference < 1e-5
    rewrite_config(directory, local_attention=2 * WINDOW)
    failure = read_back(directory, model, words).failure
    assert failure is not None and "differs by" in failure


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_heads_of_tasks_give_the_same_outputs(export: Export, name: Name, pooling: str, words: Tokenizer) -> None:
    directory, model = export(name=name, pooling=pooling, mlp_bias=name != "spans")
    auto = getattr(transformers, f"AutoModelFor{CLASSES[name]}")
    theirs, info = auto.from_pretrained(directory, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids, mask = inputs(words.vocab_size)
    assert model.task_head is not None
    ours = model.task_head(model(ids, attention_mask_BT=mask), mask)
    got = as_one(theirs.eval()(input_ids=ids, attention_mask=mask.long()))
    kept = mask if ours.ndim == 3 else slice(None)
    assert ours.std() > 0.02
    torch.testing.assert_close(got[kept], ours[kept], rtol=0, atol=1e-5)
    assert largest_difference(directory, model, ids, mask) < 1e-5
    loaded = load_pretrained(directory)
    again = loaded.with_head(HEADS[name], trained=True).eval()
    torch.testing.assert_close(again.task_head(again(ids, attention_mask_BT=mask), mask), ours, rtol=0, atol=0)  # type: ignore[misc]
    assert loaded.without_masked_lm == "has no masked-LM head"


# Out and in again


@pytest.mark.parametrize("shape", SHAPES)
def test_loading_what_was_saved_gives_equal_bits(export: Export, shape: str, words: Tokenizer) -> None:
    more: dict[str, Any] = {"layer_norm_eps": 1e-7, "dropout": 0.2, "initializer_range": 0.03}
    directory, model = export(**SHAPES[shape], **more)
    loaded = load_pretrained(directory)
    assert loaded.settings == make_settings(words, **SHAPES[shape], **more)
    ours, theirs = model.state_dict(), loaded.masked_lm().state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("every", [2, 3, 5, 7])
def test_a_period_survives_however_few_layers_there_are(export: Export, every: int) -> None:
    directory, _ = export(global_layers=every)
    assert load_pretrained(directory).settings.global_layers == every


# In, from transformers

RELEASED: dict[str, Any] = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 16,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "layer_norm_eps": 1e-05,
    "local_attention": WINDOW,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": MAX_TOKENS,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 2,
    "num_hidden_layers": 5,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "sep_token_id": 3,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
"""The keys of the released ModernBERT-base, in small."""


def save_theirs(directory: Path, tokenizer: Tokenizer, *, ending: str = "ForMaskedLM", **changes: Any) -> Any:
    config = transformers.ModernBertConfig(**{**RELEASED, "vocab_size": tokenizer.vocab_size, **changes})
    made = shaken(getattr(transformers, f"ModernBert{ending}")(config))
    made.save_pretrained(directory)
    tokenizer.save(directory)
    return made


KINDS: dict[str, dict[str, Any]] = {
    "released": {},
    "swiglu": {"hidden_activation": "silu"},
    "all biases": {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True},
    "a bias in the head only": {"classifier_bias": True},
    "biases of the blocks only": {"mlp_bias": True, "attention_bias": True},
    "no bias in the decoder": {"decoder_bias": False},
    "a pattern without a period": {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 3},
    "scaled for long texts": {"global_rope_theta": 1e6, "local_rope_theta": 77.0},
    "a window beyond the positions": {"local_attention": 10 * MAX_TOKENS},
}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_transformers_gives_equal_logits(tmp_path: Path, kind: str, words: Tokenizer) -> None:
    theirs = save_theirs(tmp_path, words, **KINDS[kind])
    loaded = load_pretrained(tmp_path)
    assert loaded.pooling == "mean" and loaded.settings.dropout == 0.0 and loaded.settings.layer_norm_eps == 1e-5
    ours = loaded.masked_lm().eval()
    ids, mask = inputs(words.vocab_size)
    expected = theirs(input_ids=ids, attention_mask=mask.long()).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(our_logits(ours, ids, attention_mask_BT=mask)[mask], expected[mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(our_logits(ours, ids), theirs(input_ids=ids).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_released_config_is_read_as_transformers_reads_it(tmp_path: Path, words: Tokenizer) -> None:
    """It has no layer_types and no rope_parameters; `save_pretrained` of today writes them."""
    theirs = save_theirs(tmp_path, words)
    assert "global_attn_every_n_layers" in RELEASED and "layer_types" not in RELEASED
    (tmp_path / "config.json").write_text(json.dumps({**RELEASED, "vocab_size": words.vocab_size}))
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    loaded = load_pretrained(tmp_path)
    assert (loaded.settings.global_layers, loaded.settings.global_rope_theta) == (3, 160_000.0)
    ids, mask = inputs(words.vocab_size)
    expected = theirs(input_ids=ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(again(input_ids=ids, attention_mask=mask.long()).logits, expected, rtol=0, atol=1e-6)
    ours = our_logits(loaded.masked_lm().eval(), ids, attention_mask_BT=mask)
    torch.testing.assert_close(ours[mask], expected[mask], rtol=0, atol=1e-5)


def test_what_a_config_leaves_out_is_transformers_default(tmp_path: Path, words: Tokenizer) -> None:
    save_theirs(tmp_path, words)
    needed = ("model_type", "architectures", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "pad_token_id")
    (tmp_path / "config.json").write_text(json.dumps({name: RELEASED[name] for name in needed} | {"vocab_size": words.vocab_size}))
    settings = load_pretrained(tmp_path).settings
    assert (settings.global_layers, settings.local_attention, settings.max_position_embeddings) == (3, 128, 8192)
    assert (settings.global_rope_theta, settings.local_rope_theta, settings.layer_norm_eps) == (160_000.0, 10_000.0, 1e-5)
    assert not (settings.attention_bias or settings.mlp_bias or settings.norm_bias) and settings.feed_forward == "geglu"


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_head_of_transformers_is_read(tmp_path: Path, name: Name, pooling: str, words: Tokenizer) -> None:
    head = HEADS[name]
    theirs = save_theirs(tmp_path, words, ending=f"For{CLASSES[name]}", num_labels=head.num_outputs, classifier_pooling=pooling)
    model = load_pretrained(tmp_path).with_head(head, trained=True).eval()
    ids, mask = inputs(words.vocab_size)
    expected = as_one(theirs(input_ids=ids, attention_mask=mask.long()))
    assert model.task_head is not None
    ours = model.task_head(model(ids, attention_mask_BT=mask), mask)
    kept = mask if head.kind == "token" else slice(None)
    torch.testing.assert_close(ours[kept], expected[kept], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_masked_lm_head_begins_a_fresh_head_as_in_transformers(tmp_path: Path, name: Name, words: Tokenizer) -> None:
    theirs = save_theirs(tmp_path, words)
    auto = getattr(transformers, f"AutoModelFor{CLASSES[name]}").from_pretrained(tmp_path)
    assert torch.equal(auto.head.dense.weight, theirs.head.dense.weight), "what transformers does"
    head = load_pretrained(tmp_path).with_head(HEADS[name], seed=3).task_head
    assert torch.equal(head.dense.weight, theirs.head.dense.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(head.norm.weight, theirs.head.norm.weight)  # type: ignore[union-attr, arg-type]


def test_an_encoder_without_its_head(tmp_path: Path, words: Tokenizer) -> None:
    """What `AutoModel` saves has no head, and its names lack the prefix."""
    theirs = save_theirs(tmp_path, words)
    theirs.base_model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has no masked-LM head"):
        loaded.masked_lm()
    assert torch.equal(loaded.weights["embeddings.word.weight"], theirs.model.embeddings.tok_embeddings.weight)
    assert loaded.with_head(HEADS["sequence"]).task_head is not None


def test_a_classifier_without_a_decoder_bias_has_no_masked_lm_head(tmp_path: Path, words: Tokenizer) -> None:
    save_theirs(tmp_path, words, ending="ForSequenceClassification", decoder_bias=False)
    assert load_pretrained(tmp_path).without_masked_lm == "has no masked-LM head"


# Bad input

BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "other activation": ({"hidden_activation": "relu"}, r"hidden_activation: 'relu', this program reads 'gelu' and 'silu' only"),
    "other activation of the head": ({"classifier_activation": "tanh"}, r"classifier_activation: 'tanh', this program reads 'gelu' only"),
    "scaled positions": ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}}, r"rope_type: 'yarn'"),
    "positions that are no object": ({"rope_parameters": {"full_attention": 3}}, r"unusable rope_parameters: "),
    "classes that are no list": ({"architectures": 5}, r"unusable architectures: 5"),
    "a theta that is a word": ({"rope_parameters": {"full_attention": {"rope_theta": "big"}}}, r"global_rope_theta"),
    "too few layer types": ({"layer_types": ["full_attention"]}, r"layer_types: 5 times"),
    "unknown layer type": ({"layer_types": ["full_attention"] * 4 + ["linear_attention"]}, r"layer_types: 5 times"),
    "layer types of nothing": ({"layer_types": 5}, r"layer_types: 5 times"),
    "a period of 0": ({"layer_types": None, "global_attn_every_n_layers": 0}, r"global_attn_every_n_layers: 0"),
    "a bias that is a word": ({"mlp_bias": "no"}, r"mlp_bias: 'no'"),
    "a dropout that is a word": ({"mlp_dropout": "little"}, r"mlp_dropout: 'little'"),
    "a bias that is not there": ({"attention_bias": True}, r"no weight 'model\.layers\.0\.attn\.Wqkv\.bias'"),
    "deeper than the weights": ({"num_hidden_layers": 6, "layer_types": None}, r"no weight 'model\.layers\.5\."),
    "shallower than the weights": ({"num_hidden_layers": 4, "layer_types": None}, r"weight 'model\.layers\.4\..* no place"),
    "another width": (
        {"intermediate_size": 12},
        r"weights do not fit config\.json \(blocks\.0\.ffn_input\.weight: \[48, 16\], not \[24, 16\]",
    ),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_directories_have_one_clear_line(tmp_path: Path, case: str, words: Tokenizer) -> None:
    save_theirs(tmp_path, words)
    changes, line = BAD_CONFIGS[case]
    rewrite_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=line) as raised:
        load_pretrained(tmp_path).masked_lm()
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_a_bias_that_the_config_denies(tmp_path: Path, words: Tokenizer) -> None:
    save_theirs(tmp_path, words)
    rewrite_weights(tmp_path, lambda weights: weights | {"model.layers.1.attn.Wo.bias": torch.ones(16)})
    with pytest.raises(CheckpointError, match=r"weight 'model\.layers\.1\.attn\.Wo\.bias' that config\.json has no place for"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"embedding_norm": False, "first_attention_norm": True},
            "model.embedding_norm: false cannot.* modernbert; set model.embedding_norm=true model.first_attention_norm=false$",
        ),
        ({"feed_forward": "gelu"}, "model.feed_forward: gelu cannot.*set model.feed_forward=geglu$"),
        ({"norm": "post", "first_attention_norm": True}, r"model\.norm: post.*set model.norm=pre model.first_attention_norm=false"),
        ({"type_vocab_size": 2}, "model.type_vocab_size: 2 .*set model.type_vocab_size=0"),
        ({"lm_head": "plain"}, "model.lm_head: plain"),
        ({"position_embedding": "learned", "type_vocab_size": 2, "first_attention_norm": True}, "roberta-prelayernorm"),
    ],
)
def test_what_no_type_expresses_is_refused_with_what_to_change(
    changes: dict[str, Any], line: str, words: Tokenizer, tmp_path: Path
) -> None:
    settings = make_settings(words, **changes)
    with pytest.raises(UsageError, match=line):
        save_pretrained(tmp_path, StBert(**vars(settings)), settings, tokenizer=words, seq_len=18)
    assert not list(tmp_path.iterdir())

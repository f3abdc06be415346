"""Checkpoints as they are in the wild: RoBERTa, bare encoders, poolers, shards, pickles, the first BERT's names."""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from pldcli.errors import CheckpointError
from pldcli.huggingface.load import load_pretrained
from pldcli.model import TaskHead
from pldcli.tokenization.tokenizer import Tokenizer, load_tokenizer
from pldcli.tokenization.training import train_tokenizer
from tests.test_huggingface import MAX_TOKENS, random_input, save_theirs, shaken

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    lines = [
        f"The {a} {n} is {b}, no. {len(a + n)}." for a in ("old", "quiet", "green") for n in ("river", "market") for b in ("far", "near")
    ]
    return train_tokenizer(lines * 5, vocab_size=80)


def save_roberta(directory: Path, tokenizer: Tokenizer, ending: str, **changes: Any) -> Any:
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": MAX_TOKENS + 2,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    }
    model = shaken(getattr(transformers, f"Roberta{ending}")(transformers.RobertaConfig(**(sizes | changes))))
    model.save_pretrained(directory)
    tokenizer.save(directory)
    return model


def test_several_probabilities_of_dropout_are_noted(tmp_path: Path, words: Tokenizer) -> None:
    save_roberta(tmp_path / "same", words, "ForMaskedLM")
    assert load_pretrained(tmp_path / "same").notes_on_dropout == ()
    save_roberta(tmp_path / "other", words, "ForMaskedLM", attention_probs_dropout_prob=0.0, classifier_dropout=0.3)
    loaded = load_pretrained(tmp_path / "other")
    assert loaded.settings.dropout == 0.1
    assert [set(note.split("; ")[0].removeprefix("its config.json has ").split(", ")) for note in loaded.notes_on_dropout] == [
        {"attention_probs_dropout_prob 0", "classifier_dropout 0.3"}
    ]
    assert loaded.notes_on_dropout[0].endswith("; dropout=auto is 0.1 everywhere") and not loaded.notes


# RoBERTa


def test_roberta_gives_equal_logits(tmp_path: Path, words: Tokenizer) -> None:
    theirs = save_roberta(tmp_path, words, "ForMaskedLM")
    loaded = load_pretrained(tmp_path)
    assert (loaded.settings.norm, loaded.settings.max_position_embeddings, loaded.settings.type_vocab_size) == ("post", MAX_TOKENS, 1)
    model = loaded.masked_lm().eval()
    ids = random_input(3, MAX_TOKENS, words.vocab_size)
    mask = torch.arange(MAX_TOKENS) < torch.tensor([[MAX_TOKENS], [11], [1]])
    ids[~mask] = theirs.config.pad_token_id
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask.long()).logits
        found = model.mlm_logits(model(ids, attention_mask_BT=mask))
    assert expected.std() > 0.3
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-5)


def test_robertas_classifier_is_read(tmp_path: Path, words: Tokenizer) -> None:
    theirs = save_roberta(tmp_path, words, "ForSequenceClassification", num_labels=4)
    model = load_pretrained(tmp_path).with_head(TaskHead("sequence", 4), trained=True).eval()
    ids = random_input(2, 9, words.vocab_size)
    with torch.no_grad():
        assert model.task_head is not None
        torch.testing.assert_close(model.task_head(model(ids)), theirs(input_ids=ids).logits, rtol=0, atol=1e-5)


# Encoders alone, and poolers


def hidden_of(loaded: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return loaded.with_head(TaskHead("token", 2)).eval()(ids)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["BertModel", "RobertaModel", "RobertaPreLayerNormModel"])
def test_an_encoder_without_prefix_can_be_fine_tuned(tmp_path: Path, words: Tokenizer, name: str) -> None:
    kind = getattr(transformers, name.replace("Model", "Config"))
    positions = MAX_TOKENS + (0 if name == "BertModel" else 2)
    sizes = {"vocab_size": words.vocab_size, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    theirs = shaken(getattr(transformers, name)(kind(**sizes, max_position_embeddings=positions)))
    theirs.save_pretrained(tmp_path)
    words.save(tmp_path)
    assert any(key.startswith("embeddings.") for key in load_file(tmp_path / "model.safetensors")), "what this is about"
    ids = random_input(2, MAX_TOKENS, words.vocab_size)
    with torch.no_grad():
        expected = theirs(input_ids=ids).last_hidden_state
    torch.testing.assert_close(hidden_of(load_pretrained(tmp_path), ids), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["BertModel", "BertForPreTraining", "BertForNextSentencePrediction"])
def test_berts_pooler_begins_the_head(tmp_path: Path, words: Tokenizer, name: str) -> None:
    sizes = {"vocab_size": words.vocab_size, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    theirs = shaken(getattr(transformers, name)(transformers.BertConfig(**sizes, max_position_embeddings=MAX_TOKENS)))
    theirs.save_pretrained(tmp_path)
    words.save(tmp_path)
    loaded = load_pretrained(tmp_path)
    pooler = theirs.base_model.pooler
    model = loaded.with_head(TaskHead("sequence", 5), seed=3)
    state = model.state_dict()
    assert torch.equal(state["task_head.dense.weight"], pooler.dense.weight)
    assert torch.equal(state["task_head.dense.bias"], pooler.dense.bias)
    assert 0 < state["task_head.output.weight"].std() < 0.1, "fresh"
    other = loaded.with_head(TaskHead("sequence", 5), seed=4).state_dict()
    assert not torch.equal(other["task_head.output.weight"], state["task_head.output.weight"])
    ids = random_input(2, 7, words.vocab_size)
    with torch.no_grad():
        pooled = theirs.base_model(input_ids=ids).pooler_output
        head = model.eval().task_head
        assert head is not None
        torch.testing.assert_close(head(model(ids)), head.output(pooled), rtol=0, atol=1e-5)  # type: ignore[operator]


def test_a_pre_ln_model_has_no_pooler_to_begin_with(tmp_path: Path, words: Tokenizer) -> None:
    save_theirs(tmp_path, "pre", words)
    one, other = (load_pretrained(tmp_path).with_head(TaskHead("sequence", 2), seed=seed).state_dict() for seed in (0, 1))
    assert not torch.equal(one["task_head.dense.weight"], other["task_head.dense.weight"])
    shared = [name for name in one if not name.startswith("task_head.")]
    assert all(torch.equal(one[name], other[name]) for name in shared), "only the head is fresh"


# Files


def test_shards(tmp_path: Path, words: Tokenizer) -> None:
    save_theirs(tmp_path, "post", words)
    before = load_pretrained(tmp_path).masked_lm().state_dict()
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: weights[name].contiguous() for name in own}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {name: part for part, own in parts.items() for name in own}}))
    after = load_pretrained(tmp_path).masked_lm().state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: is damaged"):
        load_pretrained(tmp_path)
    for text in ("{", "[]", '{"weight_map": 3}', "{}"):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: is damaged"):
            load_pretrained(tmp_path)


def test_an_index_cannot_point_outside(tmp_path: Path, words: Tokenizer) -> None:
    save_theirs(tmp_path / "model", "post", words)
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_pretrained(tmp_path / "model")


def as_pickle(directory: Path) -> Path:
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(weights, directory / "pytorch_model.bin")
    return directory / "pytorch_model.bin"


def test_a_pickle_of_weights_only_when_asked(tmp_path: Path, words: Tokenizer) -> None:
    save_theirs(tmp_path, "post", words)
    before = load_pretrained(tmp_path).masked_lm().state_dict()
    as_pickle(tmp_path)
    with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin, a pickle; save it again as safetensors, or add --allow-bin"):
        load_pretrained(tmp_path)
    after = load_pretrained(tmp_path, allow_bin=True).masked_lm().state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Bomb:
    """What runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "legacy", "inside"])
def test_a_pickle_runs_nothing(tmp_path: Path, words: Tokenizer, form: str) -> None:
    save_theirs(tmp_path, "post", words)
    path, mark = as_pickle(tmp_path), tmp_path / "it-ran"
    bomb = Bomb(f"touch {mark}")
    weights = torch.load(path, weights_only=True)
    torch.save({**weights, "x": bomb} if form == "inside" else bomb, path, _use_new_zipfile_serialization=form != "legacy")
    for allow_bin in (False, True):
        with pytest.raises(CheckpointError) as caught:
            load_pretrained(tmp_path, allow_bin=allow_bin)
        assert "\n" not in str(caught.value)
    assert "cannot be read as weights only" in str(caught.value)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the file was dangerous"


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"a": torch.ones(2), "b": {"c": torch.ones(1)}}])
def test_a_pickle_of_something_else(tmp_path: Path, words: Tokenizer, content: Any) -> None:
    save_theirs(tmp_path, "post", words)
    torch.save(content, as_pickle(tmp_path))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: holds something else than weights"):
        load_pretrained(tmp_path, allow_bin=True)


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x02."])
def test_a_damaged_pickle(tmp_path: Path, words: Tokenizer, content: bytes) -> None:
    save_theirs(tmp_path, "post", words)
    as_pickle(tmp_path).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: cannot be read as weights only \(.+\)") as caught:
        load_pretrained(tmp_path, allow_bin=True)
    assert "\n" not in str(caught.value)


def test_safetensors_come_first(tmp_path: Path, words: Tokenizer) -> None:
    save_theirs(tmp_path, "post", words)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert load_pretrained(tmp_path, allow_bin=True).settings.hidden_size == 16


# Tokenizers that are not the model's


def test_a_tokenizer_larger_than_the_embeddings(tmp_path: Path, words: Tokenizer) -> None:
    save_theirs(tmp_path, "post", words, vocab_size=words.vocab_size - 1)
    line = rf"has a tokenizer of {words.vocab_size} entries but embeddings of {words.vocab_size - 1} rows; put the tokenizer beside it"
    with pytest.raises(CheckpointError, match=line) as caught:
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_embeddings_may_be_padded(tmp_path: Path, words: Tokenizer) -> None:
    save_theirs(tmp_path, "post", words, vocab_size=words.vocab_size + 16)
    loaded = load_pretrained(tmp_path)
    assert (loaded.settings.vocab_size, loaded.tokenizer.vocab_size) == (words.vocab_size + 16, words.vocab_size)


@pytest.mark.parametrize(
    ("configured", "cased"), [({"do_lower_case": False}, True), ({"do_lower_case": True}, False), ({}, False), (None, False)]
)
def test_whether_a_vocabulary_is_cased(tmp_path: Path, words: Tokenizer, configured: Any, cased: bool) -> None:
    save_theirs(tmp_path, "post", words)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nParis\nparis\n")
    if configured is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(configured))
    assert load_pretrained(tmp_path).tokenizer.encode_document_lines(["Paris"]) == [5 if cased else 6]


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_tokenizer(tmp_path: Path, words: Tokenizer, content: str) -> None:
    save_theirs(tmp_path, "post", words)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_pretrained(tmp_path)


# Against TensorFlow


@pytest.mark.parametrize(("approximate", "tolerance"), [("tanh", 5e-6), ("none", 1e-3)])
def test_a_regression_against_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approximate: str, tolerance: float) -> None:
    """A published model whose scores come from TensorFlow itself: pooler, tanh, one number. Its names and layouts are TensorFlow's.

    That code approximates GELU by tanh; with the same approximation the scores are equal, with the exact GELU nearly so.
    """
    place = Path(os.environ.get("PLD_TEST_DATA") or Path(tempfile.gettempdir()) / "pld-data") / "ref_bleurt_tiny"
    if not place.is_dir():
        pytest.skip(f"no data at {place}: set PLD_TEST_DATA")
    _as_bert(load_file(place / "weights.safetensors"), tmp_path / "model.safetensors")
    config = json.loads((place / "bert_config.json").read_text())
    config |= {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vocab.txt").write_bytes((place / "vocab.txt").read_bytes())
    monkeypatch.setattr(functional, "gelu", partial(functional.gelu, approximate=approximate))
    model = load_pretrained(tmp_path).with_head(TaskHead("sequence", 1), trained=True).eval()
    assert model.task_head is not None
    cases = json.loads((place / "golden_scores.json").read_text())["cases"]
    assert len(cases) > 3
    pair = load_tokenizer(tmp_path / "vocab.txt").fast
    for case in cases:
        encoded = pair.encode(case["text_a"], case["text_b"])
        assert (encoded.ids, encoded.type_ids) == (case["input_ids"], case["token_type_ids"])
        with torch.no_grad():
            hidden = model(torch.tensor([case["input_ids"]]), token_type_ids_BT=torch.tensor([case["token_type_ids"]]))
            assert float(model.task_head(hidden)) == pytest.approx(case["bleurt_score"], abs=tolerance)


def _as_bert(theirs: dict[str, Tensor], path: Path) -> None:
    """Spell weights as BERT's directories do: dots, transposed kernels; the head outside the encoder is the classifier."""
    weights = {}
    for name, tensor in theirs.items():
        new = name.replace("layer_", "layer.").replace("/", ".").replace("kernel", "weight")
        new = f"{new}.weight" if new.endswith("_embeddings") else f"classifier.{new[6:]}" if new.startswith("dense.") else new
        weights[new] = (tensor.T if name.endswith("kernel") else tensor).contiguous()
    save_file(weights, path)

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pldcli.config import ModelConfig
from pldcli.errors import CheckpointError
from pldcli.model import StBert, TaskHead
from pldcli.pretrained import Pretrained
from pldcli.tokenization.tokenizer import Tokenizer
from pldcli.tokenization.training import train_tokenizer


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer([f"The old {n} is near, no. {len(n)}." for n in ("river", "market", "village")] * 5, vocab_size=70)


def settings(words: Tokenizer, **changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": words.vocab_size,
        "max_position_embeddings": 12,
        "norm": "post",
        "dropout": 0.25,
    }
    return ModelConfig(**(sizes | changes))


def pretrained(words: Tokenizer, *, heads: tuple[str, ...] = ("mlm",), seed: int = 1, **changes: Any) -> Pretrained:
    shape = settings(words, **changes)
    model = StBert(**vars(shape), masked_lm="mlm" in heads, next_sentence="nsp" in heads, seed=seed)
    reason = "" if "mlm" in heads else "has no masked-LM head"
    return Pretrained(where="some/where", settings=shape, weights=model.state_dict(), seq_len=12, tokenizer=words, without_masked_lm=reason)


def same(one: StBert, other: StBert) -> set[str]:
    """Name the parts whose weights are equal."""
    theirs = other.state_dict()
    equal: dict[str, bool] = {}
    for name, tensor in one.state_dict().items():
        part = name.partition(".")[0]
        equal[part] = equal.get(part, True) and name in theirs and torch.equal(tensor, theirs[name])
    return {part for part, yes in equal.items() if yes}


ENCODER = {"embeddings", "blocks"}


def test_masked_lm(words: Tokenizer) -> None:
    loaded = pretrained(words)
    model = loaded.masked_lm()
    assert same(model, StBert(**vars(loaded.settings), seed=1)) == {*ENCODER, "mlm_head"}
    assert model.blocks[0].dropout.p == 0.25
    assert loaded.masked_lm(dropout=0.0).blocks[0].dropout.p == 0.0


def test_a_missing_masked_lm_head_may_be_fresh_or_is_refused(words: Tokenizer) -> None:
    loaded = pretrained(words, heads=())
    with pytest.raises(CheckpointError) as caught:
        loaded.masked_lm()
    assert str(caught.value) == "some/where: has no masked-LM head; give a model that was saved with its pre-training head"
    one, again, other = (loaded.masked_lm(fresh_head=True, seed=seed) for seed in (4, 4, 5))
    assert same(one, again) == {*ENCODER, "mlm_head"}
    assert same(one, other) == ENCODER
    trained = StBert(**vars(loaded.settings), masked_lm=False, seed=1)
    assert same(trained, one) == ENCODER


def test_the_next_sentence_head_is_fresh_where_there_is_none(words: Tokenizer) -> None:
    with_it, without = pretrained(words, heads=("mlm", "nsp")), pretrained(words)
    assert same(with_it.masked_lm(next_sentence=True, seed=1), with_it.masked_lm(next_sentence=True, seed=2)) >= {"nsp_head"}
    assert "nsp_head" not in same(without.masked_lm(next_sentence=True, seed=1), without.masked_lm(next_sentence=True, seed=2))
    assert with_it.masked_lm().nsp_head is None


@pytest.mark.parametrize("kind", ["sequence", "token"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_fresh_head_comes_from_the_seed(words: Tokenizer, norm: str, kind: Any) -> None:
    loaded, head = pretrained(words, norm=norm), TaskHead(kind, 3, 0.5)
    one, again, other = (loaded.with_head(head, seed=seed) for seed in (4, 4, 5))
    assert one.mlm_head is None
    assert {*ENCODER, "task_head"} <= same(one, again)
    assert "task_head" not in same(one, other) and same(one, other) >= ENCODER
    assert one.task_head is not None
    assert one.task_head.output.weight.shape == (3, 16)  # type: ignore[union-attr]
    assert one.task_head.dropout.p == 0.5  # type: ignore[union-attr]
    assert loaded.with_head(head, dropout=0.1).blocks[0].dropout.p == 0.1


@pytest.mark.parametrize(("norm", "kind", "taken"), [("post", "sequence", True), ("pre", "sequence", False), ("post", "token", False)])
def test_a_pooler_begins_the_head_of_a_post_ln_model(words: Tokenizer, norm: str, kind: Any, taken: bool) -> None:
    loaded = pretrained(words, heads=("mlm", "nsp"), norm=norm)
    state = loaded.with_head(TaskHead(kind, 2), seed=9).state_dict()
    assert taken == torch.equal(state.get("task_head.dense.weight", torch.zeros(())), loaded.weights["nsp_head.pooler.weight"])


def test_an_old_task_head_is_forgotten_unless_it_is_asked_for(words: Tokenizer) -> None:
    """The model fine-tuned on MNLI begins another task: its encoder is taken, its head is not."""
    shape = settings(words)
    model = StBert(**vars(shape), masked_lm=False, task_head=TaskHead("sequence", 3), seed=1)
    loaded = Pretrained(where="some/where", settings=shape, weights=model.state_dict(), seq_len=12, tokenizer=words)
    again = loaded.with_head(TaskHead("sequence", 3), trained=True)
    assert same(model, again) == {*ENCODER, "task_head"}
    assert same(model, loaded.with_head(TaskHead("sequence", 3), seed=2)) == ENCODER
    assert same(model, loaded.with_head(TaskHead("sequence", 2), seed=1)) == ENCODER


def test_a_trained_head_that_is_not_there(words: Tokenizer) -> None:
    with pytest.raises(CheckpointError) as caught:
        pretrained(words).with_head(TaskHead("sequence", 2), trained=True)
    assert str(caught.value) == "some/where: has no head for a task; fine-tune it first with `pld finetune`"


def test_a_missing_weight_of_the_encoder_is_never_fresh(words: Tokenizer) -> None:
    loaded = pretrained(words)
    fewer = replace(loaded, weights={name: t for name, t in loaded.weights.items() if name != "blocks.1.ffn_norm.bias"})
    for build in (fewer.masked_lm, lambda: fewer.masked_lm(fresh_head=True), lambda: fewer.with_head(TaskHead("token", 2))):
        with pytest.raises(CheckpointError, match=r"some/where: has no weight 'blocks\.1\.ffn_norm\.bias'"):
            build()


def test_another_shape(words: Tokenizer) -> None:
    loaded = pretrained(words)
    other = replace(loaded, settings=settings(words, intermediate_size=32))
    line = r"weights do not fit its configuration \(blocks\.0\.ffn_input\.weight: \[24, 16\] where \[32, 16\] is needed\)"
    with pytest.raises(CheckpointError, match=line):
        other.masked_lm()
    with pytest.raises(CheckpointError, match=line):
        other.with_head(TaskHead("sequence", 2))


def test_untrained(words: Tokenizer) -> None:
    """Everything from the seed: the shape and the tokenizer alone are kept."""
    loaded = pretrained(words, heads=("mlm", "nsp"))
    forgotten = loaded.untrained()
    assert (forgotten.settings, forgotten.tokenizer, forgotten.where, forgotten.from_scratch) == (
        loaded.settings,
        words,
        "some/where",
        True,
    )
    head = TaskHead("sequence", 2)
    fresh = StBert(**vars(loaded.settings), masked_lm=False, task_head=head, seed=5)
    assert same(fresh, forgotten.with_head(head, seed=5)) == {*ENCODER, "task_head"}
    assert "task_head" not in same(fresh, loaded.with_head(head, seed=5))
    assert same(fresh, loaded.with_head(head, seed=5)) == set()


def test_building_a_model_leaves_the_weights_alone(words: Tokenizer) -> None:
    loaded = pretrained(words)
    before = {name: tensor.clone() for name, tensor in loaded.weights.items()}
    model = loaded.with_head(TaskHead("sequence", 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.weights.items())

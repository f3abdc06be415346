"""Heads of fine-tuned models: written for transformers, read from it, and read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pldcli.errors import CheckpointError
from pldcli.huggingface.load import load_pretrained
from pldcli.huggingface.read_back import largest_difference
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert, TaskHead
from pldcli.tasks.task import Task
from pldcli.tokenization.tokenizer import Tokenizer
from pldcli.tokenization.training import train_tokenizer
from tests.test_huggingface import MAX_TOKENS, NORMS, Norm, make_settings, random_input, rewrite_config, rewrite_weights, shaken

transformers = pytest.importorskip("transformers")

TASKS = {
    "sequence": Task("glue/mnli", "classification", ("premise", "hypothesis"), "label", ("yes", "no", "per haps"), metrics=("accuracy",)),
    "regression": Task("glue/stsb", "regression", ("a", "b"), "score", metrics=("pearson",)),
    "tokens": Task("names", "tags", ("words",), "tags", ("O", "B-PER", "I-PER", "B-LOC"), metrics=("entity_f1",)),
    "spans": Task("squad", "spans", ("question", "context"), "answers", metrics=("exact_match",), unanswerable=True),
}
HEADS = {
    "sequence": TaskHead("sequence", 3, 0.1),
    "regression": TaskHead("sequence", 1, 0.1),
    "tokens": TaskHead("token", 4, 0.1),
    "spans": TaskHead("token", 2),
}
CLASSES = {
    "sequence": "SequenceClassification",
    "regression": "SequenceClassification",
    "tokens": "TokenClassification",
    "spans": "QuestionAnswering",
}
Name = Literal["sequence", "regression", "tokens", "spans"]
NAMES: list[Name] = ["sequence", "regression", "tokens", "spans"]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    lines = [
        f"The {a} {n} is {b}, no. {len(a + n)}." for a in ("old", "quiet", "green") for n in ("river", "market") for b in ("far", "near")
    ]
    return train_tokenizer(lines * 5, vocab_size=80)


@pytest.fixture
def save(tmp_path: Path, words: Tokenizer) -> Callable[[Norm, Name], tuple[Path, StBert]]:
    def call(norm: Norm, name: Name) -> tuple[Path, StBert]:
        directory = tmp_path / f"{norm}-{name}"
        directory.mkdir()
        settings = make_settings(norm, words)
        model = shaken(StBert(**vars(settings), masked_lm=False, task_head=HEADS[name]))
        save_pretrained(directory, model, settings, tokenizer=words, seq_len=18, task=TASKS[name], max_seq_len=16)
        return directory, model

    return call


def as_one(outputs: Any) -> Tensor:
    return torch.stack([outputs.start_logits, outputs.end_logits], -1) if "start_logits" in outputs else outputs.logits


@torch.no_grad()
def ours(model: StBert, ids: Tensor, types: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    assert model.task_head is not None
    return model.task_head(model(ids, token_type_ids_BT=types, attention_mask_BT=mask))


def inputs(vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of three lengths with two segments each, padded."""
    ids = random_input(3, MAX_TOKENS, vocab_size)
    mask = torch.arange(MAX_TOKENS) < torch.tensor([[MAX_TOKENS], [13], [2]])
    types = (torch.arange(MAX_TOKENS) >= torch.tensor([[8], [5], [1]])).long() * mask
    ids[~mask] = 0
    return ids, types, mask


# Out


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_transformers_computes_the_same_outputs(save: Callable[..., tuple[Path, StBert]], norm: Norm, name: Name, words: Tokenizer) -> None:
    directory, model = save(norm, name)
    auto = getattr(transformers, f"AutoModelFor{CLASSES[name]}")
    theirs, info = auto.from_pretrained(directory, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(theirs).__name__ == {"pre": "RobertaPreLayerNorm", "post": "Bert"}[norm] + f"For{CLASSES[name]}"
    ids, types, mask = inputs(words.vocab_size)
    with torch.no_grad():
        got = as_one(theirs.eval()(input_ids=ids, token_type_ids=types, attention_mask=mask.long()))
        plain = as_one(theirs(input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1])))
    expected = ours(model, ids, types, mask)
    assert expected.std() > 0.1
    if name in ("tokens", "spans"):
        got, expected = got[mask], expected[mask]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(plain, ours(model, ids[:1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_label_names_and_problem_type(save: Callable[..., tuple[Path, StBert]], norm: Norm) -> None:
    def config(name: Name) -> Any:
        return transformers.AutoConfig.from_pretrained(save(norm, name)[0])

    classes = config("sequence")
    assert classes.id2label == {0: "yes", 1: "no", 2: "per haps"}
    assert classes.label2id == {"yes": 0, "no": 1, "per haps": 2}
    assert (classes.num_labels, classes.problem_type) == (3, "single_label_classification")
    number = config("regression")
    assert (number.num_labels, number.problem_type, number.id2label) == (1, "regression", {0: "score"})
    assert config("tokens").id2label == {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}
    assert config("spans").num_labels == 2


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_more_than_the_model_is_written(save: Callable[..., tuple[Path, StBert]], norm: Norm) -> None:
    for name in NAMES:
        directory, model = save(norm, name)
        written = sum(tensor.numel() for tensor in load_file(directory / "model.safetensors").values())
        assert written == sum(p.numel() for p in model.parameters()) + (norm == "pre") * 16, name
        assert "auto_map" not in json.loads((directory / "config.json").read_text())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_largest_difference_sees_the_head(save: Callable[..., tuple[Path, StBert]], norm: Norm, name: Name, words: Tokenizer) -> None:
    directory, model = save(norm, name)
    ids = random_input(2, MAX_TOKENS, words.vocab_size)
    assert largest_difference(directory, model, ids) < 1e-5
    with torch.no_grad():
        model.task_head.output.bias[-1] += 0.5  # type: ignore[union-attr, index, operator]
        largest = float(model.eval().task_head(model(ids)).abs().max())  # type: ignore[misc]
    scale = max(1.0, largest) if name == "regression" else 1.0
    assert largest_difference(directory, model, ids) == pytest.approx(0.5 / scale, abs=1e-4)


# And in again


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_reading_back_gives_equal_bits(save: Callable[..., tuple[Path, StBert]], norm: Norm, name: Name, words: Tokenizer) -> None:
    directory, model = save(norm, name)
    loaded = load_pretrained(directory)
    assert (loaded.settings, loaded.seq_len) == (make_settings(norm, words), 18)
    assert loaded.tokenizer.fingerprint == words.fingerprint
    again = loaded.with_head(HEADS[name], trained=True).state_dict()
    before = model.state_dict()
    assert list(again) == list(before)
    assert all(torch.equal(again[key], before[key]) for key in before)
    assert loaded.task is not None
    assert loaded.task["max_seq_len"] == 16
    assert Task.from_record(loaded.task) == TASKS[name]
    names = {"sequence": TASKS["sequence"].labels, "regression": ("score",), "tokens": TASKS["tokens"].labels}
    assert loaded.labels == names.get(name, ())
    assert loaded.without_masked_lm == "has no masked-LM head"


@pytest.mark.parametrize("norm", NORMS)
def test_a_head_of_transformers_is_read(tmp_path: Path, norm: Norm, words: Tokenizer) -> None:
    """One that was fine-tuned elsewhere: no entry of ours in its config.json."""
    base = {"pre": "RobertaPreLayerNorm", "post": "Bert"}[norm]
    sizes = {"vocab_size": words.vocab_size, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    for name, head in HEADS.items():
        place = tmp_path / name
        extra = {"max_position_embeddings": MAX_TOKENS + 2 * (norm == "pre"), "type_vocab_size": 2}
        config = getattr(transformers, f"{base}Config")(**sizes, **extra, num_labels=head.num_outputs)
        theirs = shaken(getattr(transformers, f"{base}For{CLASSES[name]}")(config))
        theirs.save_pretrained(place)
        words.save(place)
        loaded = load_pretrained(place)
        model = loaded.with_head(head, trained=True).eval()
        ids, types, mask = inputs(words.vocab_size)
        ids[~mask] = config.pad_token_id
        with torch.no_grad():
            got = as_one(theirs(input_ids=ids, token_type_ids=types, attention_mask=mask.long()))
        expected = ours(model, ids, types, mask)
        where = mask if head.kind == "token" else slice(None)
        torch.testing.assert_close(expected[where], got[where], rtol=0, atol=1e-5)
        assert loaded.task is None
        named = "id2label" in json.loads((place / "config.json").read_text())  # left out where there are two, the default
        assert named == (head.num_outputs != 2)
        assert loaded.labels == (tuple(f"LABEL_{number}" for number in range(head.num_outputs)) if named else ())


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_another_kind_of_head_are_not_taken(save: Callable[..., tuple[Path, StBert]], name: Name) -> None:
    """In a token classifier `classifier` is another layer than in a sequence classifier; config.json says which it is."""
    directory, _ = save("post", name)
    rewrite_config(directory, architectures=["BertForMaskedLM"])
    assert not [key for key in load_pretrained(directory).weights if key.startswith("task_head.")]


def test_a_trained_head_of_another_shape(save: Callable[..., tuple[Path, StBert]]) -> None:
    for norm in NORMS:
        directory, _ = save(norm, "sequence")
        loaded = load_pretrained(directory)
        line = r"weights do not fit its configuration \(task_head\.output\.weight: \[3, 16\] where \[2, 16\] is needed\)"
        with pytest.raises(CheckpointError, match=line) as caught:
            loaded.with_head(TaskHead("sequence", 2), trained=True)
        assert str(directory) in str(caught.value)
        assert loaded.with_head(TaskHead("sequence", 2)).task_head is not None, "a fresh one may have any shape"


def test_a_layer_of_another_shape_is_one_line(save: Callable[..., tuple[Path, StBert]]) -> None:
    """Found when the model is built, if not when the file is read."""
    directory, _ = save("post", "sequence")
    rewrite_weights(directory, lambda weights: {n: t[:, :-1] if "1.attention.output.dense.weight" in n else t for n, t in weights.items()})
    with pytest.raises(CheckpointError, match=r"fit its configuration \(blocks\.1\.attention_output\.weight: \[16, 15\] where \[16, 16\]"):
        load_pretrained(directory).with_head(HEADS["sequence"], trained=True)


def test_names_that_do_not_cover_the_outputs_count_as_none(save: Callable[..., tuple[Path, StBert]]) -> None:
    directory, _ = save("post", "sequence")
    for names in ({"0": "a", "1": "b"}, ["a", "b", "c"], None):
        rewrite_config(directory, id2label=names)
        assert load_pretrained(directory).labels == ()
    rewrite_config(directory, pld_task="damaged")
    assert load_pretrained(directory).task is None

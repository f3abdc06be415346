from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pldcli.tasks import sequence
from pldcli.tasks.kinds import KINDS
from pldcli.tasks.sequence import Classification, MultiLabel, Regression
from pldcli.tasks.task import Examples, Features, Task
from pldcli.tokenization.tokenizer import Tokenizer, load_tokenizer
from pldcli.tokenization.training import train_tokenizer

TASK = Task("mine", "classification", ("text",), "label", ("bad", "good", "so so"), metrics=("accuracy", "macro_f1"))
PAIR = replace(TASK, text_columns=("one", "two"))
NUMBER = Task("mine", "regression", ("text",), "score", metrics=("pearson", "spearman"))
TEXTS = [
    "The quiet river moved.", "a", "", "An old, broken engine followed the teacher through the village; nobody watched.",
    "naïve café — “quoted” 東京", "river " * 40, "  two   spaces ", "no\tTABS\nor lines", "[MASK] and [SEP] and [CLS] are words here",
    "x" * 150,
]  # fmt: skip


def examples(*columns: list[str], labels: list[Any] | None = None) -> Examples:
    return Examples("train", "here", tuple(columns), labels, list(range(len(columns[0]))))


@pytest.fixture(scope="module", params=["wordpiece", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "sentencepiece":
        return train_tokenizer(
            [f"The {a} river moved an engine, no. {n}." for a in ("old", "quiet", "broken") for n in range(40)], vocab_size=120
        )
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{letter}" for letter in letters),
        "the",
        "river",
        "quiet",
        ".",
        ",",
        "[",
        "]",
    ]
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("theirs")
    tokenizer.save(place)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(place / "tokenizer.json"), **special, model_max_length=10**6, model_input_names=names
    )


def rows(features: Features) -> list[tuple[list[int], list[int]]]:
    return [
        (features.input_ids[start:stop].tolist(), features.token_type_ids[start:stop].tolist())
        for start, stop in zip(features.offsets[:-1], features.offsets[1:], strict=True)
    ]


# Rows


@pytest.mark.parametrize("max_seq_len", [8, 20, 512])
def test_texts_become_what_transformers_makes_of_them(tokenizer: Tokenizer, theirs: Any, max_seq_len: int) -> None:
    features = Classification().encode(examples(TEXTS), TASK, tokenizer, max_seq_len=max_seq_len, stride=3)
    expected = theirs(TEXTS, truncation=True, max_length=max_seq_len)
    assert rows(features) == list(zip(expected["input_ids"], expected["token_type_ids"], strict=True))
    whole = theirs(TEXTS)["input_ids"]
    assert features.num_truncated == sum(len(ids) > max_seq_len for ids in whole)
    assert features.lengths.max() <= max_seq_len


@pytest.mark.parametrize("max_seq_len", [8, 9, 20, 512])
def test_pairs_become_what_transformers_makes_of_them(tokenizer: Tokenizer, theirs: Any, max_seq_len: int) -> None:
    """The longer text loses tokens until both are as long, then one after the other does; a short one stays whole."""
    first = [text for text in TEXTS for _ in TEXTS]
    second = TEXTS * len(TEXTS)
    features = Classification().encode(examples(first, second), PAIR, tokenizer, max_seq_len=max_seq_len, stride=3)
    expected = theirs(first, second, truncation="longest_first", max_length=max_seq_len)
    assert rows(features) == list(zip(expected["input_ids"], expected["token_type_ids"], strict=True))
    whole = theirs(first, second)["input_ids"]
    assert features.num_truncated == sum(len(ids) > max_seq_len for ids in whole)
    if max_seq_len < 512:
        assert 0 < features.num_truncated < len(first) or max_seq_len <= 9


def test_the_short_side_of_a_pair_stays_whole(tokenizer: Tokenizer) -> None:
    for order in (1, -1):
        texts = [["the river"], ["river " * 50]][::order]
        [(ids, types)] = rows(Classification().encode(examples(*texts), PAIR, tokenizer, max_seq_len=16, stride=0))
        short = tokenizer.fast.encode("the river", add_special_tokens=False).ids
        assert len(ids) == 16
        own = [i for i, t in zip(ids, types, strict=True) if t == (0 if order == 1 else 1)]
        assert [i for i in own if i not in tokenizer.special.ids] == short


def test_a_special_token_in_a_text_is_that_token(tokenizer: Tokenizer) -> None:
    special = tokenizer.special
    [(ids, types)] = rows(Classification().encode(examples(["the [MASK] river [SEP]"]), TASK, tokenizer, max_seq_len=64, stride=0))
    assert ids.count(special.mask_id) == 1 and ids[-2:] == [special.sep_id] * 2 and set(types) == {0}


def test_encoding_does_not_change_the_tokenizer(tokenizer: Tokenizer) -> None:
    before = tokenizer.json_text, tokenizer.fast.encode("river " * 50).ids, tokenizer.fast.encode("[MASK]").ids
    Classification().encode(examples(TEXTS), TASK, tokenizer, max_seq_len=8, stride=0)
    assert before == (tokenizer.json_text, tokenizer.fast.encode("river " * 50).ids, tokenizer.fast.encode("[MASK]").ids)


def test_a_tokenizer_that_cuts_and_pads_by_itself(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As those of sentence models on the hub do: their settings must not count."""
    fast = tokenizer.fast.__class__.from_str(tokenizer.json_text)
    fast.enable_truncation(5)
    fast.enable_padding(length=30, pad_id=0, pad_token="[PAD]")
    fast.save(str(tmp_path / "tokenizer.json"))
    own = load_tokenizer(tmp_path)
    expected = rows(Classification().encode(examples(TEXTS), TASK, tokenizer, max_seq_len=20, stride=0))
    assert rows(Classification().encode(examples(TEXTS), TASK, own, max_seq_len=20, stride=0)) == expected


def test_rows_are_numbered_and_labelled(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "_TEXTS_AT_ONCE", 3)
    labels = [number % 3 for number in range(len(TEXTS))]
    features = Classification().encode(examples(TEXTS, labels=labels), TASK, tokenizer, max_seq_len=20, stride=0)
    assert features.labels is not None and features.labels.dtype == np.int64 and features.labels.tolist() == labels
    assert features.example_of_row.tolist() == list(range(len(TEXTS)))
    monkeypatch.undo()
    at_once = Classification().encode(examples(TEXTS, labels=labels), TASK, tokenizer, max_seq_len=20, stride=0)
    assert rows(at_once) == rows(features) and at_once.num_truncated == features.num_truncated
    numbers = Regression().encode(examples(TEXTS, labels=[0.5] * len(TEXTS)), NUMBER, tokenizer, max_seq_len=20, stride=0)
    assert numbers.labels is not None and numbers.labels.dtype == np.float32 and rows(numbers) == rows(features)
    assert Classification().encode(examples(TEXTS), TASK, tokenizer, max_seq_len=20, stride=0).labels is None


def test_several_labels_take_a_byte_each(tokenizer: Tokenizer) -> None:
    task = replace(TASK, kind="multi-label")
    labels = MultiLabel().encode(examples(["a", "b"], labels=[[0, 2], []]), task, tokenizer, max_seq_len=20, stride=0).labels
    assert labels is not None and labels.dtype == bool and labels.tolist() == [[True, False, True], [False] * 3]


def test_no_examples(tokenizer: Tokenizer) -> None:
    features = Classification().encode(examples([]), TASK, tokenizer, max_seq_len=20, stride=0)
    assert (features.num_rows, len(features.input_ids), features.num_truncated) == (0, 0, 0)
    assert Classification().predict([], features, examples([]), TASK) == []


def test_bert_base(real_data: Path) -> None:
    """A published vocabulary against transformers' own BERT tokenizer."""
    transformers = pytest.importorskip("transformers")
    vocabulary = next(iter(sorted(real_data.glob("*/**/vocab.txt"))), None)
    if vocabulary is None:
        pytest.skip("no vocab.txt among the data")
    ours = load_tokenizer(vocabulary)
    bert = transformers.BertTokenizerFast(vocab=str(vocabulary), vocab_file=str(vocabulary), do_lower_case=True)
    second = TEXTS[::-1]
    features = Classification().encode(examples(TEXTS, second), PAIR, ours, max_seq_len=32, stride=0)
    expected = bert(TEXTS, second, truncation=True, max_length=32)
    assert rows(features) == list(zip(expected["input_ids"], expected["token_type_ids"], strict=True))


# Predictions


def features_of(count: int) -> Features:
    return Features(np.zeros(count, np.int32), np.zeros(count, np.int8), np.arange(count + 1), None, np.arange(count))


def outputs(*rows: list[float]) -> list[Any]:
    return [np.array(row, np.float32) for row in rows]


def test_the_most_probable_label() -> None:
    given = outputs([0.0, np.log(3), 0.0], [2.0, 2.0, -1e4], [1000.0, 0.0, 999.0])
    found = Classification().predict(given, features_of(3), examples(["a", "b", "c"]), TASK)
    assert [one.label for one in found] == ["good", "bad", "bad"], "the first of equals"
    assert [one.label_id for one in found] == [1, 0, 0]
    assert found[0].scores == pytest.approx({"bad": 0.2, "good": 0.6, "so so": 0.2})
    assert found[1].scores == pytest.approx({"bad": 0.5, "good": 0.5, "so so": 0.0})
    assert found[2].scores == pytest.approx({"bad": 0.7310586, "good": 0.0, "so so": 0.2689414})
    assert all(type(value) is float for one in found for value in one.scores.values())


def test_labels_are_spelled_as_the_files_do() -> None:
    spelled = replace(TASK, written=(0, 1, True))
    found = Classification().predict(outputs([1, 0, 0], [0, 1, 0], [0, 0, 1]), features_of(3), examples(["a", "b", "c"]), spelled)
    assert [(one.label, one.label_id) for one in found] == [(0, 0), (1, 1), (True, 2)]
    assert list(found[0].scores) == ["bad", "good", "so so"], "scores have the names"


def test_a_number_is_the_output() -> None:
    found = Regression().predict(outputs([0.1], [-7.25]), features_of(2), examples(["a", "b"]), NUMBER)
    assert [(one.label, one.scores) for one in found] == [(pytest.approx(0.1), [pytest.approx(0.1)]), (-7.25, [-7.25])]


def test_scores_are_those_of_scikit_learn_and_scipy() -> None:
    metrics, stats = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(60, 3)).astype(np.float32)
    truth = draw.integers(0, 3, 60)
    held = examples(["t"] * 60, labels=truth.tolist())
    predictions = Classification().predict(list(logits), features_of(60), held, TASK)
    found = Classification().score(predictions, held, TASK)
    best = logits.argmax(-1)
    assert found == pytest.approx(
        {"accuracy": metrics.accuracy_score(truth, best), "macro_f1": metrics.f1_score(truth, best, average="macro")}
    )
    values = draw.normal(size=60)
    held = examples(["t"] * 60, labels=values.tolist())
    outs = (values + draw.normal(size=60)).astype(np.float32)
    found = Regression().score(Regression().predict([np.array([v]) for v in outs], features_of(60), held, NUMBER), held, NUMBER)
    errors = {"mae": metrics.mean_absolute_error(values, outs), "rmse": metrics.root_mean_squared_error(values, outs)}
    assert found == pytest.approx({"pearson": stats.pearsonr(values, outs)[0], "spearman": stats.spearmanr(values, outs)[0]} | errors)


def test_heads() -> None:
    assert (KINDS["classification"].head, KINDS["classification"].num_outputs(TASK)) == ("sequence", 3)
    assert (KINDS["regression"].head, KINDS["regression"].num_outputs(NUMBER)) == ("sequence", 1)


def test_of_many_labels_the_most_probable_are_named() -> None:
    many = replace(TASK, labels=tuple(f"class {number}" for number in range(1000)))
    [found] = Classification().predict([np.linspace(0, 5, 1000, dtype=np.float32)], features_of(1), examples(["a"]), many)
    assert found.label == "class 999" and list(found.scores) == [f"class {number}" for number in range(999, 979, -1)]
    logits = np.where(np.arange(1000) < 30, 1, -1).astype(np.float32)
    [found] = MultiLabel().predict([logits], features_of(1), examples(["a"]), replace(many, kind="multi-label"))
    assert found.label == list(found.scores) == [f"class {number}" for number in range(30)]

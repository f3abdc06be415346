from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers, processors

from pldcli.tasks.reading import Unknown, notes_on_special_tokens, reader_of, reading_words
from pldcli.tasks.sequence import Classification
from pldcli.tasks.task import Examples, Task
from pldcli.tokenization.tokenizer import Tokenizer, load_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, "ton", "la", *"[]sep"]) + "\n", encoding="utf-8")
    return load_tokenizer(path)


def examples_of(*columns: list[Any]) -> Examples:
    return Examples("train", "a.csv", columns, None, list(range(len(columns[0]))))


def task_of(kind: Any, *columns: str) -> Task:
    return Task("x", kind, columns, "label", labels=("a", "b"), metrics=("accuracy",))


def test_columns_that_spell_special_tokens_are_named(wordpiece: Tokenizer) -> None:
    first, second = ["ton [SEP] la", "ton", "[SEP][MASK]"], ["ton", "la [sep]", "[ SEP ]"]
    pair, tags = task_of("classification", "one", "two"), task_of("tags", "words")
    notes = notes_on_special_tokens([examples_of(first, second)], pair, wordpiece, skips_padding=True)
    assert notes == ["a.csv: column 'one': 2 of 3 rows hold [SEP], [MASK], read as special tokens, as transformers does"]
    splits = [examples_of([["ton", "[SEP]"], ["la"]]), examples_of([["[SEP]"]])]
    notes = notes_on_special_tokens(splits, tags, wordpiece, skips_padding=True)
    assert notes == ["a.csv: column 'words': 2 of 3 rows hold [SEP], read as the special token, as transformers does"]
    assert notes_on_special_tokens([examples_of([], [])], pair, wordpiece, skips_padding=True) == []
    [note] = notes_on_special_tokens([examples_of(["[SEP]"])], task_of("classification"), wordpiece, skips_padding=True)
    assert note.startswith("a.csv: 1 of 1 rows hold [SEP]"), "a model from elsewhere does not say its columns"
    for skips, behind in ((False, ""), (True, "; but it shifts positions behind [PAD], so that its predictions may differ there")):
        [note] = notes_on_special_tokens([examples_of([["[PAD]"]])], tags, wordpiece, skips_padding=skips)
        assert note == f"a.csv: column 'words': 1 of 1 rows hold [PAD], read as the special token, as transformers does{behind}"


def test_text_for_pretraining_keeps_these_strings_as_text(wordpiece: Tokenizer) -> None:
    assert wordpiece.special.sep_id in reader_of(wordpiece).encode("ton [SEP] la", add_special_tokens=False).ids
    assert wordpiece.special.sep_id not in wordpiece.encode_document_lines(["ton [SEP] la"])


def test_unknown_tokens_are_counted_among_those_of_the_text(wordpiece: Tokenizer) -> None:
    features = Classification().encode(
        examples_of(["ton zzz la", "☃ [SEP] ton", ""]), task_of("classification", "one"), wordpiece, max_seq_len=16, stride=0
    )
    unknown = Unknown.of(features, wordpiece)
    assert (unknown.tokens, unknown.unknown, unknown.share) == (5, 2, 0.4)
    assert Unknown(0, 0).share == 0.0


def test_words_that_are_read_alike_everywhere_change_nothing(wordpiece: Tokenizer) -> None:
    assert reading_words(wordpiece) is wordpiece


def test_byte_level_words_get_their_space(tmp_path: Path) -> None:
    """It is no character of the word: offsets, from which pipelines take entities, begin with the word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet, "Ġa", "ba"])}
    fast = Fast(models.BPE(vocab=vocabulary, merges=[("Ġ", "a"), ("b", "a")], unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    changed = reading_words(tokenizer)
    assert changed.fingerprint == tokenizer.fingerprint
    encoding = reader_of(changed).encode(["a", "ba"], is_pretokenized=True)
    assert encoding.tokens == ["<s>", "Ġa", "Ġ", "ba", "</s>"] and encoding.offsets[1] == (0, 1)
    assert reading_words(changed) is changed

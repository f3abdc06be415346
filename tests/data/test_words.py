from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pldcli.data.masking import Masking
from pldcli.data.order import hashes, key
from pldcli.data.words import find_continuations
from pldcli.errors import UsageError
from pldcli.tokenization.tokenizer import Tokenizer, load_tokenizer
from pldcli.tokenization.training import train_tokenizer

NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = "the unbelievable cat, that sat; on the mat: unbelievably often"


def saved(path: Path, vocabulary: list[str], kind: str, **more: Any) -> Tokenizer:
    """A tokenizer.json over this vocabulary, in this order."""
    ids = {token: i for i, token in enumerate([*NAMES, *vocabulary])}
    tokens = {"added_tokens": [special(i, name) for i, name in enumerate(NAMES)]}
    model = {"type": kind, "vocab": ids, "unk_token": "[UNK]"} | more.pop("model", {})
    rest = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None, "decoder": None}
    (path / "tokenizer.json").write_text(json.dumps(rest | tokens | {"pre_tokenizer": None} | more | {"model": model}))
    return load_tokenizer(path / "tokenizer.json")


def special(i: int, name: str) -> dict[str, Any]:
    return {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def continuing(tokenizer: Tokenizer) -> set[str]:
    """What continues a word, special tokens left out."""
    table = find_continuations(tokenizer, where="objective.masking")
    assert table.shape == (tokenizer.vocab_size,)
    names = {i: token for token, i in tokenizer.fast.get_vocab().items()}
    return {names[i] for i in np.flatnonzero(table).tolist()} - set(NAMES)


def test_wordpiece_marks_what_continues_a_word(tmp_path: Path) -> None:
    words = ["the", "cat", ",", "##s", "##able", "▁the", "Ġthe"]
    model = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    assert continuing(saved(tmp_path, words, "WordPiece", model=model)) == {"##s", "##able"}


def test_byte_level_bpe_marks_what_begins_a_word(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"merges": ["Ġ t", "c a"], "unk_token": None, "byte_fallback": False}
    tokenizer = saved(tmp_path, [*letters, "Ġt", "ca"], "BPE", model=model, pre_tokenizer=byte_level, decoder=byte_level)
    found = continuing(tokenizer)
    assert found >= {"t", "c", "ca", ",", "Ń"}
    assert not found & {"Ġ", "Ġt", "Ċ", "ĉ"}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_marks_what_begins_a_word(kind: Any) -> None:
    tokenizer = train_tokenizer([f"{TEXT} {number}" for number in range(200)], vocab_size=80, model_type=kind)
    found = continuing(tokenizer)
    vocabulary = set(tokenizer.fast.get_vocab()) - set(NAMES)
    assert found == {token for token in vocabulary if not token.startswith("▁")}
    assert found and found != vocabulary
    table = find_continuations(tokenizer, where="")
    assert int((~table[tokenizer.encode_document_lines([TEXT])]).sum()) == len(TEXT.split())


def test_a_tokenizer_without_marks_is_refused_in_one_line(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path, ["the", "cat", "s"], "WordLevel", pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(UsageError) as caught:
        find_continuations(tokenizer, where="objective.masking")
    assert str(caught.value) == (
        "objective.masking: needs tokens that show where words begin, and those of this tokenizer do not; use objective.masking=token"
    )


def test_words_of_real_text_are_those_of_the_tokenizer(real_data: Path) -> None:
    """`tokenizers` knows of each token which word it came from; a published vocabulary, published text, rows of 512 tokens."""
    tokenizer = load_tokenizer(real_data / "vocab" / "bert-base-uncased-vocab.txt")
    lines = [line for line in (real_data / "pretrain" / "wikitext2_eval" / "valid.txt").read_text().splitlines() if len(line) > 2000][:40]
    table = find_continuations(tokenizer, where="")
    special = tokenizer.special
    for unit in ("whole-word", "span"):
        masking = Masking.of(0.15, special, tokenizer.vocab_size, unit=unit, continues_word=table)
        lengths: list[int] = []
        for number, line in enumerate(lines):
            encoding = tokenizer.fast.encode(line, add_special_tokens=False)
            ids, words = np.array(encoding.ids[:510]), np.array(encoding.word_ids[:510])
            row = np.concatenate([[special.cls_id], ids, [special.sep_id]])[None]
            chosen = masking(row, hashes(key(1), np.array([number]))).positions - 1
            left = np.setdiff1d(np.flatnonzero(~np.isin(ids, special.ids)), chosen)
            broken = np.intersect1d(words[chosen], words[left])
            assert len(broken) <= (unit == "span"), "but for the end of the last span, no word is masked in part"
            wanted = round(0.15 * int((~np.isin(ids, special.ids)).sum()))
            assert len(chosen) == wanted if unit == "span" else wanted - 3 <= len(chosen) <= wanted
            runs = np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1)
            lengths += [len(set(words[run].tolist())) for run in runs]
        assert max(lengths) <= 10 or unit == "whole-word"
        assert (3.3 < np.mean(lengths) < 4.1) == (unit == "span")

"""Text as ids for tasks, exactly as transformers reads it with the `tokenizer.json` that a fine-tuned model is exported with.

Unlike in text for pre-training, the strings of special tokens stand for these tokens here: users join fields with `[SEP]`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from pldcli.choices import TaskKind
from pldcli.tasks.task import Examples, Features, Task
from pldcli.tokenization.conversion import SPACE
from pldcli.tokenization.special_tokens import NOTED_UNKNOWN_SHARE
from pldcli.tokenization.tokenizer import Tokenizer

__all__ = ["Unknown", "encodings", "note_on_unknown", "notes_on_special_tokens", "reader_of", "reading_words"]

_NUM_PROBES = 12
_BATCH = 1024
"""Texts that are tokenized at once."""


@dataclass(frozen=True)
class Unknown:
    """How much of a split's text a tokenizer does not know."""

    tokens: int
    """Of the text, special tokens left out."""
    unknown: int

    @classmethod
    def of(cls, features: Features, tokenizer: Tokenizer) -> Unknown:
        """Count over all rows; what windows share counts in each."""
        unk_id = tokenizer.special.unk_id
        framing = np.array([one for one in tokenizer.special.ids if one != unk_id])
        return cls(int((~np.isin(features.input_ids, framing)).sum()), int((features.input_ids == unk_id).sum()))

    @property
    def share(self) -> float:
        """The fraction of unknown tokens; 0 where there is no text."""
        return self.unknown / self.tokens if self.tokens else 0.0


def reader_of(tokenizer: Tokenizer) -> Any:
    """Build the `tokenizers.Tokenizer` that reads as transformers does: special tokens are found in text."""
    import tokenizers

    return tokenizers.Tokenizer.from_str(tokenizer.json_text)


def encodings(texts: Iterable[str], fast: Any, *, with_offsets: bool = False) -> Iterator[tuple[str, Any]]:
    """Tokenize each distinct text once, without special tokens; `with_offsets` also finds the characters of each token."""
    distinct = list(dict.fromkeys(texts))
    encode = fast.encode_batch if with_offsets else fast.encode_batch_fast
    for first in range(0, len(distinct), _BATCH):
        batch = distinct[first : first + _BATCH]
        yield from zip(batch, encode(batch, add_special_tokens=False), strict=True)


def notes_on_special_tokens(splits: Iterable[Examples], task: Task, tokenizer: Tokenizer, *, skips_padding: bool) -> list[str]:
    """Name the columns of files in whose text special tokens are spelled.

    Args:
        splits: Those to look at; what comes from one file is counted together.
        task: Their task.
        tokenizer: The model's.
        skips_padding: The exported model counts positions without padding, as RoBERTa does: then the string of the padding token shifts
            positions in transformers, and here it does not.
    """
    strings = {i: token.content for i, token in reader_of(tokenizer).get_added_tokens_decoder().items() if token.special}
    columns: dict[tuple[str, str], list[str]] = {}
    for examples in splits:
        names = task.text_columns or ("",) * len(examples.inputs)  # unknown where a model from elsewhere does not say them
        for name, column in zip(names, examples.inputs, strict=True):
            texts = [" ".join(value) for value in column] if task.kind == TaskKind.TAGS else column
            columns.setdefault((examples.source, name), []).extend(texts)
    notes = []
    for (source, name), texts in columns.items():
        everything = "\n".join(texts)
        if found := {i: string for i, string in strings.items() if string in everything}:
            count = sum(any(string in text for string in found.values()) for text in texts)
            read = "the special token" if len(found) == 1 else "special tokens"
            rows = f"{count:,} of {len(texts):,} rows hold {', '.join(found.values())}"
            note = f"{source}: {f'column {name!r}: ' if name else ''}{rows}, read as {read}, as transformers does"
            if skips_padding and (padding := found.get(tokenizer.special.pad_id)):
                note += f"; but it shifts positions behind {padding}, so that its predictions may differ there"
            notes.append(note)
    return notes


def reading_words(tokenizer: Tokenizer) -> Tokenizer:
    """Change a tokenizer so that a word by itself has the ids that it has after a space in running text.

    Transformers reads text that is split into words one word at a time. Byte-level BPE, as RoBERTa's, and SentencePiece models without a
    space before the text would then take every word for the beginning of a text.

    Returns:
        The tokenizer as it is where words are read that way already, or where no change brings it about.
    """
    changed = _json_reading_words(tokenizer.json_text)
    return tokenizer if changed is None else replace(tokenizer, json_text=changed, sentencepiece=None)


@lru_cache(maxsize=4)
def _json_reading_words(text: str) -> str | None:
    import tokenizers

    fast = tokenizers.Tokenizer.from_str(text)
    words = _probes(fast)
    wanted = [_ids(fast, f"{words[0]} {word}")[len(_ids(fast, words[0])) :] for word in words]
    if [_ids(fast, word) for word in words] == wanted:
        return None
    for candidate in _with_space_before_words(text):
        changed = tokenizers.Tokenizer.from_str(candidate)
        if [_ids(changed, word) for word in words] == wanted:
            return candidate
    return None


def _ids(fast: Any, text: str) -> list[int]:
    return fast.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]


def _probes(fast: Any) -> Sequence[str]:
    """Choose words that the vocabulary knows, spread over it."""
    by_id = sorted(fast.get_vocab(with_added_tokens=False).items(), key=lambda pair: pair[1])
    words = [word for token, _ in by_id if (word := token.lstrip(f"Ġ{SPACE}")).isascii() and word.isalpha()]
    return words[:: max(1, len(words) // _NUM_PROBES)][:_NUM_PROBES] or ("a",)


def _with_space_before_words(text: str) -> Iterator[str]:
    """Yield a `tokenizer.json` with each of the settings by which tokenizers put a space before a text."""
    settings = json.loads(text)
    if (settings.get("pre_tokenizer") or {}).get("type") == "ByteLevel":
        settings["pre_tokenizer"]["add_prefix_space"] = True
        if "add_prefix_space" in (settings.get("post_processor") or {}):
            settings["post_processor"]["add_prefix_space"] = True  # the space is then not one of the word's characters
        yield json.dumps(settings, ensure_ascii=False)
    settings = json.loads(text)
    for step in _steps(settings.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = "always"
    yield json.dumps(settings, ensure_ascii=False)
    for space in (" ", SPACE):
        settings = json.loads(text)
        before = _steps(settings.get("normalizer"), "normalizers")
        settings["normalizer"] = {"type": "Sequence", "normalizers": [*before, {"type": "Prepend", "prepend": space}]}
        yield json.dumps(settings, ensure_ascii=False)


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    return [] if part is None else list(part.get(key, [part]))


def note_on_unknown(shares: dict[str, float]) -> list[str]:
    """Name the splits whose text the tokenizer does not know well."""
    parts = [f"{100 * share:.1f} % of the tokens in {split}" for split, share in shares.items() if share > NOTED_UNKNOWN_SHARE]
    return [f"unknown to the model's tokenizer: {', '.join(parts)}; the model sees the same [UNK] for all of them"] if parts else []

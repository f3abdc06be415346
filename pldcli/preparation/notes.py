"""What a user should know about prepared data before training on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pldcli.corpus.decoding import MANY_BAD_BYTES
from pldcli.data.prepared import unknown_shares
from pldcli.errors import DataError
from pldcli.preparation.fates import TRAIN, VALIDATION, Fates
from pldcli.preparation.stages import Scanned
from pldcli.tokenization.special_tokens import NOTED_UNKNOWN_SHARE
from pldcli.tokenization.tokenizer import Tokenizer

__all__ = ["check_something_is_known", "notes_on_comparison", "notes_on_data", "notes_on_overlap"]

Counts = dict[str, dict[str, int]]

_ONE_DOCUMENT_TOKENS = 20_000
"""More in a single document is likelier a file without blank lines."""
_SOUND_VALIDATION_TOKENS = 10_000
"""Fewer give a loss whose noise hides what runs differ by."""
_LARGE_VALIDATION_SHARE, _FEWEST_TOKENS = 0.2, 1000
_MUCH_UPPER_CASE = 0.1
_NOTED_LINE_SHARE, _LONGER_THAN_A_HEADING, _SHOWN_CHARACTERS = 0.05, 25, 60
_CASED_HINT = "if it is a cased vocabulary, keep case (--cased, with a vocab.txt)"


def notes_on_data(manifest: dict[str, Any], tokenizer: Tokenizer, *, was_trained: bool, chosen_by_user: bool) -> list[str]:
    """Look for text that the tokenizer does not fit, for a split that measures little, and for lines that most documents share.

    Args:
        manifest: Of the data.
        tokenizer: What the text was encoded with.
        was_trained: It was trained on this text.
        chosen_by_user: Validation has text of its own.
    """
    counts: Counts = manifest["counts"]
    hint = "a larger --vocab-size holds more characters" if was_trained else "without --tokenizer one is trained on this text"
    notes = [
        f"{share:.1%} of the {split} tokens are unknown ([UNK]): the vocabulary cannot spell them; {hint}."
        for split, share in unknown_shares(counts).items()
        if share > NOTED_UNKNOWN_SHARE
    ]
    if _has_upper_case_in_vain(tokenizer):
        notes.append(f"Text is lower-cased, and the vocabulary has many entries in upper case: {_CASED_HINT}.")
    train, validation = counts["train"]["tokens"], counts["validation"]["tokens"]
    share = validation / (train + validation)
    if share > _LARGE_VALIDATION_SHARE and train + validation > _FEWEST_TOKENS and not chosen_by_user:
        hint = "--document-per line would split more finely"
        notes.append(f"Validation holds {100 * share:.0f} % of the tokens: there are few different documents; {hint}.")
    if train > _ONE_DOCUMENT_TOKENS and counts["train"]["documents"] == 1:
        notes.append("All text is one document: a blank line ends one by default; does --document-per line fit?")
    documents = counts["train"]["documents"] + counts["validation"]["documents"]
    if train > _ONE_DOCUMENT_TOKENS and validation < _SOUND_VALIDATION_TOKENS:
        hint = "" if chosen_by_user else "; --validation takes a file of its own"
        notes.append(f"Validation has only {validation:,} tokens of {documents:,} documents: losses on it are rough{hint}.")
    if (replaced := manifest["replaced_bytes"]) >= MANY_BAD_BYTES:
        notes.append(f"{replaced:,} bytes do not belong to the encoding of their files and were replaced: --strict names the first one.")
    repeated = [one for one in manifest["repeated_lines"] if len(one["line"]) >= _LONGER_THAN_A_HEADING]
    often = [one for one in repeated if one["documents"] > _NOTED_LINE_SHARE * documents]
    if often:
        line, number = often[0]["line"], often[0]["documents"]
        shown = line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."
        several = f", and {len(often) - 1} more in many" if len(often) > 1 else ""
        notes.append(f"The line {shown!r} stands in {number:,} of {documents:,} documents{several}: `pld data inspect` lists such lines.")
    return notes


def notes_on_overlap(scans: Sequence[Scanned], fates: Fates) -> list[str]:
    """Say how many documents of the training text stand in that for validation, too."""
    hashes = np.concatenate([scan.hashes for scan in scans])
    train, validation = (hashes[fates.of_documents == role] for role in (TRAIN, VALIDATION))
    if not (shared := int(np.isin(train, validation).sum())):
        return []
    return [f"{shared:,} training documents stand in the validation text, too: the loss on it is lower than on text that is new."]


def notes_on_comparison(scans: Sequence[Scanned], overlap_words: int) -> list[str]:
    """Name the files that documents were compared with in vain."""
    what = f"has no {overlap_words} words in a row, so nothing was found to overlap with it"
    return [f"{path} {what}: --overlap-words takes fewer." for path in scans[0].without_a_run]


def check_something_is_known(counts: Counts, tokenizer: Tokenizer) -> None:
    """Refuse a split without a token that masked-LM training could ask for: unknown and special tokens are never targets.

    Raises:
        DataError: There is such a split.
    """
    for split, count in counts.items():
        if count["tokens"] == count["documents"]:
            hint = "name other text"
            raise DataError("nothing is left of it when the tokenizer has normalised it", where=f"{split} text", hint=hint)
        if count["unknown"] >= count["tokens"] - count["documents"]:
            what = "every token is unknown to the tokenizer, so that nothing could be masked"
            if (longest := getattr(tokenizer.fast.model, "max_input_chars_per_word", None)) is not None:
                what += f" (WordPiece knows no word of more than {longest} characters)"
            hint = "name a tokenizer made for such text with --tokenizer, or train one on it"
            if _has_upper_case_in_vain(tokenizer):
                hint = f"{_CASED_HINT}; else {hint}"
            raise DataError(what, where=f"{split} text", hint=hint)


def _has_upper_case_in_vain(tokenizer: Tokenizer) -> bool:
    """Return whether a vocabulary has many entries that lower-cased text never meets."""
    if tokenizer.normaliser != "bert-uncased":
        return False
    words: list[str] = [token for token in tokenizer.fast.get_vocab(with_added_tokens=False) if not token.startswith("[")]
    return sum(token != token.lower() for token in words) > _MUCH_UPPER_CASE * len(words)

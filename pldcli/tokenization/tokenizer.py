"""Train a tokenizer, or take one that is there, and turn text into ids.

Whatever the origin, `tokenizer.json` holds it; a SentencePiece model is kept beside it, because it encodes faster.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pldcli.choices import ModelType
from pldcli.errors import DataError, UsageError
from pldcli.tokenization import conversion
from pldcli.tokenization.cuts import (
    CONTEXT,
    cut_before,
    encode_plainly,
    lines_are_independent,
    parting_spaces,
    words_are_independent,
)
from pldcli.tokenization.files import JSON, SENTENCEPIECE, FoundTokenizer, library_errors, parse_sentencepiece, read_file, read_prepared
from pldcli.tokenization.special_tokens import SpecialTokens, complete
from pldcli.tokenization.words import KnownParts, WordPieces, as_bytes, short_lines

__all__ = ["SpecialTokens", "Tokenizer", "load_prepared_tokenizer", "load_tokenizer", "train_tokenizer"]

_CHARACTER_COVERAGE = 0.9995
"""The share of the text whose characters always have entries, however many they are."""
_CHARACTER_SHARE, _PLAIN_CHARACTERS = 0.1, 256
"""The rarer ones have entries too as long as all characters take a tenth of the vocabulary, or in a small one 256 and a half at most."""
_NUM_TRAINING_THREADS = 8
"""The same everywhere: the sums of unigram training depend on it."""

_TOO_LARGE = re.compile(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)")
_TOO_SMALL = re.compile(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)")


Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A vocabulary, and how text becomes its ids."""

    json_text: str
    """The content of `tokenizer.json`."""

    sentencepiece: bytes | None
    """The SentencePiece model that it was converted from."""

    special: SpecialTokens
    vocab_size: int
    """The largest id plus one."""

    fingerprint: str
    """SHA-256 over the sorted (token, id) pairs: equal for equal vocabularies."""

    model_type: str
    normaliser: str

    def encode_document_lines(self, lines: Sequence[str], *, continued: bool = False) -> list[int]:
        """Tokenize a text, given as its lines, without adding special tokens: the ids of `fast.encode` on the whole text.

        The strings of special tokens are text here; where the tokenizer makes a special token of text nevertheless, the unknown token
        takes its place.

        Args:
            lines: The text, split at its line ends.
            continued: The text is a later part of a document, cut before white space where there is some.
        """
        ids: list[int] = self.document_ids(lines, continued=continued).tolist()
        return ids

    def document_ids(self, lines: Sequence[str], *, continued: bool = False) -> Ids:
        """Do what `encode_document_lines` does, into an array: [tokens]."""
        if not self._lines_are_independent:
            ids = self._encode_whole("\n".join(lines), continued)
        elif self._words_are_independent:
            ids = self._encode_words(lines)
        else:
            ids = np.array(list(chain.from_iterable(self._encode_batch(short_lines(lines)))), np.uint32)
        ids[np.isin(ids, self._banned)] = self.special.unk_id
        return ids

    def count_conversion_differences(self, lines: Sequence[str]) -> int:
        """Count the lines that `tokenizer.json` and the SentencePiece model encode differently."""
        if self._processor is None:
            return 0
        ours = self._processor.encode(list(lines))
        theirs = self.fast.encode_batch_fast(list(lines), add_special_tokens=False)
        return sum(mine != other.ids for mine, other in zip(ours, theirs, strict=True))

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`, and `sentencepiece.model` when there is one, into a directory that is being written."""
        (directory / JSON).write_bytes(self.json_text.encode())
        if self.sentencepiece is not None:
            (directory / SENTENCEPIECE).write_bytes(self.sentencepiece)

    @cached_property
    def fast(self) -> Any:
        """The `tokenizers.Tokenizer`, set to leave the strings of special tokens in text alone."""
        import tokenizers

        fast = tokenizers.Tokenizer.from_str(self.json_text)
        fast.encode_special_tokens = True
        return fast

    @cached_property
    def _processor(self) -> Any:
        return None if self.sentencepiece is None else conversion.load(self.sentencepiece)

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return encode_plainly(self.fast, texts) if self._processor is None else self._processor.encode(texts)

    def _encode_whole(self, text: str, continued: bool) -> Ids:
        """Encode a text in parts that give the same ids, as far as there are such parts, each distinct one once."""
        if not self._parting_spaces:
            return np.array(encode_plainly(self.fast, [text])[0], np.uint32)
        first, *others = cut_before(text, self._parting_spaces)
        known = self.known_parts
        begin = known[first] if continued else as_bytes(encode_plainly(self.fast, [first])[0])
        ids = np.frombuffer(bytearray().join([begin, *map(known.__getitem__, others)]), np.uint32)
        known.forget()
        return ids

    def _encode_behind_text(self, part: str) -> bytes:
        context, encoded = self._context, self.fast.encode(CONTEXT + part, add_special_tokens=False).ids
        parted = encoded[: len(context)] == context  # not where a word goes on behind the cut
        return as_bytes(encoded[len(context) :] if parted else encode_plainly(self.fast, [part])[0])

    @cached_property
    def _lines_are_independent(self) -> bool:
        return lines_are_independent(self.fast, self._encode_batch)

    @cached_property
    def _context(self) -> list[int]:
        return encode_plainly(self.fast, [CONTEXT])[0]

    @cached_property
    def _parting_spaces(self) -> str:
        return parting_spaces(self.fast)

    def _encode_words(self, lines: Sequence[str]) -> Ids:
        """Encode what stands between spaces, each distinct part once: several times as fast as whole lines."""
        known = self.known_parts
        ids = np.frombuffer(bytearray().join(map(known.__getitem__, " ".join(lines).split(" "))), np.uint32)
        known.forget()
        return ids

    @cached_property
    def known_parts(self) -> KnownParts:
        """What was met of parts whose ids do not depend on what stands around them."""
        processor = self._processor
        if processor is None:
            return KnownParts(WordPieces(self.fast) if self._lines_are_independent else self._encode_behind_text)
        return KnownParts(lambda part: as_bytes(list(chain.from_iterable(processor.encode(short_lines([part]))))))

    @cached_property
    def _words_are_independent(self) -> bool:
        """Whether no piece crosses a space, and spaces only separate words: in BERT's WordPiece, and in BPE of SentencePiece.

        Not in unigram, which may break ties by the context.
        """
        if self._processor is None:
            return words_are_independent(self.fast)
        if self.model_type != "bpe":
            return False
        processor = self._processor
        crossing = any(conversion.SPACE in processor.id_to_piece(i)[1:] for i in range(processor.get_piece_size()))
        has_space = processor.piece_to_id(conversion.SPACE) != processor.unk_id()
        probe, *words = processor.encode([" b  a ", "b", "a", ""])
        return not crossing and has_space and probe == list(chain.from_iterable(words)) and processor.encode("") == []

    @cached_property
    def _banned(self) -> list[int]:
        return sorted(set(self.special.ids) - {self.special.unk_id})


def train_tokenizer(
    pieces: Iterable[str], *, vocab_size: int, model_type: ModelType = "bpe", cased: bool = False, seed_sentencepiece_size: int = 1_000_000
) -> Tokenizer:
    """Train a SentencePiece tokenizer.

    Args:
        pieces: Text, each piece at most 4192 bytes: SentencePiece drops longer ones.
        vocab_size: Entries wanted; fewer come out where the text does not support that many.
        model_type: `bpe`, or `unigram` (slower to train).
        cased: Keep upper and lower case apart.
        seed_sentencepiece_size: Candidates that unigram training starts with.

    Raises:
        DataError: There is too little text.
        UsageError: The vocabulary wanted does not even hold the characters.
    """
    import sentencepiece

    texts = list(pieces)
    size, rule = vocab_size, "nmt_nfkc" if cased else "nmt_nfkc_cf"
    coverage = _character_coverage(texts, rule, max(int(_CHARACTER_SHARE * size), min(_PLAIN_CHARACTERS, size // 2)))
    while True:
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                vocab_size=size,
                model_type=model_type,
                normalization_rule_name=rule,
                pad_id=0,
                pad_piece="[PAD]",
                unk_id=1,
                unk_piece="[UNK]",
                bos_id=-1,
                eos_id=-1,
                control_symbols=["[CLS]", "[SEP]", "[MASK]"],
                character_coverage=coverage,
                seed_sentencepiece_size=seed_sentencepiece_size,
                num_threads=_NUM_TRAINING_THREADS,
                minloglevel=4,
            )
        except (RuntimeError, ValueError) as error:
            if found := _TOO_SMALL.search(str(error)):
                what = f"a vocabulary of {vocab_size:,} does not hold the characters of the corpus"
                raise UsageError(what, where="--vocab-size", hint=f"{int(found[1]):,} is the least") from error
            found = _TOO_LARGE.search(str(error))
            if found is None or not 5 < int(found[1]) < size:
                raise DataError(
                    "there is too little text to train a tokenizer on", hint="add text, or name a tokenizer with --tokenizer"
                ) from error
            size = int(found[1])
        else:
            return _complete(parse_sentencepiece(model.getvalue(), where="the trained tokenizer"))


def _character_coverage(texts: Sequence[str], rule: str, most: int) -> float:
    """Choose the share of the text whose characters have entries: all of it, or that of the `most` frequent characters."""
    import sentencepiece

    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=rule)
    found: set[str] = set()
    for text in texts:
        found.update(normalizer.normalize(text))
    if len(found) <= most:
        return 1.0
    counts = Counter[str]()
    for text in texts:
        counts.update(normalizer.normalize(text))
    kept = sorted(counts.values(), reverse=True)[:most]
    between = sum(kept) - kept[-1] / 2  # SentencePiece adds characters until it is past the share
    return max(_CHARACTER_COVERAGE, between / counts.total())


def load_tokenizer(path: Path, *, cased: bool = False) -> Tokenizer:
    """Load an existing tokenizer; its ids stay as they are.

    Args:
        path: A WordPiece `vocab.txt`, a `tokenizer.json` or a SentencePiece `.model`, or a directory that holds one of them or a
            `vocab.json` with its `merges.txt`, or a run. A directory is read as `AutoTokenizer` of transformers reads it; so is what
            stands beside a `vocab.txt`. A `tokenizer.json` that is named itself counts as it stands.
        cased: For BERT's WordPiece only: keep upper and lower case apart, whatever the files say.

    Raises:
        DataError: There is no such file, it is not a tokenizer, or it lacks something that training or export needs.
    """
    return _complete(read_file(path, cased=cased))


def load_prepared_tokenizer(directory: Path) -> Tokenizer:
    """Load what `Tokenizer.save` wrote."""
    return _complete(read_prepared(directory))


def _complete(found: FoundTokenizer) -> Tokenizer:
    """Check that a tokenizer has what training and export need of it, and mark its special tokens as such where it does not."""
    fast = found.fast
    with library_errors("cannot be used", where=found.where):
        special, changed = complete(fast, found.names, where=found.where)
    text = fast.to_str() if changed or found.json_text is None else found.json_text
    vocabulary = fast.get_vocab(with_added_tokens=True)
    normaliser = json.loads(text).get("normalizer") or {}
    name = normaliser.get("type", "none")
    if found.sentencepiece is not None:
        name = conversion.normaliser_name(found.sentencepiece)
    elif name == "BertNormalizer":
        name = "bert-uncased" if normaliser.get("lowercase", True) else "bert-cased"
    pairs = json.dumps(sorted(vocabulary.items()), ensure_ascii=True, separators=(",", ":"))
    return Tokenizer(
        json_text=text,
        sentencepiece=found.sentencepiece,
        special=special,
        vocab_size=max(vocabulary.values()) + 1,
        fingerprint=hashlib.sha256(pairs.encode()).hexdigest(),
        model_type=type(fast.model).__name__.lower(),
        normaliser=name,
    )

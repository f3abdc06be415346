"""Train a tokenizer, or take one that is there, and turn text into ids.

Whatever the origin, `tokenizer.json` holds it; a SentencePiece model is kept beside it, because it encodes faster.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pldcli import atomic
from pldcli.data import conversion
from pldcli.errors import DataError, UsageError

__all__ = [
    "ModelType",
    "SpecialTokens",
    "Tokenizer",
    "fingerprint",
    "load_prepared_tokenizer",
    "load_tokenizer",
    "train_tokenizer",
    "unknown_share",
    "vocab_fingerprint",
]

ModelType = Literal["bpe", "unigram"]

SPECIAL_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
"""Each special token under the names of BERT and RoBERTa."""

MAX_LINE_CHARACTERS = 8192
"""Longer lines are cut before encoding: the time and memory of BPE grow with the line."""

_MAX_KNOWN_WORDS = 1 << 17

_CHARACTER_COVERAGE = 0.9995
_NUM_TRAINING_THREADS = 8
"""The same everywhere: the sums of unigram training depend on it."""

_TOO_LARGE = re.compile(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)")
_TOO_SMALL = re.compile(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that have a role and never stand for text."""

    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    other_ids: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """List every special id of the tokenizer, in order."""
        return tuple(sorted({self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id, *self.other_ids}))


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and the way from text to ids."""

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

    def encode_document_lines(self, lines: Sequence[str]) -> list[int]:
        """Encode lines of text, one after the other, without adding special tokens.

        The strings of special tokens are text here; where the tokenizer makes a special id of text nevertheless, the id of
        the unknown token takes its place.
        """
        short = list(chain.from_iterable(_short_lines(line) for line in lines if line))
        if self._processor is not None:
            ids = self._encode_words(short) if self._words_are_independent else list(chain.from_iterable(self._processor.encode(short)))
        else:
            ids = list(chain.from_iterable(one.ids for one in self.fast.encode_batch_fast(short, add_special_tokens=False)))
        if not self._banned.isdisjoint(ids):
            ids = [self.special.unk_id if i in self._banned else i for i in ids]
        return ids

    def count_conversion_differences(self, lines: Sequence[str]) -> int:
        """Count the lines that `tokenizer.json` and the SentencePiece model encode differently."""
        if self._processor is None:
            return 0
        ours = self._processor.encode(list(lines))
        theirs = self.fast.encode_batch_fast(list(lines), add_special_tokens=False)
        return sum(mine != other.ids for mine, other in zip(ours, theirs, strict=True))

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`, and `sentencepiece.model` when there is one."""
        atomic.write_text(directory / "tokenizer.json", self.json_text)
        if self.sentencepiece is not None:
            atomic.write_bytes(directory / "sentencepiece.model", self.sentencepiece)

    @cached_property
    def fast(self) -> Any:
        """The `tokenizers.Tokenizer`, set to leave the strings of special tokens in text alone."""
        import tokenizers

        fast = tokenizers.Tokenizer.from_str(self.json_text)
        fast.no_truncation()
        fast.no_padding()
        fast.encode_special_tokens = True
        return fast

    @cached_property
    def _processor(self) -> Any:
        return None if self.sentencepiece is None else _processor(self.sentencepiece)

    def _encode_words(self, lines: Sequence[str]) -> list[int]:
        """Encode each distinct word once: several times as fast as whole lines."""
        words = list(chain.from_iterable(line.split(" ") for line in lines))
        known = self._ids_of_words
        if new := [word for word in dict.fromkeys(words) if word not in known]:
            known.update(zip(new, self._processor.encode(new), strict=True))
        ids = list(chain.from_iterable(map(known.__getitem__, words)))
        if len(known) > _MAX_KNOWN_WORDS:
            known.clear()
        return ids

    @cached_property
    def _ids_of_words(self) -> dict[str, list[int]]:
        return {}

    @cached_property
    def _words_are_independent(self) -> bool:
        """Tell whether no piece reaches over a space, and spaces are no more than the marks between words.

        Only for BPE: where segmentations tie, unigram may choose another one in another context.
        """
        if self.model_type != "bpe":
            return False
        processor = self._processor
        crossing = any(conversion.SPACE in processor.id_to_piece(i)[1:] for i in range(processor.get_piece_size()))
        has_space = processor.piece_to_id(conversion.SPACE) != processor.unk_id()
        probe, *words = processor.encode([" b  a ", "b", "a", ""])
        return not crossing and has_space and probe == list(chain.from_iterable(words)) and processor.encode("") == []

    @cached_property
    def _banned(self) -> frozenset[int]:
        return frozenset(self.special.ids) - {self.special.unk_id}


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
    size = vocab_size
    while True:
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                vocab_size=size,
                model_type=model_type,
                normalization_rule_name="nmt_nfkc" if cased else "nmt_nfkc_cf",
                pad_id=0,
                pad_piece="[PAD]",
                unk_id=1,
                unk_piece="[UNK]",
                bos_id=-1,
                eos_id=-1,
                control_symbols=["[CLS]", "[SEP]", "[MASK]"],
                character_coverage=_CHARACTER_COVERAGE,
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
            return _from_sentencepiece(model.getvalue(), where="the trained tokenizer")


def load_tokenizer(path: Path, *, cased: bool = False) -> Tokenizer:
    """Load an existing tokenizer; its ids stay as they are.

    Args:
        path: A WordPiece `vocab.txt`, a `tokenizer.json`, a SentencePiece `.model`, a directory that holds one of them, or a run.
        cased: For a `vocab.txt` only: keep upper and lower case apart; so it is too where a `tokenizer_config.json` beside it says so.

    Raises:
        DataError: There is no such file, it is not a tokenizer, or it lacks a special token.
    """
    if path.is_dir():
        names = ("tokenizer.json", "vocab.txt", "sentencepiece.model", "spiece.model")
        places = [place / name for place in (path, path / "model") for name in names]
        path = next((place for place in places if place.is_file()), places[0])
    content = _read(path)
    if path.suffix == ".json":
        return _from_json(_text(content, path), where=str(path))
    if path.suffix == ".txt":
        return _from_wordpiece(_text(content, path), cased=cased or _is_cased(path.parent), where=str(path))
    if path.suffix == ".model":
        return _from_sentencepiece(content, where=str(path))
    raise DataError("is not a tokenizer known here", where=str(path), hint="name a vocab.txt, a tokenizer.json or a SentencePiece .model")


def load_prepared_tokenizer(directory: Path) -> Tokenizer:
    """Load what `Tokenizer.save` wrote."""
    path = directory / "tokenizer.json"
    model = directory / "sentencepiece.model"
    return _from_json(_text(_read(path), path), where=str(path), sentencepiece=model.read_bytes() if model.is_file() else None)


def unknown_share(ids: npt.ArrayLike, special: SpecialTokens) -> float:
    """Work out which share of a text's tokens the vocabulary could not spell.

    Args:
        ids: The tokens of any number of texts, special ones among them or not.
        special: The tokenizer's.

    Returns:
        Unknown tokens over all tokens that stand for text; 0 where there is no text.
    """
    ids = np.asarray(ids)
    unknown = int(np.count_nonzero(ids == special.unk_id))
    return unknown / max(1, ids.size - int(np.count_nonzero(np.isin(ids, special.ids))) + unknown)


def fingerprint(path: Path) -> str:
    """Fingerprint the vocabulary of a `tokenizer.json`, as `Tokenizer.fingerprint` does."""
    return _fingerprint(_parse(_text(_read(path), path), where=str(path)).get_vocab(with_added_tokens=True))


def vocab_fingerprint(path: Path) -> str:
    """Fingerprint a WordPiece `vocab.txt`: equal to that of its `tokenizer.json`."""
    return _fingerprint(_wordpiece_vocabulary(_text(_read(path), path)))


def _is_cased(directory: Path) -> bool:
    """Read what a `vocab.txt` does not say; BERT's default is to lower-case."""
    try:
        return json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8")).get("do_lower_case") is False
    except (OSError, ValueError, AttributeError):
        return False


def _from_sentencepiece(model: bytes, *, where: str) -> Tokenizer:
    try:
        processor = _processor(model)
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError("is not a SentencePiece model", where=where) from error
    vocabulary = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    special = _find_special(vocabulary, where=where)
    fast, model_type = conversion.to_tokenizer(model, processor)
    _add_special(fast, vocabulary, special)
    return _finish(fast.to_str(), fast, special, model_type, conversion.normaliser_name(model), model)


def _from_wordpiece(text: str, *, cased: bool, where: str) -> Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    vocabulary = _wordpiece_vocabulary(text)
    special = _find_special(vocabulary, where=where)
    unknown = next(token for token, i in vocabulary.items() if i == special.unk_id)
    fast = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=unknown))
    fast.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    _add_special(fast, vocabulary, special)
    return _finish(fast.to_str(), fast, special, "wordpiece", "bert-cased" if cased else "bert-uncased", None)


def _from_json(text: str, *, where: str, sentencepiece: bytes | None = None) -> Tokenizer:
    fast = _parse(text, where=where)
    vocabulary = fast.get_vocab(with_added_tokens=True)
    added = fast.get_added_tokens_decoder()
    special = _find_special(vocabulary, where=where, others=tuple(i for i, token in added.items() if token.special))
    if fast.post_processor is None:  # nothing would stand around a text otherwise
        _add_template(fast, {i: token for token, i in vocabulary.items()}, special)
        text = fast.to_str()
    parsed = json.loads(text)
    name = (parsed.get("normalizer") or {}).get("type", "none")
    if sentencepiece is not None:
        name = conversion.normaliser_name(sentencepiece)
    elif name == "BertNormalizer":
        name = "bert-uncased" if parsed["normalizer"].get("lowercase", True) else "bert-cased"
    return _finish(text, fast, special, str(parsed["model"].get("type", "unknown")).lower(), name, sentencepiece)


def _finish(text: str, fast: Any, special: SpecialTokens, model_type: str, normaliser: str, sentencepiece: bytes | None) -> Tokenizer:
    vocabulary = fast.get_vocab(with_added_tokens=True)
    return Tokenizer(
        json_text=text,
        sentencepiece=sentencepiece,
        special=special,
        vocab_size=max(vocabulary.values()) + 1,
        fingerprint=_fingerprint(vocabulary),
        model_type=model_type,
        normaliser=normaliser,
    )


def _find_special(vocabulary: dict[str, int], *, where: str, others: tuple[int, ...] = ()) -> SpecialTokens:
    ids = {}
    for role, names in SPECIAL_NAMES.items():
        found = next((vocabulary[name] for name in names if name in vocabulary), None)
        if found is None:
            what = f"has no special token {names[0]} (or {names[1]})"
            raise DataError(what, where=where, hint="a BERT or RoBERTa vocabulary is needed; without --tokenizer one is trained")
        ids[f"{role}_id"] = found
    return SpecialTokens(**ids, other_ids=tuple(sorted(set(others) - set(ids.values()))))


def _add_special(fast: Any, vocabulary: dict[str, int], special: SpecialTokens) -> None:
    """Mark the special tokens as such, and let the tokenizer wrap sequences as BERT does."""
    from tokenizers import AddedToken

    names = {i: token for token, i in vocabulary.items()}
    fast.add_special_tokens([AddedToken(names[i], special=True, normalized=False) for i in special.ids])
    _add_template(fast, names, special)


def _add_template(fast: Any, names: dict[int, str], special: SpecialTokens) -> None:
    from tokenizers import processors

    cls, sep = names[special.cls_id], names[special.sep_id]
    fast.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, special.cls_id), (sep, special.sep_id)],
    )


def _parse(text: str, *, where: str) -> Any:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"is not a tokenizer.json ({str(error).splitlines()[0]})", where=where) from error


def _processor(model: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)


def _wordpiece_vocabulary(text: str) -> dict[str, int]:
    lines = text.split("\n")
    return {line.rstrip("\r"): i for i, line in enumerate(lines if lines[-1] else lines[:-1])}


def _fingerprint(vocabulary: dict[str, int]) -> str:
    pairs = json.dumps(sorted(vocabulary.items()), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(pairs.encode()).hexdigest()


def _short_lines(line: str) -> Iterable[str]:
    if len(line) <= MAX_LINE_CHARACTERS:
        return (line,)
    from pldcli.data.corpus import cut_at_whitespace

    return (part for part, _ in cut_at_whitespace(line, MAX_LINE_CHARACTERS))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise DataError(what, where=str(path)) from error


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text", where=str(path)) from error

"""A SentencePiece model as a Hugging Face `tokenizer.json` that gives the same ids.

The normaliser is the delicate part. SentencePiece replaces the longest match in its table of characters anywhere;
`tokenizers` looks up whole grapheme clusters, takes the SHORTEST match of each and drops the rest of a short cluster. So
text is composed first (NFKC), and what still combines is parted from what stands before it by a control character that the
table removes again; not at the begin of a text, where `tokenizers` fails to remove one.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from typing import Any

from pldcli.errors import DataError

__all__ = ["SPACE", "has_plain_spaces", "load", "normaliser_name", "to_tokenizer", "with_plain_spaces"]

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

_PARTING = "\x01"
_PLAIN_SPACES = "[\t-\r]", " "
"""Line ends and tabs, and what they become where the table leaves them."""
_TRAINER, _NORMALISER = 2, 3
_MODEL_TYPE, _SUFFIX_SPACES = 3, 24
_NAME, _CHARACTERS, _DUMMY_PREFIX, _EXTRA_SPACES = 1, 2, 3, 4
_UNIGRAM, _BPE = 1, 2


def normaliser_name(model: bytes) -> str:
    """Read the name of the normalisation rule, such as `nmt_nfkc_cf`, from a SentencePiece model."""
    return bytes(_message(model, _NORMALISER).get(_NAME, b"")).decode() or "custom"


def load(model: bytes) -> Any:
    """Load a serialised SentencePiece model."""
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)


def with_plain_spaces(text: str) -> str:
    """Put a space in the place of each line end and tab."""
    return re.sub(*_PLAIN_SPACES, text)


def has_plain_spaces(json_text: str) -> bool:
    """Return whether a `tokenizer.json` made here does that to text first, so that it is due before its SentencePiece model, too."""
    first = ((json.loads(json_text).get("normalizer") or {}).get("normalizers") or [{}])[0]
    pattern, content = _PLAIN_SPACES
    return bool(first == {"type": "Replace", "pattern": {"Regex": pattern}, "content": content})


def to_tokenizer(model: bytes, where: str, *, plain_spaces: bool = False) -> Any:
    """Build the `tokenizers.Tokenizer` that equals a serialised SentencePiece model, without special tokens and post-processor.

    Args:
        model: Its bytes.
        where: Its file, for errors.
        plain_spaces: Let `with_plain_spaces` go first. Of the rules of SentencePiece only those of `nmt` make spaces of line ends.

    Raises:
        DataError: The model is neither BPE nor unigram.
    """
    from tokenizers import Tokenizer, decoders

    processor = load(model)
    trainer = _message(model, _TRAINER)
    kind = trainer.get(_MODEL_TYPE, _UNIGRAM)
    if kind not in (_UNIGRAM, _BPE) or trainer.get(_SUFFIX_SPACES):
        what = "the SentencePiece model is neither BPE nor unigram with spaces in front"
        raise DataError(what, where=where, hint="use a bpe or unigram model")
    tokenizer = Tokenizer(_bpe(processor) if kind == _BPE else _unigram(processor))
    tokenizer.normalizer = _normaliser(_message(model, _NORMALISER), plain_spaces=plain_spaces)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _normaliser(spec: dict[int, Any], *, plain_spaces: bool) -> Any:
    from tokenizers import Regex, normalizers

    pattern, space = _PLAIN_SPACES
    steps: list[Any] = [normalizers.Replace(Regex(pattern), space)] if plain_spaces else []
    name = bytes(spec.get(_NAME, b"")).decode()
    if characters := spec.get(_CHARACTERS):
        if "nfkc" in name:
            steps += [normalizers.NFKC(), normalizers.Replace(Regex(r"(?<=[\s\S])(?=[\p{M}\u200c\u200d])"), _PARTING)]
        steps.append(normalizers.Precompiled(bytes(characters)))
        if "nfkc" in name and not name.startswith("nmt"):
            steps.append(normalizers.Replace(_PARTING, ""))
    if spec.get(_EXTRA_SPACES, 1):
        steps += [normalizers.Replace(Regex(" +"), " "), normalizers.Replace(Regex(f"^ +|[ {SPACE}]+$"), "")]
    if spec.get(_DUMMY_PREFIX, 1):
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _bpe(processor: Any) -> Any:
    """Rebuild the merges: a pair of pieces merges if its union is a piece, the better its score the earlier."""
    from tokenizers import models

    size = processor.get_piece_size()
    vocabulary = {processor.id_to_piece(i): i for i in range(size)}
    usable = [i for i in range(size) if not (processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i))]
    pieces = {processor.id_to_piece(i) for i in usable}
    merges = []
    for i in sorted(usable, key=lambda i: (-processor.get_score(i), i)):
        piece = processor.id_to_piece(i)
        merges += [(piece[:k], piece[k:]) for k in range(1, len(piece)) if piece[:k] in pieces and piece[k:] in pieces]
    has_bytes = any(processor.is_byte(i) for i in usable)
    unknown = processor.id_to_piece(processor.unk_id())
    return models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)


def _unigram(processor: Any) -> Any:
    """Keep the scores; a control piece gets one so low that no text becomes it."""
    from tokenizers import models

    size = processor.get_piece_size()
    special = {i for i in range(size) if processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i)}
    lowest = min((processor.get_score(i) for i in range(size) if i not in special), default=0.0) - 1e4
    vocabulary = [(processor.id_to_piece(i), lowest if i in special else processor.get_score(i)) for i in range(size)]
    has_bytes = any(processor.is_byte(i) for i in range(size))
    return models.Unigram(vocabulary, unk_id=processor.unk_id(), byte_fallback=has_bytes)


def _message(model: bytes, number: int) -> dict[int, Any]:
    """Read a sub-message of a SentencePiece model; of repeated fields the last."""
    try:
        return dict(_fields(next(value for field, value in _fields(model) if field == number)))
    except StopIteration:
        return {}


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Walk over the fields of a protocol-buffers message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 2: -1, 5: 4}[kind]
        size = varint() if size < 0 else size
        value = message[at : at + size]
        at += size
        yield key >> 3, struct.unpack("<f", value)[0] if kind == 5 else value

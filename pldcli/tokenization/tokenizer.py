"""A tokenizer: text becomes ids.

Whatever the origin, `tokenizer.json` holds it; a SentencePiece model is kept beside it, because it encodes faster.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pldcli.corpus.reader import Piece
from pldcli.tokenization import conversion
from pldcli.tokenization.cuts import (
    CONTEXT,
    cut_before,
    encode_plainly,
    lines_are_independent,
    parting_spaces,
    words_are_independent,
)
from pldcli.tokenization.files import JSON, SENTENCEPIECE, FoundTokenizer, library_errors, read_file, read_prepared
from pldcli.tokenization.special_tokens import SpecialTokens, complete
from pldcli.tokenization.words import Ids, KnownParts, WordPieces, as_bytes, batches, encode_between_spaces, marked, short_lines

__all__ = ["SpecialTokens", "Tokenizer", "complete_tokenizer", "load_prepared_tokenizer", "load_tokenizer"]


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
        ((_, ids),) = self.encode_pieces([("\n".join(lines), True)], continued=continued)
        whole: list[int] = ids.tolist()
        return whole

    def encode_pieces(self, pieces: Iterable[Piece], *, continued: bool = False) -> Iterator[tuple[Piece, Ids]]:
        """Do what `encode_document_lines` does with each piece of documents that follow each other, into arrays: [tokens].

        Args:
            pieces: Of documents, in their order; some megabytes of them are read ahead where that is faster.
            continued: The first one is a later piece of its document.
        """
        if self._lines_are_independent and self._words_are_independent:
            for batch in batches(pieces):
                yield from zip(batch, self._encode_words([text for text, _ in batch]), strict=True)
            return
        for text, last in pieces:
            if self._lines_are_independent:
                ids = np.array(list(chain.from_iterable(self._encode_batch(short_lines(text.split("\n"))))), np.uint32)
            else:
                ids = self._encode_whole(text, continued)
            continued = not last
            yield (text, last), self._without_banned(ids)

    def normalize(self, text: str) -> str:
        """Return what becomes of a text before it is cut into tokens."""
        if self._processor is not None:
            return str(self._processor.normalize(self._prepared(text)))
        return str(self.fast.normalizer.normalize_str(text)) if self.fast.normalizer is not None else text

    def count_conversion_differences(self, lines: Sequence[str]) -> int:
        """Count the lines that `tokenizer.json` and the SentencePiece model encode differently."""
        if self._processor is None:
            return 0
        ours = self._encode_batch(list(lines))
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
        if self._processor is None:
            return encode_plainly(self.fast, texts)
        ids: list[list[int]] = self._processor.encode(list(map(self._prepared, texts)))
        return ids

    @cached_property
    def _prepared(self) -> Callable[[str], str]:
        """What is done with a text before the SentencePiece model gets it."""
        return conversion.with_plain_spaces if conversion.has_plain_spaces(self.json_text) else str

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

    def _encode_words(self, texts: Sequence[str]) -> list[Ids]:
        """Encode what stands between spaces, each distinct part once: several times as fast as whole lines."""
        encoded = encode_between_spaces(marked(text.replace("\n", " ") for text in texts), self.known_parts.array)
        _, edges, values = encoded.buffers()
        ends = np.frombuffer(edges, np.int32)[1:] // np.dtype(np.uint32).itemsize
        return np.split(self._without_banned(np.frombuffer(values, np.uint32, ends[-1]).copy()), ends[:-1])

    def _without_banned(self, ids: Ids) -> Ids:
        ids[np.isin(ids, self._banned)] = self.special.unk_id
        return ids

    @cached_property
    def known_parts(self) -> KnownParts:
        """What was met of parts whose ids do not depend on what stands around them."""
        processor = self._processor
        if processor is None:
            return WordPieces(self.fast) if self._lines_are_independent else KnownParts(self._encode_behind_text)
        prepared = self._prepared
        return KnownParts(lambda part: as_bytes(chain.from_iterable(map(processor.encode, short_lines([prepared(part)])))))

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
    return complete_tokenizer(read_file(path, cased=cased))


def load_prepared_tokenizer(directory: Path) -> Tokenizer:
    """Load what `Tokenizer.save` wrote."""
    return complete_tokenizer(read_prepared(directory))


def complete_tokenizer(found: FoundTokenizer) -> Tokenizer:
    """Check that a tokenizer has what training and export need of it, and mark its special tokens as such where it does not."""
    fast = found.fast
    with library_errors("cannot be used", where=found.where):
        special, changed = complete(fast, found.names, where=found.where)
    text = fast.to_str() if changed or found.json_text is None else found.json_text
    vocabulary = fast.get_vocab(with_added_tokens=True)
    normaliser = json.loads(text).get("normalizer") or {}
    name = "+".join(step["type"] for step in normaliser.get("normalizers", [normaliser]) if step) or "none"
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

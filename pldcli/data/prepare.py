"""From raw text to a prepared directory, in two passes over the corpus.

The first pass hashes every document and samples text; then the tokenizer is trained, and the second pass encodes. Nothing
of the result depends on the number of processes, and the split does not depend on the order of the documents.
"""

from __future__ import annotations

import hashlib
import json
import time
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from pldcli import __version__
from pldcli.choices import DocumentPer, ModelType
from pldcli.console.progress import Progress
from pldcli.data.corpus import Reader, Source, cut_at_whitespace, find_sources
from pldcli.data.encoding import Encoded, Encoder, Part
from pldcli.data.shards import MANIFEST_VERSION, ShardWriter, file_sha256, sealed, unknown_shares, verify_tokenizer
from pldcli.data.special_tokens import NOTED_UNKNOWN_SHARE, check_frame
from pldcli.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from pldcli.errors import DataError, OutputError, UsageError
from pldcli.system import atomic
from pldcli.system.signals import first_signal, stop_error
from pldcli.system.workers import available_cores

__all__ = ["Prepared", "prepare", "validation_limit"]

VALIDATION_PARTS = 301
"""One document of so many is for validation: 300 to 1."""
_FOR_VALIDATION = "training file that is for validation"
_LAST = 2**64 - 1

SAMPLE_BYTES = 32 << 20
"""Text for training the tokenizer, at most; above half of it for any larger corpus."""

_ONE_DOCUMENT_TOKENS = 20_000
"""More in a single document is likelier a file without blank lines."""
_SOUND_VALIDATION_TOKENS = 10_000
"""Fewer give a loss whose noise hides what runs differ by."""
_MUCH_UPPER_CASE = 0.1
_CASED_HINT = "if it is a cased vocabulary, keep case (--cased, with a vocab.txt)"
_SAMPLE_CHARACTERS = 4000
_TASK_CHARACTERS = 1 << 20
_CHECKED_LINES = 2000
_SMALL_CORPUS_BYTES = 4 << 20
_MIN_VOCAB_SIZE = 6


@dataclass(frozen=True)
class Prepared:
    """What preparing came to."""

    path: Path
    manifest: dict[str, Any]
    seconds: float
    notes: tuple[str, ...]
    """Lines that the user should read."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the source files."""
        return sum(source["bytes"] for source in self.manifest["sources"])


def prepare(
    inputs: Sequence[Path],
    out: Path,
    *,
    validation: Sequence[Path] = (),
    document_per: DocumentPer = "blank-line",
    text_field: str = "text",
    tokenizer: Path | None = None,
    model_type: ModelType = "bpe",
    cased: bool = False,
    vocab_size: int = 30528,
    processes: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Prepared:
    """Turn text into a prepared directory.

    Args:
        inputs: Text or JSON-lines files, plain, .gz or .zst, and directories of them.
        out: The directory to make.
        validation: Text for validation alone, read as `inputs` are; without it one document in 301 is taken, chosen by a hash of its text.
        document_per: What ends a document in a text file.
        text_field: The field of a JSON object that holds the text.
        tokenizer: An existing tokenizer; without it one is trained.
        model_type: What to train.
        cased: Keep upper and lower case apart.
        vocab_size: Entries wanted when training.
        processes: Workers that encode; None for as many as there are processors.
        strict: Make a byte that is not UTF-8 an error.
        overwrite: Replace `out`.
        quiet: Show no progress.

    Raises:
        DataError: The corpus or the tokenizer cannot be used.
        OutputError: `out` exists, or cannot be written.
        UsageError: A setting makes no sense.
        StoppedError: Ctrl-C; nothing is left behind.
        PreemptedError: SIGTERM; nothing is left behind.
    """
    began = time.monotonic()
    if vocab_size < _MIN_VOCAB_SIZE:
        raise UsageError(f"must be at least {_MIN_VOCAB_SIZE}: five are special tokens", where="--vocab-size")
    if processes is not None and processes < 1:
        raise UsageError("must be at least 1", where="--processes")
    # What a process that a second signal killed has left is a temporary, which the next one removes.
    with first_signal(_stop, second_kills=True):
        _check_place(out, [*inputs, *validation], overwrite=overwrite)
        if tokenizer and any(tokenizer.glob("train-*.arrow")):
            verify_tokenizer(tokenizer)  # prepared data
        existing = load_tokenizer(tokenizer, cased=cased) if tokenizer else None
        if existing is not None:
            check_frame(existing.fast, existing.special, where=str(tokenizer))
        sources, skipped = find_sources(inputs, exclude=out)
        held_out, more_skipped = find_sources(validation, exclude=out) if validation else ([], Counter[str]())
        skipped += more_skipped
        sources = _without(sources, held_out, skipped)
        with atomic.directory(out, overwrite=overwrite) as directory:
            corpus = _Corpus([*sources, *held_out], len(sources), document_per, text_field, strict, quiet)
            scan = _scan(corpus, sample_bytes=0 if existing else SAMPLE_BYTES)
            chosen, notes = existing, []
            if chosen is None:
                chosen = _train(scan.sample, vocab_size=vocab_size, model_type=model_type, cased=cased, quiet=quiet)
                notes = _training_notes(chosen, scan.sample, vocab_size)
            scan.sample.clear()
            chosen.save(directory)
            if processes is None:
                processes = available_cores() if corpus.num_bytes > _SMALL_CORPUS_BYTES else 1
            with Encoder(directory, processes=processes) as encoder:
                counts, shards = _encode(corpus, scan, chosen, encoder, directory)
            manifest = sealed(
                {
                    "version": MANIFEST_VERSION,
                    "pldcli_version": __version__,
                    "sources": scan.sources,
                    "counts": counts,
                    "tokenizer": _describe(chosen, directory),
                    "document_end": "[SEP]",
                    "document_per": document_per,
                    "shards": shards,
                    "skipped": dict(sorted((skipped + scan.skipped).items())),
                    "replaced_bytes": scan.replaced_bytes,
                }
            )
            (directory / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    notes += _unknown_notes(counts, was_trained=existing is None)
    if _has_upper_case_in_vain(chosen):
        notes.append(f"Text is lower-cased, and the vocabulary has many entries in upper case: {_CASED_HINT}.")
    return Prepared(out, manifest, time.monotonic() - began, (*notes, *_split_notes(counts, chosen_by_user=corpus.has_validation)))


def validation_limit(hashes: Sequence[int]) -> int | None:
    """Give the hash below which documents are for validation.

    Args:
        hashes: The 64-bit hashes of all documents' texts.

    Returns:
        The limit; None when all documents have the same text, so that a part of one has to do.
    """
    lowest, highest, limit = min(hashes), max(hashes), 2**64 // VALIDATION_PARTS
    if lowest == highest:
        return None
    return limit if lowest < limit <= highest else lowest + 1


def validation_tail(num_tokens: int) -> int:
    """Give the tokens at the end of a single document that are for validation."""
    return max(1, num_tokens // VALIDATION_PARTS, min(128, num_tokens // 10))


def _without(sources: list[Source], held_out: list[Source], skipped: Counter[str]) -> list[Source]:
    """Leave out of the training text what is for validation.

    Raises:
        DataError: Nothing is left.
    """
    places = {source.path.resolve() for source in held_out}
    left = [source for source in sources if source.path.resolve() not in places]
    if not left:
        raise DataError("every file is for validation", where="--validation", hint="name other text to train on")
    if len(left) < len(sources):
        skipped[_FOR_VALIDATION] += len(sources) - len(left)
    return left


@dataclass(frozen=True)
class _Corpus:
    sources: list[Source]
    num_train_sources: int
    """The rest are for validation; where there is no rest, documents are chosen."""
    document_per: DocumentPer
    text_field: str
    strict: bool
    quiet: bool

    @property
    def num_bytes(self) -> int:
        return sum(source.num_bytes for source in self.sources)

    @property
    def has_validation(self) -> bool:
        return self.num_train_sources < len(self.sources)

    def pieces(self, description: str, *, done: Callable[[Source, Reader], None]) -> Generator[tuple[str, bool], None, None]:
        """Read everything once, and call `done` behind each source."""
        earlier = 0
        with Progress(description, total=self.num_bytes, unit="bytes", quiet=self.quiet) as progress:
            for source in self.sources:
                reader = Reader(source, document_per=self.document_per, text_field=self.text_field, strict=self.strict)
                for piece in reader.pieces():
                    yield piece
                    progress.update(earlier + reader.raw_bytes)
                earlier += source.num_bytes
                done(source, reader)


@dataclass
class _Scan:
    """What the first pass found."""

    hashes: array[int] = field(default_factory=lambda: array("Q"))
    """Of each document's text, the lowest for validation; where validation has text of its own, the lowest and the highest number."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    replaced_bytes: int = 0
    sample: list[str] = field(default_factory=list)


class _Sampler:
    """A sample of the corpus that does not depend on the order of its documents: the parts with the lowest hashes.

    Args:
        limit_bytes: Half of what is kept goes when it exceeds this.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._threshold = 1 << 64
        self._kept: list[tuple[int, str]] = []
        self._kept_bytes = 0
        self._rest = ""

    def add(self, text: str, *, last: bool) -> None:
        text = self._rest + text
        start = 0
        while len(text) - start > _SAMPLE_CHARACTERS or (last and start < len(text)):
            window = text[start : start + _SAMPLE_CHARACTERS]
            size = len(window) if window.isascii() else _SAMPLE_CHARACTERS // 4
            window, _ = next(cut_at_whitespace(window, size)) if len(text) - start > size else (window, True)
            start += len(window)
            self._offer(window)
        self._rest = "" if last else text[start:]

    def sample(self) -> list[str]:
        """List what was kept, in an order of its own."""
        return [text for _, text in sorted(self._kept)]

    def _offer(self, text: str) -> None:
        content = text.encode()
        digest = _hash64(hashlib.blake2b(content, digest_size=8))
        if digest >= self._threshold:
            return
        self._kept.append((digest, text.replace("\n", " ")))
        self._kept_bytes += len(content)
        while self._kept_bytes > self._limit_bytes:
            self._threshold //= 2
            self._kept = [one for one in self._kept if one[0] < self._threshold]
            self._kept_bytes = sum(len(text.encode()) for _, text in self._kept)


def _scan(corpus: _Corpus, *, sample_bytes: int) -> _Scan:
    scan, sampler = _Scan(), _Sampler(sample_bytes)
    documents_before = 0

    def done(source: Source, reader: Reader) -> None:
        nonlocal documents_before
        documents = len(scan.hashes) - documents_before
        documents_before = len(scan.hashes)
        scan.sources.append({"name": str(source.path), "bytes": reader.raw_bytes, "sha256": reader.sha256, "documents": documents})
        if len(scan.sources) > corpus.num_train_sources:
            scan.sources[-1]["split"] = "validation"
        scan.skipped.update(reader.skipped)
        scan.replaced_bytes += reader.replaced_bytes

    document = hashlib.blake2b(digest_size=8)
    with closing(corpus.pieces("Reading", done=done)) as pieces:
        for text, last in pieces:
            document.update(text.encode())
            is_train = len(scan.sources) < corpus.num_train_sources
            if sample_bytes and is_train:
                sampler.add(text, last=last)
            if last:
                scan.hashes.append((_LAST if is_train else 0) if corpus.has_validation else _hash64(document))
                document = hashlib.blake2b(digest_size=8)
    for part in (scan.sources[: corpus.num_train_sources], scan.sources[corpus.num_train_sources :]):
        if part and not any(source["documents"] for source in part):
            where = ", ".join(source["name"] for source in part[:3])
            hint = "; ".join(f"{reason}: {count:,}" for reason, count in scan.skipped.items())
            raise DataError("holds no documents", where=where, hint=hint)
    scan.sample = sampler.sample()
    return scan


def _train(sample: list[str], *, vocab_size: int, model_type: ModelType, cased: bool, quiet: bool) -> Tokenizer:
    with Progress(f"Training the tokenizer ({model_type})", total=None, quiet=quiet):
        return train_tokenizer(sample, vocab_size=vocab_size, model_type=model_type, cased=cased)


def _training_notes(tokenizer: Tokenizer, sample: list[str], vocab_size: int) -> list[str]:
    notes = []
    if tokenizer.vocab_size < vocab_size:
        notes.append(f"The corpus supports a vocabulary of {tokenizer.vocab_size:,} only; {vocab_size:,} were asked for.")
    lines = sample[:: len(sample) // _CHECKED_LINES + 1]
    if different := tokenizer.count_conversion_differences(lines):
        notes.append(f"tokenizer.json and sentencepiece.model differ on {different} of {len(lines):,} pieces of text.")
    return notes


def _encode(
    corpus: _Corpus, scan: _Scan, tokenizer: Tokenizer, encoder: Encoder, directory: Path
) -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
    """Make the second pass."""
    sizes = {"vocab_size": tokenizer.vocab_size, "end_id": tokenizer.special.sep_id}
    limit = validation_limit(scan.hashes)
    words, num_bytes, unknown = Counter[str](), Counter[str](), Counter[str]()
    document = num_tokens = open_tokens = 0
    with (
        ShardWriter(directory, "train", **sizes) as train,
        ShardWriter(directory, "validation", **sizes) as validation,
        closing(_encoded(corpus, scan, encoder)) as batches,
    ):
        for (texts, ends), encoded in batches:
            start = 0
            for text, last, count, num_words in zip(texts, ends, encoded.num_tokens.tolist(), encoded.num_words.tolist(), strict=True):
                if document >= len(scan.hashes):
                    raise _changed(corpus.sources[-1])
                is_validation = limit is not None and scan.hashes[document] < limit
                writer, name = (validation, "validation") if is_validation else (train, "train")
                ids = encoded.ids[start : start + count]
                writer.add(ids)
                unknown[name] += _count_unknown(ids, tokenizer)
                start += count
                open_tokens += count
                words[name] += num_words
                num_bytes[name] += len(text.encode())
                if last:
                    document += 1
                    if limit is None and document == len(scan.hashes):
                        tail = train.take_back(validation_tail(open_tokens))
                        validation.add(tail)
                        validation.end_document()
                        unknown["validation"] = _count_unknown(tail, tokenizer)
                        unknown["train"] -= unknown["validation"]
                    writer.end_document()
                    num_tokens += open_tokens
                    open_tokens = 0
        if num_tokens < 2:
            raise DataError("holds less than two tokens of text", where=str(corpus.sources[0].path), hint="add text")
        if document != len(scan.hashes):
            raise _changed(corpus.sources[-1])
    counts = {
        name: {
            "documents": writer.num_documents,
            "tokens": writer.num_tokens,
            "unknown": unknown[name],
            "words": words[name],
            "bytes": num_bytes[name],
        }
        for name, writer in (("train", train), ("validation", validation))
    }
    _check_something_is_known(counts, tokenizer)
    return counts, {**train.shards, **validation.shards}


def _count_unknown(ids: npt.NDArray[np.unsignedinteger[Any]], tokenizer: Tokenizer) -> int:
    return int(np.count_nonzero(ids == tokenizer.special.unk_id))


def _check_something_is_known(counts: dict[str, dict[str, int]], tokenizer: Tokenizer) -> None:
    """Refuse a split without a token that masked-LM training could ask for: unknown and special tokens are never targets.

    Raises:
        DataError: There is such a split.
    """
    for split, count in counts.items():
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


def _encoded(corpus: _Corpus, scan: _Scan, encoder: Encoder) -> Generator[tuple[tuple[list[str], list[bool]], Encoded], None, None]:
    """Pair each batch of pieces with its ids, holding only the batches that are in flight."""
    hashes = {source["name"]: source["sha256"] for source in scan.sources}
    flying: list[tuple[list[str], list[bool]]] = []

    def done(source: Source, reader: Reader) -> None:
        if reader.sha256 != hashes[str(source.path)]:
            raise _changed(source)

    def tasks() -> Iterator[list[Part]]:
        parts: list[Part] = []
        ends: list[bool] = []
        characters, continued = 0, False
        for text, last in corpus.pieces("Encoding", done=done):
            parts.append((text, continued))
            ends.append(last)
            characters, continued = characters + len(text), not last
            if characters >= _TASK_CHARACTERS:
                flying.append(([text for text, _ in parts], ends))
                yield parts
                parts, ends, characters = [], [], 0
        if parts:
            flying.append(([text for text, _ in parts], ends))
            yield parts

    for encoded in encoder.encode(tasks()):
        yield flying.pop(0), encoded


def _describe(tokenizer: Tokenizer, directory: Path) -> dict[str, Any]:
    special, model = tokenizer.special, directory / "sentencepiece.model"
    return {
        "fingerprint": tokenizer.fingerprint,
        "sha256": file_sha256(directory / "tokenizer.json"),
        **({"sentencepiece_sha256": file_sha256(model)} if model.is_file() else {}),
        "vocab_size": tokenizer.vocab_size,
        "model_type": tokenizer.model_type,
        "normaliser": tokenizer.normaliser,
        "special_tokens": {
            "pad_id": special.pad_id,
            "unk_id": special.unk_id,
            "cls_id": special.cls_id,
            "sep_id": special.sep_id,
            "mask_id": special.mask_id,
            "other_ids": list(special.other_ids),
        },
    }


def _unknown_notes(counts: dict[str, dict[str, int]], *, was_trained: bool) -> list[str]:
    hint = "a larger --vocab-size holds more characters" if was_trained else "without --tokenizer one is trained on this text"
    return [
        f"{share:.1%} of the {split} tokens are unknown ([UNK]): the vocabulary cannot spell them; {hint}."
        for split, share in unknown_shares(counts).items()
        if share > NOTED_UNKNOWN_SHARE
    ]


def _split_notes(counts: dict[str, dict[str, int]], *, chosen_by_user: bool) -> list[str]:
    validation, train = counts["validation"]["tokens"], counts["train"]["tokens"]
    documents = counts["validation"]["documents"] + counts["train"]["documents"]
    notes = []
    if validation > 0.2 * (validation + train) and train + validation > 1000 and not chosen_by_user:
        share = 100 * validation / (validation + train)
        hint = "--document-per line would split more finely"
        notes.append(f"Validation holds {share:.0f} % of the tokens: there are few different documents; {hint}.")
    if train > _ONE_DOCUMENT_TOKENS and counts["train"]["documents"] == 1:
        notes.append("All text is one document: a blank line ends one by default; does --document-per line fit?")
    if train > _ONE_DOCUMENT_TOKENS and validation < _SOUND_VALIDATION_TOKENS:
        hint = "" if chosen_by_user else "; --validation takes a file of its own"
        notes.append(f"Validation has only {validation:,} tokens of {documents:,} documents: losses on it are rough{hint}.")
    return notes


def _changed(source: Source) -> DataError:
    return DataError("changed while it was being read", where=str(source.path), hint="run the same command again when it is complete")


def _hash64(digest: Any) -> int:
    return int.from_bytes(digest.digest(), "big")


def _check_place(out: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse a place that could not be taken in the end, before any work is done."""
    if out.exists() and not overwrite:
        raise OutputError("is already there", where=str(out), hint="add --overwrite, or choose another place with --out")
    if out.exists() and not out.is_dir():
        raise OutputError("is a file, not a directory", where=str(out), hint="choose another place with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / "manifest.json").is_file():
        raise OutputError("is not prepared data, so --overwrite leaves it alone", where=str(out), hint="choose another place with --out")
    for given in inputs:
        if out.resolve() == given.resolve() or out.resolve() in given.resolve().parents:
            raise OutputError("holds the corpus itself", where=str(out), hint="choose another place with --out")


def _stop(number: int) -> NoReturn:
    """Raise a signal as an error, so that everything on the way out is cleaned up."""
    raise stop_error(number, "nothing is left behind")

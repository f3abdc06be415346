"""From raw text to a prepared directory, in two passes over the corpus.

The first pass hashes every document and samples text; then the tokenizer is trained, and the second pass encodes. Nothing
of the result depends on the number of processes, and the split does not depend on the order of the documents.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from pldcli.choices import DocumentPer, ModelType
from pldcli.console.progress import Progress
from pldcli.corpus.decoding import check_encoding
from pldcli.corpus.reader import Corpus, Piece, Reader
from pldcli.corpus.sampling import SAMPLE_BYTES, Sampler
from pldcli.corpus.sources import Source, find_sources
from pldcli.data.encoding import Encoder, Part
from pldcli.data.notes import check_something_is_known, notes_on_data
from pldcli.data.prepared import verify_tokenizer, write_manifest
from pldcli.data.shards import ShardWriter
from pldcli.errors import DataError, OutputError, UsageError
from pldcli.system import atomic
from pldcli.system.output_place import check_new, check_output
from pldcli.system.signals import first_signal, stop_error
from pldcli.system.workers import available_cores
from pldcli.tokenization.special_tokens import check_frame
from pldcli.tokenization.step import notes_on_training
from pldcli.tokenization.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

__all__ = ["Prepared", "prepare", "validation_limit"]

VALIDATION_PARTS = 301
"""One document of so many is for validation: 300 to 1."""
_FOR_VALIDATION = "training file that is for validation"
_LAST = 2**64 - 1

TASK_CHARACTERS = 1 << 20
_SMALL_CORPUS_BYTES = 4 << 20
_MIN_VOCAB_SIZE = 6
_COUNTED = ("unknown", "words", "bytes")


@dataclass(frozen=True)
class Prepared:
    """A directory that was prepared."""

    path: Path
    manifest: dict[str, Any]
    seconds: float
    notes: tuple[str, ...]
    """What the user should read about it, a line each."""

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
    encoding: str | None = None,
    strict: bool = False,
    skip_bad: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Prepared:
    """Turn text into a prepared directory.

    Args:
        inputs: Text, JSON-lines, CSV, Parquet or Arrow files, and directories of them.
        out: The directory to make.
        validation: Text for validation alone, read as `inputs` are; without it one document in 301 is taken, chosen by a hash of its text.
        document_per: What ends a document in a text file.
        text_field: The field of a JSON object that holds the text.
        tokenizer: An existing tokenizer; without it one is trained.
        model_type: What to train.
        cased: Keep upper and lower case apart.
        vocab_size: Entries wanted when training.
        processes: Workers that encode; None for as many as there are processors.
        encoding: Of all files; None for UTF-8, or what a file's first bytes announce.
        strict: Make a byte that does not belong to the encoding an error.
        skip_bad: Leave out lines of JSON-lines files that hold no text.
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
    encoding = encoding and check_encoding(encoding)
    if vocab_size < _MIN_VOCAB_SIZE:
        raise UsageError(f"must be at least {_MIN_VOCAB_SIZE}: five are special tokens", where="--vocab-size")
    if processes is not None and processes < 1:
        raise UsageError("must be at least 1", where="--processes")
    # A second signal kills at once: what is left then is a temporary directory, which the next run removes.
    with first_signal(_stop, second_kills=True):
        _check_place(out, [*inputs, *validation], overwrite=overwrite)
        existing = _existing(tokenizer, cased=cased) if tokenizer else None
        sources, skipped = find_sources(inputs, exclude=out)
        held_out, more_skipped = find_sources(validation, exclude=out) if validation else ([], Counter[str]())
        skipped += more_skipped
        sources = _without(sources, held_out, skipped)
        with atomic.directory(out, overwrite=overwrite) as directory:
            reading = {"document_per": document_per, "text_field": text_field, "encoding": encoding, "strict": strict, "skip_bad": skip_bad}
            corpus = Corpus([*sources, *held_out], len(sources), reading, quiet)
            scan = _scan(corpus, sample_bytes=0 if existing else SAMPLE_BYTES)
            chosen, notes = existing, []
            if chosen is None:
                with Progress(f"Training the tokenizer ({model_type})", total=None, quiet=quiet):
                    chosen = train_tokenizer(scan.sample, vocab_size=vocab_size, model_type=model_type, cased=cased)
                notes = notes_on_training(chosen, scan.sample, vocab_size)
            scan.sample.clear()
            chosen.save(directory)
            if processes is None:
                processes = available_cores() if corpus.num_bytes > _SMALL_CORPUS_BYTES else 1
            with Encoder(directory, processes=processes) as encoder:
                counts, shards = _encode(corpus, scan, chosen, encoder, directory)
            manifest = write_manifest(
                directory,
                chosen,
                sources=scan.sources,
                counts=counts,
                document_per=document_per,
                shards=shards,
                skipped=dict(sorted((skipped + scan.skipped).items())),
                replaced_bytes=scan.replaced_bytes,
            )
    notes += notes_on_data(counts, chosen, was_trained=existing is None, chosen_by_user=corpus.has_validation)
    return Prepared(out, manifest, time.monotonic() - began, tuple(notes))


def validation_limit(hashes: Sequence[int]) -> int | None:
    """Return the hash below which documents are for validation.

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
    """Return how many tokens at the end of a single document are for validation."""
    return max(1, num_tokens // VALIDATION_PARTS, min(128, num_tokens // 10))


def _existing(path: Path, *, cased: bool) -> Tokenizer:
    """Load a tokenizer that shall be used as it is."""
    if any(path.glob("train-*.arrow")):
        verify_tokenizer(path)  # prepared data
    tokenizer = load_tokenizer(path, cased=cased)
    check_frame(tokenizer.fast, tokenizer.special, where=str(path))
    return tokenizer


def _without(sources: list[Source], held_out: list[Source], skipped: Counter[str]) -> list[Source]:
    """Remove what is for validation from the training text.

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


@dataclass
class _Scan:
    """Results of the first pass."""

    hashes: array[int] = field(default_factory=lambda: array("Q"))
    """Of each document's text; where validation has text of its own, 0 for its documents and the highest number for all others."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    replaced_bytes: int = 0
    sample: list[str] = field(default_factory=list)


def _scan(corpus: Corpus, *, sample_bytes: int) -> _Scan:
    scan, sampler = _Scan(), Sampler(sample_bytes)
    documents_before = 0

    def done(source: Source, reader: Reader) -> None:
        nonlocal documents_before
        documents = len(scan.hashes) - documents_before
        documents_before = len(scan.hashes)
        scan.sources.append({"name": str(source.path), "bytes": reader.raw_bytes, "sha256": reader.sha256, "documents": documents})
        if reader.encoding != "utf-8":
            scan.sources[-1]["encoding"] = reader.encoding
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


def _encode(
    corpus: Corpus, scan: _Scan, tokenizer: Tokenizer, encoder: Encoder, directory: Path
) -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
    """Make the second pass: write the shards, and return their counts by split and their entries in the manifest."""
    hashes = {source["name"]: source["sha256"] for source in scan.sources}

    def done(source: Source, reader: Reader) -> None:
        if reader.sha256 != hashes[str(source.path)]:
            raise _changed(source)

    unk_id, sizes = tokenizer.special.unk_id, {"vocab_size": tokenizer.vocab_size, "end_id": tokenizer.special.sep_id}
    limit = validation_limit(scan.hashes)
    found = {"train": Counter[str](), "validation": Counter[str]()}
    document = num_tokens = open_tokens = 0
    with (
        ShardWriter(directory, "train", **sizes) as train,
        ShardWriter(directory, "validation", **sizes) as validation,
        closing(encoder.encode(_tasks(corpus.pieces("Encoding", done=done)))) as batches,
    ):
        for part, ids, num_words in batches:
            if document >= len(scan.hashes):
                raise _changed(corpus.sources[-1])
            is_validation = limit is not None and scan.hashes[document] < limit
            writer, count = (validation, found["validation"]) if is_validation else (train, found["train"])
            writer.add(ids)
            open_tokens += len(ids)
            count.update(unknown=_count(ids, unk_id), words=num_words, bytes=len(part.text.encode()))
            if part.last:
                document += 1
                if limit is None and document == len(scan.hashes):
                    tail = train.take_back(validation_tail(open_tokens))
                    validation.add(tail)
                    validation.end_document()
                    found["validation"]["unknown"] = _count(tail, unk_id)
                    found["train"]["unknown"] -= _count(tail, unk_id)
                writer.end_document()
                num_tokens += open_tokens
                open_tokens = 0
        if num_tokens < 2:
            raise DataError("holds less than two tokens of text", where=str(corpus.sources[0].path), hint="add text")
        if document != len(scan.hashes):
            raise _changed(corpus.sources[-1])
    counts = {
        name: {"documents": writer.num_documents, "tokens": writer.num_tokens, **{key: found[name][key] for key in _COUNTED}}
        for name, writer in (("train", train), ("validation", validation))
    }
    check_something_is_known(counts, tokenizer)
    return counts, {**train.shards, **validation.shards}


def _tasks(pieces: Iterable[Piece]) -> Iterator[list[Part]]:
    """Group pieces into what is sent to a worker at once."""
    parts: list[Part] = []
    characters, continued = 0, False
    for text, last in pieces:
        parts.append(Part(text, continued, last))
        characters, continued = characters + len(text), not last
        if characters >= TASK_CHARACTERS:
            yield parts
            parts, characters = [], 0
    if parts:
        yield parts


def _count(ids: npt.NDArray[np.unsignedinteger[Any]], token_id: int) -> int:
    return int(np.count_nonzero(ids == token_id))


def _changed(source: Source) -> DataError:
    return DataError("changed while it was being read", where=str(source.path), hint="run the same command again when it is complete")


def _hash64(digest: Any) -> int:
    return int.from_bytes(digest.digest(), "big")


def _check_place(out: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    check_new(out, overwrite=overwrite)
    check_output(out, "prepared data", mark="manifest.json")
    for given in inputs:
        if out.resolve() == given.resolve() or out.resolve() in given.resolve().parents:
            raise OutputError("holds the corpus itself", where=str(out), hint="choose another place with --out")


def _stop(number: int) -> NoReturn:
    """Raise a signal as an error, so that everything on the way out is cleaned up."""
    raise stop_error(number, "nothing is left behind")

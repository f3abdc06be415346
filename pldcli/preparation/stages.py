"""The two things that are done with every unit of a corpus: read it, then encode it. What each comes to lies on the disk, under a name
that says what it was made of, so that it is made once, by whatever process.

    KEY.json   what reading or encoding a unit came to; written last
    KEY.bin    of reading: the hash of each document, and the number of what speaks against it
    KEY.signatures   likewise, where near duplicates are looked for
    KEY.fates  for encoding: what becomes of each document
    KEY.train-00000.arrow   KEY.validation-00000.arrow   KEY.rejected   of encoding
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from pldcli import __version__
from pldcli.corpus.addresses import Address, Location
from pldcli.corpus.decoding import CHUNK_BYTES, MANY_BAD_SHARE
from pldcli.corpus.reader import Piece, Reader, count_words
from pldcli.corpus.sampling import Sampler
from pldcli.corpus.sources import Source
from pldcli.data.shards import ShardWriter
from pldcli.errors import DataError
from pldcli.filtering.quality import Filters, Judge
from pldcli.filtering.repeats import RepeatedLines
from pldcli.filtering.similarity import SIGNATURE, Signatures, Signer
from pldcli.preparation.encodings import check_throughout
from pldcli.preparation.fates import BOTH, LEFT_OUT, VALIDATION, validation_tail
from pldcli.preparation.units import Slice, Unit
from pldcli.system import atomic
from pldcli.system.input_files import input_errors
from pldcli.system.json_text import from_json
from pldcli.system.seal import file_sha256
from pldcli.tokenization.tokenizer import Tokenizer, load_prepared_tokenizer

__all__ = ["COUNTED", "Encoded", "Scanned", "Stages", "Task", "open_stages"]

COUNTED = ("documents", "tokens", "unknown", "words", "bytes")
_HASH, _CAUSE = np.dtype("<u8"), np.dtype("<u2")

Report = Callable[[int], None]
"""Hears how many bytes of its unit a task has read so far."""


@dataclass(frozen=True)
class Task:
    """A part of the work."""

    stage: Literal["hash", "scan", "encode"]
    number: int
    """Of the file that is hashed, or of the unit."""


@dataclass(frozen=True)
class Scanned:
    """What reading a unit came to."""

    slices: list[dict[str, Any]]
    """Documents, bytes read, SHA-256 and encoding of each; bytes that were replaced, and the share of those that are not UTF-8."""
    skipped: dict[str, int]
    replaced_bytes: int
    threshold: int
    """Parts with hashes from here on are not in the sample."""
    sample: list[tuple[int, str]]
    causes: list[str]
    """What speaks against documents, by number, counted from 1."""
    hashes: npt.NDArray[np.uint64]
    """Of each document's text."""
    unwanted: npt.NDArray[np.uint16]
    """0, or the number of a cause, for each document."""
    signatures: Signatures
    """Of each document, [documents, places]; empty where none are wanted."""
    without_a_run: list[str] = field(default_factory=list)
    """Files that documents are compared with, and cannot overlap with: they have no run of so many words."""


@dataclass(frozen=True)
class Encoded:
    """What encoding a unit came to."""

    counts: dict[str, dict[str, int]]
    """Documents, tokens, unknown tokens, words and bytes of text by split."""
    shards: dict[str, dict[str, Any]]
    """Size, checksum, documents and tokens by file."""
    lines: dict[str, int]
    """Lines and in how many documents each stands, those in most."""


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What a worker knows of the whole work."""

    out: Path
    """The directory to make, for errors."""
    place: Path
    """Where results lie."""
    sources: list[Source]
    units: list[Unit]
    reading: Mapping[str, Any]
    """Arguments of `Reader`."""
    filters: Filters = field(default_factory=Filters)
    compared: list[list[str]] = field(default_factory=list)
    """Name and checksum of each file that documents are compared with, taken once."""
    sample_bytes: int = 0
    """Text to keep for a tokenizer; 0 for none."""
    num_train_sources: int = 0
    """The others are no text for a tokenizer."""
    signs: bool = False
    """Sign documents, to find near duplicates."""
    first_threshold: int = 0
    """Where sampling begins."""
    keep_rejects: bool = False
    causes: tuple[str, ...] = ()
    """Why documents are left out, by number; known before encoding."""
    tokenizer: str = ""
    """Directory of the tokenizer; likewise."""

    def key(self, task: Task) -> str:
        """Name what a task makes after all that it is made of: the files as they are now, and the settings."""
        settings: list[Any] = [__version__, task.stage]
        if task.stage == "hash":
            slices = [Slice(task.number, None, self.sources[task.number].num_bytes)]
        else:
            slices = list(self.units[task.number].slices)
            settings += [dict(self.reading), _jsonable(self.filters), self.compared, self.signs]
            settings += [self.sample_bytes, self.first_threshold, [one.source < self.num_train_sources for one in slices]]
        if task.stage == "encode":
            settings += [self.tokenizer, self.keep_rejects, list(self.causes), self._sha256_of_fates(task.number)]
        parts = [[*self._identity(one.source), one.span] for one in slices]
        return f"{task.stage}-{hashlib.sha256(json.dumps([settings, parts]).encode()).hexdigest()[:32]}"

    def fates_of(self, number: int) -> Path:
        """Return the file that says what becomes of each document of a unit."""
        return self.place / f"{self.key(Task('scan', number))}.fates"

    def _sha256_of_fates(self, number: int) -> str:
        try:
            return file_sha256(self.fates_of(number))
        except FileNotFoundError as error:  # they are named after the files as these were
            raise self._changed(Task("encode", number)) from error

    def is_done(self, task: Task) -> bool:
        """Return whether its result is there."""
        return (self.place / f"{self.key(task)}.json").is_file()

    def num_bytes(self, task: Task) -> int:
        """Count the bytes that a task reads; what is only hashed does not count."""
        return 0 if task.stage == "hash" else self.units[task.number].num_bytes

    def do(self, task: Task, report: Report) -> None:
        """Do a task.

        Raises:
            DataError: A file cannot be used, or changed since it was read.
            OutputError: The disk is full.
        """
        with atomic.output_errors(self.out):
            if task.stage == "hash":
                atomic.write_text(self.place / f"{self.key(task)}.json", json.dumps({"sha256": self._sha256(task.number)}))
            elif task.stage == "scan":
                self._scan(task, report)
            else:
                self._encode(task, report)

    def result(self, task: Task) -> dict[str, Any]:
        """Read what a task came to.

        Raises:
            DataError: A file of it has changed since.
        """
        try:
            content: dict[str, Any] = from_json((self.place / f"{self.key(task)}.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise self._changed(task) from error
        return content

    def _changed(self, task: Task) -> DataError:
        number = task.number if task.stage == "hash" else self.units[task.number].slices[-1].source
        return _changed(self.sources[number])

    def scanned(self, number: int) -> Scanned:
        """Read what reading a unit came to."""
        task = Task("scan", number)
        content = self.result(task)
        raw = (self.place / f"{self.key(task)}.bin").read_bytes()
        edge = _HASH.itemsize * sum(one["documents"] for one in content["slices"])
        hashes, unwanted = np.frombuffer(raw[:edge], _HASH), np.frombuffer(raw[edge:], _CAUSE)
        signatures = np.zeros((0, 0), SIGNATURE)
        if self.signs and len(hashes):
            signatures = np.fromfile(self.place / f"{self.key(task)}.signatures", SIGNATURE).reshape(len(hashes), -1)
        return Scanned(**content, hashes=hashes, unwanted=unwanted, signatures=signatures)

    def encoded(self, number: int) -> Encoded:
        """Read what encoding a unit came to."""
        return Encoded(**self.result(Task("encode", number)))

    @contextmanager
    def described(self) -> Iterator[Path]:
        """Write all this down for the workers of this process while the block runs; others that share the work have their own."""
        path = self.place / f"work-{secrets.token_hex(8)}.json"
        atomic.write_bytes(path, json.dumps(_jsonable(self)).encode(), is_private=True)  # addresses may hold secrets
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _identity(self, number: int) -> tuple[str, int, int | str]:
        """Say which file this is, and that it has not changed; at an address, since it was found."""
        source = self.sources[number]
        if isinstance(source.path, Address):
            return str(source.path), source.num_bytes, source.path.version
        try:
            status = source.path.stat()
        except OSError as error:
            raise _changed(source) from error
        return str(source.path), status.st_size, status.st_mtime_ns

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_prepared_tokenizer(self.place / self.tokenizer)

    @cached_property
    def _judge(self) -> Judge | None:
        return Judge(self.filters) if self.filters else None

    @cached_property
    def _signer(self) -> Signer | None:
        return Signer() if self.signs else None

    def _sha256(self, number: int) -> str:
        path = self.sources[number].path
        with input_errors(path), path.open("rb", buffering=CHUNK_BYTES) as file:
            return hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()

    def _readers(self, unit: Unit, report: Report) -> Iterator[tuple[Slice, Reader, Report]]:
        earlier = 0
        for one in unit.slices:
            before = earlier
            reader = Reader(self.sources[one.source], span=one.span, **self.reading)
            yield one, reader, lambda num_bytes, before=before: report(before + num_bytes)  # type: ignore[misc]
            earlier += one.num_bytes

    def _scan(self, task: Task, report: Report) -> None:
        """Hash, judge and sign every document of a unit, and keep a sample."""
        key = self.key(task)  # of the files as they are before they are read: one that changes meanwhile is another's
        sampler = Sampler(self.sample_bytes, self.first_threshold)
        skipped, causes = Counter[str](), dict[str, int]()
        hashes, unwanted, signatures = array("Q"), array("H"), bytearray()
        slices, replaced_bytes = [], 0
        for one, reader, tell in self._readers(self.units[task.number], report):
            documents, document = 0, hashlib.blake2b(digest_size=8)
            is_sampled = self.sample_bytes and one.source < self.num_train_sources
            for text, last in reader.readable_pieces():
                document.update(text.encode())
                cause = self._judge.add(text, last=last) if self._judge else ""
                if self._signer and (signature := self._signer.add(text, last=last)) is not None:
                    signatures += signature.tobytes()
                if is_sampled:
                    sampler.add(text, last=last, keep=not cause)
                if last:
                    hashes.append(int.from_bytes(document.digest(), "big"))
                    unwanted.append(causes.setdefault(cause, len(causes) + 1) if cause else 0)
                    documents, document = documents + 1, hashlib.blake2b(digest_size=8)
                tell(reader.raw_bytes)
            if one.span and reader.replaced_share >= MANY_BAD_SHARE:
                check_throughout(self.sources[one.source])
            found = {"documents": documents, "bytes": reader.raw_bytes, "sha256": reader.sha256, "encoding": reader.encoding}
            slices.append(found | {"replaced": reader.replaced_bytes, "replaced_share": reader.replaced_share})
            skipped.update(reader.skipped)
            replaced_bytes += reader.replaced_bytes
        content = {
            "slices": slices,
            "skipped": dict(skipped),
            "replaced_bytes": replaced_bytes,
            "threshold": sampler.threshold,
            "sample": sampler.parts,
            "causes": list(causes),
            "without_a_run": self._judge.without_a_run if self._judge else [],
        }
        raw = np.array(hashes, _HASH).tobytes() + np.array(unwanted, _CAUSE).tobytes()
        atomic.write_bytes(self.place / f"{key}.bin", raw)
        if self.signs:
            atomic.write_bytes(self.place / f"{key}.signatures", bytes(signatures))
        atomic.write_text(self.place / f"{key}.json", json.dumps(content))

    def _encode(self, task: Task, report: Report) -> None:
        """Write the shards of a unit."""
        key, tokenizer, fates = self.key(task), self._tokenizer, np.fromfile(self.fates_of(task.number), _CAUSE)
        special, counts = tokenizer.special, {"train": Counter[str](), "validation": Counter[str]()}
        repeated, rejected = RepeatedLines(), atomic.sibling(self.place / f"{key}.rejected")
        kept = iter(fates[fates < LEFT_OUT].tolist())
        fate, open_tokens = None, 0
        with ExitStack() as stack:
            sizes = {"vocab_size": tokenizer.vocab_size, "end_id": special.sep_id}
            writers = {name: stack.enter_context(ShardWriter(self.place, f"{key}.{name}", **sizes)) for name in counts}
            # A name of a file need not be Unicode; the escapes of what is not are those of JSON.
            rejects = rejected.open("w", encoding="utf-8", errors="backslashreplace") if self.keep_rejects else None
            stack.enter_context(rejects or nullcontext())
            for (text, last), ids in tokenizer.encode_pieces(self._kept_pieces(task, fates.tolist(), rejects, report)):
                fate = next(kept) if fate is None else fate
                split = "validation" if fate == VALIDATION else "train"
                repeated.add(text.split("\n"), last=last)
                open_tokens += len(ids)
                unknown = int(np.count_nonzero(ids == special.unk_id))
                writers[split].add(ids)
                counts[split].update(unknown=unknown, words=count_words(text), bytes=len(text.encode()))
                if last:
                    if fate == BOTH:
                        tail = writers["train"].take_back(validation_tail(open_tokens))
                        writers["validation"].add(tail)
                        writers["validation"].end_document()
                        counts["validation"]["unknown"] = int(np.count_nonzero(tail == special.unk_id))
                        counts["train"]["unknown"] -= counts["validation"]["unknown"]
                    writers[split].end_document()
                    fate, open_tokens = None, 0
        if rejects:
            rejected.replace(self.place / f"{key}.rejected")
        for name, writer in writers.items():
            counts[name].update(documents=writer.num_documents, tokens=writer.num_tokens)
        content = {
            "counts": {name: {what: count[what] for what in COUNTED} for name, count in counts.items()},
            "shards": {name: shard for writer in writers.values() for name, shard in writer.shards.items()},
            "lines": repeated.most,
        }
        atomic.write_text(self.place / f"{key}.json", json.dumps(content))

    def _kept_pieces(self, task: Task, fates: Sequence[int], rejects: IO[str] | None, report: Report) -> Iterator[Piece]:
        """Read the documents of a unit that are not left out, and write down those that are.

        Raises:
            DataError: A file is not what it was when it was scanned.
        """
        unit, scanned, number = self.units[task.number], self.result(Task("scan", task.number))["slices"], 0
        for (one, reader, tell), earlier in zip(self._readers(unit, report), scanned, strict=True):
            continued, source = False, self.sources[one.source]
            for text, last in reader.readable_pieces():
                if number >= len(fates):
                    raise _changed(source)
                if fates[number] < LEFT_OUT:
                    yield text, last
                elif rejects:
                    _write_reject(rejects, text, source, self.causes[fates[number] - LEFT_OUT], continued=continued, last=last)
                continued = not last
                number += last
                tell(reader.raw_bytes)
            if reader.sha256 != earlier["sha256"]:
                raise _changed(source)
        if number != len(fates):
            raise _changed(self.sources[unit.slices[-1].source])


def open_stages(path: Path) -> Stages:
    """Read what `Stages.described` wrote."""
    content = from_json(path.read_text(encoding="utf-8"))
    sources = [Source(**{**one, "path": _location(one["path"])}) for one in content.pop("sources")]
    units = [
        Unit(one["number"], tuple(Slice(part["source"], part["span"] and tuple(part["span"]), part["num_bytes"]) for part in one["slices"]))
        for one in content.pop("units")
    ]
    given = content.pop("filters")
    filters = Filters(**{**given, "scripts": tuple(given["scripts"]), "against": tuple(map(Path, given["against"]))})
    out, place, causes = Path(content.pop("out")), Path(content.pop("place")), tuple(content.pop("causes"))
    return Stages(**content, out=out, place=place, causes=causes, sources=sources, units=units, filters=filters)


def _location(content: Any) -> Location:
    return Path(content) if isinstance(content, str) else Address(**content)


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(asdict(value), default=str))


def _write_reject(file: IO[str], text: str, source: Source, cause: str, *, continued: bool, last: bool) -> None:
    """Write a piece of a document that is left out; a document is a JSON line, however many pieces it has."""
    if not continued:
        head = json.dumps({"source": source.shown, "cause": cause, "text": ""}, ensure_ascii=False)
        file.write(head.removesuffix('"}'))
    file.write(json.dumps(text, ensure_ascii=False)[1:-1])
    if last:
        file.write('"}\n')


def _changed(source: Source) -> DataError:
    return DataError("changed while it was being read", where=str(source.path), hint="run the same command again when it is complete")

"""From raw text to a prepared directory: every unit of the corpus is read, a tokenizer is trained, and every unit is encoded.

Reading hashes each document and samples text. Where all is read, it is decided what becomes of each document; encoding follows that.
Nothing of the result depends on the number of processes or on the order in which they finish, and the split does not depend on the
order of the documents. What units came to lies in `.OUT.parts` until all is done, so that the same command goes on where one was stopped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from pldcli.choices import DocumentPer, Engine
from pldcli.console.progress import Progress
from pldcli.corpus.addresses import Location, address_of
from pldcli.corpus.decoding import check_encoding
from pldcli.corpus.sampling import SAMPLE_BYTES, first_threshold
from pldcli.corpus.sources import FILE_TWICE, Source, find_sources
from pldcli.data.prepared import LARGEST_WEIGHT, open_prepared, verify_tokenizer, write_manifest
from pldcli.errors import DataError, OutputError, UsageError
from pldcli.filtering.quality import Filters, check_filters, fingerprint_of_files
from pldcli.filtering.repeats import most_repeated
from pldcli.preparation.encodings import check_encodings
from pldcli.preparation.fates import Fates
from pldcli.preparation.notes import check_something_is_known, notes_on_comparison, notes_on_data, notes_on_overlap
from pldcli.preparation.stages import COUNTED, Encoded, Scanned, Stages
from pldcli.preparation.units import cut, unit_bytes
from pldcli.preparation.work import SignalError, Work, sample, skipped
from pldcli.system import atomic
from pldcli.system.extras import require
from pldcli.system.output_place import check_place
from pldcli.system.signals import first_signal
from pldcli.tokenization.distinctions import characters, lost_distinctions
from pldcli.tokenization.special_tokens import check_frame
from pldcli.tokenization.tokenizer import Tokenizer, load_prepared_tokenizer, load_tokenizer
from pldcli.tokenization.training import TokenizerTraining

__all__ = ["Preparation", "Prepared", "prepare"]

_FOR_VALIDATION = "training file that is for validation"
_NOTED_SAMPLE_BYTES = 1 << 18
"""Of text for a tokenizer that is there, to see what it makes of it."""
_NOTED_WEIGHT_SHARE = 0.1


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


@dataclass(frozen=True)
class Preparation:
    """What is to be prepared, and how.

    Raises:
        UsageError: A setting makes no sense.
        DataError: The corpus or the tokenizer cannot be used.
        OutputError: `out` exists, or cannot be written.
        StoppedError: Ctrl-C; what is done is kept, so that the same call goes on from there.
        PreemptedError: SIGTERM, likewise.
    """

    inputs: Sequence[Path]
    """Text, JSON-lines, CSV, Parquet or Arrow files, and directories of them."""
    out: Path
    """The directory to make."""
    _: KW_ONLY
    weighted: Sequence[tuple[Path, float]] = ()
    """More files and directories, each with how often its text counts in training; that of `inputs` alone counts once."""
    validation: Sequence[Path] = ()
    """Text for validation alone, read as `inputs` are; without it one document in 301 is taken, chosen by a hash of its text."""
    document_per: DocumentPer = "blank-line"
    """What ends a document in a text file."""
    text_field: str = "text"
    """The field of a JSON object that holds the text."""
    tokenizer: Path | None = None
    """An existing tokenizer; without it one is trained."""
    training: TokenizerTraining = field(default_factory=TokenizerTraining)
    """What to train; of an existing `vocab.txt` it says whether case is kept."""
    processes: int | None = None
    """Workers; None for as many as there are processors."""
    engine: Engine = "local"
    """Who does the work; with `ray`, machines that see the same files."""
    encoding: str | None = None
    """Of all files; None for UTF-8, or what a file's first bytes announce."""
    strict: bool = False
    """Make a byte that does not belong to the encoding an error."""
    skip_bad: bool = False
    """Leave out lines and rows that hold no text, and what cannot be read of a file."""
    filters: Filters = field(default_factory=Filters)
    """Documents to leave out."""
    keep_duplicates: bool = False
    """Keep a document whose text occurred before."""
    near_duplicates: float | None = None
    """Leave out a document of whose runs of five words such a share, of all that either has, are those of one before; None for none."""
    keep_rejects: bool = False
    """Write the documents that are left out to `rejected.jsonl`."""
    overwrite: bool = False
    """Replace `out`."""
    merge: bool = False
    """Put together what shares have done, and do nothing that they have not."""
    names: Mapping[Location, str] = field(default_factory=dict)
    """What files are called in the manifest, where not by their path."""
    quiet: bool = False
    """Show no progress."""

    def run(self) -> Prepared:
        """Turn text into a prepared directory."""
        began = time.monotonic()
        with _signals():
            self._check()
            existing, (files, num_train, left_out) = self._existing, self._find()
            work = self._work(files, num_train)
            with work.kept_when_stopped():
                scans = work.read()
                assert scans is not None
                fates = self._decide(work, scans)
                tokenizer, notes = self._tokenizer(work, scans)
                notes = [*notes, *notes_on_overlap(scans, fates), *notes_on_comparison(scans, self.filters.overlap_words)]
                encoded = work.encode(scans, fates)
                assert encoded is not None
                counts = _counts(encoded)
                if sum(count["tokens"] - count["documents"] for count in counts.values()) < 2:
                    raise DataError("holds less than two tokens of text", where=str(files[0].path), hint="add text")
                check_something_is_known(counts, tokenizer)
                num_documents = sum(count["documents"] for count in counts.values())
                with atomic.directory(self.out, overwrite=self.overwrite) as directory:
                    tokenizer.save(directory)
                    manifest = write_manifest(
                        directory,
                        tokenizer,
                        sources=work.describe_sources(scans, fates),
                        counts=counts,
                        document_per=self.document_per,
                        shards=work.collect(encoded, tokenizer, directory),
                        skipped=dict(sorted((left_out + skipped(scans) + fates.left_out).items())),
                        replaced_bytes=sum(scan.replaced_bytes for scan in scans),
                        repeated_lines=most_repeated((part.lines for part in encoded), num_documents),
                    )
        notes += notes_on_data(manifest, tokenizer, was_trained=existing is None, chosen_by_user=num_train < len(files))
        notes += _notes_on_weights(self.out) if self.weighted else []
        return Prepared(self.out, manifest, time.monotonic() - began, tuple(notes))

    def run_share(self, number: int, count: int) -> str:
        """Do a share of the work: of reading, or where all is read, of encoding. Shares may be done at the same time, on several machines.

        Args:
            number: Of this share, from 0.
            count: Of shares.

        Returns:
            What is to be done next.
        """
        if not 0 <= number < count:
            raise UsageError(f"must be I/N with I from 0 to N - 1, not {number}/{count}", where="--share")
        with _signals():
            self._check()
            files, num_train, _ = self._find()
            work = self._work(files, num_train, (number, count))
            with work.kept_when_stopped():
                scans = work.read()
                if scans is None:
                    return "read; when all shares are, run them again, to encode"
                fates = self._decide(work, scans)
                self._tokenizer(work, scans)
                if work.encode(scans, fates) is None:
                    return "encoded; when all shares are, run the command without --share, to put them together"
                return "encoded, as all are; run the command without --share, to put them together"

    def _decide(self, work: Work, scans: list[Scanned]) -> Fates:
        check_encodings(work.stages.sources, work.stages.units, scans)
        return work.decide(scans, keep_duplicates=self.keep_duplicates, near_duplicates=self.near_duplicates)

    def check(self) -> None:
        """Refuse what cannot be prepared, as far as that shows without reading text."""
        self._check()
        _ = self._existing

    @cached_property
    def _existing(self) -> Tokenizer | None:
        return _load(self.tokenizer, cased=self.training.cased) if self.tokenizer else None

    def _check(self) -> None:
        self.training.check()
        if self.processes is not None and self.processes < 1:
            raise UsageError("must be at least 1", where="--processes")
        if self.engine == "ray":
            require("ray", extra="ray", where="--engine ray")
        if address_of(self.out):
            raise OutputError("is an address, not a folder", where=str(self.out), hint="write to a folder, and copy it there")
        if self.encoding:
            check_encoding(self.encoding)
        check_filters(self.filters)
        if self.near_duplicates is not None:
            if not 0 < self.near_duplicates <= 1:
                what = f"must be above 0 and at most 1, not {self.near_duplicates:g}"
                raise UsageError(what, where="--near-duplicates", hint="0.8 is usual")
            require("rensa", extra="dedup", where="--near-duplicates")
        for path, weight in self.weighted:
            if not 0 < weight <= LARGEST_WEIGHT:
                raise UsageError(f"must be above 0 and at most {LARGEST_WEIGHT:g}, not {weight:g}", where=f"--source {path}")
        places = [*self.inputs, *(path for path, _ in self.weighted), *self.validation]
        if len(places) == len(self.validation):
            raise UsageError("names no text to train on", hint="name files, or give --source")
        check_place(self.out, "prepared data", mark="manifest.json", inputs=places, overwrite=self.overwrite)

    def _find(self) -> tuple[list[Source], int, Counter[str]]:
        """Find the files, those to train on first; return how many these are, and what was left out."""
        sources, left_out = find_sources(self.inputs, exclude=self.out) if self.inputs else ([], Counter[str]())
        by_place = {source.path.resolve(): source for source in sources}
        for weight, group in groupby(self.weighted, key=lambda one: one[1]):
            found, more = find_sources([path for path, _ in group], exclude=self.out)
            named = {source.path.resolve(): replace(source, weight=weight) for source in found}
            left_out += more + Counter({FILE_TWICE: len(named.keys() & by_place.keys())})
            by_place |= named
        sources = list(by_place.values())
        held_out, more = find_sources(self.validation, exclude=self.out) if self.validation else ([], Counter[str]())
        left_out += more
        sources = _without(sources, held_out, left_out)
        files = [replace(source, name=self.names.get(source.path, "")) for source in (*sources, *held_out)]
        return files, len(sources), left_out

    def _work(self, files: list[Source], num_train: int, share: tuple[int, int] | None = None) -> Work:
        num_bytes, sample_bytes = sum(source.num_bytes for source in files), _NOTED_SAMPLE_BYTES if self._existing else SAMPLE_BYTES
        reading = {
            "document_per": self.document_per,
            "text_field": self.text_field,
            "encoding": self.encoding and check_encoding(self.encoding),
            "strict": self.strict,
            "skip_bad": self.skip_bad,
        }
        stages = Stages(
            out=self.out,
            place=self.out.with_name(f".{self.out.name}.parts"),
            sources=files,
            units=cut(files, reading, unit_bytes(num_bytes)),
            reading=reading,
            filters=self.filters,
            compared=fingerprint_of_files(self.filters),
            sample_bytes=sample_bytes,
            num_train_sources=num_train,
            first_threshold=first_threshold(num_bytes, sample_bytes),
            signs=self.near_duplicates is not None,
            keep_rejects=self.keep_rejects,
        )
        return Work(stages, self.processes, self.quiet, self.engine == "ray", share, self.merge)

    def _tokenizer(self, work: Work, scans: Sequence[Scanned]) -> tuple[Tokenizer, list[str]]:
        """Take the tokenizer that is there, or train one; return what the user should read about it, too."""
        existing, texts = self._existing, sample(scans, work.stages.sample_bytes)
        if existing is not None:
            work.use_tokenizer([existing.json_text, (existing.sentencepiece or b"").hex()], lambda: existing)
            return existing, [*_notes_on_settings(self.training, existing), *lost_distinctions(characters(texts), existing.normalize)]

        def train() -> Tokenizer:
            with Progress(f"Training the tokenizer ({self.training.model_type})", total=None, quiet=self.quiet):
                return self.training.run(texts)

        tokenizer = load_prepared_tokenizer(work.use_tokenizer([asdict(self.training), texts], train))
        return tokenizer, self.training.notes(tokenizer, texts)


def prepare(inputs: Sequence[Path], out: Path, **settings: Any) -> Prepared:
    """Turn text into a prepared directory; the settings are those of `Preparation` and of `TokenizerTraining`."""
    training = {name: settings.pop(name) for name in (one.name for one in fields(TokenizerTraining)) if name in settings}
    return Preparation(inputs, out, training=TokenizerTraining(**training), **settings).run()


def _signals() -> AbstractContextManager[None]:
    """Raise the first stop signal; a second one kills at once, and what is left then is removed, or gone on from, by the next run."""
    return first_signal(_stop, second_kills=True)


def _counts(encoded: Sequence[Encoded]) -> dict[str, dict[str, int]]:
    return {split: {what: sum(part.counts[split][what] for part in encoded) for what in COUNTED} for split in ("train", "validation")}


def _load(path: Path, *, cased: bool) -> Tokenizer:
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


def _notes_on_settings(training: TokenizerTraining, existing: Tokenizer) -> list[str]:
    """Say what was asked of a tokenizer that is there already."""
    usual = TokenizerTraining()
    asked = [one.name for one in fields(training) if getattr(training, one.name) != getattr(usual, one.name)]
    has_effect = {"cased": existing.normaliser.startswith("bert-"), "vocab_size": training.vocab_size == existing.vocab_size}
    options = ", ".join(f"--{name.replace('_', '-')}" for name in asked if not has_effect.get(name))
    return [f"Without effect, since --tokenizer is used as it is: {options}."] if options else []


def _notes_on_weights(out: Path) -> list[str]:
    """Say where whole documents come far from the weight that was asked for."""
    return [
        f"Text of weight {weight:g} is read {reached:.2g} times per pass: documents are read whole, and it has few."
        for weight, reached in open_prepared(out, verify=False).reached_weights()
        if abs(reached / weight - 1) > _NOTED_WEIGHT_SHARE
    ]


def _stop(number: int) -> NoReturn:
    """Raise a signal as an error, so that everything on the way out is cleaned up."""
    raise SignalError(number)

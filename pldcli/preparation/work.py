"""The units of a corpus, done as far as they are not done yet, by one process or by several machines, and put together."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pldcli import __version__
from pldcli.console.progress import Progress
from pldcli.corpus.sampling import Sampler
from pldcli.data.prepared import REJECTED
from pldcli.data.shards import ShardWriter, segments
from pldcli.errors import DataError, UsageError
from pldcli.filtering.similarity import near_earlier_ones
from pldcli.preparation.fates import LEFT_OUT, TRAIN, VALIDATION, Fates, Near, decide
from pldcli.preparation.pool import do_all
from pldcli.preparation.ray_engine import do_all_on_ray
from pldcli.preparation.stages import Encoded, Scanned, Stages, Task
from pldcli.system import atomic, locks
from pldcli.system.signals import stop_error
from pldcli.system.workers import available_cores
from pldcli.tokenization.tokenizer import Tokenizer

__all__ = ["SignalError", "Work", "sample", "skipped"]

_SMALL_CORPUS_BYTES = 4 << 20


class SignalError(Exception):
    """A stop signal arrived."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@dataclass
class Work:
    """The units of a corpus."""

    stages: Stages
    processes: int | None
    """None for as many as there are processors, where there is enough to do."""
    quiet: bool
    on_ray: bool = False
    """On a Ray cluster instead of in processes of this machine."""
    share: tuple[int, int] | None = None
    """The number of this process, and how many there are that share the work, on one file system, perhaps on several machines; None for
    all of it, with nothing kept for others."""
    merges: bool = False
    """What others have not done is an error."""

    @contextmanager
    def kept_when_stopped(self) -> Iterator[None]:
        """Hold the directory of parts while the block runs; it goes when the block ends well, or when there is little in it.

        Raises:
            StoppedError, PreemptedError: A signal arrived.
        """
        place, ended = self.stages.place, False
        with locks.locked(place, "preparing data", shared=self._is_shared):
            try:
                yield
                ended = not self._is_shared
            except SignalError as signal:
                state, hint = "nothing is left behind", ""
                if self._is_worth_keeping:
                    state, hint = f"{self._num_done} of {2 * len(self.stages.units)} parts done", "run the same command again to go on"
                raise stop_error(signal.number, state, where=str(self.stages.out) if hint else "", hint=hint) from None
            finally:
                if ended or not self._is_worth_keeping:
                    shutil.rmtree(place, ignore_errors=True)

    def read(self) -> list[Scanned] | None:
        """Read every unit, and hash the files that lie in several; None while others have not done their share."""
        tasks = [*(Task("hash", source) for source in self._divided), *(Task("scan", unit.number) for unit in self.stages.units)]
        if not self._do("Reading", tasks):
            return None
        return [self.stages.scanned(unit.number) for unit in self.stages.units]

    def decide(self, scans: Sequence[Scanned], *, keep_duplicates: bool, near_duplicates: float | None = None) -> Fates:
        """Decide what becomes of each document.

        Args:
            scans: What reading came to.
            keep_duplicates: Keep a document whose text occurred before.
            near_duplicates: From which similarity on a document is left out; None for none.

        Raises:
            DataError: Nothing is left to train on, or to validate on.
        """
        stages = self.stages
        causes = sorted({cause for scan in scans for cause in scan.causes})
        numbers = [np.array([0, *(causes.index(cause) + 1 for cause in scan.causes)], np.uint16)[scan.unwanted] for scan in scans]
        parts = [
            (TRAIN if one.source < stages.num_train_sources else VALIDATION, part["documents"])
            for unit, scan in zip(stages.units, scans, strict=True)
            for one, part in zip(unit.slices, scan.slices, strict=True)
        ]
        roles = np.repeat(np.array([role for role, _ in parts], np.uint16), [documents for _, documents in parts])
        has_validation = stages.num_train_sources < len(stages.sources)
        hashes = np.concatenate([scan.hashes for scan in scans])
        near: Near | None = None
        if near_duplicates is not None and len(hashes):
            signatures = np.concatenate([scan.signatures for scan in scans if len(scan.hashes)])

            def near(places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
                return near_earlier_ones(signatures[places], near_duplicates)

        known_roles = roles if has_validation else None
        fates = decide(hashes, np.concatenate(numbers), causes, known_roles, keep_duplicates=keep_duplicates, near=near)
        edge = stages.num_train_sources
        for role, sources in ((TRAIN, stages.sources[:edge]), (VALIDATION, stages.sources[edge:])):
            if sources and not np.any(fates.of_documents[roles == role] < LEFT_OUT):
                where = ", ".join(str(source.path) for source in sources[:3])
                hint = "; ".join(f"{reason}: {count:,}" for reason, count in (skipped(scans) + fates.left_out).items())
                raise DataError("holds no documents", where=where, hint=hint)
        return fates

    def use_tokenizer(self, made_of: Sequence[Any], make: Callable[[], Tokenizer]) -> Path:
        """Encode with the tokenizer that lies beside the parts, or make it and put it there.

        Args:
            made_of: What decides which one it is.
            make: Called where it is not there.

        Returns:
            Its directory.
        """
        place = self.stages.place / f"tokenizer-{hashlib.sha256(json.dumps([__version__, *made_of]).encode()).hexdigest()[:32]}"
        if not place.is_dir():
            self._save(make(), place)
        self.stages = replace(self.stages, tokenizer=place.name)
        return place

    def encode(self, scans: Sequence[Scanned], fates: Fates) -> list[Encoded] | None:
        """Encode every unit; None while others have not done their share."""
        self.stages = replace(self.stages, causes=fates.causes)
        with atomic.output_errors(self.stages.out):
            start = 0
            for unit, scan in zip(self.stages.units, scans, strict=True):
                stop = start + len(scan.hashes)
                atomic.write_bytes(self.stages.fates_of(unit.number), fates.of_documents[start:stop].astype("<u2").tobytes())
                start = stop
        if not self._do("Encoding", [Task("encode", unit.number) for unit in self.stages.units]):
            return None
        return [self.stages.encoded(unit.number) for unit in self.stages.units]

    def describe_sources(self, scans: Sequence[Scanned], fates: Fates) -> list[dict[str, Any]]:
        """Describe every file for the manifest."""
        described: dict[int, dict[str, Any]] = {}
        start = 0
        for unit, scan in zip(self.stages.units, scans, strict=True):
            for one, part in zip(unit.slices, scan.slices, strict=True):
                sha256 = self.stages.result(Task("hash", one.source))["sha256"] if one.source in self._divided else part["sha256"]
                name = self.stages.sources[one.source].shown
                source = described.setdefault(one.source, {"name": name, "bytes": 0, "sha256": sha256, "documents": 0})
                stop = start + part["documents"]
                source["bytes"] += part["bytes"]
                source["documents"] += int(np.count_nonzero(fates.of_documents[start:stop] < LEFT_OUT))
                start = stop
                if part["encoding"] not in (None, "utf-8"):
                    source["encoding"] = part["encoding"]
                if one.source >= self.stages.num_train_sources:
                    source["split"] = "validation"
                elif (weight := self.stages.sources[one.source].weight) != 1:
                    source["weight"] = weight
        return list(described.values())

    def collect(self, encoded: Sequence[Encoded], tokenizer: Tokenizer, directory: Path) -> dict[str, Any]:
        """Put the shards of all units into one directory, those for validation, which are small, together; return their entries."""
        place, shards = self.stages.place, dict[str, Any]()
        with ShardWriter(directory, "validation", vocab_size=tokenizer.vocab_size, end_id=tokenizer.special.sep_id) as validation:
            for unit, part in zip(self.stages.units, encoded, strict=True):
                weight = self.stages.sources[unit.slices[0].source].weight
                for name, shard in part.shards.items():
                    if ".train-" in name:
                        shards[f"train-{len(shards):05}.arrow"] = shard | ({"weight": weight} if weight != 1 else {})
                        _link(place / name, directory / f"train-{len(shards) - 1:05}.arrow")
                    else:
                        validation.copy(segments(place / name))
                if self.stages.keep_rejects:
                    part_of = place / f"{self.stages.key(Task('encode', unit.number))}.rejected"
                    with part_of.open("rb") as part_file, (directory / REJECTED).open("ab") as file:
                        shutil.copyfileobj(part_file, file)
        return shards | validation.shards

    def _save(self, tokenizer: Tokenizer, place: Path) -> None:
        """Write a tokenizer, unless another process was faster."""
        with atomic.output_errors(self.stages.out):
            temporary = Path(tempfile.mkdtemp(dir=self.stages.place))
            tokenizer.save(temporary)
            try:
                temporary.rename(place)
            except OSError:
                if not place.is_dir():
                    raise
                shutil.rmtree(temporary)

    @property
    def _is_shared(self) -> bool:
        return self.share is not None

    @property
    def _num_done(self) -> int:
        return sum(1 for stage in ("scan", "encode") for _ in self.stages.place.glob(f"{stage}-*.json"))

    @property
    def _is_worth_keeping(self) -> bool:
        return self._is_shared or self.merges or (len(self.stages.units) > 1 and self._num_done > 0)

    @property
    def _usual_processes(self) -> int:
        return available_cores() if sum(source.num_bytes for source in self.stages.sources) > _SMALL_CORPUS_BYTES else 1

    @cached_property
    def _divided(self) -> set[int]:
        """Files that lie in several units."""
        parts = Counter(one.source for unit in self.stages.units for one in unit.slices)
        return {source for source, count in parts.items() if count > 1}

    def _do(self, description: str, tasks: Sequence[Task]) -> bool:
        """Do the tasks of this process that are not done; return whether all are, those of others too."""
        number, count = self.share or (0, 1)
        own = tasks[number::count]
        missing = [task for task in own if not self.stages.is_done(task)]
        if missing and self.merges:
            what = f"{len(missing):,} of {len(tasks):,} parts are not done ({description.lower()})"
            raise UsageError(what, where="--merge", hint="run the shares that are missing, or leave --merge out to do them here")
        total, left = (sum(self.stages.num_bytes(task) for task in some) for some in (own, missing))
        with Progress(description, total=total, unit="bytes", quiet=self.quiet) as progress:
            progress.update(total - left)
            if self.on_ray:
                do_all_on_ray(missing, self.stages, processes=self.processes, progress=progress)
            else:
                do_all(missing, self.stages, processes=self.processes or self._usual_processes, progress=progress)
        return count == 1 or all(self.stages.is_done(task) for task in tasks)


def skipped(scans: Sequence[Scanned]) -> Counter[str]:
    """Count what was left out while reading, by cause."""
    return sum((Counter(scan.skipped) for scan in scans), Counter())


def sample(scans: Sequence[Scanned], limit_bytes: int) -> list[str]:
    """Put the samples of all units together."""
    sampler = Sampler(limit_bytes, min(scan.threshold for scan in scans))
    for scan in scans:
        sampler.merge((digest, text) for digest, text in scan.sample)
        scan.sample.clear()
    return sampler.sample()


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system has none, copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

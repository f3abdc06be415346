"""Prepared data: a directory that `pld prepare-data` wrote, opened and verified.

    tokenizer.json   sentencepiece.model   manifest.json   train-00000.arrow ...   validation-00000.arrow ...

Laid end to end, the rows of a split's shards are one stream of tokens, from which spans of any length are cut.

What is verified when: opening compares the manifest with its own checksum, the tokenizer's files with theirs, and the names, sizes and
footers of all shards. Shards are hashed, and their tokens compared with the vocabulary, when their split is first read, so that an
evaluation reads the validation split alone; of several processes each reads its share of the shards, so that a job reads them once.
`verify_prepared` reads everything.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal

from pldcli import __version__
from pldcli.data.shards import PREPARE_AGAIN, check_tokens, open_shard, segments
from pldcli.data.stream import Segment, TokenStream, weighted
from pldcli.errors import DataError
from pldcli.system.json_text import from_json
from pldcli.system.seal import check_file, file_sha256, is_sealed, sealed
from pldcli.system.workers import available_cores
from pldcli.tokenization.tokenizer import SpecialTokens, Tokenizer

__all__ = [
    "LARGEST_WEIGHT",
    "REJECTED",
    "PreparedData",
    "Split",
    "data_fingerprint",
    "open_prepared",
    "read_manifest",
    "unknown_shares",
    "verify_prepared",
    "verify_tokenizer",
    "write_manifest",
]

Split = Literal["train", "validation"]

REJECTED = "rejected.jsonl"
"""The documents that were left out, where they are wanted."""
_MANIFEST = "manifest.json"
_VERSION = 1
_SHARD = re.compile(r"(train|validation)-\d{5,}\.arrow")
LARGEST_WEIGHT = 1000.0
HASHED_FOR_A_SAMPLE = 1 << 30
_MANY_DOCUMENTS = 1000
"""Of which whole ones come close to any weight."""


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A prepared directory with nothing missing."""

    path: Path
    manifest: dict[str, Any]
    vocab_size: int
    special: SpecialTokens
    fingerprint: str
    """Of the tokenizer's vocabulary."""

    data_fingerprint: str
    """Of the shards: equal for equal data."""

    verify: bool = True
    """Hash the shards of a split before it is read."""

    share: tuple[int, int] = (0, 1)
    """The number of this process and how many there are: each hashes its share of the shards."""

    _verified: set[str] = field(default_factory=set, compare=False)

    def stream(self, split: Split) -> TokenStream:
        """Map the tokens of a split, each shard as often as it counts, and hash its shards the first time.

        Raises:
            DataError: One is damaged.
        """
        names = self._names(split)
        process, num_processes = self.share
        for name in names[process::num_processes] if self.verify else ():
            if name not in self._verified:
                self.check_shard(name)
                self._verified.add(name)
        parts = (self._repeated(group, weight) for weight, group in groupby(names, self._weight))
        return TokenStream(chain.from_iterable(parts), end_id=self.special.sep_id)

    @property
    def unique_tokens(self) -> int:
        """Count the tokens of the training text, each once, whatever its weight."""
        return sum(int(shard["tokens"]) for name, shard in self.manifest["shards"].items() if name.startswith("train-"))

    def reached_weights(self) -> Iterator[tuple[float, float]]:
        """Yield weights that are no whole numbers, of few documents, and how often their tokens are read: documents are read whole."""
        for weight, group in groupby(self._names("train"), self._weight):
            names = list(group)
            shards = [self.manifest["shards"][name] for name in names]
            if weight % 1 and sum(shard["documents"] for shard in shards) < _MANY_DOCUMENTS:
                num_tokens = sum(len(values) for values, _ in self._repeated(names, weight))
                yield weight, num_tokens / sum(shard["tokens"] for shard in shards)

    def _names(self, split: Split) -> list[str]:
        return [name for name in sorted(self.manifest["shards"]) if name.startswith(f"{split}-")]

    def _repeated(self, names: Iterable[str], weight: float) -> Iterator[Segment]:
        """Map shards that follow each other and count alike."""
        return weighted((segments(self.path / name) for name in names), weight, end_id=self.special.sep_id)

    def _weight(self, name: str) -> float:
        return float(self.manifest["shards"][name].get("weight", 1.0))

    def check_shard(self, name: str) -> None:
        """Hash a shard, and look at its tokens, which are in memory then.

        Raises:
            DataError: It is damaged, or holds other tokens than the manifest and the vocabulary say.
        """
        shard = self.manifest["shards"][name]
        check_file(self.path / name, str(shard["sha256"]), error=DataError, hint=PREPARE_AGAIN)
        check_tokens(self.path / name, vocab_size=self.vocab_size, num_tokens=int(shard["tokens"]))

    def sampled(self, split: Split) -> PreparedData:
        """Return the same data for reading a small sample of a split: one of more than a gigabyte is not hashed for that."""
        return replace(self, verify=self.verify and self.num_bytes(split) <= HASHED_FOR_A_SAMPLE)

    def num_bytes(self, split: Split | Literal[""] = "") -> int:
        """Return the size of a split on disk, or of both."""
        return sum(int(shard["bytes"]) for name, shard in self.manifest["shards"].items() if name.startswith(split))


def open_prepared(path: Path, *, verify: bool = True, share: tuple[int, int] = (0, 1)) -> PreparedData:
    """Open what `pld prepare-data` wrote.

    Args:
        path: The directory.
        verify: Hash the shards of each split that is read; without it only their sizes and footers are looked at.
        share: The number of this process and how many there are, where several read the same splits.

    Raises:
        DataError: It is missing, not prepared data, damaged, of another version, or its tokenizer was exchanged.
    """
    manifest = read_manifest(path)
    try:
        tokenizer = manifest["tokenizer"]
        _check_tokenizer(path, tokenizer)
        _check_facts(manifest)
        for name, shard in manifest["shards"].items():
            if not (_SHARD.fullmatch(name) and 0 < float(shard.get("weight", 1.0)) <= LARGEST_WEIGHT):
                raise _incomplete(path)
            _check_size(path / name, int(shard["bytes"]))
            str(shard["sha256"]), int(shard["tokens"])  # there, for whoever reads the shard
        return PreparedData(
            path=path,
            manifest=manifest,
            vocab_size=int(tokenizer["vocab_size"]),
            special=_special_tokens(tokenizer),
            fingerprint=str(tokenizer["fingerprint"]),
            data_fingerprint=data_fingerprint(manifest),
            verify=verify,
            share=share,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _incomplete(path) from error


def verify_prepared(path: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> PreparedData:
    """Read everything in a prepared directory and compare it with what the manifest says.

    Args:
        path: The directory.
        progress: Called with the bytes of shards read so far, and those of all.

    Raises:
        DataError: A file is damaged; the first one is named.
    """
    data, done = open_prepared(path), 0
    shards = dict(sorted(data.manifest["shards"].items()))
    with ThreadPoolExecutor(available_cores()) as threads:
        try:
            for shard, _ in zip(shards.values(), threads.map(data.check_shard, shards), strict=True):
                done += int(shard["bytes"])
                progress(done, data.num_bytes())
        finally:
            threads.shutdown(cancel_futures=True)
    if "rejected_sha256" in data.manifest:
        check_file(path / REJECTED, str(data.manifest["rejected_sha256"]), error=DataError, hint=PREPARE_AGAIN)
    return data


def verify_tokenizer(path: Path) -> None:
    """Compare the tokenizer of prepared data with what the manifest says; the data itself may be gone.

    Args:
        path: The directory.

    Raises:
        DataError: It, or the manifest, is missing or damaged.
    """
    manifest = read_manifest(path)
    try:
        _check_tokenizer(path, manifest["tokenizer"])
    except (KeyError, TypeError) as error:
        raise _incomplete(path) from error


def write_manifest(
    directory: Path,
    tokenizer: Tokenizer,
    *,
    sources: list[dict[str, Any]],
    counts: dict[str, dict[str, int]],
    document_per: str,
    shards: dict[str, Any],
    skipped: dict[str, int],
    replaced_bytes: int,
    repeated_lines: list[dict[str, str | int]],
) -> dict[str, Any]:
    """Seal a prepared directory; the last thing that is written there.

    Args:
        directory: It holds the shards and the tokenizer's files, and perhaps the documents that were left out.
        tokenizer: What the text was encoded with.
        sources: Name, size, checksum and number of documents of each file of the corpus.
        counts: Documents, tokens, unknown tokens, words and bytes of text by split.
        document_per: What ended a document.
        shards: Size, checksum, documents and tokens by file.
        skipped: What was left out, by reason.
        replaced_bytes: Bytes that were not UTF-8.
        repeated_lines: Lines that stand in many documents, each with their number.

    Returns:
        The manifest.
    """
    model = directory / "sentencepiece.model"
    described = {
        "fingerprint": tokenizer.fingerprint,
        "sha256": file_sha256(directory / "tokenizer.json"),
        **({"sentencepiece_sha256": file_sha256(model)} if model.is_file() else {}),
        "vocab_size": tokenizer.vocab_size,
        "model_type": tokenizer.model_type,
        "normaliser": tokenizer.normaliser,
        "special_tokens": asdict(tokenizer.special) | {"other_ids": list(tokenizer.special.other_ids)},
    }
    manifest = sealed(
        {
            "version": _VERSION,
            "pldcli_version": __version__,
            "sources": sources,
            "counts": counts,
            "tokenizer": described,
            "document_end": "[SEP]",
            "document_per": document_per,
            "shards": shards,
            "skipped": skipped,
            "replaced_bytes": replaced_bytes,
            "repeated_lines": repeated_lines,
            **({"rejected_sha256": file_sha256(directory / REJECTED)} if (directory / REJECTED).is_file() else {}),
        }
    )
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a prepared directory.

    Raises:
        DataError: It is missing, damaged or of another version.
    """
    if not path.is_dir():
        hint = f"make it with `pld prepare-data TEXT... --out {path}`, or name another with --data"
        raise DataError("no such directory of prepared data" if not path.exists() else "is not a directory", where=str(path), hint=hint)
    place = path / _MANIFEST
    try:
        manifest = from_json(place.read_bytes())
    except FileNotFoundError as error:
        hint = f"make some with `pld prepare-data`, not in {path}"
        raise DataError(f"is not prepared data: it has no {_MANIFEST}", where=str(path), hint=hint) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(place)) from error
    except ValueError as error:
        raise DataError("is damaged: not JSON", where=str(place), hint=PREPARE_AGAIN) from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != _VERSION:
        what = f"is of version {version}, and this program reads version {_VERSION}"
        raise DataError(what, where=str(place), hint=PREPARE_AGAIN)
    if not is_sealed(manifest):
        raise DataError("is damaged: its fields do not have its checksum", where=str(place), hint=PREPARE_AGAIN)
    return dict(manifest)


def data_fingerprint(manifest: dict[str, Any]) -> str:
    """Hash what a manifest says of the shards: equal for equal data."""
    return hashlib.sha256(json.dumps(manifest["shards"], sort_keys=True).encode()).hexdigest()


def unknown_shares(counts: dict[str, dict[str, int]]) -> dict[str, float]:
    """Compute the share of unknown tokens in each split: of all tokens of text, separators left out.

    Args:
        counts: The `counts` of a manifest.
    """
    return {split: count["unknown"] / max(1, count["tokens"] - count["documents"]) for split, count in counts.items()}


def _incomplete(path: Path) -> DataError:
    return DataError("is damaged: entries are missing or wrong", where=str(path / _MANIFEST), hint=PREPARE_AGAIN)


def _check_facts(manifest: dict[str, Any]) -> None:
    """Check the types of what says how the data were made, for whoever shows it.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: One is wrong.
    """
    sources, repeated = manifest.get("sources", []), manifest.get("repeated_lines", [])
    counts = manifest.get("counts", {}).values()
    texts = [*(source["name"] for source in sources), *(one["line"] for one in repeated)]
    numbers = [*(source.get("weight", 1.0) for source in sources), *(one["documents"] for one in repeated)]
    numbers += [
        *manifest.get("skipped", {}).values(),
        manifest.get("replaced_bytes", 0),
        *(number for one in counts for number in one.values()),
    ]
    numbers += [one[name] for one in counts for name in ("documents", "tokens", "unknown")]
    if not (all(isinstance(text, str) for text in texts) and all(isinstance(number, int | float) for number in numbers)):
        raise TypeError("a fact is of another type")


def _special_tokens(described: dict[str, Any]) -> SpecialTokens:
    ids = described["special_tokens"]
    special = SpecialTokens(**{**ids, "other_ids": tuple(ids["other_ids"])})
    if any(type(one) is not int or not 0 <= one < described["vocab_size"] for one in special.ids):
        raise ValueError("ids of special tokens are those of the vocabulary")
    return special


def _check_tokenizer(directory: Path, described: dict[str, Any]) -> None:
    path, exchanged = directory / "tokenizer.json", "is not the tokenizer that the data was made with"
    hint = f"put the right one back, or prepare again with `--tokenizer {path}`" if path.exists() else PREPARE_AGAIN
    check_file(path, described["sha256"], error=DataError, hint=hint, what=exchanged)
    if "sentencepiece_sha256" in described:
        check_file(directory / "sentencepiece.model", described["sentencepiece_sha256"], error=DataError, hint=PREPARE_AGAIN)


def _check_size(path: Path, num_bytes: int) -> None:
    """Compare the size of a shard, and read its footer."""
    try:
        found = path.stat().st_size
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise DataError(what, where=str(path), hint=PREPARE_AGAIN) from error
    if found != num_bytes:
        raise DataError(f"has {found:,} bytes instead of {num_bytes:,}", where=str(path), hint=PREPARE_AGAIN)
    open_shard(path)

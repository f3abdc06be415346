"""Prepared data on disk: token ids in Arrow files that are mapped, not read.

    tokenizer.json   sentencepiece.model   manifest.json   train-00000.arrow ...   validation-00000.arrow ...

A row is a document: its ids, then one [SEP]. (A document over 32 million tokens goes on in the next row; only its last row ends
with [SEP].) Laid end to end the rows of a split are one stream of tokens, from which spans of any length are cut.

What is verified when: opening compares the manifest with its own checksum, the tokenizer's files with their hashes, and the names, sizes
and footers of all shards. Shards are hashed when their split is first read, so that an evaluation reads the validation split alone; of
several processes each hashes its share of the shards, so that a job reads them once. `verify_prepared` hashes everything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pldcli.data.tokenizer import SpecialTokens
from pldcli.errors import DataError

__all__ = [
    "MANIFEST_VERSION",
    "PreparedData",
    "ShardWriter",
    "Split",
    "TokenStream",
    "data_fingerprint",
    "file_sha256",
    "open_prepared",
    "read_manifest",
    "read_vocab_size",
    "sealed",
    "unknown_shares",
    "verify_prepared",
    "verify_tokenizer",
]

Split = Literal["train", "validation"]

MANIFEST_VERSION = 1
COLUMN = "input_ids"

_BATCH_BYTES = 16 << 20
_SHARD_BYTES = 512 << 20
_ROW_TOKENS = 1 << 24
_HASHED_FOR_A_SAMPLE = 1 << 30

_CHECKSUM = "sha256"
_FIELDS = {
    *("version", "pldcli_version", "sources", "counts", "tokenizer", "document_end", "document_per", "shards", "skipped"),
    "replaced_bytes",
}
_PREPARE_AGAIN = "make it again with `pld prepare-data`"


class ShardWriter:
    """Writes one split of a prepared directory; as a context manager it closes itself.

    Args:
        directory: Where the shards go.
        split: The first part of their names.
        vocab_size: Decides between 16 and 32 bits per token.
        end_id: The mark behind each document.
        batch_bytes: Size of a record batch, about.
        shard_bytes: A shard of this size is followed by a new one.
        row_tokens: A document is continued in a new row when it is twice as long as this.
    """

    def __init__(
        self,
        directory: Path,
        split: Split,
        *,
        vocab_size: int,
        end_id: int,
        batch_bytes: int = _BATCH_BYTES,
        shard_bytes: int = _SHARD_BYTES,
        row_tokens: int = _ROW_TOKENS,
    ) -> None:
        self.shards: dict[str, dict[str, Any]] = {}
        self.num_documents = 0
        self.num_tokens = 0
        self._directory = directory
        self._split = split
        self._dtype = token_dtype(vocab_size)
        self._end_id = end_id
        self._batch_bytes = batch_bytes
        self._shard_bytes = shard_bytes
        self._row_tokens = row_tokens
        self._values = bytearray()
        self._offsets = [0]
        self._ends = 0
        self._shard_start = (0, 0)
        self._file: Any = None
        self._writer: Any = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.close()

    def add(self, ids: npt.NDArray[np.unsignedinteger[Any]]) -> None:
        """Append ids to the document that is open."""
        self._values += ids.astype(self._dtype).tobytes()
        while self._open_tokens >= 2 * self._row_tokens:
            rest = self._values[(self._offsets[-1] + self._row_tokens) * self._dtype.itemsize :]
            del self._values[-len(rest) :]
            self._offsets.append(self._offsets[-1] + self._row_tokens)
            self._write_batch()
            self._values = rest

    def take_back(self, count: int) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Remove the last `count` ids from the document that is open, but never the first one."""
        count = max(0, min(count, self._open_tokens - 1))
        start = len(self._values) - count * self._dtype.itemsize
        ids = np.frombuffer(bytes(self._values[start:]), self._dtype)
        del self._values[start:]
        return ids

    def end_document(self) -> None:
        """Set the end mark behind the document that is open."""
        self._values += np.array([self._end_id], self._dtype).tobytes()
        self._offsets.append(len(self._values) // self._dtype.itemsize)
        self._ends += 1
        if len(self._values) >= self._batch_bytes:
            self._write_batch()

    def close(self) -> None:
        """Write what is left."""
        self._write_batch()
        self._end_shard()

    @property
    def _open_tokens(self) -> int:
        return len(self._values) // self._dtype.itemsize - self._offsets[-1]

    def _write_batch(self) -> None:
        import pyarrow as pa

        if len(self._offsets) == 1:
            return
        kind = pa.large_list(pa.from_numpy_dtype(self._dtype))
        if self._writer is None:
            self._file = (self._directory / f"{self._split}-{len(self.shards):05}.arrow").open("wb")
            self._writer = pa.ipc.new_file(self._file, pa.schema([(COLUMN, kind)]))
        values = pa.Array.from_buffers(kind.value_type, self._offsets[-1], [None, pa.py_buffer(self._values)])
        rows = pa.LargeListArray.from_arrays(pa.array(self._offsets, pa.int64()), values)
        self._writer.write_batch(pa.record_batch([rows], names=[COLUMN]))
        self.num_tokens += self._offsets[-1]
        self.num_documents += self._ends
        self._values, self._offsets, self._ends = bytearray(), [0], 0
        if self._file.tell() >= self._shard_bytes:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._file.close()
        path = Path(self._file.name)
        documents, tokens = self._shard_start
        self.shards[path.name] = {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
            "documents": self.num_documents - documents,
            "tokens": self.num_tokens - tokens,
        }
        self._shard_start = (self.num_documents, self.num_tokens)
        self._file = self._writer = None


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Give the smallest unsigned type that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def file_sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_fingerprint(manifest: dict[str, Any]) -> str:
    """Hash what a manifest says of the shards: equal for equal data."""
    return hashlib.sha256(json.dumps(manifest["shards"], sort_keys=True).encode()).hexdigest()


def unknown_shares(counts: dict[str, dict[str, int]]) -> dict[str, float]:
    """Work out the share of unknown tokens in each split.

    Args:
        counts: The `counts` of a manifest.

    Returns:
        For each split unknown tokens over all tokens of text, the marks behind documents left out; nothing where the manifest was made
        before they were counted.
    """
    return {split: count["unknown"] / max(1, count["tokens"] - count["documents"]) for split, count in counts.items() if "unknown" in count}


class TokenStream:
    """The tokens of one split, end to end, behind memory maps.

    Args:
        paths: The shards, in order.
        end_id: The mark behind each document.
        num_documents: How many the manifest counts.
    """

    def __init__(self, paths: list[Path], *, end_id: int, num_documents: int) -> None:
        self.num_documents = num_documents
        self._end_id = end_id
        self._values: list[npt.NDArray[Any]] = []
        self._row_ends: list[npt.NDArray[np.int64]] = []
        for path in paths:
            for values, row_ends in _segments(path):
                self._values.append(values)
                self._row_ends.append(row_ends)
        self._starts = np.cumsum([0, *map(len, self._values)], dtype=np.int64)
        self.num_tokens = int(self._starts[-1])

    @cached_property
    def document_ends(self) -> npt.NDArray[np.int64]:
        """Positions just behind each document's end mark, ascending."""
        ends = [np.empty(0, np.int64)]
        for start, values, row_ends in zip(self._starts, self._values, self._row_ends, strict=False):
            marked = row_ends[row_ends > 0]
            ends.append(start + marked[values[marked - 1] == self._end_id])
        return np.concatenate(ends)

    def take(self, starts: npt.NDArray[np.integer[Any]], length: int) -> npt.NDArray[np.int64]:
        """Gather spans.

        Args:
            starts: Their first positions, [B].
            length: Tokens of each.

        Returns:
            Token ids, [B, length].

        Raises:
            IndexError: A span reaches over an end of the stream.
        """
        spans = np.empty((len(starts), length), np.int64)
        if not len(starts):
            return spans
        if int(np.min(starts)) < 0 or int(np.max(starts)) + length > self.num_tokens:
            raise IndexError(f"spans of {length} tokens reach out of a stream of {self.num_tokens}")
        segments = np.searchsorted(self._starts, starts, side="right") - 1
        inside = np.asarray(starts) + length <= self._starts[segments + 1]
        for segment in np.unique(segments[inside]):
            rows = np.flatnonzero(inside & (segments == segment))
            windows = np.lib.stride_tricks.sliding_window_view(self._values[segment], length)
            spans[rows] = windows[starts[rows] - self._starts[segment]]
        for row in np.flatnonzero(~inside):
            spans[row] = self.slice(int(starts[row]), int(starts[row]) + length)
        return spans

    def gather(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Copy the tokens at these positions, [N]."""
        tokens = np.empty(len(positions), np.int64)
        segments = np.searchsorted(self._starts, positions, side="right") - 1
        for segment in np.unique(segments):
            chosen = segments == segment
            tokens[chosen] = self._values[segment][positions[chosen] - self._starts[segment]]
        return tokens

    def slice(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Copy the tokens from `start` to `stop`, clipped to the stream."""
        start, stop = max(0, start), min(stop, self.num_tokens)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = [np.empty(0, np.int64)]
        for segment in range(first, len(self._values)):
            base = int(self._starts[segment])
            if base >= stop:
                break
            parts.append(self._values[segment][max(0, start - base) : stop - base].astype(np.int64))
        return np.concatenate(parts)


@dataclass(frozen=True)
class PreparedData:
    """A prepared directory that was found to be whole."""

    path: Path
    manifest: dict[str, Any]
    vocab_size: int
    special: SpecialTokens
    fingerprint: str
    """Of the tokenizer's vocabulary."""

    data_fingerprint: str
    """Of the shards."""

    verify: bool = True
    """Hash the shards of a split before it is read."""

    share: tuple[int, int] = (0, 1)
    """The number of this process and how many there are: each hashes its share of the shards."""

    _verified: set[str] = field(default_factory=set, compare=False)

    def stream(self, split: Split) -> TokenStream:
        """Map the tokens of a split, and hash its shards the first time.

        Raises:
            DataError: One is damaged.
        """
        names = [name for name in sorted(self.manifest["shards"]) if name.startswith(f"{split}-")]
        process, num_processes = self.share
        for name in names[process::num_processes] if self.verify else ():
            if name not in self._verified:
                _check_file(self.path / name, str(self.manifest["shards"][name]["sha256"]))
                self._verified.add(name)
        num_documents = sum(self.manifest["shards"][name]["documents"] for name in names)
        return TokenStream([self.path / name for name in names], end_id=self.special.sep_id, num_documents=num_documents)

    def sampled(self, split: Split) -> PreparedData:
        """Return the same data for reading a small sample of a split: one of more than a gigabyte is not hashed for that."""
        return replace(self, verify=self.verify and self.num_bytes(split) <= _HASHED_FOR_A_SAMPLE)

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
        ids = tokenizer["special_tokens"]
        data = PreparedData(
            path=path,
            manifest=manifest,
            vocab_size=int(tokenizer["vocab_size"]),
            special=SpecialTokens(**{**ids, "other_ids": tuple(ids["other_ids"])}),
            fingerprint=str(tokenizer["fingerprint"]),
            data_fingerprint=data_fingerprint(manifest),
            verify=verify,
            share=share,
        )
        _check_tokenizer(path, tokenizer)
        for name, shard in manifest["shards"].items():
            _check_shard(path / Path(name).name, int(shard["bytes"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _incomplete(path) from error
    return data


def verify_prepared(path: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> PreparedData:
    """Read everything in a prepared directory and compare it with what the manifest says.

    Args:
        path: The directory.
        progress: Called with the bytes of shards read so far, and those of all.

    Raises:
        DataError: A file is damaged; the first one is named.
    """
    data, done = open_prepared(path), 0
    total = data.num_bytes()
    for name, shard in sorted(data.manifest["shards"].items()):
        _check_file(path / name, str(shard["sha256"]))
        done += int(shard["bytes"])
        progress(done, total)
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


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Add a checksum over all other fields to a manifest."""
    fields = {key: value for key, value in manifest.items() if key != _CHECKSUM}
    content = json.dumps(fields, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return fields | {_CHECKSUM: hashlib.sha256(content.encode()).hexdigest()}


def read_vocab_size(path: Path) -> int:
    """Read the size of the vocabulary that data was prepared with.

    Raises:
        DataError: The manifest cannot be read, or does not give it.
    """
    return vocab_size_of(read_manifest(path), path)


def vocab_size_of(manifest: dict[str, Any], path: Path) -> int:
    """Return the size of the vocabulary that a manifest, read from `path`, names.

    Raises:
        DataError: It does not give it.
    """
    tokenizer = manifest.get("tokenizer")
    size = tokenizer.get("vocab_size") if isinstance(tokenizer, dict) else None
    if type(size) is not int or size < 1:
        raise DataError("is damaged: it gives no size of the vocabulary", where=str(path / "manifest.json"), hint=_PREPARE_AGAIN)
    return size


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a prepared directory.

    Raises:
        DataError: It is missing, damaged or of another version.
    """
    if not path.is_dir():
        hint = f"make it with `pld prepare-data TEXT... --out {path}`, or name another with --data"
        raise DataError("no such directory of prepared data" if not path.exists() else "is not a directory", where=str(path), hint=hint)
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            "is not prepared data: it has no manifest.json", where=str(path), hint=f"make some with `pld prepare-data`, not in {path}"
        ) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path / "manifest.json")) from error
    except ValueError as error:
        raise DataError("is damaged: not JSON", where=str(path / "manifest.json"), hint=_PREPARE_AGAIN) from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != MANIFEST_VERSION:
        what = f"is of version {version}, and this program reads version {MANIFEST_VERSION}"
        raise DataError(what, where=str(path / "manifest.json"), hint=_PREPARE_AGAIN)
    # Data of older programs has no checksum; it has no field either that is not known here.
    if manifest != sealed(manifest) if _CHECKSUM in manifest else not _FIELDS.issuperset(manifest):
        raise DataError("is damaged: its fields do not have its checksum", where=str(path / "manifest.json"), hint=_PREPARE_AGAIN)
    return dict(manifest)


def _incomplete(path: Path) -> DataError:
    return DataError("is damaged: entries are missing or wrong", where=str(path / "manifest.json"), hint=_PREPARE_AGAIN)


def _check_tokenizer(directory: Path, described: dict[str, Any]) -> None:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise DataError("is missing", where=str(path), hint=_PREPARE_AGAIN)
    if file_sha256(path) != described["sha256"]:
        what = "is not the tokenizer that the data was made with"
        raise DataError(what, where=str(path), hint=f"put the right one back, or prepare anew with `--tokenizer {path}`")
    if "sentencepiece_sha256" in described:
        _check_file(directory / "sentencepiece.model", str(described["sentencepiece_sha256"]))


def _check_shard(path: Path, num_bytes: int) -> None:
    """Compare the size of a shard, and read its footer."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if found != num_bytes:
        raise DataError(f"has {found:,} bytes instead of {num_bytes:,}", where=str(path), hint=_PREPARE_AGAIN)
    _open_shard(path)


def _check_file(path: Path, sha256: str) -> None:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if found != sha256:
        raise DataError("is damaged: its hash is not that of manifest.json", where=str(path), hint=_PREPARE_AGAIN)


def _unreadable(path: Path, error: OSError) -> DataError:
    what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    return DataError(what, where=str(path), hint=_PREPARE_AGAIN)


def _open_shard(path: Path) -> Any:
    import pyarrow as pa

    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowException) as error:
        raise DataError("is damaged: not an Arrow file of token ids", where=str(path), hint=_PREPARE_AGAIN) from error


def _segments(path: Path) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64]]]:
    """Map a shard: of each record batch the values, and where its rows end."""
    import pyarrow as pa

    reader = _open_shard(path)
    try:
        for index in range(reader.num_record_batches):
            rows = reader.get_batch(index).column(COLUMN)
            yield rows.values.to_numpy(zero_copy_only=True), rows.offsets.to_numpy(zero_copy_only=True)[1:]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError("is damaged: not an Arrow file of token ids", where=str(path), hint=_PREPARE_AGAIN) from error

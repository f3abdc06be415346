"""Columns of Parquet files, Arrow files, and directories that `datasets` saved."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pldcli.errors import DataError
from pldcli.system.arrow import DAMAGE, memory_bytes, record_batches
from pldcli.system.input_files import Format, check_expansion
from pldcli.system.json_text import from_json

__all__ = ["Read", "class_names", "is_saved_dataset", "read_columns", "splits_of"]


def is_saved_dataset(path: Path) -> bool:
    """Return whether `Dataset.save_to_disk` wrote this directory."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def splits_of(path: Path) -> list[Path]:
    """List the data sets in a directory that `DatasetDict.save_to_disk` wrote; none in others."""
    if not (path / "dataset_dict.json").is_file():
        return []
    return sorted(part for part in path.iterdir() if is_saved_dataset(part))


Read = tuple[dict[str, list[Any]], tuple[str, ...], int, dict[str, tuple[str, ...]]]
"""The kept columns, the names of all, the number of rows, and the names of the classes of columns that hold them as numbers."""


def read_columns(path: Path, kind: Format | None, keep: Collection[str] | None) -> Read:
    """Read a Parquet file, an Arrow file or, where there is no kind, a saved data set; of its columns those in `keep`, None for all.

    Raises:
        DataError: It is damaged, or not what its name says.
    """
    import pyarrow as pa

    try:
        table = _saved(path) if kind is None else _parquet(path) if kind == "parquet" else _arrow(path)
        duplicated = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
        if duplicated:
            raise DataError(f"has two columns {duplicated[0]!r}", where=str(path), hint="give each its own name")
        columns = {name: _plain_numbers(table.column(name)).to_pylist() for name in table.column_names if keep is None or name in keep}
        names = _names_of_classes(table.schema.metadata)
    except (pa.ArrowException, OSError, *DAMAGE) as error:
        what = f".{kind} file" if kind else "data set of `datasets`"
        raise DataError(f"is no readable {what}", where=str(path), hint="is it cut short? write or copy it again") from error
    return columns, tuple(table.column_names), table.num_rows, names


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Find the columns that hold classes, or lists of them, as numbers, in the features of a data set as `datasets` writes them."""
    found = {}
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else feature
        inner = inner[0] if isinstance(inner, list) and len(inner) == 1 else inner
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and inner.get("names"):
            found[column] = tuple(map(str, inner["names"]))
    return found


def _plain_numbers(column: Any) -> Any:
    """Turn the decimal numbers of databases into numbers as Python counts with."""
    import pyarrow as pa

    return column.cast(pa.float64() if column.type.scale > 0 else pa.int64()) if pa.types.is_decimal(column.type) else column


def _parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return _held(file.iter_batches(), file.schema_arrow, path)


def _arrow(path: Path) -> Any:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        schema, batches = record_batches(source, str(path), lambda names: range(len(names)))
        return _held(batches, schema, path)


def _held(batches: Iterable[Any], schema: Any, path: Path) -> Any:
    """Make a table of record batches, as long as they are no more than text packs to."""
    import pyarrow as pa

    held, num_bytes, packed_bytes = [], 0, path.stat().st_size
    for batch in batches:
        held.append(batch)
        num_bytes += memory_bytes(batch)
        check_expansion(num_bytes, packed_bytes, str(path))
    return pa.Table.from_batches(held, schema)


def _saved(path: Path) -> Any:
    import pyarrow as pa

    state = from_json((path / "state.json").read_text(encoding="utf-8"))
    names = [part["filename"] for part in state["_data_files"]]
    if any(name != Path(name).name or name in ("", "..") for name in names):
        raise DataError("names files of other directories", where=str(path / "state.json"), hint="save it again with `datasets`")
    return pa.concat_tables([_arrow(path / name) for name in names])


def _names_of_classes(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    written = (metadata or {}).get(b"huggingface")
    if written is None:
        return {}
    features = from_json(written).get("info", {}).get("features") or {}
    return class_names(features)

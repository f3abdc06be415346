"""Columns of Parquet files, Arrow files, and directories that `datasets` saved."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pldcli.errors import DataError
from pldcli.system.json_text import from_json

__all__ = ["Read", "class_names", "is_saved_dataset", "read_columns"]


def is_saved_dataset(path: Path) -> bool:
    """Return whether `Dataset.save_to_disk` wrote this directory."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


Read = tuple[dict[str, list[Any]], tuple[str, ...], int, dict[str, tuple[str, ...]]]
"""The kept columns, the names of all, the number of rows, and the names of the classes of columns that hold them as numbers."""


def read_columns(path: Path, keep: Collection[str] | None) -> Read:
    """Read a Parquet file, an Arrow file or a saved data set; of its columns those in `keep`, None for all.

    Raises:
        DataError: It is damaged, or not what its name says.
    """
    import pyarrow as pa

    try:
        table = _saved(path) if path.is_dir() else _parquet(path) if path.suffix.lower() == ".parquet" else _arrow(path)
        duplicated = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
        if duplicated:
            raise DataError(f"has two columns {duplicated[0]!r}", where=str(path), hint="give each its own name")
        columns = {name: table.column(name).to_pylist() for name in table.column_names if keep is None or name in keep}
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        kind = "data set of `datasets`" if path.is_dir() else f"{path.suffix.lower()} file"
        raise DataError(f"is no readable {kind}", where=str(path), hint="is it cut short? write or copy it again") from error
    return columns, tuple(table.column_names), table.num_rows, _names_of_classes(table.schema.metadata)


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Find the columns that hold classes, or lists of them, as numbers, in the features of a data set as `datasets` writes them."""
    found = {}
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else feature
        inner = inner[0] if isinstance(inner, list) and len(inner) == 1 else inner
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and inner.get("names"):
            found[column] = tuple(map(str, inner["names"]))
    return found


def _parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(path, partitioning=None)


def _arrow(path: Path) -> Any:
    """Read either format of Arrow IPC: `datasets` writes streams, others files."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            return pa.ipc.open_file(source).read_all()
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


def _saved(path: Path) -> Any:
    import pyarrow as pa

    state = from_json((path / "state.json").read_text(encoding="utf-8"))
    return pa.concat_tables([_arrow(path / part["filename"]) for part in state["_data_files"]])


def _names_of_classes(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    written = (metadata or {}).get(b"huggingface")
    if written is None:
        return {}
    features = from_json(written).get("info", {}).get("features") or {}
    return class_names(features)

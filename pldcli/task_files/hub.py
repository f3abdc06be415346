"""Data sets of the Hugging Face hub, through `datasets`; without a network that ends in seconds, not in retries."""

from __future__ import annotations

import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pldcli.errors import MissingDataError
from pldcli.task_files.columnar import class_names
from pldcli.task_files.layouts import where_to_put
from pldcli.task_files.table import Table
from pldcli.tasks.task import Task

__all__ = ["load_hub"]

_PROBE_SECONDS = 4.0


def load_hub(task: Task, keep: Collection[str]) -> dict[str, Table]:
    """Download the splits of a task, with the columns in `keep`, or take them from the cache of an earlier download.

    Raises:
        MissingDataError: They cannot be had.
    """
    assert task.hub is not None
    name, configuration = task.hub
    reachable = _hub_answers()
    with _offline(not reachable):
        import datasets

        try:
            loaded: Mapping[str, Any] = datasets.load_dataset(name, configuration)
        except Exception as error:  # whatever a library and a network can say
            first = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
            reason = first if reachable else "the Hugging Face hub cannot be reached"
            what = f"{task.name} is not on this machine and cannot be downloaded ({reason})"
            raise MissingDataError(what, hint=where_to_put(task)) from error
    place = Path(name, configuration) if configuration else Path(name)
    return {split: _table(place / split, data, keep) for split, data in loaded.items()}


def _table(path: Path, data: Any, keep: Collection[str]) -> Table:
    arrow = data.with_format("arrow")[:]
    columns = {name: arrow.column(name).to_pylist() for name in arrow.column_names if name in keep}
    features = data.features.to_dict() if hasattr(data.features, "to_dict") else {}
    names = class_names(features)
    return Table(path, columns, range(1, arrow.num_rows + 1), by_line=False, headings=tuple(arrow.column_names), class_names=names)


def _hub_answers() -> bool:
    """Return whether a connection to the hub, or to the proxy before it, opens within seconds."""
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")):
        return False
    endpoint = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    proxy = urllib.request.getproxies().get(endpoint.scheme)
    target = urllib.parse.urlsplit(proxy if proxy and "://" in proxy else f"http://{proxy}") if proxy else endpoint
    port = target.port or (443 if target.scheme == "https" else 80)
    opened = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((target.hostname or "", port), timeout=_PROBE_SECONDS).close()
        except OSError:
            return
        opened.set()

    # Looking up a name has no time limit of its own, so the thread is left to itself when it takes longer.
    prober = threading.Thread(target=connect, daemon=True)
    prober.start()
    prober.join(_PROBE_SECONDS)
    return opened.is_set()


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Let `datasets` use its cache only, while the block runs; it reads the setting when it is imported."""
    if not wanted:
        yield
        return
    import datasets
    import huggingface_hub

    holders: list[Any] = [datasets.config, huggingface_hub.constants]
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    for holder in holders:
        holder.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = value

"""Have transformers read a written model back. What it says is a warning: the model stays, whatever transformers does."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pldcli.errors import PldError
from pldcli.huggingface.save import check_reload
from pldcli.model import StBert

__all__ = ["ReadBack", "describe", "read_back"]

_LONGEST_FAILURE = 300


class ReadBack(NamedTuple):
    """What came of it."""

    difference: float | None
    """Largest absolute difference of outputs; None where transformers is not installed, or the check failed."""
    failure: str | None
    """Why the check failed, in a line; None where it did not."""


def read_back(directory: Path, model: StBert, input_ids_BT: Tensor) -> ReadBack:
    """Compare a written model as transformers reads it with ours.

    Args:
        directory: Where it was written.
        model: What was written.
        input_ids_BT: Token ids to compare outputs on.
    """
    try:
        return ReadBack(check_reload(directory, model, input_ids_BT, where=directory), None)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a broken or newer transformers can raise anything
        what = error.what if isinstance(error, PldError) else f"transformers cannot read it back: {type(error).__name__}: {error}"
        return ReadBack(None, textwrap.shorten(what, _LONGEST_FAILURE, placeholder=" ..."))


def describe(difference: float | None, failure: str | None) -> str:
    """Say in some words what came of it."""
    if failure is not None:
        return "the check with transformers failed"
    if difference is None:
        return "not read back: transformers is not installed"
    return f"read back with transformers, outputs differ by at most {difference:.1g}"

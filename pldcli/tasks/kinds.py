"""The kinds of tasks, by name."""

from __future__ import annotations

from pldcli.tasks.sequence import Classification, Regression
from pldcli.tasks.spans import Spans
from pldcli.tasks.tags import Tags
from pldcli.tasks.task import Kind, KindCode

__all__ = ["KINDS"]

KINDS: dict[Kind, KindCode] = {"classification": Classification(), "regression": Regression(), "tags": Tags(), "spans": Spans()}
"""What differs between tasks; everything else is data."""

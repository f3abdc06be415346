"""The words in which tasks are spoken of: a task, its examples, its token rows, its predictions. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pldcli.choices import TaskKind
from pldcli.tokenization.tokenizer import Tokenizer

__all__ = ["Examples", "Features", "Head", "KindCode", "Label", "Prediction", "Task", "TaskData"]

Head = Literal["sequence", "token"]
"""Where the model's outputs stand: one vector per row (token 0), or one per token."""

Label = str | int | float | bool
"""A label as a file spells it."""


_RECORDED = ("name", "kind", "text_columns", "label_column", "labels", "written", "metrics", "unanswerable", "separator")
"""What a fine-tuned model remembers of its task."""
_SINCE = {"separator": ""}
"""What earlier versions did not write, and what it is then."""


@dataclass(frozen=True)
class Task:
    """A task as data: what its columns are called, what its labels are, how it is scored, where it comes from."""

    name: str
    """For example `glue/mnli`; a user's own task has the name of its file without the ending."""
    kind: TaskKind
    text_columns: tuple[str, ...]
    """One or two; the words of `tags`; question and context of `spans`."""
    label_column: str
    labels: tuple[str, ...] = ()
    """Names in the order of their ids; empty for `regression` and `spans`, and until found in the data."""
    written: tuple[Label, ...] = ()
    """How the files, the predictions and the GLUE server spell each label; empty where they use the names."""
    metrics: tuple[str, ...] = ()
    """Names of scores that its kind computes; the task's score is their mean."""
    title: str = ""
    """What it asks, in a few words."""
    folder: str = ""
    """Its directory in the published layout of its benchmark, for example `MNLI`."""
    train: str | None = "train"
    validation: tuple[str, ...] = ("validation",)
    test: tuple[str, ...] = ("test",)
    """Names of its splits."""
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Other names that its columns have in some layouts, the first that is there counts; `index` for what names an example."""
    stems: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names, without ending, that the published file of a split has where it is not called after the split."""
    num_rows: Mapping[str, int] = field(default_factory=dict)
    """Official number of examples of each split."""
    headless: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Splits whose published file has no heading: its columns."""
    separator: str = ""
    """multi-label: what stands between labels where they are written in one text."""
    unanswerable: bool = False
    """spans: some questions have no answer in their text, and the model may say so."""
    skip_broken_rows: bool = False
    """Leave out rows with a wrong number of columns, as the published file of this task has them, and say how many."""
    hub: tuple[str, str | None] | None = None
    """Data set and configuration on the Hugging Face hub."""
    server_files: Mapping[str, str] = field(default_factory=dict)
    """Test split to the name of its file in a submission to the GLUE server."""

    def spelled(self, label_id: int) -> Label:
        """Spell a label as the files do."""
        return self.written[label_id] if self.written else self.labels[label_id]

    def record(self) -> dict[str, Any]:
        """Write down what it takes to read other files of this task."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name in _RECORDED if (value := getattr(self, name)) is not None
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Task:
        """Read what `record` wrote.

        Raises:
            ValueError: It is something else.
        """
        try:
            given = {**_SINCE, **record}
            values: dict[str, Any] = {name: tuple(value) if isinstance(value := given[name], list) else value for name in _RECORDED}
            task = cls(**values | {"kind": TaskKind(values["kind"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{error}") from error
        if not task.text_columns:
            raise ValueError("no text_columns")
        for name in _RECORDED:
            if type(getattr(task, name)) is not type(getattr(_EXAMPLE, name)):
                raise ValueError(f"{name} {getattr(task, name)!r}")
        return task

    def with_labels(self, labels: Sequence[Label]) -> Task:
        """Take the labels that were found in the data."""
        return replace(self, labels=tuple(str(label) for label in labels), written=tuple(labels))


_EXAMPLE = Task("", TaskKind.CLASSIFICATION, (), "")
"""Its fields have the types that a record's have."""


@dataclass(frozen=True)
class Examples:
    """A split of a task, read and checked; all lists have one entry per example."""

    split: str
    source: str
    """The file or data set that it came from."""
    inputs: tuple[list[Any], ...]
    """One list per text column. classification, regression: texts. tags: lists of words. spans: questions, then contexts."""
    labels: list[Any] | None
    """classification: label ids. multi-label: lists of label ids. regression: floats. tags: lists of label ids, one per word. spans: lists
    of (first character in the context, text), several right answers or none. None where the split has no labels."""
    indices: list[Label]
    """The name of each example in predictions."""
    notes: tuple[str, ...] = ()
    """What the user should hear: rows skipped, a row count that is not the official one."""

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class TaskData:
    """A task with the splits that were found; its labels are known."""

    task: Task
    train: Examples | None
    validation: dict[str, Examples]
    test: dict[str, Examples]

    @property
    def splits(self) -> list[Examples]:
        """Every split that is there, training first."""
        return [*([] if self.train is None else [self.train]), *self.validation.values(), *self.test.values()]


@dataclass(frozen=True)
class Features:
    """Tokenized rows as the encoder reads them, one after the other: one per example, or one per window of it.

    Row r is `input_ids[offsets[r]:offsets[r + 1]]`, special tokens included, padding not.
    """

    input_ids: npt.NDArray[np.int32]
    token_type_ids: npt.NDArray[np.int8]
    """Of each token; the same shape."""
    offsets: npt.NDArray[np.int64]
    """[rows + 1]."""
    labels: npt.NDArray[Any] | None
    """classification: [rows] int64. multi-label: [rows, labels] bool, whether each label holds. regression: [rows] float32. tags: int64 per
    token like input_ids, -100 where no word begins. spans: [rows, 2] int64, first and last token of the answer within the row, both 0
    where the window does not hold it."""
    example_of_row: npt.NDArray[np.int64]
    """[rows], which example a row belongs to."""
    num_truncated: int = 0
    """Examples that lost text because they are longer than a row."""
    details: Any = None
    """What the kind's own `predict` needs besides, for example the characters that each token stands for."""

    @classmethod
    def of_rows(cls, ids: Sequence[npt.NDArray[np.int32]], types: Sequence[npt.NDArray[np.int8]], **more: Any) -> Features:
        """Put rows one after the other, each with its ids and token types; `more` are the other fields."""
        flat_ids, flat_types = np.concatenate([np.zeros(0, np.int32), *ids]), np.concatenate([np.zeros(0, np.int8), *types])
        return cls(flat_ids, flat_types, np.cumsum([0, *map(len, ids)], dtype=np.int64), **more)

    @property
    def num_rows(self) -> int:
        """Count the rows."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Count the tokens of each row."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Prediction:
    """What a model says of one example, ready for a line of JSON."""

    label: Any
    """classification: the label as spelled. multi-label: a list of them. regression: a number. tags: a list of labels. spans: the answer's
    text, "" for none."""
    scores: Any
    """classification, multi-label: label name to probability, of many labels for the most probable. regression: a list with the number.
    tags: the probability of each word's label. spans: a mapping with `answer` and `no_answer` (sums of logits)."""
    label_id: Any = None
    """classification: the id. multi-label, tags: a list of ids."""


class KindCode(Protocol):
    """What differs between kinds of tasks."""

    head: Head
    """Which head the model needs."""

    def num_outputs(self, task: Task) -> int:
        """Count the outputs of the head, C."""
        ...

    def encode(self, examples: Examples, task: Task, tokenizer: Tokenizer, *, max_seq_len: int, stride: int) -> Features:
        """Tokenize a split.

        Args:
            examples: The split.
            task: Its task, with known labels.
            tokenizer: The model's.
            max_seq_len: Tokens of a row at most, special tokens included.
            stride: Tokens that two windows of a long text share (spans).
        """
        ...

    def predict(self, outputs: Sequence[npt.NDArray[np.float32]], features: Features, examples: Examples, task: Task) -> list[Prediction]:
        """Turn the model's outputs into one prediction per example.

        Args:
            outputs: Per row: [C] for a sequence head, [tokens of the row, C] for a token head.
            features: The rows.
            examples: The split.
            task: Its task.
        """
        ...

    def score(self, predictions: Sequence[Prediction], examples: Examples, task: Task) -> dict[str, float]:
        """Compute the task's metrics, in [-1, 1] or [0, 1], and errors of numbers in their units; the examples have labels."""
        ...

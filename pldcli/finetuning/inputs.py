"""What every run of an experiment reads: the model it starts from, the task's data, and that data as tokenized rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pldcli.choices import TaskKind
from pldcli.errors import DataError, UsageError
from pldcli.finetuning.config import FinetuneConfig, changed
from pldcli.finetuning.experiment import Experiment, data_fingerprint, model_fingerprint
from pldcli.finetuning.target_scale import TargetScale
from pldcli.pretrained import Pretrained
from pldcli.runs.model_source import short_name
from pldcli.tasks.kinds import KINDS, usual_row_tokens
from pldcli.tasks.reading import Unknown, notes_on_special_tokens, reading_words
from pldcli.tasks.tags import notes_on_labels
from pldcli.tasks.task import Examples, Features, TaskData
from pldcli.tokenization.tokenizer import Tokenizer

__all__ = ["Rows", "RunInputs"]


class RunInputs:
    """The model and the data, read once and shared by every run in this process; `start` is the experiment's model, if it was read before.

    Raises:
        PldError: Data or model that cannot be used.
    """

    def __init__(self, experiment: Experiment, start: Pretrained | None = None) -> None:
        self.start = experiment.open_model() if start is None else start
        self.data: TaskData = experiment.load_data()
        if self.data.task.kind == TaskKind.TAGS:
            self.start = replace(self.start, tokenizer=reading_words(self.start.tokenizer))
        self.targets = TargetScale.of(self.data.task, self.train)
        self._rows: dict[tuple[int, int], Rows] = {}

    @property
    def train(self) -> Examples:
        """The training split."""
        assert self.data.train is not None
        return self.data.train

    @property
    def start_name(self) -> str:
        """Name what fine-tuning starts from."""
        return f"random weights shaped like {short_name(Path(self.start.where))}" if self.start.from_scratch else self.start.where

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hash the data and the model, so that results of another experiment are recognised."""
        return {"data": data_fingerprint(self.data), "model": model_fingerprint(self.start)}

    @property
    def notes(self) -> list[str]:
        """List what the user should hear of model and data."""
        splits = self.data.splits
        is_pre = self.start.settings.norm == "pre"  # exported with RoBERTa's positions
        of_text = notes_on_special_tokens(splits, self.data.task, self.start.tokenizer, skips_padding=is_pre)
        of_labels = notes_on_labels(splits, self.data.task) if self.data.task.kind == TaskKind.TAGS else []
        of_start = [*self.start.notes, *self.start.notes_on_dropout]
        return list(dict.fromkeys([*of_start, *(note for examples in splits for note in examples.notes), *of_text, *of_labels]))

    def max_seq_len(self, settings: FinetuneConfig) -> int:
        """Choose the row length.

        Raises:
            UsageError: The model has fewer positions.
        """
        wanted, positions = settings.max_seq_len, self.start.settings.max_position_embeddings
        if wanted == "auto":
            return usual_row_tokens(self.data.task.kind, positions)
        if wanted > positions:
            raise UsageError(
                f"{wanted} tokens do not fit the model's {positions} positions", where="max_seq_len", hint=f"use max_seq_len={positions}"
            )
        return wanted

    def rows(self, settings: FinetuneConfig) -> Rows:
        """Tokenize the task, once for each row length.

        Raises:
            UsageError: Rows are longer than the model's positions, or too short for what their windows share.
        """
        length, most = self.max_seq_len(settings), self.max_seq_len(settings) // 3
        if settings.stride > most and "stride" in changed(settings) and self.data.task.kind in (TaskKind.SPANS, TaskKind.TAGS):
            what = f"windows of {length} tokens cannot share {settings.stride}"
            raise UsageError(what, where="stride", hint=f"{most} is the most, a third of max_seq_len")
        key = (length, settings.stride)
        if key not in self._rows:
            task, tokenizer = self.data.task, self.start.tokenizer
            shape: dict[str, Any] = {"max_seq_len": length, "stride": min(settings.stride, most)}
            encode = partial(KINDS[task.kind].encode, task=task, tokenizer=tokenizer, **shape)
            self._rows[key] = Rows(self.data, encode, tokenizer, self.targets)
        return self._rows[key]


class Rows:
    """A task tokenized for one row length, each split when it is first asked for: a worker never reads test splits.

    Raises:
        DataError: The tokenizer knows nothing of the training text.
    """

    def __init__(self, data: TaskData, encode: Callable[[Examples], Features], tokenizer: Tokenizer, targets: TargetScale | None) -> None:
        assert data.train is not None
        self._encode, self._tokenizer, self._splits = encode, tokenizer, data.validation | data.test
        self._encoded: dict[str, Features] = {}
        train = encode(data.train)
        self._of_train = Unknown.of(train, tokenizer)
        if self._of_train.tokens == self._of_train.unknown:
            raise DataError(
                f"the model's tokenizer knows nothing of this text: all of {self._of_train.tokens:,} tokens are unknown",
                where=data.train.source,
                hint="start from a model whose vocabulary fits the text, or name other columns",
            )
        self.train = train if targets is None else targets.standardise(train, data.train)

    def of(self, split: str) -> tuple[Examples, Features]:
        """Return a validation or test split and its rows."""
        examples = self._splits[split]
        if split not in self._encoded:
            self._encoded[split] = self._encode(examples)
        return examples, self._encoded[split]

    @property
    def unknown(self) -> dict[str, float]:
        """The share of unknown tokens in the text of each split that was tokenized."""
        others = {split: Unknown.of(features, self._tokenizer).share for split, features in self._encoded.items()}
        return {"train": self._of_train.share} | others

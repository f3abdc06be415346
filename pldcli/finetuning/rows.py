"""The rows of a task as a model reads them, for fine-tuning: how long they are, and how much of the text the tokenizer knows."""

from __future__ import annotations

from pldcli.data.tokenizer import Tokenizer
from pldcli.errors import DataError, UsageError
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.target_scale import TargetScale
from pldcli.tasks.kinds import KINDS, usual_row_tokens
from pldcli.tasks.reading import Unknown
from pldcli.tasks.task import Examples, Features, TaskData

__all__ = ["Rows", "max_seq_len_of"]


class Rows:
    """A task tokenised for one row length, each split when it is first asked for: a worker never reads test splits.

    Raises:
        DataError: The tokenizer knows nothing of the training text.
    """

    def __init__(self, data: TaskData, tokenizer: Tokenizer, max_seq_len: int, stride: int, targets: TargetScale | None) -> None:
        assert data.train is not None
        self._task, self._tokenizer, self._max_seq_len, self._stride = data.task, tokenizer, max_seq_len, stride
        self._splits = data.validation | data.test
        self._encoded: dict[str, Features] = {}
        train = self._encode(data.train)
        self._of_train = Unknown.of(train, tokenizer)
        if self._of_train.tokens == self._of_train.unknown:
            raise DataError(
                f"the model's tokenizer knows nothing of this text: all of {self._of_train.tokens:,} tokens are unknown",
                where=data.train.source,
                hint="start from a model whose vocabulary fits the text, or name other columns",
            )
        self.train = train if targets is None else targets.standardise(train, data.train)

    def of(self, split: str) -> tuple[Examples, Features]:
        """Find a validation or test split and its rows."""
        examples = self._splits[split]
        if split not in self._encoded:
            self._encoded[split] = self._encode(examples)
        return examples, self._encoded[split]

    @property
    def unknown(self) -> dict[str, float]:
        """The share of unknown tokens in the text of each split that was tokenised."""
        others = {split: Unknown.of(features, self._tokenizer).share for split, features in self._encoded.items()}
        return {"train": self._of_train.share} | others

    def _encode(self, examples: Examples) -> Features:
        kind = KINDS[self._task.kind]
        return kind.encode(examples, self._task, self._tokenizer, max_seq_len=self._max_seq_len, stride=self._stride)


def max_seq_len_of(settings: FinetuneConfig, data: TaskData, positions: int) -> int:
    """Choose the row length.

    Raises:
        UsageError: The model has fewer positions.
    """
    wanted = settings.max_seq_len
    if wanted == "auto":
        return usual_row_tokens(data.task.kind, positions)
    if wanted > positions:
        raise UsageError(
            f"{wanted} tokens do not fit the model's {positions} positions", where="max_seq_len", hint=f"use max_seq_len={positions}"
        )
    return wanted

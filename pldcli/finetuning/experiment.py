"""What is fine-tuned on what: small enough to hand to another process, exact enough to recognise again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path

from pldcli.choices import TaskKind
from pldcli.errors import CheckpointError, MissingDataError, UsageError
from pldcli.pretrained import Pretrained
from pldcli.runs.model_source import open_model
from pldcli.task_files.own_files import load_own
from pldcli.task_files.sources import load_task
from pldcli.tasks.registry import AX, MNLI, find_task, is_known_task, task_name
from pldcli.tasks.task import TaskData

__all__ = ["AFTER_MNLI", "Experiment", "data_fingerprint", "model_fingerprint"]

AFTER_MNLI = ("glue/mrpc", "glue/rte", "glue/stsb")
"""The small tasks that may start from the model fine-tuned on MNLI (Liu et al. 2019, section 5.1)."""

_PRINTED_AT_ONCE = 1_000


@dataclass(frozen=True)
class Experiment:
    """A task, its files, and the model that fine-tuning starts from."""

    task: str
    """A name that `pld tasks` lists, or the path of the user's own training file."""
    model: str
    """A run, a checkpoint, or a Hugging Face directory."""
    _: KW_ONLY
    data_dir: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    """Split to a file that takes its place."""
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    kind: TaskKind | None = None
    validation_fraction: float = 0.1
    skip_bad: bool = False
    allow_bin: bool = False
    from_scratch: bool = False
    """Forget the model's weights: what its pre-training bought shows against this."""

    def load_data(self) -> TaskData:
        """Read the task's splits; there is something to train on and something to validate on.

        Raises:
            UsageError, DataError: Unknown task, or data that cannot be used.
        """
        data = self._load()
        name = data.task.name
        if data.train is None:
            hint = f"fine-tune {MNLI}: it predicts {AX} too" if name == AX else "name a training file with --train"
            raise MissingDataError(f"{name} has no training examples", hint=hint)
        if not data.validation:
            raise MissingDataError(f"{name} has no validation examples", hint="name a file with --validation")
        return data

    def open_model(self) -> Pretrained:
        """Read the model.

        Raises:
            CheckpointError: It cannot be used, or is a causal model: the heads of tasks read texts that every token sees whole.
        """
        start = open_model(Path(self.model), allow_bin=self.allow_bin)
        if start.causal:
            what = "is a causal model, whose first token sees nothing of a text"
            raise CheckpointError(what, where=start.where, hint="fine-tune a masked language model")
        return start.untrained() if self.from_scratch else start

    def after_mnli(self, base: Path) -> Experiment:
        """Start from the model that was fine-tuned on MNLI in `base`.

        Raises:
            UsageError: The task is none of `AFTER_MNLI`, or there is no such model.
        """
        name = find_task(self.task).name if is_known_task(self.task) else self.task
        if name not in AFTER_MNLI:
            raise UsageError(f"--from-mnli is for {', '.join(AFTER_MNLI)}", where=name)
        model = base / task_name(MNLI) / "model"
        if not model.is_dir():
            raise UsageError(f"no model fine-tuned on MNLI in {model}", hint="run `pld finetune glue/mnli` from the same start first")
        return replace(self, model=str(model), from_scratch=False)

    def to_json(self) -> str:
        """Write it down for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Experiment:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(**(values | {"text_columns": tuple(values["text_columns"])}))

    def _load(self) -> TaskData:
        files = {split: Path(path) for split, path in self.files.items()}
        if is_known_task(self.task):
            if self.text_columns or self.label_column or self.kind or self.skip_bad:
                what = "--text-column, --label-column, --kind and --skip-bad are for your own files"
                raise UsageError(what, where=self.task, hint="`pld tasks` shows its columns")
            return load_task(find_task(self.task), data_dir=Path(self.data_dir) if self.data_dir else None, files=files)
        if self.data_dir or "train" in files:
            raise UsageError("--data-dir and --train are for tasks that `pld tasks` lists", where=self.task)
        return load_own(
            Path(self.task),
            validation=files.get("validation"),
            test=files.get("test"),
            text_columns=self.text_columns,
            label_column=self.label_column,
            kind=self.kind,
            validation_fraction=self.validation_fraction,
            skip_bad=self.skip_bad,
        )


def data_fingerprint(data: TaskData) -> str:
    """Hash what the model will read and be scored on."""
    digest = hashlib.sha256(repr((str(data.task.kind), data.task.labels)).encode())
    for examples in data.splits:
        for part in _printed((examples.split, examples.inputs, examples.labels)):
            digest.update(part.encode())
    return digest.hexdigest()


def _printed(value: object) -> Iterator[str]:
    """Yield `repr(value)` in parts: whole, it would be a copy of the corpus."""
    if isinstance(value, tuple):
        yield "("
        for number, one in enumerate(value):
            yield ", " if number else ""
            yield from _printed(one)
        yield ",)" if len(value) == 1 else ")"
    elif isinstance(value, list):
        for start in range(0, len(value), _PRINTED_AT_ONCE):
            yield (", " if start else "[") + repr(value[start : start + _PRINTED_AT_ONCE])[1:-1]
        yield "]" if value else "[]"
    else:
        yield repr(value)


def model_fingerprint(start: Pretrained) -> str:
    """Hash the shape, the weights and the vocabulary."""
    digest = hashlib.sha256(repr((start.tokenizer.fingerprint, start.settings)).encode())
    for name in sorted(start.weights):
        digest.update(name.encode())
        digest.update(start.weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()

"""Score a fine-tuned model on a task's files, or on other files with the same columns."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from pldcli.choices import BlockChoice, TaskKind
from pldcli.console.progress import Progress
from pldcli.engine.precision import Precision, resolve_precision
from pldcli.engine.runtime import Runtime, launch
from pldcli.errors import CheckpointError, DataError, UsageError
from pldcli.evaluation.depth import DepthReport, Gates, Measure, choose_depths, measure_depths, parse_depths
from pldcli.evaluation.evaluate import Evaluated
from pldcli.evaluation.prediction import ScoredSplit, as_json_lines, json_lines, notes_on_predictions, outputs_of, score_split
from pldcli.evaluation.subject import Opening
from pldcli.model import StBert
from pldcli.pretrained import Pretrained
from pldcli.runs.model_source import open_model, remembered_task
from pldcli.system import atomic
from pldcli.task_files.own_files import load_split
from pldcli.task_files.sources import load_task
from pldcli.tasks.kinds import KINDS, head_of, usual_row_tokens
from pldcli.tasks.reading import Unknown, note_on_unknown, notes_on_special_tokens
from pldcli.tasks.registry import find_task, is_known_task
from pldcli.tasks.task import Examples, Features, Task

__all__ = ["TaskScore", "TaskSource", "evaluate_task", "evaluate_task_depths", "write_predictions"]

_STRIDE = 128
_NO_LETTER = re.compile(r"[\W_]+")
_ROWS_OF_ONE_FORWARD = 32


@dataclass(frozen=True)
class TaskSource:
    """Which task, from where."""

    task: str
    """A name that `pld tasks` lists, or a file."""
    data_dir: Path | None = None
    skip_bad: bool = False
    unlabelled: bool = False
    """Predict splits without labels too; they are predicted in any case where no split has labels."""


@dataclass(frozen=True)
class TaskScore:
    """A model's predictions and scores, split by split."""

    source: str
    """The directory that the weights came from."""
    task: Task
    precision: str
    splits: dict[str, tuple[Examples, ScoredSplit]]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A fine-tuned model on its device with the rows that it is to read."""

    loaded: Pretrained
    model: StBert
    task: Task
    rows: dict[str, tuple[Examples, Features]]
    precision: Precision
    runtime: Runtime

    def score(self, split: str, **how: Any) -> ScoredSplit:
        return score_split(self.model, *self.rows[split], self.task, self.precision, self.runtime, pad_id=self.pad_id, **how)

    @property
    def pad_id(self) -> int:
        return self.loaded.tokenizer.special.pad_id


def evaluate_task(target: Path, source: TaskSource, **opening: Unpack[Opening]) -> TaskScore:
    """Predict every example with a fine-tuned model, and score splits that have labels.

    Raises:
        CheckpointError: The model cannot be read, or was not fine-tuned.
        DataError: The files cannot be used, or have labels that the model does not know.
    """
    with _open(target, source, opening) as subject:
        total = sum(features.num_rows for _, features in subject.rows.values())
        with Progress(f"evaluating {subject.task.name}", total=total, unit="rows", quiet=not subject.runtime.is_main) as bar:
            splits = {name: (examples, subject.score(name, progress=bar.advance)) for name, (examples, _) in subject.rows.items()}
        seen = [note for name, pair in splits.items() for note in notes_on_predictions(pair[1], pair[0], subject.task, name)]
        return TaskScore(subject.loaded.where, subject.task, subject.precision.name, splits, (*_notes(subject), *seen))


def evaluate_task_depths(
    target: Path, source: TaskSource, depths: str, blocks: BlockChoice, **opening: Unpack[Opening]
) -> Evaluated[DepthReport]:
    """Score with only some of the blocks, chosen as `choose_depths` does, on every split that has labels.

    Raises:
        PldError: As `evaluate_task`; or there are no labels, or fewer blocks than asked for.
    """
    wanted = parse_depths(depths)
    with _open(target, source, opening) as subject:
        choice = choose_depths(target, wanted, blocks, subject.loaded.settings)
        labelled = [name for name, (examples, _) in subject.rows.items() if examples.labels is not None]
        if not labelled:
            raise DataError("no labels to score against", where=source.task)
        probe = _first_rows(subject.rows[labelled[0]][1])

        def score(gates: Gates) -> dict[str, float]:
            values: dict[str, float] = {}
            for number, name in enumerate(labelled):
                ending = f" {name}" if number else ""
                values |= {f"{metric}{ending}": value for metric, value in subject.score(name, gates=gates).scores.items()}
            return values

        def forward(gates: Gates) -> int:
            outputs_of(subject.model, probe, subject.precision, subject.runtime, pad_id=subject.pad_id, gates=gates)
            return len(probe.input_ids)

        report = measure_depths(Measure(score, forward), choice, subject.runtime)
        length, what = int(subject.rows[labelled[0]][1].lengths.max()), f"{subject.task.name} ({', '.join(labelled)})"
        return Evaluated(Path(subject.loaded.where), what, subject.precision.name, length, report, _notes(subject))


def write_predictions(result: TaskScore, path: Path) -> None:
    """Write one JSON object per example: its index, the predicted label, and the scores; several splits one after the other.

    Raises:
        OutputError: The file cannot be written.
    """
    lines: list[dict[str, Any]] = []
    for split, (examples, scored) in result.splits.items():
        named = {"split": split} if len(result.splits) > 1 else {}
        lines += [line | named for line in as_json_lines(scored.predictions, examples)]
    atomic.write_text(path, json_lines(lines))


@contextmanager
def _open(target: Path, source: TaskSource, opening: Opening) -> Iterator[_Subject]:
    loaded = open_model(target, data=opening.get("data"), allow_bin=opening.get("allow_bin", False))
    if "task_head.output.bias" not in loaded.weights:
        place = [] if source.data_dir is None else ["--data-dir", str(source.data_dir)]
        command = shlex.join(["pld", "finetune", source.task, "--model", str(target), *place])
        raise CheckpointError("has no head for a task", where=loaded.where, hint=f"fine-tune it first: {command}")
    task = _task_of(loaded, source)
    kind = KINDS[task.kind]
    if (outputs := len(loaded.weights["task_head.output.bias"])) != kind.num_outputs(task):
        raise CheckpointError(
            f"its head has {outputs} outputs, {task.name} needs {kind.num_outputs(task)}",
            where=loaded.where,
            hint="evaluate it on the task that it was fine-tuned for",
        )
    loaded = _in_order(loaded, task)
    splits = _splits(task, source)
    length, stride = _row_shape(loaded, task)
    rows = {
        name: (examples, kind.encode(examples, task, loaded.tokenizer, max_seq_len=length, stride=stride))
        for name, examples in splits.items()
    }
    model = loaded.with_head(head_of(task), trained=True)
    with launch(opening.get("device", "auto")) as runtime:
        precision = resolve_precision(opening.get("precision", "fp32"), runtime.device)
        yield _Subject(loaded=loaded, model=model.to(runtime.device), task=task, rows=rows, precision=precision, runtime=runtime)


def _task_of(loaded: Pretrained, source: TaskSource) -> Task:
    """Find what the model's outputs mean.

    Raises:
        CheckpointError: What it wrote down of its task is damaged, or it is of another kind than the task.
        UsageError: It wrote nothing down, and the file does not say it.
    """
    remembered = remembered_task(loaded)
    if is_known_task(source.task):
        task = find_task(source.task)
        if remembered is not None and (remembered.kind != task.kind or set(remembered.labels) != set(task.labels)):
            what = f"{remembered.kind} of {', '.join(remembered.labels)}" if remembered.labels else remembered.kind
            raise CheckpointError(f"was fine-tuned for {remembered.name} ({what}), not for {task.name}", where=loaded.where)
        return task
    if remembered is not None:
        return remembered
    outputs, name = len(loaded.weights["task_head.output.bias"]), Path(source.task).stem
    if not loaded.labels or loaded.head_kind != "sequence":
        raise UsageError("does not say what its outputs mean", where=loaded.where, hint="name a task of `pld tasks`")
    kind, metrics = TaskKind.CLASSIFICATION, ("accuracy", "macro_f1")
    if loaded.multi_label:
        kind, metrics = TaskKind.MULTI_LABEL, ("micro_f1", "macro_f1")
    elif outputs == 1:
        return Task(name, TaskKind.REGRESSION, (), "", metrics=("pearson", "spearman"))
    written = () if _tells_its_labels(loaded) else tuple(range(outputs))
    return Task(name, kind, (), "", labels=loaded.labels, written=written, metrics=metrics)


def _row_shape(loaded: Pretrained, task: Task) -> tuple[int, int]:
    """Choose the length of a row and what two windows share: as in fine-tuning, where the model says it.

    Raises:
        CheckpointError: What it says is impossible.
    """
    remembered, positions = loaded.task or {}, loaded.settings.max_position_embeddings
    # A row is no longer than its text: all positions of a model that another program fine-tuned cost nothing where texts are short.
    length = remembered.get("max_seq_len") or (usual_row_tokens(task.kind, positions) if task.kind == TaskKind.SPANS else positions)
    stride = remembered.get("stride", _STRIDE)
    if type(length) is not int or type(stride) is not int or not 0 < length <= positions or stride < 0:
        raise CheckpointError(f"pld_task in config.json is damaged (rows of {length!r} tokens, {stride!r} shared)", where=loaded.where)
    return length, min(stride, length // 3)


def _in_order(loaded: Pretrained, task: Task) -> Pretrained:
    """Put the head's outputs into the order of a task's labels: a metric such as F1 counts one of them.

    Raises:
        CheckpointError: The outputs of a model that another program fine-tuned have other names.
    """
    remembered = remembered_task(loaded)
    outputs = remembered.labels if remembered is not None else loaded.labels
    if task.kind != TaskKind.CLASSIFICATION or outputs == task.labels or (remembered is None and not _tells_its_labels(loaded)):
        return loaded
    names, known = ([_NO_LETTER.sub("", label.lower()) for label in labels] for labels in (outputs, task.labels))
    if sorted(names) != sorted(known):
        what = f"its outputs are {', '.join(outputs)}, those of {task.name} are {', '.join(task.labels)}"
        raise CheckpointError(what, where=loaded.where, hint="evaluate it on the task that it was fine-tuned for")
    order = [names.index(name) for name in known]
    head = {name: tensor[order] for name, tensor in loaded.weights.items() if name.startswith("task_head.output.")}
    return replace(loaded, weights=loaded.weights | head)


def _tells_its_labels(loaded: Pretrained) -> bool:
    """Return whether the outputs have names of their own, unlike LABEL_0."""
    return bool(loaded.labels) and not all(re.fullmatch(r"LABEL_\d+", label) for label in loaded.labels)


def _splits(task: Task, source: TaskSource) -> dict[str, Examples]:
    """Read what there is to predict: a task's validation and test splits, or a file."""
    if is_known_task(source.task):
        if source.skip_bad:
            raise UsageError("--skip-bad is for your own files", where=source.task, hint="leave it out")
        data = load_task(task, data_dir=source.data_dir)
        labelled = {name: examples for name, examples in (data.validation | data.test).items() if examples.labels is not None}
        return data.validation | data.test if source.unlabelled or not labelled else labelled
    if source.data_dir is not None:
        raise UsageError("--data-dir is for tasks that `pld tasks` lists", where=source.task)
    path = Path(source.task)
    return {path.name.partition(".")[0]: load_split(task, path, skip_bad=source.skip_bad)}


def _notes(subject: _Subject) -> tuple[str, ...]:
    notes = [*subject.loaded.notes, *(note for examples, _ in subject.rows.values() for note in examples.notes)]
    cut = [
        f"{features.num_truncated:,} of {len(examples):,} in {name}"
        for name, (examples, features) in subject.rows.items()
        if features.num_truncated
    ]
    tokenizer = subject.loaded.tokenizer
    splits, is_pre = [examples for examples, _ in subject.rows.values()], subject.loaded.settings.norm == "pre"
    notes += notes_on_special_tokens(splits, subject.task, tokenizer, skips_padding=is_pre)
    if remembered_task(subject.loaded) is None and subject.task.labels and not _tells_its_labels(subject.loaded):
        listed = ", ".join(subject.task.labels) if subject.task.hub else "the numbers that the file has for labels"
        notes.append(f"it does not say what its outputs mean: taken as {listed}")
    notes += note_on_unknown({name: Unknown.of(features, tokenizer).share for name, (_, features) in subject.rows.items()})
    return (*dict.fromkeys(notes), *([f"longer than a row and cut: {', '.join(cut)}"] if cut else []))


def _first_rows(features: Features) -> Features:
    """Take a few rows of the middle length, one forward pass of them."""
    order = np.argsort(features.lengths, kind="stable")
    middle = max(0, len(order) // 2 - _ROWS_OF_ONE_FORWARD // 2)
    rows: Sequence[int] = order[middle : middle + _ROWS_OF_ONE_FORWARD].tolist()
    spans = [slice(int(features.offsets[row]), int(features.offsets[row + 1])) for row in rows]
    ids, types = [features.input_ids[span] for span in spans], [features.token_type_ids[span] for span in spans]
    return Features.of_rows(ids, types, labels=None, example_of_row=np.arange(len(rows)))

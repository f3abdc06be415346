"""Export a model, or a smaller one of some of its blocks, as a Hugging Face directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pldcli.choices import BlockChoice
from pldcli.errors import CheckpointError, OutputError
from pldcli.evaluation.depth import Gates, choose_depths
from pldcli.huggingface.read_back import ReadBack, read_back
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert
from pldcli.pretrained import Pretrained
from pldcli.runs.model_source import open_model, remembered_task
from pldcli.runs.run_directory import RunDirectory
from pldcli.system import atomic
from pldcli.system.output_place import check_new, check_output
from pldcli.tasks.kinds import head_of
from pldcli.tasks.task import Task

__all__ = ["Exported", "export"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model."""

    source: str
    """Directory that the weights came from."""
    path: Path
    gates: Gates
    """Which blocks of the source it has."""
    reason: str
    """Why these blocks, in words; empty for all."""
    left_out: tuple[str, ...]
    """Parts of the source that are not exported."""
    read_back: ReadBack
    notes: tuple[str, ...] = ()
    """On checkpoints that were skipped."""


def export(
    target: Path,
    out: Path,
    *,
    keep_blocks: int | None = None,
    blocks: BlockChoice = "keep-prob",
    data: Path | None = None,
    allow_bin: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write a model, completely or not at all, then check that transformers reads back the same.

    Args:
        target: A run, a checkpoint, a fine-tuned model, or a Hugging Face directory.
        out: The directory to make.
        keep_blocks: Number of blocks to keep; None for all.
        blocks: Which ones to keep.
        data: Prepared data that holds a checkpoint's tokenizer.
        allow_bin: Read a pickle of weights where there is no safetensors file.
        overwrite: Replace a model that is there.

    Raises:
        CheckpointError: There is no model, or it has neither a masked-LM head nor that of a task.
        UsageError: The model does not have so many blocks, or is one that transformers cannot express.
        OutputError: `out` is there, or cannot be written.
    """
    check_new(out, overwrite=overwrite)
    check_output(out, "a model directory", mark="config.json")
    loaded = open_model(target, data=data, allow_bin=allow_bin)
    run = RunDirectory(out.parent)
    if out.exists() and (out.resolve() == Path(loaded.where).resolve() or (run.model == out and run.config.is_file())):
        raise OutputError("is the model of a run, or the one that is read", where=str(out), hint="choose another place with --out")
    gates, reason = (True,) * loaded.settings.num_hidden_layers, ""
    if keep_blocks is not None:
        choice = choose_depths(target, (keep_blocks,), blocks, loaded.settings, where="--keep-blocks")
        gates, reason = choice.gates[0], choice.reason
    smaller = loaded.with_blocks(gates)
    model, task = _with_its_head(smaller)
    with atomic.directory(out, overwrite=overwrite) as place:
        rows = {name: value for name, value in (loaded.task or {}).items() if name in ("max_seq_len", "stride")}
        how: dict[str, Any] = {"tokenizer": loaded.tokenizer, "seq_len": loaded.seq_len, "causal": loaded.causal, "task": task, **rows}
        save_pretrained(place, model, smaller.settings, **how)
    heads = {"nsp_head.classifier.weight": "next-sentence head", "sbo_head.place.weight": "span-boundary head"}
    left_out = tuple(head for weight, head in heads.items() if weight in loaded.weights)
    checked = read_back(out, model, loaded.tokenizer)
    return Exported(source=loaded.where, path=out, gates=gates, reason=reason, left_out=left_out, read_back=checked, notes=loaded.notes)


def _with_its_head(loaded: Pretrained) -> tuple[StBert, Task | None]:
    """Build the model with the head of its task, or with its masked-LM head.

    Raises:
        CheckpointError: There is neither.
    """
    if (task := remembered_task(loaded)) is not None:
        return loaded.with_head(head_of(task), trained=True).eval(), task
    if any(name.startswith("task_head.") for name in loaded.weights):
        what = "has the head of a task that `pld finetune` did not write down"
        raise CheckpointError(what, where=loaded.where, hint="give the pre-trained model, or fine-tune it with `pld finetune` first")
    return loaded.masked_lm().eval(), None

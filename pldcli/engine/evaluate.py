"""Evaluation assembled: find the model, check that the data speaks its language, score it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pldcli.data.shards import PreparedData, open_prepared
from pldcli.engine import checkpoint
from pldcli.engine.evaluation import MaskedLmScore, fixed_batches, score_masked_lm
from pldcli.engine.precision import resolve_precision
from pldcli.engine.run_directory import RunDirectory, read_starts
from pldcli.engine.runtime import launch
from pldcli.errors import CheckpointError, DataError, UsageError
from pldcli.huggingface import PretrainedModel, load_pretrained
from pldcli.model import StBert

__all__ = ["Evaluated", "evaluate", "latest_run", "recorded_data"]


@dataclass(frozen=True)
class Evaluated:
    """A score and what was scored."""

    source: Path
    """The directory that the weights came from."""
    data: Path
    """The prepared directory."""
    precision: str
    seq_len: int
    score: MaskedLmScore


def evaluate(
    target: Path,
    *,
    data: Path | None = None,
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "fp32",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Evaluated:
    """Score a model on the validation split at full depth, on fixed masks.

    Args:
        target: A run, a checkpoint, or a Hugging Face directory.
        data: A prepared directory; by default the one that the run was trained on, and `data` where none is recorded.
        precision: Number format; only fp32 gives the same number everywhere.
        device: Where to run.

    Raises:
        CheckpointError: The model cannot be read.
        DataError: The data is damaged, or was prepared with another tokenizer.
    """
    source = _weights_of(target)
    prepared = open_prepared(data or recorded_data(target))
    loaded = _load_checkpoint(source) if (source / "state.json").is_file() else load_pretrained(source)
    _check_vocabulary(loaded, prepared, source)
    with launch(device) as runtime:
        number_format = resolve_precision(precision, runtime.device)
        batches = fixed_batches(prepared, loaded.seq_len)
        score = score_masked_lm(loaded.model.to(runtime.device), batches, number_format, runtime)
        return Evaluated(source, prepared.path, number_format.name, loaded.seq_len, score)


def recorded_data(target: Path) -> Path:
    """Find the data that a run, or the run that a model or checkpoint lies in, was trained on; `data` where nothing says so."""
    for place in (target, *target.absolute().parents[:2]):
        starts = read_starts(RunDirectory(place).environment)
        if starts and "data" in starts[-1]:
            return Path(starts[-1]["data"])
    return Path("data")


def latest_run(directory: Path = Path("runs")) -> Path:
    """Find the run that was written to last.

    Raises:
        UsageError: There is none.
    """
    runs = [path.parent for path in directory.glob("*/config.yaml")]
    if not runs:
        raise UsageError(f"no run in {directory}", hint="name a run or a model directory")
    return max(runs, key=lambda run: max(path.stat().st_mtime for path in run.iterdir()))


def _weights_of(target: Path) -> Path:
    """Find the directory that holds the weights: a run's finished model, else its newest checkpoint."""
    if not target.is_dir():
        raise CheckpointError("no such run or model directory", where=str(target), hint="`pld runs` lists the runs here")
    run = RunDirectory(target)
    if not run.config.is_file() or (target / "state.json").is_file():
        return target
    if (run.model / "config.json").is_file():
        return run.model
    newest, _ = checkpoint.newest_valid(run.checkpoints)
    if newest is None:
        raise CheckpointError("this run has no model and no whole checkpoint yet", where=str(target), hint="train it further")
    return newest


def _load_checkpoint(path: Path) -> PretrainedModel:
    snapshot = checkpoint.read(path)
    config = snapshot.config
    model = StBert(**vars(config.model), next_sentence=config.objective.next_sentence)
    try:
        model.load_state_dict(snapshot.weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError("weights do not fit the configuration", where=str(path)) from error
    return PretrainedModel(model, config.model, config.data.seq_len, snapshot.tokenizer_fingerprint)


def _check_vocabulary(loaded: PretrainedModel, prepared: PreparedData, source: Path) -> None:
    if loaded.vocabulary_fingerprint != prepared.fingerprint or loaded.settings.vocab_size < prepared.vocab_size:
        raise DataError(
            f"was prepared with another tokenizer than that of {source}",
            where=str(prepared.path),
            hint="prepare it again with `pld prepare-data --tokenizer` and the model's tokenizer",
        )

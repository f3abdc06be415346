"""Evaluation assembled: find the model, check that the data speaks its language, score it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pldcli.data.shards import PreparedData, open_prepared
from pldcli.engine.evaluation import MaskedLmScore, fixed_batches, score_masked_lm
from pldcli.engine.model_source import open_model, recorded_data
from pldcli.engine.precision import resolve_precision
from pldcli.engine.runtime import launch
from pldcli.errors import DataError
from pldcli.pretrained import Pretrained

__all__ = ["Evaluated", "evaluate"]


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
    prepared = open_prepared(data or recorded_data(target))
    loaded = open_model(target, data=prepared.path)
    _check_vocabulary(loaded, prepared)
    with launch(device) as runtime:
        number_format = resolve_precision(precision, runtime.device)
        batches = fixed_batches(prepared, loaded.seq_len)
        score = score_masked_lm(loaded.masked_lm().to(runtime.device), batches, number_format, runtime)
        return Evaluated(Path(loaded.where), prepared.path, number_format.name, loaded.seq_len, score)


def _check_vocabulary(loaded: Pretrained, prepared: PreparedData) -> None:
    if loaded.tokenizer.fingerprint != prepared.fingerprint or loaded.settings.vocab_size < prepared.vocab_size:
        raise DataError(
            f"was prepared with another tokenizer than that of {loaded.where}",
            where=str(prepared.path),
            hint="prepare it again with `pld prepare-data --tokenizer` and the model's tokenizer",
        )

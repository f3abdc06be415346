"""A language model, ready to be measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from pldcli.choices import Device, PrecisionChoice
from pldcli.data.loader import Batch
from pldcli.engine.objectives import encode, masked_logits
from pldcli.engine.precision import Precision, resolve_precision
from pldcli.engine.runtime import Runtime, launch
from pldcli.model import StBert
from pldcli.pretrained import Pretrained
from pldcli.runs.model_source import open_model

__all__ = ["Opening", "Subject", "open_subject"]


class Opening(TypedDict, total=False):
    """How a model is found and run; every entry may be left out."""

    data: Path | None
    """Prepared data that holds a checkpoint's tokenizer; by default what its run was trained on."""
    precision: PrecisionChoice
    """Number format, fp32 by default; only fp32 gives the same number everywhere."""
    device: Device
    """Where to run."""
    allow_bin: bool
    """Read a pickle of weights where there is no safetensors file."""


@dataclass(frozen=True)
class Subject:
    """A model with its language-model head on its device, in evaluation mode."""

    loaded: Pretrained
    model: StBert
    precision: Precision
    runtime: Runtime

    @torch.no_grad()
    def logits(self, batch: Batch, gates: Sequence[bool] | None = None) -> Tensor:
        """Score the vocabulary at the targets of a batch, [M, V], in float32.

        Args:
            batch: On the host.
            gates: Which blocks run; None for all.
        """
        on_device = batch.to(self.runtime.device)
        with self.precision.autocast():
            return masked_logits(self.model, encode(self.model, on_device, gates), on_device).float()


@contextmanager
def open_subject(target: Path, **opening: Unpack[Opening]) -> Iterator[Subject]:
    """Read a run, a checkpoint or a Hugging Face directory, and put the model on its device.

    Raises:
        CheckpointError: There is none, it is damaged, or it has no masked-LM head.
        DeviceError: There is no such device.
    """
    loaded = open_model(target, data=opening.get("data"), allow_bin=opening.get("allow_bin", False))
    model = loaded.masked_lm().eval()
    with launch(opening.get("device", "auto")) as runtime:
        precision = resolve_precision(opening.get("precision", "fp32"), runtime.device)
        yield Subject(loaded, model.to(runtime.device), precision, runtime)

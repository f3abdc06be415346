"""Number formats: `auto`, autocast and loss scaling."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pldcli.choices import PrecisionChoice, PrecisionName
from pldcli.system.machine import processor_fields, processor_flags

__all__ = ["Precision", "bf16_is_fast", "resolve_precision"]

_SCALE_GROWTH_STEPS = 2000


@dataclass(frozen=True)
class Precision:
    """Autocast in one format on one device; weights and optimizer state stay float32."""

    name: PrecisionName
    device: torch.device

    def autocast(self) -> torch.autocast:
        """Make the context of a forward pass in this format."""
        dtype = torch.float16 if self.name == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.name != "fp32")

    @property
    def matrix_dtype(self) -> torch.dtype | None:
        """In which Muon multiplies matrices: bf16 where the run is in it and the device fast at it, else None for that of the weights."""
        return torch.bfloat16 if self.name == "bf16" and bf16_is_fast(self.device) else None

    def scaler(self) -> torch.amp.GradScaler:
        """Build the loss scaler; outside fp16 it is disabled."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16", growth_interval=_SCALE_GROWTH_STEPS)


def resolve_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """Turn `auto` into the fastest format on the device: bf16, else fp16 on CUDA and fp32 on CPU."""
    if choice != "auto":
        return Precision(choice, device)
    if bf16_is_fast(device):
        return Precision("bf16", device)
    return Precision("fp16" if device.type == "cuda" else "fp32", device)


def bf16_is_fast(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 matrices faster than float32.

    On a CPU that takes AMX, or AVX-512's bf16 instructions as AMD makes them: Intel's without AMX are slower than float32
    (benchmarks/results/precision-cpu.md).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    amd = processor_fields().get("vendor_id") == "AuthenticAMD"
    return bool(torch.cpu._is_amx_tile_supported()) or (amd and "avx512_bf16" in processor_flags())

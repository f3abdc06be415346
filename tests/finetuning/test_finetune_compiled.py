"""Fine-tuning with compiled blocks, whose rows have other lengths in every batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace graphs, forward and backward, and run them as they are: kernels take minutes to build."""
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile_(self, **options, backend="aot_eager"))
    torch.compiler.reset()


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch looks at it while tracing
def test_compiled_blocks_learn_the_same_and_few_lengths_compile_anything(
    either: Path, learn: Callable[..., Any], river_experiment: Callable[..., Any], tmp_path: Path
) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    losses = {}
    for switch in ("off", "on"):
        done = learn(river_experiment(model=str(either)), tmp_path / switch, "epochs=3", f"compile={switch}")
        losses[switch] = [row["train/loss"] for row in done.cells[done.best]["history"]]
        assert bool(counters["stats"]["unique_graphs"]) == (switch == "on")
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-4)
    assert counters["stats"]["unique_graphs"] <= 10, "rows have 5 to 14 tokens, with padding and without"
    assert not counters["graph_break"]

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "step_time.py"


def test_step_time_measures_both_and_writes_the_table(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("step_time", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    words = ["--data", prepared, "--size", "tiny", "--steps", "10", "--batch", "2", "--threads", torch.get_num_threads()]
    out = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["benchmarks/step_time.py", *map(str, words), "--out", str(out)])
    script.main()
    table = out.read_text(encoding="utf-8")
    assert table.strip() in capsys.readouterr().out
    assert "python benchmarks/step_time.py --data" in table
    assert "(mean of 10 fixed-depth draws)" in table
    kept = float(re.search(r"blocks kept \| ([\d.]+) of 8", table)[1])
    assert 5.0 <= kept <= 6.0
    assert 0.2 < float(re.search(r"predicted \| ([\d.]+)", table)[1]) < 0.3
    ratio = float(re.search(r"mean \| ([\d.]+)", table)[1])
    dense, dropped = (float(re.search(rf"{name}, seconds per step \| mean ([\d.]+)", table)[1]) for name in ("dense", "dropped"))
    assert 0.0 < ratio == pytest.approx(dropped / dense, rel=0.2)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome

LINE = ("bench", "--preset", "bert-tiny-pld", "model.hidden_size=16", "model.num_hidden_layers=3", "model.intermediate_size=32")
LINE += ("model.vocab_size=60", "data.seq_len=32", "train.global_batch_size=8", "train.micro_batch_size=4")


def test_the_table(pld: Callable[..., Outcome], tmp_path: Path) -> None:
    done: Outcome = pld(*LINE, "--steps", "5", "--plot", tmp_path / "phases.png")
    assert done.code == 0
    for part in (
        "tokens per second",
        "  backward",
        "peak memory",
        "5 steps of each mode, 4 x 32 tokens, micro-batch 4",
        "Over a whole run",
    ):
        assert part in done.out
    assert "part 5 of 5, dropped" in done.err
    assert max(map(len, done.out.splitlines()[3:])) <= 80
    assert (tmp_path / "phases.png").read_bytes().startswith(b"\x89PNG") and f"plot {tmp_path / 'phases.png'}" in done.out


def test_json(pld: Callable[..., Outcome]) -> None:
    done: Outcome = pld(*LINE, "pld.theta_bar=1", "--steps", "5", "--json")
    assert done.code == 0
    read = json.loads(done.out)
    assert list(read["modes"]) == ["dense"] and read["preset"] == "bert-tiny-pld" and read["micro_batch_size"] == 4


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--steps", "4"), 2, "--steps: must be at least 5, not 4"),
        (("--plot", "a.gif"), 2, "a.gif: a picture's name must end in .png or .svg"),
        (("--data", "nowhere"), 3, "nowhere: no such directory of prepared data"),
        (("train.micro_batch_size=3",), 2, "train.micro_batch_size: 3 does not divide"),
    ],
)
def test_refusals(pld: Callable[..., Outcome], words: tuple[str, ...], code: int, message: str) -> None:
    done: Outcome = pld(*LINE, *words)
    assert done.code == code
    assert message in done.err

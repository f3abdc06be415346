from pathlib import Path

import pytest

from pldcli import export as engine
from pldcli.export import Exported
from pldcli.huggingface.read_back import ReadBack


@pytest.fixture
def calls(monkeypatch):
    found = []

    def record(*args, **kwargs):
        found.append((args, kwargs))
        reason = "the first blocks" if kwargs["keep_blocks"] else ""
        return Exported(
            source="runs/r/model", path=args[1], gates=(True, True, False, True), reason=reason, left_out=("next-sentence head",),
            read_back=ReadBack(1e-6),
        )  # fmt: skip

    monkeypatch.setattr(engine, "export", record)
    return found


def test_the_arguments_that_reach_the_engine(pld, calls):
    pld("export", "r", "--out", "o")
    outcome = pld("export", "r", "--out", "o", "--keep-blocks", "3", "--blocks", "first", "--data", "d", "--allow-bin", "--overwrite")
    plain = {"keep_blocks": None, "blocks": "keep-prob", "data": None, "allow_bin": False, "overwrite": False}
    changed = {"keep_blocks": 3, "blocks": "first", "data": Path("d"), "allow_bin": True, "overwrite": True}
    assert calls == [((Path("r"), Path("o")), plain), ((Path("r"), Path("o")), changed)]
    assert outcome.out.splitlines() == [
        "3 of 4 blocks of runs/r/model written to o",
        "kept: 1-2 4, the first blocks",
        "left out: next-sentence head",
        "read back with transformers, outputs differ by at most 1e-06",
    ]


def test_a_check_that_failed_is_a_warning(pld, monkeypatch):
    failure = "transformers cannot read it back: RuntimeError: no"
    checked = ReadBack(failure=failure)
    failed = Exported(source="runs/r/model", path=Path("o"), gates=(True, True), reason="", left_out=(), read_back=checked)
    monkeypatch.setattr(engine, "export", lambda *_, **__: failed)
    outcome = pld("export", "r", "--out", "o")
    assert (outcome.code, outcome.err) == (0, "warning: o: transformers cannot read it back: RuntimeError: no\n")


def test_mistakes(pld, calls):
    outcome = pld("export", "r", "--out", "o", "--blocks", "even")
    assert (outcome.code, outcome.err) == (2, "error: --blocks does nothing without --keep-blocks; leave it out\n")
    for line in (["r"], ["--out", "o"], ["r", "--out", "o", "--keep-blocks", "many"], ["r", "--out", "o", "--blocks", "odd"]):
        assert pld("export", *line).code == 2
    assert not calls

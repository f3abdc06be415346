from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome


@pytest.fixture
def data(tmp_path: Path, pld: Callable[..., Outcome]) -> Path:
    (tmp_path / "a.txt").write_text("\n\n".join(f"one two three {number}" for number in range(60)))
    assert pld("prepare-data", tmp_path / "a.txt", "--out", tmp_path / "data", "--vocab-size", 60).code == 0
    return tmp_path / "data"


def test_sound_data(data: Path, pld: Callable[..., Outcome]) -> None:
    outcome = pld("data", "verify", data)
    assert (outcome.code, outcome.out.startswith(f"{data}: sound (2 shards, ")) == (0, True)


@pytest.mark.parametrize("name", ["train-00000.arrow", "validation-00000.arrow", "tokenizer.json", "sentencepiece.model", "manifest.json"])
def test_the_damaged_file_is_named(data: Path, pld: Callable[..., Outcome], name: str) -> None:
    content = bytearray((data / name).read_bytes())
    content[len(content) // 2] ^= 1
    (data / name).write_bytes(content)
    outcome = pld("data", "verify", data)
    assert outcome.code == 3 and outcome.err.splitlines()[-1].startswith(f"error: {data / name}: ")


def test_data_that_is_not_there(tmp_path: Path, pld: Callable[..., Outcome]) -> None:
    assert pld("data", "verify", tmp_path / "none").code == 3


def test_a_damaged_manifest_is_a_users_error(data: Path, pld: Callable[..., Outcome]) -> None:
    (data / "manifest.json").write_text('{"version": 1}')
    for command in (("pretrain", "--preset", "bert-tiny-pld"), ("bench", "--preset", "bert-tiny-pld")):
        outcome = pld(*command, "--data", data)
        assert outcome.code == 3 and "do not have its checksum" in outcome.err

import json
import re
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


def test_what_is_in_prepared_data(data: Path, pld: Callable[..., Outcome], tmp_path: Path) -> None:
    done = pld("data", "inspect", data, "data.seq_len=16", "--plot", tmp_path / "data.png")
    assert done.code == 0, done.err
    assert "part " in done.out and "\ntrain " in done.out and "\nvalidation " in done.out
    assert f"{data}, from 1 file(s)" in done.out and "left out: nothing" in done.out
    assert "frequent pieces" in done.out and "of 60 entries the training text never has" in done.out
    counts = [int(count) for count in re.findall(r"sequence \d \(16 tokens, (\d+) to predict\)", done.out)]
    assert len(counts) == 2 and min(counts) > 0 and done.out.count("→") == sum(counts)
    assert (tmp_path / "data.png").read_bytes().startswith(b"\x89PNG")


def test_a_causal_model_predicts_every_next_token(data: Path, pld: Callable[..., Outcome]) -> None:
    done = pld("data", "inspect", data, "--preset", "gpt-small-preln", "data.seq_len=16")
    counts = [int(count) for count in re.findall(r"sequence \d \(16 tokens, (\d+) to predict\)", done.out)]
    assert len(counts) == 2 and min(counts) > 12 and "→" not in done.out


def test_lines_that_most_documents_share(tmp_path: Path, pld: Callable[..., Outcome]) -> None:
    foot = "Sign up for our newsletter, and never miss a thing."
    (tmp_path / "a.txt").write_text("\n\n".join(f"History.\none two three {number}\n{foot}" for number in range(60)))
    prepared = pld("prepare-data", tmp_path / "a.txt", "--out", tmp_path / "data", "--vocab-size", 120)
    # The heading is no news.
    assert f"Note: The line '{foot}' stands in 60 of 60 documents: `pld data inspect` lists such lines." in prepared.out
    shown = pld("data", "inspect", tmp_path / "data", "--samples", 0).out
    assert re.search(rf"lines that stand in many documents\nline +documents +of all\nHistory\. +60 +100\.0%\n{foot} +60 +100\.0%\n", shown)


def test_the_same_in_json(data: Path, pld: Callable[..., Outcome]) -> None:
    done = pld("data", "inspect", data, "data.seq_len=16", "data.packing=documents", "--json", "--samples", "1", "--pieces", "3")
    found = json.loads(done.out)
    train, validation = found["splits"]["train"], found["splits"]["validation"]
    assert train["documents"] + validation["documents"] == 60
    assert train["lengths"] == sorted(train["lengths"]) and train["lengths"][0] >= 4
    assert [one["count"] for one in found["frequent"]] == sorted((one["count"] for one in found["frequent"]), reverse=True)
    [sample] = found["samples"]
    assert sample[0]["shown"] == "[CLS]" and {piece["segment"] for piece in sample if piece["shown"] != "[PAD]"} >= {1, 2}
    assert any(piece["target"] for piece in sample)
    assert pld("data", "inspect", data, "--json", "--samples", "0", "data.seq_len=16").code == 0


def test_targets_are_what_was_masked(data: Path, pld: Callable[..., Outcome]) -> None:
    """With its targets put back, a sequence is the text again, whatever was shown in their places."""
    lines = ("data", "inspect", data, "data.seq_len=16", "--json", "--samples", "4")
    masked = json.loads(pld(*lines, "objective.mask_probability=0.5").out)["samples"]
    other = json.loads(pld(*lines, "objective.mask_probability=0.2").out)["samples"]
    assert [[piece["target"] or piece["shown"] for piece in sample] for sample in masked] == [
        [piece["target"] or piece["shown"] for piece in sample] for sample in other
    ]
    numbers = [sum(bool(piece["target"]) for sample in samples for piece in sample) for samples in (masked, other)]
    assert 2 * numbers[1] < numbers[0] <= 4 * 8


def test_samples_are_as_long_as_the_first_of_the_run(data: Path, pld: Callable[..., Outcome]) -> None:
    line = ("data", "inspect", data, "--json", "--samples", "1", "train.total_steps=20", "data.seq_len=32", "model.local_attention=32")
    for more, length in (((), 32), (("data.length_stages=[{until: 0.5, seq_len: 16}]", "model.local_attention=16"), 16)):
        [sample] = json.loads(pld(*line, *more).out)["samples"]
        assert len(sample) == length


def test_causal_sequences_have_no_masks(data: Path, pld: Callable[..., Outcome]) -> None:
    done = pld("data", "inspect", data, "data.seq_len=16", "--preset", "gpt-small-preln", "--json", "--samples", "1")
    assert done.code == 0, done.err
    assert not any(piece["target"] for piece in json.loads(done.out)["samples"][0])


@pytest.mark.parametrize(("words", "code"), [(("nowhere",), 3), (("--plot", "a.gif"), 2), (("--preset", "nothing"), 2)])
def test_what_inspect_refuses(data: Path, pld: Callable[..., Outcome], words: tuple[str, ...], code: int) -> None:
    assert pld("data", "inspect", *([data] if words[0].startswith("--") else []), *words).code == code

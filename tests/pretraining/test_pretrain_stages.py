"""Runs whose sequences grow longer and whose batch grows, from the command line."""

import json
import re

import pytest

from pldcli.evaluation.subject import open_subject
from pldcli.runs.checkpoint import list_checkpoints
from pldcli.runs.model_source import open_model
from tests.pretraining.test_pretrain import arguments, rows, run_stopped_once, stop_in_step, weights

STAGES = (
    "data.length_stages=[{until: 0.5, seq_len: 8}, {until: 0.75, seq_len: 16}]", "train.batch_ramp=0.25", "train.initial_batch_size=4",
)  # fmt: skip
"""Steps 1 to 3: 16 sequences of 8 tokens; 4 to 6: 32 of 8; 7 to 9: 16 of 16; 10 to 12: 8 of 32."""
TOKENS = {2: 256, 4: 640, 6: 1152, 8: 1664, 10: 2176, 12: 2688}
SEQUENCES = {2: 32, 4: 80, 6: 144, 8: 176, 10: 200, 12: 216}


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """A run that was never stopped."""
    from pldcli import cli

    out = tmp_path_factory.mktemp("runs") / "whole"
    assert cli.run(arguments(prepared, out, *STAGES)) == 0
    return out


def timeless(run):
    """Leave out clocks, and what a row says of the rows since the last one or the start."""
    other = ("seconds", "speed", "efficiency")
    return [{name: value for name, value in row.items() if not any(word in name for word in other)} for row in rows(run, "step")]


def test_tokens_and_sequences_are_those_of_the_steps(whole):
    training = rows(whole)
    assert {row["step"]: row["progress/tokens"] for row in training} == TOKENS
    assert {row["step"]: row["progress/sequences"] for row in training} == SEQUENCES
    assert {row["data/packing_efficiency"] for row in training} == {1.0}
    seconds = [0.0, *(row["progress/train_seconds"] for row in training)]
    tokens = [0, *TOKENS.values()]
    for number, row in enumerate(training):
        expected = (tokens[number + 1] - tokens[number]) / (seconds[number + 1] - seconds[number])
        assert row["speed/tokens_per_second"] == pytest.approx(expected)


def test_the_model_remembers_the_length_at_the_end(whole):
    assert json.loads((whole / "model" / "config.json").read_text())["pld_seq_len"] == 32
    with open_subject(whole) as subject:
        assert subject.loaded.seq_len == 32
    card = (whole / "README.md").read_text()
    assert "2,688 tokens in 216 sequences of 8, 16, 32, 12 steps" in card
    assert "| one step | 16 to 32 x 8, then 16 x 16 (from step 6 on), then 8 x 32 (from step 9 on) tokens |" in card
    [start] = json.loads((whole / "environment.json").read_text())["starts"]
    assert start["attended_tokens"] == {"8": 8.0, "16": 16.0, "32": 32.0}


@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_run_stopped_inside_a_ramp_or_a_stage_resumes_to_the_same_bits(pld, prepared, tmp_path, monkeypatch, whole, step):
    run_stopped_once(pld, monkeypatch, arguments(prepared, tmp_path / "run", *STAGES), step)
    assert weights(tmp_path / "run") == weights(whole)
    assert timeless(tmp_path / "run") == timeless(whole)


def test_packed_documents_of_every_length_resume_too(pld, prepared, tmp_path, monkeypatch):
    line = [*STAGES, "data.packing=documents"]
    assert pld(*arguments(prepared, tmp_path / "whole", *line)).code == 0
    run_stopped_once(pld, monkeypatch, arguments(prepared, tmp_path / "run", *line), 7)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")
    training = rows(tmp_path / "run")
    assert all(0.5 < row["data/packing_efficiency"] <= 1 for row in training)
    assert [row["progress/sequences"] for row in training] == list(SEQUENCES.values())


def test_a_run_on_weighted_text_resumes_to_the_same_bits(pld, prepared, tmp_path, monkeypatch):
    lines = (prepared.parent / "corpus.txt").read_text(encoding="utf-8").splitlines()
    for name, part in (("a", lines[::2]), ("b", lines[1::4]), ("c", lines[3::4])):
        (tmp_path / f"{name}.txt").write_text("\n".join(part), encoding="utf-8")
    mixture = ["--source", f"{tmp_path / 'b.txt'}=1.5", "--source", f"{tmp_path / 'c.txt'}=0.25", "--document-per", "line"]
    data = tmp_path / "data"
    assert pld("prepare-data", tmp_path / "a.txt", *mixture, "--tokenizer", prepared, "--out", data, "--processes", 1).code == 0
    assert pld(*arguments(data, tmp_path / "whole")).code == 0
    run_stopped_once(pld, monkeypatch, arguments(data, tmp_path / "run"), 7)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")


def test_a_checkpoint_rotates_positions_as_its_stage_did(pld, prepared, tmp_path, monkeypatch):
    stages = "data.length_stages=[{until: 0.5, seq_len: 8, global_rope_theta: 100}, {until: 0.75, seq_len: 16, global_rope_theta: 900}]"
    rotary = (
        *("model.position_embedding=rotary", "model.type_vocab_size=0", "model.feed_forward=geglu", "model.first_attention_norm=false"),
        *("model.attention_init=normal", "model.global_rope_theta=40000"),
    )
    stop_in_step(monkeypatch, 7)
    assert pld(*arguments(prepared, tmp_path / "run", *rotary, stages)).code == 75
    opened = {path.name: open_model(path, data=prepared) for path in list_checkpoints(tmp_path / "run" / "checkpoints")}
    assert {name: model.settings.global_rope_theta for name, model in opened.items()} == {"step-00000005": 100, "step-00000007": 900}


def test_a_dry_run_counts_every_length(pld, prepared, tmp_path):
    outcome = pld(*arguments(prepared, tmp_path / "run", *STAGES, "--dry-run"))
    assert outcome.code == 0, outcome.err
    assert "2,688 in 216 sequences (0.0% padding)" in outcome.out
    assert "16 to 32 x 8, then 16 x 16 (from step 6 on), then 8 x 32 (from step 9 on) tokens" in outcome.out
    tokens = json.loads((prepared / "manifest.json").read_text())["counts"]["train"]["tokens"]
    epochs = 144 / (tokens // 6) + 48 / (tokens // 14) + 24 / (tokens // 30)
    assert float(re.search(r"epochs +([\d.]+)", outcome.out)[1]) == pytest.approx(epochs, abs=0.006)


def test_a_bench_measures_the_length_at_the_end(pld):
    outcome = pld("bench", "--preset", "bert-tiny-preln", "--steps", 5, "--json", *arguments("", "")[3:13], *STAGES)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["seq_len"] == 32 and found["sequences_per_step"] == 8

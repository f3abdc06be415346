from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pldcli import presets
from pldcli.commands.config import complete_override, complete_preset
from pldcli.config import Config, documentation, flatten

Run = Callable[..., Any]
PRESETS = Path(__file__).parents[2] / "presets"
SIZES = ("  bert-", "  modern-", "  gpt-")


def test_show_tells_value_origin_and_meaning_of_every_key(pld: Run) -> None:
    outcome = pld("config", "show", "bert-base-pld", "pld.theta_bar=0.7")
    assert (outcome.code, outcome.err) == (0, "")
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert f"pld.theta_bar 0.7 command line {documentation()['pld.theta_bar']}" in lines
    assert f"model.num_hidden_layers 12 bert-base {documentation()['model.num_hidden_layers']}" in lines
    assert f"optim.weight_decay 0.01 default {documentation()['optim.weight_decay']}" in lines
    assert not any(line.endswith("  ") for line in outcome.out.splitlines())
    for key in flatten(Config()):
        assert sum(line.startswith(f"{key} ") for line in lines) == 1


@pytest.mark.parametrize(
    ("preset", "made_of"),
    [
        ("bert-base-rand", "size bert-base + system pld + system rand"),
        ("bert-base-pld-paper", "size bert-base + system pld + bert-base-pld-paper"),
        ("own.yaml", "size bert-tiny + system preln + own.yaml"),
    ],
)
def test_show_says_what_a_preset_is_made_of(preset: str, made_of: str, pld: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("# Hardware: mine.\nextends: bert-tiny-preln\n", encoding="utf-8")
    lines = [" ".join(line.split()) for line in pld("config", "show", preset).out.splitlines()]
    assert lines[0] == f"Made of {made_of}"
    hardware = {"bert-base-rand": "one to eight GPUs.", "bert-base-pld-paper": "the paper used 64 V100.", "own.yaml": "mine."}
    assert f"Hardware {hardware[preset]}" in lines


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_show_fits_the_screen(columns: int, pld: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    outcome = pld("config", "show", "bert-base-pld-paper", "train.total_steps=7")
    assert max(len(line.rstrip()) for line in outcome.out.splitlines()) <= columns
    words = outcome.out.split()
    for key, text in documentation().items():
        assert "." not in key or key in words
        assert text.split()[-1] in words


def test_show_yaml_is_a_preset(pld: Run, tmp_path: Path) -> None:
    outcome = pld("config", "show", "bert-tiny-pld", "train.total_steps=77", "--yaml")
    path = tmp_path / "own.yaml"
    path.write_text(outcome.out, encoding="utf-8")
    assert presets.resolve(str(path)).config == presets.resolve("bert-tiny-pld", ["train.total_steps=77"]).config


def test_validate(pld: Run) -> None:
    outcome = pld("config", "validate", "bert-small-pld", "optim.learning_rate=1e-4")
    assert (outcome.code, outcome.out, outcome.err) == (0, "bert-small-pld: ok\n", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["bert-tiny-pdl"], "unknown preset 'bert-tiny-pdl'; did you mean bert-tiny-pld?"),
        (["bert-tiny-pld", "pld.teta_bar=1"], "pld.teta_bar: unknown key; did you mean pld.theta_bar?"),
        (["bert-tiny-pld", "train.total_steps=soon"], "train.total_steps: must be a valid integer, not 'soon'"),
        (["bert-tiny-pld", "pld.theta_bar=0"], "pld.theta_bar: must be greater than 0, not 0"),
        (
            ["bert-tiny-pld", "data.seq_len=4096"],
            "data.seq_len: 4096 tokens do not fit model.max_position_embeddings 512; raise the latter or shorten the sequences",
        ),
        (
            ["bert-tiny-pld", "train.global_batch_size=10", "pld.draws_per_step=4"],
            "train.global_batch_size: 10 sequences do not divide into pld.draws_per_step 4 gate groups; make it a multiple",
        ),
        (
            ["bert-tiny-pld", "train.global_batch_size=10", "train.micro_batch_size=4"],
            "train.micro_batch_size: 4 does not divide the 10 sequences of a gate group on one process; try train.micro_batch_size=2",
        ),
        (["bert-tiny-pld", "theta"], "'theta' is not KEY=VALUE; for example train.total_steps=1000"),
    ],
)
def test_validate_refuses_with_one_line(arguments: list[str], line: str, pld: Run) -> None:
    outcome = pld("config", "validate", *arguments)
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"error: {line}\n")


def test_list_names_every_preset_on_one_line_when_piped(pld: Run) -> None:
    lines = pld("config", "list").out.splitlines()
    assert lines[0].split() == ["preset", "parameters", "blocks", "run", "hardware", "purpose"]
    rows = [" ".join(line.split()) for line in lines[1:] if line.startswith("  ")]
    assert sorted(row.split()[0] for row in rows) == presets.names()
    assert "bert-base-pld 109.5 M 8.78/12 one to eight GPUs BERT-base, with the paper's batch and length" in rows
    assert "bert-base-pld-paper 110.1 M 8.78/12 the paper used 64 V100 the paper's experiment, its values throughout" in rows
    assert any(row.startswith("bert-large-preln 335.2 M 24.00/24 ") for row in rows)


def test_list_groups_by_system_the_small_ones_first(pld: Run) -> None:
    lines = pld("config", "list").out.splitlines()[1:]
    groups = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert groups[:3] == ["pld", "postln", "preln"]
    assert sorted(groups) == sorted({presets.system(name) for name in presets.names()})
    start = next(number for number, line in enumerate(lines) if line.startswith("rand  "))
    assert lines[start].split("  ")[1] == '"Rand", stochastic depth at a fixed rate: every block alike, from the first step to the last.'
    assert [line.split()[0] for line in lines[start + 1 : start + 5]] == [
        *("modern-tiny-rand", "bert-tiny-rand", "bert-small-rand", "modern-small-rand"),
    ]


def test_list_fits_a_narrow_screen(pld: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = pld("config", "list").out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert sorted(line.split()[0] for line in lines if line.startswith(SIZES)) == presets.names()
    starts = {line.rstrip().find(" M ") for line in lines if line.startswith(SIZES)}
    assert len(starts) == 1


DEEPSPEED = """{"train_batch_size": 64, "steps_per_print": 10, "optimizer": {"type": "Lamb", "params": {"lr": 0.002}},
"progressive_layer_drop": {"enabled": true, "theta": 0.6, "gamma": 0.002}}"""


def test_import_prints_a_preset_and_says_what_was_left_out(pld: Run, tmp_path: Path) -> None:
    source = tmp_path / "ds.json"
    source.write_text(DEEPSPEED, encoding="utf-8")
    outcome = pld("config", "import", source, "--base", "bert-tiny-pld")
    assert outcome.code == 0
    assert outcome.err == "note: not imported: steps_per_print, DeepSpeed's bounds of LAMB's trust ratio\n"
    (tmp_path / "printed.yaml").write_text(outcome.out, encoding="utf-8")
    config = presets.resolve(str(tmp_path / "printed.yaml")).config
    assert (config.pld.theta_bar, config.pld.gamma, config.optim.name, config.model.num_hidden_layers) == (0.6, 0.002, "lamb", 8)


def test_import_writes_a_preset_but_over_nothing(pld: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "ds.json", tmp_path / "new" / "my.yaml"
    source.write_text(DEEPSPEED, encoding="utf-8")
    outcome = pld("config", "import", source, "--out", out)
    assert (outcome.code, outcome.out) == (0, f"preset written to {out}; `pld config show {out}` explains it\n")
    assert presets.resolve(str(out)).config.model.num_hidden_layers == 12
    out.write_text("train:\n  seed: 1\n", encoding="utf-8")
    outcome = pld("config", "import", source, "--out", out)
    assert (outcome.code, outcome.err) == (7, f"error: {out}: is already there; add --overwrite, or choose another place with --out\n")
    assert presets.resolve(str(out)).config.train.seed == 1
    assert pld("config", "import", source, "--out", out, "--overwrite").code == 0
    assert presets.resolve(str(out)).config.pld.theta_bar == 0.6


def test_import_refuses_with_one_line(pld: Run, tmp_path: Path) -> None:
    source = tmp_path / "ds.json"
    source.write_text(DEEPSPEED.replace("0.6", "1.6"), encoding="utf-8")
    line = f"error: {source}: progressive_layer_drop.theta: must be at most 1, not 1.6\n"
    outcome = pld("config", "import", source, "--out", tmp_path / "my.yaml")
    assert (outcome.code, outcome.out, outcome.err) == (2, "", line)
    outcome = pld("config", "import", source, "--out", tmp_path / "my.txt")
    assert (outcome.code, outcome.err) == (2, f"error: --out {tmp_path / 'my.txt'}: must end in .yaml, as presets do\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ds.json"]


def test_completion() -> None:
    assert [name for name, _ in complete_preset("bert-base-pld")] == ["bert-base-pld", "bert-base-pld-paper"]
    assert complete_preset("bert-base-pld")[0][1] == "PLD, Pre-LN with the paper's schedule and learning rate."
    assert complete_override("pld.th") == ["pld.theta_bar="]


def test_schema_is_what_lies_beside_the_presets(pld: Run) -> None:
    outcome = pld("config", "schema")
    assert (outcome.code, outcome.err) == (0, "")
    stored = json.loads((PRESETS / "schema.json").read_text(encoding="utf-8"))
    assert json.loads(outcome.out) == stored, "run: pld config schema > presets/schema.json"


def test_schema_knows_every_key_with_its_meaning_and_limits(pld: Run) -> None:
    schema = json.loads(pld("config", "schema").out)
    sections = {name: schema["$defs"][one["$ref"].rpartition("/")[2]] for name, one in schema["properties"].items() if "$ref" in one}
    described = {f"{name}.{key}": one["description"] for name, section in sections.items() for key, one in section["properties"].items()}
    assert described == {key: text for key, text in documentation().items() if "." in key}
    assert all(section["additionalProperties"] is False for section in [schema, *sections.values()])
    theta_bar, norm = sections["pld"]["properties"]["theta_bar"], sections["model"]["properties"]["norm"]
    assert (theta_bar["exclusiveMinimum"], theta_bar["maximum"], norm["enum"]) == (0, 1, ["pre", "post"])
    assert {"extends", "sizes"} < set(schema["properties"])


@pytest.mark.parametrize(("what", "key"), [("finetune", "learning_rate"), ("study", "systems")])
def test_schema_of_fine_tuning_and_of_studies(what: str, key: str, pld: Run) -> None:
    schema = json.loads(pld("config", "schema", what).out)
    assert schema["properties"][key]["description"] and schema["additionalProperties"] is False


@pytest.mark.parametrize("path", sorted(PRESETS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_begins_with_the_line_that_names_the_schema(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    start, _, name = first.partition("$schema=")
    assert start == "# yaml-language-server: " and (path.parent / name).resolve() == PRESETS / "schema.json"

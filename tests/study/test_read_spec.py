from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pldcli.errors import UsageError
from pldcli.presets import resolve
from pldcli.study.plan import shapes
from pldcli.study.read_spec import read_spec
from pldcli.study.spec import Check, Finetuning, Rung, Spec
from tests.study.conftest import FROM_DATA, SMALL, plan_of

STUDIES = sorted((Path(__file__).parents[2] / "benchmarks" / "studies").glob("*.yaml"))
PRELN, PLD = {"preset": "bert-tiny-preln"}, {"preset": "bert-tiny-pld"}


def test_a_small_study(spec_of: Callable[..., Spec]) -> None:
    spec = spec_of(seeds=[3, 1], checks=[{"better": "preln", "than": "pld", "by_seed_deviations": 3}])
    assert (spec.name, spec.data, spec.seeds, spec.baseline) == ("try", "data", (3, 1), "preln")
    pld = spec.systems["pld"]
    assert (pld.preset, pld.seeds, pld.baseline, pld.overrides) == ("bert-tiny-pld", (3, 1), "preln", tuple(SMALL))
    assert spec.checks == (Check(better="preln", than="pld", by_seed_deviations=3.0),)
    assert (spec.halving, spec.candidates) == (None, ())


def test_changes_of_the_study_come_before_those_of_a_system(spec_of: Callable[..., Spec]) -> None:
    spec = spec_of({"a": PRELN | {"set": {"optim.learning_rate": "2e-3", "model.dropout": 0.1}, "seeds": [7]}}, set=["model.dropout=0"])
    assert spec.systems["a"].overrides == ("model.dropout=0", "optim.learning_rate=2e-3", "model.dropout=0.1")
    assert spec.systems["a"].seeds == (7,) and spec.seeds == (0,)


def test_a_grid_is_every_combination_named_as_it_is_written(spec_of: Callable[..., Spec]) -> None:
    spec = spec_of({"preln": PRELN, "lr": PLD | {"grid": {"optim.learning_rate": ["1e-3", 0.002], "pld.theta_bar": [0.5, 0.9]}}})
    assert list(spec.systems) == ["preln", "lr-1e-3-0.5", "lr-1e-3-0.9", "lr-0.002-0.5", "lr-0.002-0.9"]
    last = spec.systems["lr-0.002-0.9"]
    assert last.overrides[-2:] == ("optim.learning_rate=0.002", "pld.theta_bar=0.9")
    assert (last.grid, last.values) == ("lr", (("optim.learning_rate", 0.002), ("pld.theta_bar", 0.9)))
    assert list(spec.grids) == ["lr"] and len(spec.grids["lr"]) == 4


def test_lengths(spec_of: Callable[..., Spec]) -> None:
    spec = spec_of(
        {
            "a": PRELN,
            "b": PLD | {"steps": 5600},
            "c": PLD | {"equal_time": "a", "fraction": 0.25},
            "d": PLD | {"budget": "1h30m"},
            "e": PLD | {"fraction": 0.5, "baseline": "c"},
        }
    )
    words = {name: str(system.length) for name, system in spec.systems.items()}
    assert words == {"a": "the preset's steps", "b": "5,600 steps", "c": "0.25 of the time of a",
        "d": "5,400 s", "e": "0.5 of the preset's steps"}  # fmt: skip
    assert spec.systems["e"].baseline == "c"


def test_a_halving_takes_grids_apart(spec_of: Callable[..., Spec]) -> None:
    systems = {"preln": PRELN, "pld": PLD, "lr": PLD | {"grid": {"optim.learning_rate": ["1e-3", "2e-3"]}}}
    rungs = [{"fraction": 0.125}, {"fraction": 0.5, "keep": 2}, {"fraction": 1, "keep": 1, "seeds": [0, 1]}]
    spec = spec_of(systems, seeds=[4, 5], halving={"candidates": ["pld", "lr"], "rungs": rungs})
    assert spec.halving is not None
    assert spec.halving.candidates == spec.candidates == ("pld", "lr-1e-3", "lr-2e-3")
    assert spec.halving.rungs == (Rung(fraction=0.125, seeds=(4,)), Rung(fraction=0.5, keep=2, seeds=(4,)), Rung(keep=1, seeds=(0, 1)))
    assert [spec.halving.takes_part(number) for number in range(3)] == [3, 2, 1]


def test_fine_tuning(spec_of: Callable[..., Spec], tmp_path: Path) -> None:
    own = tmp_path / "reviews.csv"
    own.touch()
    systems = {"preln": PRELN, "lr": PLD | {"grid": {"optim.learning_rate": ["1e-3", "2e-3"]}}}
    given = {"tasks": ["glue/RTE", str(own)], "data_dir": "glue", "systems": ["lr"], "seeds": [2, 0], "set": {"epochs": 1.5}}
    found = spec_of(systems, finetune=given).finetuning
    assert found == Finetuning(
        tasks=("glue/RTE", str(own)), data_dir="glue", systems=("lr-1e-3", "lr-2e-3"), seeds=(2, 0), set=("epochs=1.5",)
    )
    assert found.settings == ("epochs=1.5", "seed=2,0")
    few = spec_of(systems, finetune={"tasks": ["glue/rte"]}).finetuning
    assert few == Finetuning(tasks=("glue/rte",), systems=("preln", "lr-1e-3", "lr-2e-3"))
    assert few.settings == ("seed=0",)
    assert spec_of(systems).finetuning is None


def test_a_setting_may_be_a_list(spec_of: Callable[..., Spec]) -> None:
    grown = {"preset": "modern-tiny-expansion", "set": {"pld.depth_stages": [{"until": 0.5, "blocks": 2}], "optim.decay_fraction": 0.5}}
    finetune = {"tasks": ["glue/rte"], "set": {"learning_rate": [0.0001, 0.0003], "epochs": 2}}
    spec = spec_of({"preln": PRELN, "grown": grown}, set=["train.total_steps=100"], finetune=finetune)
    [stage] = resolve("modern-tiny-expansion", spec.systems["grown"].overrides).config.pld.depth_stages
    assert (stage.until, stage.blocks) == (0.5, 2)
    assert spec.finetuning is not None and spec.finetuning.set == ("learning_rate=0.0001,0.0003", "epochs=2")


def with_halving(**changes: Any) -> dict[str, Any]:
    return {"halving": {"candidates": ["pld", "b"], "rungs": [{"fraction": 0.5}]} | changes}


BASE: dict[str, Any] = {"preln": PRELN, "pld": PLD, "b": PLD}


@pytest.mark.parametrize(
    ("systems", "more", "message"),
    [
        (BASE, {"sedes": [0]}, r"spec\.yaml:\d+: sedes: unknown key; did you mean seeds\?"),
        ({"a": PLD | {"equaltime": "b"}}, {}, r"systems\.a\.equaltime: unknown key; did you mean equal_time\?"),
        ({"a": {}}, {}, r"systems\.a\.preset: is missing"),
        ({"a": {"preset": "bert-tiny-pdl"}}, {}, r"systems\.a: unknown preset 'bert-tiny-pdl'; did you mean bert-tiny-pld\?"),
        ({"a": PLD | {"set": ["pld.thetabar=0.5"]}}, {}, r"systems\.a: pld\.thetabar: unknown key; did you mean pld\.theta_bar\?"),
        ({"a": PLD | {"set": {"pld": {"theta_bar": 0.5}}}}, {}, r"systems\.a\.set: pld must be one value"),
        ({"a": PLD | {"set": {"train.seed": 1}}}, {}, r"systems\.a\.set: train\.seed cannot be set here; seeds stand under `seeds`"),
        ({"a": PLD | {"grid": {"pld.theta_bar": 0.5}}}, {}, r"systems\.a\.grid\.pld\.theta_bar: must be a list, not 0\.5"),
        ({"a": PLD | {"grid": {"pld.theta_bar": [0.5, 2]}}}, {}, r"systems\.a: pld\.theta_bar: must be at most 1, not 2"),
        ({"a": PLD | {"steps": 5, "equal_time": "b"}}, {}, r"systems\.a: `steps` and `equal_time` exclude each other"),
        ({"a": PLD | {"steps": 5, "set": {"train.total_steps": 4}}}, {}, r"systems\.a: `steps` sets train\.total_steps"),
        ({"a": PLD | {"steps": 5, "grid": {"train.total_steps": [4, 6]}}}, {}, r"systems\.a: `steps` sets train\.total_steps"),
        ({"a": PLD | {"fraction": 1.5}}, {}, r"systems\.a\.fraction: must be at most 1, not 1\.5"),
        ({"a": PLD | {"budget": "soon"}}, {}, r"systems\.a\.budget: 'soon' is not a time"),
        ({"a": PLD | {"seeds": [1, 1]}}, {}, r"systems\.a\.seeds: must be different, not \[1, 1\]"),
        ({"a/b": PLD}, {}, r"'a/b' cannot be a name of files"),
        ({"a": PLD, "b": PLD | {"equal_time": "aa"}}, {}, r"systems\.b\.equal_time: no system is called aa; "),
        (BASE | {"lr": PLD | {"grid": {"pld.theta_bar": [0.5]}}}, {"baseline": "lr"},
         r"lr is a grid of 1 systems; name one of them, such as lr-0\.5"),
        ({"a": PLD | {"equal_time": "b"}, "b": PLD | {"equal_time": "a"}}, {}, r"systems\.a\.equal_time: goes in a circle: a -> b -> a"),
        ({"a-0.5": PLD, "a": PLD | {"grid": {"pld.theta_bar": [0.5]}}}, {}, r"systems\.a: a system of this name is there already: a-0\.5"),
        (BASE, {"baseline": "prelm"}, r"baseline: no system is called prelm; did you mean preln\?"),
        (BASE, {"checks": [{"better": "pld", "than": "preln"}]}, r"checks\[0\]\.by_seed_deviations: is missing"),
        (BASE, {"checks": [{"better": "pld", "than": "pld", "by_seed_deviations": 3}]}, r"checks\[0\]: pld cannot be better than itself"),
        (BASE, with_halving(candidates=["pld"]), r"halving\.candidates: must name at least two systems"),
        (BASE, with_halving(rungs=[{"fraction": 0.5}, {"fraction": 1}]), r"halving\.rungs\[1\]: has no `keep`"),
        (BASE, with_halving(rungs=[{"fraction": 0.5}, {"fraction": 1, "keep": 3}]), r"halving\.rungs\[1\]\.keep: cannot keep 3 of 2"),
        (BASE, with_halving(rungs=[{"fraction": 0.5}, {"fraction": 0.2, "keep": 1}]), r"must not be shorter than the rung before"),
        (BASE, with_halving() | {"baseline": "pld"}, r"baseline: pld is a candidate of the halving and has no run of its own"),
        (BASE, {"finetune": {"tasks": []}}, r"finetune\.tasks: must hold at least 1 item, not 0"),
        (BASE, {"finetune": {"tasks": ["glue/rtte"]}}, r"finetune\.tasks: there is no task 'glue/rtte'; did you mean 'glue/rte'\?"),
        (BASE, {"finetune": {"tasks": ["none.csv"]}}, r"finetune\.tasks: there is no file none\.csv"),
        (BASE, {"finetune": {"tasks": ["glue/rte", "GLUE/RTE"]}}, r"finetune\.tasks: two tasks would be called rte"),
        (BASE, {"finetune": {"tasks": ["squad"], "systems": ["pdl"]}}, r"finetune\.systems: no system is called pdl; did you mean pld\?"),
        (BASE, {"finetune": {"tasks": ["glue/rte"], "set": {"epoch": 3}}}, r"finetune\.set: epoch: unknown key; did you mean epochs\?"),
        (BASE, {"finetune": {"tasks": ["glue/rte"], "seeds": 3}}, r"finetune\.seeds: must be a list, not 3"),
        (BASE, {"data": 5}, r"spec\.yaml:\d+: data: must be a valid string, not 5"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(spec_of: Callable[..., Spec], systems: Any, more: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        spec_of(systems, **more)


def test_a_name_that_stands_there_twice_is_not_dropped_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("data: data\nsystems:\n  a: {preset: bert-tiny-pld}\n  a: {preset: bert-tiny-preln}\n")
    with pytest.raises(UsageError, match=r"spec\.yaml:4: systems\.a stands there twice"):
        read_spec(path)


def test_a_study_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: no such file$"):
        read_spec(tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["", "systems: [", "- a"])
def test_what_is_no_study(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"spec\.yaml: (cannot be read as YAML|must hold keys with values)"):
        read_spec(path)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the files of a study that extends others; the first is the study."""

    def build(**files: str) -> Path:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        return tmp_path / f"{next(iter(files))}.yaml"

    return build


SHARED = """\
name: nobody
data: data
seeds: [0, 1]
set:
  train.total_steps: 40
  optim.learning_rate: 2e-3
systems:
  preln: {preset: bert-tiny-preln, seeds: [5]}
"""


def test_a_study_wins_over_what_it_extends(write: Callable[..., Path]) -> None:
    own = """\
extends: between.yaml
seeds: [2]
set:
  - optim.learning_rate=4e-3
systems:
  pld: {preset: bert-tiny-pld}
"""
    path = write(own=own, between="extends: shared.yaml\nset: {model.dropout: 0.1, train.total_steps: 50}\n", shared=SHARED)
    spec = read_spec(path)
    assert (spec.name, spec.data, spec.seeds, spec.baseline) == ("own", "data", (2,), "preln")
    assert {name: system.seeds for name, system in spec.systems.items()} == {"preln": (5,), "pld": (2,)}
    for system in spec.systems.values():
        assert system.overrides == ("train.total_steps=50", "optim.learning_rate=4e-3", "model.dropout=0.1")
    whole = write(own=own.replace("systems:", "systems:\n  preln: {preset: bert-tiny-postln}"), shared=SHARED)
    entry = read_spec(whole).systems["preln"]
    assert (entry.preset, entry.seeds) == ("bert-tiny-postln", (2,)), "a system is taken as a whole"


def test_the_text_of_a_study_stands_without_what_it_extends(write: Callable[..., Path], tmp_path: Path) -> None:
    spec = read_spec(write(own="# Question: why?\nname: own\nextends: shared.yaml\nbaseline: preln\n", shared=SHARED))
    assert spec.text.startswith("# Question: why?\n") and "extends" not in spec.text
    again = read_spec(write(copy=spec.text))
    assert again == spec


@pytest.mark.parametrize(
    ("own", "shared", "message"),
    [
        ("extends: none.yaml\n", SHARED, r"own\.yaml:1: extends: there is no file .*none\.yaml"),
        ("extends: [shared.yaml]\n", SHARED, r"own\.yaml:1: extends: must be a valid string, not \['shared\.yaml'\]"),
        ("extends: own.yaml\n", SHARED, r"own\.yaml:1: extends: goes in a circle: own\.yaml -> own\.yaml"),
        ("extends: shared.yaml\n", "extends: own.yaml\n", r"shared\.yaml:1: extends: goes in a circle: own\.yaml -> shared\.yaml -> own"),
        ("extends: shared.yaml\n", "- 1\n", r"shared\.yaml: must hold keys with values"),
        ("extends: shared.yaml\nsets: 3\n", SHARED, r"own\.yaml:2: sets: unknown key; did you mean set\?"),
        ("extends: shared.yaml\n", SHARED + "sedes: [1]\n", r"shared\.yaml:9: sedes: unknown key; did you mean seeds\?"),
        ("extends: shared.yaml\n", SHARED.replace("2e-3", "fast"), r"shared\.yaml:6: set\.optim\.learning_rate: .*not 'fast'"),
        ("extends: shared.yaml\nset: {}\n", SHARED.replace("train.total_steps", "train.seed"), r"shared\.yaml:4: set: train\.seed cannot"),
        (
            "extends: shared.yaml\nset:\n  optim.learning_rate: slow\n",
            SHARED.replace("2e-3", "fast"),
            r"own\.yaml:3: set\.optim\.learning_rate: .*not 'slow'",
        ),
        ("extends: shared.yaml\nseeds: [-1]\n", SHARED, r"own\.yaml:2: seeds\[0\]: must be at least 0"),
        ("extends: shared.yaml\nsystems:\n  preln: {}\n", SHARED, r"own\.yaml:3: systems\.preln\.preset: is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_the_file_that_says_it(write: Callable[..., Path], own: str, shared: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_spec(write(own=own, shared=shared))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_can_be_planned(path: Path) -> None:
    spec = read_spec(path)
    assert spec.name == path.stem and f"benchmarks/studies/{path.name}" in spec.text
    plan = plan_of(spec)
    assert len(plan.runs()) + (len(plan.rung(0, spec.candidates)) if spec.halving else 0) >= 6


def test_the_shipped_studies_are_what_they_say() -> None:
    specs = {path.stem: read_spec(path) for path in STUDIES}
    assert set(specs) >= {"tiny", "theta-bar", "learning-rate", "amp", "halving"}
    assert len(plan_of(specs["tiny"]).runs()) == 32 and len(shapes(specs["tiny"], FROM_DATA)) == 4
    halving = specs["halving"].halving
    assert halving is not None and [halving.takes_part(number) for number in range(3)] == [12, 4, 2]
    assert [rung.fraction for rung in halving.rungs] == [0.25, 0.5, 1.0]
    assert [dict(system.values)["pld.theta_bar"] for system in specs["theta-bar"].grids["pld"]] == [0.5, 0.6, 0.7, 0.8, 0.9]

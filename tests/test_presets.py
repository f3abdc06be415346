from __future__ import annotations

import re
from pathlib import Path

import pytest

from pldcli import presets
from pldcli.config import Config, flatten
from pldcli.errors import UsageError
from pldcli.settings import fields

SYSTEMS = [
    "pld",
    "preln",
    "postln",
    "preln-low-lr",
    "shallow",
    "rand",
    "time-only",
    "depth-only",
    "lamb",
    "growing",
    "expansion",
    "fixed-depth",
    "exits",
]
SIZES = {
    "bert-tiny": (8, 128, 4, 512, 2048),
    "bert-small": (12, 256, 4, 1024, 8192),
    "bert-base": (12, 768, 12, 3072, 30528),
    "bert-large": (24, 1024, 16, 4096, 30528),
    "gpt-small": (12, 768, 12, 3072, 50304),
    "modern-tiny": (8, 128, 4, 256, 2048),
    "modern-small": (12, 384, 12, 768, 16384),
    "modern-base": (22, 768, 12, 1152, 50368),
    "modern-large": (28, 1024, 16, 2624, 50368),
}
BERT = [size for size in SIZES if size.startswith("bert")]
FOR_CPUS = ("bert-tiny", "bert-small", "modern-tiny", "modern-small")
SHIPPED = [
    "bert-base-pld-paper",
    *(f"{size}-{system}" for size in SIZES for system in SYSTEMS if size in BERT or system not in ("postln", "preln-low-lr")),
]


def refused(*overrides: str, preset: str = "bert-tiny-pld") -> str:
    with pytest.raises(UsageError) as caught:
        presets.resolve(preset, overrides)
    return str(caught.value)


def test_the_shipped_presets() -> None:
    assert sorted(SHIPPED) == presets.names()


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_is_a_size_and_a_system_before_anything_else(name: str) -> None:
    size, system = "-".join(name.split("-")[:2]), presets.system(name)
    made_of = [(part.kind, part.name) for part in presets.parts(name)]
    own = [("preset", name)] if name == "bert-base-pld-paper" else []
    assert own or name == f"{size}-{system}"
    assert made_of[0] == ("size", size)
    assert made_of[-1 - len(own) :] == [("system", system), *own]


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_survives_dump_and_load(name: str, tmp_path: Path) -> None:
    config = presets.resolve(name).config
    dumped = tmp_path / "config.yaml"
    dumped.write_text(presets.dump(config), encoding="utf-8")
    assert presets.load(dumped) == config
    assert presets.resolve(str(dumped)).config == config


def test_odd_values_survive_dump_and_load(tmp_path: Path) -> None:
    changes = [
        "runtime.compile=off",
        "optim.learning_rate=1e-4",
        "model.layer_norm_eps=1e-12",
        "pld.gamma=3e-5",
        "pld.residual=none",
    ]
    config = presets.resolve("bert-tiny-pld", changes).config
    assert (config.runtime.compile, config.optim.learning_rate, config.pld.gamma, config.pld.residual) == ("off", 1e-4, 3e-5, "none")
    dumped = tmp_path / "config.yaml"
    dumped.write_text(presets.dump(config), encoding="utf-8")
    assert presets.load(dumped) == config


def test_a_run_made_when_there_was_a_scaling_error_is_read_unless_it_had_one(tmp_path: Path) -> None:
    config = presets.resolve("bert-tiny-pld").config
    stored = tmp_path / "config.yaml"
    text = presets.dump(config)
    stored.write_text(
        text.replace("  residual: sublayer\n", "  residual: sublayer\n  scale_residual: true\n  scaling_error: false\n"), encoding="utf-8"
    )
    assert "scaling_error" in stored.read_text(encoding="utf-8")
    assert presets.load(stored) == presets.resolve(str(stored)).config == config

    stored.write_text(stored.read_text(encoding="utf-8").replace("scaling_error: false", "scaling_error: true"), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        presets.load(stored)
    number = next(i for i, line in enumerate(stored.read_text(encoding="utf-8").splitlines(), 1) if "scaling_error" in line)
    line = f"{stored}:{number}: pld.scaling_error: was removed; only its default False is still accepted, not True"
    assert str(caught.value) == refused(preset=str(stored)) == line


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_is_headed(name: str) -> None:
    header = presets.header(name)
    what = ["Purpose", "Source"] if name == "bert-base-pld-paper" else ["System", "Size", "Source", "Differs from the paper"]
    beside = header.pop("Beside preln", "")
    assert list(header) == [*what, "Hardware", "Time and score", "Command"]
    measured = re.findall(r"benchmarks/results/\S+\.md", header["Time and score"])
    reports = re.findall(r"[\w.-]+\.md", beside)
    assert all((Path(__file__).parents[1] / "benchmarks" / "results" / report).is_file() for report in reports)
    assert bool(reports) == bool(re.search(r"\d\.\d{3}", beside)), "a figure names its report"
    assert all((Path(__file__).parents[1] / report).is_file() for report in measured)
    assert f"`pld pretrain --preset {name} --dry-run`" in header["Time and score"]
    assert measured or header["Time and score"].startswith("not measured")
    command = header["Command"]
    assert f"--preset {name}" in command
    config = presets.resolve(name).config
    if config.model.vocab_size != 30528:
        assert f"--vocab-size {config.model.vocab_size} " in command


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("system", ["pld", "preln", "shallow"])
def test_sizes(size: str, system: str) -> None:
    config = presets.resolve(f"{size}-{system}").config
    model = config.model
    shape = (model.num_hidden_layers, model.hidden_size, model.num_attention_heads, model.intermediate_size, model.vocab_size)
    assert shape[1:] == SIZES[size][1:] and (shape[0] == SIZES[size][0] or system == "shallow")
    assert config.pld.draws_per_step == (1 if size in FOR_CPUS else 4)
    assert (model.position_embedding == "learned") == (model.feed_forward == "gelu") == (not size.startswith("modern"))
    assert (config.objective.kind == "causal") == (model.lm_head == "plain") == (not model.embedding_norm) == (size == "gpt-small")
    assert (config.objective.next_sentence, config.data.layout) == (False, "spans")


@pytest.mark.parametrize("size", BERT)
def test_the_control_differs_by_the_dropping_only(size: str) -> None:
    pld, preln, postln = (flatten(presets.resolve(f"{size}-{system}").config) for system in ("pld", "preln", "postln"))
    assert {key: (pld[key], preln[key]) for key in pld if pld[key] != preln[key]} == {"pld.theta_bar": (0.5, 1.0)}
    assert {key: (preln[key], postln[key]) for key in preln if preln[key] != postln[key]} == {
        "model.norm": ("pre", "post"),
        "optim.learning_rate": (1e-3, 1e-4),
    }


def differences(name: str, other: str) -> dict[str, object]:
    """What `name` has and `other` has not."""
    changed, control = (flatten(presets.resolve(preset).config) for preset in (name, other))
    return {key: changed[key] for key in changed if changed[key] != control[key]}


SHALLOW = {"bert-tiny": 6, "bert-small": 9, "bert-base": 9, "bert-large": 18}
SHALLOW |= {"gpt-small": 9, "modern-tiny": 6, "modern-small": 9, "modern-base": 16, "modern-large": 21}
RAND = {"bert-tiny": 0.7216, "bert-small": 0.7320, "bert-base": 0.7319, "bert-large": 0.7422}
RAND |= {"gpt-small": 0.7319, "modern-tiny": 0.7216, "modern-small": 0.7319, "modern-base": 0.7413, "modern-large": 0.7437}
TIME_ONLY = {"bert-tiny": 0.71875, "bert-small": 0.72917, "bert-base": 0.72917, "bert-large": 0.73958}
TIME_ONLY |= {"gpt-small": 0.72917, "modern-tiny": 0.71875, "modern-small": 0.72917, "modern-base": 0.73864, "modern-large": 0.74107}
LAMB = {
    "bert-tiny": (512, 550, 2.83e-3),
    "bert-small": (256, 200, 2.83e-3),
    **dict.fromkeys(("bert-base", "bert-large"), (32768, 25_000, 5e-3)),
    "modern-tiny": (128, 2200, 2.83e-3),
    "modern-small": (2048, 1000, 2.83e-3),
    **dict.fromkeys(("modern-base", "modern-large"), (4096, 12_500, 2.83e-3)),
    "gpt-small": (4096, 2500, 2.83e-3),
}


@pytest.mark.parametrize("size", SIZES)
def test_what_makes_each_system_what_it_is(size: str) -> None:
    pld, preln = f"{size}-pld", f"{size}-preln"
    if size in BERT:
        assert differences(f"{size}-preln-low-lr", preln) == {"optim.learning_rate": 1e-4}
    assert differences(f"{size}-shallow", preln) == {"model.num_hidden_layers": SHALLOW[size]}
    assert SHALLOW[size] == SIZES[size][0] * 3 // 4
    rand = {"pld.schedule": "constant", "pld.depth_rule": "uniform", "pld.theta_bar": RAND[size]}
    assert differences(f"{size}-rand", pld) == rand
    assert differences(f"{size}-time-only", pld) == {"pld.depth_rule": "uniform", "pld.theta_bar": TIME_ONLY[size]}
    assert differences(f"{size}-depth-only", pld) == {"pld.schedule": "constant"}
    assert differences(f"{size}-growing", pld) == {"pld.schedule": "growing", "pld.recovery_fraction": 0.1}
    assert presets.resolve(f"{size}-growing").config.pld.recovery_fraction == 0.1
    stage = [{"until": 0.8, "blocks": 2}]
    late = {"pld.schedule": "expansion", "optim.schedule": "wsd", "pld.depth_stages": stage, "optim.decay_fraction": 0.2}
    assert differences(f"{size}-expansion", preln).items() <= late.items()
    assert presets.resolve(f"{size}-expansion").config.pld.depth_stages[0].model_dump() == stage[0]
    assert differences(f"{size}-fixed-depth", pld) == {"pld.draw": "fixed-depth"}
    assert differences(f"{size}-exits", preln) == {"objective.exits": "auto"}


@pytest.mark.parametrize(
    ("size", "kept"), [("bert-tiny", 5.773), ("bert-small", 8.784), ("bert-base", 8.783), ("bert-large", 17.813), ("modern-base", 16.308)]
)
def test_controls_keep_as_many_blocks_as_pld(size: str, kept: float) -> None:
    schedules = {system: presets.resolve(f"{size}-{system}").config.pld_schedule for system in SYSTEMS if f"{size}-{system}" in SHIPPED}
    blocks = SIZES[size][0]
    assert schedules["pld"].mean_kept_fraction * blocks == pytest.approx(kept, abs=1e-3)
    for system in ("rand", "time-only", "fixed-depth"):
        assert schedules[system].mean_kept_fraction == pytest.approx(schedules["pld"].mean_kept_fraction, abs=1e-4)
    assert schedules["rand"].theta(0) < 0.75 and schedules["time-only"].theta(0) == 1.0
    last = schedules["growing"].total_steps - 1
    assert (schedules["growing"].theta(0), schedules["growing"].theta(last)) == (0.5, 1.0)
    for system in schedules.keys() & {"preln", "postln", "preln-low-lr", "shallow", "lamb"}:
        assert schedules[system].mean_kept_fraction == 1.0


@pytest.mark.parametrize("size", SIZES)
def test_lamb_sees_the_controls_tokens_in_an_eighth_of_the_steps(size: str) -> None:
    control, lamb = (presets.resolve(f"{size}-{system}").config for system in ("preln", "lamb"))
    assert (lamb.train.global_batch_size, lamb.train.total_steps, lamb.optim.learning_rate) == LAMB[size]
    assert lamb.train.global_batch_size == 8 * control.train.global_batch_size
    assert lamb.train.total_steps * 8 == control.train.total_steps
    assert (lamb.optim.name, lamb.model, lamb.pld.theta_bar) == ("lamb", control.model, 1.0)
    assert lamb.optim.warmup_fraction == (0.05 if size in FOR_CPUS else 0.2 if size in BERT else 0.02)
    changed = {
        "optim.name",
        "optim.learning_rate",
        "train.total_steps",
        "train.global_batch_size",
        "checkpoint.every_steps",
        "eval.every_steps",
    }
    assert set(differences(f"{size}-lamb", f"{size}-preln")) - {"optim.warmup_fraction"} == changed


def test_the_paper_preset_has_the_papers_values() -> None:
    config = presets.resolve("bert-base-pld-paper").config
    assert (config.train.total_steps, config.train.global_batch_size, config.data.seq_len) == (200_000, 4096, 128)
    assert (config.optim.learning_rate, config.optim.warmup_fraction, config.optim.schedule) == (1e-3, 0.02, "paper-exponential")
    assert (config.optim.bias_correction, config.optim.weight_decay, config.optim.max_grad_norm) == (False, 0.01, 1.0)
    assert (config.model.dropout, config.objective.mask_probability, config.objective.next_sentence) == (0.1, 0.15, True)
    assert (config.pld.theta_bar, config.pld.depth_rule, config.pld.schedule, config.pld.gamma) == (0.5, "paper", "exponential", "auto")
    assert (config.runtime.precision, config.data.layout) == ("fp16", "nsp-pairs")


def test_later_layers_win_and_say_so() -> None:
    resolved = presets.resolve(
        "bert-tiny-pld", ["pld.theta_bar=0.7", "pld.theta_bar=0.8"], from_data={"model.vocab_size": 999, "model.type_vocab_size": 3}
    )
    assert (resolved.config.pld.theta_bar, resolved.config.model.vocab_size) == (0.8, 999)
    origins = {
        key: resolved.origins[key] for key in ("pld.theta_bar", "model.vocab_size", "model.num_hidden_layers", "pld.gamma", "optim.eps")
    }
    assert origins == {
        "pld.theta_bar": "command line",
        "model.vocab_size": "prepared data",
        "model.num_hidden_layers": "bert-tiny",
        "pld.gamma": "pld",
        "optim.eps": "default",
    }
    assert presets.resolve("bert-tiny-pld", ["model.vocab_size=50"], from_data={"model.vocab_size": 999}).config.model.vocab_size == 50


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optim.learning_rate=1e-4", "optim.learning_rate", 1e-4),
        ("optim.learning_rate=5E-5", "optim.learning_rate", 5e-5),
        ("train.total_steps=1e4", "train.total_steps", 10_000),
        ("train.total_steps=1_000", "train.total_steps", 1000),
        ("train.total_steps= 77", "train.total_steps", 77),
        ("pld.theta_bar=1", "pld.theta_bar", 1.0),
        ("pld.gamma=auto", "pld.gamma", "auto"),
        ("pld.gamma=1e-3", "pld.gamma", 1e-3),
        ("runtime.compile=on", "runtime.compile", "on"),
        ("train.unigram_bias=off", "train.unigram_bias", False),
        ("pld.draw=fixed-depth", "pld.draw", "fixed-depth"),
    ],
)
def test_values_as_typed(text: str, key: str, value: object) -> None:
    found = flatten(presets.resolve("bert-base-pld", [text]).config)[key]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.steps", "'train.steps' is not KEY=VALUE; for example train.total_steps=1000"),
        ("=3", "'=3' is not KEY=VALUE; for example train.total_steps=1000"),
        ("train.total_steps=[", "train.total_steps: '[' is not a value"),
        ("train.total_steps=many", "train.total_steps: must be a valid integer, not 'many'"),
        ("train.total_steps=1.5", "train.total_steps: must be a valid integer, not 1.5"),
        ("train.total_steps=true", "train.total_steps: must be a valid integer, not True"),
        ("train.total_steps=", "train.total_steps: must be a valid integer, not None"),
        ("train.total_steps=.inf", "train.total_steps: must be a valid integer, not inf"),
        ("optim.learning_rate=.nan", "optim.learning_rate: must be a finite number, not nan"),
        ("optim.learning_rate=nan", "optim.learning_rate: must be a finite number, not nan"),
        ("optim.learning_rate=[1]", "optim.learning_rate: must be a valid number, not [1]"),
        ("pld.gamma=fast", "pld.gamma: must be a valid number or 'auto', not 'fast'"),
        ("pld.scaling_error=true", "pld.scaling_error: was removed; only its default False is still accepted, not True"),
        ("train.unigram_bias=1", "train.unigram_bias: must be true or false, not 1"),
        ("model.norm=both", "model.norm: must be 'pre' or 'post', not 'both'"),
        ("pld.theta=0.5", "pld.theta: unknown key; did you mean pld.theta_bar?"),
        ("theta_bar=0.5", "theta_bar: unknown key; did you mean pld.theta_bar?"),
        ("model.theta_bar=0.5", "model.theta_bar: unknown key; did you mean pld.theta_bar?"),
        ("train.learning_rate=1", "train.learning_rate: unknown key; did you mean optim.learning_rate?"),
        ("checkpoint.every=1", "checkpoint.every: unknown key; did you mean checkpoint.every_steps?"),
        ("data.zzz=1", "data.zzz: unknown key; the keys of data are seq_len, layout, packing, length_stages"),
        ("zzz=1", "zzz: unknown key; the sections are model, pld, data, objective, optim, train, runtime, checkpoint, eval"),
        ("data=1", "data: must hold keys with values; the keys of data are seq_len, layout, packing, length_stages"),
    ],
)
def test_a_wrong_change_is_refused(override: str, line: str) -> None:
    assert refused(override) == line


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("causal_share=0.06", "kind=causal"), "objective.causal_share: with kind=causal every step is causal; leave it out"),
        (("causal_share=0.06", "kind=prefix"), "objective.causal_share: with kind=prefix a third of the steps is causal; leave it out"),
        (("causal_share=1",), "objective.causal_share: must be less than 1, not 1"),
        (("kind=clm",), "objective.kind: must be 'masked', 'causal' or 'prefix', not 'clm'"),
        (("mask_probability=0.3", "kind=causal"), "objective.mask_probability: nothing is masked with objective.kind=causal; leave it out"),
        (("masking=span", "kind=causal"), "objective.masking: nothing is masked with objective.kind=causal; leave it out"),
        (
            ("span_boundary=true", "masking=span", "kind=prefix"),
            "objective.span_boundary: needs masked spans in every step; leave it out, or use kind=masked without a causal_share",
        ),
        (
            ("next_sentence=true", "kind=causal"),
            "objective.next_sentence: reads whole pairs of texts, which no token sees under causal attention; "
            "leave it out, or use kind=masked without a causal_share",
        ),
    ],
)
def test_objectives_that_do_not_go_together_are_refused(overrides: tuple[str, ...], line: str) -> None:
    assert refused(*(f"objective.{override}" for override in overrides), preset="gpt-small-pld") == line


def test_what_next_tokens_need_of_rows_is_said() -> None:
    pairs = "data.layout: sentence pairs are for masked LM alone; use data.layout=spans"
    assert (
        refused("data.layout=nsp-pairs", preset="gpt-small-pld") == refused("data.layout=nsp-pairs", "objective.causal_share=0.1") == pairs
    )
    line = "data.packing: objective.kind=prefix needs rows of one text; use data.packing=stream"
    assert refused("data.packing=documents", "objective.kind=prefix") == line


def test_a_preset_with_masks_may_be_made_causal() -> None:
    config = presets.resolve("modern-tiny-pld", ["objective.kind=causal"]).config
    assert (config.objective.mask_probability, config.objective.token_losses) == (0.3, ("clm",))


def test_an_unknown_preset_is_refused() -> None:
    assert refused(preset="bert-bse-pld") == "unknown preset 'bert-bse-pld'; did you mean bert-base-pld?"
    assert refused(preset="gpt") == "unknown preset 'gpt'; `pld config list` shows them"
    assert refused(preset="") == "unknown preset ''; `pld config list` shows them"
    assert refused(preset="no.yaml") == "no.yaml: no such preset file"


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("", ": must hold keys with values"),
        ("- 1\n", ": must hold keys with values"),
        (
            "data: 3\n",
            "mine.yaml:1: data: must hold keys with values; the keys of data are seq_len, layout, packing, length_stages",
        ),
        ("pld:\n  theta: 0.5\n", "mine.yaml:2: pld.theta: unknown key; did you mean pld.theta_bar?"),
        ("pld:\n  theta_bar: low\n", "mine.yaml:2: pld.theta_bar: must be a valid number, not 'low'"),
        ("extends: 3\n", ": `extends` must be a list of preset names"),
        ("extends: gpt\n", "unknown preset 'gpt'; `pld config list` shows them"),
        ("extends: mine.yaml\n", ": extends itself"),
        ("sizes: 3\n", f"mine.yaml:1: sizes: must hold values for {', '.join(sorted(SIZES))}"),
        (
            "sizes: {bert-tyni: {pld.theta_bar: 0.5}}\n",
            f"mine.yaml:1: sizes: must hold values for {', '.join(sorted(SIZES))}",
        ),
        ("sizes: {bert-tiny: 0.5}\n", f"mine.yaml:1: sizes: must hold values for {', '.join(sorted(SIZES))}"),
        ("extends: bert-tiny-pld\nsizes: {bert-tiny: {pld.theta: 0.5}}\n", ": pld.theta: unknown key; did you mean pld.theta_bar?"),
        ("pld: {theta_bar: [\n", ""),
    ],
)
def test_a_wrong_preset_file_is_refused(text: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    line = refused(preset=str(path))
    assert line.endswith(end)
    assert "\n" not in line
    if not end:
        assert line.startswith(f"{path}: cannot be read as YAML (")


def test_a_preset_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    assert refused(preset=str(path)).startswith(f"{path}: cannot be read as YAML (")


def test_a_preset_file_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("pld:\n  theta_bar: !!python/object/apply:os.getcwd []\n", encoding="utf-8")
    assert "cannot be read as YAML" in refused(preset=str(path))


def test_own_presets_extend_shipped_ones_and_files_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "long.yaml").write_text("train:\n  total_steps: 123\n", encoding="utf-8")
    (folder / "own.yaml").write_text("extends: [bert-tiny-pld, long.yaml]\npld.theta_bar: 0.9\n", encoding="utf-8")
    config = presets.resolve("mine/own.yaml").config
    assert (config.train.total_steps, config.pld.theta_bar, config.model.num_hidden_layers) == (123, 0.9, 8)


@pytest.mark.parametrize(("parents", "theta_bar"), [("bert-tiny-rand", 0.7216), ("bert-base, rand", 0.7319), ("rand", 0.5)])
def test_a_system_says_what_a_size_changes_also_for_own_presets(parents: str, theta_bar: float, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: [{parents}]\n", encoding="utf-8")
    assert presets.resolve(str(own)).config.pld.theta_bar == theta_bar
    own.write_text(f"extends: [{parents}]\npld.theta_bar: 0.8\nsizes:\n  bert-base:\n    pld: {{theta_bar: 0.9}}\n", encoding="utf-8")
    assert presets.resolve(str(own)).config.pld.theta_bar == (0.9 if "base" in parents else 0.8)


def test_the_manual_and_the_types_name_the_same_keys() -> None:
    assert list(fields(Config)) == list(flatten(Config()))
    assert all(re.fullmatch(r"[a-z]+\.[a-z0-9_]+", key) for key in fields(Config))


def test_of_a_run_that_begins_with_a_model_its_positions_count() -> None:
    wanted = ["train.init_from=model", "data.seq_len=1024"]
    presets.resolve("bert-base-pld", wanted)
    long = presets.resolve("bert-base-pld", wanted, from_model={"model.max_position_embeddings": 8192})
    assert long.config.data.seq_len == 1024
    with pytest.raises(UsageError, match=r"1024 tokens do not fit model.max_position_embeddings 514"):
        presets.resolve("bert-base-pld", wanted, from_model={"model.max_position_embeddings": 514})

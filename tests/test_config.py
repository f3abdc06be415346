from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pldcli.config import RUN_CONTROL, Config, DataConfig, ModelConfig, OptimConfig, PldConfig, TrainConfig, documentation, flatten
from pldcli.errors import UsageError
from pldcli.presets import build, dump, load, resolve
from tests.conftest import tiny_config

PROMISED_KEYS = [
    "train.total_steps",
    "train.global_batch_size",
    "train.micro_batch_size",
    "train.seed",
    "train.log_every_steps",
    "data.seq_len",
    "optim.learning_rate",
    "runtime.precision",
    "checkpoint.every_steps",
    "eval.every_steps",
    "model.num_hidden_layers",
    "model.hidden_size",
    "model.num_attention_heads",
    "model.intermediate_size",
    "model.dropout",
    "model.norm",
    "pld.schedule",
    "pld.theta_bar",
    "pld.gamma",
    "pld.depth_rule",
    "pld.draw",
    "pld.draws_per_step",
]


def test_every_promised_key_is_there() -> None:
    assert set(PROMISED_KEYS) <= set(flatten(Config()))


def test_every_knob_and_section_is_documented() -> None:
    texts = documentation()
    for key in [*flatten(Config()), *Config.model_fields]:
        assert len(texts.get(key, "")) > 10, key
        assert texts[key].rstrip().endswith("."), key


def test_documentation_belongs_to_its_key() -> None:
    assert documentation()["pld.theta_bar"].startswith("The lowest keep ratio")
    assert documentation()["train.seed"].startswith("Seed of the initial weights")


def test_run_control_keys_exist_and_leave_out_what_makes_a_run() -> None:
    assert set(RUN_CONTROL) < set(flatten(Config()))
    assert not {"train.total_steps", "train.seed", "train.global_batch_size", "pld.theta_bar", "optim.learning_rate"} & set(RUN_CONTROL)


def test_nothing_can_be_written_to() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().pld.theta_bar = 0.5  # type: ignore[misc]


def test_by_default_nothing_is_dropped() -> None:
    assert set(Config().pld_schedule.keep_probs(100_000)) == {1.0}


def test_the_schedule_is_tied_to_the_run() -> None:
    config = resolve(
        "bert-base-pld", ["train.total_steps=500", "model.num_hidden_layers=6", "pld.draw=fixed-depth", "pld.gamma=0.25"]
    ).config
    schedule = config.pld_schedule
    assert (schedule.total_steps, schedule.num_blocks, schedule.draw, schedule.gamma_per_step) == (500, 6, "fixed-depth", 0.25)
    assert resolve("bert-base-pld", ["train.total_steps=500"]).config.pld_schedule.gamma_per_step == 0.2


BAD = [
    ("pld.theta_bar", 0, "pld.theta_bar: must be greater than 0, not 0"),
    ("pld.theta_bar", -0.5, "pld.theta_bar: must be greater than 0, not -0.5"),
    ("pld.theta_bar", 1.01, "pld.theta_bar: must be at most 1, not 1.01"),
    ("pld.gamma", -1, "pld.gamma: must be at least 0 or 'auto', not -1"),
    ("pld.recovery_fraction", 1, "pld.recovery_fraction: must be less than 1, not 1"),
    ("pld.keep_last", -1, "pld.keep_last: must be at least 0, not -1"),
    ("pld.keep_first", 13, "pld.keep_first: 13 blocks at both ends are more than model.num_hidden_layers 12; keep fewer"),
    ("pld.draws_per_step", 0, "pld.draws_per_step: must be at least 1, not 0"),
    ("model.num_hidden_layers", 0, "model.num_hidden_layers: must be at least 1, not 0"),
    ("model.num_attention_heads", 7, "model.num_attention_heads: 7 heads do not divide hidden_size 768"),
    ("model.vocab_size", 5, "model.vocab_size: must be at least 6, not 5"),
    ("model.dropout", 1, "model.dropout: must be less than 1, not 1"),
    ("model.layer_norm_eps", 0, "model.layer_norm_eps: must be greater than 0, not 0"),
    ("model.initializer_range", 0, "model.initializer_range: must be greater than 0, not 0"),
    ("data.seq_len", 7, "data.seq_len: must be at least 8, not 7"),
    (
        "data.seq_len",
        513,
        "data.seq_len: 513 tokens do not fit model.max_position_embeddings 512; raise the latter or shorten the sequences",
    ),
    ("objective.mask_probability", 0, "objective.mask_probability: must be greater than 0, not 0"),
    ("objective.mask_probability", 1, "objective.mask_probability: must be less than 1, not 1"),
    ("objective.final_mask_probability", 0, "objective.final_mask_probability: must be greater than 0, not 0"),
    ("objective.final_mask_probability", 1, "objective.final_mask_probability: must be less than 1, not 1"),
    ("objective.masking", "word", "objective.masking: must be 'token', 'whole-word' or 'span', not 'word'"),
    *(
        (
            "objective.exits",
            exits,
            f"objective.exits: must be different numbers of blocks, from 1 to 11, not {exits}; the loss at the end is there anyway",
        )
        for exits in ([2, 2], [12], [0])
    ),
    ("objective.exit_weight", 0, "objective.exit_weight: must be greater than 0, not 0"),
    (
        "objective.sampled_softmax",
        20,
        "objective.sampled_softmax: must exceed the targets of a micro-batch, up to 20, not 20; "
        "raise it, or lower train.micro_batch_size or data.seq_len",
    ),
    ("objective.span_boundary", True, "objective.span_boundary: needs masked spans; add objective.masking=span"),
    ("objective.next_sentence", True, "objective.next_sentence: needs sentence pairs; add data.layout=nsp-pairs"),
    ("optim.learning_rate", 0, "optim.learning_rate: must be greater than 0, not 0"),
    ("optim.warmup_fraction", 1, "optim.warmup_fraction: must be less than 1, not 1"),
    ("optim.warmup_steps", -1, "optim.warmup_steps: must be at least 0, not -1"),
    (
        "optim.warmup_steps",
        200_000,
        "optim.warmup_steps: 200000 steps of warm-up do not fit a run of 200000; shorten the warm-up or raise train.total_steps",
    ),
    (
        "optim.warmup_tokens",
        10**12,
        "optim.warmup_tokens: 1907349 steps of warm-up do not fit a run of 200000; shorten the warm-up or raise train.total_steps",
    ),
    ("optim.muon_learning_rate", 0, "optim.muon_learning_rate: must be greater than 0, not 0"),
    ("optim.muon_momentum", 1, "optim.muon_momentum: must be less than 1, not 1"),
    ("optim.beta2", 1, "optim.beta2: must be less than 1, not 1"),
    ("optim.eps", 0, "optim.eps: must be greater than 0, not 0"),
    ("optim.weight_decay", -1, "optim.weight_decay: must be at least 0, not -1"),
    ("train.total_steps", 0, "train.total_steps: must be at least 1, not 0"),
    ("train.micro_batch_size", 0, "train.micro_batch_size: must be at least 1 or 'auto', not 0"),
    ("train.seed", -1, "train.seed: must be at least 0, not -1"),
    ("checkpoint.keep", 0, "checkpoint.keep: must be at least 1, not 0"),
    ("eval.every_steps", 0, "eval.every_steps: must be at least 1, not 0"),
    ("train.batch_ramp", 1, "train.batch_ramp: must be less than 1, not 1"),
    ("data.length_stages", 128, "data.length_stages: must be a list, not 128"),
    ("data.length_stages", [{"until": 0.5}], "data.length_stages[0].seq_len: is missing"),
    ("data.length_stages", [{"until": 0, "seq_len": 32}], "data.length_stages[0].until: must be greater than 0, not 0"),
    ("data.length_stages", [{"until": 0.5, "len": 32}], "data.length_stages[0].len: unknown key; did you mean seq_len?"),
    (
        "data.length_stages",
        [{"until": 0.5, "seq_len": 32}, {"until": 0.5, "seq_len": 64}],
        "data.length_stages[1].until: 0.5 does not lie between 0.5, where the stage begins, and 1; "
        "list stages in order; what comes after the last one has the length data.seq_len",
    ),
    (
        "data.length_stages",
        [{"until": 1.0, "seq_len": 32}],
        "data.length_stages[0].until: 1 does not lie between 0, where the stage begins, and 1; "
        "list stages in order; what comes after the last one has the length data.seq_len",
    ),
    (
        "data.length_stages",
        [{"until": 0.5, "seq_len": 512}],
        "data.length_stages[0].seq_len: 512 tokens do not divide data.seq_len 128, the length at the end of the run; "
        "a step keeps its tokens: choose lengths that divide it",
    ),
    (
        "data.length_stages",
        [{"until": 0.5, "seq_len": 32, "global_rope_theta": 1e4}],
        "data.length_stages[0].global_rope_theta: learned positions have no theta; use model.position_embedding=rotary",
    ),
]


@pytest.mark.parametrize(("key", "value", "line"), BAD)
def test_a_value_that_cannot_be_is_refused(key: str, value: object, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        build({key: value})
    assert str(caught.value) == line


def test_a_warm_up_is_given_in_steps_or_tokens_or_as_a_fraction() -> None:
    def warmup(**optim: Any) -> int:
        train = TrainConfig(total_steps=1000, global_batch_size=16)
        return Config(train=train, data=DataConfig(seq_len=128), optim=OptimConfig(**optim)).warmup_steps

    assert (warmup(), warmup(warmup_fraction=0.055), warmup(warmup_steps=7), warmup(warmup_steps=0)) == (20, 55, 7, 0)
    assert [warmup(warmup_tokens=tokens) for tokens in (0, 1, 2048, 2049, 112_640)] == [0, 1, 1, 2, 55]
    assert warmup(warmup_fraction=0.9, warmup_steps=7) == 7
    with pytest.raises(UsageError) as caught:
        warmup(warmup_steps=7, warmup_tokens=2048)
    assert str(caught.value) == (
        "optim.warmup_tokens: 2048 tokens and optim.warmup_steps 7 are two lengths of one warm-up; set one of them to null"
    )


def test_muons_adamw_corrects_its_moments() -> None:
    with pytest.raises(UsageError) as caught:
        build({"optim.name": "muon", "optim.bias_correction": False})
    assert str(caught.value) == (
        "optim.bias_correction: muon's AdamW always corrects the moments; set it to true, or choose another optim.name"
    )


def test_pairs_are_not_packed() -> None:
    with pytest.raises(UsageError) as caught:
        build({"data.packing": "documents", "data.layout": "nsp-pairs"})
    assert str(caught.value) == "data.packing: documents are packed in rows of spans; use data.layout=spans"


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        Config(train=TrainConfig(global_batch_size=30), pld=PldConfig(draws_per_step=4))
    assert str(caught.value) == (
        "train.global_batch_size: 30 sequences do not divide into pld.draws_per_step 4 gate groups; make it a multiple"
    )
    whole = Config(train=TrainConfig(global_batch_size=32), pld=PldConfig(draws_per_step=4))
    with pytest.raises(UsageError, match="32 sequences do not divide over 4 gate groups x 3 processes; make it a multiple of 12"):
        whole.forwards_per_group(3, most_sequences=8)


@pytest.mark.parametrize(
    ("train", "line"),
    [
        (
            {"initial_batch_size": 24},
            "train.initial_batch_size: 24 sequences do not divide train.global_batch_size 64, which grows in multiples of them; "
            "try train.initial_batch_size=16",
        ),
        (
            {"initial_batch_size": 128},
            "train.initial_batch_size: 128 sequences do not divide train.global_batch_size 64, which grows in multiples of them; "
            "try train.initial_batch_size=64",
        ),
        (
            {"initial_batch_size": 2},
            "train.initial_batch_size: 2 sequences do not divide into pld.draws_per_step 4 gate groups; make it a multiple",
        ),
    ],
)
def test_a_ramp_that_does_not_divide_is_refused(train: dict[str, int], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(
            {
                "pld.draws_per_step": 4,
                "train.global_batch_size": 64,
                "train.batch_ramp": 0.5,
                **{f"train.{key}": value for key, value in train.items()},
            }
        )
    assert str(caught.value) == line


def test_the_first_batch_of_a_ramp_must_divide_over_processes() -> None:
    config = build({"train.global_batch_size": 64, "train.batch_ramp": 0.5})
    assert config.train.smallest_batch_size == 16 and config.share_of_group(16) == 4
    with pytest.raises(UsageError) as caught:
        config.share_of_group(32)
    assert str(caught.value) == (
        "train.initial_batch_size: 16 sequences do not divide over 1 gate groups x 32 processes; make it a multiple of 32"
    )
    assert build({"train.global_batch_size": 64, "train.initial_batch_size": 16}).share_of_group(32) == 2, "there is no ramp"


def test_length_stages_are_written_alike_everywhere(tmp_path: Path) -> None:
    text = "[{until: 0.7, seq_len: 32}, {until: 9e-1, seq_len: 64}]"
    line = resolve("bert-tiny-pld", [f"data.length_stages={text}"]).config
    (tmp_path / "own.yaml").write_text(f"extends: [bert-tiny-pld]\ndata:\n  length_stages: {text}\n")
    assert resolve(str(tmp_path / "own.yaml")).config == line == build(flatten(line))
    assert [(stage.until, stage.seq_len, stage.global_rope_theta) for stage in line.data.length_stages] == [
        (0.7, 32, None),
        (0.9, 64, None),
    ]
    (tmp_path / "dump.yaml").write_text(dump(line))
    assert load(tmp_path / "dump.yaml") == line
    assert resolve(str(tmp_path / "own.yaml"), ["data.length_stages=[]"]).config == resolve("bert-tiny-pld").config


def test_forwards_per_group() -> None:
    config = Config(train=TrainConfig(global_batch_size=96, micro_batch_size=8), pld=PldConfig(draws_per_step=2))
    assert config.forwards_per_group(1, most_sequences=64) == (6, 8)
    assert config.forwards_per_group(2, most_sequences=64) == (3, 8)
    small = Config(train=TrainConfig(global_batch_size=4, micro_batch_size=8))
    assert small.forwards_per_group(1, most_sequences=64) == (1, 4)
    uneven = Config(train=TrainConfig(global_batch_size=30, micro_batch_size=8))
    with pytest.raises(UsageError, match=r"8 does not divide the 30 sequences .*; try train.micro_batch_size=6"):
        uneven.forwards_per_group(1, most_sequences=64)
    free = Config(train=TrainConfig(global_batch_size=30, micro_batch_size="auto"))
    assert free.forwards_per_group(1, most_sequences=8) == (5, 6)


def test_sequences_may_fill_the_position_table() -> None:
    assert Config(data=DataConfig(seq_len=512)).data.seq_len == 512


@pytest.mark.parametrize("changes", [["model.local_attention=512"], ["model.local_attention=130"], ["data.seq_len=32"]])
def test_a_window_wider_than_the_sequences_is_refused(changes):
    with pytest.raises(
        UsageError, match=r"model.local_attention: a window of [0-9]+ tokens is wider than the sequences, data.seq_len "
    ) as raised:
        resolve("modern-tiny-pld", changes)
    assert "\n" not in str(raised.value)
    resolve("modern-tiny-pld", [*changes, "model.global_layers=1"])
    resolve("modern-tiny-pld", [*changes, "data.seq_len=512"])
    # A model that is read has the window that it has.
    resolve("modern-tiny-pld", [*changes, "train.init_from=somewhere"])


def test_fingerprints_of_models_are_made_of_what_they_always_were() -> None:
    assert repr(ModelConfig(norm="post", dropout=0.0)) == (
        "ModelConfig(num_hidden_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=3072, vocab_size=30528, "
        "max_position_embeddings=512, type_vocab_size=2, norm='post', dropout=0.0, layer_norm_eps=1e-12, initializer_range=0.02, "
        "attention_init='normal')"
    )


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "model.position_embedding=rotary",
            "model.type_vocab_size: 2 cannot.* type is modernbert; "
            "set model.type_vocab_size=0 model.feed_forward=geglu model.first_attention_norm=false$",
        ),
        ("model.feed_forward=geglu", "model.feed_forward: geglu cannot.*; set model.feed_forward=gelu"),
        ("model.global_layers=2", r"model.global_layers: 2 cannot.*; set model.global_layers=1"),
        ("model.lm_head=plain", "model.lm_head: plain cannot.*; set model.lm_head=transform"),
        ("model.norm_bias=false", "model.norm_bias: false cannot.*; set model.norm_bias=true"),
    ],
)
def test_a_run_whose_model_cannot_be_exported_is_refused(override, line):
    with pytest.raises(UsageError, match=line) as raised:
        resolve("bert-tiny-pld", overrides=[override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("value", "line"),
    [("[-1]", r"model.global_layers\[0\]: must be at least 0, not -1"), ("0", "model.global_layers: must be at least 1 or a list, not 0")],
)
def test_a_value_that_may_be_of_two_kinds_is_refused_for_what_is_wrong_with_it(value, line):
    with pytest.raises(UsageError, match=line):
        resolve("modern-tiny-preln", overrides=[f"model.global_layers={value}"])


def test_a_warm_up_that_reaches_into_the_decay() -> None:
    run = ("train.total_steps=100", "optim.schedule=wsd", "optim.decay_fraction=0.2")
    tiny_config(*run, "optim.warmup_steps=80")
    with pytest.raises(UsageError, match=r"optim.warmup_steps: 81 steps of warm-up reach into the decay, the last 20 steps"):
        tiny_config(*run, "optim.warmup_steps=81")
    tiny_config(*run, "optim.warmup_fraction=0.8")
    with pytest.raises(UsageError, match=r"optim.warmup_fraction: 0.81 of the run is warm-up, which reaches into the decay, the last 0.2;"):
        tiny_config(*run, "optim.warmup_fraction=0.81")
    tiny_config(*run, "optim.warmup_fraction=0.81", "optim.warmup_steps=80")
    tiny_config("optim.warmup_fraction=0.81", "optim.schedule=linear")


@pytest.mark.parametrize(
    ("change", "of_the_source"),
    [
        ("objective.exits=[6,11,16]", {"model.num_hidden_layers": 22}),
        ("pld.keep_first=12", {"model.num_hidden_layers": 22}),
        ("data.length_stages=[{until: 0.5, seq_len: 16, global_rope_theta: 1e4}]", {"model.position_embedding": "rotary"}),
        ("objective.kind=causal", {"model.embedding_norm": False, "model.type_vocab_size": 0, "model.lm_head": "plain"}),
    ],
)
def test_what_begins_with_another_model_is_checked_against_that(change: str, of_the_source: dict[str, Any]) -> None:
    rotary = {"model.type_vocab_size": 0, "model.feed_forward": "geglu", "model.first_attention_norm": False}
    shape = of_the_source | (rotary if "model.position_embedding" in of_the_source else {})
    words = ["data.seq_len=32", "train.init_from=somewhere", change]
    preset = "bert-tiny-preln"
    with pytest.raises(UsageError):
        resolve(preset, [word for word in words if not word.startswith("train.init_from")])
    resolve(preset, words)
    resolve(preset, words, from_model=shape)
    with pytest.raises(UsageError):
        resolve(preset, words, from_model={"model.num_hidden_layers": 4})


def test_a_head_without_a_bias_matters_only_to_what_begins_with_it() -> None:
    words = ["objective.kind=causal", "train.unigram_bias=true"]
    with pytest.raises(UsageError, match=r"train.unigram_bias: a plain decoder has no bias"):
        resolve("gpt-small-preln", words)
    resolve("gpt-small-preln", [*words, "train.init_from=somewhere"])


def test_the_largest_seed() -> None:
    assert tiny_config(f"train.seed={2**63 - 1}").train.seed == 2**63 - 1
    with pytest.raises(UsageError, match=rf"train.seed: must be less than {2**63}, not {2**63}"):
        tiny_config(f"train.seed={2**63}")


@pytest.mark.parametrize("kinds", ["objective.causal_share=0.1", "objective.kind=prefix"])
def test_spikes_of_two_kinds_of_steps(kinds: str) -> None:
    with pytest.raises(UsageError, match=r"train.skip_spikes: steps with two kinds of targets have losses of two sizes"):
        tiny_config("train.skip_spikes=6", kinds)


@pytest.mark.parametrize("text", ["2024-06-31", "a: b: c"])
def test_a_value_that_yaml_cannot_read(text: str) -> None:
    with pytest.raises(UsageError, match=r"train.init_from: '.*' is not a value"):
        tiny_config(f"train.init_from={text}")

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pldcli import presets
from pldcli.config import flatten
from pldcli.deepspeed import import_deepspeed
from pldcli.errors import UsageError

DROPPING = {"progressive_layer_drop": {"enabled": True, "theta": 0.5, "gamma": 0.001}}
BERT_EXAMPLE = {
    **DROPPING,
    "train_batch_size": 4096,
    "train_micro_batch_size_per_gpu": 16,
    "gradient_accumulation_steps": 4,
    "steps_per_print": 1000,
    "zero_optimization": {"stage": 1},
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "weight_decay": 0.01, "bias_correction": False}},
    "gradient_clipping": 1.0,
    "fp16": {"enabled": True, "loss_scale": 0},
}


def imported(content: object, folder: Path, base: str = "bert-tiny-pld") -> tuple[dict[str, Any], list[str]]:
    """What the preset changes of its base, wherever it lies; and what was not imported."""
    path, elsewhere = folder / "ds.json", folder / "elsewhere" / "my.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    text, not_imported = import_deepspeed(path, base=base)
    elsewhere.parent.mkdir(exist_ok=True)
    elsewhere.write_text(text, encoding="utf-8")
    before, after = flatten(presets.resolve(base).config), flatten(presets.resolve(str(elsewhere)).config)
    return {key: after[key] for key in after if after[key] != before[key]}, not_imported


def test_the_bert_example(tmp_path: Path) -> None:
    changed, not_imported = imported(BERT_EXAMPLE, tmp_path, "bert-base-preln")
    assert changed == {
        "pld.theta_bar": 0.5,
        "pld.gamma": 0.001,
        "optim.eps": 1e-8,
        "optim.bias_correction": False,
        "train.micro_batch_size": 16,
        "runtime.precision": "fp16",
    }
    assert not_imported == ["steps_per_print", "zero_optimization", "fp16.loss_scale"]
    lines = (tmp_path / "elsewhere" / "my.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[1:3] == ["# Not imported: steps_per_print, zero_optimization, fp16.loss_scale.", "extends: [bert-base-preln]"]
    assert "  gamma: 0.001  # progressive_layer_drop.gamma" in lines
    assert "  eps: 1.0e-08  # DeepSpeed's default" in lines


TRUST_RATIO = "DeepSpeed's bounds of LAMB's trust ratio"
LOGARITHM = "warm-up with the logarithm of the step (linear here)"
BY_GPUS = "the sequences of a step, which DeepSpeed counts by GPUs without a train_batch_size (the base's here)"
ADAM = {"optim.eps": 1e-8, "optim.weight_decay": 0.0}
LAMB = {"lr": "2e-3", "betas": [0.8, 0.99], "eps": 1e-7, "weight_decay": 0.1, "max_grad_norm": 0.5, "max_coeff": 0.3}
LAMB_HERE = {"optim.name": "lamb", "optim.beta1": 0.8, "optim.beta2": 0.99, "optim.eps": 1e-7, "optim.weight_decay": 0.1}
AUTO = {
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto"),
    "fp16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {**dict.fromkeys(("warmup_max_lr", "warmup_num_steps", "total_num_steps"), "auto"), "warmup_type": "linear"},
    },
}


@pytest.mark.parametrize(
    ("content", "changed", "not_imported"),
    [
        ({"gradient_clipping": None}, {"optim.max_grad_norm": 0.0}, []),
        ({"gradient_clipping": 2}, {"optim.max_grad_norm": 2.0}, []),
        ({"optimizer": {"type": "AdamW"}}, ADAM, []),
        ({"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}, ADAM, ["optimizer.params.adam_w_mode"]),
        (
            {"optimizer": {"type": "lamb", "params": LAMB}},
            {**LAMB_HERE, "optim.learning_rate": 2e-3},
            ["optimizer.params.max_grad_norm", "optimizer.params.max_coeff", TRUST_RATIO],
        ),
        (
            {"optimizer": {"type": "Lamb", "params": LAMB}, "gradient_clipping": None},
            {**LAMB_HERE, "optim.learning_rate": 2e-3, "optim.max_grad_norm": 0.5},
            ["optimizer.params.max_coeff", TRUST_RATIO],
        ),
        (AUTO, {}, []),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 440, "warmup_max_lr": 2e-3}}},
            {"optim.schedule": "constant", "optim.warmup_steps": 440, "optim.learning_rate": 2e-3},
            [LOGARITHM],
        ),
        (
            {"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 100, "total_num_steps": 1000, "warmup_type": "linear"}}},
            {"train.total_steps": 1000, "optim.warmup_steps": 100},
            [],
        ),
        (
            {"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 0, "total_num_steps": 1000}}},
            {"train.total_steps": 1000, "optim.schedule": "cosine", "optim.warmup_steps": 0},
            [],
        ),
        (
            {"scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 1}}},
            {},
            ["scheduler.type", "scheduler.params.cycle_min_lr"],
        ),
        ({"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 1}, {"train.micro_batch_size": 8}, [BY_GPUS]),
        ({"train_micro_batch_size_per_gpu": 8, "train_batch_size": 64}, {"train.micro_batch_size": 8}, []),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, {"runtime.precision": "bf16"}, []),
        ({"bfloat16": {"enabled": True}}, {"runtime.precision": "bf16"}, []),
        ({"fp16": {"enabled": False}}, {"runtime.precision": "fp32"}, []),
        ({"fp16": {}}, {"runtime.precision": "fp32"}, []),
    ],
)
def test_what_is_imported(content: dict[str, Any], changed: dict[str, Any], not_imported: list[str], tmp_path: Path) -> None:
    found = imported({**DROPPING, "gradient_clipping": 1.0, **content}, tmp_path)
    assert found == ({"pld.gamma": 0.001, **changed}, not_imported)


@pytest.mark.parametrize("section", [{}, {"enabled": False, "theta": 0.5, "gamma": 0.01}])
def test_disabled_drops_nothing(section: dict[str, Any], tmp_path: Path) -> None:
    changed, not_imported = imported({"progressive_layer_drop": section, "gradient_clipping": 1.0}, tmp_path)
    assert changed == {"pld.theta_bar": 1.0}
    expanding, _ = imported({"progressive_layer_drop": section, "gradient_clipping": 1.0}, tmp_path, "bert-base-expansion")
    assert expanding["pld.schedule"] == "exponential" and "pld.theta_bar" not in expanding, "which is 1 there"
    assert not_imported == [f"progressive_layer_drop.{key}" for key in ("theta", "gamma") if key in section]


def test_the_schedule_over_time_is_deepspeeds_and_the_depth_rule_the_bases(tmp_path: Path) -> None:
    changed, _ = imported({**DROPPING, "gradient_clipping": 1.0}, tmp_path, "bert-tiny-rand")
    assert changed == {"pld.schedule": "exponential", "pld.theta_bar": 0.5, "pld.gamma": 0.001}


@pytest.mark.parametrize(
    ("sizes", "draws"),
    [
        ({"train_batch_size": 48}, 1),  # one micro-batch per step, one draw
        ({"train_batch_size": 48, "train_micro_batch_size_per_gpu": 8}, 4),  # the GPUs are not known: the base's
        ({"train_batch_size": 42, "train_micro_batch_size_per_gpu": 7}, 1),  # the base's 4 does not divide it
        ({"train_batch_size": 48, "gradient_accumulation_steps": 3}, 3),
        ({"gradient_accumulation_steps": 2}, 2),
    ],
)
def test_gates_are_drawn_as_often_as_the_released_model_did(sizes: dict[str, int], draws: int, tmp_path: Path) -> None:
    changed, _ = imported({**DROPPING, **sizes}, tmp_path, "bert-base-pld")
    assert changed.get("pld.draws_per_step", 4) == draws
    assert changed.get("train.global_batch_size", 4096) == sizes.get("train_batch_size", 4096)
    assert changed.get("train.micro_batch_size") == sizes.get("train_micro_batch_size_per_gpu")


def test_a_base_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("extends: [bert-tiny-pld]\ntrain.total_steps: 77\n", encoding="utf-8")
    assert imported({**DROPPING, "gradient_clipping": 1.0}, tmp_path, "own.yaml") == ({"pld.gamma": 0.001}, [])
    assert presets.resolve("elsewhere/my.yaml").config.train.total_steps == 77


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("[1]", "is no DeepSpeed configuration; it has keys such as progressive_layer_drop, optimizer and train_batch_size"),
        ('{"vocab_size": 3}', "is no DeepSpeed configuration; it has keys such as progressive_layer_drop, optimizer and train_batch_size"),
        ('{\n"optimizer": }', "cannot be read as JSON (Expecting value: line 2 column 14 (char 15))"),
        (
            {"progressive_layer_drop": {"tetha": 0.5}},
            "progressive_layer_drop.tetha: unknown key; did you mean progressive_layer_drop.theta?",
        ),
        ({"progressive_layer_drop": True}, "progressive_layer_drop: must be an object, not True"),
        ({"progressive_layer_drop": {"enabled": "yes"}}, "progressive_layer_drop.enabled: must be true or false, not 'yes'"),
        (
            {"progressive_layer_drop": {"enabled": True, "theta": 0}},
            "progressive_layer_drop.theta: must be greater than 0, not 0",
        ),
        ('{"progressive_layer_drop": {"enabled": true, "theta": NaN}}', "progressive_layer_drop.theta: must be a finite number, not nan"),
        (
            {"optimizer": {"type": "OneBitAdam"}},
            "optimizer.type: must be Adam, AdamW or Lamb; without the block the base's optimizer stays",
        ),
        ({"optimizer": {"type": "Adam", "params": {"lr": "fast"}}}, "optimizer.params.lr: must be a valid number, not 'fast'"),
        ({"optimizer": {"type": "Adam", "params": {"betas": 0.9}}}, "optimizer.params.betas: must be two numbers, not 0.9"),
        ({"optimizer": {"type": "Adam", "params": {"betas": [0.9, 2]}}}, "optimizer.params.betas: must be less than 1, not 2"),
        ({"scheduler": {"type": ["WarmupLR"]}}, "scheduler.type: must be a valid string, not ['WarmupLR']"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "fp16: is enabled, and bf16 too; choose one"),
        ({"train_batch_size": 0}, "train_batch_size: must be at least 1, not 0"),
        ({"train_batch_size": "many"}, "train_batch_size: must be a valid integer, not 'many'"),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5000}}},
            "scheduler.params.warmup_num_steps: 5000 steps of warm-up do not fit a run of 4400; another --base may be longer",
        ),
    ],
)
def test_a_broken_file_is_one_line(content: object, line: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        imported(content, tmp_path)
    assert str(caught.value) == f"{tmp_path / 'ds.json'}: {line}"


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "no.json", tmp_path, tmp_path / "bytes.json"):
        with pytest.raises(UsageError, match=r"cannot be read as JSON \("):
            import_deepspeed(path)
    with pytest.raises(UsageError, match="unknown preset 'bert-tiny-pdl'; did you mean bert-tiny-pld"):
        imported(DROPPING, tmp_path, base="bert-tiny-pdl")

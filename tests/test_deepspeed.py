from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pldcli import presets
from pldcli.config import flatten
from pldcli.deepspeed import Imported, import_deepspeed
from pldcli.errors import UsageError

BERT_EXAMPLE = {
    "train_batch_size": 4096,
    "train_micro_batch_size_per_gpu": 16,
    "gradient_accumulation_steps": 4,
    "steps_per_print": 1000,
    "prescale_gradients": True,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "weight_decay": 0.01, "bias_correction": False}},
    "gradient_clipping": 1.0,
    "fp16": {"enabled": True, "loss_scale": 0},
    "progressive_layer_drop": {"enabled": True, "theta": 0.5, "gamma": 0.001},
}
DROPPING = {"progressive_layer_drop": {"enabled": True, "theta": 0.5, "gamma": 0.001}}


def write(content: object, folder: Path) -> Path:
    path = folder / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def imported(content: object, folder: Path, base: str = "bert-tiny-pld") -> Imported:
    """Import, and hold the text to what it promises: it loads, to the same configuration, from anywhere."""
    result = import_deepspeed(write(content, folder), base=base)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "my.yaml").write_text(result.text, encoding="utf-8")
    assert presets.resolve(str(elsewhere / "my.yaml")).config == result.config
    return result


def changes(content: object, folder: Path, base: str = "bert-tiny-pld") -> dict[str, Any]:
    """What the import changes of its base."""
    before, after = flatten(presets.resolve(base).config), flatten(imported(content, folder, base).config)
    return {key: after[key] for key in after if after[key] != before[key]}


def refused(content: object, folder: Path, base: str = "bert-tiny-pld") -> str:
    path = write(content, folder)
    with pytest.raises(UsageError) as caught:
        import_deepspeed(path, base=base)
    line = str(caught.value)
    assert "\n" not in line
    return line.removeprefix(f"{path}").removeprefix(": ")


def test_the_bert_example(tmp_path: Path) -> None:
    result = imported(BERT_EXAMPLE, tmp_path, "bert-base-pld")
    config = result.config
    assert (config.pld.theta_bar, config.pld.gamma, config.pld.schedule, config.pld.draws_per_step) == (0.5, 0.001, "exponential", 4)
    assert (config.train.global_batch_size, config.train.micro_batch_size, config.runtime.precision) == (4096, 16, "fp16")
    optim = config.optim
    assert (optim.name, optim.learning_rate, optim.beta1, optim.beta2, optim.eps) == ("adamw", 1e-3, 0.9, 0.999, 1e-8)
    assert (optim.weight_decay, optim.bias_correction, optim.max_grad_norm) == (0.01, False, 1.0)
    assert config.pld_schedule.theta(1000) == pytest.approx(0.5 + 0.5 * 0.36787944, abs=1e-8)
    assert (result.notes, result.unused) == ((), ("fp16.loss_scale", "steps_per_print", "prescale_gradients"))
    assert "extends: [bert-base-pld]" in result.text.splitlines()
    assert "  gamma: 0.001  # progressive_layer_drop.gamma" in result.text.splitlines()
    assert "  eps: 1.0e-08  # DeepSpeed's default" in result.text.splitlines()


def test_the_header_says_what_the_numbers_mean_here(tmp_path: Path) -> None:
    text = imported(DROPPING, tmp_path, "bert-base-pld").text
    words = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    for part in (
        "theta(t) = (1 - theta) exp(-gamma t) + theta",
        "half on at step 694 of 200,000",
        "`gamma: auto` is the paper's 100 / steps, 0.0005 here",
        "depth_rule paper of the base, with 8.77 of 12 blocks running on average",
        "decided by the model's code",
    ):
        assert part in words
    assert max(map(len, text.splitlines())) <= 100
    short = imported({"progressive_layer_drop": {"enabled": True, "theta": 0.5, "gamma": 1e-6}}, tmp_path).text
    assert "not half on within the 4,400 steps" in " ".join(line.lstrip("# ") for line in short.splitlines())


def test_what_the_file_leaves_out_has_deepspeeds_defaults(tmp_path: Path) -> None:
    content = {"progressive_layer_drop": {"enabled": True, "theta": 0.7}, "optimizer": {"type": "AdamW"}}
    found = {"pld.theta_bar": 0.7, "pld.gamma": 0.001, "optim.eps": 1e-8, "optim.weight_decay": 0.0, "optim.max_grad_norm": 0.0}
    assert changes(content, tmp_path) == found
    assert imported({"progressive_layer_drop": {"enabled": True}}, tmp_path).config.pld.theta_bar == 1.0


@pytest.mark.parametrize("section", [{}, {"enabled": False, "theta": 0.5, "gamma": 0.01}, {"theta": 0.5}])
def test_disabled_drops_nothing(section: dict[str, Any], tmp_path: Path) -> None:
    result = imported({"progressive_layer_drop": section, "gradient_clipping": 1.0, "gradient_accumulation_steps": 2}, tmp_path)
    assert (result.config.pld.theta_bar, result.config.pld.gamma, result.config.pld.draws_per_step) == (1.0, "auto", 1)
    assert "nothing is dropped" in result.text
    left = [f"progressive_layer_drop.{key}" for key in ("theta", "gamma") if key in section]
    assert result.unused == (*left, "gradient_accumulation_steps")


def test_the_schedule_over_time_is_deepspeeds_whatever_the_base(tmp_path: Path) -> None:
    config = imported(DROPPING, tmp_path, "bert-tiny-rand").config
    assert (config.pld.schedule, config.pld.theta_bar, config.pld.depth_rule) == ("exponential", 0.5, "uniform")


def test_lamb_with_its_block(tmp_path: Path) -> None:
    params = {"lr": "2e-3", "betas": [0.8, 0.99], "eps": 1e-7, "weight_decay": 0.1, "max_grad_norm": 0.5, "max_coeff": 0.3}
    result = imported({**DROPPING, "optimizer": {"type": "lamb", "params": params}}, tmp_path)
    optim = result.config.optim
    assert (optim.name, optim.learning_rate, optim.beta1, optim.beta2) == ("lamb", 2e-3, 0.8, 0.99)
    assert (optim.eps, optim.weight_decay, optim.max_grad_norm, optim.bias_correction) == (1e-7, 0.1, 0.5, True)
    assert result.unused == ("optimizer.params.max_coeff",)
    assert len(result.notes) == 1 and "trust ratio" in result.notes[0]


def test_clipping_outside_the_optimizer_counts_first(tmp_path: Path) -> None:
    optimizer = {"type": "Adam", "params": {"max_grad_norm": 0.5}}
    assert imported({"gradient_clipping": 2, "optimizer": optimizer}, tmp_path).config.optim.max_grad_norm == 2.0
    assert imported({"optimizer": optimizer}, tmp_path).config.optim.max_grad_norm == 0.5


def test_decay_in_the_gradient_is_noted(tmp_path: Path) -> None:
    for kind, mode, notes in (("Adam", False, 1), ("Adam", True, 0), ("AdamW", False, 0)):
        result = imported({"optimizer": {"type": kind, "params": {"adam_w_mode": mode}}}, tmp_path)
        assert len(result.notes) == notes, kind


def test_auto_leaves_it_to_the_base(tmp_path: Path) -> None:
    content = {
        **DROPPING,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "fp16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {"warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto", "warmup_type": "linear"},
        },
    }
    assert changes(content, tmp_path) == {"pld.gamma": 0.001}


@pytest.mark.parametrize(
    ("kind", "params", "found"),
    [
        ("WarmupLR", {"warmup_num_steps": 440, "warmup_max_lr": 2e-3}, ("constant", 4400, 0.1, 2e-3)),
        ("WarmupDecayLR", {"warmup_num_steps": 100, "warmup_max_lr": 2e-3, "total_num_steps": 1000}, ("linear", 1000, 0.1, 2e-3)),
        ("WarmupCosineLR", {"warmup_num_steps": 0, "total_num_steps": 1000}, ("cosine", 1000, 0.0, 5e-3)),
    ],
)
def test_warm_up_schedules(kind: str, params: dict[str, Any], found: tuple[Any, ...], tmp_path: Path) -> None:
    content = {"optimizer": {"type": "Adam", "params": {"lr": 5e-3}}, "scheduler": {"type": kind, "params": params}}
    result = imported(content, tmp_path)
    optim = result.config.optim
    assert (optim.schedule, result.config.train.total_steps, optim.warmup_fraction, optim.learning_rate) == found
    assert any("logarithm" in note for note in result.notes) == (params["warmup_num_steps"] > 0)
    straight = {**content, "scheduler": {"type": kind, "params": {**params, "warmup_type": "linear"}}}
    assert imported(straight, tmp_path).notes == ()


def test_another_schedule_is_noted(tmp_path: Path) -> None:
    result = imported({"scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 1}}, "gradient_clipping": 1.0}, tmp_path)
    assert "scheduler OneCycle is not there: the base's linear stays" in result.notes
    assert result.unused == ("scheduler.type", "scheduler.params.cycle_min_lr")
    assert result.config.optim == presets.resolve("bert-tiny-pld").config.optim


@pytest.mark.parametrize(
    ("sections", "precision"),
    [
        ({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, "bf16"),
        ({"bfloat16": {"enabled": True}}, "bf16"),
        ({"fp16": {"enabled": False}}, "fp32"),
        ({"fp16": {}}, "fp32"),
        ({}, "auto"),
    ],
)
def test_precision(sections: dict[str, Any], precision: str, tmp_path: Path) -> None:
    assert imported({**DROPPING, **sections}, tmp_path).config.runtime.precision == precision


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
def test_draws_are_those_of_the_released_model(sizes: dict[str, int], draws: int, tmp_path: Path) -> None:
    config = imported({**DROPPING, **sizes}, tmp_path, "bert-base-pld").config
    assert config.pld.draws_per_step == draws
    assert config.train.global_batch_size == sizes.get("train_batch_size", 4096)
    assert config.train.micro_batch_size == sizes.get("train_micro_batch_size_per_gpu", "auto")


def test_a_batch_without_the_number_of_gpus_is_noted(tmp_path: Path) -> None:
    result = imported({**DROPPING, "train_micro_batch_size_per_gpu": 16}, tmp_path)
    assert "train_batch_size is not set, and the number of GPUs is not known: the base's 64 sequences stay" in result.notes


def test_a_base_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("extends: [bert-tiny-pld]\ntrain.total_steps: 77\n", encoding="utf-8")
    config = imported(DROPPING, tmp_path, "own.yaml").config
    assert (config.train.total_steps, config.pld.gamma) == (77, 0.001)


OPTIMIZER_HINT = "Adam, AdamW and Lamb can be read"
NO_CONFIGURATION = "is no DeepSpeed configuration; it has keys such as progressive_layer_drop, optimizer and train_batch_size"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("[1]", NO_CONFIGURATION),
        ('{"vocab_size": 3}', NO_CONFIGURATION),
        ('{\n"optimizer": }', "2: is no JSON (Expecting value)"),
        ("", "1: is no JSON (Expecting value)"),
        ('{"fp16": {}, "fp16": {}}', "'fp16' is there twice; DeepSpeed refuses that too"),
        ({"progressive_layer_drop": {"tetha": 0.5}}, "progressive_layer_drop.tetha: unknown key; did you mean theta?"),
        ({"progressive_layer_drop": {"zzz": 0.5}}, "progressive_layer_drop.zzz: unknown key; the keys are enabled, theta and gamma"),
        ({"progressive_layer_drop": True}, "progressive_layer_drop: must be an object, not True"),
        ({"progressive_layer_drop": {"enabled": "yes"}}, "progressive_layer_drop.enabled: must be true or false, not 'yes'"),
        ({"progressive_layer_drop": {"enabled": True, "theta": "auto"}}, "progressive_layer_drop.theta: must be a number, not 'auto'"),
        (
            {"progressive_layer_drop": {"enabled": True, "theta": 0}},
            "progressive_layer_drop.theta: must be greater than 0, not 0",
        ),
        (
            {"progressive_layer_drop": {"enabled": True, "theta": 0.5, "gamma": -1}},
            "progressive_layer_drop.gamma: must be at least 0 or 'auto', not -1",
        ),
        ('{"progressive_layer_drop": {"theta": NaN}}', "progressive_layer_drop.theta: must be a finite number, not nan"),
        (
            {"optimizer": {"type": "OneBitAdam"}},
            f"optimizer.type: 'OneBitAdam' is not there; {OPTIMIZER_HINT}; without the block the base's optimizer stays",
        ),
        ({"optimizer": {"params": {"lr": 1}}}, f"optimizer.type: is missing; {OPTIMIZER_HINT}"),
        ({"optimizer": {"type": "Adam", "params": {"lr": "fast"}}}, "optimizer.params.lr: must be a valid number, not 'fast'"),
        ({"optimizer": {"type": "Adam", "params": {"lr": 0}}}, "optimizer.params.lr: must be greater than 0, not 0"),
        ({"optimizer": {"type": "Adam", "params": {"betas": 0.9}}}, "optimizer.params.betas: must be two numbers, not 0.9"),
        ({"optimizer": {"type": "Adam", "params": {"betas": [0.9, 2]}}}, "optimizer.params.betas: must be less than 1, not 2"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "fp16: is enabled, and bf16 too; choose one"),
        ({"train_batch_size": 0}, "train_batch_size: must be at least 1, not 0"),
        (
            {"train_batch_size": 100, "train_micro_batch_size_per_gpu": 16, "gradient_accumulation_steps": 3},
            "train_batch_size: 100 sequences do not divide into 16 per GPU x 3 accumulation steps",
        ),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5000}}},
            "scheduler.params.warmup_num_steps: 5000 steps of warm-up do not fit a run of 4400; another --base may be longer",
        ),
        ({"scheduler": {"type": "WarmupDecayLR"}}, "scheduler.params.total_num_steps: is missing; WarmupDecayLR needs it"),
    ],
)
def test_a_broken_file_is_one_line(content: object, line: str, tmp_path: Path) -> None:
    assert refused(content, tmp_path) in (line, f":{line}")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for path, end in ((tmp_path / "no.json", ": no such file"), (tmp_path, "")):
        with pytest.raises(UsageError) as caught:
            import_deepspeed(path)
        assert str(caught.value).startswith(str(path)) and str(caught.value).endswith(end)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        import_deepspeed(tmp_path / "bytes.json")
    assert refused(DROPPING, tmp_path, base="bert-tiny-pdl") == "unknown preset 'bert-tiny-pdl'; did you mean bert-tiny-pld?"

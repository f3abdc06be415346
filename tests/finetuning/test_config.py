from __future__ import annotations

import pytest

from pldcli.errors import UsageError
from pldcli.finetuning.config import FinetuneConfig, cells, changed
from pldcli.settings import validate


def shown(found: list[FinetuneConfig], *keys: str) -> list[tuple[object, ...]]:
    return [tuple(getattr(one, key) for key in keys) for one in found]


def test_no_change_is_one_cell_of_defaults() -> None:
    assert cells([]) == [FinetuneConfig()]


def test_the_grid_follows_its_keys_with_seeds_innermost() -> None:
    found = cells(["learning_rate=1e-5,3e-5", "batch_size=16,32"], num_seeds=2)
    assert shown(found, "learning_rate", "batch_size", "seed") == [
        (1e-5, 16, 0), (1e-5, 16, 1), (1e-5, 32, 0), (1e-5, 32, 1), (3e-5, 16, 0), (3e-5, 16, 1), (3e-5, 32, 0), (3e-5, 32, 1),
    ]  # fmt: skip
    other = cells(["batch_size=16,32", "learning_rate=1e-5,3e-5"])
    assert shown(other, "learning_rate", "batch_size") == [(1e-5, 16), (3e-5, 16), (1e-5, 32), (3e-5, 32)]


def test_equal_values_are_one_and_the_last_of_several_texts_counts() -> None:
    assert shown(cells(["learning_rate=1e-5,0.00001,1.0e-5"]), "learning_rate") == [(1e-5,)]
    assert shown(cells(["epochs=1,2", "epochs=4"]), "epochs") == [(4.0,)]


def test_a_grid_that_would_lose_values_is_refused() -> None:
    for grid, overrides in ((["epochs=1", "epochs=2"], []), (["epochs=1"], ["epochs=2"])):
        with pytest.raises(UsageError, match=r"epochs: is named twice; write one axis: epochs=1\.0,2"):
            cells(overrides, grid=grid)
    assert shown(cells(["batch_size=8,16"], grid=["epochs=1,2"]), "epochs", "batch_size") == [(1.0, 8), (1.0, 16), (2.0, 8), (2.0, 16)]
    with pytest.raises(UsageError, match="micro_batch_size: is no axis of a grid: it changes no result; name one"):
        cells(["micro_batch_size=8,16"])


def test_seeds() -> None:
    assert shown(cells(["seed=7"], num_seeds=3), "seed") == [(7,), (8,), (9,)]
    assert shown(cells(["seed=3,1,2"]), "seed") == [(3,), (1,), (2,)]
    with pytest.raises(UsageError, match="seed: a list of seeds and --seeds exclude each other; leave one of them out"):
        cells(["seed=1,2"], num_seeds=2)
    with pytest.raises(UsageError, match=f"seed: must be less than {2**63}"):
        cells([f"seed={2**63 - 1}"], num_seeds=2)
    assert len(cells(["seed=1,1"], num_seeds=2)) == 2, "one seed, however often"


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("learning_rate=1e-4", "learning_rate", 1e-4),
        ("epochs=3", "epochs", 3.0),
        ("batch_size=64", "batch_size", 64),
        ("batch_size=64.0", "batch_size", 64),
        ("dropout=auto", "dropout", "auto"),
        ("dropout=0", "dropout", 0.0),
        ("max_seq_len=auto", "max_seq_len", "auto"),
        ("max_seq_len=256", "max_seq_len", 256),
        ("patience=off", "patience", "off"),
        ("patience=2", "patience", 2),
        ("keep=last", "keep", "last"),
        ("precision=bf16", "precision", "bf16"),
        ("micro_batch_size=8", "micro_batch_size", 8),
        ("schedule=constant", "schedule", "constant"),
    ],
)
def test_values(text: str, key: str, value: object) -> None:
    [found] = cells([text])
    assert getattr(found, key) == value
    assert type(getattr(found, key)) is type(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("learning_rat=1", "learning_rat: unknown key; did you mean learning_rate?"),
        ("optim.learning_rate=1", "optim.learning_rate: unknown key; did you mean learning_rate?"),
        ("learning_rate", "'learning_rate' is not KEY=VALUE; for example train.total_steps=1000"),
        ("learning_rate=fast", "learning_rate: must be a valid number, not 'fast'"),
        ("learning_rate=1e-5,", "learning_rate: must be a valid number, not None"),
        ("learning_rate=nan", "learning_rate: must be a finite number, not nan"),
        ("learning_rate=-1", "learning_rate: "),
        ("learning_rate=[1", "learning_rate: '[1' is not a value"),
        ("batch_size=2.5", "batch_size: must be a valid integer, not 2.5"),
        ("batch_size=true", "batch_size: must be a valid integer, not True"),
        ("batch_size=16,0", "batch_size: must be at least 1, not 0"),
        ("epochs=0", "epochs: must be greater than 0, not 0"),
        ("seed=-1", "seed: must be at least 0, not -1"),
        ("seed=1e30", f"seed: must be less than {2**63}"),
        ("stride=-1", "stride: must be at least 0, not -1"),
        ("dropout=1", "dropout: must be less than 1 or 'auto', not 1"),
        ("dropout=some", "dropout: must be a valid number or 'auto', not 'some'"),
        ("max_seq_len=7", "max_seq_len: must be at least 8 or 'auto', not 7"),
        ("max_seq_len=off", "max_seq_len: must be a valid integer or 'auto', not False"),
        ("patience=0", "patience: must be at least 1 or 'off', not 0"),
        ("micro_batch_size=0", "micro_batch_size: must be at least 1 or 'auto', not 0"),
        ("evaluations_per_epoch=0", "evaluations_per_epoch: must be at least 1, not 0"),
        ("keep=first", "keep: must be 'best' or 'last', not 'first'"),
        ("precision=fp8", "precision: must be 'auto', 'bf16', 'fp16' or 'fp32', not 'fp8'"),
        ("schedule=step", "schedule: must be "),
        ("warmup_fraction=1.5", "warmup_fraction: "),
        ("beta2=1", "beta2: "),
        ("weight_decay=-0.1", "weight_decay: "),
        ("max_grad_norm=-1", "max_grad_norm: "),
        ("eps=0", "eps: "),
    ],
)
def test_mistakes_are_one_line(text: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        cells([text])
    assert str(caught.value).startswith(line), caught.value
    assert "\n" not in str(caught.value)
    assert "optim." not in str(caught.value).partition(text.partition("=")[0])[2]


def test_an_unknown_key_that_is_like_no_other() -> None:
    with pytest.raises(UsageError, match=r"zzz: unknown key; the keys are learning_rate, batch_size, .*, precision"):
        cells(["zzz=1"])


def test_a_configuration_survives_being_written_down() -> None:
    import json

    for one in cells(["patience=off,3", "dropout=auto,0.2", "learning_rate=1e-5", "micro_batch_size=4"], num_seeds=2):
        assert validate(FinetuneConfig, json.loads(json.dumps(dict(one)))) == one
    with pytest.raises(UsageError, match="learning_rat: unknown key"):
        validate(FinetuneConfig, {"learning_rat": 1})


def test_what_is_changed() -> None:
    [found] = cells(["learning_rate=1e-4", "seed=4", "epochs=3", "keep=last"])
    assert changed(found) == {"learning_rate": 1e-4, "keep": "last"}
    assert changed(FinetuneConfig(seed=9)) == {}


def test_the_optimizer_gets_all_of_it() -> None:
    config = FinetuneConfig(
        learning_rate=1e-3, schedule="cosine", warmup_fraction=0.2, weight_decay=0.3, beta2=0.9, eps=1e-5, max_grad_norm=0.5
    )
    optim = config.optim
    assert (optim.learning_rate, optim.schedule, optim.warmup_fraction, optim.weight_decay) == (1e-3, "cosine", 0.2, 0.3)
    assert (optim.beta2, optim.eps, optim.max_grad_norm) == (0.9, 1e-5, 0.5)

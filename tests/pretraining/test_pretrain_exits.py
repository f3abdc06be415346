"""Runs with losses at exits: they resume exactly, say the losses, and can be cut there."""

from pldcli.engine.validation import score_lm, stream_batches
from pldcli.presets import resolve
from pldcli.runs.checkpoint import Position
from pldcli.system.signals import StopRequest
from tests.conftest import MadeUpData, tiny_trainer
from tests.pretraining.test_pretrain import arguments, rows, run_stopped_once, weights

EXITS = ("objective.exits=[1,2]", "objective.exit_weight=0.5")


def test_a_stopped_run_with_exits_goes_on_to_the_same_bits(pld, prepared, tmp_path, monkeypatch):
    assert pld(*arguments(prepared, tmp_path / "whole", *EXITS)).code == 0
    run_stopped_once(pld, monkeypatch, arguments(prepared, tmp_path / "stopped", *EXITS), 7)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert "15% of the tokens, after 1, 2 and all of the blocks" in (tmp_path / "whole" / "README.md").read_text()
    names = ("train/loss", "train/mlm_loss", "train/mlm_after_1_loss", "train/mlm_after_2_loss")
    mine, theirs = ([[row[name] for name in names] for row in rows(tmp_path / one) if names[0] in row] for one in ("stopped", "whole"))
    assert mine == theirs and all(abs(row[0] - sum(row[1:])) < 1e-4 and row[2] < 0.6 * row[1] for row in mine)


def test_a_model_with_an_exit_is_better_when_cut_there():
    batches = list(stream_batches(MadeUpData().stream("validation"), MadeUpData.special, 32, vocab_size=64, batch_size=4))
    dense = ("model.dropout=0.0", "model.attention_init=local", "optim.learning_rate=1e-2", "train.total_steps=300")
    losses = {}
    for name, changes in {"plain": (), "exits": ("objective.exits=[1]",)}.items():
        trainer = tiny_trainer(*dense, *changes, preset="bert-tiny-preln")
        list(trainer.steps(Position(), observe=lambda step: False, stop=StopRequest()))
        losses[name] = score_lm(trainer.model, batches, trainer.precision, trainer.runtime, (True, False, False)).loss
    assert losses["exits"] < losses["plain"] - 0.05


def test_quarters_of_the_blocks():
    def exits(preset, *changes):
        return resolve(preset, ["objective.exits=auto", *changes]).config.exits

    assert exits("bert-base-pld") == (3, 6, 9)
    assert exits("modern-base-pld") == (6, 11, 16)
    assert exits("bert-tiny-pld", "model.num_hidden_layers=4") == (1, 2, 3)
    assert resolve("bert-base-pld").config.exits == ()

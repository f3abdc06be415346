"""Runs that mask spans or words, at a share that falls, with span boundaries."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from pldcli.config import Config
from pldcli.data.prepared import open_prepared
from pldcli.presets import load
from tests.pretraining.test_pretrain import arguments, rows, run_stopped_once, weights

SPANS = ("objective.masking=span", "objective.span_boundary=true", "objective.mask_probability=0.3", "objective.final_mask_probability=0.1")


def test_a_stopped_run_of_spans_goes_on_to_the_same_bits(pld, prepared, tmp_path, monkeypatch):
    assert pld(*arguments(prepared, tmp_path / "whole", *SPANS)).code == 0
    assert run_stopped_once(pld, monkeypatch, arguments(prepared, tmp_path / "stopped", *SPANS), 7) == [5, 7]
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    mine, theirs = rows(tmp_path / "stopped"), rows(tmp_path / "whole")
    names = ("step", "train/loss", "train/mlm_loss", "train/sbo_loss", "progress/tokens", "progress/executed_flops")
    assert [[row[name] for name in names] for row in mine] == [[row[name] for name in names] for row in theirs]
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "30% to 10% of the tokens by span + span boundary" in card
    assert "span-boundary head, which is left out" in card

    exported = pld("export", tmp_path / "whole" / "checkpoints" / "step-00000012", "--out", tmp_path / "model", "--data", prepared)
    assert exported.code == 0 and "left out: span-boundary head" in exported.out
    ours, written = (load_file(path / "model.safetensors") for path in (tmp_path / "whole" / "model", tmp_path / "model"))
    assert ours.keys() == written.keys()
    assert all(np.array_equal(tensor, written[name]) for name, tensor in ours.items())


def test_the_first_step_has_the_targets_of_its_share(prepared):
    """By the run's own batches: of 30 tokens of text 9 at first, 6 in the middle, 3 in the last step."""
    from pldcli.engine.runtime import Runtime, torch
    from pldcli.pretraining.assembly import build_trainer
    from tests.conftest import tiny_config

    data = open_prepared(prepared)
    config: Config = tiny_config(*SPANS, "train.total_steps=11", f"model.vocab_size={data.vocab_size}")
    trainer = build_trainer(config, data, Runtime(torch.device("cpu")))
    assert [len(trainer.batches.step(step)[0][0].target_ids) for step in (0, 5, 10)] == [8 * 9, 8 * 6, 8 * 3]
    assert trainer.objective.names == ("mlm", "sbo")
    assert config.flops.head == pytest.approx(
        config.replace(objective={"mask_probability": 0.2, "final_mask_probability": None}).flops.head
    )


@pytest.mark.parametrize("masking", ["whole-word", "span"])
def test_pairs_and_packed_documents_are_masked_by_words_too(pld, prepared, tmp_path, masking):
    more = [f"objective.masking={masking}", "train.total_steps=2", "train.log_every_steps=1"]
    for name, layout in (
        ("pairs", ["data.layout=nsp-pairs", "objective.next_sentence=true", f"objective.span_boundary={masking == 'span'}"]),
        ("documents", ["data.packing=documents"]),
    ):
        assert pld(*arguments(prepared, tmp_path / name, *more, *layout)).code == 0
        assert np.isfinite([row["train/loss"] for row in rows(tmp_path / name)]).all()
        assert load(tmp_path / name / "config.yaml").objective.masking == masking

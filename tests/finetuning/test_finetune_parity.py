"""Fine-tuning step by step beside transformers' model, torch's AdamW and a plain loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pldcli.engine.runtime import Runtime
from pldcli.finetuning.assembly import build_trainer
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.inputs import RunInputs
from pldcli.optimizers.build import learning_rate
from pldcli.runs.checkpoint import Position
from pldcli.system.signals import StopRequest
from tests.finetuning.conftest import river_rows, write_rows

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("start", ["tiny", "tiny_post", "tiny_rotary"])
def test_losses_are_those_of_a_plain_loop(start: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(start)
    train = write_rows(tmp_path / "river.jsonl", river_rows(80, 1))
    inputs = RunInputs(Experiment(str(train), str(model)))
    settings = FinetuneConfig(learning_rate=3e-3, batch_size=8, epochs=2, precision="fp32", dropout=0.0, warmup_fraction=0.2)
    trainer = build_trainer(inputs, settings, Runtime(torch.device("cpu")))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=2).train()
    head = theirs.classifier
    dense = {"tiny": "classifier.dense", "tiny_post": "bert.pooler.dense", "tiny_rotary": "head.dense"}[start]
    names = {"dense": theirs.get_submodule(dense), "output": getattr(head, "out_proj", head)}
    ours = dict(trainer.model.task_head.named_children())
    with torch.no_grad():
        for name, module in names.items():
            module.weight.copy_(ours[name].weight)
            module.bias.copy_(ours[name].bias)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in theirs.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, eps=settings.eps)
    total = trainer.schedule.total_steps
    expected = []
    for step in range(total):
        [[batch]] = trainer.batches.step(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total, settings.optim, warmup_steps=round(0.2 * total))
        mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask.long()
        loss = theirs(input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(loss.detach()))
    seen = [one.losses["loss"] for one in trainer.steps(Position(), observe=lambda step: True, stop=StopRequest())]
    assert total == 18 and expected[-1] < 0.8 * expected[0], "it learns"
    assert seen == pytest.approx(expected, rel=1e-3)
    assert seen[:6] == pytest.approx(expected[:6], rel=1e-5)

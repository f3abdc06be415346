"""What only a CUDA device can show."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pldcli.engine.runtime import launch, repeatable
from pldcli.model import StBert
from pldcli.runs.checkpoint import Position, optimizer_tensors
from pldcli.system.signals import StopRequest
from tests.conftest import tiny_config, tiny_trainer
from tests.test_model import packed, random_input

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # torch warns that its synchronization debug mode is a prototype, and of its own deprecated parts when it compiles.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("change", ["data.packing=stream", "data.packing=documents", "optim.name=muon", "optim.name=stable-adamw"])
def test_the_host_waits_for_nothing_within_steps(precision: str, change: str) -> None:
    """torch raises where an operation makes the host wait; the loop is asked for nothing before its last step."""
    with launch("cuda") as runtime:
        trainer = tiny_trainer(f"runtime.precision={precision}", "runtime.compile=off", change, runtime=runtime)
        steps = trainer.steps(Position(), observe=lambda step: step == 4, stop=StopRequest())
        next(steps)  # what is set up once may wait

        def until_the_last(step: int) -> bool:
            if step == trainer.schedule.total_steps - 1:
                torch.cuda.set_sync_debug_mode("default")
            return False

        steps = trainer.steps(Position(4), observe=until_the_last, stop=StopRequest())
        try:
            torch.cuda.set_sync_debug_mode("error")
            next(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["adamw", "muon", "stable-adamw"])
def test_restored_state_lies_where_the_optimizer_reads_it(name: str) -> None:
    with launch("cuda") as runtime:
        trainer, resumed = (tiny_trainer(f"optim.name={name}", "runtime.compile=off", runtime=runtime) for _ in range(2))
        [*_, last] = itertools.islice(trainer.steps(Position(), observe=lambda step: True, stop=StopRequest()), 3)
        state = {key: tensor.cpu() for key, tensor in optimizer_tensors(trainer.model, trainer.optimizer).items()}
        resumed.restore(trainer.model.state_dict(), state, trainer.scaler.state_dict(), where="")
        [*_, end] = resumed.steps(last.position, observe=lambda step: True, stop=StopRequest())
        assert end.position.step == resumed.schedule.total_steps
        assert math.isfinite(end.losses["loss"])


@pytest.mark.parametrize("change", ["data.packing=stream", "data.packing=documents", "optim.name=muon"])
def test_repeatable_kernels_give_the_same_bits_twice(change: str) -> None:
    ends = []
    for _ in range(2):
        with repeatable(True), launch("cuda") as runtime:
            trainer = tiny_trainer("runtime.precision=bf16", "runtime.compile=off", "model.dropout=0.1", change, runtime=runtime)
            *_, end = trainer.steps(Position(), observe=lambda step: True, stop=StopRequest())
            assert end.position.step == trainer.schedule.total_steps
            ends.append([parameter.detach().cpu() for parameter in trainer.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_compiled_steps_follow_the_plain_ones_and_compile_once() -> None:
    from torch._dynamo.utils import counters

    losses = {}
    for compile_ in ("off", "on"):
        torch.compiler.reset()
        with launch("cuda") as runtime:
            trainer = tiny_trainer("runtime.precision=fp32", f"runtime.compile={compile_}", "pld.theta_bar=0.4", runtime=runtime)
            trainer.warm_up()
            counters.clear()
            seen = list(trainer.steps(Position(), observe=lambda step: True, stop=StopRequest()))
            losses[compile_] = [observation.losses["loss"] for observation in seen]
            assert counters["stats"]["unique_graphs"] <= 1, "blocks may come first, without a gradient before them"
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-3)


def test_the_kernel_for_packed_documents_is_the_mask() -> None:
    settings = tiny_config("model.dropout=0", "model.hidden_size=64", "model.num_attention_heads=2", "model.vocab_size=64").model
    model, documents = StBert(**vars(settings)).cuda(), {name: tensor.cuda() for name, tensor in packed().items()}
    input_ids = random_input(3, 12).cuda()
    results = []
    for given in (documents, documents | {"boundaries_N": None}):
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            hidden = model(input_ids, **given)
        hidden = hidden.float() * (documents["segments_BT"] > 0)[..., None]
        hidden.square().sum().backward()
        results.append([hidden.detach(), *(parameter.grad for parameter in model.blocks.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=3e-2, atol=3e-2)

"""Two and four processes, replicas and shards: each trains as one process does."""

import functools
import hashlib
import itertools
import json
import math
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pldcli.config import RUN_CONTROL
from pldcli.engine.runtime import Runtime, launch
from pldcli.engine.validation import score_lm, stream_batches
from pldcli.errors import UsageError
from pldcli.pretraining.assembly import whole_model
from pldcli.runs import checkpoint
from pldcli.runs.checkpoint import Position
from pldcli.runs.checkpoint_parts import Part, load_whole
from pldcli.sharding import cut, is_sharded, own_parts, reshard, whole
from pldcli.system.signals import StopRequest
from tests.conftest import TINY, MadeUpData, tiny_config, tiny_trainer
from tests.engine.test_runtime import DROPPING
from tests.forks import BELOW

BATCH = ("train.global_batch_size=8", "train.micro_batch_size=2")
CASES = {
    "dense": ("pld.schedule=constant", "pld.theta_bar=1.0", "train.total_steps=10"),
    "dropping": (*DROPPING, "train.total_steps=10", "train.global_batch_size=16"),
    "long": (*DROPPING, "train.total_steps=100", "train.micro_batch_size=4"),
    "expansion": ("pld.schedule=expansion", "pld.depth_stages=[{until: 0.5, blocks: 2}]", "train.total_steps=10"),
    "compiled": (*DROPPING, "runtime.compile=on", "train.total_steps=10"),
    "exits": (*DROPPING, "objective.exits=[1,2]", "train.total_steps=10"),
    "recomputed": (*DROPPING, "runtime.checkpoint_activations=true", "train.total_steps=10"),
    "muon": (*DROPPING, "pld.draws_per_step=2", "optim.name=muon", "train.total_steps=10"),
    "lamb": (*DROPPING, "optim.name=lamb", "train.total_steps=10"),
    "modern": (
        *DROPPING,
        *("model.position_embedding=rotary", "model.feed_forward=geglu", "model.global_layers=2", "model.local_attention=8"),
        *("model.type_vocab_size=0", "model.first_attention_norm=false"),
        *("data.packing=documents", "pld.draws_per_step=2", "optim.name=muon", "train.total_steps=10"),
    ),
    "causal share": (*DROPPING, "objective.causal_share=0.5", "train.total_steps=10"),
    "prefix": (*DROPPING, "objective.kind=prefix", "train.total_steps=10"),
    "bf16": (*DROPPING, "runtime.precision=bf16", "train.total_steps=10"),
    # The last one is validated, and copied in one piece.
    "stable-adamw": (*DROPPING, "optim.name=stable-adamw", "train.total_steps=10"),
}
WITH_TWO = ("compiled", "modern", "causal share", "prefix", "bf16")
"""Tried with two processes alone: four would say the same, and take long."""
MODES = {
    "two replicas": (2, 2, "none"),
    "two shards": (2, 2, "full"),
    "four replicas": (4, 4, "none"),
    "four shards": (4, 4, "full"),
    "two by two": (4, 2, "hybrid"),
}
"""Processes, how many of them a machine has, and `runtime.sharding`."""
HALF = 5
"""Steps before the checkpoint of the Muon run."""


def trained(trainer, *, start=0, stop=None):
    """Train, and return loss and norm of each step."""
    seen = trainer.steps(Position(step=start), observe=lambda step: True, stop=StopRequest())
    rows = []
    for one in seen:
        rows.append((one.losses["loss"], one.grad_norm))
        if one.position.step == stop:
            break
    return rows


@contextmanager
def cheap_compilation():
    """Compile without generating code: what is traced, with its breaks and guards, is the same."""
    compile = torch.compile
    torch.compile = functools.partial(compile, backend="aot_eager")
    try:
        yield
    finally:
        torch.compile = compile
        torch.compiler.reset()


def weights_of(model):
    return {name: whole(tensor.detach()) for name, tensor in model.state_dict().items()}


def digest(weights):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in weights.values())).hexdigest()


def hold(trainer, step, *, part=None):
    return checkpoint.hold(
        Position(step=step),
        tiny_config(*CASES["muon"], *BATCH),
        trainer.model,
        trainer.optimizer,
        scaler={},
        guard=trainer.guard.state(),
        data_fingerprint="data",
        tokenizer_fingerprint="tokenizer",
        part=part,
    )


def restored(place, *, runtime=None):
    trainer, saved = tiny_trainer(*CASES["muon"], *BATCH, runtime=runtime), checkpoint.read(place)
    trainer.restore(saved.weights, saved.optimizer, {}, where="")
    return trainer


def one_of_several(place: str, sharding: str) -> None:
    """What each process does."""
    found = {}
    with launch("cpu", sharding=sharding) as runtime:
        for name, changes in CASES.items():
            if name in WITH_TWO and runtime.world_size > 2:
                continue
            with cheap_compilation() if name == "compiled" else nullcontext():
                trainer = tiny_trainer(*BATCH, *changes, runtime=runtime)
                assert is_sharded(trainer.model) == (sharding != "none")
                found[name] = trained(trainer), digest(weights_of(trainer.model))

        found["sent"] = sent_by(tiny_trainer(*DROPPING, *BATCH, runtime=runtime))
        found["held"] = sum(part.numel() for part in own_parts(list(trainer.model.parameters())))
        moments = [state["exp_avg"] for state in trainer.optimizer.state.values()]
        found["moments"] = sum(part.numel() for part in own_parts(moments))
        batches = list(stream_batches(MadeUpData().stream("validation"), MadeUpData.special, 32, vocab_size=64, batch_size=4))
        found["score"] = [score_lm(trainer.model, batches[:count], trainer.precision, runtime).loss for count in (1, 5)]
        assert all(whole(parameter) is not parameter for parameter in trainer.model.parameters()) == is_sharded(trainer.model)
        copy = whole_model(tiny_config(*CASES["stable-adamw"]), trainer.model, keep=runtime.is_main)
        weights = weights_of(trainer.model)
        if runtime.is_main:
            assert digest(dict(copy.state_dict())) == digest(weights) and not is_sharded(copy)
        else:
            assert (copy is None) == is_sharded(trainer.model)

        trainer = tiny_trainer(*CASES["muon"], *BATCH, runtime=runtime)
        trained(trainer, stop=HALF)
        part = Part(runtime.rank + 1, runtime.num_shards, token=7) if runtime.num_shards > 1 else None
        if runtime.rank < runtime.num_shards:
            checkpoint.write(Path(place, sharding), hold(trainer, HALF, part=part), keep=2)
        found["went on"] = trained(restored(Path(place, "one", f"step-{HALF:08d}"), runtime=runtime), start=HALF)

        if sharding != "none":
            found["overflow"] = overflown(tiny_trainer(*DROPPING, *BATCH, "runtime.precision=fp16", runtime=runtime))
        runtime.reduce_dtype = torch.bfloat16
        found["rounded"] = trained(tiny_trainer(*CASES["muon"], *BATCH, runtime=runtime))
        trainer = copy = weights = None
        Path(place, f"{runtime.rank}.json").write_text(json.dumps(found))


def overflown(trainer):
    """Train in fp16 while a gradient of the last part overflows in the third step; return scale, whether norms are finite, and weights."""
    runtime, steps = trainer.runtime, itertools.count(1)
    reduce = runtime.reduce_gradients

    def reduce_and_overflow():
        reduce()
        if next(steps) == 3 and runtime.rank % runtime.num_shards == runtime.num_shards - 1:  # replicas have the same gradients
            [part] = own_parts([trainer.model.embeddings.word.weight.grad])
            part.view(-1)[0] = float("inf")

    runtime.reduce_gradients = reduce_and_overflow
    norms = [norm for _, norm in trained(trainer, stop=6)]
    del runtime.reduce_gradients
    return trainer.scaler.get_scale(), [math.isfinite(norm) for norm in norms], digest(weights_of(trainer.model))


class Collectives(TorchDispatchMode):
    """Note what every collective operation sends: its name, and the size of its largest tensor."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
            self.calls.append((function.__name__.partition(".")[0], max(tensor.numel() for tensor in tensors)))
        return function(*args, **(kwargs or {}))


def sent_by(trainer):
    """Count, for each step, how often weights and gradients of a block travel."""
    block = sum(parameter.numel() for parameter in trainer.model.blocks[0].parameters())
    rows = []
    with Collectives() as seen:
        for step, _ in enumerate(trainer.steps(Position(), observe=lambda step: True, stop=StopRequest())):
            sizes = {"allreduce_": block // trainer.runtime.num_shards}
            counts = Counter(name for name, size in seen.calls if size == sizes.get(name, block))
            rows.append({"gates": trainer.schedule.plan(step, 0, seed=0).gates, "passes": 2 * trainer.batches.micro_steps, **counts})
            seen.calls.clear()
    return rows


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process: what it saw of each case, and a checkpoint in the middle of the Muon run."""
    place = tmp_path_factory.mktemp("several")
    plain = {name: [change for change in changes if change != "runtime.compile=on"] for name, changes in CASES.items()}
    found = {name: trained(tiny_trainer(*BATCH, *changes)) for name, changes in plain.items()}
    trainer = tiny_trainer(*CASES["muon"], *BATCH)
    trained(trainer, stop=HALF)
    checkpoint.write(place / "one", hold(trainer, HALF), keep=2)
    return place, found


@pytest.fixture(scope="module", params=MODES)
def several(request, alone, processes):
    count, local, sharding = MODES[request.param]
    place = alone[0] / request.param
    place.mkdir()
    (place / "one").symlink_to(alone[0] / "one")
    code = f"from tests.engine.test_sharding import one_of_several; one_of_several({str(place)!r}, {sharding!r})"
    processes.together(code, count, local=local)
    return MODES[request.param], place, [json.loads((place / f"{rank}.json").read_text()) for rank in range(count)]


@pytest.mark.parametrize("name", CASES)
def test_several_processes_train_as_one(several, alone, name):
    (count, *_), _, ranks = several
    if name in WITH_TWO and count > 2:
        pytest.skip("tried with two processes")
    assert all(rank[name] == ranks[0][name] for rank in ranks), "ranks differ, in what they saw or in their weights"
    together, expected = ranks[0][name][0], alone[1][name]
    assert len(together) == len(expected)
    for step, (ours, theirs) in enumerate(zip(together, expected, strict=True), 1):
        if name == "bf16":
            assert ours == pytest.approx(theirs, rel=1e-2), step
            continue
        assert ours[0] == pytest.approx(theirs[0], rel=1e-6 if step <= 10 else 1e-5), step
        assert ours[1] == pytest.approx(theirs[1], rel=1e-5 if step <= 10 else 1e-4), step


def test_a_block_that_did_not_run_is_neither_gathered_nor_reduced(several):
    (*_, sharding), _, ranks = several
    for row in ranks[0]["sent"]:
        ran = sum(row["gates"])
        assert row.get("_allgather_base_", 0) == (0 if sharding == "none" else ran * row["passes"])
        assert row.get("_reduce_scatter_base_", 0) == (0 if sharding == "none" else ran)
        assert row.get("allreduce_", 0) == (0 if sharding == "full" else ran)
    assert {sum(row["gates"]) for row in ranks[0]["sent"]} >= {0, 1, 2}


def test_each_process_holds_its_part(several, alone):
    (count, local, sharding), _, ranks = several
    total = sum(parameter.numel() for parameter in tiny_trainer(*CASES["stable-adamw"]).model.parameters())
    shards = {"none": 1, "full": count, "hybrid": local}[sharding]
    assert sum(rank["held"] for rank in ranks) == total * count // shards
    assert max(rank["held"] for rank in ranks) <= 1.05 * total / shards
    assert max(rank["moments"] for rank in ranks) <= 1.05 * total / shards


def test_validation_and_a_copy_of_a_sharded_model(several, alone):
    _, _, ranks = several
    trainer = tiny_trainer(*CASES["stable-adamw"], *BATCH)
    trained(trainer)
    batches = list(stream_batches(MadeUpData().stream("validation"), MadeUpData.special, 32, vocab_size=64, batch_size=4))
    for count, score in zip((1, 5), ranks[0]["score"], strict=True):
        one = score_lm(trainer.model, batches[:count], trainer.precision, Runtime(torch.device("cpu"))).loss
        assert score == pytest.approx(one, rel=1e-5)


def test_checkpoints_of_shards_replicas_and_one_process_are_the_same(several, alone):
    (count, local, sharding), place, ranks = several
    ours, theirs = (path / f"step-{HALF:08d}" for path in (place / sharding, alone[0] / "one"))
    checkpoint.verify(ours)
    assert [entry.name for entry in ours.parent.iterdir()] == [ours.name]
    for name in ("model", "optimizer"):
        files = sorted(ours.glob(f"{name}*"))
        assert len(files) == {"none": 1, "full": count, "hybrid": local}[sharding]
        assert max(file.stat().st_size for file in files) < 1.25 * (theirs / f"{name}.safetensors").stat().st_size / len(files)
        written, expected = load_whole(ours, name), load_file(theirs / f"{name}.safetensors")
        assert written.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.allclose(written[key], tensor, rtol=1e-3, atol=1e-5), key
    expected = [loss for loss, _ in alone[1]["muon"][HALF:]]
    assert [loss for loss, _ in trained(restored(ours), start=HALF)] == pytest.approx(expected, rel=1e-5)
    assert [loss for loss, _ in ranks[0]["went on"]] == pytest.approx(expected, rel=1e-5)


def test_an_overflow_in_one_part_is_noticed_by_all(several):
    (*_, sharding), _, ranks = several
    if sharding == "none":
        pytest.skip("replicas have the same gradients")
    scale, are_finite, _ = ranks[0]["overflow"]
    assert scale == 2.0**15 and are_finite == [True, True, False, True, True, True]
    assert all(rank["overflow"] == ranks[0]["overflow"] for rank in ranks)


def test_gradients_of_shards_may_travel_in_bf16(several, alone):
    _, _, ranks = several
    losses, expected = ([loss for loss, _ in rows] for rows in (ranks[0]["rounded"], alone[1]["muon"]))
    assert losses == pytest.approx(expected, rel=1e-2) and losses != [loss for loss, _ in ranks[0]["muon"][0]]


def test_what_is_not_split_passes_through():
    tensor = torch.ones(4)
    assert whole(tensor) is tensor and cut(tensor, torch.zeros(4)) is tensor and own_parts([tensor])[0] is tensor
    reshard(torch.nn.Linear(1, 1))
    assert "runtime.sharding" in RUN_CONTROL


def test_machines_with_unequal_numbers_of_processes(monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    what = r"runtime.sharding=hybrid: 3 processes are no multiple of the 2 of this machine; start as many on each machine"
    with pytest.raises(UsageError, match=what), launch("cpu", sharding="hybrid"):
        pass


def test_a_sharded_run_from_the_command_line(prepared, tmp_path, pld, processes):
    """Shards begin, replicas go on from the middle; what comes out is as of one process."""
    line = ["pretrain", "--preset", "bert-tiny-pld", "--data", str(prepared), *TINY, "train.total_steps=6", "checkpoint.every_steps=3"]
    alone = pld(*line, "--out", tmp_path / "one")
    assert alone.code == 0, alone.err
    middle = tmp_path / "full" / "checkpoints" / "step-00000003"
    for sharding, more in (("full", ()), ("none", ("--resume", middle))):
        process = processes.pld(*line, "--gpus", 2, f"runtime.sharding={sharding}", "--out", tmp_path / sharding, *more)
        assert process.wait() == 0, process.err
        expected, written = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", sharding))
        assert expected.keys() == written.keys()
        for name, tensor in expected.items():
            assert torch.allclose(written[name], tensor, atol=1e-5), name


def test_processes_that_stop_together_say_so_once(prepared, tmp_path, processes):
    """Also where one of them is still there when the first has ended, and is then ended by the agent."""
    line = ["pretrain", "--preset", "bert-tiny-pld", "--data", str(prepared), *TINY, "--gpus", 2, "--stop-after", "0.001s"]
    process = processes.pld(*line, "--out", tmp_path / "run", environment={BELOW: ""})  # which takes longer to begin than it may train
    assert process.wait() == 75, process.err
    assert process.err.count("time is up, nothing to save yet") == 1 and "ended by" not in process.err

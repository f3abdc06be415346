import hashlib
import itertools
import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pldcli.engine.runtime import Runtime, launch, repeatable
from pldcli.errors import DeviceError, UsageError
from pldcli.pld import Schedule
from pldcli.runs.checkpoint import Position
from pldcli.system.signals import StopRequest
from tests.conftest import TINY, tiny_trainer

DROPPING = ("pld.schedule=constant", "pld.theta_bar=0.4", "pld.depth_rule=uniform", "train.total_steps=20")
SCENARIOS = {
    "two draws": (*DROPPING, "pld.draws_per_step=2"),
    "stages and a ramp": (
        *DROPPING,
        "pld.draws_per_step=2",
        "data.length_stages=[{until: 0.4, seq_len: 8}, {until: 0.8, seq_len: 16}]",
        "train.batch_ramp=0.5",
        "train.initial_batch_size=4",
        "train.micro_batch_size=1",
    ),
    "uneven targets": (*DROPPING, "data.layout=nsp-pairs", "objective.next_sentence=true", "train.micro_batch_size=2"),
    "muon": (*DROPPING, "pld.draws_per_step=2", "optim.name=muon"),
    "stable-adamw": (*DROPPING, "pld.draws_per_step=2", "optim.name=stable-adamw"),
}


def observed(trainer, *, stop=None, every=1):
    seen = trainer.steps(Position(), observe=lambda step: step % every == 0, stop=stop or StopRequest())
    return [
        {
            "step": s.position.step,
            "losses": s.losses,
            "kept": s.kept_blocks,
            "norm": s.grad_norm,
            "tokens": s.position.tokens,
            "flops": s.position.executed_flops,
            "stop": s.stop_signal,
            "took": s.seconds_by_process,
        }
        for s in seen
    ]


def digest(model):
    return hashlib.sha256(b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())).hexdigest()


def one_of_two(place: str) -> None:
    """What each of two processes does for `test_two_processes`."""
    found = {}
    with launch("cpu") as runtime:
        for name, changes in SCENARIOS.items():
            trainer = tiny_trainer(*changes, runtime=runtime)
            found[name] = observed(trainer), digest(trainer.model)

        trainer = tiny_trainer(*DROPPING, runtime=runtime)
        unit_sizes = [sum(p.numel() for p in unit.parameters()) for unit in trainer.model.units]
        block_size, sent, rows = unit_sizes[-1], [], []
        all_reduce, begin, finish = dist.all_reduce, runtime.begin_backward, runtime.reduce_gradients

        def recorded(tensor, **named):
            sent.append(tensor.numel())
            return all_reduce(tensor, **named)

        def begin_and_count(*, is_last):
            begin(is_last=is_last)
            if is_last:
                sent.clear()

        def finish_and_look():
            early = len(sent)
            finish()
            rows.append([[block[0] is None for block in grads()], sent.count(block_size), sum(sent), early])

        def grads():
            return [[p.grad for p in block.parameters()] for block in trainer.model.blocks]

        dist.all_reduce, runtime.begin_backward, runtime.reduce_gradients = recorded, begin_and_count, finish_and_look
        observed(trainer)
        dist.all_reduce = all_reduce
        del runtime.begin_backward, runtime.reduce_gradients
        found["idle"] = rows, unit_sizes

        stop = StopRequest()
        trainer = tiny_trainer(*DROPPING, "train.micro_batch_size=1", runtime=runtime)
        forward_backward, calls = trainer.forward_backward, []

        def interrupted(*arguments):
            calls.append(None)
            if runtime.rank == 1 and len(calls) == 6:
                stop.signal_number = signal.SIGTERM
            return forward_backward(*arguments)

        trainer.forward_backward = interrupted
        found["stop"] = observed(trainer, stop=stop, every=100)

        runtime.reduce_dtype = torch.bfloat16
        found["rounded"] = observed(tiny_trainer(*SCENARIOS["two draws"], runtime=runtime))
        runtime.reduce_dtype = None
        found["asked"] = [asked_by(rank, runtime) for rank in range(2)]

        plan = Schedule.plan
        if runtime.rank == 1:
            Schedule.plan = lambda self, step, group, *, seed: plan(self, step, group, seed=seed + 1)
        try:
            observed(tiny_trainer(*DROPPING, runtime=runtime))
            found["gates"] = "not noticed"
        except UsageError as error:
            found["gates"] = str(error)
        Path(place, f"{runtime.rank}.json").write_text(json.dumps(found))


def asked_by(rank, runtime):
    """Train while one process asks for an observation before the fourth step."""
    steps = itertools.count()
    ask = (lambda: next(steps) == 3) if runtime.rank == rank else (lambda: False)
    seen = tiny_trainer(*DROPPING, runtime=runtime).steps(Position(), observe=lambda step: False, stop=StopRequest(), ask=ask)
    return [(one.position.step, one.was_asked) for one in seen]


def seen_by_two(processes, place, module):
    """Let a module's `one_of_two` run in two processes; read what each wrote."""
    processes.together(f"from {module} import one_of_two; one_of_two({str(place)!r})")
    return [json.loads((place / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def two(processes, tmp_path_factory):
    return seen_by_two(processes, tmp_path_factory.mktemp("two"), __name__)


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_train_as_one(two, name):
    alone = observed(tiny_trainer(*SCENARIOS[name]))
    assert two[0][name] == two[1][name], "ranks differ, in what they saw or in their weights"
    together, _ = two[0][name]
    assert len(together) == len(alone) == 20
    for ours, theirs in zip(together, alone, strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
        assert ours["norm"] == pytest.approx(theirs["norm"], rel=1e-4)
        for exact in ("step", "kept", "tokens", "flops", "stop"):
            assert ours[exact] == theirs[exact]
    assert len({row["kept"] for row in together}) > 2, "some blocks are run by one group only, some by none"


def test_a_block_that_no_group_ran_is_not_communicated(two):
    rows, unit_sizes = two[0]["idle"]
    assert two[1]["idle"] == [rows, unit_sizes]
    schedule = tiny_trainer(*DROPPING).schedule
    for step, (without_gradient, blocks_sent, numbers_sent, _) in enumerate(rows):
        gates = schedule.plan(step, 0, seed=0).gates
        assert without_gradient == [not gate for gate in gates]
        assert blocks_sent == sum(gates)
        assert numbers_sent == sum(unit_sizes[:-3]) + sum(gates) * unit_sizes[-1]
    assert {row[1] for row in rows} >= {0, 1, 2}


def test_gradients_are_sent_while_the_backward_pass_goes_on(two):
    rows, _ = two[0]["idle"]
    for _, blocks_sent, _, early in rows:
        assert early >= blocks_sent + 1, "all blocks that ran and the head; embeddings whose parameters are not all used wait for the end"


def test_a_signal_to_one_process_stops_both_at_the_same_step(two):
    assert two[0]["stop"] == two[1]["stop"]
    assert [(row["step"], row["stop"]) for row in two[0]["stop"]] == [(1, signal.SIGTERM)]


def test_gradients_that_travel_in_bf16_are_rounded_and_no_more(two):
    assert two[0]["rounded"] == two[1]["rounded"]
    whole, _ = two[0]["two draws"]
    losses = [row["losses"]["loss"] for row in two[0]["rounded"]]
    assert losses == pytest.approx([row["losses"]["loss"] for row in whole], rel=1e-2)
    assert losses != [row["losses"]["loss"] for row in whole]


def test_each_process_says_how_long_it_took(two):
    for row in two[0]["two draws"][0]:
        assert len(row["took"]) == 2 and all(seconds > 0 for seconds in row["took"])


def test_either_process_can_ask_for_an_observation(two):
    assert two[0]["asked"] == two[1]["asked"]
    [[first, last], other] = two[0]["asked"]
    assert first == [4, True] and last[0] > 4 and not last[1]
    assert other[0] == [4, True]


def test_different_gates_are_noticed(two):
    assert [rank["gates"] for rank in two] == [
        "gates differ between processes; run the same version of pldcli and Python in all of them"
    ] * 2


def test_torchrun_trains_as_one_process_and_only_the_main_one_writes(prepared, tmp_path, pld, processes):
    arguments = [
        "--data",
        str(prepared),
        *TINY,
        "train.total_steps=4",
        "pld.draws_per_step=2",
        "pld.theta_bar=0.4",
        "pld.schedule=constant",
    ]
    arguments += ["train.log_every_steps=1", "checkpoint.every_steps=2"]
    # Masks and their share are functions of row and step, whoever reads the row.
    arguments += ["objective.masking=span", "objective.span_boundary=true", "objective.final_mask_probability=0.4"]
    torchrun = ["--nproc-per-node", "2", "--master-port", "0", "--standalone", "-m", "pldcli"]
    words = [*torchrun, "pretrain", "--preset", "bert-tiny-pld", "--out", str(tmp_path / "two"), *arguments]
    several = processes.python(f"from torch.distributed.run import main; main({words})")
    assert several.wait() == 0, several.err
    alone = pld("pretrain", "--preset", "bert-tiny-pld", "--out", tmp_path / "one", *arguments)
    assert alone.code == 0, alone.err
    for line in ("finished 4 steps", "2 process(es)", "next: pld evaluate"):
        assert several.out.count(line) == 1, several.out
    rows = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("one", "two")]
    assert len(rows[0]) == 5
    assert rows[0][0]["train/loss"] == pytest.approx(rows[0][0]["train/mlm_loss"] + rows[0][0]["train/sbo_loss"])
    for one, both in zip(*rows, strict=True):
        assert one.keys() == both.keys()
        for name in one:
            if not name.startswith("speed/") and not name.endswith("_seconds"):
                assert both[name] == pytest.approx(one[name], rel=1e-5 if "loss" in name else 1e-3), name
    start = json.loads((tmp_path / "two" / "environment.json").read_text())["starts"]
    assert [s["processes"] for s in start] == [2]
    assert sorted(p.name for p in (tmp_path / "two" / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1


def test_one_process_is_the_plain_case(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with launch("cpu") as runtime:
        assert (runtime.device, runtime.rank, runtime.world_size, runtime.is_main) == (torch.device("cpu"), 0, 1, True)
        assert not dist.is_initialized()
        assert runtime.sum_on_host([1.0, 2.0]) == [1.0, 2.0]
        assert runtime.sum(torch.ones(2)).tolist() == [1.0, 1.0]
        runtime.wait_for_all()
    assert not Runtime(torch.device("cpu"), rank=1, world_size=2).is_main


def test_cuda_that_is_not_there(monkeypatch, pld, prepared):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"runtime.device: no CUDA device here.*pld doctor"), launch("cuda"):
        pass
    with launch("auto") as runtime:
        assert runtime.device.type == "cpu"
    outcome = pld("pretrain", "--data", prepared, "--device", "cuda", "--dry-run")
    assert outcome.code == 5 and re.fullmatch(r"error: runtime.device: no CUDA device here; .*\n", outcome.err)


def test_more_processes_than_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match=r"process 2 has no device, there are 2; use torchrun --nproc-per-node 2"), launch("auto"):
        pass


@pytest.mark.parametrize(
    "variables", [{"RANK": "first"}, {"WORLD_SIZE": "-1"}, {"LOCAL_RANK": "²"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "0"}]
)
def test_nonsense_in_the_environment(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"environment variable .*start with torchrun") as caught, launch("cpu"):
        pass
    assert caught.value.exit_code == 2


class Work:
    """A sum that is done at once."""

    def wait(self):
        pass


@pytest.mark.parametrize("early", [False, True])
def test_gradients_are_summed_by_unit(monkeypatch, early):
    """As one process of two, with the other's gradients stood in for by a doubling. `first` ran in an earlier pass as well."""
    first, second, idle, before_it = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    runtime, sent = Runtime(torch.device("cpu"), 0, 2), []

    def all_reduce(tensor, *, async_op):
        assert async_op
        sent.append(tensor.numel())
        tensor *= 2
        return Work()

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    runtime.attach(torch.nn.Identity(), [first, second, idle, before_it])
    ran = [parameter for unit in (first, second, before_it) for parameter in unit.parameters()]
    loss = second(first(torch.ones(1, 2))).sum()
    expected = torch.autograd.grad(loss + before_it(torch.ones(1, 2)).sum() + first(torch.ones(1, 2)).sum(), ran, retain_graph=True)
    (before_it(torch.ones(1, 2)).sum() + first(torch.ones(1, 2)).sum()).backward()
    if early:
        runtime.begin_backward(is_last=True)
    loss.backward()
    assert sent == ([4, 9] if early else []), "of the last pass alone, the last unit first"
    runtime.reduce_gradients()
    assert sent == ([4, 9, 6] if early else [9, 4, 6])
    for parameter, gradient in zip(ran, expected, strict=True):
        assert torch.allclose(parameter.grad, 2 * gradient)
    assert all(parameter.grad is None for parameter in idle.parameters())
    assert runtime.reduce_gradients() is None and len(sent) == 6, "the next step sends anew"


def test_repeatable_kernels_are_asked_for_while_it_lasts(monkeypatch):
    for name in ("CUBLAS_WORKSPACE_CONFIG", "TORCHINDUCTOR_DETERMINISTIC"):
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)
    with repeatable(False):
        assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with repeatable(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()  # its attention would only warn
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert (os.environ["CUBLAS_WORKSPACE_CONFIG"], os.environ["TORCHINDUCTOR_DETERMINISTIC"]) == (":4096:8", "1")
    assert not torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory


def test_an_operation_without_a_repeatable_kernel_is_one_line():
    message = r"^runtime.deterministic: .*does not have a deterministic implementation.*; leave it off"
    with pytest.raises(DeviceError, match=message) as caught, repeatable(True):
        torch.ones(4).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]), accumulate=False)
    assert "\n" not in str(caught.value)
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="another fault"), repeatable(True):
        raise RuntimeError("another fault")


def test_a_run_asks_for_repeatable_kernels(pld, prepared, tmp_path, monkeypatch):
    asked, plan = [], Schedule.plan

    def looked(self, step, group, **named):
        asked.append(torch.are_deterministic_algorithms_enabled())
        return plan(self, step, group, **named)

    monkeypatch.setattr(Schedule, "plan", looked)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setenv("TORCHINDUCTOR_DETERMINISTIC", "")
    words = ["pretrain", "--preset", "bert-tiny-pld", "--data", prepared, *TINY, "train.total_steps=2"]
    digests = []
    for flag in ("true", "false"):
        outcome = pld(*words, "--out", tmp_path / flag, f"runtime.deterministic={flag}")
        assert outcome.code == 0, outcome.err
        digests.append(hashlib.sha256((tmp_path / flag / "model" / "model.safetensors").read_bytes()).hexdigest())
        assert asked and set(asked) == {flag == "true"}
        asked.clear()
    assert len(set(digests)) == 1, "on a CPU every kernel is repeatable"

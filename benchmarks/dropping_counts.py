"""What a dropped block leaves out, counted: calls of a step, and what its gradients would send."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from dropping_steps import DRAWS, Bench, timed_step
from measuring import say
from pldcli.engine.runtime import Runtime
from reporting import head, row

__all__ = ["ask_calls", "ask_communication"]

DRAWN_STEPS = 1000


def ask_calls(bench: Bench) -> str:
    """Count what the profiler sees in each phase of a step."""
    on_cuda = bench.runtime.device.type == "cuda"
    what = "kernels, copies and fills on the device" if on_cuda else "aten operators, those that operators call included"
    lines = [
        "## Calls",
        "",
        f"Counted: {what}.",
        "",
        head(
            "draws",
            "blocks dropped",
            "forward and backward",
            "clipping",
            "optimizer",
            "a step",
            "fewer than with all blocks, per dropped block",
        ),
    ]
    for draws in DRAWS:
        dense = 0
        for dropped in bench.dropped:
            counts = count_calls(bench, draws, dropped)
            whole = sum(counts.values())
            dense = dense or whole
            fewer = f"{(dense - whole) / dropped:.1f}" if dropped else "-"
            lines.append(row(*map(str, (draws, dropped, *counts.values(), whole)), fewer))
            say(lines[-1])
    return "\n".join([*lines, "", "All groups of a step drop the same blocks here."])


def count_calls(bench: Bench, draws: int, dropped: int) -> dict[str, int]:
    counts = dict.fromkeys(("passes", "clipping", "optimizer"), 0)
    on_cuda = bench.runtime.device.type == "cuda"

    @contextmanager
    def counting(phase: str) -> Iterator[None]:
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])], acc_events=True) as profiler:
            yield
            bench.runtime.synchronize()
        events = profiler.events() or []
        if on_cuda:
            counts[phase] = sum(event.device_type.name == "CUDA" for event in events)
        else:
            counts[phase] = sum(event.name.startswith("aten::") for event in events)

    trainer, plans = bench.trainer(draws), bench.plans(draws, dropped)
    timed_step(trainer, plans)  # what is done once, such as compiling, is out of the way
    timed_step(trainer, plans, counting)
    return counts


# Communication


def ask_communication(bench: Bench) -> str:
    """Count what `Runtime.finish` would send with two processes, and weigh it by drawn gates."""
    sent = {dropped: count_sent(bench, dropped) for dropped in range(bench.num_blocks + 1)}
    lines = [
        "## Communication",
        "",
        "Calls and bytes that a step's gradients hand to all-reduce with two processes; nothing is sent, and the time is not measured.",
        "",
        head("blocks without gradient", "all-reduce calls", "MB"),
        *(row(str(dropped), str(calls), f"{size / 1e6:.2f}") for dropped, (calls, size) in sent.items() if dropped in bench.dropped),
        "",
        f"Over {DRAWN_STEPS:,} steps of gates drawn at theta {bench.config(1).pld.theta_bar:g}:",
        "",
        head("gates", "blocks dropped per draw, mean", "blocks without gradient, mean", "all-reduce calls, mean", "bytes, all blocks = 1"),
    ]
    for draws, draw in itertools.product(DRAWS, ("bernoulli", "fixed-depth")):
        schedule = bench.config(draws, pld__draw=draw, train__total_steps=str(DRAWN_STEPS)).pld_schedule
        steps = [[schedule.plan(step, group, seed=0).gates for group in range(draws)] for step in range(DRAWN_STEPS)]
        dropped = statistics.fmean(bench.num_blocks - sum(gates) for groups in steps for gates in groups)
        without = [bench.num_blocks - sum(map(any, zip(*groups, strict=True))) for groups in steps]
        calls, size = (statistics.fmean(sent[count][place] for count in without) for place in range(2))
        share = size / sent[0][1]
        lines.append(row(f"{draws} draw(s), {draw}", f"{dropped:.3f}", f"{statistics.fmean(without):.3f}", f"{calls:.2f}", f"{share:.3f}"))
    say("\n".join(lines))
    return "\n".join(lines)


def count_sent(bench: Bench, dropped: int) -> tuple[int, int]:
    """Count all-reduce calls and bytes of a step; gradients are zeros, for only their presence and size matter."""
    model = bench.trainer(1).model
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for block in model.blocks[:dropped]:
        block.zero_grad(set_to_none=True)
    sizes: list[int] = []

    def all_reduce(tensor: torch.Tensor, *given: Any, **named: Any) -> mock.Mock:
        sizes.append(tensor.numel() * tensor.element_size())
        return mock.Mock()

    replica = Runtime(bench.runtime.device, rank=0, world_size=2)
    replica.attach(model, model.units)
    with mock.patch("pldcli.engine.runtime.dist.all_reduce", all_reduce):
        replica.reduce_gradients()
    model.zero_grad(set_to_none=True)
    return len(sizes), sum(sizes)

"""The training loop. Pre-training and fine-tuning differ in objective and batches, not here."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from pldcli.data.order import key
from pldcli.engine.checkpoint import Position
from pldcli.engine.objectives import Inputs, Objective
from pldcli.engine.optim import clip_gradients, set_learning_rate
from pldcli.engine.phases import Phase, PhaseTimer
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime
from pldcli.engine.validation import count_attended, count_tokens
from pldcli.errors import DivergedError, PldError
from pldcli.flops import Flops
from pldcli.model import StBert
from pldcli.pld import Plan, Schedule
from pldcli.system.signals import StopRequest

__all__ = ["Batches", "Observation", "Trainer"]

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LEAST_LOSS_SCALE = 2.0**-10
"""It starts at 2^16 and halves whenever a gradient overflows."""


class Batches(Protocol):
    """The batches of one process, step by step: gate groups of micro-batches."""

    def step(self, step: int) -> list[list[Any]]:
        """Build the batches of a step: per gate group, per micro-step."""
        ...

    def from_step(self, first: int, stop: int) -> Iterator[list[list[Any]]]:
        """Yield the batches of steps first..stop-1."""
        ...

    def num_sequences(self, step: int) -> int:
        """Count the rows of a step, over all processes."""
        ...


BatchesT = TypeVar("BatchesT", bound=Batches)
NumberT = TypeVar("NumberT", float, Tensor)


@dataclass(frozen=True)
class Observation:
    """What can be seen of a run after a step at which the caller wanted to look."""

    position: Position
    losses: dict[str, float]
    """Of the step: each loss, and their `loss` in sum. Empty when stopped in the middle of a step."""
    learning_rate: float
    grad_norm: float
    theta: float
    kept_blocks: float
    """Mean over the step's gate groups."""
    phase_seconds: dict[Phase, float]
    """Where the time since the last observation went."""
    stop_signal: int
    """The signal on which the loop ends with this observation, or 0."""


@dataclass(frozen=True)
class _Step:
    """One step's outcome, still on the device."""

    loss_sums: Tensor
    num_targets: list[float]
    grad_norm: Tensor
    plans: list[Plan]
    group_tokens: list[float]
    group_attended: list[float]
    """The tokens that each token attends to, summed."""


class Trainer(Generic[BatchesT]):
    """Take optimizer steps.

    Args:
        model: On its device, in training mode.
        objective: Sums of losses for a batch.
        schedule: Which blocks run.
        batches: What this process reads in each step.
        learning_rate: Rate of the update after so many completed steps.
        max_grad_norm: Global norm to clip to; 0 clips nothing.
        flops: Counts executed work.
        seed: Seed of gates and dropout.
    """

    def __init__(
        self,
        model: StBert,
        *,
        objective: Objective,
        schedule: Schedule,
        optimizer: torch.optim.Optimizer,
        batches: BatchesT,
        learning_rate: Callable[[int], float],
        max_grad_norm: float,
        precision: Precision,
        runtime: Runtime,
        flops: Flops,
        seed: int,
    ) -> None:
        self.model, self.objective, self.schedule, self.optimizer = model, objective, schedule, optimizer
        self.batches, self.learning_rate, self.max_grad_norm = batches, learning_rate, max_grad_norm
        self.precision, self.runtime, self.flops, self.seed = precision, runtime, flops, seed
        self.scaler, self.phases = precision.scaler(), PhaseTimer(runtime.device)
        runtime.replicate(model.units)

    def steps(self, position: Position, *, observe: Callable[[int], bool], stop: StopRequest) -> Generator[Observation, None, None]:
        """Train to the end of the schedule.

        The clock of `train_seconds` stands still while the caller holds an observation.

        Args:
            position: Where the run is.
            observe: Whether to yield after this many completed steps; the device is waited for only then.
            stop: Looked at before every forward pass; the step under way is given up.

        Raises:
            DivergedError: A loss or a gradient norm is not finite, or fp16 skips every update.
        """
        total_steps = self.schedule.total_steps
        finite = torch.ones((), dtype=torch.bool, device=self.runtime.device)
        self.runtime.synchronize()
        self.phases.read()  # forget what came before the first step
        clock = time.perf_counter()
        batches = self.batches.from_step(position.step, total_steps)
        for step in range(position.step, total_steps):
            self.phases.begin("data")
            groups = next(batches)
            self.phases.begin("other")
            set_learning_rate(self.optimizer, self.learning_rate(step))
            outcome = self._step(step, groups, stop)
            if isinstance(outcome, int):
                self._check_alive(finite, position.step)
                position = self._advance(position, None, clock)
                self.phases.pause()
                self.runtime.synchronize()
                yield self._observation(position, None, outcome)
                return
            finite = finite & outcome.loss_sums.isfinite().all()
            if not self.scaler.is_enabled():  # loss scaling overflows by design and skips the update
                finite = finite & outcome.grad_norm.isfinite()
            position = self._advance(position, outcome, None)
            if observe(position.step) or position.step == total_steps:
                self.runtime.synchronize()
                self._check_alive(finite, position.step)
                position = self._advance(position, None, clock)
                self.phases.pause()
                self.runtime.synchronize()
                yield self._observation(position, outcome, 0)
                clock = time.perf_counter()

    def warm_up(self) -> None:
        """Run every block forward and backward once and forget the result, so that compilation is out of the way."""
        plan = self.schedule.plan(0, 0, seed=self.seed)
        batch = self.batches.step(0)[0][0]
        everything = Plan((True,) * len(plan.gates), plan.keep_probs, plan.residual_scales)
        self.forward_backward(batch, everything, self.objective.num_targets(batch))
        self.optimizer.zero_grad(set_to_none=True)
        self.runtime.synchronize()

    def forward_backward(self, host_batch: Inputs, plan: Plan, num_targets: Sequence[float]) -> Tensor:
        """Add one micro-batch's gradients; return its sums of losses.

        Args:
            host_batch: The micro-batch.
            plan: Its group's gates and residual scales.
            num_targets: Targets of each loss in the whole step, over all processes.
        """
        self.phases.begin("forward")
        batch = host_batch.to(self.runtime.device)
        scales_L = self.runtime.to_device(torch.tensor(plan.residual_scales)) if self.schedule.scales else None
        with self.precision.autocast():
            loss_sums = self.objective.loss_sums(self.model, batch, plan.gates, scales_L)
        means = [_mean(total, count) for total, count in zip(loss_sums.unbind(), num_targets, strict=True)]
        loss = torch.stack(means).sum()
        self.phases.begin("backward")
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.phases.begin("other")
        return loss_sums.detach()

    def _step(self, step: int, groups: list[list[Any]], stop: StopRequest) -> _Step | int:
        """Take one step, or return the signal that stopped it."""
        plans = [self.schedule.plan(step, group, seed=self.seed) for group in range(len(groups))]
        num_targets, group_tokens, group_attended = self._agree(groups, plans)
        loss_sums = torch.zeros(len(num_targets), device=self.runtime.device)
        micro_step = 0
        for plan, micro_batches in zip(plans, groups, strict=True):
            for batch in micro_batches:
                if signal_number := self._agreed_stop(stop):
                    self.optimizer.zero_grad(set_to_none=True)
                    return signal_number
                self.runtime.seed(int(key(self.seed, "dropout", step, micro_step, self.runtime.rank) >> 1))
                loss_sums += self.forward_backward(batch, plan, num_targets)
                micro_step += 1
        self.runtime.finish()
        self.phases.begin("optimizer")
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.model.parameters(), self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.phases.begin("other")
        return _Step(loss_sums, num_targets, grad_norm, plans, group_tokens, group_attended)

    def _agree(self, groups: list[list[Any]], plans: list[Plan]) -> tuple[list[float], list[float], list[float]]:
        """Count targets, tokens and attended tokens of the step over all processes, and check that all drew the same gates."""
        counts = [self.objective.num_targets(batch) for micro_batches in groups for batch in micro_batches]
        targets = [float(sum(column)) for column in zip(*counts, strict=True)]
        tokens = [float(sum(map(count_tokens, micro_batches))) for micro_batches in groups]
        attended = [sum(count_attended(batch, self.flops.attended_tokens) for batch in micro_batches) for micro_batches in groups]
        gates = [float(gate) for plan in plans for gate in plan.gates]
        summed = iter(self.runtime.sum_on_host([*targets, *tokens, *attended, *gates]))
        targets, tokens, attended = (list(islice(summed, len(counts))) for counts in (targets, tokens, attended))
        agreed = list(summed)
        if any(ours * self.runtime.world_size != everyone for ours, everyone in zip(gates, agreed, strict=True)):
            raise PldError("gates differ between processes", hint="run the same version of pldcli and Python in all of them")
        return targets, tokens, attended

    def _agreed_stop(self, stop: StopRequest) -> int:
        """Return the signal that any process has received, the same answer on all of them."""
        asked = self.runtime.sum_on_host([float(stop.signal_number == number) for number in _STOP_SIGNALS])
        return next((int(number) for number, count in zip(_STOP_SIGNALS, asked, strict=True) if count), 0)

    def _advance(self, position: Position, outcome: _Step | None, clock: float | None) -> Position:
        """Move a position by a step's work, or by the time since `clock`."""
        if clock is not None:
            position = replace(position, train_seconds=position.train_seconds + time.perf_counter() - clock)
        if outcome is None:
            return position
        groups = zip(outcome.plans, outcome.group_tokens, outcome.group_attended, strict=True)
        flops = [tokens * self.flops.attending_to(attended / tokens).executed(plan.kept_blocks) for plan, tokens, attended in groups]
        return replace(
            position,
            step=position.step + 1,
            sequences=position.sequences + self.batches.num_sequences(position.step),
            tokens=position.tokens + int(sum(outcome.group_tokens)),
            executed_flops=position.executed_flops + sum(flops),
        )

    def _check_alive(self, finite: Tensor, step: int) -> None:
        """Refuse to go on with numbers that are not finite, or with a loss scale at which every update is skipped."""
        overflowing = self.scaler.is_enabled() and self.scaler.get_scale() < _LEAST_LOSS_SCALE
        if overflowing or not bool(finite):
            what = "gradients overflow at every loss scale" if overflowing else "the loss or its gradient is not finite"
            raise DivergedError(
                f"training diverged: {what}",
                where=f"step {step}",
                hint="lower optim.learning_rate or raise optim.warmup_fraction; the last checkpoint holds finite numbers",
            )

    def _observation(self, position: Position, outcome: _Step | None, stop_signal: int) -> Observation:
        """Read a step's numbers off the device."""
        step = max(0, position.step - 1)
        losses, grad_norm, kept = {}, 0.0, 0.0
        if outcome is not None:
            sums = self.runtime.sum(outcome.loss_sums.double()).tolist()
            means = [_mean(total, count) for total, count in zip(sums, outcome.num_targets, strict=True)]
            losses = {"loss": sum(means)} | dict(zip(self.objective.names, means, strict=True))
            grad_norm = float(outcome.grad_norm)
            kept = sum(plan.kept_blocks for plan in outcome.plans) / len(outcome.plans)
        phases, theta = self.phases.read(), self.schedule.theta(step)
        return Observation(position, losses, self.learning_rate(step), grad_norm, theta, kept, phases, stop_signal)


def _mean(total: NumberT, num_targets: float) -> NumberT:
    """Average a sum of losses; a step without targets has a sum of zero, which stays."""
    return total / max(1.0, num_targets)

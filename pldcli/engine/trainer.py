"""The training loop. Pre-training and fine-tuning differ in objective and batches, not here."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from pldcli.curriculum import Curriculum
from pldcli.data.loader import Inputs, count_tokens
from pldcli.data.order import key
from pldcli.engine.guard import Guard, Skipped
from pldcli.engine.objectives import Objective
from pldcli.engine.phases import Phase, PhaseTimer
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime
from pldcli.engine.validation import count_attended
from pldcli.errors import CheckpointError, DivergedError, UsageError
from pldcli.flops import Flops
from pldcli.model import StBert
from pldcli.optimizers.adam import Adam
from pldcli.optimizers.build import clip_gradients, set_learning_rate
from pldcli.optimizers.growth import grow
from pldcli.pld import Plan, Schedule
from pldcli.runs import checkpoint
from pldcli.runs.checkpoint import Position
from pldcli.sharding import cut_all
from pldcli.system.signals import STOP_SIGNALS, StopRequest

__all__ = ["Batches", "Observation", "Trainer"]

_OWN_PHASES: tuple[Phase, ...] = ("data", "forward", "backward")
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
        """Count the sequences of a step, over all processes."""
        ...

    def sequences(self, first: int, stop: int) -> str:
        """Name the sequences that steps first..stop-1 read, over all processes, in words."""
        ...


BatchesT = TypeVar("BatchesT", bound=Batches)
NumberT = TypeVar("NumberT", float, Tensor)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a caller sees of a run after a step that it asked for."""

    position: Position
    losses: dict[str, float]
    """Of the step: each loss by name, and their sum as `loss`. Empty when a signal ended the loop in the middle of a step."""
    learning_rate: float
    grad_norm: float
    """Global norm before clipping."""
    theta: float
    kept_blocks: float
    """Mean over the step's gate groups."""
    phase_seconds: dict[Phase, float]
    """Where the time since the last observation went."""
    seconds_by_process: list[float]
    """Since then, what each process took for its own share: data, forward and backward, without waiting for others."""
    stop_signal: int
    """The signal that ended the loop, or 0."""
    was_asked: bool = False
    """Some process asked for this one."""


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A completed step; tensors are still on the device, counts are over all processes."""

    plans: list[Plan]
    loss_sums: Tensor
    """Over all processes."""
    num_targets: list[float]
    grad_norm: Tensor
    group_tokens: list[float]
    group_attended: list[float]
    """Per gate group, the tokens that each token attends to, summed."""
    was_asked: bool
    """Some process wants to see the run after this step."""


class _StepAbortedError(Exception):
    """A signal arrived in the middle of a step, whose work is discarded."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number


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
        curriculum: Lengths of sequences, and bases of rotary positions; None where both stay.
        max_skipped_steps: So many steps in a row, or a tenth of the run if that is less, whose update is left out end the run.
        spike_sigmas: As `Guard`'s.
        remedy: What to change where the run diverges.
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
        curriculum: Curriculum | None = None,
        max_skipped_steps: int = 10,
        spike_sigmas: float | None = None,
        remedy: str = "",
    ) -> None:
        self.model, self.objective, self.schedule, self.optimizer = model, objective, schedule, optimizer
        self.batches, self.learning_rate, self.max_grad_norm = batches, learning_rate, max_grad_norm
        self.precision, self.runtime, self.flops, self.seed, self.curriculum = precision, runtime, flops, seed, curriculum
        self.guard = Guard(sigmas=spike_sigmas, device=runtime.device)
        self.most_skipped = max(1, min(max_skipped_steps, schedule.total_steps // 10))
        self._seq_len, self._remedy = 0, remedy
        self.scaler, self.phases = precision.scaler(), PhaseTimer(runtime.device)
        runtime.attach(model, model.units)

    def restore(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], scaler: dict[str, Any], *, where: str) -> None:
        """Load the state of a checkpoint.

        There is no generator state to restore: data, gates and dropout are functions of the step.

        Args:
            weights: Of the model.
            optimizer: As `checkpoint.optimizer_tensors` names it.
            scaler: Of the loss scaler.
            where: The checkpoint, to name in an error.

        Raises:
            CheckpointError: Weights do not fit the model.
        """
        try:
            self.model.load_state_dict(cut_all(weights, self.model.state_dict()), strict=True)
        except RuntimeError as error:
            raise CheckpointError("weights do not fit the configuration", where=where) from error
        checkpoint.restore_optimizer(optimizer, self.model, self.optimizer)
        self.guard.restore(optimizer)
        if scaler:  # a run that was begun in another format has none, and torch takes none
            self.scaler.load_state_dict(scaler)

    def steps(
        self, position: Position, *, observe: Callable[[int], bool], stop: StopRequest, ask: Callable[[], bool] = lambda: False
    ) -> Generator[Observation, None, None]:
        """Train to the end of the schedule.

        The clock of `train_seconds` stands still while the caller holds an observation.

        Args:
            position: Where the run is.
            observe: Whether to yield after this many completed steps; only then the host waits for the device.
            stop: Read before every forward pass; on a signal the step under way is discarded.
            ask: Read before every step; where it is true on any process, all yield after that step.

        Raises:
            DivergedError: Too many steps in a row were left out, or fp16 skips every update.
        """
        total_steps = self.schedule.total_steps
        self.set_length(position.step)
        self.runtime.synchronize()
        self.phases.read()  # discard what was timed before the first step
        started = time.perf_counter()
        batches = self.batches.from_step(position.step, total_steps)
        for step in range(position.step, total_steps):
            self.set_length(step)
            self.phases.begin("data")
            groups = next(batches)
            self.phases.begin("other")
            if growth := self.schedule.growth_at(step):
                grow(self.model, self.optimizer, growth)
            if growth or self._begins_length(step):
                self.guard.forget()
            set_learning_rate(self.optimizer, self.learning_rate(step))
            try:
                done = self._step(step, groups, stop, asks=ask())
            except _StepAbortedError as aborted:
                yield self._observe(position, started, stop_signal=aborted.signal_number)
                return
            position = self._advance(position, done)
            if observe(position.step) or done.was_asked or position.step == total_steps:
                seen = self._observe(position, started, done)
                position = seen.position
                yield seen
                started = time.perf_counter()

    def set_length(self, step: int) -> None:
        """Make the model ready for sequences as long as those of a step."""
        if self.curriculum is None:
            return
        stretch = self.curriculum.at(step)
        self.model.global_rope_theta = stretch.rope_theta
        if self._seq_len and self._seq_len != stretch.seq_len:
            torch.compiler.reset()  # compile for this length alone: beside another one, torch would compile for any
        self._seq_len = stretch.seq_len

    def _begins_length(self, step: int) -> bool:
        """Return whether sequences have another length from this step on."""
        return self.curriculum is not None and step > 0 and self.curriculum.at(step - 1).seq_len != self.curriculum.at(step).seq_len

    def warm_up(self, step: int = 0) -> None:
        """Run every block forward and backward once and discard the gradients, so that compilation is over before the first step.

        Args:
            step: The first step that will be taken.
        """
        self.set_length(step)
        plan = self.schedule.plan(step, 0, seed=self.seed)
        batch = self.batches.step(step)[0][0]
        everything = Plan((True,) * len(plan.gates), plan.keep_probs, plan.residual_scales)
        self.forward_backward(batch, everything, self.objective.num_targets(batch))
        self.optimizer.zero_grad(set_to_none=True)
        self.runtime.synchronize()

    def forward_backward(self, host_batch: Inputs, plan: Plan, num_targets: Sequence[float]) -> Tensor:
        """Add one micro-batch's gradients; return its sums of losses.

        Args:
            host_batch: The micro-batch.
            plan: Gates and residual scales of its gate group.
            num_targets: Targets of each loss in the whole step, over all processes.
        """
        self.phases.begin("forward")
        batch = host_batch.to(self.runtime.device)
        # A tensor, since a compiled block would be compiled anew for every number; None where no scale of the run differs from 1.
        scales_L = self.runtime.to_device(torch.tensor(plan.residual_scales)) if self.schedule.scales else None
        with self.precision.autocast():
            # Gates are applied in StBert.forward: a block whose gate is off is not called, and its gradients stay None.
            loss_sums = self.objective.loss_sums(self.model, batch, plan.gates, scales_L)
        # Divided by the targets of the whole step, not of this micro-batch: accumulation and further processes change nothing.
        means = [_mean(total, count) for total, count in zip(loss_sums.unbind(), num_targets, strict=True)]
        loss = torch.stack(means).sum() * self.runtime.loss_factor
        self.phases.begin("backward")
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.phases.begin("other")
        return loss_sums.detach()

    def _step(self, step: int, groups: list[list[Any]], stop: StopRequest, *, asks: bool) -> _Step:
        """Take one step: draw gates, accumulate gradients, reduce, clip, update.

        Raises:
            _StepAbortedError: A signal arrived.
        """
        # A pure function of (seed, step, group): all processes draw the same gates without communication.
        plans = [self.schedule.plan(step, group, seed=self.seed) for group in range(len(groups))]
        num_targets, group_tokens, group_attended, was_asked = self._agree(groups, plans, asks=asks)
        loss_sums = torch.zeros(len(num_targets), device=self.runtime.device)
        micro_steps = [(plan, batch) for plan, batches in zip(plans, groups, strict=True) for batch in batches]
        for micro_step, (plan, batch) in enumerate(micro_steps):
            if signal_number := self.agreed_stop(stop):
                self.optimizer.zero_grad(set_to_none=True)
                raise _StepAbortedError(signal_number)
            # Dropout is a function of the position as well, so that a resumed run draws the same masks without a saved state.
            self.runtime.seed(int(key(self.seed, "dropout", step, micro_step, self.runtime.rank) >> 1))
            self.runtime.begin_backward(is_last=micro_step == len(micro_steps) - 1)
            loss_sums += self.forward_backward(batch, plan, num_targets)
        self.runtime.reduce_gradients()  # once per step, and only the units of the model that ran in some gate group
        self.phases.begin("optimizer")
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.model.parameters(), self.max_grad_norm)
        loss_sums = self.runtime.sum(loss_sums.double())
        means = [_mean(total, count) for total, count in zip(loss_sums.unbind(), num_targets, strict=True)]
        if self.scaler.is_enabled():
            self.guard.watch_overflow(step, grad_norm)
        self._update(self.guard.judge(step, torch.stack(means).sum(), grad_norm, may_overflow=self.scaler.is_enabled()))
        # None, not zero: a block that no group runs in the next step then has no gradient, and the optimizer leaves it alone.
        self.optimizer.zero_grad(set_to_none=True)
        self.phases.begin("other")
        return _Step(
            plans=plans,
            loss_sums=loss_sums,
            num_targets=num_targets,
            grad_norm=grad_norm,
            group_tokens=group_tokens,
            group_attended=group_attended,
            was_asked=was_asked,
        )

    def _update(self, is_left_out: Tensor) -> None:
        """Apply an update or, where a 0-d tensor says so, leave weights and optimizer as they are."""
        if self.scaler.is_enabled():
            if self.guard.sigmas is None or not bool(is_left_out):
                self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self.optimizer.defaults.get("fused") or (isinstance(self.optimizer, Adam) and self.runtime.device.type != "cpu"):
            # The optimizer looks itself, as loss scalers make it: the host does not wait.
            self.optimizer.found_inf = is_left_out.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bool(is_left_out):
            self.optimizer.step()

    def _agree(self, groups: list[list[Any]], plans: list[Plan], *, asks: bool) -> tuple[list[float], list[float], list[float], bool]:
        """Count targets, tokens and attended tokens of the step over all processes, and check that all drew the same gates.

        Returns:
            The counts, and whether any process asks for an observation.
        """
        counts = [self.objective.num_targets(batch) for micro_batches in groups for batch in micro_batches]
        targets = [float(sum(column)) for column in zip(*counts, strict=True)]
        tokens = [float(sum(map(count_tokens, micro_batches))) for micro_batches in groups]
        attended = [sum(count_attended(batch, self.flops.attended_tokens) for batch in micro_batches) for micro_batches in groups]
        gates = [float(gate) for plan in plans for gate in plan.gates]
        summed = iter(self.runtime.sum_on_host([*targets, *tokens, *attended, float(asks), *gates]))
        targets, tokens, attended = (list(islice(summed, len(counts))) for counts in (targets, tokens, attended))
        was_asked = next(summed) > 0
        # With other gates each process would wait for a reduction that the others never start, or sum gradients of other blocks.
        if any(ours * self.runtime.world_size != everyone for ours, everyone in zip(gates, summed, strict=True)):
            raise UsageError("gates differ between processes", hint="run the same version of pldcli and Python in all of them")
        return targets, tokens, attended, was_asked

    def agreed_stop(self, stop: StopRequest) -> int:
        """Return the signal that any process has received, or 0: the same on all of them, since a lone one would wait for the others."""
        asked = self.runtime.sum_on_host([float(stop.signal_number == number) for number in STOP_SIGNALS])
        return next((int(number) for number, count in zip(STOP_SIGNALS, asked, strict=True) if count), 0)

    def _advance(self, position: Position, done: _Step) -> Position:
        """Add a step's work to a position."""
        groups = zip(done.plans, done.group_tokens, done.group_attended, strict=True)
        flops = [tokens * self.flops.attending_to(attended / tokens).executed(plan.kept_blocks) for plan, tokens, attended in groups]
        return replace(
            position,
            step=position.step + 1,
            sequences=position.sequences + self.batches.num_sequences(position.step),
            tokens=position.tokens + int(sum(done.group_tokens)),
            executed_flops=position.executed_flops + sum(flops),
        )

    def _observe(self, position: Position, started: float, done: _Step | None = None, *, stop_signal: int = 0) -> Observation:
        """Wait for the device, stop the clock, and read the numbers of the last step.

        Raises:
            DivergedError: Too many steps in a row were left out since the last observation.
        """
        self.runtime.synchronize()
        skipped = self.guard.take_skipped()
        self._check_health(skipped, position.step)
        position = replace(
            position,
            train_seconds=position.train_seconds + time.perf_counter() - started,
            skipped_steps=position.skipped_steps + skipped.steps,
        )
        self.phases.pause()
        self.runtime.synchronize()  # again: on CUDA the pause is an event, which has to be over before it is read
        phase_seconds = self.phases.read()
        step = max(0, position.step - 1)
        losses, grad_norm, kept = {}, 0.0, 0.0
        if done is not None:
            sums = done.loss_sums.tolist()
            means = [_mean(total, count) for total, count in zip(sums, done.num_targets, strict=True)]
            counted = zip(self.objective.names, means, done.num_targets, strict=True)
            # A step may have targets of one kind only; a loss of 0 of the other would be a lie.
            losses = {"loss": sum(means)} | {name: mean for name, mean, count in counted if count or not any(done.num_targets)}
            grad_norm = float(done.grad_norm)
            kept = sum(plan.kept_blocks for plan in done.plans) / len(done.plans)
        return Observation(
            position=position,
            losses=losses,
            learning_rate=self.learning_rate(step),
            grad_norm=grad_norm,
            theta=self.schedule.theta(step),
            kept_blocks=kept,
            phase_seconds=phase_seconds,
            seconds_by_process=self.runtime.gather_on_host(sum(phase_seconds[phase] for phase in _OWN_PHASES)),
            stop_signal=stop_signal,
            was_asked=done is not None and done.was_asked,
        )

    def _check_health(self, skipped: Skipped, step: int) -> None:
        """Raise DivergedError where too many steps were left out in a row, or at a loss scale so low that every update has been."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < _LEAST_LOSS_SCALE:
            what, (first, last) = "gradients overflow at every loss scale", self.guard.last_overflows()
        elif skipped.longest >= self.most_skipped:
            first, last = skipped.first_step, skipped.first_step + skipped.longest - 1
            what = "the loss or its gradient is not finite" + ("" if self.guard.sigmas is None else ", or far above those before")
        else:
            return
        steps = f"steps {first} to {last}" if last > first else f"step {first}"
        where = f"{steps} ({self.batches.sequences(first, last + 1)})"
        error = DivergedError(f"training diverged: {what}", where=where, hint=self._remedy)
        error.last_step = skipped.first_step + skipped.longest - 1 if skipped.longest else step - 1
        raise error


def _mean(total: NumberT, num_targets: float) -> NumberT:
    """Average a sum of losses; a step without targets has a sum of zero, which stays."""
    return total / max(1.0, num_targets)

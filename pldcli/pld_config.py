"""Which blocks run when: its section of the configuration."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict, model_validator

from pldcli.choices import Norm
from pldcli.curriculum import check_ends
from pldcli.errors import UsageError
from pldcli.expansion import DepthStage, Expansion, StageBlocks
from pldcli.pld import DepthRule, Draw, Dropping, GrowthState, NewBlocks, ResidualScale, Schedule, TimeSchedule
from pldcli.settings import AS_NUMBER, Count, Fraction, Natural, NonNegative, Settings, Share

__all__ = ["DepthStageConfig", "PldConfig"]


class DepthStageConfig(Settings):
    """A part of a run in which fewer blocks run than at its end."""

    until: Annotated[float, Field(gt=0), AS_NUMBER]
    """Where the stage ends, as a fraction of the run."""
    blocks: Count
    """How many run; more than in the stage before."""


class PldConfig(Settings):
    """Progressive layer dropping, off at theta_bar = 1, or expansion: few blocks first, all of them later."""

    schedule: TimeSchedule | Literal["expansion"] = "exponential"
    """How theta moves: `exponential` (the paper), `constant` ("Rand"), `linear`, `growing` (rises from theta_bar); or `expansion`."""
    theta_bar: Fraction = 1.0
    """The lowest keep ratio of the deepest block; 0.5 in the paper, 0.5 to 0.9 advised, 1 drops nothing. Not used by `expansion`."""
    gamma: NonNegative | Literal["auto"] = "auto"
    """Speed of the exponential schedule in 1/steps; `auto` is the paper's 100 / total_steps."""
    depth_rule: DepthRule = "paper"
    """Keep probability of block i of L (not `expansion`): `paper` 1 - i/L (1 - theta), `algorithm1` 1 - (i-1)/L (1 - theta), `uniform`."""
    draw: Draw = "bernoulli"
    """`bernoulli`: every block on its own. `fixed-depth`: the number kept is the floor or ceiling of its mean. Not used by `expansion`."""
    draws_per_step: Count = 1
    """Gate groups: equal slices of the global batch, each with its own draw. The released code drew 4 per step."""
    recovery_fraction: Share = 0.0
    """The last part of the run, as a fraction, in which every block runs, whatever the schedule."""
    keep_first: Natural = 0
    """Blocks at the input that always run; of an expansion in `random` stages only."""
    keep_last: Natural = 0
    """Blocks at the output that always run; of an expansion in `random` stages only."""
    residual: ResidualScale = "sublayer"
    """What 1 / keep probability multiplies in training: `sublayer` outputs (the paper), a `block`'s whole update (unbiased), or `none`."""
    depth_stages: Annotated[tuple[DepthStageConfig, ...], Strict(False)] = (DepthStageConfig(until=0.8, blocks=2),)
    """Used by `expansion` only: how many blocks run, by part of the run: `[{until: 0.5, blocks: 2}, {until: 0.8, blocks: 4}]`."""
    stage_blocks: StageBlocks = "spread"
    """Used by `expansion` only: the `first`, the `last`, evenly `spread` ones with both ends, or others in each draw: `random` (RaPTr)."""
    new_blocks: NewBlocks = "initialised"
    """Used by `expansion` only: new blocks have their `initialised` weights, are `copied` from the nearest, or begin with `zero-output`."""
    growth_state: GrowthState = "kept"
    """Used by `expansion` only: moments of the others are `kept` when blocks are added, `copied` to new blocks too, or begin `fresh`."""

    @model_validator(mode="after")
    def _check_expansion(self) -> Self:
        if self.schedule != "expansion":
            return self
        check_ends([stage.until for stage in self.depth_stages], key="pld.depth_stages", rest="after the last one all blocks run")
        for number, (before, blocks) in enumerate(pairwise((0, *(stage.blocks for stage in self.depth_stages)))):
            if blocks <= before:
                what = f"{blocks} blocks are not more than the {before} of the stage before"
                raise UsageError(what, where=f"pld.depth_stages[{number}].blocks", hint="a run may only grow")
        if not self.depth_stages:
            raise UsageError("an expansion without a stage", where="pld.depth_stages", hint="use `[{until: 0.8, blocks: 2}]`")
        if self.recovery_fraction:
            what = "an expansion ends at full depth anyway"
            raise UsageError(what, where="pld.recovery_fraction", hint="say how long with pld.depth_stages")
        for key, usual in (("new_blocks", "initialised"), ("growth_state", "kept")):
            if self.stage_blocks == "random" and getattr(self, key) != usual:
                what = f"no block is new after stages of random ones, so it cannot be {getattr(self, key)}"
                raise UsageError(what, where=f"pld.{key}", hint=f"use pld.{key}={usual}, or other pld.stage_blocks")
        if self.growth_state == "copied" and self.new_blocks != "copied":
            what = "moments are copied with the weights that they belong to"
            raise UsageError(what, where="pld.growth_state", hint="add pld.new_blocks=copied")
        return self

    def check_blocks(self, num_blocks: int, *, norm: Norm, first_attention_norm: bool) -> None:
        """Check that this fits a model.

        Args:
            num_blocks: Of the model.
            norm: Where its blocks have their norms.
            first_attention_norm: Whether its first block has a norm before its attention.

        Raises:
            UsageError: It does not.
        """
        always = self.keep_first + self.keep_last
        if always > num_blocks:
            what = f"{always} blocks at both ends are more than model.num_hidden_layers {num_blocks}"
            raise UsageError(what, where="pld.keep_first", hint="keep fewer")
        if self.schedule != "expansion":
            return
        for number, stage in enumerate(self.depth_stages):
            if stage.blocks > num_blocks:
                what = f"{stage.blocks} blocks are more than model.num_hidden_layers {num_blocks}"
                raise UsageError(what, where=f"pld.depth_stages[{number}].blocks", hint="use fewer")
        if self.stage_blocks == "random" and always > self.depth_stages[0].blocks:
            what = f"{always} blocks at both ends are more than run in the first stage"
            raise UsageError(what, where="pld.keep_first", hint="keep fewer")
        if self.stage_blocks == "last" and not first_attention_norm:
            what = "the first block, which has no norm before its attention, must be among those that run"
            raise UsageError(what, where="pld.stage_blocks", hint="use spread or first")
        if self.new_blocks == "zero-output" and norm == "post":
            what = "Post-LN blocks normalise what passes through them, so they change it even where they add nothing"
            raise UsageError(what, where="pld.new_blocks", hint="use initialised or copied, or model.norm=pre")

    def build(self, *, num_blocks: int, total_steps: int) -> Schedule:
        """Build the schedule of a run."""
        shared: dict[str, Any] = {
            "num_blocks": num_blocks,
            "total_steps": total_steps,
            "residual": self.residual,
            "keep_first": self.keep_first,
            "keep_last": self.keep_last,
        }
        if self.schedule == "expansion":
            return Expansion(
                **shared,
                stages=tuple(DepthStage(stage.until, stage.blocks) for stage in self.depth_stages),
                which=self.stage_blocks,
                new_blocks=self.new_blocks,
                growth_state=self.growth_state,
            )
        return Dropping(
            **shared,
            time=self.schedule,
            theta_bar=self.theta_bar,
            gamma=self.gamma,
            depth_rule=self.depth_rule,
            draw=self.draw,
            recovery_fraction=self.recovery_fraction,
        )

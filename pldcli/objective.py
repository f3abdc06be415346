"""What a model learns from: its section of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from pldcli.choices import LmKind, MaskingUnit
from pldcli.errors import UsageError
from pldcli.settings import AS_NUMBER, Positive, Settings, Share, Whole

__all__ = ["ObjectiveConfig"]

_FEWEST_BLOCKS_OF_AUTO = 4


class ObjectiveConfig(Settings):
    """What the model learns from."""

    mask_probability: Annotated[float, Field(gt=0, lt=1), AS_NUMBER] = 0.15
    """Share of the maskable tokens of a sequence that are targets."""
    final_mask_probability: Annotated[float, Field(gt=0, lt=1), AS_NUMBER] | None = None
    """The share at the last step, to which it moves linearly from `mask_probability` (published: 0.3 to 0.15); null: it stays."""
    masking: MaskingUnit = "token"
    """What is masked together: a `token`, a `whole-word`, or a `span` of 1 to 10 words (SpanBERT: geometric, mean 3.8)."""
    span_boundary: bool = False
    """Add SpanBERT's head and loss, which predict a span from the two tokens around it; needs objective.masking=span."""
    next_sentence: bool = False
    """Add BERT's next-sentence head and loss; needs data.layout=nsp-pairs."""
    kind: LmKind = "masked"
    """`masked` LM (BERT), `causal` LM (GPT-2), or `prefix` (UniLM): both, and next tokens behind a prefix, a third of the steps each."""
    causal_share: Share = 0.0
    """The share of a masked LM's steps that are causal LM instead, through the same blocks and head; in GPT-BERT about 0.06."""
    exits: Literal["auto"] | Annotated[tuple[Whole, ...], Strict(False)] = ()
    """Add the loss after so many blocks, to cut the model there: a list, or `auto` for a quarter, half and three quarters of them."""
    exit_weight: Positive = 1.0
    """What the loss of each exit counts, beside 1 for that of the whole model."""
    sampled_softmax: Annotated[Whole, Field(gt=1)] | None = None
    """Predict over so many entries of the vocabulary in training, drawn anew in each micro-batch; must exceed its targets; null: all."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.causal_share and self.kind != "masked":
            known = "every step" if self.kind == "causal" else "a third of the steps"
            raise UsageError(f"with kind={self.kind} {known} is causal", where="objective.causal_share", hint="leave it out")
        if self.next_sentence and "clm" in self.token_losses:
            what = "reads whole pairs of texts, which no token sees under causal attention"
            raise UsageError(what, where="objective.next_sentence", hint="leave it out, or use kind=masked without a causal_share")
        if self.span_boundary and "clm" in self.token_losses:
            what = "needs masked spans in every step"
            raise UsageError(what, where="objective.span_boundary", hint="leave it out, or use kind=masked without a causal_share")
        return self

    @property
    def is_causal(self) -> bool:
        """Whether the model that comes of it reads from left to right only."""
        return self.kind == "causal"

    @property
    def token_losses(self) -> tuple[str, ...]:
        """Name the losses of tokens that occur in the run: of masked ones (`mlm`) and of next ones (`clm`)."""
        if self.kind == "causal":
            return ("clm",)
        return ("mlm", "clm") if self.kind == "prefix" or self.causal_share else ("mlm",)

    def exits_of(self, num_blocks: int) -> tuple[int, ...]:
        """Return after how many blocks of a model there is a loss, beside that at its end; ascending.

        Raises:
            UsageError: It has no such place.
        """
        if self.exits == "auto":
            if num_blocks < _FEWEST_BLOCKS_OF_AUTO:
                what = f"auto needs {_FEWEST_BLOCKS_OF_AUTO} blocks, not {num_blocks}"
                raise UsageError(what, where="objective.exits", hint="list numbers of blocks instead")
            return tuple(round(num_blocks * quarters / 4) for quarters in (1, 2, 3))
        if len(set(self.exits) & set(range(1, num_blocks))) < len(self.exits):
            what = f"must be different numbers of blocks, from 1 to {num_blocks - 1}, not {list(self.exits)}"
            raise UsageError(what, where="objective.exits", hint="the loss at the end is there anyway")
        return tuple(sorted(self.exits))

    def over_steps(self, *, masked: float, causal: float, prefix: float) -> float:
        """Average over the steps of a run what differs between its kinds of steps."""
        if self.kind == "masked":
            return (1.0 - self.causal_share) * masked + self.causal_share * causal
        return causal if self.kind == "causal" else (masked + causal + prefix) / 3

    def attended_tokens(self, visible: float) -> float:
        """Average over a run how many tokens a token attends to, where `visible` is their number when it sees all of its text."""
        return self.over_steps(masked=visible, causal=(visible + 1) / 2, prefix=2 * visible / 3)

    @model_validator(mode="after")
    def _check_span_boundary(self) -> Self:
        if self.span_boundary and self.masking != "span":
            raise UsageError("needs masked spans", where="objective.span_boundary", hint="add objective.masking=span")
        return self

    @property
    def mask_probabilities(self) -> tuple[float, float]:
        """Return the shares of the first and of the last step."""
        final = self.final_mask_probability
        return self.mask_probability, self.mask_probability if final is None else final

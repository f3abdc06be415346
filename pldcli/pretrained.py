"""A trained encoder in memory, wherever it came from: settings, weights under our names, tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pldcli.config import ModelConfig
from pldcli.data.tokenizer import Tokenizer
from pldcli.errors import CheckpointError
from pldcli.model import StBert, TaskHead

__all__ = ["Pretrained"]


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What a run, a checkpoint or a Hugging Face directory holds."""

    where: str
    """The directory, for messages."""
    settings: ModelConfig
    weights: dict[str, Tensor]
    """Of the encoder and of the heads that are there, float32."""
    seq_len: int
    """The length that it was trained at where the directory says so, in tokens."""
    tokenizer: Tokenizer
    task: dict[str, Any] | None = None
    """What fine-tuning wrote down of its task."""
    labels: tuple[str, ...] = ()
    """Names of the outputs of its task head, where it has one that names them."""
    without_masked_lm: str = ""
    """Why its masked-LM head cannot be used, or empty."""
    from_scratch: bool = False
    """Nothing is trained: every weight begins at random, from the seed that the model is built with."""

    def untrained(self) -> Pretrained:
        """Keep the shape and the tokenizer, forget the weights."""
        return replace(self, weights={}, from_scratch=True)

    def masked_lm(
        self,
        *,
        next_sentence: bool = False,
        span_boundary: bool = False,
        fresh_head: bool = False,
        dropout: float | None = None,
        seed: int = 0,
    ) -> StBert:
        """Build the model with its masked-LM head.

        Args:
            next_sentence: With a next-sentence head too; fresh where there is none.
            span_boundary: With a span-boundary head too; fresh where there is none.
            fresh_head: Begin with fresh heads where there are none, instead of refusing.
            dropout: Everywhere; None for the checkpoint's own.
            seed: Of what is fresh.

        Raises:
            CheckpointError: There is no such head, or weights do not fit.
        """
        if self.without_masked_lm and not fresh_head:
            raise CheckpointError(self.without_masked_lm, where=self.where, hint="give a model that was saved with its pre-training head")
        model = StBert(**self._with_dropout(dropout), next_sentence=next_sentence, span_boundary=span_boundary, seed=seed)
        _load(model, self.weights, self.where, may_be_fresh=self._fresh_or("mlm_head.", "nsp_head.", "sbo_head."))
        return model

    def with_head(self, head: TaskHead, *, seed: int = 0, dropout: float | None = None, trained: bool = False) -> StBert:
        """Build the encoder with a task's head on it, without the pre-training heads.

        A fresh head draws its weights from `seed`; where a BERT checkpoint has a pooler, that begins the head's dense layer.

        Args:
            head: The head.
            seed: Of a fresh head.
            dropout: Everywhere; None for the checkpoint's own.
            trained: The head's weights are part of the checkpoint too.

        Raises:
            CheckpointError: Weights do not fit, or the trained head is missing.
        """
        model = StBert(**self._with_dropout(dropout), masked_lm=False, task_head=head, seed=seed)
        if trained:
            _load(model, self.weights, self.where)
            return model
        weights = {name: tensor for name, tensor in self.weights.items() if not name.startswith("task_head.")}
        if self.settings.norm == "post" and head.kind == "sequence":
            weights |= {name.replace("nsp_head.pooler", "task_head.dense"): t for name, t in weights.items() if "nsp_head.pooler" in name}
        _load(model, weights, self.where, may_be_fresh=self._fresh_or("task_head."))
        return model

    def _with_dropout(self, dropout: float | None) -> dict[str, Any]:
        return dict(self.settings) | ({} if dropout is None else {"dropout": dropout})

    def _fresh_or(self, *prefixes: str) -> tuple[str, ...]:
        return ("",) if self.from_scratch else prefixes


def _load(model: StBert, weights: dict[str, Tensor], where: str, *, may_be_fresh: tuple[str, ...] = ()) -> None:
    """Load what the model has a place for; only parameters under the prefixes named may keep their initial values."""
    state = model.state_dict()
    for name, tensor in state.items():
        if name not in weights:
            if name.startswith(may_be_fresh):
                continue
            head = name.startswith("task_head.")
            what, hint = ("has no head for a task", "fine-tune it first with `pld finetune`") if head else (f"has no weight {name!r}", "")
            raise CheckpointError(what, where=where, hint=hint)
        if weights[name].shape != tensor.shape:
            shapes = f"{list(weights[name].shape)} where {list(tensor.shape)} is needed"
            raise CheckpointError(f"weights do not fit its configuration ({name}: {shapes})", where=where)
    model.load_state_dict({name: weights.get(name, tensor) for name, tensor in state.items()}, strict=True)

"""A trained encoder in memory, wherever it came from: settings, weights under our names, tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from pldcli.choices import Pooling
from pldcli.config import ModelConfig
from pldcli.errors import CheckpointError
from pldcli.model import StBert, TaskHead
from pldcli.tokenization.tokenizer import Tokenizer

__all__ = ["Pretrained", "global_layers_of", "usual_pooling"]


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
    head_kind: Literal["sequence", "token"] | None = None
    """What its task head has outputs for; None where it has no such head."""
    labels: tuple[str, ...] = ()
    """Names of the outputs of its task head, where it has one that names them."""
    multi_label: bool = False
    """Any number of its task head's labels may hold."""
    causal: bool = False
    """It was trained to read from left to right only, and predicts the next token."""
    without_masked_lm: str = ""
    """Why its masked-LM head cannot be used, or empty."""
    pooling: Pooling | None = None
    """How the head of a rotary model's sequences reads their tokens; None for `usual_pooling`."""
    from_scratch: bool = False
    """Nothing is trained: every weight begins at random, from the seed that the model is built with."""
    notes: tuple[str, ...] = ()
    """What the user should hear of how it was found."""
    notes_on_dropout: tuple[str, ...] = ()
    """What the user should hear where it is trained with a dropout of its own."""

    def untrained(self) -> Pretrained:
        """Keep the shape and the tokenizer, forget the weights."""
        return replace(self, weights={}, from_scratch=True)

    def with_blocks(self, gates: Sequence[bool]) -> Pretrained:
        """Keep the blocks whose gate is on, renumbered; heads and embeddings stay."""
        numbers = {old: new for new, old in enumerate(block for block, runs in enumerate(gates) if runs)}
        weights = {}
        for name, tensor in self.weights.items():
            first, _, rest = name.partition(".")
            number, _, parameter = rest.partition(".")
            if first != "blocks":
                weights[name] = tensor
            elif int(number) in numbers:
                weights[f"blocks.{numbers[int(number)]}.{parameter}"] = tensor
        layers = global_layers_of(tuple(numbers[block] for block in self.settings.global_layer_numbers if block in numbers), len(numbers))
        return replace(self, weights=weights, settings=self.settings.replace(num_hidden_layers=len(numbers), global_layers=layers))

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

        A fresh head draws its weights from `seed`; where a BERT checkpoint has a pooler, that begins the head's dense layer, as the
        masked-LM head's dense layer and norm do in a rotary model.

        Args:
            head: The head.
            seed: Of a fresh head.
            dropout: Everywhere; None for the checkpoint's own.
            trained: The head's weights are part of the checkpoint too.

        Raises:
            CheckpointError: Weights do not fit, or the trained head is missing.
        """
        head = replace(head, pooling=self.pooling or usual_pooling(self.settings))
        model = StBert(**self._with_dropout(dropout), masked_lm=False, task_head=head, seed=seed)
        if trained:
            _load(model, self.weights, self.where)
            return model
        weights = {name: tensor for name, tensor in self.weights.items() if not name.startswith("task_head.") or self._stays(name)}
        for theirs, ours in self._beginnings(head).items():
            weights |= {name.replace(theirs, ours): tensor for name, tensor in weights.items() if name.startswith(theirs)}
        _load(model, weights, self.where, may_be_fresh=self._fresh_or("task_head."))
        return model

    def _stays(self, name: str) -> bool:
        """Return whether a weight of a task's head begins another one: of a rotary model, where the head of pre-training is gone."""
        is_inner = name.startswith(("task_head.dense.", "task_head.norm."))
        return is_inner and self.settings.position_embedding == "rotary" and "mlm_head.dense.weight" not in self.weights

    def _beginnings(self, head: TaskHead) -> dict[str, str]:
        """Map layers of pre-training heads to those that they begin in a task's head, as transformers does: there they have one name."""
        if self.settings.position_embedding == "rotary":
            return {f"mlm_head.{layer}.": f"task_head.{layer}." for layer in ("dense", "norm")}
        if self.settings.norm == "post" and head.kind == "sequence":
            return {"nsp_head.pooler.": "task_head.dense."}
        return {}

    def _with_dropout(self, dropout: float | None) -> dict[str, Any]:
        return dict(self.settings) | ({} if dropout is None else {"dropout": dropout})

    def _fresh_or(self, *prefixes: str) -> tuple[str, ...]:
        return ("",) if self.from_scratch else prefixes


def usual_pooling(settings: ModelConfig) -> Pooling:
    """Choose how the head of a rotary model's sequences pools: behind local attention the first token has not seen all of a long text."""
    return "mean" if settings.has_local_layers else "first"


def global_layers_of(numbers: tuple[int, ...], num_layers: int) -> int | tuple[int, ...]:
    """Write the numbers of global layers as `ModelConfig.global_layers` does: every k-th layer, where they are that."""
    every = next((number for number in numbers if number), num_layers)
    return every if numbers == tuple(range(0, num_layers, every)) else numbers


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

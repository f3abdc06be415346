"""What benchmarks/pretrain_vs_transformers.py compares on: a shape, its batches, and the weights that both programs begin with."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pldcli.config import Config, DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, PldConfig, TrainConfig
from pldcli.data.loader import Batch, moved_to
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert
from pldcli.tokenization.tokenizer import load_tokenizer

__all__ = [
    "CLS",
    "MASK",
    "NUM_BATCHES",
    "SEP",
    "Case",
    "Labelled",
    "gated_width",
    "labelled_batches",
    "masked_batch",
    "modern_weights",
    "save_modern_weights",
    "save_weights",
]

NUM_BATCHES = 8
"""Fixed batches; they come again and again."""
MASK_RATE = 0.15
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLS, SEP, MASK = 2, 3, 4


@dataclass(frozen=True)
class Case:
    """One shape in one number format."""

    shape: str
    vocab_size: int
    precision: str
    seq_len: int
    tokens: int
    dropout: float
    threads: int
    total_steps: int
    local_attention: bool
    """ModernBERT's default, two of three layers local; otherwise all of its layers see the whole row."""
    compiled: bool
    seed: int
    weights: str
    """Directory of the weights that BertForMaskedLM and our Post-LN model begin with."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Read L and H."""
        return self._parts[:2]

    @property
    def num_heads(self) -> int:
        """Read the number of heads; they are 64 wide where it is not given."""
        return self._parts[2]

    @property
    def _parts(self) -> tuple[int, int, int]:
        found = re.fullmatch(r"L(\d+)-H(\d+)(?:-A(\d+))?", self.shape)
        if found is None or int(found[2]) % 64 or (found[3] and (not int(found[3]) or int(found[2]) % (2 * int(found[3])))):
            sys.exit(f"{self.shape} is not a shape such as L4-H256, H a multiple of 64, or L8-H128-A4 with 4 heads of even size")
        return int(found[1]), int(found[2]), int(found[3] or int(found[2]) // 64)

    @property
    def rows(self) -> int:
        """Count the sequences of a step."""
        return self.tokens // self.seq_len

    @property
    def masked_per_row(self) -> int:
        """Count the targets of a row."""
        return round(MASK_RATE * self.seq_len)

    def config(self, norm: str, *, theta_bar: float = 1.0) -> Config:
        """Describe our model and its training; `modern` in place of a norm is ModernBERT's architecture."""
        blocks, width = self.sizes
        model = ModelConfig(
            num_hidden_layers=blocks,
            hidden_size=width,
            num_attention_heads=self.num_heads,
            intermediate_size=4 * width,
            vocab_size=self.vocab_size,
            max_position_embeddings=max(512, self.seq_len),
            norm="post" if norm == "post" else "pre",
            dropout=self.dropout,
        )
        return Config(
            model=self._modern(model) if norm == "modern" else model,
            pld=PldConfig(schedule="constant", theta_bar=theta_bar, depth_rule="paper", draw="fixed-depth"),
            data=DataConfig(seq_len=self.seq_len),
            objective=ObjectiveConfig(mask_probability=self.masked_per_row / self.seq_len),
            optim=OptimConfig(learning_rate=1e-4, schedule="constant", warmup_fraction=0.0, max_grad_norm=1.0),
            train=TrainConfig(total_steps=self.total_steps, global_batch_size=self.rows, seed=self.seed),
        )

    def _modern(self, model: ModelConfig) -> ModelConfig:
        """Change a model to what ModernBertConfig is where nothing is said, but for its sizes."""
        return model.replace(
            position_embedding="rotary",
            global_rope_theta=160_000.0,
            feed_forward="geglu",
            intermediate_size=gated_width(model.hidden_size),
            attention_bias=False,
            mlp_bias=False,
            norm_bias=False,
            first_attention_norm=False,
            type_vocab_size=0,
            global_layers=3 if self.local_attention else 1,
            layer_norm_eps=1e-5,
        )


def gated_width(hidden_size: int) -> int:
    """Choose the width of a gated feed-forward layer, 3 H F numbers, nearest to the 8 H^2 of a plain one; a multiple of 32."""
    return 32 * round(8 * hidden_size / 3 / 32)


@dataclass(frozen=True)
class Labelled:
    """A batch with a label at every position, -100 where there is no target."""

    input_ids: Tensor
    labels: Tensor
    token_type_ids: Tensor | None = None
    attention_mask: Tensor | None = None

    def to(self, device: torch.device) -> Labelled:
        """Copy to a device."""
        return moved_to(self, device)


def labelled_batches(case: Case) -> list[Labelled]:
    """Draw random rows, mask a fixed number of places in each as BERT does, and label them."""
    rng = np.random.default_rng(case.seed)
    batches = []
    for _ in range(NUM_BATCHES):
        original = rng.integers(len(SPECIAL), case.vocab_size, (case.rows, case.seq_len))
        original[:, 0], original[:, -1] = CLS, SEP
        places = rng.random((case.rows, case.seq_len - 2)).argsort(1)[:, : case.masked_per_row] + 1
        chosen = np.zeros(original.shape, bool)
        np.put_along_axis(chosen, places, True, axis=1)
        fate, other = rng.random(original.shape), rng.integers(len(SPECIAL), case.vocab_size, original.shape)
        changed = np.where(fate < 0.8, MASK, np.where(fate < 0.9, other, original))
        labels = torch.from_numpy(np.where(chosen, original, -100))
        batches.append(Labelled(torch.from_numpy(np.where(chosen, changed, original)), labels))
    return batches


def masked_batch(batch: Labelled) -> Batch:
    """Say the same as our engine's batches do: where the targets are, and what stood there."""
    positions = batch.labels.flatten().ne(-100).nonzero().flatten()
    targets = batch.labels.flatten()[positions]
    return Batch(
        input_ids=batch.input_ids,
        token_type_ids=None,
        attention_mask=None,
        positions=positions,
        target_ids=targets,
        next_sentence_labels=None,
    )


def save_weights(case: Case) -> None:
    """Write weights of a Post-LN model as transformers reads them."""
    _save(Path(case.weights), case.config("post").model, case)


def save_modern_weights(case: Case) -> None:
    """Write weights of a modern model beside them, as transformers reads them: ModernBertForMaskedLM and ours begin with these."""
    place = Path(modern_weights(case).weights)
    place.mkdir()
    _save(place, case.config("modern").model, case)


def modern_weights(case: Case) -> Case:
    """Point a case to the weights of the modern model."""
    return replace(case, weights=str(Path(case.weights) / "modern"))


@torch.no_grad()
def _save(directory: Path, settings: ModelConfig, case: Case) -> None:
    """Write a model; the tokenizer that belongs to such a directory is a stand-in.

    Under BERT's small initial weights any model's loss is the logarithm of V, whatever its blocks do. These weights are larger, biases
    and norms among them are random too, and so each of them shows in the loss.
    """
    (directory / "vocab.txt").write_text("\n".join(SPECIAL), encoding="utf-8")
    model = StBert(**dict(settings.replace(initializer_range=settings.hidden_size**-0.5)), seed=case.seed)
    generator = torch.Generator().manual_seed(case.seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    save_pretrained(directory, model, settings, tokenizer=load_tokenizer(directory / "vocab.txt"), seq_len=case.seq_len)

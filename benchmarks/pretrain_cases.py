"""What benchmarks/pretrain_vs_transformers.py compares on: a shape, its batches, and the weights that both programs begin with."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pldcli.config import Config, DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, PldConfig, TrainConfig
from pldcli.data.loader import Batch, moved_to
from pldcli.data.tokenizer import load_tokenizer
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert

__all__ = ["CLS", "MASK", "NUM_BATCHES", "SEP", "Case", "Labelled", "labelled_batches", "masked_batch", "save_weights"]

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
        found = re.fullmatch(r"L(\d+)-H(\d+)", self.shape)
        if found is None or int(found[2]) % 64:
            sys.exit(f"{self.shape} is not a shape such as L4-H256, H a multiple of 64")
        return int(found[1]), int(found[2])

    @property
    def rows(self) -> int:
        """Count the sequences of a step."""
        return self.tokens // self.seq_len

    @property
    def masked_per_row(self) -> int:
        """Count the targets of a row."""
        return round(MASK_RATE * self.seq_len)

    def config(self, norm: str, *, theta_bar: float = 1.0) -> Config:
        """Describe our model and its training."""
        blocks, width = self.sizes
        return Config(
            model=ModelConfig(
                num_hidden_layers=blocks,
                hidden_size=width,
                num_attention_heads=width // 64,
                intermediate_size=4 * width,
                vocab_size=self.vocab_size,
                max_position_embeddings=max(512, self.seq_len),
                norm=norm,  # type: ignore[arg-type]
                dropout=self.dropout,
            ),
            pld=PldConfig(schedule="constant", theta_bar=theta_bar, depth_rule="paper", draw="fixed-depth"),
            data=DataConfig(seq_len=self.seq_len),
            objective=ObjectiveConfig(mask_probability=self.masked_per_row / self.seq_len),
            optim=OptimConfig(learning_rate=1e-4, schedule="constant", warmup_fraction=0.0, max_grad_norm=1.0),
            train=TrainConfig(total_steps=self.total_steps, global_batch_size=self.rows, seed=self.seed),
        )


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


@torch.no_grad()
def save_weights(case: Case) -> None:
    """Write weights of a Post-LN model as transformers reads them; the tokenizer that belongs to such a directory is a stand-in.

    Under BERT's small initial weights any model's loss is the logarithm of V, whatever its blocks do. These weights are larger, biases
    and norms among them are random too, and so each of them shows in the loss.
    """
    directory, settings = Path(case.weights), case.config("post").model
    (directory / "vocab.txt").write_text("\n".join(SPECIAL), encoding="utf-8")
    model = StBert(**dict(settings.replace(initializer_range=settings.hidden_size**-0.5)), seed=case.seed)
    generator = torch.Generator().manual_seed(case.seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    save_pretrained(directory, model, settings, tokenizer=load_tokenizer(directory / "vocab.txt"), seq_len=case.seq_len)

"""Have transformers read a written model back. A failure is a warning: the model stays, whatever transformers does."""

from __future__ import annotations

import importlib.util
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pldcli.model import StBert
from pldcli.model_types import CAUSAL_TYPES
from pldcli.tokenization.tokenizer import SpecialTokens, Tokenizer

__all__ = ["ReadBack", "largest_difference", "read_back"]

_TOLERANCE = 1e-3
"""Of outputs in float32; kernels and their order of summation differ by less."""
_MOST_TOKENS, _WINDOWS = 128, 3
"""Tokens of the rows that are compared: so many, or so many local windows."""

_TEXTS = (
    "The old river, 1,250 m wide, isn't far:  (see p. 7)!",
    "Caf\u00e9 na\u00efve \u00dcBUNG \u2013 \u201cquoted\u201d \u20ac5",
    "\u041c\u043e\u0441\u043a\u0432\u0430, \u0394\u03ad\u03bb\u03c4\u03b1",
    "\u6771\u4eac\u90fd \uc11c\uc6b8 \u0939\u093f\u0928\u094d\u0926\u0940",
    "\U0001f600 [MASK] <mask> \ttab",
)
_LONGEST_FAILURE = 300


@dataclass(frozen=True)
class ReadBack:
    """Outcome of the check."""

    difference: float | None = None
    """Largest absolute difference of outputs; None where the check failed, or transformers is not installed."""
    failure: str | None = None
    """Why the check failed, in a line; None where it did not."""

    def __str__(self) -> str:
        """Return the outcome in some words."""
        if self.failure is not None:
            return "the check with transformers failed"
        if self.difference is None:
            return "not read back: transformers is not installed"
        return f"read back with transformers, outputs differ by at most {self.difference:.1g}"


def read_back(directory: Path, model: StBert, tokenizer: Tokenizer) -> ReadBack:
    """Compare a written model as transformers reads it with ours: what it makes of tokens, and the tokens that it makes of text.

    Args:
        directory: Where it was written.
        model: What was written there.
        tokenizer: Likewise. The tokens are random ordinary ones, with padding, beyond the local windows: padding has no position in
            RoBERTa.
    """
    if importlib.util.find_spec("transformers") is None:
        return ReadBack()
    try:
        difference = largest_difference(directory, model, *_inputs(model, tokenizer.special))
        text = _read_otherwise(directory, tokenizer)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a broken or newer transformers can raise anything
        failure = f"transformers cannot read it back: {type(error).__name__}: {error}"
    else:
        if difference < _TOLERANCE and text is None:
            return ReadBack(difference)
        failure = f"the exported model differs by {difference:.2g} when transformers reads it back"
        if text is not None:
            failure = f"the exported tokenizer makes other tokens of {text!r} when transformers reads it back"
    return ReadBack(failure=textwrap.shorten(failure, _LONGEST_FAILURE, placeholder=" ..."))


def _read_otherwise(directory: Path, tokenizer: Tokenizer) -> str | None:
    """Return a text that a saved tokenizer cuts into other tokens than ours, if there is one."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(directory, split_special_tokens=True)
    for text in _TEXTS:
        if theirs(text, add_special_tokens=False)["input_ids"] != tokenizer.encode_document_lines([text]):
            return text
    return None


def _inputs(model: StBert, special: SpecialTokens) -> tuple[Tensor, Tensor]:
    """Make a row of random tokens, longer than local windows where the model reads such, and a shorter one with padding behind."""
    ids = torch.arange(model.embeddings.word.num_embeddings)
    ordinary = ids[~torch.isin(ids, torch.tensor(special.ids))]
    windows = 0 if all(block.is_global for block in model.blocks) else _WINDOWS * 2 * model.reach
    num_tokens = min(max(_MOST_TOKENS, windows), model.max_position_embeddings)
    places = torch.randint(len(ordinary), (2, num_tokens), generator=torch.Generator().manual_seed(0))
    attention_mask_BT = torch.arange(num_tokens) < torch.tensor([[num_tokens], [num_tokens * 2 // 3]])
    return ordinary[places].where(attention_mask_BT, special.pad_id), attention_mask_BT


@torch.no_grad()
def largest_difference(directory: Path, model: StBert, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None) -> float:
    """Load a saved directory with transformers and compare outputs with ours.

    Args:
        directory: What was saved.
        model: What was saved there.
        input_ids_BT: Token ids.
        attention_mask_BT: True at real tokens; of outputs per token, those of the others do not count. None without padding.

    Returns:
        The largest absolute difference; of a single output, which is a number on any scale, as a share of the largest where that is
        above 1.
    """
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    theirs = getattr(transformers, config["architectures"][0]).from_pretrained(directory, attn_implementation="sdpa").eval()
    training, device = model.training, next(model.parameters()).device
    model.eval().cpu()
    mask_BT = torch.ones_like(input_ids_BT, dtype=torch.bool) if attention_mask_BT is None else attention_mask_BT
    with torch.compiler.set_stance("force_eager"):  # what was compiled for a GPU would be compiled for the CPU, which needs a C++ compiler
        hidden_BTD = model(input_ids_BT, attention_mask_BT=attention_mask_BT, causal=config["model_type"] in CAUSAL_TYPES)
        ours = model.mlm_logits(hidden_BTD) if model.task_head is None else model.task_head(hidden_BTD, attention_mask_BT)
    outputs = theirs(input_ids=input_ids_BT, attention_mask=mask_BT.long())
    model.to(device).train(training)
    both = torch.stack([outputs.start_logits, outputs.end_logits], -1) if "start_logits" in outputs else outputs.logits
    difference = (both - ours).abs()
    scale = ours.abs().max().clamp(min=1.0) if ours.shape[-1] == 1 else 1.0
    return float((difference[mask_BT] if ours.ndim == 3 else difference).max() / scale)

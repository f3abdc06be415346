"""The peers of benchmarks/first_hour.py: transformers' Trainer on rows that are cut and tokenised beforehand."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from first_hour_plan import Job, Peer
from measuring import synchronize, this_device
from pldcli.data.loader import Batch, SpanSamples
from pldcli.data.prepared import PreparedData
from pldcli.engine.validation import fixed_batches

__all__ = ["build_peer", "peer_tokenizer", "score_peer", "train_peer", "training_rows"]

WARM_UP_STEPS = 5
CALIBRATION_STEPS = 400
CALIBRATION_SHARE = 0.05
"""Of the budget: steps are timed for no longer, but at least as many as warm up."""


def peer_tokenizer(prepared: PreparedData) -> Any:
    """Wrap the tokenizer of prepared data as transformers does."""
    import transformers

    plain = transformers.PreTrainedTokenizerFast(tokenizer_file=str(prepared.path / "tokenizer.json"))
    special = prepared.special
    roles = {"pad": special.pad_id, "unk": special.unk_id, "cls": special.cls_id, "sep": special.sep_id, "mask": special.mask_id}
    plain.add_special_tokens({f"{role}_token": plain.convert_ids_to_tokens(token_id) for role, token_id in roles.items()})
    return plain


def build_peer(peer: Peer, kind: str, prepared: PreparedData, *, seq_len: int, seed: int) -> Any:
    """Draw the first weights of a model as transformers draws them."""
    import transformers

    transformers.set_seed(seed)
    special = prepared.special
    sizes = {
        "vocab_size": prepared.vocab_size,
        "hidden_size": peer.hidden_size,
        "num_hidden_layers": peer.num_hidden_layers,
        "num_attention_heads": peer.num_attention_heads,
        "intermediate_size": peer.intermediate_size,
        "max_position_embeddings": max(512, seq_len),
        "pad_token_id": special.pad_id,
        "attn_implementation": "sdpa",
    }
    if kind == "bert":
        dropout = {} if peer.dropout is None else dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), peer.dropout)
        return transformers.BertForMaskedLM(transformers.BertConfig(**sizes, **dropout))
    dropout = {} if peer.dropout is None else dict.fromkeys(("attention_dropout", "embedding_dropout", "mlp_dropout"), peer.dropout)
    ends = {"bos_token_id": special.cls_id, "cls_token_id": special.cls_id, "eos_token_id": special.sep_id, "sep_token_id": special.sep_id}
    config = transformers.ModernBertConfig(**sizes, **dropout, **ends, sparse_prediction=peer.sparse_prediction)
    return transformers.ModernBertForMaskedLM(config)


def training_rows(prepared: PreparedData, seq_len: int) -> Any:
    """Cut the training text into rows of the validation rows' form, with the columns that a tokenizer gives."""
    from datasets import Dataset

    samples = SpanSamples(prepared.stream("train"), prepared.special, seq_len, seed=0, shuffle=False)
    whole = samples.num_sequences - 1  # the last one may be short
    ids = samples.rows(np.arange(whole)).input_ids.astype(np.int32)
    special = np.isin(ids, prepared.special.ids).astype(np.int8)
    return Dataset.from_dict({"input_ids": ids, "attention_mask": np.ones_like(special), "special_tokens_mask": special})


@torch.no_grad()
def score_peer(model: Any, batches: Sequence[Batch]) -> float:
    """Compute the loss on the very targets that our models are scored on, in float32; the head runs where they are."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    head = model.cls if hasattr(model, "cls") else lambda hidden_MD: model.decoder(model.head(hidden_MD))
    loss, num_targets = 0.0, 0
    for host_batch in batches:
        batch = host_batch.to(device)
        mask = None if batch.attention_mask is None else batch.attention_mask.long()
        hidden_BTD = model.base_model(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state
        logits_MV = head(hidden_BTD.flatten(0, 1)[batch.positions]).float()
        loss += float(functional.cross_entropy(logits_MV, batch.target_ids, reduction="sum"))
        num_targets += len(batch.target_ids)
    model.train(was_training)
    return loss / num_targets


@dataclass
class Clock:
    """Training seconds of a Trainer; it stands still while somebody looks at the model."""

    look_at: frozenset[int]
    look: Callable[[Any], float]
    stop: Callable[[int, float], bool] = lambda step, seconds: False
    step_ends: list[float] = field(default_factory=list)
    """Training seconds after each step."""
    curve: list[tuple[float, float]] = field(default_factory=list)
    _seconds: float = 0.0
    _started: float = 0.0

    def callback(self) -> Any:
        """Make what Trainer calls."""
        import transformers

        clock = self

        class Callback(transformers.TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                clock._started = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
                step = state.global_step
                is_looked_at = step in clock.look_at
                if is_looked_at:
                    synchronize()
                now = time.perf_counter()
                clock._seconds, clock._started = clock._seconds + now - clock._started, now
                clock.step_ends.append(clock._seconds)
                if is_looked_at:
                    clock.curve.append((clock._seconds, clock.look(model)))
                    clock._started = time.perf_counter()
                control.should_training_stop |= clock.stop(step, clock._seconds)

        return Callback()


def train_peer(job: Job, prepared: PreparedData, place: Path) -> dict[str, Any]:
    """Time a peer's steps, then train it for as many as fit into the budget, its schedule ending with the last of them.

    Args:
        job: The run.
        prepared: The text, tokenised.
        place: A directory for the finished model.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    peer = Peer(**job.settings)
    rows, tokenizer = training_rows(prepared, job.seq_len), peer_tokenizer(prepared)
    batches = list(fixed_batches(prepared, job.seq_len))

    def enough(step: int, seconds: float) -> bool:
        return step >= 2 * WARM_UP_STEPS and seconds >= CALIBRATION_SHARE * job.budget

    trial = Clock(frozenset(), lambda model: 0.0, enough)
    run_trainer(job, peer, rows, tokenizer, prepared, trial, WARM_UP_STEPS + CALIBRATION_STEPS)
    timed = trial.step_ends[WARM_UP_STEPS - 1 :]
    step_seconds = (timed[-1] - timed[0]) / (len(timed) - 1)
    steps = max(1, int(job.budget / step_seconds))
    due = frozenset(round(steps * point / job.points) for point in range(1, job.points + 1))
    clock = Clock(due, lambda model: score_peer(model, batches))
    model = run_trainer(job, peer, rows, tokenizer, prepared, clock, steps)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return {
        "command": f"transformers.Trainer on {type(model).__name__}: {json.dumps(job.settings)}",
        "steps": steps,
        "calibrated_step_seconds": step_seconds,
        "seconds": clock.curve[-1][0],
        "tokens": steps * peer.batch_size * job.seq_len,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "precision": "bf16" if peer.bf16 else "fp32",
        "curve": clock.curve,
        "median_step_seconds": statistics.median(np.diff(clock.step_ends)) if steps > 1 else step_seconds,
    }


def run_trainer(job: Job, peer: Peer, rows: Any, tokenizer: Any, prepared: PreparedData, clock: Clock, steps: int) -> Any:
    """Train a fresh model for so many steps as run_mlm does; return it."""
    import transformers

    model = build_peer(peer, job.kind, prepared, seq_len=job.seq_len, seed=job.seed)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = transformers.TrainingArguments(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=peer.batch_size,
            learning_rate=peer.learning_rate,
            warmup_steps=round(peer.warmup_fraction * steps),
            weight_decay=peer.weight_decay,
            adam_beta2=peer.adam_beta2,
            adam_epsilon=peer.adam_epsilon,
            bf16=peer.bf16,
            torch_compile=peer.compile,
            seed=job.seed,
            use_cpu=this_device().type == "cpu",
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=peer.mask_probability),
            callbacks=[clock.callback()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return model

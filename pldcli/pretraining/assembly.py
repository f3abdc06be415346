"""Assemble the trainer of a pre-training run: model, sequences, batches and optimizer, as a configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pldcli.config import Config, OptimConfig, flatten
from pldcli.data.loader import PairSamples, Samples, SpanSamples
from pldcli.data.masking import Masking
from pldcli.data.next_token import NextTokenSteps
from pldcli.data.packing import PackedSamples
from pldcli.data.prepared import PreparedData
from pldcli.data.step_batches import StepBatches
from pldcli.data.stream import TokenStream
from pldcli.data.words import find_continuations
from pldcli.engine.objectives import MaskedLm
from pldcli.engine.precision import resolve_precision
from pldcli.engine.runtime import Runtime
from pldcli.engine.trainer import Trainer
from pldcli.engine.validation import token_shares
from pldcli.errors import DataError, UsageError
from pldcli.model import StBert
from pldcli.optimizers.build import build_optimizer, learning_rate
from pldcli.pretrained import Pretrained
from pldcli.pretraining.estimate import fitting_micro_batch
from pldcli.runs.model_source import check_tokenizer
from pldcli.sharding import Processes, gathered, is_sharded
from pldcli.system.agreement import HASH_DIGITS
from pldcli.tokenization.tokenizer import SpecialTokens, load_prepared_tokenizer

__all__ = [
    "assemble",
    "build_trainer",
    "check_vocabulary",
    "choose_masking",
    "cut_rows",
    "initial_model",
    "next_token_steps",
    "place",
    "random_model",
    "whole_model",
]

_CUDA_VOCAB_MULTIPLE = 64
"""Tensor cores are fast on matrices whose sizes are multiples of 64 elements."""


def build_trainer(
    config: Config, prepared: PreparedData, runtime: Runtime, *, source: Pretrained | None = None, processes: Processes | None = None
) -> Trainer[StepBatches]:
    """Assemble a run at its first step.

    Args:
        config: The resolved configuration.
        prepared: What it is trained on.
        runtime: Device and processes.
        source: The model of `train.init_from`; None to begin with random weights, or where those of a checkpoint will be loaded.
        processes: As in `assemble`.

    Raises:
        DataError: The data was tokenized with another tokenizer than the source's, or is shorter than a sequence.
        UsageError: The vocabulary, the source's shape or the batch does not fit, or processes were told or hold different things.
    """
    check_vocabulary(config, prepared)
    config.share_of_group((processes or runtime.processes).number)  # a batch that does not divide is refused before anything large is built
    stream = prepared.stream("train")
    if config.data.layout == "nsp-pairs" and len(stream.document_ends) < 2:
        what = "holds one document, so that every second sentence would continue the first"
        raise DataError(what, where=str(prepared.path), hint="prepare it with --document-per line, or use data.layout=spans")
    model = initial_model(config, prepared, source)
    runtime.check_agreement(_common(config, prepared, runtime), model)  # before anything else that all do together
    samples = cut_rows(config, stream, prepared.special)
    masking = choose_masking(config, prepared.special, prepared.vocab_size, data=prepared.path)
    next_tokens = next_token_steps(config, prepared.special)
    return assemble(config, place(model, config, runtime), samples, masking, runtime, next_tokens=next_tokens, processes=processes)


def _common(config: Config, prepared: PreparedData, runtime: Runtime) -> dict[str, Any]:
    """Collect what all processes must have alike, lest they wait for each other in vain or train different models."""
    precision = resolve_precision(config.runtime.precision, runtime.device)
    facts = flatten(config) | {
        "runtime.precision": precision.name,
        "the hash of the data": prepared.data_fingerprint[:HASH_DIGITS],
    }
    return facts | ({"the format of Muon's matrices": str(precision.matrix_dtype)} if config.optim.name == "muon" else {})


def assemble(
    config: Config,
    model: StBert,
    samples: Mapping[int, Samples],
    masking: Masking,
    runtime: Runtime,
    *,
    next_tokens: NextTokenSteps | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    processes: Processes | None = None,
) -> Trainer[StepBatches]:
    """Put a trainer together.

    Args:
        config: The resolved configuration.
        model: On its device.
        samples: The sequences that it reads, by their length.
        masking: Chooses targets.
        runtime: Device and processes.
        next_tokens: The steps that have other targets, as `next_token_steps` finds them.
        optimizer: Of the model; a fresh one by default.
        processes: Have the batches of the first of so many, to estimate what each of them does; by default there are those of `runtime`.

    Raises:
        UsageError: The batch does not divide.
    """
    train, curriculum, on_cuda = config.train, config.curriculum, runtime.device.type == "cuda"
    warmup_steps, processes = config.warmup_steps, processes or runtime.processes
    held = sum(parameter.numel() for parameter in model.parameters()) // processes.shards
    fitting = fitting_micro_batch(config, held, runtime.device, sharing=processes.here)
    fitting = int(min(runtime.gather_on_host(fitting)))  # alike, as they are in every forward pass
    _, micro_batch_size = config.forwards_per_group(processes.number, most_sequences=fitting)
    batches = StepBatches(
        samples=samples,
        masking=masking,
        curriculum=curriculum,
        num_groups=config.pld.draws_per_step,
        micro_batch_size=micro_batch_size,
        rank=runtime.rank,
        world_size=processes.number,
        pin_memory=on_cuda,
        next_tokens=next_tokens,
    )
    precision = resolve_precision(config.runtime.precision, runtime.device)
    return Trainer(
        model,
        objective=MaskedLm(
            next_sentence=config.objective.next_sentence,
            compiled=runtime.is_on(config.runtime.compile),
            vocab_multiple=_CUDA_VOCAB_MULTIPLE if on_cuda else 1,
            token_losses=config.objective.token_losses,
            span_boundary=config.objective.span_boundary,
            exits=config.exits,
            exit_weight=config.objective.exit_weight,
            sampled_softmax=config.objective.sampled_softmax,
        ),
        schedule=config.pld_schedule,
        optimizer=optimizer or build_optimizer(model, config.optim, precision.matrix_dtype),
        batches=batches,
        learning_rate=lambda step: learning_rate(step, train.total_steps, config.optim, warmup_steps=warmup_steps),
        max_grad_norm=config.optim.max_grad_norm,
        precision=precision,
        runtime=runtime,
        flops=config.flops,
        seed=train.seed,
        curriculum=curriculum,
        max_skipped_steps=train.max_skipped_steps,
        spike_sigmas=train.skip_spikes,
        remedy=_remedy(config.optim),
    )


def _remedy(optim: OptimConfig) -> str:
    """Name the settings that make steps smaller."""
    rates = "optim.learning_rate" + (" and optim.muon_learning_rate" if optim.name == "muon" else "")
    warmup = next((name for name in ("warmup_tokens", "warmup_steps") if getattr(optim, name) is not None), "warmup_fraction")
    return f"lower {rates}, or raise optim.{warmup}; checkpoints hold finite numbers"


def choose_masking(config: Config, special: SpecialTokens, vocab_size: int, *, data: Path | None) -> Masking:
    """Build what chooses the targets, as `objective` says.

    Args:
        config: The resolved configuration.
        special: Ids of the special tokens.
        vocab_size: Of the tokenizer.
        data: Prepared data that holds the tokenizer; None where each token is a word.

    Raises:
        UsageError: Whole words are wanted, and the tokenizer does not show where they begin.
    """
    objective, continues_word = config.objective, None
    if objective.masking != "token":
        no_word = np.zeros(vocab_size, bool)
        continues_word = find_continuations(load_prepared_tokenizer(data), where="objective.masking") if data else no_word
    return Masking.of(
        objective.mask_probability,
        special,
        vocab_size,
        unit=objective.masking,
        continues_word=continues_word,
        final_probability=objective.final_mask_probability,
        total_steps=config.train.total_steps,
    )


def cut_rows(config: Config, stream: TokenStream, special: SpecialTokens) -> dict[int, PairSamples | PackedSamples | SpanSamples]:
    """Cut a stream into sequences as `data.layout` and `data.packing` say, of every length that the run has.

    Raises:
        DataError: There is too little text.
    """
    cut: type[PairSamples | PackedSamples | SpanSamples] = (
        PairSamples if config.data.layout == "nsp-pairs" else PackedSamples if config.data.packing == "documents" else SpanSamples
    )
    return {length: cut(stream, special, length, seed=config.train.seed) for length in config.curriculum.sequences_by_length}


def next_token_steps(config: Config, special: SpecialTokens) -> NextTokenSteps | None:
    """Choose the steps that predict the next token, as `objective.kind` and `objective.causal_share` say; None where there are none."""
    objective = config.objective
    if "clm" not in objective.token_losses:
        return None
    return NextTokenSteps(special, objective.kind, objective.causal_share, config.train.seed)


def check_vocabulary(config: Config, prepared: PreparedData) -> None:
    """Check that the embeddings have a row for every entry of the tokenizer.

    Raises:
        UsageError: They do not.
    """
    if config.model.vocab_size < prepared.vocab_size:
        raise UsageError(
            f"{config.model.vocab_size} rows cannot hold the {prepared.vocab_size} entries of the tokenizer in {prepared.path}",
            where="model.vocab_size",
            hint="leave it out: the prepared data's size is taken",
        )


def random_model(config: Config) -> StBert:
    """Build the model with random weights from the run's seed, as it begins."""
    objective = config.objective
    return StBert(
        **dict(config.model) | {"global_rope_theta": config.curriculum.at(0).rope_theta},
        next_sentence=objective.next_sentence,
        span_boundary=objective.span_boundary,
        seed=config.train.seed,
    )


def initial_model(config: Config, prepared: PreparedData, source: Pretrained | None = None) -> StBert:
    """Build the model as a run has it before its first step: with random weights, or with those of a source.

    Args:
        config: The resolved configuration.
        prepared: What it is trained on.
        source: The model of `train.init_from`.

    Raises:
        DataError: The data was tokenized with another tokenizer than the source's.
        UsageError: The source has another shape.
    """
    if source is None:
        model = random_model(config)
        if config.train.unigram_bias:
            _set_unigram_bias(model, prepared, causal=config.objective.is_causal)
        return model
    check_tokenizer(source, prepared)
    for name, value in source.settings:
        if name != "dropout" and getattr(config.model, name) != value:
            what = f"{getattr(config.model, name)} does not fit the {value} of {source.where}"
            raise UsageError(what, where=f"model.{name}", hint="leave it out: the model's own value is taken")
    return source.masked_lm(
        next_sentence=config.objective.next_sentence,
        span_boundary=config.objective.span_boundary,
        fresh_head=True,
        dropout=config.model.dropout,
        seed=config.train.seed,
    )


def place(model: StBert, config: Config, runtime: Runtime) -> StBert:
    """Move a model to the device, ready to be trained; compile its parts where the configuration says so."""
    model.to(runtime.device).train()
    model.checkpoint_activations = config.runtime.checkpoint_activations
    model.scales_whole_blocks = config.pld.residual == "block"
    if runtime.is_on(config.runtime.compile):
        model.compile_parts()
    runtime.shard(model, model.blocks)
    return model


def whole_model(config: Config, model: StBert, *, keep: bool) -> StBert | None:
    """Return a model in one piece: itself, or a copy on the host of a sharded one; every process calls this.

    Args:
        config: Of the run.
        model: Sharded or not.
        keep: False on a process that gets none of a sharded model.
    """
    if not is_sharded(model):
        return model
    weights = gathered(model.state_dict(), keep=keep)
    if not keep:
        return None
    copy = random_model(config)
    copy.load_state_dict(weights)
    copy.global_rope_theta = model.global_rope_theta
    return copy


@torch.no_grad()
def _set_unigram_bias(model: StBert, prepared: PreparedData, *, causal: bool) -> None:
    """Set the masked-LM head's bias to the log frequencies of the training text's tokens; rows without a token get the lowest."""
    assert model.mlm_head is not None
    assert model.mlm_head.bias is not None
    shares_V = token_shares(prepared.stream("train"), prepared.vocab_size, prepared.special, causal=causal)
    logs_V = np.log(np.maximum(shares_V, shares_V[shares_V > 0].min()))
    model.mlm_head.bias.fill_(float(logs_V.min()))
    model.mlm_head.bias[: len(logs_V)] = torch.from_numpy(logs_V).float()

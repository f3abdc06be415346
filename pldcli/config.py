"""Every knob: its default, unit, source and local check. Frozen; nothing is written to after loading."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict, model_validator

from pldcli.choices import Device, PrecisionChoice, Sharding
from pldcli.curriculum import Curriculum, Stage, check_ends, largest_divisor
from pldcli.errors import UsageError
from pldcli.flops import Flops, count_parameters
from pldcli.model_config import ModelConfig
from pldcli.model_types import model_type_of
from pldcli.objective import ObjectiveConfig
from pldcli.pld import Schedule
from pldcli.pld_config import PldConfig
from pldcli.run_flops import RunFlops
from pldcli.settings import AS_NUMBER, Count, Natural, NonNegative, Positive, Settings, Share, Switch, fields

__all__ = [
    "RUN_CONTROL",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "LengthStage",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PldConfig",
    "RuntimeConfig",
    "TrainConfig",
    "describe_dropping",
    "documentation",
    "flatten",
]

RUN_CONTROL = (
    "runtime.device",
    "runtime.precision",
    "runtime.compile",
    "runtime.sharding",
    "runtime.timeout_seconds",
    "runtime.checkpoint_activations",
    "train.micro_batch_size",
    "train.log_every_steps",
    "train.max_skipped_steps",
    "train.on_divergence",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "checkpoint.background",
    "checkpoint.keep_every_steps",
    "eval.every_steps",
)
"""Keys that say how a run is carried out, not which run it is: they may change on resume."""


class LengthStage(Settings):
    """A part of a run in which sequences are shorter than at its end: of a quarter of the length, a step reads four times as many."""

    until: Annotated[float, Field(gt=0), AS_NUMBER]
    """Where the stage ends, as a fraction of the run."""
    seq_len: Annotated[int, Field(ge=8), AS_NUMBER]
    """Tokens per sequence; must divide data.seq_len."""
    global_rope_theta: Positive | None = None
    """In the place of model.global_rope_theta, which is that of the run's end."""


class DataConfig(Settings):
    """What a training sequence is."""

    seq_len: Annotated[int, Field(ge=8), AS_NUMBER] = 128
    """Tokens per sequence with [CLS] and [SEP], T; with length_stages, those at the end of the run."""
    layout: Literal["spans", "nsp-pairs"] = "spans"
    """`spans`: full rows of contiguous text. `nsp-pairs`: two segments, the second the true continuation half of the time."""
    packing: Literal["stream", "documents"] = "stream"
    """For `spans`: rows go on over the ends of documents (`stream`), or hold whole `documents` that do not see each other."""
    length_stages: Annotated[tuple[LengthStage, ...], Strict(False)] = ()
    """Shorter sequences first, by part of the run: `[{until: 0.7, seq_len: 128}, {until: 0.9, seq_len: 512}]`. A step keeps its tokens."""

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        rest = "what comes after the last one has the length data.seq_len"
        check_ends([stage.until for stage in self.length_stages], key="data.length_stages", rest=rest)
        for number, stage in enumerate(self.length_stages):
            if self.seq_len % stage.seq_len:
                what = f"{stage.seq_len} tokens do not divide data.seq_len {self.seq_len}, the length at the end of the run"
                hint = "a step keeps its tokens: choose lengths that divide it"
                raise UsageError(what, where=f"data.length_stages[{number}].seq_len", hint=hint)
        return self


class OptimConfig(Settings):
    """Optimizer and learning rate."""

    name: Literal["adamw", "lamb", "muon", "stable-adamw"] = "adamw"
    """`adamw`; `lamb` for large batches; `muon` for the blocks' matrices and AdamW for the rest; `stable-adamw`, which clips updates."""
    learning_rate: Positive = 1e-3
    """Peak learning rate. The paper: 1e-4 for Post-LN, 1e-3 for PLD."""
    muon_learning_rate: Positive = 0.02
    """Used by `muon` only: peak learning rate of the blocks' matrices, in Jordan's scale, which does not change with the width."""
    muon_momentum: Share = 0.95
    """Used by `muon` only: decay of its Nesterov momentum."""
    schedule: Literal["linear", "cosine", "wsd", "paper-exponential", "constant"] = "linear"
    """After warm-up: `linear` or `cosine` to zero, `wsd` (flat, then a decay to zero), `paper-exponential` (x0.99 every T/200 steps)."""
    warmup_fraction: Share = 0.02
    """Linear warm-up, as a fraction of total_steps."""
    warmup_steps: Natural | None = None
    """Linear warm-up in steps, whatever total_steps is; takes the place of `warmup_fraction`."""
    warmup_tokens: Natural | None = None
    """Linear warm-up in tokens, rounded up to whole steps; takes the place of `warmup_fraction`."""
    decay_fraction: Share = 0.2
    """Used by `wsd` only: the last part of the run in which the rate falls, as a fraction."""
    decay_shape: Literal["linear", "1-sqrt"] = "linear"
    """Used by `wsd` only: how the rate falls; `1-sqrt` ends somewhat lower in long runs (Haegele et al. 2024)."""
    beta1: Share = 0.9
    """Decay of the first moment."""
    beta2: Share = 0.999
    """Decay of the second moment."""
    eps: Positive = 1e-6
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay; not applied to biases and norms."""
    bias_correction: bool = True
    """Correct the moments for their start at zero; the paper's Adam did not."""
    max_grad_norm: NonNegative = 1.0
    """Clip the global gradient norm to this; 0 clips nothing."""

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        if self.warmup_steps is not None and self.warmup_tokens is not None:
            what = f"{self.warmup_tokens} tokens and optim.warmup_steps {self.warmup_steps} are two lengths of one warm-up"
            raise UsageError(what, where="optim.warmup_tokens", hint="set one of them to null")
        by_fraction = self.warmup_steps is None and self.warmup_tokens is None and self.schedule == "wsd"
        if by_fraction and round(self.warmup_fraction + self.decay_fraction, 9) > 1.0:
            what = f"{self.warmup_fraction:g} of the run is warm-up, which reaches into the decay, the last {self.decay_fraction:g}"
            raise UsageError(what, where="optim.warmup_fraction", hint="shorten the warm-up, or lower optim.decay_fraction")
        if self.name == "muon" and not self.bias_correction:
            what = "muon's AdamW always corrects the moments"
            raise UsageError(what, where="optim.bias_correction", hint="set it to true, or choose another optim.name")
        return self


class TrainConfig(Settings):
    """How long, how much at once, and from which seed."""

    total_steps: Count = 200_000
    """Optimizer steps, T. Every schedule is tied to it."""
    global_batch_size: Count = 4096
    """Sequences of data.seq_len tokens per optimizer step, over all processes."""
    batch_ramp: Share = 0.0
    """The first part of the run, as a fraction, in which the batch grows, linearly in steps and in multiples of initial_batch_size."""
    initial_batch_size: Count | Literal["auto"] = "auto"
    """Used with batch_ramp only: sequences of the first step, which divide global_batch_size; `auto` is about a quarter."""
    max_skipped_steps: Count = 10
    """Steps in a row, or a tenth of the run if that is less, whose loss or gradient is not finite end the run; fewer are left out."""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """When that happens: end the run, or go back to the newest checkpoint and pass over the sequences read since, three times a run."""
    skip_spikes: Positive | None = None
    """Leave out steps whose loss or gradient norm is so many standard deviations above the mean of the last 128; 6 is usual."""
    micro_batch_size: Count | Literal["auto"] = "auto"
    """Most sequences of data.seq_len tokens per forward pass and process; `auto` fits the memory. Lower it when memory runs out."""
    seed: Annotated[int, Field(ge=0, lt=2**63), AS_NUMBER] = 0
    """Seed of the initial weights, data order, masks, gates and dropout."""
    log_every_steps: Count = 10
    """Steps between rows of metrics.jsonl."""
    init_from: str | None = None
    """Begin with the weights of this run, checkpoint or Hugging Face directory; its shape takes the place of the preset's."""
    unigram_bias: bool = False
    """Begin the masked-LM head's bias at the log frequencies of the training tokens, not with init_from: short runs need not learn them."""

    @property
    def smallest_batch_size(self) -> int:
        """Sequences of the first step; of every step where there is no ramp."""
        if not self.batch_ramp:
            return self.global_batch_size
        if self.initial_batch_size != "auto":
            return self.initial_batch_size
        return largest_divisor(self.global_batch_size, max(1, self.global_batch_size // 4))

    @model_validator(mode="after")
    def _check_ramp(self) -> Self:
        batch, first = self.global_batch_size, self.smallest_batch_size
        if batch % first:
            what = f"{first} sequences do not divide train.global_batch_size {batch}, which grows in multiples of them"
            raise UsageError(what, where="train.initial_batch_size", hint=f"try train.initial_batch_size={largest_divisor(batch, first)}")
        return self


class RuntimeConfig(Settings):
    """Where and in which number format."""

    device: Device = "auto"
    """`auto` takes CUDA when there is any."""
    precision: PrecisionChoice = "auto"
    """Autocast format; weights stay fp32. `auto`: bf16 where fast (Ampere, AMX, AMD with AVX-512), else fp16 on CUDA and fp32 on CPU."""
    compile: Switch = "auto"
    """torch.compile of each block, the embeddings, and head with loss; `auto` is on for CUDA and off for CPU."""
    deterministic: bool = False
    """On CUDA, kernels only that give the same bits each time, so that resuming changes no bit; slower. On a CPU it is so anyway."""
    reduce_precision: Literal["fp32", "bf16"] = "fp32"
    """Of several processes: number format in which gradients travel and are summed; `bf16` halves what is sent, and rounds."""
    sharding: Sharding = "none"
    """Of several processes: `full` splits weights, gradients and optimizer state over all of them, `hybrid` over those of each machine."""
    timeout_seconds: Positive = 1800.0
    """Of several processes: one that waits so long for the others ends the run."""
    checkpoint_activations: bool = False
    """Keep only the input of each block for the backward pass and run the block again: less memory, about a third more time."""


class CheckpointConfig(Settings):
    """When the state is saved."""

    every_steps: Count = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: Count = 2
    """Newest checkpoints that stay."""
    background: Switch = "auto"
    """Write from a copy in memory while training goes on; `auto` is on for CUDA. On a CPU both would share the cores."""
    keep_every_steps: Count | None = None
    """Every checkpoint at a multiple of this many steps stays as well: a multiple of `every_steps`."""

    @model_validator(mode="after")
    def _check_multiple(self) -> Self:
        if self.keep_every_steps is not None and self.keep_every_steps % self.every_steps:
            what = f"{self.keep_every_steps} is no multiple of checkpoint.every_steps {self.every_steps}, so that few would stay"
            raise UsageError(what, where="checkpoint.keep_every_steps", hint="make it one")
        return self


class EvalConfig(Settings):
    """Validation during training, at full depth on fixed masks."""

    every_steps: Count = 1000
    """Steps between validations; there is always one at the end."""
    max_sequences: Count = 512
    """Validation sequences used each time; `pld evaluate` uses all."""


class Config(Settings):
    """All of a pre-training run."""

    model: ModelConfig = ModelConfig()
    pld: PldConfig = PldConfig()
    data: DataConfig = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _check_sections_fit(self) -> Self:
        data, pld = self.data, self.pld
        if self.train.init_from is None:  # its model has another shape, which is not read yet
            self._check_own_shape()
        for key, batch in self._batch_sizes:
            if batch % pld.draws_per_step:
                what = f"{batch} sequences do not divide into pld.draws_per_step {pld.draws_per_step} gate groups"
                raise UsageError(what, where=key, hint="make it a multiple")
        if data.packing == "documents" and data.layout != "spans":
            raise UsageError("documents are packed in rows of spans", where="data.packing", hint="use data.layout=spans")
        if "clm" in self.objective.token_losses and data.layout != "spans":
            raise UsageError("sentence pairs are for masked LM alone", where="data.layout", hint="use data.layout=spans")
        if self.train.skip_spikes is not None and len(self.objective.token_losses) > 1:
            what = "steps with two kinds of targets have losses of two sizes, of which the rarer would be taken for spikes"
            raise UsageError(what, where="train.skip_spikes", hint="leave it out, or train with one kind of steps")
        if self.objective.kind == "prefix" and data.packing == "documents":
            raise UsageError("objective.kind=prefix needs rows of one text", where="data.packing", hint="use data.packing=stream")
        if self.objective.next_sentence and data.layout != "nsp-pairs":
            raise UsageError("needs sentence pairs", where="objective.next_sentence", hint="add data.layout=nsp-pairs")
        if self.objective.sampled_softmax is not None:
            at_once = 1 if self.train.micro_batch_size == "auto" else self.train.micro_batch_size
            if (most := at_once * self.most_targets) >= self.objective.sampled_softmax:
                what = f"must exceed the targets of a micro-batch, up to {most:,}, not {self.objective.sampled_softmax:,}"
                raise UsageError(what, where="objective.sampled_softmax", hint="raise it, or lower train.micro_batch_size or data.seq_len")
        return self

    def _check_own_shape(self) -> None:
        model, data = self.model, self.data
        if model.has_local_layers and model.local_attention > data.seq_len:
            what = f"a window of {model.local_attention} tokens is wider than the sequences, data.seq_len {data.seq_len}"
            raise UsageError(what, where="model.local_attention", hint=f"use {data.seq_len} or less, or model.global_layers=1")
        if self.train.unigram_bias and model.lm_head == "plain":
            raise UsageError("a plain decoder has no bias", where="train.unigram_bias", hint="use model.lm_head=transform")
        self.check_shape()

    def check_shape(self, *, of_source: bool = False) -> None:
        """Check that the run fits its model, once that is known.

        Args:
            of_source: The model has weights already (`train.init_from`), so that its shape cannot be changed.

        Raises:
            UsageError: It does not.
        """
        model, data = self.model, self.data
        tokens, positions = data.seq_len, model.max_position_embeddings
        if tokens > positions:
            what = f"{tokens} tokens do not fit model.max_position_embeddings {positions}"
            hint = "shorten the sequences: the model reads no more" if of_source else "raise the latter or shorten the sequences"
            raise UsageError(what, where="data.seq_len", hint=hint)
        self.objective.exits_of(model.num_hidden_layers)
        self.pld.check_blocks(model.num_hidden_layers, norm=model.norm, first_attention_norm=model.first_attention_norm)
        for number, stage in enumerate(data.length_stages):
            if stage.global_rope_theta is not None and model.position_embedding != "rotary":
                where = f"data.length_stages[{number}].global_rope_theta"
                raise UsageError("learned positions have no theta", where=where, hint="use model.position_embedding=rotary")
        try:
            model_type_of(dict(model), causal=self.objective.is_causal)  # a run whose model could not be exported is refused
        except UsageError:
            if not of_source:
                raise
            other = "masked" if self.objective.is_causal else "causal"
            model_type_of(dict(model), causal=not self.objective.is_causal)
            what = f"a model with the shape of train.init_from cannot be exported after {self.objective.kind} LM"
            raise UsageError(what, where="objective.kind", hint=f"use {other}") from None

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        given = "warmup_tokens" if self.optim.warmup_tokens is not None else "warmup_steps"
        if getattr(self.optim, given) is not None and self.warmup_steps >= self.train.total_steps:
            what = f"{self.warmup_steps} steps of warm-up do not fit a run of {self.train.total_steps}"
            raise UsageError(what, where=f"optim.{given}", hint="shorten the warm-up or raise train.total_steps")
        decay = round(self.optim.decay_fraction * self.train.total_steps) if self.optim.schedule == "wsd" else 0
        if getattr(self.optim, given) is not None and self.warmup_steps + decay > self.train.total_steps:
            what = f"{self.warmup_steps} steps of warm-up reach into the decay, the last {decay} steps"
            raise UsageError(what, where=f"optim.{given}", hint="shorten the warm-up, or lower optim.decay_fraction")
        return self

    @property
    def most_targets(self) -> int:
        """Count the tokens that a sequence is to predict, at most."""
        share = 1.0 if "clm" in self.objective.token_losses else max(self.objective.mask_probabilities)
        return int(share * self.data.seq_len + 1)

    @property
    def softmax_entries(self) -> int:
        """Count the entries of the vocabulary over which a step predicts a token."""
        return min(self.objective.sampled_softmax or self.model.vocab_size, self.model.vocab_size)

    @property
    def warmup_steps(self) -> int:
        """Count the steps of warm-up, however it is given."""
        if self.optim.warmup_tokens is not None:
            return self.curriculum.steps_for(self.optim.warmup_tokens)
        if self.optim.warmup_steps is not None:
            return self.optim.warmup_steps
        return round(self.optim.warmup_fraction * self.train.total_steps)

    @property
    def _batch_sizes(self) -> tuple[tuple[str, int], ...]:
        """Sequences of the last and of the first step by their keys: those of all others are multiples of the first's."""
        return ("train.global_batch_size", self.train.global_batch_size), ("train.initial_batch_size", self.train.smallest_batch_size)

    @property
    def curriculum(self) -> Curriculum:
        """Build what each step reads: length and number of its sequences."""
        theta = self.model.global_rope_theta
        stages = tuple(Stage(stage.until, stage.seq_len, stage.global_rope_theta or theta) for stage in self.data.length_stages)
        return Curriculum(
            total_steps=self.train.total_steps,
            seq_len=self.data.seq_len,
            batch_size=self.train.global_batch_size,
            rope_theta=theta,
            stages=stages,
            initial_batch_size=self.train.smallest_batch_size,
            ramp_fraction=self.train.batch_ramp,
        )

    @property
    def pld_schedule(self) -> Schedule:
        """Build the schedule that trainer and plots share."""
        return self.pld.build(num_blocks=self.model.num_hidden_layers, total_steps=self.train.total_steps)

    @property
    def flops(self) -> Flops:
        """Count the FLOPs per token, in rows that are one text: what packed documents attend to, only the data know (`Samples`)."""
        objective = self.objective
        masked = sum(objective.mask_probabilities) / 2
        mask_rate = objective.over_steps(masked=masked, causal=1.0, prefix=0.5)
        found = self.model.flops(
            self.data.seq_len,
            mask_rate,
            span_boundary=objective.span_boundary,
            num_exits=len(self.exits),
            num_entries=self.softmax_entries,
        )
        reach = self.model.local_attention // 2
        # A causal window holds `reach` tokens, the query's own among them; with a prefix as many, and in it as many ahead.
        return replace(found, window=objective.over_steps(masked=found.window, causal=reach, prefix=(3 * reach - 1) / 2))

    @property
    def exits(self) -> tuple[int, ...]:
        """Return after how many blocks there is a loss, beside that of the whole model."""
        return self.objective.exits_of(self.model.num_hidden_layers)

    def run_flops(self, attended_tokens: Mapping[int, float] | None = None) -> RunFlops:
        """Count the FLOPs of the run as planned.

        Args:
            attended_tokens: What a token attends to, by length of sequences; None where rows are one text.
        """
        visible = {length: float(length) for length in self.curriculum.sequences_by_length} | dict(attended_tokens or {})
        attended = {length: self.objective.attended_tokens(tokens) for length, tokens in visible.items()}
        return RunFlops(self.pld_schedule, self.curriculum, self.flops, attended)

    @property
    def num_parameters(self) -> int:
        """Count the model's parameters."""
        model = self.model
        return count_parameters(
            num_blocks=model.num_hidden_layers,
            hidden_size=model.hidden_size,
            intermediate_size=model.intermediate_size,
            gated=model.feed_forward != "gelu",
            vocab_size=model.vocab_size,
            num_positions=model.max_position_embeddings if model.position_embedding == "learned" else 0,
            num_token_types=model.type_vocab_size,
            num_norms=2 * model.num_hidden_layers + model.embedding_norm + (model.norm == "pre") - (not model.first_attention_norm),
            attention_bias=model.attention_bias,
            mlp_bias=model.mlp_bias,
            norm_bias=model.norm_bias,
            head_transform=model.lm_head == "transform",
            next_sentence=self.objective.next_sentence,
            span_boundary=self.objective.span_boundary,
        )

    def share_of_group(self, world_size: int) -> int:
        """Count the sequences of one gate group that each process reads once the batch has its whole size.

        Raises:
            UsageError: The batch does not divide.
        """
        draws = self.pld.draws_per_step
        for key, batch in self._batch_sizes:
            if batch % (draws * world_size):
                what = f"{batch} sequences do not divide over {draws} gate groups x {world_size} processes"
                raise UsageError(what, where=key, hint=f"make it a multiple of {draws * world_size}")
        return self.train.global_batch_size // (draws * world_size)

    def forwards_per_group(self, world_size: int, *, most_sequences: int) -> tuple[int, int]:
        """Split a gate group's share of one process into equal forward passes.

        Args:
            world_size: Number of processes.
            most_sequences: What fits into memory; counts where `train.micro_batch_size` is `auto`.

        Returns:
            Number of micro-steps per group, and sequences in each.

        Raises:
            UsageError: The batch does not divide.
        """
        share = self.share_of_group(world_size)
        chosen = self.train.micro_batch_size
        limit = min(share, most_sequences if chosen == "auto" else chosen)
        size = largest_divisor(share, limit)
        if chosen != "auto" and size != limit:
            what = f"{chosen} does not divide the {share} sequences of a gate group on one process"
            raise UsageError(what, where="train.micro_batch_size", hint=f"try train.micro_batch_size={size}")
        return share // size, size


def flatten(config: Config) -> dict[str, Any]:
    """List every knob of a configuration as dotted key and plain value."""
    return {f"{section}.{name}": value for section, values in config.model_dump(mode="json").items() for name, value in values.items()}


def documentation() -> dict[str, str]:
    """Collect what every knob and section means, by dotted key."""
    sections = {name: inspect.getdoc(info.annotation) for name, info in Config.model_fields.items()}
    return {key: text or "" for key, text in (sections | {key: info.description for key, info in fields(Config).items()}).items()}


def describe_dropping(config: Config) -> str:
    """Say in one phrase what is dropped."""
    draws, schedule = config.pld.draws_per_step, config.pld_schedule
    if schedule.is_dense:
        return "nothing dropped"
    parts = [*schedule.describe(), *([f"{draws} draws per step"] if draws > 1 else [])]
    return f"{', '.join(parts)}: {schedule.mean_kept_fraction * schedule.num_blocks:.2f} of {schedule.num_blocks} blocks on average"

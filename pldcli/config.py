"""Every knob: its default, unit, source and local check. Frozen; nothing is written to after loading."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from pldcli.errors import UsageError
from pldcli.flops import Flops, count_parameters
from pldcli.pld import DepthRule, Draw, Schedule, TimeSchedule

__all__ = [
    "RUN_CONTROL",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PldConfig",
    "RuntimeConfig",
    "TrainConfig",
    "describe_dropping",
    "documentation",
    "field_docstrings",
    "flatten",
]

RUN_CONTROL = (
    "runtime.device",
    "runtime.precision",
    "runtime.compile",
    "runtime.checkpoint_activations",
    "train.micro_batch_size",
    "train.log_every_steps",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "eval.every_steps",
    "eval.max_sequences",
)
"""Keys that say how a run is carried out, not which run it is: they may change on resume."""


def _require(condition: bool, key: str, what: str, hint: str = "") -> None:
    if not condition:
        raise UsageError(what, where=key, hint=hint)


def _at_least(section: object, prefix: str, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        _require(value >= minimum, f"{prefix}.{name}", f"must be at least {minimum:g}, not {value}")


@dataclass(frozen=True)
class ModelConfig:
    """The encoder. Names and defaults as BERT-base."""

    num_hidden_layers: int = 12
    """Number of ST blocks, L."""
    hidden_size: int = 768
    """Width of the residual stream, D."""
    num_attention_heads: int = 12
    """Attention heads, H; must divide hidden_size."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer, F."""
    vocab_size: int = 30528
    """Rows of the embedding table, V. The prepared data's vocabulary takes the place of a preset's value."""
    max_position_embeddings: int = 512
    """Rows of the position table: the longest sequence the model can read, in tokens."""
    type_vocab_size: int = 2
    """Token types (first and second segment)."""
    norm: Literal["pre", "post"] = "pre"
    """Where LayerNorm stands: `pre` (before each sublayer, as the ST block needs) or `post` (BERT's original)."""
    dropout: float = 0.1
    """Dropout of embeddings, attention weights and sublayer outputs alike."""
    layer_norm_eps: float = 1e-12
    """Epsilon of every LayerNorm."""
    initializer_range: float = 0.02
    """Standard deviation of initial weights."""
    attention_init: Literal["normal", "local"] = "normal"
    """`normal` as BERT; `local`: heads begin by looking 1, 2, ... tokens back or ahead, and small models learn from context far sooner."""

    def __post_init__(self) -> None:
        """Check what can be checked here."""
        sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")
        _at_least(self, "model", 1, *sizes, "type_vocab_size")
        _at_least(self, "model", 6, "vocab_size")
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            "model.num_attention_heads",
            f"{self.num_attention_heads} heads do not divide hidden_size {self.hidden_size}",
        )
        _require(
            self.attention_init == "normal" or self.hidden_size >= 2 * self.num_attention_heads >= 4,
            "model.attention_init",
            f"local needs 2 heads or more, of size 2 or more, not {self.num_attention_heads} in hidden_size {self.hidden_size}",
        )
        _require(0.0 <= self.dropout < 1.0, "model.dropout", f"must be in [0, 1), not {self.dropout}")
        _require(self.layer_norm_eps > 0, "model.layer_norm_eps", "must be positive")
        _require(self.initializer_range > 0, "model.initializer_range", "must be positive")


@dataclass(frozen=True)
class PldConfig:
    """Progressive layer dropping. Off is theta_bar = 1."""

    schedule: TimeSchedule = "exponential"
    """How theta moves: `exponential` (the paper), `constant` ("Rand"), `linear`, or `growing` (starts at theta_bar and rises)."""
    theta_bar: float = 1.0
    """The lowest keep ratio of the deepest block; 0.5 in the paper, 0.5 to 0.9 advised, 1 drops nothing."""
    gamma: float | Literal["auto"] = "auto"
    """Speed of the exponential schedule in 1/steps; `auto` is the paper's 100 / total_steps."""
    depth_rule: DepthRule = "paper"
    """Keep probability of block i of L: `paper` 1 - i/L (1 - theta), `algorithm1` 1 - (i-1)/L (1 - theta), `uniform` theta."""
    draw: Draw = "bernoulli"
    """`bernoulli`: every block on its own. `fixed-depth`: same probabilities, but the number kept is the floor or ceiling of its mean."""
    draws_per_step: int = 1
    """Gate groups: equal slices of the global batch, each with its own draw. The released code drew 4 per step."""
    recovery_fraction: float = 0.0
    """The last part of the run, as a fraction, in which every block runs, whatever the schedule."""
    keep_first: int = 0
    """Blocks at the input that always run."""
    keep_last: int = 0
    """Blocks at the output that always run."""
    scale_residual: bool = True
    """Multiply a kept block's outputs by 1 / keep probability in training."""

    def __post_init__(self) -> None:
        """Check what can be checked here."""
        _require(
            0.0 < self.theta_bar <= 1.0,
            "pld.theta_bar",
            f"must be in (0, 1], not {self.theta_bar}",
            "0.5 is the paper's value, 1 drops nothing",
        )
        _require(self.gamma == "auto" or self.gamma >= 0, "pld.gamma", f"must be `auto` or at least 0, not {self.gamma}")
        _require(0.0 <= self.recovery_fraction < 1.0, "pld.recovery_fraction", f"must be in [0, 1), not {self.recovery_fraction}")
        _at_least(self, "pld", 1, "draws_per_step")
        _at_least(self, "pld", 0, "keep_first", "keep_last")


@dataclass(frozen=True)
class DataConfig:
    """What a training sequence is."""

    seq_len: int = 128
    """Tokens per sequence with [CLS] and [SEP], T."""
    layout: Literal["spans", "nsp-pairs"] = "spans"
    """`spans`: full rows of contiguous text. `nsp-pairs`: two segments, the second the true continuation half of the time."""
    packing: Literal["stream", "documents"] = "stream"
    """For `spans`: rows go on over the ends of documents (`stream`), or hold whole `documents` that do not see each other."""

    def __post_init__(self) -> None:
        """Check what can be checked here."""
        _at_least(self, "data", 8, "seq_len")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the model learns from."""

    mask_probability: float = 0.15
    """Share of the maskable tokens of a sequence that are targets."""
    next_sentence: bool = False
    """Add BERT's next-sentence head and loss; needs data.layout=nsp-pairs."""

    def __post_init__(self) -> None:
        """Check what can be checked here."""
        _require(0.0 < self.mask_probability < 1.0, "objective.mask_probability", f"must be in (0, 1), not {self.mask_probability}")


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning rate."""

    name: Literal["adamw", "lamb"] = "adamw"
    """`adamw`, or `lamb` for large batches."""
    learning_rate: float = 1e-3
    """Peak learning rate. The paper: 1e-4 for Post-LN, 1e-3 for PLD."""
    schedule: Literal["linear", "cosine", "wsd", "paper-exponential", "constant"] = "linear"
    """After warm-up: `linear` or `cosine` to zero, `wsd` (flat, then linear to zero), `paper-exponential` (x0.99 every T/200 steps)."""
    warmup_fraction: float = 0.02
    """Linear warm-up, as a fraction of total_steps."""
    decay_fraction: float = 0.2
    """Used by `wsd` only: the last part of the run in which the rate falls, as a fraction."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-6
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay; not applied to biases and norms."""
    bias_correction: bool = True
    """Correct the moments for their start at zero; the paper's Adam did not."""
    max_grad_norm: float = 1.0
    """Clip the global gradient norm to this; 0 clips nothing."""

    def __post_init__(self) -> None:
        """Check what can be checked here."""
        _require(self.learning_rate > 0, "optim.learning_rate", f"must be positive, not {self.learning_rate}")
        for name in ("warmup_fraction", "decay_fraction", "beta1", "beta2"):
            value = getattr(self, name)
            _require(0.0 <= value < 1.0, f"optim.{name}", f"must be in [0, 1), not {value}")
        _require(self.eps > 0, "optim.eps", "must be positive")
        _at_least(self, "optim", 0, "weight_decay", "max_grad_norm")


@dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, and from which seed."""

    total_steps: int = 200_000
    """Optimizer steps, T. Every schedule is tied to it."""
    global_batch_size: int = 4096
    """Sequences per optimizer step, over all processes."""
    micro_batch_size: int | Literal["auto"] = "auto"
    """Most sequences per forward pass and process; `auto` fits the device's memory. Lower it when memory runs out."""
    seed: int = 0
    """Seed of the initial weights, data order, masks, gates and dropout."""
    log_every_steps: int = 10
    """Steps between rows of metrics.jsonl."""
    init_from: str | None = None
    """Begin with the weights of this run, checkpoint or Hugging Face directory; its shape takes the place of the preset's."""
    unigram_bias: bool = False
    """Begin the masked-LM head's bias at the log frequencies of the training tokens, which short runs then need not learn."""

    def __post_init__(self) -> None:
        """Check what can be checked here."""
        _at_least(self, "train", 1, "total_steps", "global_batch_size", "log_every_steps")
        if self.micro_batch_size != "auto":
            _at_least(self, "train", 1, "micro_batch_size")
        _at_least(self, "train", 0, "seed")
        _require(
            not self.unigram_bias or self.init_from is None,
            "train.unigram_bias",
            "is for runs that begin at random, not with train.init_from",
            "leave one of them out",
        )


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and in which number format."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA when there is any."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast format; weights stay fp32. `auto`: bf16 where fast (Ampere, AMX, AMD with AVX-512), else fp16 on CUDA and fp32 on CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of each block, the embeddings, and head with loss; `auto` is on for CUDA and off for CPU."""
    checkpoint_activations: bool = False
    """Keep only the input of each block for the backward pass and run the block again: less memory, about a third more time."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved."""

    every_steps: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints that stay."""

    def __post_init__(self) -> None:
        """Check what can be checked here."""
        _at_least(self, "checkpoint", 1, "every_steps", "keep")


@dataclass(frozen=True)
class EvalConfig:
    """Validation during training, at full depth on fixed masks."""

    every_steps: int = 1000
    """Steps between validations; there is always one at the end."""
    max_sequences: int = 512
    """Validation sequences used each time; `pld evaluate` uses all."""

    def __post_init__(self) -> None:
        """Check what can be checked here."""
        _at_least(self, "eval", 1, "every_steps", "max_sequences")


@dataclass(frozen=True)
class Config:
    """All of a pre-training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    pld: PldConfig = field(default_factory=PldConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        """Check what concerns several sections."""
        positions = self.model.max_position_embeddings
        _require(
            self.data.seq_len <= positions,
            "data.seq_len",
            f"{self.data.seq_len} tokens do not fit model.max_position_embeddings {positions}",
            "raise the latter or shorten the sequences",
        )
        always = self.pld.keep_first + self.pld.keep_last
        _require(
            always <= self.model.num_hidden_layers,
            "pld.keep_first",
            f"{always} blocks at both ends are more than model.num_hidden_layers {self.model.num_hidden_layers}",
            "keep fewer",
        )
        batch, draws = self.train.global_batch_size, self.pld.draws_per_step
        _require(
            batch % draws == 0,
            "train.global_batch_size",
            f"{batch} sequences do not divide into pld.draws_per_step {draws} gate groups",
            "make it a multiple",
        )
        _require(
            self.data.packing == "stream" or self.data.layout == "spans",
            "data.packing",
            "documents are packed in rows of spans",
            "use data.layout=spans",
        )
        _require(
            not self.objective.next_sentence or self.data.layout == "nsp-pairs",
            "objective.next_sentence",
            "needs sentence pairs",
            "add data.layout=nsp-pairs",
        )

    @property
    def pld_schedule(self) -> Schedule:
        """Build the schedule that trainer and plots share."""
        pld = self.pld
        return Schedule(
            num_blocks=self.model.num_hidden_layers,
            total_steps=self.train.total_steps,
            time=pld.schedule,
            theta_bar=pld.theta_bar,
            gamma=pld.gamma,
            depth_rule=pld.depth_rule,
            draw=pld.draw,
            recovery_fraction=pld.recovery_fraction,
            keep_first=pld.keep_first,
            keep_last=pld.keep_last,
            scale_residual=pld.scale_residual,
        )

    @property
    def flops(self) -> Flops:
        """Count the FLOPs per token, in rows that are one text: what packed documents attend to, only the data know (`Samples`)."""
        return Flops.of_encoder(
            num_blocks=self.model.num_hidden_layers,
            hidden_size=self.model.hidden_size,
            intermediate_size=self.model.intermediate_size,
            vocab_size=self.model.vocab_size,
            seq_len=self.data.seq_len,
            mask_rate=self.objective.mask_probability,
        )

    @property
    def num_parameters(self) -> int:
        """Count the model's parameters."""
        return count_parameters(
            num_blocks=self.model.num_hidden_layers,
            hidden_size=self.model.hidden_size,
            intermediate_size=self.model.intermediate_size,
            vocab_size=self.model.vocab_size,
            num_positions=self.model.max_position_embeddings,
            num_token_types=self.model.type_vocab_size,
            final_norm=self.model.norm == "pre",
            next_sentence=self.objective.next_sentence,
        )

    def share_of_group(self, world_size: int) -> int:
        """Count the sequences of one gate group that each process reads.

        Raises:
            UsageError: The batch does not divide.
        """
        always = self.pld.keep_first + self.pld.keep_last
        _require(
            always <= self.model.num_hidden_layers,
            "pld.keep_first",
            f"{always} blocks at both ends are more than model.num_hidden_layers {self.model.num_hidden_layers}",
            "keep fewer",
        )
        batch, draws = self.train.global_batch_size, self.pld.draws_per_step
        share, rest = divmod(batch, draws * world_size)
        _require(
            rest == 0 and share > 0,
            "train.global_batch_size",
            f"{batch} sequences do not divide over {draws} gate groups x {world_size} processes",
            f"make it a multiple of {draws * world_size}",
        )
        return share

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
        size = max(n for n in range(1, limit + 1) if share % n == 0)
        _require(
            chosen == "auto" or size == limit,
            "train.micro_batch_size",
            f"{chosen} does not divide the {share} sequences of a gate group on one process",
            f"try train.micro_batch_size={size}",
        )
        return share // size, size


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """List every knob of a configuration as dotted key and value."""
    flat: dict[str, Any] = {}
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        flat |= flatten(value, f"{prefix}{item.name}.") if is_dataclass(value) else {prefix + item.name: value}
    return flat


@cache
def documentation() -> dict[str, str]:
    """Collect the docstring of every knob and section by dotted key."""
    texts: dict[str, str] = {}
    for section, cls in get_type_hints(Config).items():
        texts[section] = inspect.getdoc(cls) or ""
        texts |= {f"{section}.{name}": text for name, text in field_docstrings(cls).items()}
    return texts


def field_docstrings(cls: type) -> dict[str, str]:
    """Collect what stands below each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        statement.target.id: str(after.value.value)
        for statement, after in zip(body.body, body.body[1:], strict=False)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }


def choices(annotation: Any) -> tuple[Any, ...]:
    """List the literal values that an annotation allows."""
    return tuple(value for value in get_args(annotation) if isinstance(value, str))


def describe_dropping(config: Config) -> str:
    """Say in one phrase what is dropped."""
    pld, schedule = config.pld, config.pld_schedule
    if pld.theta_bar == 1.0:
        return "nothing dropped"
    parts = [f"{pld.schedule} to theta_bar {pld.theta_bar:g}" if pld.schedule != "growing" else f"growing from theta {pld.theta_bar:g}"]
    if pld.recovery_fraction:
        parts.append(f"the last {pld.recovery_fraction:.0%} at full depth")
    always = [f"the {end} {count}" for end, count in (("first", pld.keep_first), ("last", pld.keep_last)) if count]
    if always:
        parts.append(f"{' and '.join(always)} always kept")
    if pld.gamma != "auto" and pld.schedule == "exponential":
        parts.append(f"gamma {pld.gamma:g}")
    parts += [f"depth rule {pld.depth_rule}", f"draw {pld.draw}"]
    parts += [f"{pld.draws_per_step} draws per step"] if pld.draws_per_step > 1 else []
    parts += [] if pld.scale_residual else ["residuals not scaled"]
    return f"{', '.join(parts)}: {schedule.mean_kept_fraction * schedule.num_blocks:.2f} of {schedule.num_blocks} blocks on average"

"""Time pre-training steps of pld against transformers, in turn, on this machine.

    pip install -e '.[bench]'
    python benchmarks/pretrain_vs_transformers.py --shapes L4-H256 --vocab 8192 --precision fp32 bf16 --threads 1 --out table.md

The same masked tensors for all, the same weights where the architecture is the same, weights in float32, dropout equal, clipping at 1,
fused AdamW with equal settings, constant learning rate. Nothing is timed unless the losses of all systems with equal weights agree to
1e-5 in float32 on the first batch. All systems live in this process and take a few steps when it is their turn; the first turn is
another system's in every round. Ratios are of the same round; their median counts, and for PLD the mean, because its steps differ.

Our engine tells the C library to keep freed memory, and in one process that serves the others too. With `--own-processes` each system
has a process of its own and the memory that it would have in use; what that is worth depends on what a page fault costs on the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pldcli import __version__, atomic
from pldcli.config import Config, DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, PldConfig, TrainConfig
from pldcli.data.loader import Batch, moved_to
from pldcli.data.tokenizer import load_tokenizer
from pldcli.engine.checkpoint import Position
from pldcli.engine.environment import hardware_name
from pldcli.engine.objectives import MaskedLm, encode
from pldcli.engine.optim import build_optimizer, learning_rate
from pldcli.engine.precision import resolve_precision
from pldcli.engine.runtime import Runtime, launch
from pldcli.engine.signals import StopRequest
from pldcli.engine.trainer import Trainer
from pldcli.huggingface.load import load_pretrained
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert

WARM_UP_STEPS = 4
NUM_BATCHES = 8
"""Fixed batches; they come again and again."""
MASK_RATE = 0.15
TOLERANCE = 1e-5
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLS, SEP, MASK = 2, 3, 4
SYSTEMS = {
    "bert": "BertForMaskedLM, plain loop",
    "bert-trainer": "BertForMaskedLM, Trainer's defaults (float32)",
    "modernbert": "ModernBertForMaskedLM, plain loop",
    "modernbert-sparse": "ModernBertForMaskedLM, sparse_prediction, plain loop",
    "full-head": "pld dense, full head",
    "dense": "pld dense",
    "dense-preln": "pld dense, Pre-LN",
    "pld": "PLD",
}
EQUAL_WEIGHTS = ("bert", "bert-trainer", "full-head", "dense")
USUAL = ("bert", "modernbert", "full-head", "dense", "dense-preln", "pld")


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
            ModelConfig(
                num_hidden_layers=blocks,
                hidden_size=width,
                num_attention_heads=width // 64,
                intermediate_size=4 * width,
                vocab_size=self.vocab_size,
                max_position_embeddings=max(512, self.seq_len),
                norm=norm,  # type: ignore[arg-type]
                dropout=self.dropout,
            ),
            PldConfig(schedule="constant", theta_bar=theta_bar, depth_rule="paper", draw="fixed-depth"),
            DataConfig(seq_len=self.seq_len),
            ObjectiveConfig(mask_probability=self.masked_per_row / self.seq_len),
            OptimConfig(learning_rate=1e-4, schedule="constant", warmup_fraction=0.0, max_grad_norm=1.0),
            TrainConfig(total_steps=self.total_steps, global_batch_size=self.rows, seed=self.seed),
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


class System(Protocol):
    """One of the programs that are compared."""

    def loss(self) -> float:
        """Compute the loss of the first batch in float32, without dropout."""
        ...

    def num_parameters(self) -> int:
        """Count the trainable numbers."""
        ...

    def take(self, steps: int) -> float:
        """Take steps; return their seconds."""
        ...

    def close(self) -> None:
        """End what runs."""
        ...


@dataclass(frozen=True)
class FullHead:
    """Masked-LM with the vocabulary scored at every position, as transformers does."""

    names: tuple[str, ...] = ("mlm",)

    def num_targets(self, batch: Labelled) -> list[int]:
        """Count the labels."""
        return [int(batch.labels.ne(-100).sum())]

    def loss_sums(self, model: StBert, batch: Labelled, gates: Sequence[bool] | None, residual_scales_L: Tensor | None) -> Tensor:
        """Add up the loss over the labels."""
        logits_BTV = model.mlm_logits(encode(model, batch, gates, residual_scales_L))
        return functional.cross_entropy(logits_BTV.flatten(0, 1).float(), batch.labels.flatten(), reduction="sum")[None]


@dataclass(frozen=True)
class FixedBatches:
    """The same batches again and again, one per step."""

    batches: list[Any]

    def step(self, step: int) -> list[list[Any]]:
        """Give the batch of a step: one gate group, one micro-step."""
        return [[self.batches[step % len(self.batches)]]]

    def from_step(self, first: int, stop: int) -> Iterator[list[list[Any]]]:
        """Yield the batches of steps first..stop-1."""
        return map(self.step, range(first, stop))

    def num_sequences(self, step: int) -> int:
        """Count the rows of a step."""
        return len(self.batches[0].input_ids)


class Ours:
    """Our engine: Post-LN with the weights that transformers has too, or Pre-LN, dense or with layers dropped."""

    def __init__(self, name: str, case: Case, runtime: Runtime) -> None:
        config = case.config("pre" if name in ("pld", "dense-preln") else "post", theta_bar=0.5 if name == "pld" else 1.0)
        model = load_ours(case) if name in EQUAL_WEIGHTS else StBert(**vars(config.model), seed=case.seed)
        model.to(runtime.device).train()
        if case.compiled:
            for part in (model.embeddings, *model.blocks):
                part.compile()
        batches = labelled_batches(case)
        self._trainer: Trainer[FixedBatches] = Trainer(
            model,
            objective=FullHead() if name == "full-head" else MaskedLm(compiled=case.compiled),
            schedule=config.pld_schedule,
            optimizer=build_optimizer(model, config.optim),
            batches=FixedBatches(batches if name == "full-head" else [masked_batch(batch) for batch in batches]),
            learning_rate=lambda step: learning_rate(step, case.total_steps, config.optim),
            max_grad_norm=config.optim.max_grad_norm,
            precision=resolve_precision(case.precision, runtime.device),  # type: ignore[arg-type]
            runtime=runtime,
            flops=config.flops,
            seed=case.seed,
        )
        self._step = self._wanted = 0
        self._run = self._trainer.steps(Position(), observe=lambda step: step == self._wanted, stop=StopRequest())

    def loss(self) -> float:
        trainer = self._trainer
        [[batch]] = trainer.batches.step(0)
        trainer.model.eval()
        with torch.no_grad():
            total = trainer.objective.loss_sums(trainer.model, batch.to(trainer.runtime.device), None, None).sum()
        trainer.model.train()
        return float(total) / trainer.objective.num_targets(batch)[0]

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._trainer.model.parameters())

    def take(self, steps: int) -> float:
        self._wanted += steps
        began = time.perf_counter()
        seen = next(self._run)
        seconds = time.perf_counter() - began
        assert seen.position.step == self._wanted
        return seconds

    def close(self) -> None:
        self._run.close()


def load_ours(case: Case) -> StBert:
    """Read the common weights as our engine does."""
    return load_pretrained(Path(case.weights)).masked_lm(dropout=case.dropout)


def load_theirs(name: str, case: Case) -> Any:
    """Read the common weights as transformers does, or draw those of a ModernBERT of about as many parameters."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if name not in ("modernbert", "modernbert-sparse"):
        return transformers.BertForMaskedLM.from_pretrained(case.weights, attn_implementation="sdpa", dtype=torch.float32)
    blocks, width = case.sizes
    torch.manual_seed(case.seed)
    config = transformers.ModernBertConfig(
        vocab_size=case.vocab_size,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        intermediate_size=gated_width(width),
        max_position_embeddings=max(512, case.seq_len),
        layer_types=None if case.local_attention else ["full_attention"] * blocks,
        attention_dropout=case.dropout,
        embedding_dropout=case.dropout,
        mlp_dropout=case.dropout,
        sparse_prediction=name == "modernbert-sparse",
        pad_token_id=0,
        bos_token_id=CLS,
        cls_token_id=CLS,
        eos_token_id=SEP,
        sep_token_id=SEP,
        attn_implementation="sdpa",
    )
    return transformers.ModernBertForMaskedLM(config)


def gated_width(hidden_size: int) -> int:
    """Choose the width of a gated feed-forward layer, 3 H F numbers, nearest to the 8 H^2 of a plain one; a multiple of 32."""
    return 32 * round(8 * hidden_size / 3 / 32)


class Theirs:
    """A model of transformers with its full head in a plain loop."""

    def __init__(self, name: str, case: Case) -> None:
        self._case, self._device, self._step = case, this_device(), 0
        self._model = load_theirs(name, case).to(self._device).train()
        if case.compiled:
            self._model.compile()
        self._batches = labelled_batches(case)
        optim = case.config("post").optim
        groups = [
            {"params": [p for p in self._model.parameters() if p.ndim > 1], "weight_decay": optim.weight_decay},
            {"params": [p for p in self._model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        betas = (optim.beta1, optim.beta2)
        self._optimizer = torch.optim.AdamW(groups, lr=optim.learning_rate, betas=betas, eps=optim.eps, fused=True)
        self._max_grad_norm = optim.max_grad_norm

    def loss(self) -> float:
        return their_loss(self._model, self._batches[0].to(self._device))

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._model.parameters())

    def take(self, steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            batch = self._batches[self._step % NUM_BATCHES].to(self._device)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._case.precision == "bf16"):
                loss = self._model(input_ids=batch.input_ids, labels=batch.labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._max_grad_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
            self._step += 1
        synchronize()
        return time.perf_counter() - began

    def close(self) -> None:
        pass


class TheirTrainer:
    """BertForMaskedLM in transformers.Trainer, which owns its loop: it runs in a thread and waits for its turn behind each step."""

    def __init__(self, case: Case) -> None:
        self._case, self._model, self._batches = case, load_theirs("bert", case), labelled_batches(case)
        self._turn, self._over = threading.Semaphore(0), threading.Semaphore(0)
        self._left, self._closed, self._ended = 0, False, False
        self._thread = threading.Thread(target=self._train, daemon=True)

    def loss(self) -> float:
        return their_loss(self._model, self._batches[0].to(next(self._model.parameters()).device))

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._model.parameters())

    def take(self, steps: int) -> float:
        if self._thread.ident is None:
            self._thread.start()
        began = time.perf_counter()
        self._left = steps
        self._turn.release()
        self._over.acquire()
        if self._ended:
            sys.exit("transformers.Trainer ended before its time")
        return time.perf_counter() - began

    def close(self) -> None:
        self._closed = True
        self._turn.release()
        if self._thread.is_alive():
            self._thread.join()

    def _train(self) -> None:
        import transformers

        this, examples = self, []
        for batch in self._batches:
            examples += [{"input_ids": ids, "labels": labels} for ids, labels in zip(batch.input_ids, batch.labels, strict=True)]

        class Turns(transformers.TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                this._turn.acquire()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                this._left -= 1
                if this._left == 0:
                    synchronize()
                    this._over.release()
                    this._turn.acquire()
                control.should_training_stop |= this._closed

        steps = self._case.total_steps + 1  # the last one is never asked for: what Trainer does at its end is not a step
        dataset = examples * -(-steps * self._case.rows // len(examples))
        try:
            with tempfile.TemporaryDirectory() as scratch:
                arguments = transformers.TrainingArguments(
                    output_dir=scratch,
                    max_steps=steps,
                    per_device_train_batch_size=self._case.rows,
                    use_cpu=not torch.cuda.is_available(),
                    report_to=[],
                    disable_tqdm=True,
                    save_strategy="no",
                )
                trainer = transformers.Trainer(model=self._model, args=arguments, train_dataset=dataset, callbacks=[Turns()])
                trainer.remove_callback(transformers.PrinterCallback)  # our standard output is not its own
                trainer.train()
        finally:  # the caller waits in another thread: it must hear of an early end, whatever the reason
            self._ended = True
            self._over.release()


def their_loss(model: Any, batch: Labelled) -> float:
    model.eval()
    with torch.no_grad():
        loss = float(model(input_ids=batch.input_ids, labels=batch.labels).loss)
    model.train()
    return loss


class Elsewhere:
    """A system in a process of its own, which waits while it is not its turn."""

    def __init__(self, name: str, case: Case) -> None:
        words = [sys.executable, __file__, "--worker", json.dumps([name, asdict(case)])]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._name = name

    def loss(self) -> float:
        return float(self._ask("loss"))

    def num_parameters(self) -> int:
        return int(self._ask("num_parameters"))

    def take(self, steps: int) -> float:
        return float(self._ask("take", steps))

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, method: str, *arguments: int) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            sys.exit(f"the process of {self._name} ended")
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"the process of {self._name} ended")
        return json.loads(answer)


def serve(name: str, case: Case) -> None:
    """Answer on standard output, which nothing else may write to, until standard input closes."""
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(case.threads)
    with ExitStack() as stack:
        system = build(name, case, stack)
        for line in sys.stdin:
            method, *arguments = json.loads(line)
            print(json.dumps(getattr(system, method)(*arguments)), file=answers, flush=True)


def build(name: str, case: Case, stack: ExitStack) -> System:
    """Make a system in this process."""
    system: System
    if name == "bert-trainer":
        system = TheirTrainer(case)
    elif SYSTEMS[name].startswith(("Bert", "Modern")):
        system = Theirs(name, case)
    else:
        system = Ours(name, case, stack.enter_context(launch()))
    stack.callback(system.close)
    return system


@torch.no_grad()
def save_weights(case: Case) -> None:
    """Write weights of a Post-LN model as transformers reads them; the tokenizer that belongs to such a directory is a stand-in.

    Under BERT's small initial weights any model's loss is the logarithm of V, whatever its blocks do. These weights are larger, biases
    and norms among them are random too, and so each of them shows in the loss.
    """
    directory, settings = Path(case.weights), case.config("post").model
    (directory / "vocab.txt").write_text("\n".join(SPECIAL), encoding="utf-8")
    model = StBert(**vars(replace(settings, initializer_range=settings.hidden_size**-0.5)), seed=case.seed)
    generator = torch.Generator().manual_seed(case.seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    save_pretrained(directory, model, settings, tokenizer=load_tokenizer(directory / "vocab.txt"), seq_len=case.seq_len)


def require_equal(losses: dict[str, float], what: str) -> None:
    """Refuse to go on when systems with equal weights differ in their loss."""
    said = ", ".join(f"{name} {loss:.7f}" for name, loss in losses.items())
    print(f"{what}: float32 losses before the first step: {said}", file=sys.stderr, flush=True)
    compared = [loss for name, loss in losses.items() if name in EQUAL_WEIGHTS]
    if not max(compared) - min(compared) <= TOLERANCE * min(compared):
        sys.exit(f"{what}: with equal weights the losses differ by more than {TOLERANCE:g} of them: {said}")


@dataclass
class Found:
    """What was measured of one case."""

    case: Case
    steps_per_round: int
    losses: dict[str, float] = field(default_factory=dict)
    num_parameters: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Per system, of each round."""

    def times(self, name: str, base: str) -> list[float]:
        """Divide the times of two systems, round by round."""
        return [own / other for own, other in zip(self.seconds[name], self.seconds[base], strict=True)]

    def middle(self, name: str, values: Sequence[float]) -> float:
        """Sum rounds up: PLD's differ in what they draw, so that the median is not what a run takes."""
        return statistics.fmean(values) if name == "pld" else statistics.median(values)

    def rows(self) -> list[str]:
        """Write the lines of the table."""
        lines = []
        for name, seconds in self.seconds.items():
            times = self.times(name, "bert")
            rate = self.case.tokens * self.steps_per_round / self.middle(name, seconds)
            ratio = "1" if name == "bert" else f"{1 / self.middle(name, times):.2f} ({1 / max(times):.2f} to {1 / min(times):.2f})"
            place = f"{self.case.shape} | {self.case.vocab_size:,} | {SYSTEMS[name]} | {self.num_parameters[name] / 1e6:.2f}"
            lines.append(f"| {place} | {rate:,.0f} | {ratio} |")
        return lines

    def savings(self) -> list[str]:
        """Compare PLD with its dense twin: time saved, and operations saved as predicted and by the blocks that ran."""
        if not {"pld", "dense-preln"} <= self.seconds.keys():
            return []
        case, config = self.case, self.case.config("pre", theta_bar=0.5)
        schedule, blocks = config.pld_schedule, config.model.num_hidden_layers
        kept = statistics.fmean(schedule.plan(step, 0, seed=case.seed).kept_blocks for step in range(WARM_UP_STEPS, case.total_steps))
        predicted, executed = config.flops.total_saved(schedule.mean_kept_fraction), config.flops.total_saved(kept / blocks)
        times = self.times("pld", "dense-preln")
        saved = 1.0 - statistics.fmean(times)
        cells = f"{kept:.3f} of {blocks} | {1 - saved:.3f} ({min(times):.3f} to {max(times):.3f}) | {saved:.3f}"
        end = f"{predicted:.3f} | {executed:.3f} | {saved / predicted:.2f} | {saved / executed:.2f}"
        return [f"| {case.shape} | {case.vocab_size:,} | {cells} | {end} |"]


def measure(case: Case, names: Sequence[str], rounds: int, steps: int, *, own_processes: bool) -> Found:
    """Let the systems take their steps in turn."""
    found = Found(case, steps)
    what = f"{case.shape}, V {case.vocab_size:,}, {case.precision}"
    with ExitStack() as stack:
        systems: dict[str, System] = {}
        for name in names:
            systems[name] = Elsewhere(name, case) if own_processes else build(name, case, stack)
            if own_processes:
                stack.callback(systems[name].close)
        found.losses = {name: system.loss() for name, system in systems.items()}
        require_equal(found.losses, what)
        found.num_parameters = {name: system.num_parameters() for name, system in systems.items()}
        found.seconds = {name: [] for name in names}
        for system in systems.values():
            system.take(WARM_UP_STEPS)
        for turn in range(rounds):
            first = turn % len(names)
            for name in (*names[first:], *names[:first]):
                found.seconds[name].append(systems[name].take(steps))
    return found


def main() -> None:
    options = parse()
    if options.worker:
        name, case = json.loads(options.worker)
        serve(name, Case(**case))
        return
    torch.set_num_threads(options.threads)
    names = [name for name in SYSTEMS if name == "bert" or name in options.systems or (options.trainer and name == "bert-trainer")]
    measured: list[Found] = []
    for precision in options.precision:
        for shape in options.shapes:
            for vocab_size in options.vocab:
                with tempfile.TemporaryDirectory() as scratch:
                    case = make_case(options, shape, vocab_size, precision, scratch)
                    save_weights(case)
                    found = measure(case, names, options.rounds, options.steps, own_processes=options.own_processes)
                measured.append(found)
                print(*found.rows(), *found.savings(), sep="\n", file=sys.stderr, flush=True)
                if options.out:
                    atomic.write_text(options.out, report(measured, options))
    print(report(measured, options))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--shapes", nargs="+", default=["L4-H256", "L6-H384", "L12-H768"], help="layers and width; heads are 64 wide, F = 4 H"
    )
    parser.add_argument("--vocab", nargs="+", type=int, default=[8192, 30522], help="entries of the vocabulary")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--systems", nargs="+", default=list(USUAL), choices=list(SYSTEMS), help="`bert` is always there")
    parser.add_argument("--trainer", action="store_true", help="BertForMaskedLM in Trainer with its defaults too, which is slow")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each system that count")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--seq-len", type=int, default=128, help="tokens of a row")
    parser.add_argument("--dropout", type=float, default=0.0, help="on both sides, everywhere")
    parser.add_argument("--local-attention", action="store_true", help="ModernBERT's default layers instead of global attention in all")
    parser.add_argument("--compile", action="store_true", help="torch.compile: our parts as the engine does, their whole model")
    parser.add_argument(
        "--own-processes", action="store_true", help="each system in a process of its own, with the memory that it asks for"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="a markdown file for the tables, written after each shape")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tokens % options.seq_len or options.rounds < 1 or options.steps < 1:
        parser.error("--tokens must be a multiple of --seq-len, and --rounds and --steps at least 1")
    return options


def make_case(options: argparse.Namespace, shape: str, vocab_size: int, precision: str, weights: str) -> Case:
    return Case(
        shape=shape,
        vocab_size=vocab_size,
        precision=precision,
        seq_len=options.seq_len,
        tokens=options.tokens,
        dropout=options.dropout,
        threads=options.threads,
        total_steps=WARM_UP_STEPS + options.rounds * options.steps,
        local_attention=options.local_attention,
        compiled=options.compile,
        seed=options.seed,
        weights=weights,
    )


def report(measured: Sequence[Found], options: argparse.Namespace) -> str:
    import transformers

    case = measured[0].case
    where = "each in a process of its own" if options.own_processes else "all in one process, in which freed memory is kept"
    facts = (
        f"{options.rounds} rounds of {options.steps} steps of each system in turn after {WARM_UP_STEPS} to warm up, {where}, "
        f"{options.threads} thread(s), {case.rows} rows of {case.seq_len} tokens a step, {case.masked_per_row} targets in each, dropout "
        f"{case.dropout:g}, {'compiled' if case.compiled else 'nothing compiled'}. {hardware_name(this_device())}; pldcli {__version__}, "
        f"transformers {transformers.__version__}, torch {torch.__version__}, Python {platform.python_version()}."
    )
    attention = "in two of three layers local, its default" if case.local_attention else "global in every layer"
    notes = (
        f"BertForMaskedLM and our Post-LN model (`{SYSTEMS['full-head']}`, `{SYSTEMS['dense']}`) have the same weights; their float32 "
        f"losses on the first batch agree to {TOLERANCE:g} (largest difference here {largest_difference(measured):.1e} of the loss). "
        f"ModernBERT is another architecture with as many layers, the same width and about as many parameters (gated feed-forward "
        f"layer of {' and '.join(dict.fromkeys(str(gated_width(found.case.sizes[1])) for found in measured))}), attention {attention}. "
        f"Plain loops have autocast in bf16 tables; Trainer's defaults are float32 in all. PLD: theta_bar 0.5 constant, depth rule "
        f"`paper`, draw `fixed-depth`, Pre-LN; its rate and ratios are means, all others medians of the rounds (lowest to highest)."
    )
    parts = [f"# Pre-training against transformers\n\n    {shlex.join(['python', *sys.argv])}\n\n{facts}\n\n{notes}\n"]
    for precision in dict.fromkeys(found.case.precision for found in measured):
        of_it = [found for found in measured if found.case.precision == precision]
        head = "| shape | V | system | M parameters | tokens/s | rate / BertForMaskedLM, plain loop |\n|---|---|---|---|---|---|"
        parts.append("\n".join([f"## {precision}\n\n{head}", *(line for found in of_it for line in found.rows())]) + "\n")
        if savings := [line for found in of_it for line in found.savings()]:
            head = (
                "| shape | V | blocks kept | PLD / dense Pre-LN, time | time saved | operations saved, predicted | by the blocks that ran "
                "| time saved / predicted | / by the blocks that ran |\n|---|---|---|---|---|---|---|---|---|"
            )
            parts.append("\n".join([head, *savings]) + "\n")
    return "\n".join(parts)


def largest_difference(measured: Sequence[Found]) -> float:
    """Find the largest relative difference of losses among systems with equal weights."""
    compared = [[loss for name, loss in found.losses.items() if name in EQUAL_WEIGHTS] for found in measured]
    return max((max(losses) - min(losses)) / min(losses) for losses in compared)


def this_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()

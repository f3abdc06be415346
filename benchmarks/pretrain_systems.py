"""The programs that benchmarks/pretrain_vs_transformers.py compares: our engine, and transformers in a loop or in its Trainer."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from measuring import synchronize, this_device
from pldcli.engine.objectives import MaskedLm, encode
from pldcli.engine.precision import resolve_precision
from pldcli.engine.runtime import Runtime, launch
from pldcli.engine.trainer import Trainer
from pldcli.huggingface.load import load_pretrained
from pldcli.model import StBert
from pldcli.optimizers.build import build_optimizer, learning_rate
from pldcli.runs.checkpoint import Position
from pldcli.system.signals import StopRequest
from pretrain_cases import CLS, NUM_BATCHES, SEP, Case, Labelled, gated_width, labelled_batches, masked_batch, modern_weights

__all__ = [
    "DROPPING",
    "EQUAL_WEIGHTS",
    "FULL_HEAD",
    "MODERN",
    "OUR_MODERN",
    "SYSTEMS",
    "Elsewhere",
    "System",
    "build",
    "gated_width",
    "serve",
]

SYSTEMS = {
    "bert": "BertForMaskedLM, plain loop",
    "bert-trainer": "BertForMaskedLM, Trainer's defaults (float32)",
    "modernbert": "ModernBertForMaskedLM, plain loop",
    "modernbert-sparse": "ModernBertForMaskedLM, sparse_prediction, plain loop",
    "full-head": "pld dense, full head",
    "dense": "pld dense",
    "dense-preln": "pld dense, Pre-LN",
    "pld": "PLD",
    "modernbert-trainer": "ModernBertForMaskedLM, Trainer's defaults (float32)",
    "modern-full-head": "pld modern, full head",
    "modern": "pld modern",
    "modern-pld": "PLD modern",
}
EQUAL_WEIGHTS = (
    ("bert", "bert-trainer", "full-head", "dense"),
    ("modernbert", "modernbert-sparse", "modernbert-trainer", "modern-full-head", "modern"),
)
"""Systems that begin with the same weights; the second ones where ours is among them."""
OUR_MODERN = ("modern-full-head", "modern", "modern-pld")
MODERN = ("modernbert", "modernbert-sparse", "modernbert-trainer", *OUR_MODERN)
FULL_HEAD = ("bert", "bert-trainer", "full-head", "modernbert", "modernbert-trainer", "modern-full-head")
DROPPING = ("pld", "modern-pld")


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

    def sequences(self, first: int, stop: int) -> str:
        """Name the batches of steps first..stop-1."""
        return f"batches {first} to {stop - 1}"


class Ours:
    """Our engine: Post-LN with the weights that transformers has too, or Pre-LN, dense or with layers dropped."""

    def __init__(self, name: str, case: Case, runtime: Runtime) -> None:
        kind = "modern" if name in OUR_MODERN else "pre" if name in ("pld", "dense-preln") else "post"
        config = case.config(kind, theta_bar=0.5 if name in DROPPING else 1.0)
        has_peer = any(name in names for names in EQUAL_WEIGHTS)
        model = load_ours(case) if has_peer else StBert(**dict(config.model), seed=case.seed)
        model.to(runtime.device).train()
        if case.compiled:
            model.compile_parts()
        batches = labelled_batches(case)
        self._trainer: Trainer[FixedBatches] = Trainer(
            model,
            objective=FullHead() if name in FULL_HEAD else MaskedLm(compiled=case.compiled),
            schedule=config.pld_schedule,
            optimizer=build_optimizer(model, config.optim),
            batches=FixedBatches(batches if name in FULL_HEAD else [masked_batch(batch) for batch in batches]),
            learning_rate=lambda step: learning_rate(step, case.total_steps, config.optim, warmup_steps=config.warmup_steps),
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
    if name not in MODERN:
        return transformers.BertForMaskedLM.from_pretrained(case.weights, attn_implementation="sdpa", dtype=torch.float32)
    is_sparse = name == "modernbert-sparse"
    if Path(case.weights).is_dir() and Path(case.weights).name == "modern":
        given = {"attn_implementation": "sdpa", "dtype": torch.float32, "sparse_prediction": is_sparse}
        given |= dict.fromkeys(("attention_dropout", "embedding_dropout", "mlp_dropout"), case.dropout)
        return transformers.ModernBertForMaskedLM.from_pretrained(case.weights, **given)
    blocks, width = case.sizes
    torch.manual_seed(case.seed)
    config = transformers.ModernBertConfig(
        vocab_size=case.vocab_size,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=case.num_heads,
        intermediate_size=gated_width(width),
        max_position_embeddings=max(512, case.seq_len),
        layer_types=None if case.local_attention else ["full_attention"] * blocks,
        attention_dropout=case.dropout,
        embedding_dropout=case.dropout,
        mlp_dropout=case.dropout,
        sparse_prediction=is_sparse,
        pad_token_id=0,
        bos_token_id=CLS,
        cls_token_id=CLS,
        eos_token_id=SEP,
        sep_token_id=SEP,
        attn_implementation="sdpa",
    )
    return transformers.ModernBertForMaskedLM(config)


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
    """A model of transformers in its Trainer, which owns its loop: it runs in a thread and waits for its turn behind each step."""

    def __init__(self, name: str, case: Case) -> None:
        self._case, self._model, self._batches = case, load_theirs(name, case), labelled_batches(case)
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
        script = Path(__file__).with_name("pretrain_vs_transformers.py")
        words = [sys.executable, str(script), "--worker", json.dumps([name, asdict(case)])]
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
    if name in MODERN and Path(modern_weights(case).weights).is_dir():
        case = modern_weights(case)
    if name.endswith("-trainer"):
        system = TheirTrainer(name, case)
    elif SYSTEMS[name].startswith(("Bert", "ModernBert")):
        system = Theirs(name, case)
    else:
        system = Ours(name, case, stack.enter_context(launch()))
    stack.callback(system.close)
    return system

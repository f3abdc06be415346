"""Measure how the cost of training grows: with length, depth, width, vocabulary, micro-batch and the size of the corpus.

    python benchmarks/growth.py --results growth --threads 1 --corpus text.jsonl --out growth.md --plot growth.png
    python benchmarks/growth.py --results growth --threads 1 --axes length depth     # a part of the work
    python benchmarks/growth.py --results growth --threads 1 --table --out growth.md --plot growth.png

One axis at a time around a base point, every point `--rounds` times in turn with the others, each time in a fresh process, through
the engine that `pld pretrain` uses. A measurement leaves one JSON file in --results and is not made again, so the work can be split.
Memory is a process's peak beyond its floor: what it holds after it has trained a model of no size on a little text.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pldcli import __version__, atomic, presets
from pldcli.canvas import COLOURS, STYLE, check_picture_path, new_figure, save_figure
from pldcli.config import Config
from pldcli.data.docstrings import docstring_corpus
from pldcli.data.prepare import available_processes, prepare
from pldcli.data.shards import PreparedData, open_prepared
from pldcli.engine.checkpoint import Position
from pldcli.engine.environment import hardware_name
from pldcli.engine.pretrain import build_trainer
from pldcli.engine.runtime import Runtime, launch
from pldcli.engine.signals import StopRequest

BASE = {"depth": 4, "width": 256, "vocabulary": 8192, "length": 128, "micro-batch": 16}
NO_SIZE = {"depth": 1, "width": 32, "length": 32, "micro-batch": 1}
WARM_UP_STEPS = 2
DOCUMENTATION_BYTES = 5_000_000
BATCH_STEPS = 200


@dataclass(frozen=True)
class Axis:
    """What is varied, and how a reader calls it."""

    label: str
    values: tuple[float, ...]


AXES = {
    "length": Axis("tokens per sequence", (64, 128, 256, 512, 1024)),
    "depth": Axis("blocks", (2, 4, 8, 12)),
    "width": Axis("hidden size", (128, 256, 512, 768)),
    "vocabulary": Axis("vocabulary", (2048, 8192, 30528, 60032)),
    "micro-batch": Axis("sequences per step", (1, 4, 16, 64)),
    "corpus": Axis("MB of text", (10, 100, 300)),
}


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.one:
        task = json.loads(options.one)
        print(json.dumps(MEASUREMENTS[task["kind"]](task)))
        return
    if options.plot:
        check_picture_path(options.plot)
    options.results.mkdir(parents=True, exist_ok=True)
    if not options.table:
        measure_missing(options)
    found = Results(options)
    document = make_document(found, options)
    print(document)
    if options.out:
        atomic.write_text(options.out, document)
    if options.plot:
        draw(found, options.plot)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("growth"), help="a directory for one JSON file per measurement")
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    for name, axis in AXES.items():
        kind = float if name == "corpus" else int
        parser.add_argument(f"--{name}-values", nargs="+", type=kind, default=list(axis.values), metavar="N", help=axis.label)
    parser.add_argument("--base", nargs="*", default=[], metavar="AXIS=N", help=f"changes of the base point {BASE}")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each point, in turn with the others")
    parser.add_argument("--steps", type=int, default=5, help="training steps that count in each measurement")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--processes", type=int, default=available_processes(), help="of prepare-data")
    parser.add_argument("--data", type=Path, help="prepared data to train on; by default made of installed documentation")
    parser.add_argument("--corpus", type=Path, nargs="+", help="text to cut or repeat to size; by default installed documentation")
    parser.add_argument("--table", action="store_true", help="only write table and plot of what is there")
    parser.add_argument("--out", type=Path, help="a markdown file for the tables")
    parser.add_argument("--plot", type=Path, help="a .png or .svg file, one panel per axis")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.base = BASE | {key: int(value) for key, _, value in (word.partition("=") for word in options.base)}
    if set(options.base) != set(BASE):
        parser.error(f"--base takes {', '.join(BASE)}")
    return options


# What is measured


def points_of(axis: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Describe each point of an axis: what its process needs to know, without places."""
    settings = {"threads": options.threads, "precision": options.precision}
    for value in values_of(axis, options):
        if axis == "corpus":
            shape = {"corpus": value, **{key: options.base[key] for key in ("vocabulary", "length", "micro-batch")}}
            yield {"kind": "prepare", "shape": shape, "processes": options.processes, **settings}
        else:
            yield {"kind": "step", "shape": {**options.base, axis: value}, **settings}


def values_of(axis: str, options: argparse.Namespace) -> list[float]:
    return list(getattr(options, f"{axis.replace('-', '_')}_values"))


def place_of(point: Mapping[str, Any], number: int, options: argparse.Namespace) -> Path:
    words = [point["kind"], *(f"{key}{value:g}" for key, value in point["shape"].items())]
    words += [f"processes{point['processes']}"] if "processes" in point else []
    words += [point["precision"], f"threads{point['threads']}", f"round{number}"]
    return options.results / f"{'-'.join(words)}.json"


def measure_missing(options: argparse.Namespace) -> None:
    """Measure what is not there yet: round by round, so that the points of an axis take turns."""
    with tempfile.TemporaryDirectory(dir=options.results, prefix=".scratch-") as scratch:
        data: Path | None = options.data
        for number in range(options.rounds):
            for point in [point for axis in options.axes for point in points_of(axis, options)]:
                place = place_of(point, number, options)
                if place.exists():
                    continue
                data = data or make_data(Path(scratch), options)
                task = {**point, "data": str(data), "steps": options.steps}
                result = in_a_process(task, options) if point["kind"] == "step" else measure_corpus(task, Path(scratch), options)
                result = {**point, "round": number, **result, **facts(options)}
                atomic.write_text(place, json.dumps(result, indent=1) + "\n")
                print(f"round {number + 1}, {describe(point)}: {brief(result)}", file=sys.stderr, flush=True)


def describe(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in point["shape"].items())


def brief(result: Mapping[str, Any]) -> str:
    if result["kind"] == "step":
        return f"{statistics.median(result['seconds']):.4f} s per step, {megabytes(result['memory_bytes'])} MB"
    return f"prepared in {result['prepare']['seconds']:.1f} s with {megabytes(result['prepare']['memory_bytes'])} MB"


def make_data(scratch: Path, options: argparse.Namespace) -> Path:
    """Prepare a small corpus whose vocabulary fits into that of every point."""
    vocabularies = [options.base["vocabulary"], *(options.vocabulary_values if "vocabulary" in options.axes else [])]
    prepare([documentation(scratch)], scratch / "data", vocab_size=min(2048, *vocabularies), processes=1, quiet=True)
    return scratch / "data"


def facts(options: argparse.Namespace) -> dict[str, str]:
    return {
        "hardware": hardware_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "software": f"pldcli {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "command": shlex.join(["python", *sys.argv]),
    }


def in_a_process(task: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Measure in a fresh process, and look at the peaks of the processes that it starts."""
    words = [sys.executable, __file__, "--threads", str(options.threads), "--one", json.dumps(task)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(words, stdout=out, stderr=err)
        peaks: dict[int, int] = {}
        while process.poll() is None:
            for child in descendants(process.pid):
                peaks[child] = memory_of(child).get("VmHWM", peaks.get(child, 0))
            time.sleep(0.05)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            sys.exit(f"{describe(task)}:\n{err.read()}")
        return {**json.loads(out.read().splitlines()[-1]), "workers_bytes": sum(peaks.values()), "workers": len(peaks)}


# In the fresh process


def measure_step(task: Mapping[str, Any]) -> dict[str, Any]:
    """Time training steps at one shape."""
    shape = task["shape"]
    config = configure(shape, task["steps"] + WARM_UP_STEPS, task["precision"])
    prepared = open_prepared(Path(task["data"]), verify=False)
    with launch() as runtime:
        floor = floor_of(prepared, runtime, task["precision"]).get("VmRSS")
        trainer = build_trainer(config, prepared, runtime)
        clock = [
            seen.position.train_seconds
            for seen in trainer.steps(Position(), observe=lambda step: step >= WARM_UP_STEPS, stop=StopRequest())
        ]
        on_cuda = runtime.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated() if on_cuda else beyond(floor, "VmHWM")
        return {
            "seconds": [later - earlier for earlier, later in itertools.pairwise(clock)],
            "tokens": shape["micro-batch"] * shape["length"],
            "flops": config.flops.dense * shape["micro-batch"] * shape["length"],
            "parameters": config.num_parameters,
            "floor_bytes": floor,
            "memory_bytes": memory,
            "device": runtime.device.type,
            "format": trainer.precision.name,
        }


def configure(shape: Mapping[str, Any], steps: int, precision: str) -> Config:
    width = shape["width"]
    changes = [
        f"model.num_hidden_layers={shape['depth']}",
        f"model.hidden_size={width}",
        f"model.num_attention_heads={max(1, width // 64)}",
        f"model.intermediate_size={4 * width}",
        f"model.vocab_size={shape['vocabulary']}",
        f"model.max_position_embeddings={max(1024, shape['length'])}",
        f"data.seq_len={shape['length']}",
        f"train.global_batch_size={shape['micro-batch']}",
        f"train.micro_batch_size={shape['micro-batch']}",
        f"train.total_steps={steps}",
        f"runtime.precision={precision}",
    ]
    return presets.resolve("bert-small-preln", changes).config


def floor_of(prepared: PreparedData, runtime: Runtime, precision: str) -> dict[str, int]:
    """Take a step with a model of no size, so that everything is loaded that training loads, and read the memory."""
    trainer = build_trainer(configure({**NO_SIZE, "vocabulary": prepared.vocab_size}, 1, precision), prepared, runtime)
    for _ in trainer.steps(Position(), observe=lambda step: True, stop=StopRequest()):
        pass
    return memory_of()


def measure_prepare(task: Mapping[str, Any]) -> dict[str, Any]:
    """Prepare a corpus as `pld prepare-data` does."""
    floor, size, corpus = memory_of().get("VmRSS"), task["shape"]["vocabulary"], [Path(task["corpus"])]
    started = time.perf_counter()
    prepared = prepare(corpus, Path(task["prepared"]), vocab_size=size, processes=task["processes"], quiet=True)
    return {
        "seconds": time.perf_counter() - started,
        "bytes": prepared.num_bytes,
        "tokens": prepared.manifest["counts"]["train"]["tokens"],
        "memory_bytes": beyond(floor, "VmHWM"),
        "floor_bytes": floor,
    }


def measure_batches(task: Mapping[str, Any]) -> dict[str, Any]:
    """Open prepared data, and build the batches of training steps as the engine does."""
    small = open_prepared(Path(task["data"]), verify=False)
    with launch("cpu") as runtime:
        floor = floor_of(small, runtime, "fp32")
        started = time.perf_counter()
        prepared = open_prepared(Path(task["prepared"]))
        opened = time.perf_counter() - started
        shape = {**NO_SIZE, **task["shape"], "vocabulary": prepared.vocab_size}
        batches = build_trainer(configure(shape, task["steps"], "fp32"), prepared, runtime).batches
        seconds = []
        for step in range(task["steps"]):
            started = time.perf_counter()
            batches.step(step)
            seconds.append(time.perf_counter() - started)
        return {
            "open_seconds": opened,
            "seconds": seconds,
            "memory_bytes": beyond(floor.get("RssAnon"), "RssAnon"),
            "anonymous_bytes": memory_of().get("RssAnon"),
            "mapped_bytes": beyond(floor.get("RssFile"), "RssFile"),
            "floor_bytes": floor.get("RssAnon"),
        }


MEASUREMENTS = {"step": measure_step, "prepare": measure_prepare, "batches": measure_batches}


def measure_corpus(task: Mapping[str, Any], scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write a corpus of the size, prepare it in one process, and read it in the next."""
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        corpus, times = write_corpus(Path(place), task["shape"]["corpus"], options)
        task = {**task, "corpus": str(corpus), "prepared": str(Path(place) / "prepared")}
        prepared = in_a_process(task, options)
        read = in_a_process({**task, "kind": "batches", "steps": BATCH_STEPS}, options)
    return {"times_repeated": times, "prepare": prepared, "batches": read}


def write_corpus(place: Path, megabytes_wanted: float, options: argparse.Namespace) -> tuple[Path, float]:
    """Cut or repeat text to a size, at a line's end; return where it is, and how often the text is in it."""
    given = options.corpus or [documentation(place.parent)]
    wanted, written, size = int(megabytes_wanted * 1e6), 0, sum(path.stat().st_size for path in given)
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


def documentation(scratch: Path) -> Path:
    """Write the documentation of what is installed to a file, once."""
    corpus = scratch / "documentation.txt"
    if not corpus.exists():
        corpus.write_text("\n\n".join(docstring_corpus(DOCUMENTATION_BYTES)), encoding="utf-8")
    return corpus


def memory_of(process: int | str = "self") -> dict[str, int]:
    """Read the memory counters of a process, in bytes; nothing where the system has none.

    VmHWM is its peak. Unlike `getrusage` it begins anew with a program, instead of with the peak of the process that started it.
    """
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return {}
    entries = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): 1024 * int(number) for name, number, _ in entries}


def beyond(floor: int | None, name: str) -> int | None:
    value = memory_of().get(name)
    return None if value is None or floor is None else value - floor


def descendants(process: int) -> list[int]:
    try:
        files = list(Path(f"/proc/{process}/task").glob("*/children"))
        children = [int(word) for file in files for word in file.read_text(encoding="utf-8").split()]
    except OSError:
        return []
    return [found for child in children for found in (child, *descendants(child))]


# Tables


class Results:
    """What has been measured with the settings asked for: per axis, per value, per round."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.axes: dict[str, dict[float, dict[int, dict[str, Any]]]] = {}
        self.base = options.base
        for axis in options.axes:
            for point in points_of(axis, options):
                rounds = {
                    number: json.loads(place.read_text(encoding="utf-8"))
                    for number in range(options.rounds)
                    if (place := place_of(point, number, options)).exists()
                }
                if rounds:
                    self.axes.setdefault(axis, {})[point["shape"][axis]] = rounds
        if not self.axes:
            sys.exit(f"nothing was measured with these settings ({options.threads} thread(s), {options.precision}) in {options.results}")

    def every(self) -> list[dict[str, Any]]:
        return [result for values in self.axes.values() for rounds in values.values() for result in rounds.values()]

    def origin(self, axis: str) -> float:
        """Give the value that others are compared with: the base point's, or the smallest."""
        values = self.axes[axis]
        return self.base[axis] if self.base.get(axis) in values else min(values)

    def ratios(self, axis: str, value: float, *path: str) -> list[float]:
        """Divide a quantity by that of the origin, round by round."""
        origin = self.axes[axis][self.origin(axis)]
        pairs = [
            (quantity(result, *path), quantity(origin[number], *path))
            for number, result in self.axes[axis][value].items()
            if number in origin
        ]
        return [ours / theirs for ours, theirs in pairs if ours is not None and theirs]


def quantity(result: Mapping[str, Any], *path: str) -> float | None:
    """Look a number up; of a list of times take the median."""
    found: Any = result
    for name in path:
        found = found[name]
    return statistics.median(found) if isinstance(found, list) else found


def make_document(found: Results, options: argparse.Namespace) -> str:
    every = found.every()
    commands = sorted({result["command"] for result in every})
    machines = sorted({f"{result['hardware']}; {result['software']}" for result in every})
    formats = sorted({result["format"] for result in every if "format" in result})
    base = ", ".join(f"{key} {value:,}" for key, value in found.base.items())
    lines = ["# Growth of cost", "", *(f"    {command}" for command in commands), ""]
    lines += [
        f"Base point: {base}; {', '.join(formats) or options.precision}, {options.threads} thread(s). Every measurement is a fresh "
        f"process; times are medians of all steps with their range; ratios are taken round by round, their median and range shown. "
        f"{'; '.join(machines)}.",
        "",
    ]
    for axis in found.axes:
        lines += [f"## {title(axis)}", "", *(corpus_table(found) if axis == "corpus" else step_table(axis, found)), ""]
    return "\n".join(lines)


def step_table(axis: str, found: Results) -> list[str]:
    origin = found.origin(axis)
    head = (
        f"| {AXES[axis].label} | seconds per step | tokens/s | µs per token | MFLOP per token | GFLOP/s | time, {origin:,} = 1 "
        f"| operations, {origin:,} = 1 | time / operations | memory, MB |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|---|---|"]
    for value, rounds in sorted(found.axes[axis].items()):
        seconds = [second for result in rounds.values() for second in result["seconds"]]
        median, one = statistics.median(seconds), next(iter(rounds.values()))
        ratios, operations = found.ratios(axis, value, "seconds"), found.ratios(axis, value, "flops")
        cells = [
            f"{value:,}",
            spread(seconds, 4),
            f"{one['tokens'] / median:,.0f}",
            f"{1e6 * median / one['tokens']:.1f}",
            f"{one['flops'] / one['tokens'] / 1e6:.2f}",
            f"{one['flops'] / median / 1e9:.1f}",
            spread(ratios, 3),
            f"{operations[0]:.3f}" if operations else "-",
            f"{statistics.median(ratios) / operations[0]:.3f}" if operations else "-",
            megabytes(middle(rounds, "memory_bytes")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rounds = next(iter(found.axes[axis].values()))
    device = next(iter(rounds.values()))["device"]
    lines += ["", f"{growth(axis, found)} {memory_note(device, middle(rounds, 'floor_bytes'))}"]
    return lines


def growth(axis: str, found: Results) -> str:
    """Say with which power of the axis time and operations of a step grow: the slope on log scales."""
    values = sorted(found.axes[axis])
    if len(values) < 2:
        return ""
    time_slope, flops_slope = (slope(values, [middle(found.axes[axis][value], name) for value in values]) for name in ("seconds", "flops"))
    ends = [values[-2:], *(([values[:2]]) if len(values) > 2 else [])]
    steep = [slope(pair, [middle(found.axes[axis][value], "seconds") for value in pair]) for pair in ends]
    where = (
        f" ({steep[-1]:.2f} from {values[0]:,} to {values[1]:,}, {steep[0]:.2f} from {values[-2]:,} to {values[-1]:,})"
        if len(values) > 2
        else ""
    )
    return f"Time of a step grows with the power {time_slope:.2f} of this{where}, its operations with {flops_slope:.2f}."


def slope(x: Sequence[float], y: Sequence[float | None]) -> float:
    logs = [math.log(value) for value in y if value is not None]
    return statistics.linear_regression([math.log(value) for value in x], logs).slope


def memory_note(device: str, floor: float | None) -> str:
    if device == "cuda":
        return "Memory: the device's peak."
    return f"Memory: peak beyond a floor of {megabytes(floor)} MB."


def corpus_table(found: Results) -> list[str]:
    lines = [
        "| MB of text | prepare, s | MB/s | memory to prepare, MB | of workers, MB | open and verify, s | batches of a step, ms "
        "| tokens/s of the loader | memory of the loader, MB | mapped, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    one: dict[str, Any] = {}
    for value, rounds in sorted(found.axes["corpus"].items()):
        one = next(iter(rounds.values()))
        steps = [second for result in rounds.values() for second in result["batches"]["seconds"]]
        prepares = [result["prepare"]["seconds"] for result in rounds.values()]
        tokens = one["shape"]["length"] * one["shape"]["micro-batch"]
        cells = [
            f"{value:g}",
            spread(prepares, 1),
            f"{one['prepare']['bytes'] / 1e6 / statistics.median(prepares):.2f}",
            megabytes(middle(rounds, "prepare", "memory_bytes")),
            megabytes(middle(rounds, "prepare", "workers_bytes")) if one["prepare"]["workers"] else "none",
            spread([result["batches"]["open_seconds"] for result in rounds.values()], 2),
            f"{1e3 * statistics.median(steps):.3f}",
            f"{tokens / statistics.median(steps):,.0f}",
            megabytes(middle(rounds, "batches", "memory_bytes"), 1),
            megabytes(middle(rounds, "batches", "mapped_bytes")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    repeated = ", ".join(
        f"{statistics.median(r['times_repeated'] for r in rounds.values()):.2f}" for _, rounds in sorted(found.axes["corpus"].items())
    )
    shape, floors = one["shape"], (megabytes(one["prepare"]["floor_bytes"]), megabytes(one["batches"]["floor_bytes"]))
    note = (
        f"Prepared by {one['processes']} process(es), vocabulary {shape['vocabulary']:,}; each size holds the text given so many times: "
        f"{repeated}. Memory to prepare: the peak beyond a floor of {floors[0]} MB; of workers: the sum of their peaks, libraries counted "
        f"in each. The loader builds {BATCH_STEPS} steps of {shape['micro-batch']} x {shape['length']} tokens in the measuring process; "
        f"its memory is anonymous memory beyond a floor of {floors[1]} MB; mapped: pages of the data's files, which can be dropped."
    )
    return [*lines, "", note]


def title(axis: str) -> str:
    return AXES[axis].label[0].upper() + AXES[axis].label[1:]


def middle(rounds: Mapping[int, Mapping[str, Any]], *path: str) -> float | None:
    values = [found for result in rounds.values() if (found := quantity(result, *path)) is not None]
    return statistics.median(values) if values else None


def spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def megabytes(value: float | None, digits: int = 0) -> str:
    return "not measured" if value is None else f"{value / 1e6:,.{digits}f}"


# The plot


def draw(found: Results, path: Path) -> None:
    """Draw one panel per axis on log scales, everything relative to its value at the origin; a dotted line has slope 1."""
    import matplotlib

    columns = min(3, len(found.axes))
    rows = -(-len(found.axes) // columns)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=4.6 * columns, height=0.5 + 3.9 * rows)
        panels = figure.subplots(rows, columns, squeeze=False)
        for panel, axis in zip(panels.flat, found.axes, strict=False):
            draw_axis(panel, axis, found)
        for panel in list(panels.flat)[len(found.axes) :]:
            panel.set_visible(False)
        save_figure(figure, path)


def draw_axis(panel: Any, axis: str, found: Results) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if axis == "corpus":
        curves = [
            ("time to prepare", "o-", ("prepare", "seconds")),
            ("memory to prepare", "s-", ("prepare", "memory_bytes")),
            ("time of a step's batches", "^-", ("batches", "seconds")),
            ("memory of the loader's process", "v-", ("batches", "anonymous_bytes")),
        ]
    else:
        curves = [("time of a step", "o-", ("seconds",)), ("operations", "--", ("flops",)), ("memory", "s-", ("memory_bytes",))]
    values, origin = sorted(found.axes[axis]), found.origin(axis)
    panel.plot(values, [value / origin for value in values], ":", color="#777777", linewidth=1.3, label="slope 1", zorder=1)
    seen = [value / origin for value in values]
    for (label, style, path), colour in zip(curves, COLOURS, strict=False):
        measured = [(value, ratios) for value in values if (ratios := found.ratios(axis, value, *path)) and min(ratios) > 0]
        x, y = [value for value, _ in measured], [statistics.median(ratios) for _, ratios in measured]
        errors = [[m - min(r) for m, (_, r) in zip(y, measured, strict=True)], [max(r) - m for m, (_, r) in zip(y, measured, strict=True)]]
        panel.errorbar(
            x,
            y,
            yerr=errors if style != "--" else None,
            fmt=style,
            color=colour,
            markersize=5,
            linewidth=1.6,
            capsize=2,
            label=label,
            zorder=3,
        )
        seen += y
    panel.set(xscale="log", yscale="log", title=title(axis), xlabel=AXES[axis].label, ylabel=f"relative to that at {origin:,g}")
    panel.xaxis.set_major_locator(FixedLocator(values))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    low, high = min(seen) / 1.3, max(seen) * 1.3
    ticks = [tick for exponent in range(-4, 5) for tick in (10.0**exponent, 2 * 10.0**exponent, 5 * 10.0**exponent) if low <= tick <= high]
    panel.set_ylim(low, high)
    panel.yaxis.set_major_locator(FixedLocator(ticks))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.legend(loc="upper left", fontsize=8.5)


if __name__ == "__main__":
    main()

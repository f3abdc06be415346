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
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from growth_report import AXES, Results, document, draw
from measuring import documentation, json_from_process, say, sized_text
from pldcli import presets
from pldcli.config import Config
from pldcli.data.prepared import PreparedData, open_prepared
from pldcli.engine.runtime import Runtime, launch
from pldcli.plots.canvas import check_picture_path
from pldcli.preparation.prepare import prepare
from pldcli.pretraining.assembly import build_trainer
from pldcli.runs.checkpoint import Position
from pldcli.system import atomic
from pldcli.system.machine import memory_counters
from pldcli.system.signals import StopRequest
from pldcli.system.workers import available_cores
from reporting import command, hardware, megabytes, publish, software

BASE = {"depth": 4, "width": 256, "vocabulary": 8192, "length": 128, "micro-batch": 16}
NO_SIZE = {"depth": 1, "width": 32, "length": 32, "micro-batch": 1}
WARM_UP_STEPS = 2
BATCH_STEPS = 200


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
    found = read_results(options)
    publish(document(found, precision=options.precision, threads=options.threads), options.out)
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
    parser.add_argument("--processes", type=int, default=available_cores(), help="of prepare-data")
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
    place: Path = options.results / f"{'-'.join(words)}.json"
    return place


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
                result = {**point, "round": number, **result, **facts()}
                atomic.write_text(place, json.dumps(result, indent=1) + "\n")
                say(f"round {number + 1}, {describe(point)}: {brief(result)}")


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


def read_results(options: argparse.Namespace) -> Results:
    """Find what has been measured with the settings asked for."""
    axes: dict[str, dict[float, dict[int, dict[str, Any]]]] = {}
    for axis in options.axes:
        for point in points_of(axis, options):
            places = {number: place_of(point, number, options) for number in range(options.rounds)}
            rounds = {number: json.loads(place.read_text(encoding="utf-8")) for number, place in places.items() if place.exists()}
            if rounds:
                axes.setdefault(axis, {})[point["shape"][axis]] = rounds
    if not axes:
        sys.exit(f"nothing was measured with these settings ({options.threads} thread(s), {options.precision}) in {options.results}")
    return Results(axes, options.base)


def facts() -> dict[str, str]:
    return {"hardware": hardware(), "software": software(), "command": command()}


def in_a_process(task: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Measure in a fresh process, and look at the peaks of the processes that it starts."""
    peaks: dict[int, int] = {}

    def look(process: int) -> None:
        for child in descendants(process):
            peaks[child] = memory_counters(child).get("VmHWM", peaks.get(child, 0))

    words = [__file__, "--threads", str(options.threads), "--one", json.dumps(task)]
    found = json_from_process(words, what=f"{describe(task)}:\n", look=look)
    return {**found, "workers_bytes": sum(peaks.values()), "workers": len(peaks)}


def descendants(process: int) -> list[int]:
    try:
        files = list(Path(f"/proc/{process}/task").glob("*/children"))
        children = [int(word) for file in files for word in file.read_text(encoding="utf-8").split()]
    except OSError:
        return []
    return [found for child in children for found in (child, *descendants(child))]


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
        "model.attention_init=normal",  # the other kind needs two heads; what a step costs is the same
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
    return memory_counters()


def measure_prepare(task: Mapping[str, Any]) -> dict[str, Any]:
    """Prepare a corpus as `pld prepare-data` does."""
    floor, size, corpus = memory_counters().get("VmRSS"), task["shape"]["vocabulary"], [Path(task["corpus"])]
    started = time.perf_counter()
    prepared = prepare(corpus, Path(task["prepared"]), vocab_size=size, processes=task["processes"], keep_duplicates=True, quiet=True)
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
            "anonymous_bytes": memory_counters().get("RssAnon"),
            "mapped_bytes": beyond(floor.get("RssFile"), "RssFile"),
            "floor_bytes": floor.get("RssAnon"),
        }


def measure_corpus(task: Mapping[str, Any], scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write a corpus of the size, prepare it in one process, and read it in the next."""
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        given = options.corpus or [documentation(scratch)]
        corpus, times = sized_text(given, Path(place), task["shape"]["corpus"])
        task = {**task, "corpus": str(corpus), "prepared": str(Path(place) / "prepared")}
        prepared = in_a_process(task, options)
        read = in_a_process({**task, "kind": "batches", "steps": BATCH_STEPS}, options)
    return {"times_repeated": times, "prepare": prepared, "batches": read}


def beyond(floor: int | None, name: str) -> int | None:
    value = memory_counters().get(name)
    return None if value is None or floor is None else value - floor


MEASUREMENTS = {"step": measure_step, "prepare": measure_prepare, "batches": measure_batches}


if __name__ == "__main__":
    main()

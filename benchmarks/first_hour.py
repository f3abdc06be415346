"""Measure how good an encoder is after the same time on the same machine and text: pld beside transformers' Trainer.

    pip install -e '.[bench]'
    python benchmarks/first_hour.py prepare --work hour --corpus wikipedia/ books/ --validation wiki.jsonl books.jsonl --vocab-size 8192
    python benchmarks/first_hour.py run --work hour --core 0 &
    python benchmarks/first_hour.py run --work hour --core 1
    python benchmarks/first_hour.py finetune --work hour --data-dir glue --core 0
    python benchmarks/first_hour.py report --work hour --out benchmarks/results/first-hour-tiny

The same rows of the same tokens for all, and one validation: the masks of `fixed_batches`, 15 % of the tokens, whatever a contestant
trains with. Every run has a process of its own with one thread, times its steps first, takes as many as fit into the budget, and has a
schedule that ends with the last of them; training seconds hold no validation. A plan file names the contestants; of each, the best
candidate of its grid in shorter runs is trained from every seed. A run leaves one JSON file and is not done again, so the work can be
killed and started anew, and shared between cores. Where cores have other work too, `--clock processor` counts what the run itself
takes of its core. `--budget 30s` does all of it in minutes; results of another budget stay apart.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from first_hour_plan import Job, Plan, read_plan
from first_hour_report import document, draw, gather
from measuring import finetuned, output_of_process, say
from pldcli.system import atomic
from reporting import hardware, software

PLAN = Path(__file__).parent / "first_hour" / "tiny.yaml"
ALL = 1_000_000
"""Validation sequences: all there are."""
DIVERGED = 6
"""Exit code of our program."""
WAIT_SECONDS = 5.0
CLOCKS = {
    "wall": ("-m", "pldcli"),
    "processor": ("-c", "import sys, time; time.perf_counter = time.process_time; from pldcli import cli; sys.exit(cli.run(sys.argv[1:]))"),
}
"""How our program is started, with seconds of the wall or of the processor: those are the same where a run of one thread has its core for
itself, and where other work takes turns with it, the latter hardly change."""


def main() -> None:
    options = parse()
    if options.stage == "one":
        torch.set_num_threads(options.threads)
        if options.clock == "processor":
            time.perf_counter = time.process_time
        print(json.dumps(run_one(Job(**json.loads(options.job)), options)))
        return
    if options.stage == "prepare":
        prepare_text(options)
        return
    if options.stage == "report" and options.again:
        write_report(json.loads(options.again.read_text(encoding="utf-8")), options.out)
        return
    plan = read_plan(options.plan, budget=options.budget, tuning_share=options.tuning_share)
    plan = plan.only(options.only) if options.only else plan
    if getattr(options, "core", None) is not None:
        os.sched_setaffinity(0, {options.core})
    if options.stage == "list":
        list_runs(plan, options.work)
    elif options.stage == "run":
        run_missing(plan, options)
    elif options.stage == "finetune":
        finetune(plan, options)
    else:
        write_report(gather(plan, read_results(options.work), options.work), options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--work", type=Path, required=True, help="a directory for text, runs and results")
    planned = argparse.ArgumentParser(add_help=False, parents=[common])
    planned.add_argument("--plan", type=Path, default=PLAN, help="the contestants")
    planned.add_argument("--budget", help="training time of a run that counts (20m, 30s), in place of the plan's")
    planned.add_argument("--tuning-share", type=float, help="of the budget, for a run that tries a candidate; in place of the plan's")
    planned.add_argument("--only", nargs="+", metavar="NAME", help="these contestants alone")
    working = argparse.ArgumentParser(add_help=False, parents=[planned])
    working.add_argument("--core", type=int, help="the core to stay on")
    working.add_argument("--threads", type=int, default=1)
    working.add_argument("--clock", choices=CLOCKS, default="wall", help="what training seconds are")

    stage = stages.add_parser("prepare", parents=[common], help="cut the text, train the tokenizer, tokenise")
    stage.add_argument(
        "--corpus", type=Path, nargs="+", required=True, help="text or JSON-lines files or directories; equal shares of each"
    )
    stage.add_argument("--validation", type=Path, nargs="+", required=True, help="likewise, text that is in no corpus")
    stage.add_argument("--megabytes", type=float, default=40.0, help="of training text, in all")
    stage.add_argument("--validation-megabytes", type=float, default=0.25, help="in all; every validation reads all of it")
    stage.add_argument("--vocab-size", type=int, default=8192)
    stages.add_parser("list", parents=[planned], help="what there is to run, and what is done")
    stages.add_parser("run", parents=[working], help="do the runs that are not there yet")
    stage = stages.add_parser("finetune", parents=[working], help="fine-tune the best model of each contestant, all by `pld finetune`")
    stage.add_argument("--data-dir", type=Path, required=True, help="where the GLUE folders are")
    stage.add_argument("--tasks", nargs="+", default=["cola", "rte", "mrpc", "sst2"])
    stage.add_argument("--seeds", type=int, default=3)
    stage.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of every fine-tuning")
    stage = stages.add_parser("report", parents=[planned], help="write OUT.json, OUT.md and OUT.png")
    stage.add_argument("--out", type=Path, required=True, help="path without an ending")
    stage.add_argument("--again", type=Path, help="an earlier OUT.json to write table and picture of, in place of --work's runs")
    stage = stages.add_parser("one", parents=[common])
    stage.add_argument("--job", required=True)
    stage.add_argument("--place", type=Path, required=True)
    stage.add_argument("--threads", type=int, required=True)
    stage.add_argument("--clock", choices=CLOCKS, required=True)
    return parser.parse_args()


# Text


def prepare_text(options: argparse.Namespace) -> None:
    """Cut equal shares of every corpus and prepare them."""
    from pldcli.preparation.prepare import prepare

    options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        shares = {}
        for name, inputs, megabytes in (
            ("train", options.corpus, options.megabytes),
            ("validation", options.validation, options.validation_megabytes),
        ):
            shares[name] = [Path(scratch) / f"{name}-{number}.jsonl" for number in range(len(inputs))]
            for path, out in zip(inputs, shares[name], strict=True):
                cut(path, round(megabytes * 1e6 / len(inputs)), out)
        data = options.work / "data"
        prepare(shares["train"], data, validation=shares["validation"], vocab_size=options.vocab_size, overwrite=True, quiet=True)
    counts = json.loads((data / "manifest.json").read_text(encoding="utf-8"))["counts"]
    say(f"{data}: {counts['train']['tokens']:,} tokens to train on, {counts['validation']['tokens']:,} to validate on")


def cut(path: Path, num_bytes: int, out: Path) -> None:
    """Write whole documents to a JSON-lines file until there are so many bytes of text; the last one is cut."""
    from prepare_vs_datasets import documents

    left = num_bytes
    with out.open("w", encoding="utf-8") as file:
        for text in documents([path]):
            part = text.encode()[:left].decode(errors="ignore")
            file.write(json.dumps({"text": part}) + "\n")
            left -= len(part.encode())
            if left <= 3:  # less than a character may be left over
                return
    sys.exit(f"{path} holds {(num_bytes - left) / 1e6:.1f} MB of text, of which {num_bytes / 1e6:.1f} are wanted: lower the megabytes")


# Runs


def read_results(work: Path) -> dict[str, dict[str, Any]]:
    """Read all results, by the name of their run."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((work / "results").glob("*.json"))}


def list_runs(plan: Plan, work: Path) -> None:
    results = read_results(work)
    for job in plan.jobs(results):
        print(f"{'done   ' if job.key in results else 'to do  '}{job.key}")
    choosing, counting = plan.num_runs
    print(f"{choosing} runs to choose candidates, {counting} more that count: {plan.core_seconds / 3600:.1f} core hours of training")


def run_missing(plan: Plan, options: argparse.Namespace) -> None:
    """Do runs until all are there; where those that remain are done by others, wait for what follows from them."""
    for name in ("results", "models", "scratch"):
        (options.work / name).mkdir(parents=True, exist_ok=True)
    if not (options.work / "data" / "manifest.json").is_file():
        sys.exit(f"{options.work} holds no text yet: begin with the stage `prepare`")
    while missing := [job for job in plan.jobs(read_results(options.work)) if not result_path(job, options.work).exists()]:
        if not any(try_to_run(job, options) for job in missing):
            time.sleep(WAIT_SECONDS)
    for contestant in plan.contestants:
        if plan.best(contestant, read_results(options.work)) is None:
            say(f"{contestant.name}: every candidate diverged")


def result_path(job: Job, work: Path) -> Path:
    return work / "results" / f"{job.key}.json"


def try_to_run(job: Job, options: argparse.Namespace) -> bool:
    """Do a run unless somebody else does."""
    with claimed(options.work / "scratch" / f"{job.key}.lock") as is_ours:
        if not is_ours or result_path(job, options.work).exists():
            return False
        place = options.work / "scratch" / job.key
        shutil.rmtree(place, ignore_errors=True)  # of an attempt that was killed
        place.mkdir()
        began = time.perf_counter()
        words = [__file__, "one", "--work", str(options.work), "--threads", str(options.threads), "--clock", options.clock]
        words += ["--job", json.dumps(asdict(job)), "--place", str(place)]
        written = output_of_process(words, what=f"{job.key}:\n", environment=with_threads(options.threads))
        result = json.loads(written.splitlines()[-1])
        result |= {"wall_seconds": time.perf_counter() - began, "threads": options.threads, "core": options.core, "clock": options.clock}
        model = options.work / "models" / job.key
        shutil.rmtree(model, ignore_errors=True)
        if (place / "model").exists():
            (place / "model").rename(model)
        shutil.rmtree(place)
        atomic.write_text(result_path(job, options.work), json.dumps(result, indent=1) + "\n")
    say(f"{job.key}: {describe(result)}")
    return True


def with_threads(threads: int) -> dict[str, str]:
    """Make the environment of a run."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
    return os.environ | counts | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def describe(result: dict[str, Any]) -> str:
    if result["final_loss"] is None:
        return "diverged"
    rate = result["tokens"] / result["seconds"]
    return f"loss {result['final_loss']:.4f} after {result['seconds']:.0f} s, {result['steps']:,} steps, {rate:,.0f} tokens/s"


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold a lock that ends with the process, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def run_one(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Train in this process or one of its own; describe the run."""
    from pldcli.data.prepared import open_prepared

    data = options.work / "data"
    if job.kind == "pld":
        found = train_ours(job, data, options.place, clock=options.clock)
    else:
        from first_hour_peers import train_peer

        found = train_peer(job, open_prepared(data), options.place / "model")
    losses = [loss for _, loss in found["curve"]]
    is_finite = bool(losses) and losses[-1] == losses[-1] and abs(losses[-1]) < 1e9
    return {
        **asdict(job),
        **found,
        "curve": [[round(seconds, 3), round(loss, 5)] for seconds, loss in found["curve"] if loss == loss],
        "final_loss": losses[-1] if is_finite else None,
        "hardware": hardware(),
        "software": software("transformers", "torch"),
    }


def train_ours(job: Job, data: Path, place: Path, *, clock: str) -> dict[str, Any]:
    """Time steps as `--budget` does, then train by the command that a user types, validated at as many points as the peers."""
    from pldcli import presets
    from pldcli.bench.budget import calibrate
    from pldcli.data.prepared import open_prepared
    from pldcli.runs.metrics import read_metrics

    assert job.preset is not None
    changes = [f"data.seq_len={job.seq_len}", f"train.seed={job.seed}", *(f"{name}={value}" for name, value in job.settings.items())]
    prepared = open_prepared(data)
    config = presets.resolve(job.preset, changes, from_data={"model.vocab_size": prepared.vocab_size}).config
    found = calibrate(config, data=prepared, seconds=job.budget)
    steps, run = found.total_steps, place / "run"
    changes += [f"train.total_steps={steps}", f"eval.every_steps={max(1, steps // job.points)}", f"eval.max_sequences={ALL}"]
    changes += [f"checkpoint.every_steps={steps}", f"train.log_every_steps={max(1, steps // job.points)}"]
    words = ["pretrain", "--preset", job.preset, "--data", str(data), "--out", str(run), *changes]
    done = subprocess.run([sys.executable, *CLOCKS[clock], *words], capture_output=True, text=True, check=False)
    if done.returncode not in (0, DIVERGED):
        sys.exit(done.stderr or done.stdout)
    rows = read_metrics(run / "metrics.jsonl")
    scored = [row for row in rows if row.get("eval/mlm_loss") is not None]
    if done.returncode == 0:
        (run / "model").rename(place / "model")
    last = scored[-1] if scored else {}
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))["starts"][-1]
    curve = [(row["progress/train_seconds"], row["eval/mlm_loss"]) for row in scored]
    return {
        "command": shlex.join(["pld", "pretrain", "--preset", job.preset, "--data", data.name, *changes]),
        "steps": steps,
        "calibrated_step_seconds": found.step_seconds,
        "seconds": last.get("progress/train_seconds", 0.0),
        "tokens": last.get("progress/tokens", 0),
        "num_parameters": config.num_parameters,
        "precision": environment["precision"],
        "curve": curve if done.returncode == 0 else [*curve, (0.0, float("nan"))],
    }


# Fine-tuning


def finetune(plan: Plan, options: argparse.Namespace) -> None:
    """Fine-tune the chosen model of every contestant, of its first seed, by one and the same program."""
    results = read_results(options.work)
    for task in options.tasks:
        for contestant in plan.contestants:
            best = plan.best(contestant, results)
            job = None if best is None else plan.final(contestant, best)[0]
            if job is None or job.key not in results:
                say(f"{contestant.name}: not trained yet, so not fine-tuned")
                continue
            place = options.work / "finetuned" / job.key
            place.mkdir(parents=True, exist_ok=True)
            with claimed(place / f"{task}.lock") as is_ours:
                if is_ours:
                    finetune_once(job, task, place, options)


def finetune_once(job: Job, task: str, place: Path, options: argparse.Namespace) -> None:
    """Run `pld finetune` unless it has finished with these settings; of a grid the best setting's scores count."""
    asked, out = [f"--seeds={options.seeds}", *options.set], place / f"{task}.json"
    if out.exists() and json.loads(out.read_text(encoding="utf-8"))["asked"] == asked:
        return
    model, what = options.work / "models" / job.key, f"{job.key}, {task}:\n"
    result = finetuned(model, task, place / task, asked, data_dir=options.data_dir, what=what, environment=with_threads(options.threads))
    atomic.write_text(out, json.dumps(result, indent=1) + "\n")
    say(f"{job.key}, {task}: {', '.join(f'{score:.4f}' for score in result['scores'])}")


def write_report(found: dict[str, Any], out: Path) -> None:
    """Write what was found, its tables, and the picture."""
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out.with_suffix(".json"), json.dumps(found) + "\n")
    picture = out.with_suffix(".png")
    written = document(found, picture=picture.name)
    atomic.write_text(out.with_suffix(".md"), written)
    draw(found, picture)
    print(written)


if __name__ == "__main__":
    main()

"""What benchmarks/first_hour.py makes of its runs: one small file of results, tables, and the picture."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from first_hour_plan import Plan, written
from pldcli.plots.canvas import COLOURS, picture
from reporting import head, row

__all__ = ["document", "draw", "finetuned_table", "gather", "loss_table", "seconds_to"]

Results = Mapping[str, Any]
KEPT = (
    "seed",
    "budget",
    "seconds",
    "wall_seconds",
    "steps",
    "tokens",
    "num_parameters",
    "precision",
    "threads",
    "clock",
    "curve",
    "final_loss",
    "command",
)
"""Of each run that counts."""
SHORT_SECONDS = 120.0
"""Below this, times are written in seconds."""
OFF_BUDGET = 0.05
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0}
"""Behind words among curves."""
SPEED_COLUMNS = ("parameters", "ms a step", "tokens/s")
UNDER_PEERS, OWN = "#8a8a8a", ("#c03a6b", "#2a8a57", "#1f6fb4", "#8a4fb0", "#b8930b", "#12868a")


# What was found


def gather(plan: Plan, results: Mapping[str, Mapping[str, Any]], work: Path) -> dict[str, Any]:
    """Collect what the tables and the picture need."""
    contestants = []
    for contestant in plan.contestants:
        best = plan.best(contestant, results)
        finals = [] if best is None else [job for job in plan.final(contestant, best) if job.key in results]
        tuning = plan.tuning(contestant)
        contestants.append(
            {
                "name": contestant.name,
                "label": contestant.label,
                "kind": contestant.kind,
                "is_goal": contestant.is_goal,
                "settings": contestant.set | (best or {}),
                "chosen": best,
                "tried": [{**job.candidate, "loss": results[job.key]["final_loss"]} for job in tuning if job.key in results],
                "runs": [{name: results[job.key][name] for name in KEPT} for job in finals],
                "finetuned": finetuned(work / "finetuned" / finals[0].key) if finals else {},
            }
        )
    every = list(results.values())
    return {
        "plan": plan.name,
        "budget": plan.budget,
        "tuning_budget": plan.budget * plan.tuning_share,
        "seq_len": plan.seq_len,
        "text": describe_text(work / "data", plan.seq_len),
        "hardware": sorted({result["hardware"] for result in every}),
        "software": sorted({result["software"] for result in every}),
        "contestants": contestants,
    }


def finetuned(place: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(place.glob("*.json"))}


def describe_text(data: Path, seq_len: int) -> dict[str, Any]:
    """Count the text, and compute what knowing the frequencies of its tokens is worth."""
    from pldcli.data.prepared import open_prepared
    from pldcli.engine.validation import fixed_batches, unigram_baseline

    prepared, batches = open_prepared(data), list(fixed_batches(open_prepared(data), seq_len))
    counts = prepared.manifest["counts"]
    return {
        "train_tokens": counts["train"]["tokens"],
        "validation_tokens": counts["validation"]["tokens"],
        "validation_sequences": sum(len(batch.input_ids) for batch in batches),
        "validation_targets": sum(len(batch.target_ids) for batch in batches),
        "vocab_size": prepared.vocab_size,
        "data_fingerprint": prepared.data_fingerprint,
        "unigram_loss": unigram_baseline(prepared, batches),
    }


def runs_of(found: Results, contestant: Mapping[str, Any], share: float = 1.0) -> list[dict[str, Any]]:
    """All seeds at a share of the budget, diverged ones left out."""
    return [run for run in contestant["runs"] if math.isclose(run["budget"], found["budget"] * share) and run["final_loss"] is not None]


def final_loss(found: Results, contestant: Mapping[str, Any], share: float = 1.0) -> float | None:
    losses = [run["final_loss"] for run in runs_of(found, contestant, share)]
    return statistics.median(losses) if losses else None


def seconds_to(loss: float, curve: Sequence[Sequence[float]]) -> float | None:
    """Find when a curve first comes down to a loss, on straight lines between its points; None where it never does."""
    if curve and curve[0][1] <= loss:
        return curve[0][0]
    for (before, above), (after, below) in itertools.pairwise(curve):
        if below <= loss < above:
            return before + (after - before) * (above - loss) / (above - below)
    return None


# Tables


def goals(found: Results) -> list[Mapping[str, Any]]:
    return [one for one in found["contestants"] if one["is_goal"] and final_loss(found, one) is not None]


def loss_table(found: Results, *, with_speed: bool = True) -> list[tuple[str, ...]]:
    """Lay out headings and rows: where each contestant ends, and when it has the final losses of the peers."""
    heads = ["trained for the same time", *(SPEED_COLUMNS if with_speed else ()), f"loss after {lasting(found['budget'])}"]
    heads += [f"time to the final loss of {one['label']}" for one in goals(found)]
    shares = sorted({run["budget"] for one in found["contestants"] for run in one["runs"]} - {found["budget"]})
    table = [(*heads, *(f"loss after {lasting(seconds)}, its schedule finished" for seconds in shares))]
    for one in found["contestants"]:
        runs = runs_of(found, one)
        ended = runs or [run for run in one["runs"] if run["final_loss"] is not None]
        if not ended:
            table.append((one["label"], *["not measured"] * (len(table[0]) - 1)))
            continue
        at_end = (with_range([run["final_loss"] for run in runs]), *(time_to(found, one, goal) for goal in goals(found))) if runs else ()
        cells = [one["label"], *(speed(ended) if with_speed else ()), *(at_end or [""] * (1 + len(goals(found))))]
        for seconds in shares:
            losses = [run["final_loss"] for run in runs_of(found, one, seconds / found["budget"])]
            cells.append(with_range(losses) if losses else "")
        table.append(tuple(cells))
    return table


def speed(runs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Write the cells of SPEED_COLUMNS."""
    return (
        f"{runs[0]['num_parameters'] / 1e6:.2f} M",
        f"{statistics.median(1e3 * run['seconds'] / run['steps'] for run in runs):.1f}",
        f"{statistics.median(run['tokens'] / run['seconds'] for run in runs):,.0f}",
    )


def with_range(losses: Sequence[float]) -> str:
    middle = f"{statistics.median(losses):.3f}"
    return middle if len(losses) == 1 else f"{middle} ({min(losses):.3f} to {max(losses):.3f})"


def time_to(found: Results, one: Mapping[str, Any], goal: Mapping[str, Any]) -> str:
    """Write the median over seeds of when a contestant has a peer's final loss."""
    target = final_loss(found, goal)
    assert target is not None
    times = [seconds_to(target, run["curve"]) for run in runs_of(found, one)]
    if one is goal:
        return "all of it"
    middle = statistics.median(math.inf if time is None else time for time in times)
    if math.isinf(middle):
        return "not reached"
    time = f"{middle / 60:.1f} min" if found["budget"] >= SHORT_SECONDS else f"{middle:.1f} s"
    return f"{time} ({middle / found['budget']:.0%})".replace("%", " %")


def lasting(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= SHORT_SECONDS else f"{seconds:g} s"


def finetuned_table(found: Results) -> list[tuple[str, ...]]:
    """Lay out headings and rows: scores after fine-tuning, mean and standard deviation over seeds."""
    tasks = list(dict.fromkeys(task for one in found["contestants"] for task in one["finetuned"]))
    table = [("fine-tuned by `pld finetune`", *tasks, "mean")]
    for one in found["contestants"]:
        scores = {task: result["scores"] for task, result in one["finetuned"].items()}
        if not scores:
            continue
        cells = [spread_of(scores[task]) if task in scores else "" for task in tasks]
        whole = len(scores) == len(tasks)
        table.append((one["label"], *cells, f"{100 * statistics.fmean(map(statistics.fmean, scores.values())):.1f}" if whole else ""))
    return table if len(table) > 1 else []


def spread_of(scores: Sequence[float]) -> str:
    middle = f"{100 * statistics.fmean(scores):.1f}"
    return f"{middle} ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else middle


def tuning_table(found: Results) -> list[tuple[str, ...]]:
    """Lay out what was tried; the best is chosen, and one at an end of its grid is said to be."""
    table: list[tuple[str, ...]] = [("contestant", "candidate", "loss", "")]
    for one in found["contestants"]:
        for tried in one["tried"]:
            candidate = {name: value for name, value in tried.items() if name != "loss"}
            is_chosen = candidate == one["chosen"]
            note = "chosen" + (", at an end of its grid" if is_at_an_end(candidate, one["tried"]) else "") if is_chosen else ""
            text = ", ".join(f"{name.rpartition('.')[2]} {written(value)}" for name, value in candidate.items())
            table.append((one["label"], text, "diverged" if tried["loss"] is None else f"{tried['loss']:.3f}", note))
    return table if len(table) > 1 else []


def is_at_an_end(candidate: Mapping[str, Any], tried: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a better learning rate may lie beyond the grid."""
    name = next((name for name in candidate if name.endswith("learning_rate")), None)
    return name is not None and candidate[name] in (min(one[name] for one in tried), max(one[name] for one in tried))


def verdicts(found: Results) -> list[str]:
    """Say of each of our contestants what part of a peer's time it needs, as far as finished schedules show it."""
    lines = []
    for one, goal in itertools.product(found["contestants"], goals(found)):
        target = final_loss(found, goal)
        halves = sorted({run["budget"] for run in one["runs"]} - {found["budget"]})
        for seconds in halves if one["kind"] == "pld" else ():
            loss = final_loss(found, one, seconds / found["budget"])
            if loss is not None and target is not None:
                share = f"{seconds / found['budget']:.0%}".replace("%", " %")
                verb = "reaches" if loss <= target else "does not reach"
                lines.append(f"- {one['label']}, whole run in {share} of the time: {loss:.3f} {verb} the {target:.3f} of {goal['label']}.")
    return lines


def document(found: Results, *, picture: str) -> str:
    """Write everything down."""
    text = found["text"]
    peers = sorted({(one["label"], json.dumps(one["settings"])) for one in found["contestants"]})
    parts = [
        f"# The first {lasting(found['budget'])}: {found['plan']}",
        f"![Validation loss against minutes of training]({picture})",
        f"The same {text['train_tokens']:,} tokens of text to train on, vocabulary {text['vocab_size']:,}, rows of {found['seq_len']}; "
        f"validation on the same {text['validation_targets']:,} masked tokens of {text['validation_sequences']:,} other rows, 15 % masked, "
        f"whatever a model was trained with. Token frequencies alone: {text['unigram_loss']:.3f}. One thread a run; "
        f"{clock_of(found)} of training without validation; of each run the steps were counted out beforehand, so that its schedule "
        f"ends with its budget. {'; '.join(found['hardware'])}; {'; '.join(found['software'])}. {computed_in(found)}.",
        tabled(loss_table(found)),
        "Medians of the seeds (lowest to highest). The time to a peer's final loss is where the contestant's own curve crosses it: that "
        "run's schedule was not finished there, so a run made for that time would be lower. Whole runs with less time show by how much:",
        "\n".join(verdicts(found)) or "- none were made.",
    ]
    if off := off_budget(found):
        parts.append(
            f"Off their budget by more than {OFF_BUDGET:.0%}".replace("%", " %")
            + f" (steps took more or less than when they were timed): {', '.join(off)}."
        )
    if scores := finetuned_table(found):
        parts += [
            "## After fine-tuning",
            tabled(scores),
            "Mean ± standard deviation over fine-tuning seeds of the task's score, times 100.",
        ]
    if tried := tuning_table(found):
        parts += [f"## What was chosen from, in runs of {lasting(found['tuning_budget'])}, one seed", tabled(tried)]
    parts += ["## Settings", "\n".join(f"- {label}: `{settings}`" for label, settings in peers)]
    parts += ["## Commands", f"Text and runs as the head of `benchmarks/first_hour/{found['plan']}.yaml` says, with that plan; then:"]
    parts += ["\n".join(f"    {line}" for line in finetune_commands(found)) or "    nothing was fine-tuned"]
    parts += ["What each run was:", "\n".join(f"    {run['command']}" for one in found["contestants"] for run in one["runs"][:1])]
    return "\n\n".join(parts) + "\n"


def clock_of(found: Results) -> str:
    clocks = {run.get("clock") for one in found["contestants"] for run in one["runs"]}
    return "seconds of the processor" if "processor" in clocks else "seconds"


def computed_in(found: Results) -> str:
    """Say which contestants computed in which number format: each in what its program chooses there."""
    formats: dict[str, dict[str, None]] = {}
    for one in found["contestants"]:
        for run in one["runs"]:
            formats.setdefault(run["precision"], {})[one["label"]] = None
    return "Computed in " + "; ".join(f"{name}: {', '.join(labels)}" for name, labels in formats.items())


def finetune_commands(found: Results) -> list[str]:
    """Write the commands that fine-tuned, one for all tasks with the same settings."""
    tasks: dict[tuple[str, ...], dict[str, None]] = {}
    for one in found["contestants"]:
        for task, result in one["finetuned"].items():
            tasks.setdefault(tuple(result["asked"]), {})[task] = None
    program = "python benchmarks/first_hour.py finetune --work hour --data-dir glue"
    return [
        f"{program} --tasks {' '.join(names)} {seeds.replace('=', ' ')} --set {' '.join(more)}" for (seeds, *more), names in tasks.items()
    ]


def off_budget(found: Results) -> list[str]:
    """Name runs whose steps did not take what was measured before, as on a machine with other work."""
    runs = [(one, run) for one in found["contestants"] for run in one["runs"] if run["final_loss"] is not None]
    ratios = [(one, run, run["seconds"] / run["budget"]) for one, run in runs]
    return [f"{one['label']}, seed {run['seed']}: {ratio:.2f} of it" for one, run, ratio in ratios if abs(ratio - 1) > OFF_BUDGET]


def tabled(table: Sequence[tuple[str, ...]]) -> str:
    return "\n".join([head(*table[0]), *(row(*cells) for cells in table[1:])])


# The picture


def draw(found: Results, path: Path) -> None:
    """Draw validation loss against minutes: of every contestant the seed in the middle, with its name at the end of its line."""
    lines = []
    for one in found["contestants"]:
        runs = sorted(runs_of(found, one), key=lambda run: run["final_loss"])
        if runs:
            lines.append((one, runs[(len(runs) - 1) // 2]))
    with picture(path, width=9.0, height=4.8) as figure:
        axes = figure.subplots()
        if not lines:
            axes.text(0.5, 0.5, "nothing was measured", ha="center", va="center", transform=axes.transAxes)
            return
        ours = iter(OWN)
        ends, halves = [], []
        for one, run in lines:
            is_ours = one["kind"] == "pld"
            colour = next(ours, COLOURS[-1]) if is_ours else {"modernbert": "#3d3d3d"}.get(one["name"], UNDER_PEERS)
            width, style = (2.2, "-") if is_ours else (1.6, "-" if one["is_goal"] else (0, (4, 2)))
            minutes = [seconds / 60 for seconds, _ in run["curve"]]
            axes.plot(minutes, [loss for _, loss in run["curve"]], linestyle=style, color=colour, linewidth=width, solid_capstyle="round")
            ends.append((run["curve"][-1][1], one["label"], colour, is_ours))
            for half in runs_of_less(found, one):
                curve = half["curve"]
                axes.plot([s / 60 for s, _ in curve], [loss for _, loss in curve], linestyle=(0, (1.5, 1.5)), color=colour, linewidth=1.3)
                axes.plot(curve[-1][0] / 60, curve[-1][1], "o", color=colour, markersize=5)
                halves.append(half)
        if halves:
            best = min(halves, key=lambda run: run["final_loss"])
            text = f"a whole run in {best['budget'] / found['budget']:.0%} of the time".replace("%", " %")
            where = (best["curve"][-1][0] / 60, best["final_loss"])
            axes.annotate(text, where, xytext=(5, -21), textcoords="offset points", ha="right", color="#3d3d3d", bbox=PAPER)
        limit(axes, found, [run for _, run in lines])
        label_ends(axes, ends, max(run["curve"][-1][0] for _, run in lines) / 60)
        mark_goal(axes, found, lines)
        axes.set(xlabel="minutes of training, one CPU core" if is_on_cpu(found) else "minutes of training", ylabel="validation loss, nats")
        axes.set_title("Masked-language-model loss after the same time on the same text")


def is_on_cpu(found: Results) -> bool:
    return all("NVIDIA" not in name for name in found["hardware"])


def runs_of_less(found: Results, one: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each smaller budget the run in the middle."""
    chosen = []
    for seconds in sorted({run["budget"] for run in one["runs"]} - {found["budget"]}):
        runs = sorted(runs_of(found, one, seconds / found["budget"]), key=lambda run: run["final_loss"])
        chosen += runs[(len(runs) - 1) // 2 :][:1]
    return chosen


def limit(axes: Any, found: Results, runs: Sequence[Mapping[str, Any]]) -> None:
    """Begin a little above what token frequencies give: higher losses say nothing."""
    lowest, unigram = min(loss for run in runs for _, loss in run["curve"]), found["text"]["unigram_loss"]
    top = unigram + 0.08 * max(0.2, unigram - lowest)
    axes.set_ylim(lowest - 0.05 * (top - lowest), top)
    axes.set_xlim(0, max(run["curve"][-1][0] for run in runs) / 60)
    axes.axhline(unigram, color="#9a9a9a", linewidth=1, linestyle=(0, (2, 2)))
    axes.annotate("token frequencies alone", (1, unigram), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="#777777")


def label_ends(axes: Any, ends: Sequence[tuple[float, str, str, bool]], x: float) -> None:
    """Write names beside the ends of lines, as far apart as letters are high."""
    low, high = axes.get_ylim()
    apart = (high - low) * 0.052
    ordered = sorted(ends, key=lambda end: end[0])
    heights: list[float] = []
    for loss, *_ in ordered:
        heights.append(max(min(loss, high), heights[-1] + apart if heights else low))
    if (over := heights[-1] - high) > 0:
        heights = [height - over for height in heights]
    for height, (loss, label, colour, is_ours) in zip(heights, ordered, strict=True):
        weight = "bold" if is_ours else "normal"
        axes.annotate(
            f"{label}  {loss:.2f}",
            (x, min(loss, high)),
            xytext=(1.015, height),
            textcoords=("axes fraction", "data"),
            va="center",
            color=colour,
            fontweight=weight,
            annotation_clip=False,
            fontsize=9.5,
        )


def mark_goal(axes: Any, found: Results, lines: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Show when our best has the best peer's final loss."""
    peers = [(one, run) for one, run in lines if one["kind"] != "pld"]
    ours = [(one, run) for one, run in lines if one["kind"] == "pld"]
    if not peers or not ours:
        return
    target = min(run["final_loss"] for _, run in peers)
    times = [time for _, run in ours if (time := seconds_to(target, run["curve"])) is not None]
    if not times:
        return
    first = min(times)
    axes.hlines(target, first / 60, axes.get_xlim()[1], color="#3d3d3d", linewidth=1, linestyle=(0, (1, 2)))
    axes.plot(first / 60, target, "o", color="#3d3d3d", markersize=5, zorder=5)
    share = f"{first / found['budget']:.0%}".replace("%", " %")
    axes.annotate(
        f"best peer's final loss after {share} of its time",
        (first / 60, target),
        xytext=(7, 6) if first < 0.6 * found["budget"] else (-7, -14),  # away from a curve that falls
        textcoords="offset points",
        ha="left" if first < 0.6 * found["budget"] else "right",
        color="#3d3d3d",
        bbox=PAPER,
    )

"""Fit the loss of an encoder to its parameters and tokens, check the fit on runs that it never saw, and write what `pld advise` reads.

    python benchmarks/first_hour.py run --plan benchmarks/law.yaml --work hour --core 0
    python benchmarks/law.py --work hour --study benchmarks/results/study-depth-narrow --hold-out 4 --out benchmarks/results/law-cpu

Of runs of one shape in one time the best one counts, and of those on about as many tokens; what fewer tokens beat does not. Runs with
dropping or growing are no points of the law; each is compared with the run without, of equal settings, time and seed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from first_hour_report import describe_text
from pldcli import presets
from pldcli.advice import evidence as record
from pldcli.advice.evidence import SHAPE, Comparison, Recorded, body_parameters
from pldcli.advice.law import Law, fit, leave_one_out
from pldcli.comparison.metrics_table import FILE, read_table
from pldcli.comparison.runs import Run
from pldcli.plots.canvas import picture
from pldcli.system import atomic
from reporting import command, head, row

DENSE = "-preln"
CHOICES = 100
"""Other ways to hold runs out that are tried."""
WANTED = 0.02
ALIKE = 1.25
"""Runs of one shape whose tokens differ by less than this factor are candidates of one another."""
NARROWEST = 128
"""Narrower models end as low after minutes, but are not as good after fine-tuning: they are not advised."""
TASK = "cola"
"""What models of studies were fine-tuned on."""
EQUAL_TIME = 0.05
"""Training times of a study, or FLOPs, that differ by less than this share are equal: steps timed beside other work vary by more."""
EVIDENCE = Path(record.__file__).with_name("evidence.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, nargs="+", default=[], help="directories of benchmarks/first_hour.py")
    parser.add_argument("--study", type=Path, nargs="+", default=[], help="directories of studies, of which comparisons alone are taken")
    parser.add_argument("--text", default="English Wikipedia and books", help="what they hold, in words")
    parser.add_argument("--hold-out", type=int, default=4, help="runs that the checked fit does not see")
    parser.add_argument("--seed", type=int, default=0, help="of their choice")
    parser.add_argument("--evidence", type=Path, default=EVIDENCE, help="where `pld advise` reads")
    parser.add_argument("--keep", action="store_true", help="what is shipped stays, beside what is new")
    parser.add_argument("--out", type=Path, required=True, help="path of the report and the picture without an ending")
    options = parser.parse_args()
    runs: list[Recorded] = []
    comparisons: list[Comparison] = []
    seen: list[Mapping[str, Any]] = []
    if options.keep:
        earlier = record.load()
        runs, comparisons = list(earlier.runs), list(earlier.comparisons)
    for work in options.work:
        results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((work / "results").glob("*.json"))]
        ours = [result for result in results if result["kind"] == "pld" and result["preset"].startswith("modern-")]
        text = describe_text(work / "data", 128)
        runs += recorded(ours, text)
        comparisons += compared(ours)
        seen += ours
    comparisons += [one for study in options.study for one in compared_in_study(study)]
    comparisons = list({replace(one, task="", score=0.0): one for one in comparisons}.values())  # of equal ones the last, which has scores
    runs = best_of_each(runs)
    content = {"text": options.text, "runs": [asdict(run) for run in runs], "comparisons": [as_json(one) for one in comparisons]}
    hidden = set(random.Random(options.seed).sample(range(len(runs)), options.hold_out))
    shown = [run for number, run in enumerate(runs) if number not in hidden]
    held_out = [runs[number] for number in sorted(hidden)]
    try:
        law = fit([run.point for run in shown])
        document = report(runs, held_out, law, comparisons, options.text, seen, picture_name=f"{options.out.name}.png")
    except ValueError as error:
        sys.exit(str(error))
    atomic.write_text(options.evidence, json.dumps(content, indent=1) + "\n")
    draw(shown, held_out, law, options.out.with_suffix(".png"))
    atomic.write_text(options.out.with_suffix(".md"), document)
    print(document)


def recorded(results: Sequence[Mapping[str, Any]], text: Mapping[str, Any]) -> list[Recorded]:
    """Take the best run of each shape and time without dropping, by the size that its preset extends and what differs from it."""
    runs: dict[tuple[Any, ...], Recorded] = {}
    for result in sorted(results, key=lambda result: result["final_loss"] or math.inf):
        preset, _, _ = result["preset"].partition(DENSE)
        if not result["preset"].endswith(DENSE) or result["final_loss"] is None:
            continue
        overrides = [f"{key}={value}" for key, value in result["settings"].items()]
        config = presets.resolve(result["preset"], overrides, from_data={"model.vocab_size": text["vocab_size"]}).config
        shape = {f"model.{name}": getattr(config.model, name) for name in SHAPE}
        run = Recorded(
            size=preset,
            settings=shape | {key: value for key, value in result["settings"].items() if key not in shape},
            parameters=body_parameters(config),
            tokens=result["tokens"],
            unique_tokens=text["train_tokens"],
            loss=round(result["final_loss"], 5),
            unigram_loss=round(text["unigram_loss"], 5),
            vocab_size=text["vocab_size"],
            is_candidate=config.model.hidden_size >= NARROWEST,
        )
        runs.setdefault((*shape.values(), result["budget"]), run)
    return list(runs.values())


def best_of_each(runs: Sequence[Recorded]) -> list[Recorded]:
    """Keep the best of runs of one shape on about as many tokens, and none that a run on fewer beats."""
    kept: list[Recorded] = []
    for run in sorted(runs, key=lambda run: run.loss):
        rivals = [one for one in kept if one.shape == run.shape and one.unigram_loss == run.unigram_loss]
        if not any(one.tokens / run.tokens < ALIKE for one in rivals):
            kept.append(run)
    return sorted(kept, key=lambda run: (run.parameters, run.tokens))


def compared(results: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Pair each run of another system with the run without of equal settings, time and seed."""
    dense = {pairing(result): result for result in results if result["preset"].endswith(DENSE)}
    found = []
    for result in results:
        other = dense.get(pairing(result))
        if result["preset"].endswith(DENSE) or other is None or None in (result["final_loss"], other["final_loss"]):
            continue
        blocks = presets.resolve(other["preset"], [f"{key}={value}" for key, value in other["settings"].items()]).config
        found.append(
            Comparison(
                system=presets.system(result["preset"]),
                num_hidden_layers=blocks.model.num_hidden_layers,
                vocab_size=blocks.model.vocab_size,
                tokens=other["tokens"],
                difference=round(result["final_loss"] - other["final_loss"], 4),
            )
        )
    return found


def compared_in_study(study: Path) -> list[Comparison]:
    """Pair each run of a shipped system with the one of as many blocks that drops nothing, of equal seed and time.

    Scores after fine-tuning are those of benchmarks/study_depths.py, beside the table of runs.
    """
    scored = json.loads(path.read_text(encoding="utf-8")) if (path := study / "scores.json").exists() else {}
    runs = [(preset_of(run), run) for run in read_table(study / FILE).values()]
    found = []
    for preset, run in runs:
        if preset.endswith(".yaml"):
            continue  # of somebody's own, which no advice could name
        system = presets.system(preset)
        if f"-{system}" == DENSE or presets.resolve(preset).config.pld != run.config.pld:
            continue  # of a system with other settings of dropping the advice could not name them
        for other_preset, other in runs:
            same = (other.config.model, other.seed) == (run.config.model, run.seed) and other_preset.endswith(DENSE)
            spent = [(one.final.train_seconds, one.final.executed_flops) for one in (run, other)]
            if same and any(abs(ours / theirs - 1) < EQUAL_TIME for ours, theirs in zip(*spent, strict=True)):
                assert run.final.loss is not None and other.final.loss is not None
                difference = round(run.final.loss - other.final.loss, 4)
                points = [score for one in (run, other) if (score := tuned_score(scored, one)) is not None]
                model = run.config.model
                one = Comparison(system, model.num_hidden_layers, model.vocab_size, int(other.final.tokens), difference)
                found.append(replace(one, task=TASK, score=round(points[0] - points[1], 2)) if len(points) == 2 else one)
    return found


def tuned_score(scored: Mapping[str, Any], run: Run) -> float | None:
    """Return the best score of a run over the settings of its fine-tuning, in points; None where its study tried one alone.

    Models of other depths may want other rates: at one rate for all, a score says which of them it fits.
    """
    depth, tried = str(run.config.model.num_hidden_layers), [runs for name, runs in scored.items() if name.startswith(f"{TASK} ")]
    found = [runs[run.name][depth] for runs in tried if depth in runs.get(run.name, {})]
    return 100 * max(map(fmean, found)) if found and len(tried) > 1 else None


def preset_of(run: Run) -> str:
    """Read the preset out of the command that began a run."""
    words = shlex.split(run.starts[0]["command"])
    return words[words.index("--preset") + 1]


def as_json(comparison: Comparison) -> dict[str, Any]:
    return {name: value for name, value in asdict(comparison).items() if comparison.task or name not in ("task", "score")}


def pairing(result: Mapping[str, Any]) -> tuple[Any, ...]:
    size = result["preset"].removesuffix(f"-{presets.system(result['preset'])}")
    return size, json.dumps(result["settings"], sort_keys=True), result["budget"], result["seed"]


def report(
    runs: Sequence[Recorded],
    held_out: Sequence[Recorded],
    law: Law,
    comparisons: Sequence[Comparison],
    text: str,
    results: Sequence[Mapping[str, Any]],
    *,
    picture_name: str,
) -> str:
    """Write down the runs, the law, and how far it was off."""
    whole = fit([run.point for run in runs])
    lines = [
        head(
            "blocks x width",
            "entries",
            "predicted over",
            "parameters",
            "tokens",
            "loss",
            "share of the unigram baseline",
            "predicted",
            "off",
        )
    ]
    for run in runs:
        seen = "held out" if run in held_out else ""
        share, predicted = run.point.loss, law.loss(run.point)
        shape = f"{run.shape['model.num_hidden_layers']} x {run.shape['model.hidden_size']}"
        cells = (
            f"{run.vocab_size:,}",
            f"{run.point.softmax_share:.1%}".replace("%", " %"),
            f"{run.parameters / 1e6:.2f} M",
            f"{run.tokens / 1e6:.2f} M",
            f"{run.loss:.3f}",
            f"{share:.4f}",
            f"{predicted:.4f}",
        )
        lines.append(row(f"{shape} {seen}".strip(), *cells, f"{predicted / share - 1:+.1%}".replace("%", " %")))
    new = [value for key in ("hardware", "software") for value in sorted({result[key] for result in results})]
    worst = max((abs(law.loss(run.point) / run.point.loss - 1) for run in held_out), default=0.0)
    checked = f", the worst of the {len(held_out)} held out is off by {worst:.1%}" if held_out else ""
    others = other_choices(runs, len(held_out))
    parts = [
        "# The loss of an encoder, from its parameters and tokens",
        f"![Predicted against measured losses]({picture_name})",
        f"Command: `{command()}`. Text: {text}. New here: {'; '.join(new) or 'comparisons alone, beside the runs on record'}.",
        f"Fitted to {len(runs) - len(held_out)} runs{checked}{others}. Each of the {len(runs)} left out in turn: "
        f"{leave_one_out([run.point for run in runs]):.1%} (root mean square).".replace("%", " %"),
        "\n".join(lines),
        f"All runs together: loss / unigram = {formula(whole)}, in millions of parameters without what grows with the vocabulary and of "
        "fresh tokens, ten thousands of entries of the vocabulary (V), and the share of it that a step predicts over (S).",
    ]
    if comparisons:
        lines = [
            head(
                "system",
                "blocks",
                "entries",
                "tokens of the run without",
                "loss with less loss without, at equal time",
                "score likewise, points",
            )
        ]
        for one in comparisons:
            score = f"{one.task} {one.score:+.1f}" if one.task else ""
            sizes = str(one.num_hidden_layers), f"{one.vocab_size:,}"
            lines.append(row(one.system, *sizes, f"{one.tokens / 1e6:.2f} M", f"{one.difference:+.3f}", score))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def other_choices(runs: Sequence[Recorded], num_held_out: int) -> str:
    """Say how far off the law is where others of the runs are held out."""
    if not num_held_out:
        return ""
    draw, worst = random.Random(1), []
    for _ in range(CHOICES):
        hidden = set(draw.sample(range(len(runs)), num_held_out))
        law = fit([run.point for number, run in enumerate(runs) if number not in hidden])
        worst.append(max(abs(law.loss(runs[number].point) / runs[number].point.loss - 1) for number in hidden))
    within = sum(error <= WANTED for error in worst)
    return f"; of {CHOICES} other choices of as many {within} are within {WANTED:.0%}, and the worst is off by {max(worst):.1%}"


def formula(law: Law) -> str:
    tokens = "D" + (f" S^{law.delta:.1f}" if law.delta else "") + (f" / V^{law.gamma:.1f}" if law.gamma else "")
    tokens = f"({tokens})" if " " in tokens else tokens
    return f"{law.floor:.3f} + {law.a:.3f} / N^{law.alpha:.2f} + {law.b:.3f} / {tokens}^{law.beta:.2f}"


def draw(shown: Sequence[Recorded], held_out: Sequence[Recorded], law: Law, path: Path) -> None:
    """Draw predicted against measured shares of the unigram baseline."""
    with picture(path, width=5.0, height=4.6) as figure:
        axes = figure.subplots()
        for runs, colour, label in ((shown, "#1f6fb4", "fitted"), (held_out, "#c03a6b", "held out")):
            measured = [run.point.loss for run in runs]
            axes.scatter(measured, [law.loss(run.point) for run in runs], color=colour, label=label, zorder=3)
        ends = [run.point.loss for run in (*shown, *held_out)]
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="#8a8a8a", linewidth=1)
        axes.set(xlabel="measured loss / unigram baseline", ylabel="predicted")
        axes.legend(frameon=False)


if __name__ == "__main__":
    main()

"""Compute the tables of README.md and docs/ that hold measured numbers again, from the files under benchmarks/results.

    python benchmarks/claims.py --check     # name every cell that differs; the exit code is then 1
    python benchmarks/claims.py --write     # write the tables anew where they stand
    python benchmarks/claims.py dropping    # print one table
    python benchmarks/claims.py --list      # name the tables that there are

A table with a digit in a cell has `<!-- claims: NAME -->` above it, with NAME one of CLAIMS below, or `<!-- claims: none, WHY -->` where
its numbers were not measured. Digits in code and in links do not count.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile, zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from first_hour_report import finetuned_table, loss_table
from pldcli.comparison.comparison import Contrast, compare_systems
from pldcli.comparison.intervals import Interval, mean_interval
from pldcli.comparison.metrics_table import FILE, read_table
from pldcli.comparison.runs import Run, System
from pldcli.system import atomic
from reporting import head, row

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Table = list[tuple[str, ...]]
"""The headings and the rows."""

_MARK = re.compile(r"\s*<!-- claims: ([^,>]+?)(?:, (.*?))? -->\s*")
_NOT_MEASURED = re.compile(r"`[^`]*`|\[[^\]]*\]\([^)]*\)")
"""Code and links: a digit there is no number that was measured."""


@cache
def runs_of(study: str) -> dict[str, Run]:
    return read_table(RESULTS / study / FILE)


def system_of(study: str, name: str) -> System:
    """All seeds of a system of a study."""
    return System(name, tuple(run for run in runs_of(study).values() if re.fullmatch(rf"{re.escape(name)}-seed\d+", run.name)))


def contrast_of(study: str, name: str, baseline: str = "preln") -> Contrast:
    reference = system_of(study, baseline)
    return compare_systems([reference, system_of(study, name)], reference).contrasts[0]


def right(run: Run) -> float:
    """Share of the masked validation tokens that the finished model guesses right, in percent."""
    return 100 * next(float(row["eval/mlm_accuracy"]) for row in reversed(run.rows) if "eval/mlm_accuracy" in row)


def right_beside(study: str, name: str, baseline: str = "preln") -> str:
    """Points above or below the dense model, over pairs of runs with the same seed."""
    dense = {run.seed: right(run) for run in system_of(study, baseline).runs}
    interval = mean_interval([right(run) - dense[run.seed] for run in system_of(study, name).runs])
    ends = "" if interval.low is None or interval.high is None else f" ({interval.low:+.1f} to {interval.high:+.1f})"
    return f"{interval.mean:+.1f}{ends}"


def same_loss_after(study: str, name: str) -> str:
    """Share of the dense model's training time after which a system has the loss that the dense model ended with."""
    shares = [reach.ratio("train_seconds") for reach in contrast_of(study, name).reaches]
    reached = [share for share in shares if share is not None]
    if len(reached) == len(shares):
        return f"{fmean(reached):.0%}".replace("%", " %")
    return f"{len(reached)} of {len(shares)} runs" if reached else "never"


def step_share(study: str, name: str) -> str:
    saved = contrast_of(study, name).saving.step_time
    assert saved is not None
    return f"{1 - saved:.0%}".replace("%", " %")


def dropping() -> Table:
    """What dropping layers bought at equal training time: each system beside the dense model of its own study."""
    short, thinned, long = "study-tiny", "study-halving", "study-tiny-36m"
    dense = [fmean(map(right, system_of(study, "preln").runs)) for study in (short, long)]
    table: Table = [
        (
            "trained for the same time",
            "a step takes (CPU / H200)",
            "short: right",
            "short: same loss after",
            "long: right",
            "long: same loss after",
        ),
        ("8 blocks, nothing dropped", "100 % / 100 %", f"{dense[0]:.1f} %", "100 %", f"{dense[1]:.1f} %", "100 %"),
    ]
    for label, study, in_short, in_long in (
        ("PLD", short, "pld-time", "pld-time"),
        ("dropping by depth alone", thinned, "depth-only-rung3", "depth-only-time"),
        ("growing, then full depth", short, "growing-time", "growing-time"),
        ("6 blocks, nothing dropped", thinned, "shallow-rung3", "shallow-time"),
    ):
        steps = f"{step_share(study, in_short)} / {step_share(long, in_long)}"
        shorts = (right_beside(study, in_short), same_loss_after(study, in_short))
        table.append((label, steps, *shorts, right_beside(long, in_long), same_loss_after(long, in_long)))
    return table


def transformers() -> Table:
    """Tokens per second of whole steps over BertForMaskedLM in a plain loop, all in one process."""
    rates = {}
    for file in ("L4", "L6", "L12"):
        text = (RESULTS / f"pretrain-vs-transformers-cpu-{file}.md").read_text(encoding="utf-8")
        for shape, vocabulary, system, *_, rate in (cells for cells in read_cells(text.splitlines()) if len(cells) in (6, 7)):
            rates[shape, vocabulary, system] = rate.split()[0]
    table: Table = [("shape", "vocabulary", "every position scored", "masked positions only", "with layers dropped")]
    for shape, vocabulary in dict.fromkeys((shape, vocabulary) for shape, vocabulary, system in rates if system == "pld dense"):
        blocks, width = shape.removeprefix("L").split("-H")
        columns = [rates.get((shape, vocabulary, system), "") for system in ("pld dense, full head", "pld dense", "PLD")]
        table.append((f"{blocks} x {width}", vocabulary, *columns))
    return table


def preparing() -> Table:
    """Time and memory that others take to tokenize JSON lines of Wikipedia, beside `pld prepare-data`."""
    ours, others = "pld prepare-data", ("datasets, usual recipe", "datatrove, DocumentTokenizer")
    same_model = f"{ours}, the same vocabulary as a SentencePiece model"
    table: Table = [("tokenizer, processes", "MB", "datasets.map takes", "datatrove takes", "memory, MB: pld / datasets / datatrove")]
    for label, file, own in (("WordPiece, 1", "", ours), ("SentencePiece, 2", "sentencepiece-", same_model)):
        text = (RESULTS / f"prepare-vs-datasets-{file}cpu.md").read_text(encoding="utf-8")
        heads, *rows = read_cells(text.splitlines())
        found = {(cells[0], cells[1]): dict(zip(heads, cells, strict=True)) for cells in rows}
        for size in dict.fromkeys(size for size, system in found if system == own):
            peers = [found[size, system] for system in others]
            memory = " / ".join(one["peak memory, MB"] for one in (found[size, own], *peers))
            table.append((label, size, *(f"{peer[HELD_AGAINST].split()[0]} times as long" for peer in peers), memory))
    return table


HELD_AGAINST = "its time / pld's"
"""A column of the report of `prepare_vs_datasets.py`."""


def first_hour(plan: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"first-hour-{plan}.json").read_text(encoding="utf-8"))
    return found


def first_hour_tiny() -> Table:
    """Loss after the same time beside transformers' Trainer, at the width of bert-tiny."""
    return loss_table(first_hour("tiny"), with_speed=False)


def first_hour_small() -> Table:
    """The same at the width of 384, on an AMD EPYC."""
    return loss_table(first_hour("small"), with_speed=False)


def first_hour_small_amx() -> Table:
    """Some of it on an Intel Xeon with AMX."""
    return loss_table(first_hour("small-amx"), with_speed=False)


def first_hour_tiny_bf16() -> Table:
    """The best peer and our best once more, both in bf16."""
    return loss_table(first_hour("tiny-bf16"), with_speed=False)


def first_hour_small_fp32() -> Table:
    """The best peer and our best of `first-hour-small` on a processor that knows no bf16."""
    return loss_table(first_hour("small-fp32"), with_speed=False)


def first_hour_finetuned() -> Table:
    """Scores after fine-tuning what was trained in `first-hour-tiny`."""
    return finetuned_table(first_hour("tiny"))


def first_hour_small_finetuned() -> Table:
    """Scores after fine-tuning what was trained in `first-hour-small-fp32`."""
    return finetuned_table(first_hour("small-fp32"))


NARROW = {"narrow": "study-depth-narrow", "cut": "study-depth-cut", "judged": "study-depth-judged"}
"""Studies of 64-wide models, with seeds of their own."""


def depth_narrow() -> Table:
    """Depths of 64-wide models at equal training time, and what is left of each when it is cut."""
    study = "study-depth-narrow"
    cut = json.loads((RESULTS / study / "scores.json").read_text(encoding="utf-8"))["loss"]
    table: Table = [("trained for the same time", "tokens", "loss", *(f"cut to {depth} blocks" for depth in (6, 4, 2)))]
    for label, name in (
        ("8 blocks", "deep"),
        ("6 blocks", "six-time"),
        ("4 blocks", "four-time"),
        ("2 blocks", "two-time"),
        ("expansion, 2 blocks for 80 % of the steps", "expansion-time"),
        ("expansion, 4 blocks for 80 % of the steps", "expansion-from-four-time"),
        ("PLD", "pld-time"),
        ("PLD, unbiased residual", "pld-block-time"),
        ("exits after 2, 4 and 6 blocks", "exits-time"),
    ):
        [run] = system_of(study, name).runs
        losses = [run.final.loss, *(cut[f"{name}-seed0"].get(str(depth)) for depth in (6, 4, 2))]
        table.append((label, f"{run.final.tokens / 1e6:.1f} M", *("" if loss is None else f"{loss:.3f}" for loss in losses)))
    return table


def mean_and_range(values: Sequence[float], digits: int) -> str:
    return f"{fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})" if values else ""


def depth_cut() -> Table:
    """What is left of 64-wide models of equal training time when they are cut: losses, and scores after fine-tuning."""
    place, depths = RESULTS / "study-depth-cut", ("8", "6", "4", "2")
    found = json.loads((place / "scores.json").read_text(encoding="utf-8"))
    losses, scores = found["loss"], found["cola learning_rate=3e-4"]
    table: Table = [
        ("trained for the same time", *(f"loss, {depth} blocks" for depth in depths), *(f"CoLA, {depth} blocks" for depth in depths))
    ]
    for label, name in (
        ("8 blocks", "deep"),
        ("6 blocks", "six"),
        ("4 blocks", "four"),
        ("2 blocks", "two"),
        ("expansion, 2 blocks for 80 % of the steps", "expansion"),
        ("PLD", "pld"),
        ("dropping by depth alone", "depth-only"),
        ("dropping by depth alone, unbiased residual", "depth-only-block"),
    ):
        run = f"{name}-seed1"
        cells = [f"{losses[run][depth]:.3f}" if depth in losses[run] else "" for depth in depths]
        for depth in depths:
            cells.append(mean_and_range([100 * score for score in scores[run].get(depth, ())], 1))
        table.append((label, *cells))
    return table


def depth_judged() -> Table:
    """As depth-cut with further seeds, by loss, minimal pairs and fine-tuning: means over seeds, and lowest to highest."""
    studies = [json.loads((RESULTS / NARROW[name] / "scores.json").read_text(encoding="utf-8")) for name in ("cut", "judged")]

    def over_seeds(measure: str, name: str, depth: int) -> str:
        runs = [run for study in studies for key, run in study.get(measure, {}).items() if key.rpartition("-seed")[0] == name]
        found = [run[str(depth)] for run in runs if str(depth) in run]
        each = [one.values() if measure == "pairs" else one for one in found]
        values = found if measure == "loss" else [100 * fmean(one) for one in each]
        return mean_and_range(values, 3 if measure == "loss" else 1)

    rates = tuple((f"cola learning_rate={rate}", f"CoLA at {rate}") for rate in ("3e-4", "1e-3"))
    columns = (("loss", "loss"), ("pairs", "pairs right, %"))
    cut = tuple((measure, f"cut to 4 blocks: {title}") for measure, title in columns)
    table: Table = [("trained for the same time", *(title for _, title in (*columns, *rates, *cut)))]
    for label, name, depth in (
        ("8 blocks", "deep", 8),
        ("4 blocks", "four", 4),
        ("2 blocks", "two", 2),
        ("2 blocks, 8 after 80 % of the steps (expansion)", "expansion", 8),
        ("2 blocks, 8 after half of the steps", "expansion-half", 8),
        ("dropping by depth alone, unbiased residual", "depth-only-block", 8),
    ):
        whole = [over_seeds(measure, name, depth) for measure, _ in (*columns, *rates)]
        table.append((label, *whole, *(over_seeds(measure, name, 4) if depth == 8 else "" for measure, _ in cut)))
    return table


def depth_pieces() -> Table:
    """Depths where words are made of small pieces: at equal tokens, then at the FLOPs of twice as many with 8 blocks."""
    study = "study-depth-pieces"
    cut = json.loads((RESULTS / study / "scores.json").read_text(encoding="utf-8"))["loss"]
    table: Table = [("model", "tokens", "FLOPs", "loss", "cut to 4 blocks", "cut to 2 blocks")]
    for label, name in (
        ("8 blocks", "deep"),
        ("4 blocks, as many tokens", "four"),
        ("8 blocks, twice the tokens", "deep-long"),
        ("4 blocks, as many FLOPs", "four-long"),
        ("4 blocks, 8 after 80 % of the steps, as many FLOPs", "expansion-from-four-long"),
        ("2 blocks, 8 after 80 % of the steps, as many FLOPs", "expansion-long"),
    ):
        [run] = system_of(study, name).runs
        losses = [run.final.loss, *(cut[f"{name}-seed0"].get(str(depth)) for depth in (4, 2))]
        cells = ("" if loss is None else f"{loss:.3f}" for loss in losses)
        table.append((label, f"{run.final.tokens / 1e6:.1f} M", f"{run.final.executed_flops / 1e12:.1f} T", *cells))
    return table


def final_loss(run: Run) -> float:
    assert run.final.loss is not None
    return run.final.loss


def losses_beside(study: str, name: str, baseline: str) -> list[float]:
    """Nats above or below the dense model, of each pair of runs with the same seed."""
    dense = {run.seed: final_loss(run) for run in system_of(study, baseline).runs}
    return [final_loss(run) - dense[run.seed] for run in system_of(study, name).runs if run.seed in dense]


def loss_beside(study: str, name: str, baseline: str) -> Interval:
    """Nats above or below the dense model, over pairs of runs with the same seed."""
    return mean_interval(losses_beside(study, name, baseline))


def paid() -> Table:
    """What every way to spend the same time bought, beside the dense model of 8 blocks and beside the best of fewer blocks."""
    studies = {"short": "study-tiny", "thinned": "study-halving", "long": "study-tiny-36m", **NARROW}
    columns = {"short": "short", "thinned": "short", "long": "long", **dict.fromkeys(NARROW, "half as wide")}
    rows: dict[str, dict[str, str]] = {  # of the first narrow study, 6 and 4 blocks had too much time
        "6 blocks, nothing dropped": {"thinned": "shallow-rung3", "long": "shallow-time", "cut": "six"},
        "4 blocks, nothing dropped": {"cut": "four", "judged": "four"},
        "2 blocks, nothing dropped": {"narrow": "two-time", "cut": "two", "judged": "two"},
        "PLD": {"short": "pld-time", "long": "pld-time", "narrow": "pld-time", "cut": "pld"},
        "PLD, unbiased residual": {"narrow": "pld-block-time"},
        "dropping by depth alone": {"thinned": "depth-only-rung3", "long": "depth-only-time", "cut": "depth-only"},
        "dropping by depth alone, unbiased residual": {"cut": "depth-only-block", "judged": "depth-only-block"},
        "growing, then full depth": {"short": "growing-time", "long": "growing-time"},
        "2 blocks, all of them after 80 % (expansion)": {"narrow": "expansion-time", "cut": "expansion", "judged": "expansion"},
        "2 blocks, all of them after half": {"judged": "expansion-half"},
        "loss after fewer blocks, too (exits)": {"narrow": "exits-time"},
    }
    pairs: dict[str, dict[str, list[float]]] = {label: {} for label in rows}
    for label, names in rows.items():
        for key, name in names.items():
            baseline = "deep" if key in NARROW else "preln"
            pairs[label].setdefault(columns[key], []).extend(losses_beside(studies[key], name, baseline))
    found = {label: {column: mean_interval(values) for column, values in some.items()} for label, some in pairs.items()}
    shallow = [label for label in rows if label.endswith("nothing dropped")]
    least = {column: min(found[label][column].mean for label in shallow if column in found[label]) for column in columns.values()}
    table: Table = [("in the time of 8 blocks, nothing dropped", *least, "ends below 8 blocks", "ends below the best of fewer blocks")]
    for label, differences in found.items():
        cells = [_signed(differences[column]) if column in differences else "" for column in least]
        below = ", ".join(column for column, one in differences.items() if (one.mean if one.high is None else one.high) < 0)
        best = ", ".join(column for column, one in differences.items() if one.mean < least[column])
        table.append((label, *cells, below or "never", "" if label in shallow else best or "never"))
    return table


def _signed(interval: Interval) -> str:
    ends = "" if interval.low is None or interval.high is None else f" ({interval.low:+.3f} to {interval.high:+.3f})"
    return f"{interval.mean:+.3f}{ends}"


def paper() -> Table:
    """The paper's claims beside what the studies found: nats of validation loss unless a cell says otherwise."""
    short, long = "study-tiny", "study-tiny-36m"

    def beside(name: str, baseline: str) -> tuple[str, str]:
        return _signed(loss_beside(short, name, baseline)), _signed(loss_beside(long, name, baseline))

    half = (_signed(loss_beside(short, "preln50", "postln50")), _signed(loss_beside(long, "preln50-1e-3", "postln50-1e-3")))
    reached = (f"after {same_loss_after(short, 'pld-time')} of the time", same_loss_after(long, "pld-time"))
    rates = [" / ".join(f"{best_rate(system):g}" for system in systems) for systems in (("preln", "postln"), ("pld", "preln"))]
    return [
        ("claim (Zhang & He 2020)", "short runs", "long runs", "verdict"),
        (
            "a step with layers dropped takes about a quarter less time",
            *(f"{step_share(study, 'pld-time')} of it" for study in (short, long)),
            "reproduced on a CPU, and on a GPU with BERT-base; bert-tiny does not fill it",
        ),
        ("the baseline's loss in less than half of the time", *reached, "not reproduced"),
        ("no loss of quality at equal tokens", *beside("pld", "preln"), "not reproduced"),
        ("dropping by depth and time beats dropping at random", *beside("pld", "rand"), "same direction, one seed"),
        ("Pre-LN stays stable under 50 % dropping where Post-LN does not", *half, "reproduced at one learning rate, one seed"),
        ("Pre-LN trains at higher learning rates than Post-LN", "", f"best {rates[0]}", "reproduced, one seed"),
        ("PLD trains at higher learning rates than Pre-LN", "", f"best {rates[1]}", "not reproduced, one seed"),
        ("fine-tuned scores level or better", "", "", "not reproduced: lower, within what chance allows"),
        ("the time schedule keeps fp16 from overflowing", "", "", "not testable without a GPU; bf16 needs none"),
    ]


def best_rate(system: str) -> float:
    """The learning rate of the lowest loss, of one seed."""
    runs = [run for run in runs_of("study-learning-rate").values() if run.name.startswith(f"{system}-")]
    return float(min(runs, key=final_loss).name.removeprefix(f"{system}-").removesuffix("-seed0"))


CLAIMS: dict[str, Callable[[], Table]] = {
    "dropping": dropping,
    "paid": paid,
    "paper": paper,
    "transformers": transformers,
    "preparing": preparing,
    "first-hour-tiny": first_hour_tiny,
    "first-hour-tiny-bf16": first_hour_tiny_bf16,
    "first-hour-small": first_hour_small,
    "first-hour-small-amx": first_hour_small_amx,
    "first-hour-small-fp32": first_hour_small_fp32,
    "first-hour-finetuned": first_hour_finetuned,
    "first-hour-small-finetuned": first_hour_small_finetuned,
    "depth-narrow": depth_narrow,
    "depth-cut": depth_cut,
    "depth-judged": depth_judged,
    "depth-pieces": depth_pieces,
}


@dataclass(frozen=True)
class Found:
    """A table in a text."""

    file: str
    """Its path from where README.md is."""
    first: int
    """Number of its first line, from 0."""
    lines: list[str]
    name: str | None
    """What its mark says, if it has one."""
    why: str | None

    @property
    def place(self) -> str:
        return f"{self.file}:{self.first + 1}"


def pages(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def find_tables(file: Path, root: Path) -> Iterator[Found]:
    """Find the tables of a file with the mark above them, a blank line between or not; what stands in a block of code is none."""
    lines, number, is_code = file.read_text(encoding="utf-8").splitlines(), 0, False
    while number < len(lines):
        is_code ^= lines[number].lstrip().startswith("```")
        table = [] if is_code else list(takewhile(lambda line: line.startswith("|"), lines[number:]))
        if table:
            above = [line for line in lines[max(0, number - 2) : number] if line.strip()]
            mark = _MARK.fullmatch(above[-1]) if above else None
            yield Found(str(file.relative_to(root)), number, table, *(mark.groups() if mark else (None, None)))
        number += len(table) or 1


def read_cells(lines: Sequence[str]) -> list[list[str]]:
    """Read the cells of every row of the tables in some lines, head and all."""
    rows = [line.strip().removeprefix("|").removesuffix("|") for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in rows if not re.fullmatch(r"[\s|:-]+", line)]


def rendered(table: Table) -> list[str]:
    return [*head(*table[0]).splitlines(), *(row(*cells) for cells in table[1:])]


def check(found: Found) -> list[str]:
    """Say what is wrong with a table: no mark, an unknown one, or cells that differ from what is computed."""
    cells = read_cells(found.lines)
    if found.name is None:
        measured = any(re.search(r"\d", _NOT_MEASURED.sub("", cell)) for line in cells[1:] for cell in line)
        say = "holds numbers: put <!-- claims: NAME --> above it, or <!-- claims: none, WHY --> where they were not measured"
        return [f"{found.place}: a table {say}"] if measured else []
    if found.name == "none":
        return [] if found.why else [f"{found.place}: <!-- claims: none --> does not say why: write <!-- claims: none, WHY -->"]
    if found.name not in CLAIMS:
        return [f"{found.place}: no claims are called {found.name}: choose from {', '.join(CLAIMS)}"]
    wrong = []
    wanted = CLAIMS[found.name]()
    for number, (ours, theirs) in enumerate(zip_longest(wanted, cells, fillvalue=())):
        line = f"{found.file}:{found.first + 1 + number + (number > 0)}"  # behind the head lies the line of dashes
        for column, (computed, written) in enumerate(zip_longest(ours, theirs, fillvalue="nothing")):
            if computed != written:
                where = " of ".join([*wanted[0][column : column + 1], *(theirs or ours)[:1]])
                wrong.append(f"{line}: {where}: {written!r} is written, {computed!r} is computed")
    return wrong


def write(root: Path) -> list[str]:
    """Write the tables of all claims anew; return where one changed."""
    changed: list[str] = []
    for file in pages(root):
        lines = file.read_text(encoding="utf-8").splitlines()
        wrong = [found for found in find_tables(file, root) if found.name in CLAIMS and check(found)]
        for found in reversed(wrong):
            lines[found.first : found.first + len(found.lines)] = rendered(CLAIMS[str(found.name)]())
        if wrong:
            atomic.write_text(file, "\n".join(lines) + "\n")
        changed += [found.place for found in wrong]
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=CLAIMS, help="the table to print")
    parser.add_argument("--check", action="store_true", help="compare every table with what is computed")
    parser.add_argument("--write", action="store_true", help="write every table anew")
    parser.add_argument("--list", action="store_true", help="name every table")
    parser.add_argument("--root", type=Path, default=ROOT, help="where README.md and docs/ are")
    arguments = parser.parse_args()
    if arguments.list:
        for name, claim in CLAIMS.items():
            print(f"{name}: {claim.__doc__}")
    if arguments.name:
        print("\n".join(rendered(CLAIMS[arguments.name]())))
    if arguments.write:
        for place in write(arguments.root):
            print(f"written: {place}")
    if arguments.check:
        tables = [found for file in pages(arguments.root) for found in find_tables(file, arguments.root)]
        wrong = [line for found in tables for line in check(found)]
        print("\n".join(wrong or [f"{sum(found.name in CLAIMS for found in tables)} tables say what is computed"]))
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

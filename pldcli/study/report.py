"""The report of a study: one Markdown file to read and keep, with the pages, pictures and numbers it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pldcli import __version__
from pldcli.console.section import Section
from pldcli.system import atomic

if TYPE_CHECKING:
    from pldcli.comparison.comparison import Comparison
    from pldcli.study.results import Results

__all__ = ["write_report"]

_REMARK = (
    "Seconds are steps x step time: the time of a step was measured alone and in turn before the first run, not read off runs that may "
    "have trained side by side."
)


def write_report(results: Results, out: Path) -> Path:
    """Write everything, in the place of an earlier report.

    Args:
        results: What the study came to so far.
        out: The directory of the report.

    Returns:
        The Markdown file.

    Raises:
        OutputError: It cannot be written.
    """
    from pldcli.comparison import metrics_table
    from pldcli.comparison.report import write_comparison
    from pldcli.study.sensitivity import draw_lines, find_lines

    outcomes = {name: [results.outcomes[run.name] for run in runs] for name, runs in results.groups.items()}
    lines = find_lines(results.plan.spec, outcomes)
    with atomic.directory(out, overwrite=True) as place:
        for baseline, comparison in results.comparisons.items():
            title = f"{results.plan.spec.name}: against {baseline}"
            write_comparison(comparison, place / _folder(baseline, results), title=title, remarks=[_REMARK])
        runs = {**results.trained, **results.diverged}
        atomic.write_bytes(place / metrics_table.FILE, metrics_table.table_bytes(list(runs.values())))  # of all runs, not of one comparison
        drawn = [key for key, found in lines.items() if draw_lines(key, found, place / _picture(key))]
        atomic.write_text(place / "report.md", _markdown(results, lines, drawn))
    return out / "report.md"


def _markdown(results: Results, lines: Mapping[str, Any], drawn: Sequence[str]) -> str:
    from pldcli.study import tables

    spec = results.plan.spec
    checks = tables.check_lines(results)
    parts = [f"# Study {spec.name}", _state(results)]
    if checks:
        parts += ["## Can it answer?", _bullets(checks)]
    parts += [_section(_wide(results))]
    scores = tables.finetuned(results)
    for baseline, comparison in results.comparisons.items():
        parts.append(_against(baseline, comparison, results))
        parts += [_section(scores[baseline])] if baseline in scores else []
    for key, found in lines.items():
        parts.append(_section(tables.sensitivity(key, found)))
        if key in drawn:
            parts.append(f"![final validation loss over {key}]({_picture(key)})")
    halving = tables.halving(results)
    if halving is not None:
        parts.append(_section(halving))
    parts.append(_section(tables.run_table(results.plan, results.runs, [results.outcomes[run.name] for run in results.runs])))
    troubles = [
        f"{run.name}: {results.outcomes[run.name].state}: {results.outcomes[run.name].note}"
        for run in results.runs
        if results.outcomes[run.name].note
    ]
    troubles += [f"{tuning.name}: {outcome}" for tuning, outcome in results.tunings.items() if not outcome.is_settled]
    if troubles:
        parts += ["## What went wrong", _bullets(troubles)]
    parts += [_section(tables.step_times(results)), _how(results)]
    return "\n\n".join(parts) + "\n"


def _wide(results: Results) -> Section:
    """Put what each system ended with and its difference to its baseline into one table."""
    from pldcli.study import tables

    ends, held = tables.results_table(results), tables.differences(results)
    beside = {row[0]: row[1:] for row in held.rows} if held else {}
    nothing = ("", "baseline", "", "", "")
    rows = []
    for row in ends.rows:
        waiting = ("", "", "", "", "") if results.baseline_of(row[0]) else nothing
        against, verdict, mean, ends_, pairs = beside.get(row[0], waiting)
        rows.append((*row, mean, ends_, pairs, against, verdict))
    headings = (*ends.headings, "difference", "95 % interval", "pairs", "against", "verdict")
    notes = (*ends.notes, *(held.notes if held else ()))
    return Section(ends.title, headings, tuple(rows), notes=notes, words=("against", "verdict"))


def _against(baseline: str, comparison: Comparison, results: Results) -> str:
    from pldcli.comparison.tables import summary, words

    folder = _folder(baseline, results)
    page, picture = folder / "index.html", folder / "comparison.png"
    kept = " ".join(f"--only '{system.name}-seed*'" for system in comparison.systems)
    again = f"`pld compare metrics.csv.gz --baseline {comparison.baseline.runs[0].name} {kept} --out DIR`"
    parts = [f"## Against {baseline}", f"Every table and curve: [{page}]({page}), or {again}.", f"![validation losses]({picture})"]
    if comparison.warnings:
        parts.append("Read this before the numbers:\n\n" + _bullets(comparison.warnings))
    parts.append(_bullets(summary(comparison)))
    parts.append("What differs:\n\n" + _bullets(f"{heading}: {'; '.join(told)}" for heading, told in words(comparison)))
    return "\n\n".join(parts)


def _state(results: Results) -> str:
    done, diverged, failed = (results.count(state) for state in ("finished", "diverged", "failed"))
    parts = [f"{done} of {len(results.runs)} runs finished"]
    parts += [f"{diverged} diverged"] if diverged else []
    parts += [f"{failed} failed"] if failed else []
    left = len(results.runs) - done - diverged - failed
    parts += [f"{left} not done yet"] if left else []
    halving = results.plan.spec.halving
    if halving is not None and len(results.rungs) < len(halving.rungs) and not results.is_complete:
        parts.append("later rungs of the halving are not known yet")
    return ", ".join(parts) + "."


def _how(results: Results) -> str:
    """Say on what, with what and from which file."""
    machine, spec = results.timings.machine, results.plan.spec
    ran = {
        f"{start.get('hardware')}, {start.get('device')}, {start.get('precision')}, {start.get('threads')} thread(s)"
        for run in results.trained.values()
        for start in run.starts
    }
    packages = ", ".join(f"{name} {version}" for name, version in machine.get("packages", {}).items())
    lines = [
        f"measured on {machine.get('hardware')}, {machine.get('threads')} thread(s)",
        *(f"trained on {where}" for where in sorted(ran)),
        f"pldcli {machine.get('pldcli')}, Python {machine.get('python')}, {packages}; report by pldcli {__version__}",
        f"data {results.data}, fingerprint {results.timings.data_fingerprint[:12]}",
        f"seeds {', '.join(map(str, spec.seeds))}: a seed gives every system the same order of text, the same masks, and the same "
        "initial weights where the shape is the same",
    ]
    files = "`metrics.csv.gz` holds every validation of each run and about 100 of its other rows."
    return f"## How\n\n{_bullets(lines)}\n\n{files}\n\nThe study's file:\n\n```yaml\n{spec.text.strip()}\n```"


def _folder(baseline: str, results: Results) -> Path:
    """Give the main baseline the report's own directory."""
    return Path() if baseline == results.plan.spec.baseline else Path(f"against-{baseline}")


def _picture(key: str) -> str:
    return f"sensitivity-{key}.png"


def _section(section: Section) -> str:
    marks = [":--" if section.holds_words(column) else "--:" for column in range(len(section.headings))]
    rows = [section.headings, tuple(marks), *section.rows]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    notes = "\n\n".join(f"{note[0].upper()}{note[1:]}." for note in section.notes)
    return f"## {section.title}\n\n{table}" + (f"\n\n{notes}" if notes else "")


def _bullets(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)

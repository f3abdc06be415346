"""The report of a study: one Markdown file to read and keep, with the pages, pictures and numbers it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pldcli import __version__
from pldcli.comparison import metrics_table
from pldcli.comparison.comparison import Comparison
from pldcli.comparison.report import write_comparison
from pldcli.comparison.tables import summary, words
from pldcli.console.section import bullets, code_block, markdown, markdown_text
from pldcli.study.directory import Study
from pldcli.study.jobs import Outcome, State
from pldcli.study_report import tables
from pldcli.study_report.plots import draw_lines
from pldcli.study_report.results import Results, read_results
from pldcli.study_report.sensitivity import Line, find_lines
from pldcli.system import atomic

__all__ = ["report_study", "write_report"]

_REMARK = (
    "Seconds are steps x step time: the time of a step was measured alone and in turn before the first run, not read off runs that may "
    "have trained side by side."
)


def report_study(study: Study, ended: Mapping[str, Outcome] | None = None) -> Results:
    """Read the results of a study, as far as it is, and write its report.

    Args:
        study: The study.
        ended: Name to outcome of the jobs that were just carried out, which know why they failed.

    Raises:
        DataError: The metrics of a run are damaged.
        OutputError: The report cannot be written.
    """
    results = read_results(study, ended or {})
    write_report(results, study.out / "report")
    return results


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
    outcomes = {name: [results.outcomes[run.name] for run in runs] for name, runs in results.groups.items()}
    lines = find_lines(results.spec, outcomes)
    with atomic.directory(out, overwrite=True) as place:
        for baseline, comparison in results.comparisons.items():
            title = f"{results.spec.name}: against {baseline}"
            write_comparison(comparison, place / _folder(baseline, results), title=title, remarks=[_REMARK])
        runs = {**results.trained, **results.diverged}
        atomic.write_bytes(place / metrics_table.FILE, metrics_table.table_bytes(list(runs.values())))  # of all runs, not of one comparison
        drawn = [key for key, found in lines.items() if draw_lines(key, found, place / _picture(key))]
        atomic.write_text(place / "report.md", _markdown(results, lines, drawn))
    return out / "report.md"


def _markdown(results: Results, lines: Mapping[str, Sequence[Line]], drawn: Sequence[str]) -> str:
    spec = results.spec
    checks = tables.check_lines(results)
    parts = [f"# Study {markdown_text(spec.name)}", _state(results)]
    if checks:
        parts += ["## Can it answer?", bullets(checks)]
    parts += [markdown(tables.results_table(results, differences=True))]
    scores = tables.finetuned(results)
    for baseline, comparison in results.comparisons.items():
        parts.append(_against(baseline, comparison, results))
        parts += [markdown(scores[baseline])] if baseline in scores else []
    for key, found in lines.items():
        parts.append(markdown(tables.sensitivity(key, found)))
        if key in drawn:
            parts.append(f"![final validation loss over {key}]({_picture(key)})")
    halving = tables.halving(results)
    if halving is not None:
        parts.append(markdown(halving))
    parts.append(markdown(tables.run_table(results.study.plan, results.runs, [results.outcomes[run.name] for run in results.runs])))
    if troubles := _troubles(results):
        parts += ["## What went wrong", bullets(troubles)]
    parts += [markdown(tables.step_times(results)), _how(results)]
    return "\n\n".join(parts) + "\n"


def _troubles(results: Results) -> list[str]:
    ended = {name: outcome for name, outcome in results.outcomes.items() if outcome.note}
    ended |= {planned.name: outcome for planned, outcome in results.scorings.items() if not outcome.is_settled}
    diverged = [f"{planned.name}: {end}" for planned, end in results.scorings.items() if end.is_settled and end.score is None]
    return [f"{name}: {outcome.state}" + (f": {outcome.note}" if outcome.note else "") for name, outcome in ended.items()] + diverged


def _against(baseline: str, comparison: Comparison, results: Results) -> str:
    folder = _folder(baseline, results)
    page, picture = folder / "index.html", folder / "comparison.png"
    kept = " ".join(f"--only '{system.name}-seed*'" for system in comparison.systems)
    again = f"`pld compare metrics.csv.gz --baseline {comparison.baseline.runs[0].name} {kept} --out DIR`"
    parts = [
        f"## Against {markdown_text(baseline)}",
        f"Every table and curve: [{page}]({page}), or {again}.",
        f"![validation losses]({picture})",
    ]
    if comparison.warnings:
        parts.append("Read this before the numbers:\n\n" + bullets(comparison.warnings))
    parts.append(bullets(summary(comparison)))
    parts.append("What differs:\n\n" + bullets(f"{heading}: {'; '.join(told)}" for heading, told in words(comparison)))
    return "\n\n".join(parts)


def _state(results: Results) -> str:
    done, diverged, failed = (results.count(state) for state in (State.FINISHED, State.DIVERGED, State.FAILED))
    parts = [f"{done} of {len(results.runs)} runs finished"]
    parts += [f"{diverged} diverged"] if diverged else []
    parts += [f"{failed} failed"] if failed else []
    left = len(results.runs) - done - diverged - failed
    parts += [f"{left} not done yet"] if left else []
    halving = results.spec.halving
    if halving is not None and len(results.rungs) < len(halving.rungs) and not results.is_complete:
        parts.append("later rungs of the halving are not known yet")
    return ", ".join(parts) + "."


def _how(results: Results) -> str:
    """Return on what, with what and from which file the study was made."""
    machine, spec = results.study.timings.machine, results.spec
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
        f"data {results.study.data}, fingerprint {results.study.timings.data_fingerprint[:12]}",
        f"seeds {', '.join(map(str, spec.seeds))}: a seed gives every system the same order of text, the same masks, and the same "
        "initial weights where the shape is the same",
    ]
    files = "`metrics.csv.gz` holds every validation of each run and about 100 of its other rows."
    return f"## How\n\n{bullets(lines)}\n\n{files}\n\nThe study's file:\n\n{code_block(spec.text.strip(), 'yaml')}"


def _folder(baseline: str, results: Results) -> Path:
    """Return where a comparison goes; that with the main baseline goes into the report's own directory."""
    return Path() if baseline == results.spec.baseline else Path(f"against-{baseline}")


def _picture(key: str) -> str:
    return f"sensitivity-{key}.png"

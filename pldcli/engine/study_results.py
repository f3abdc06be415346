"""Read what the runs of a study came to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pldcli.engine.compare import read_run
from pldcli.engine.metrics import read_metrics
from pldcli.engine.run_directory import RunDirectory
from pldcli.engine.study import Study
from pldcli.engine.study_tunings import FINETUNED
from pldcli.study.finetuning import TuningOutcome
from pldcli.study.outcome import Outcome
from pldcli.study.results import Results
from pldcli.study.thinning import calibrated, thin_rows

__all__ = ["read_results", "read_thinned"]


def read_results(study: Study, outcomes: Mapping[str, Outcome] | None = None, tuned: Mapping[str, TuningOutcome] | None = None) -> Results:
    """Collect a study's finished runs.

    Args:
        study: The study.
        outcomes: What became of its runs, as training told; read from the disk by default.
        tuned: What became of its fine-tunings, likewise.

    Raises:
        DataError: The metrics of a run are damaged.
    """
    runs = study.runs()
    known = {run.name: (outcomes or {}).get(run.name) or study.outcome(run) for run in runs}
    trained = {}
    for run in runs:
        if known[run.name].state == "finished":
            place = study.place(run)
            read = read_run(place, name=run.name, finetuned=study.out / FINETUNED)
            trained[run.name] = calibrated(read, study.plan.times[run.system])
    tunings = {tuning: (tuned or {}).get(tuning.name) or outcome for tuning, outcome in study.tunings().items()}
    return Results(study.plan, study.timings, str(study.data), tuple(runs), known, trained, tuple(study.rungs()), tunings)


def read_thinned(study: Study, results: Results) -> dict[str, list[dict[str, Any]]]:
    """Read the metrics of every run that finished or diverged, with fewer rows."""
    return {
        run.name: thin_rows(read_metrics(RunDirectory(study.place(run)).metrics))
        for run in results.runs
        if results.outcomes[run.name].is_settled
    }

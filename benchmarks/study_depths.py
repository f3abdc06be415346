"""Score the runs of a study with only some of their blocks, on the rows and masks of their own validations, nothing scaled.

    python benchmarks/study_depths.py studies/depth-narrow --data data --depths 8 6 4 2 --out depths.json

Kept are the blocks that a run trained most, as `pld evaluate --depth` chooses them; of a run without dropping the first ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pldcli.data.prepared import open_prepared
from pldcli.engine.validation import fixed_batches, score_lm
from pldcli.evaluation.depth import choose_depths
from pldcli.evaluation.subject import open_subject
from pldcli.presets import load
from pldcli.system import atomic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a directory that `pld study` wrote")
    parser.add_argument("--data", type=Path, required=True, help="the prepared directory")
    parser.add_argument("--depths", nargs="+", type=int, required=True, help="numbers of blocks; a run leaves out what it does not have")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    arguments = parser.parse_args()
    found = {}
    for run in sorted((arguments.study / "runs").iterdir()):
        if (run / "model").is_dir():
            found[run.name.rpartition("-seed")[0]] = losses(run, arguments.data, arguments.depths)
            print(run.name, found[run.name.rpartition("-seed")[0]], flush=True)
    atomic.write_text(arguments.out, json.dumps(found, indent=1) + "\n")


def losses(run: Path, data: Path, depths: list[int]) -> dict[str, float]:
    """Score one run; return its losses by the number of blocks."""
    config, prepared = load(run / "config.yaml"), open_prepared(data)
    there = [depth for depth in depths if depth <= config.model.num_hidden_layers]
    with open_subject(run, data=data) as subject:
        model, precision, runtime = subject.model, subject.precision, subject.runtime
        choice = choose_depths(run, there, "keep-prob", config.model)
        batches = [fixed_batches(prepared, config.data.seq_len, max_sequences=config.eval.max_sequences) for _ in there]
        scored = [score_lm(model, some, precision, runtime, gates).loss for some, gates in zip(batches, choice.gates, strict=True)]
    return {str(depth): round(loss, 4) for depth, loss in zip(there, scored, strict=True)}


if __name__ == "__main__":
    main()

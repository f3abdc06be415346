"""Score the runs of a study with only some of their blocks, nothing scaled: by loss, on minimal pairs, and after fine-tuning.

    python benchmarks/study_depths.py studies/depth-cut --data data --depths 8 6 4 2 --out scores.json
    python benchmarks/study_depths.py studies/depth-cut --data data --depths 8 6 4 2 --finetune cola --data-dir glue --out scores.json
    python benchmarks/study_depths.py studies/depth-cut --data data --depths 8 6 4 2 --minimal-pairs pairs --out scores.json

Kept are the blocks that a run trained most, as `pld evaluate --depth` and `pld export --keep-blocks` choose them; of a run without dropping
the first ones. Losses are those of the rows and masks of each run's own validations. OUT names measure (a task with its settings), run and
number of blocks: several calls may share it, and what is in it is not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import finetuned, output_of_process
from pldcli.config import Config
from pldcli.data.prepared import open_prepared
from pldcli.engine.validation import fixed_batches, score_lm
from pldcli.evaluation.depth import choose_depths
from pldcli.evaluation.subject import Subject, open_subject
from pldcli.evaluation.zero_shot import judge_pairs, read_pairs
from pldcli.presets import load
from pldcli.system import atomic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a directory that `pld study` wrote")
    parser.add_argument("--data", type=Path, required=True, help="the prepared directory")
    parser.add_argument("--depths", nargs="+", type=int, required=True, help="numbers of blocks; a run leaves out what it does not have")
    parser.add_argument("--finetune", metavar="TASK", help="a task of GLUE to fine-tune the cut models on, in place of their losses")
    parser.add_argument("--minimal-pairs", type=Path, metavar="DIR", help="pairs to judge with the cut models, in place of their losses")
    parser.add_argument("--data-dir", type=Path, help="where the folders of GLUE are")
    parser.add_argument("--seeds", type=int, default=3, help="of the fine-tuning")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the fine-tuning")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    arguments = parser.parse_args()
    scored: dict[str, dict[str, dict[str, Any]]] = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    measure = "pairs" if arguments.minimal_pairs else "loss"
    found = scored.setdefault(" ".join([arguments.finetune, *arguments.set]) if arguments.finetune else measure, {})
    for run in sorted((arguments.study / "runs").iterdir()):
        if not (run / "model").is_dir():
            continue
        num_blocks = load(run / "config.yaml").model.num_hidden_layers
        missing = [depth for depth in arguments.depths if depth <= num_blocks and str(depth) not in found.get(run.name, {})]
        for depth, score in scores(run, missing, arguments):
            found[run.name] = found.get(run.name, {}) | {str(depth): score}
            atomic.write_text(arguments.out, json.dumps(scored, indent=1) + "\n")
            print(run.name, depth, score, flush=True)


def scores(run: Path, depths: list[int], arguments: argparse.Namespace) -> Iterator[tuple[int, Any]]:
    """Score one run at each number of blocks, by what was asked for."""
    if arguments.finetune:
        yield from ((depth, [round(score, 4) for score in scores_after(run, depth, arguments)]) for depth in depths)
    elif depths:
        config = load(run / "config.yaml")
        with open_subject(run, data=arguments.data) as subject:
            choice = choose_depths(run, depths, "keep-prob", config.model)
            score = share_right if arguments.minimal_pairs else loss
            yield from ((depth, score(subject, gates, config, arguments)) for depth, gates in zip(depths, choice.gates, strict=True))


def loss(subject: Subject, gates: Sequence[bool] | None, config: Config, arguments: argparse.Namespace) -> float:
    """Compute the loss on the rows and masks of the run's own validations."""
    batches = fixed_batches(open_prepared(arguments.data), config.data.seq_len, max_sequences=config.eval.max_sequences)
    return round(score_lm(subject.model, batches, subject.precision, subject.runtime, gates).loss, 4)


def share_right(subject: Subject, gates: Sequence[bool] | None, config: Config, arguments: argparse.Namespace) -> dict[str, float]:
    """Find how often the right sentence of a pair is preferred, by file."""
    judged = judge_pairs(subject, read_pairs([arguments.minimal_pairs], subject.loaded.tokenizer), gates=gates, quiet=True)
    return {Path(file).stem: round(score.accuracy, 4) for file, score in judged.files.items()}


def scores_after(run: Path, depth: int, arguments: argparse.Namespace) -> list[float]:
    """Export one run with so many blocks, fine-tune that, and return the score of each seed."""
    with tempfile.TemporaryDirectory() as scratch:
        model, what = Path(scratch) / "model", f"{run.name}, {depth} blocks:\n"
        words = ["-m", "pldcli", "export", str(run), "--keep-blocks", str(depth), "--data", str(arguments.data), "--out", str(model)]
        output_of_process(words, what=what)
        asked = [f"--seeds={arguments.seeds}", *arguments.set]
        scores: list[float] = finetuned(
            model, arguments.finetune, Path(scratch) / "finetuned", asked, data_dir=arguments.data_dir, what=what
        )["scores"]
    return scores


if __name__ == "__main__":
    main()

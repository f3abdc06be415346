"""Time the scoring of minimal pairs: sorted by length and in batches as `pld evaluate --minimal-pairs` does, against one by one.

    python benchmarks/minimal_pairs.py --preset modern-small-preln --pairs 400 --out benchmarks/results/minimal-pairs-cpu.md

The model is as it was initialised: what it prefers does not matter here. The sentences are the first 6 to 14 words of documentation;
the bad one has two neighbouring words exchanged. One sentence at a time means a batch of its masked copies; one copy at a time, none.
All ways take turns, and must find the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from measuring import documentation, output_of_process, prepared_documentation, rotated, say
from natural_pairs import with_neighbours_exchanged
from pldcli.evaluation import pseudo_likelihood
from pldcli.evaluation.pseudo_likelihood import pseudo_log_likelihoods
from pldcli.evaluation.subject import Subject, open_subject
from pldcli.evaluation.zero_shot import Pair, judge_pairs, read_pairs
from reporting import command, hardware, head, publish, row, software, spread

Scores = list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="modern-small-preln")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the model")
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="a markdown file for the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        publish(measure(Path(scratch), options), options.out)


def measure(scratch: Path, options: argparse.Namespace) -> str:
    data, run, file = prepared_documentation(scratch), scratch / "run", scratch / "pairs.jsonl"
    words = ["pretrain", "--preset", options.preset, "--data", str(data), "--out", str(run), *options.set]
    changes = ["train.total_steps=1", "train.global_batch_size=1", "eval.max_sequences=1"]
    output_of_process(["-m", "pldcli", *words, *changes], what="a model: ")
    file.write_text("".join(json.dumps(pair) + "\n" for pair in made_up_pairs(scratch, options.pairs)), encoding="utf-8")
    ways: dict[str, Callable[[Subject, list[Pair]], Scores]] = {
        "by length, in batches": in_batches,
        "a sentence at a time": by_sentence,
        "a masked copy at a time": by_copy,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with open_subject(run) as subject:
        pairs = read_pairs([file], subject.loaded.tokenizer)
        in_batches(subject, pairs[:8])  # begin
        for turn in range(options.rounds):
            found = {}
            for name in rotated(list(ways), turn):
                began = time.perf_counter()
                found[name] = ways[name](subject, pairs)
                seconds[name].append(time.perf_counter() - began)
                say(f"round {turn + 1}, {name}: {seconds[name][-1]:.1f} s")
            for scores in found.values():
                torch.testing.assert_close(torch.tensor(scores), torch.tensor(found["by length, in batches"]), rtol=1e-2, atol=1e-2)
    return report(seconds, pairs, options)


def made_up_pairs(scratch: Path, count: int) -> Iterator[dict[str, str]]:
    """Cut sentences from documentation, each with two words exchanged beside it."""
    draw = random.Random(0)
    texts = [text.split() for text in documentation(scratch, 3_000_000).read_text(encoding="utf-8").split("\n\n")]
    for words in draw.sample([text for text in texts if len(text) >= 6], count):
        good = words[: draw.randint(6, 14)]
        place = draw.randrange(len(good) - 1)
        yield {"sentence_good": " ".join(good), "sentence_bad": " ".join(with_neighbours_exchanged(good, place))}


def in_batches(subject: Subject, pairs: list[Pair]) -> Scores:
    return [score for pair in judge_pairs(subject, pairs, quiet=True).scores for score in (pair.good, pair.bad)]


def by_sentence(subject: Subject, pairs: list[Pair]) -> Scores:
    return [pseudo_log_likelihoods(subject, [ids])[0] for pair in pairs for ids in (pair.good, pair.bad)]


def by_copy(subject: Subject, pairs: list[Pair]) -> Scores:
    in_batches = pseudo_likelihood._TOKENS_PER_BATCH
    pseudo_likelihood._TOKENS_PER_BATCH = dict.fromkeys(in_batches, 1)
    try:
        return by_sentence(subject, pairs)
    finally:
        pseudo_likelihood._TOKENS_PER_BATCH = in_batches


def report(seconds: dict[str, list[float]], pairs: list[Pair], options: argparse.Namespace) -> str:
    ours = next(iter(seconds.values()))
    lines = []
    for name, took in seconds.items():
        rates = [len(pairs) / one for one in took]
        lines.append(row(name, spread(took), spread(rates, 1), spread([one / own for one, own in zip(took, ours, strict=True)])))
    num_tokens = sum(len(pair.good) + len(pair.bad) for pair in pairs)
    return "\n".join(
        [
            "# Minimal pairs, in batches and one by one\n",
            f"    {command()}\n",
            f"{options.preset}, {len(pairs):,} pairs of {num_tokens / len(pairs) / 2:.1f} tokens a sentence, {options.threads} thread(s), "
            f"{options.rounds} rounds in turn; median (lowest to highest), ratios round by round.\n",
            head("scored", "seconds", "pairs/s", "its time / that of batches"),
            *lines,
            "",
            f"{hardware('cpu')}; {software()}.\n",
        ]
    )


if __name__ == "__main__":
    main()

"""Inject faults and write what came of them.

python -m tests.faults --trials 5
python -m tests.faults --out benchmarks/results/faults.md
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import damage, places, programs, several, stops
from tests.faults.ground import Fault, Ground, Tally, software

FAULTS: dict[str, tuple[Fault, int]] = {
    "SIGKILL at a random moment of training": (stops.killed, 200),
    "SIGKILL at a random moment of training that saves in the background": (stops.killed_in_background, 50),
    "SIGKILL at each call that changes the disk": (stops.killed_while_saving, 1000),
    "SIGTERM, SIGINT, SIGUSR1 at a random moment": (stops.signalled, 150),
    "SIGKILL at a random moment of prepare-data": (programs.prepare_killed, 50),
    "SIGKILL at a random moment of finetune with a grid": (programs.finetune_killed, 50),
    "SIGKILL at a random moment of study": (programs.study_killed, 20),
    "a flipped bit": (damage.flipped, 2000),
    "a file cut short": (damage.cut, 200),
    "a page of zeros": (damage.zeroed, 200),
    "a missing file": (damage.missing, 200),
    "an extra file": (damage.extra, 200),
    "a disk that fills up": (damage.disk_full, 30),
    "no space left at each call that needs some": (stops.full_at_each_call, 1000),
    "a disk that turns read-only": (places.read_only, 20),
    "a directory that vanishes": (places.vanished, 20),
    "a clock that is set back": (places.clock_set_back, 20),
    "one of two processes killed": (several.one_killed, 5),
    "one of two processes with shards killed": (several.one_with_shards_killed, 5),
    "SIGTERM, SIGINT, SIGUSR1 to two processes": (several.all_signalled, 6),
    "one of four processes killed": (several.one_of_four_killed, 5),
    "one of two processes stopped": (several.one_stopped, 5),
    "one of four processes stopped": (several.one_of_four_stopped, 5),
    "one of two processes raising an error": (several.one_raising, 5),
    "one of four processes raising an error": (several.one_of_four_raising, 5),
    "another number of processes": (several.another_number, 6),
    "NaN or infinity in a step": (several.not_a_number, 20),
    "a spike in a step": (several.spike, 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, help="of each fault; as many as the full matrix has, where not given")
    parser.add_argument("--only", nargs="+", help="names of faults, or parts of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a Markdown file")
    options = parser.parse_args()
    chosen = {name: fault for name, fault in FAULTS.items() if not options.only or any(part in name for part in options.only)}
    head = f"# Faults\n\nCommand: `python -m tests.faults {' '.join(sys.argv[1:])}`. {software()}.\n"
    lines = [head, "| fault | trials | failed | |", "|---|---|---|---|"]
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        ground = Ground(Path(scratch) / "ground", options.seed)
        print(f"a run without faults takes {ground.seconds:.1f} s", flush=True)
        for name, (fault, trials) in chosen.items():
            began = time.monotonic()
            tally: Tally = fault(ground, options.trials or trials)
            if not tally.trials and not tally.note:
                tally.failures.append("nothing was tried")
            failed += len(tally.failures)
            lines.append(f"| {name} | {tally.trials} | {len(tally.failures)} | {tally.note} |")
            print(f"{lines[-1]}  {time.monotonic() - began:.0f} s", flush=True)
            for failure in tally.failures[:5]:
                print(f"    {failure}", flush=True)
            if options.out:
                options.out.write_text("\n".join([*lines, ""]), encoding="utf-8")
        ground.processes.close()
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

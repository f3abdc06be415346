"""Run the commands of the documentation on real text and write what they print into its pages.

Usage: python docs/record.py [--exact] [--directory DIR] [--glue DIR] [PAGE ...]

Without pages: all of them, in the order of the navigation, since later pages use the runs of earlier ones (some twenty minutes on
two cores). With `--directory` the runs are kept there, and a page can be recorded alone afterwards. `--glue` is a directory with
GLUE's published files; without it what needs them stays as it is. `--exact` takes seconds: only the outputs that are the same on
every machine, which a test compares.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pages import ROOT, Block, pages, read_blocks, replace_outputs, write_files
from pldcli.corpus.docstrings import docstring_corpus

CORPUS_BYTES, HELD_OUT = 2_000_000, 25
"""The demonstration's text: so much of it, and every so many documents held out."""
COLUMNS = 100

PROGRESS = re.compile(r"^.*: \d+ % of .*/s(, .* left)?\n", re.MULTILINE)
"""What stands for a progress bar where there is no terminal."""


def main() -> None:
    """Record pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--glue", type=Path)
    arguments = parser.parse_args()
    chosen = [page.resolve() for page in arguments.pages] or pages()
    with tempfile.TemporaryDirectory() as scratch:
        directory = (arguments.directory or Path(scratch)).resolve()
        furnish(directory, arguments.glue)
        for page in chosen:
            write_files(read_blocks(page), directory)
            text = replace_outputs(
                page, lambda block, lines: None if arguments.exact and not block.is_exact else _print_of(block, lines, directory)
            )
            page.write_text(text, encoding="utf-8")


def furnish(directory: Path, glue: Path | None) -> None:
    """Put there what the commands read: text, GLUE, the studies of this repository."""
    directory.mkdir(parents=True, exist_ok=True)
    documents = docstring_corpus(CORPUS_BYTES)
    corpus = [text for number, text in enumerate(documents) if number % HELD_OUT]
    for name, texts in (("corpus.txt", corpus), ("held-out.txt", documents[::HELD_OUT])):
        (directory / name).write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    for name, target in (("glue", glue), ("benchmarks", ROOT / "benchmarks")):
        if target is not None and not (directory / name).exists():
            (directory / name).symlink_to(target.resolve())


def _print_of(block: Block, lines: list[str], directory: Path) -> str | None:
    if any("glue/" in line for line in lines) and not (directory / "glue").exists():
        return None
    printed = []
    for line in lines:
        print("$", line, flush=True)
        _remove_result(line, directory)
        command = [sys.executable, "-m", "pldcli", *shlex.split(line)[1:]]
        environment = os.environ | {"COLUMNS": str(COLUMNS)}
        finished = subprocess.run(command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if finished.returncode:
            raise SystemExit(f"{line}: exit code {finished.returncode}\n{finished.stdout.decode()}")
        printed.append(_without_places(PROGRESS.sub("", finished.stdout.decode()), directory))
    return "".join(printed)


def _without_places(printed: str, directory: Path) -> str:
    """Take out where this machine keeps things."""
    for place, name in ((f"{directory}/", ""), (str(directory), "."), (f"{ROOT}/", ""), (f"{sys.prefix}/", ".venv/")):
        printed = printed.replace(place, name)
    return printed


def _remove_result(line: str, directory: Path) -> None:
    """Remove what an earlier recording of the same command left at its `--out`."""
    words = shlex.split(line)
    if "--out" in words:
        place = directory / words[words.index("--out") + 1]
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


if __name__ == "__main__":
    main()

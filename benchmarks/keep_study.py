"""Keep of a study's report what is committed: the text, one small picture, and the table of every run.

    python benchmarks/keep_study.py studies/tiny/report benchmarks/results/study-tiny

Pages, the other pictures and the numbers as JSON are left out: `pld compare` makes them again from the table, as the text says.
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from PIL import Image

from pldcli.comparison.metrics_table import FILE, read_table
from pldcli.system import atomic

_COLOURS = 48
"""Of the picture's palette: lines on white need no more, and the file is a quarter of the size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="a directory that `pld study` wrote")
    parser.add_argument("out", type=Path, help="where it is kept")
    parser.add_argument("--picture", default="comparison.png", help="the one to keep")
    arguments = parser.parse_args()
    runs = read_table(arguments.report / FILE)
    text = (arguments.report / "report.md").read_text(encoding="utf-8")
    with atomic.directory(arguments.out, overwrite=True) as place:
        atomic.write_text(place / "report.md", without_pages(text, arguments.picture))
        atomic.write_bytes(place / arguments.picture, smaller(arguments.report / arguments.picture))
        atomic.write_bytes(place / FILE, (arguments.report / FILE).read_bytes())
    print(f"written: {arguments.out}, {sum(path.stat().st_size for path in arguments.out.iterdir()):,} bytes, {len(runs)} runs")


def without_pages(report: str, picture: str) -> str:
    """Take out the links to pages, and all pictures but one."""
    report = re.sub(r"\[\S*index\.html\]\(\S*index\.html\), or ", "", report)
    pictures = re.compile(r"!\[[^\]]*\]\(([^)]+)\)\n\n")
    return pictures.sub(lambda found: found[0] if found[1] == picture else "", report)


def smaller(picture: Path) -> bytes:
    """Reduce a picture to a palette."""
    written = io.BytesIO()
    with Image.open(picture) as image:
        image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    return written.getvalue()


if __name__ == "__main__":
    main()

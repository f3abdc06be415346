"""Make docs/screen.svg: run `pld demo` and draw what it prints at its end, as Rich draws a terminal.

Usage: python docs/screen.py [DIRECTORY OF THE DEMONSTRATION]
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

SCREEN = Path(__file__).parent / "screen.svg"
COLUMNS = 100
_FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
_LINE_UP, _ERASE_LINE = "\x1b[1A", "\x1b[2K"


def what_stays(printed: str) -> list[str]:
    """Carry out the erasures of progress bars: the lines that are on a terminal at the end, with their colours."""
    lines: list[str] = []
    for line in printed.rstrip().split("\n"):
        if _LINE_UP in line and lines:
            lines.pop()
        lines.append(re.sub(r"\x1b\[\?25[lh]|\r", "", line.rpartition(_ERASE_LINE)[2]))
    return lines


def draw(printed: str) -> str:
    """Draw text with ANSI colours as an SVG terminal that loads no font from a network."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print("[bold green]$[/] pld demo")
    for line in what_stays(printed):
        console.print(Text.from_ansi(line), soft_wrap=True)
    drawn = _FONT_FACE.sub("", console.export_svg(title="pld demo", unique_id="pld"))
    return drawn.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")


def main() -> None:
    """Run the demonstration and write the picture."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(sys.argv[1] if len(sys.argv) > 1 else scratch).resolve()
        place.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"COLUMNS": str(COLUMNS), "FORCE_COLOR": "1"}
        command = [sys.executable, "-m", "pldcli", "demo"]
        finished = subprocess.run(command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    SCREEN.write_text(draw(finished.stdout.decode()), encoding="utf-8")


if __name__ == "__main__":
    main()

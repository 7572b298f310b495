"""Runs the demo and keeps what it printed: docs/media/demo.txt (all) and docs/media/demo.svg (what README shows).

The picture is plain SVG text without fonts, scripts or addresses, so that it shows the same everywhere and can be read as text.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
MEDIA = ROOT / "docs" / "media"
LINE_PX = 17
CHAR_PX = 8.0
CUT = 112
SHOWN = ("6.", "7.", "11.")  # sections of the picture, by how their first line begins


def sections(text: str) -> list[list[str]]:
    """Split the demo's output at blank lines before a section's head."""
    found: list[list[str]] = [[]]
    for line in text.strip("\n").split("\n"):
        if line[:1].isdigit() or line == "What was shown":
            found.append([])
        found[-1].append(line)
    return [section for section in found if section]


def style(line: str) -> str:
    """Colour of a line, by what it is."""
    if not line.startswith(" "):
        return "#7fd7ff"
    if "n1$ " in line or "host# " in line:
        return "#ffffff"
    return "#8fd78f" if line.startswith("  ok:") else "#b8c0c8"


def svg(lines: list[str]) -> str:
    """Draw lines as a terminal would show them."""
    width, height = int(CUT * CHAR_PX) + 32, LINE_PX * len(lines) + 32
    rows = "\n".join(
        f'<text x="16" y="{16 + LINE_PX * number}" fill="{style(line)}" xml:space="preserve">{escape(line[:CUT])}</text>'
        for number, line in enumerate(lines, 1)
        if line
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="ui-monospace, DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="13">\n'
        f'<rect width="100%" height="100%" rx="8" fill="#14181d"/>\n{rows}\n</svg>\n'
    )


def main() -> int:
    """Record; exit code of the demo."""
    words = [sys.executable, "-m", "xtreemos.lab.demo", "--name", "record"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    text = done.stdout.replace(" --name record", "").replace("lab record", "lab demo").lstrip("\n")
    if done.returncode:
        print(text, done.stderr)
        return done.returncode
    MEDIA.mkdir(parents=True, exist_ok=True)
    (MEDIA / "demo.txt").write_text("\n".join(line.rstrip() for line in text.split("\n")), encoding="utf-8")
    shown = [section for section in sections(text) if section[0].startswith(SHOWN)]
    (MEDIA / "demo.svg").write_text(svg(["root@host# make demo", "", *(line for section in shown for line in section)]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

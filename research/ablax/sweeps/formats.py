"""A report for papers and browsers: LaTeX, and one HTML page that needs nothing beside it."""

import base64
import html as escaping
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablax.sweeps.page import COLUMNS, apart, caption, changes, notes, rows
from ablax.sweeps.sections import sections

LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --page: #ffffff; --line: #d0d0d0; --soft: #5c5c5c; --row: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --page: #16181b; --line: #3a3f45; --soft: #a8adb3; --row: #1f2327; }
}
body { background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
.caption { color: var(--soft); }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
tr.baseline td { background: var(--row); font-weight: 600; }
figure { margin: 1.5rem 0; } img { max-width: 100%; background: #ffffff; border-radius: 6px; }
li { margin: .3rem 0; }
"""


def html(
    found: Mapping[str, Any], pictures: Mapping[str, Path], night: Mapping[str, bytes] = {}
) -> str:
    """The report as a page: light or dark as the reader's system is, narrow or wide, no network.

    Args:
      found: what `report` returns.
      pictures: what each shows -> a PNG file, which is put into the page.
      night: the same for dark pages, as PNG bytes, where there is one.
    """
    title = escaping.escape(found["experiment"] or "Sweep")
    body = "\n".join(_row(found, row) for row in rows(found))
    head = "".join(f'<th scope="col">{escaping.escape(name)}</th>' for name in COLUMNS)
    parts = [
        f'<p class="caption">{escaping.escape(caption(found))}.</p>\n<div class="table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    ]
    for shown, path in pictures.items():
        image = f'<img alt="{escaping.escape(shown)}" src="{_data(path.read_bytes())}">'
        if shown in night:
            media = 'media="(prefers-color-scheme: dark)"'
            image = f'<picture><source {media} srcset="{_data(night[shown])}">{image}</picture>'
        parts.append(f"<figure>{image}</figure>")
    for heading, lines in (
        ("Not comparable with these", apart(found)),
        (f"What differs from {found['baseline']}", changes(found)),
        *sections(found).items(),
        ("What this does not tell", notes(found)),
    ):
        if lines:
            items = "\n".join(f"<li>{escaping.escape(line)}</li>" for line in lines)
            parts.append(f"<h2>{escaping.escape(heading)}</h2>\n<ul>\n{items}\n</ul>")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _data(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _row(found: Mapping[str, Any], row: tuple[str, ...]) -> str:
    mark = ' class="baseline"' if row[0] == f"{found['baseline']} (baseline)" else ""
    cells = "".join(f"<td>{escaping.escape(cell)}</td>" for cell in row)
    return f"<tr{mark}>{cells}</tr>"


def latex(found: Mapping[str, Any]) -> str:
    """The table with booktabs' rules; what it cannot tell follows as comments."""
    said = [line for lines in sections(found).values() for line in lines]
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{table}",
        f"  \\caption{{{_tex(caption(found))}.}}",
        f"  \\begin{{tabular}}{{l{'r' * (len(COLUMNS) - 1)}}}",
        "    \\toprule",
        f"    {_line(COLUMNS)}",
        "    \\midrule",
        *(f"    {_line(row)}" for row in rows(found)),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
        *(f"% {' '.join(line.split())}" for line in (*apart(found), *said, *notes(found))),
    ]
    return "\n".join(lines) + "\n"


def _line(cells: tuple[str, ...]) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"


def _tex(text: str) -> str:
    escaped = "".join(LATEX.get(character, character) for character in text)
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", escaped)  # a minus, and no hyphen

"""HTML in small pieces; whatever comes from a run is escaped here and nowhere else."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

NOTHING = "\u2013"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaded:
    """A table cell over a grey bar that fills ``share`` of it."""

    text: str
    share: float


Cell = str | int | float | None | Shaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of the page. ``body`` is HTML; ``anchor`` is what the table of contents points to."""

    anchor: str
    title: str
    body: str

    def html(self) -> str:
        """The section with its heading."""
        return f'<section id="{escape(self.anchor)}">\n<h2>{escape(self.title)}</h2>\n{self.body}\n</section>'


def paragraph(text: str, *, quiet: bool = False) -> str:
    """One paragraph; quiet ones explain."""
    return f'<p class="quiet">{escape(text)}</p>' if quiet else f"<p>{escape(text)}</p>"


def picture(address: str, description: str) -> str:
    """A figure, with words for who cannot see it."""
    return f'<figure><img src="{escape(address)}" alt="{escape(description)}"></figure>'


def preformatted(text: str) -> str:
    """Text as it stands."""
    return f"<pre>{escape(text)}</pre>"


def folded(summary: str, body: str) -> str:
    """HTML behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>"


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """Headline numbers: label, value, and a small line beneath."""
    cells = "".join(
        f'<div class="tile"><div class="label">{escape(label)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
        for label, value, note in values
    )
    return f'<div class="tiles">{cells}</div>'


def html_table(head: Sequence[str], rows: Sequence[Sequence[Cell]], *, words: int = 1) -> str:
    """A table; the first ``words`` columns are words and stand left, the others numbers and stand right."""
    heads = "".join(
        f'<th scope="col"{_class(column < words)}>{escape(name)}</th>' for column, name in enumerate(head)
    )
    lines = "\n".join(
        "<tr>" + "".join(_cell(cell, column < words) for column, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'
    )


def _class(is_words: bool) -> str:
    return ' class="words"' if is_words else ""


def _cell(cell: Cell, is_words: bool) -> str:
    match cell:
        case Shaded(text=text, share=share):
            bar = f'<span class="bar" style="width:{100 * share:.0f}%"></span>'
            return f'<td class="shaded">{bar}{escape(text)}</td>'
        case None:
            return f"<td{_class(is_words)}>{NOTHING}</td>"
        case float():
            return f"<td{_class(is_words)}>{cell:.3f}</td>"
        case int():
            return f"<td{_class(is_words)}>{cell}</td>"
        case str():
            return f"<td{_class(is_words)}>{escape(cell)}</td>"


STYLE = """
:root { color-scheme: light; --ink: #1a1a1a; --quiet: #595959; --line: #d9d9d9; --accent: #0b4f8a; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 5rem; max-width: 960px; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial,
  sans-serif;
  font-variant-numeric: tabular-nums; }
header { border-bottom: 2px solid var(--ink); padding-bottom: 1rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; margin: 0 0 .35rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 3rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.quiet, .note, .label { color: var(--quiet); }
.quiet { font-size: .9rem; }
nav { margin: 1rem 0 0; font-size: .9rem; }
nav ol { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.3rem; }
a { color: var(--accent); text-underline-offset: .15em; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1px; background: var(--line);
  border: 1px solid var(--line); margin: 1rem 0; }
.tile { background: #fff; padding: .8rem .9rem; }
.tile .label, .tile .note { font-size: .8rem; line-height: 1.35; }
.tile .value { font-size: 1.45rem; font-weight: 600; line-height: 1.35; letter-spacing: -0.01em; }
figure { margin: 1rem 0; }
img { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; line-height: 1.35; }
th, td { padding: .35rem .55rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { vertical-align: bottom; font-weight: 600; border-bottom: 1.5px solid var(--ink); }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
.words { text-align: left; overflow-wrap: break-word; }
td { white-space: nowrap; }
td.words { white-space: normal; min-width: 2rem; }
td.words:first-child { white-space: nowrap; }
td.shaded { position: relative; min-width: 3.4rem; }
td.shaded .bar { position: absolute; right: 0; top: 1.85em; height: 3px; background: var(--ink); }
pre { font: .8rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  margin: .8rem 0; padding: .9rem 1rem; background: #f6f6f6; border: 1px solid var(--line);
  white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--accent); font-size: .9rem; }
footer { margin-top: 4rem; padding-top: .8rem; border-top: 1px solid var(--line); }
@media (max-width: 700px) { .tiles { grid-template-columns: repeat(2, 1fr); } }
@media print { body { padding: 0; font-size: 11pt; } nav { display: none; } h2 { break-after: avoid; }
  figure, tr, .tiles { break-inside: avoid; } a { color: inherit; } }
"""


def document(title: str, lead: str, sections: Sequence[Section], foot: str) -> str:
    """A whole page: nothing in it points outside itself."""
    entries = "".join(f'<li><a href="#{escape(s.anchor)}">{escape(s.title)}</a></li>' for s in sections)
    body = "\n".join(section.html() for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{paragraph(lead, quiet=True)}
<nav aria-label="Contents"><ol>{entries}</ol></nav>
</header>
<main>
{body}
</main>
<footer>{paragraph(foot, quiet=True)}</footer>
</body>
</html>
"""

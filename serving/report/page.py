"""One HTML file that needs nothing else: sections, Plotly, styles and a script."""

from __future__ import annotations

import dataclasses
import html
import importlib.resources
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from serving.report.errors import ReportError
from serving.report.section import Section, Table

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclasses.dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
      title: of the window and the page.
      about: what it is about: plain texts, one below the other.
      tiles: (number, what it is, key of its section) for the beginning.
      sections: the rest.
      notices: what readers must know before all.
    """

    title: str
    about: Sequence[str]
    tiles: Sequence[tuple[str, str, str]]
    sections: Sequence[Section]
    notices: Sequence[str] = ()


def to_html(page: Page) -> str:
    """The file's text.

    Raises:
      ModuleNotFoundError: Plotly is not installed.
    """
    from plotly.offline import get_plotlyjs

    figures = {
        f"{section.key}-{k}": {"data": figure.data, "layout": figure.layout, "height": figure.height}
        for section in page.sections
        for k, (_, figure) in enumerate(section.figures)
    }
    about = "".join(f"<p>{html.escape(line)}</p>" for line in page.about)
    notices = "".join(f'<p class="notice">{html.escape(notice)}</p>' for notice in page.notices)
    tiles = "".join(
        f'<a class="tile" href="#{key}"><span class="number">{html.escape(value)}</span>'
        f'<span class="what">{html.escape(what)}</span></a>'
        for value, what, key in page.tiles
    )
    links = "".join(f'<a href="#{s.key}">{html.escape(s.title)}</a>' for s in page.sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="ntk-report">
<title>{html.escape(page.title)}</title>
<link rel="icon" href="data:,">
<style>{_resource("page.css")}</style>
</head>
<body>
<header>
<button id="theme" type="button" aria-label="Switch between light and dark">Dark</button>
<h1>{html.escape(page.title)}</h1>
<div class="about">{about}</div>
</header>
<main>
<noscript><p class="notice">Figures are drawn by a script, which is off here; their numbers are below.</p></noscript>
{notices}<div class="tiles">{tiles}</div>
<nav aria-label="Sections">{links}</nav>
{"".join(_section(section) for section in page.sections)}</main>
<footer>Written by ntk-report. This file is complete: it loads nothing from elsewhere.</footer>
<script type="application/json" id="figures">{_json(figures)}</script>
<script>{_in_script(get_plotlyjs())}</script>
<script>{_in_script(_resource("page.js"))}</script>
</body>
</html>
"""


def write(path: Path, text: str) -> None:
    """Writes a file that is seen whole or not at all.

    Raises:
      ReportError: it cannot be written.
    """
    partial = None
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            file.write(text)
        os.replace(partial, path)
        partial = None
    except OSError as error:
        raise ReportError(
            f"Writing {path} failed: {error.strerror or error}. Free disk space, correct the permissions, or choose "
            "another --output."
        ) from error
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _section(section: Section) -> str:
    plots = "".join(_plot(section, k) for k in range(len(section.figures)))
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in section.notes)
    return (
        f'<section id="{section.key}"><h2>{html.escape(section.title)}</h2>\n'
        f'<p class="lead">{html.escape(section.sentence)}</p>\n'
        + (f'<div class="plots of{len(section.figures)}">{plots}</div>\n' if plots else "")
        + section.body
        + (f'<div class="notes">{notes}</div>\n' if notes else "")
        + "".join(_table(table) for table in section.tables)
        + "</section>\n"
    )


def _plot(section: Section, number: int) -> str:
    what, figure = section.figures[number]
    key, label = f"{section.key}-{number}", html.escape(f"{what}. {section.sentence}", quote=True)
    shape = f'class="canvas" style="height:{figure.height}px"'
    if not figure.height:
        shape = f'class="canvas square{" small" if figure.small else ""}"'
    matrix = ""
    if isinstance(figure.data[0].get("z"), dict):
        matrix = f'<button class="copy" type="button" data-figure="{key}">Copy the drawn matrix</button>'
    return (
        f'<figure class="plot"><div id="{key}" {shape} role="img" aria-label="{label}"></div>'
        f"<figcaption>{html.escape(what)}</figcaption>{matrix}</figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.head)
    rows = "\n".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return (
        f"<details{' open' if table.shown else ''}><summary>{html.escape(table.title)}</summary>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'
        '<button class="copy" type="button">Copy</button></details>\n'
    )


def _json(value: object) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _in_script(code: str) -> str:
    return code.replace("</script", "<\\/script")


def _resource(name: str) -> str:
    return importlib.resources.files("serving.report").joinpath(name).read_text(encoding="utf-8")

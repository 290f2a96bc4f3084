"""Hooks of MkDocs: tables of configuration keys, made of the dataclasses that read them.

A line `<!-- table: NtkConfig ntk -->` in a page becomes a table of that class's fields, as keys below `ntk`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from typing import Any

from exporter.config import sections

_MARKER = re.compile(r"^<!-- table: (\w+) ([\w.]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **of_page: Any) -> str:
    """What MkDocs calls for each page."""
    return _MARKER.sub(lambda match: table(getattr(sections, match[1]), match[2]), markdown)


def table(section: Any, prefix: str) -> str:
    """Keys, defaults and meanings of a section, from its fields and the `Attributes:` of its docstring."""
    meanings = attributes(section)
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for field in dataclasses.fields(section):
        default = field.default_factory() if callable(field.default_factory) else field.default
        key = f"{prefix}.{field.name}"
        text = f"[{key}](#{key.replace('.', '')})" if dataclasses.is_dataclass(default) else f"`{_yaml(default)}`"
        rows.append(f"| `{key}` | {text} | {meanings[field.name]} |")
    return "\n".join(rows)


def attributes(section: Any) -> dict[str, str]:
    """The meaning of each field, on one line, with the values of constants in place of their names."""
    text = inspect.getdoc(section).partition("Attributes:\n")[2].partition("\n\n")[0]  # indented alike in all Pythons
    entries = re.findall(r"^ {2}(\w+): (.*?)(?=^ {2}\w|\Z)", f"{text}\n", re.MULTILINE | re.DOTALL)
    return {name: _values(" ".join(meaning.split())) for name, meaning in entries}


def _values(meaning: str) -> str:
    def value(match: re.Match[str]) -> str:
        constant = getattr(sections, match[1])
        return ", ".join(f"`{v}`" for v in constant) if isinstance(constant, tuple) else f"{constant:,}"

    return re.sub(r"`([A-Z_]+)`", value, meaning).replace("|", "\\|")


def _yaml(value: Any) -> str:
    """A default as YAML has it."""
    if isinstance(value, int) and value >= 2**30 and value % 2**30 == 0:
        return f"{value // 2**30}GiB"
    return json.dumps(list(value) if isinstance(value, tuple) else value).replace('"', "")

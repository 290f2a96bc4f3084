"""A configuration from YAML and overrides: all problems of both are reported together."""

import difflib
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from exporter.config.checks import ConfigError
from exporter.config.sections import (
    ExportConfig,
    FeaturesConfig,
    NtkConfig,
    VerifyConfig,
    check_together,
    field_names,
    make_section,
)
from exporter.config.yaml_text import parse_yaml
from serving.shared.suggest import did_you_mean

_SECTIONS: dict[str, type] = {"ntk": NtkConfig, "export": ExportConfig}


def load_config(
    path_or_text: str | os.PathLike[str] | None = None, overrides: Iterable[str] = ()
) -> tuple[NtkConfig, ExportConfig]:
    """Reads a configuration from YAML (or JSON, which is YAML too).

    Args:
      path_or_text: a file, or the YAML itself: a `str` is taken for YAML if it is empty, begins with "{", or has a
        line break or a colon that ends a key. None, or an empty text: all defaults.
      overrides: texts "dotted.key=value", the value in YAML, which replace values of the file in this order:
        "ntk.trace_axes=[]". A value that begins with "*" or "!" (a pattern) is text and needs no quotes.

    Returns:
      The sections `ntk` and `export`; what is missing has its default.

    Raises:
      ConfigError: with all problems found.
    """
    text, source = _read(path_or_text)
    document = parse_yaml(text, source)
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ConfigError([f"expected a mapping with the keys ntk and export, got {document!r}"], source)
    problems: list[str] = []
    for override in overrides:
        try:
            _override(document, override)
        except ConfigError as error:
            problems.extend(error.problems)
    problems.extend(
        f"unknown key {key!r}{_nearest_path(key) or did_you_mean(key, _SECTIONS)}"
        for key in document
        if key not in _SECTIONS
    )
    sections: dict[str, Any] = {}
    for name, section_type in _SECTIONS.items():
        try:
            sections[name] = make_section(name, section_type, document.get(name))
        except ConfigError as error:
            problems.extend(error.problems)
    if len(sections) == len(_SECTIONS):
        try:
            check_together(sections["ntk"], sections["export"])
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems, source)
    return sections["ntk"], sections["export"]


def _read(path_or_text: str | os.PathLike[str] | None) -> tuple[str, str]:
    """Returns the text and what to call it in errors."""
    if path_or_text is None:
        return "", "configuration"
    if isinstance(path_or_text, str) and re.search(r"^\s*$|^\s*\{|\n|:\s|:$", path_or_text):
        return path_or_text, "configuration"
    path = pathlib.Path(path_or_text)
    try:
        return path.read_text(encoding="utf-8"), f"configuration {path}"
    except UnicodeDecodeError as error:
        raise ConfigError([f"not YAML: byte {error.start} is not UTF-8 text"], f"configuration {path}") from error
    except OSError as error:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings)
        raise ConfigError([f"cannot be read: {error.strerror or error}{hint}"], f"configuration {path}") from error


def _override(document: dict[Any, Any], override: str) -> None:
    """Sets one value of the document in place."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError([f"override {override!r}: expected KEY=VALUE with a dotted key, such as ntk.trace_axes=[]"])
    known = _known_paths()
    if ".".join(keys) not in known:
        hint = did_you_mean(".".join(keys), known) or _nearest_path(keys[-1])
        raise ConfigError([f"override {override!r}: unknown key {'.'.join(keys)!r}{hint}"])
    try:
        value = text if text.lstrip().startswith(("*", "!")) else parse_yaml(text, "")
    except ConfigError as error:
        raise ConfigError([f"override {override!r}: {problem}" for problem in error.problems]) from error
    for key in keys[:-1]:
        if document.get(key) is None:
            document[key] = {}
        document = document[key]
        if not isinstance(document, dict):
            return  # The section itself is reported as not being a mapping.
    document[keys[-1]] = value


def _known_paths() -> list[str]:
    """All dotted keys of a configuration."""
    keys = [f"{name}.{key}" for name, section_type in _SECTIONS.items() for key in field_names(section_type)]
    below = {"export.verify": VerifyConfig, "export.features": FeaturesConfig}
    return [*_SECTIONS, *keys, *(f"{name}.{key}" for name, section in below.items() for key in field_names(section))]


def _nearest_path(key: object) -> str:
    """A hint at the dotted key whose last part is the nearest to `key`, which stands in the wrong place."""
    last_parts = {path.rpartition(".")[2]: path for path in _known_paths() if "." in path}
    matches = difflib.get_close_matches(str(key).lower(), list(last_parts), n=1, cutoff=0.8)
    return f"; did you mean {last_parts[matches[0]]!r}?" if matches else ""

"""YAML (and so JSON) text into plain Python values: safe tags only, no key twice, errors with line and column."""

import re

import yaml

from exporter.config.checks import ConfigError


def parse_yaml(text: str, source: str) -> object:
    """Returns the value of a YAML document.

    Raises:
      ConfigError: with line and column in `source`, if the text is not YAML, asks for Python objects, or has a
        mapping with the same key twice (all of those are reported).
    """
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # A character that YAML does not allow.
        raise ConfigError([f"not YAML: {' '.join(str(error).split())}"], source) from error
    try:
        value = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        raise ConfigError([*loader.duplicates, _describe(error, text)], source) from error
    finally:
        loader.dispose()
    if loader.duplicates:
        raise ConfigError(loader.duplicates, source)
    return value


def _describe(error: yaml.MarkedYAMLError, text: str) -> str:
    problem = error.problem or error.context or "cannot be read"
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return f"not YAML: {problem}"
    hint = "; a pattern that begins with '*' or '!' must be quoted" if re.search(r"[:\-\[,]\s*[*!]", text) else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: not YAML that can be used here: {problem}{hint}"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself takes the last of several equal keys and reads 1e-4 as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicates: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Notes keys that stand twice in one mapping."""
        first_lines: dict[tuple[str, str], int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            key = (key_node.tag, key_node.value)
            line = key_node.start_mark.line + 1
            if key in first_lines:
                first = first_lines[key]
                self.duplicates.append(f"line {line}: key {key_node.value!r} stands twice, first on line {first}")
            first_lines.setdefault(key, line)
        return super().construct_mapping(node, deep)


# YAML 1.2 and JSON know 1e-4 and 1E5 as numbers; YAML 1.1, which PyYAML reads, wants 1.0e-4.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)

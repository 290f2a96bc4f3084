"""Checks of single configuration values; every problem found is kept, so that all are reported together."""

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from exporter.errors import ExportError
from serving.shared.byte_sizes import bytes_of_text
from serving.shared.suggest import did_you_mean

_LARGEST_SIZE = 2**31 - 1  # of an axis, which XLA counts in 32 bits
# What people write for a value that is spelt otherwise here, where the nearest spelling would mislead.
_OTHER_NAMES = {
    "gpu": ("cuda", "rocm"),
    "fp32": ("float32",),
    "f32": ("float32",),
    "fp64": ("float64",),
    "f64": ("float64",),
    "tf32": ("tensorfloat32",),
    "bf16": ("bfloat16",),
    "none": ("null",),
    "0": ("auto",),
    "1": ("jacobian_contraction",),
    "2": ("ntk_vector_products",),
    "3": ("structured_derivatives",),
}


class ConfigError(ExportError, ValueError):
    """A configuration cannot be used; `problems` holds one text for each thing wrong with it."""

    def __init__(self, problems: Sequence[str], source: str = "configuration") -> None:
        """Makes the message: one line if there is one problem, otherwise a line for each under a heading."""
        self.problems = tuple(problems)
        self.source = source
        if len(self.problems) == 1:
            super().__init__(f"{source}: {self.problems[0]}")
        else:
            super().__init__("\n  ".join([f"{source}: {len(self.problems)} problems", *self.problems]))


def is_int(value: object) -> TypeGuard[int]:
    """True for whole numbers, NumPy's too, but not for True and False."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


class Checks:
    """Checks the values of one section.

    Each method returns the value as the configuration keeps it. For a wrong value it notes a problem and returns
    something of the right type, which nobody sees, because `finish` then raises.
    """

    def __init__(self, section: str) -> None:
        """Problems are noted under `section`, a dotted path such as "export.verify"."""
        self._section = section
        self._problems: list[str] = []

    def note(self, key: str, problem: str) -> None:
        """Notes a problem of the value at `key`, or of the section itself if `key` is empty."""
        self._problems.append(f"{self._section}.{key}: {problem}" if key else f"{self._section}: {problem}")

    def adopt(self, error: ConfigError) -> None:
        """Takes over the problems of a section below this one."""
        self._problems.extend(error.problems)

    def finish(self) -> None:
        """Raises ConfigError if any problem was noted."""
        if self._problems:
            raise ConfigError(self._problems)

    def wrong(self, key: str, expected: str, value: object, hint: str = "") -> None:
        """Notes that something else than `expected` came."""
        self.note(key, f"expected {expected}, got {value!r}{hint}")

    def choice(self, key: str, value: object, known: Sequence[str | int | None]) -> str | int | None:
        """One of a few known values."""
        if value is None or isinstance(value, str) or is_int(value):
            for option in known:
                if value == option:
                    return option
        names = ["null" if option is None else str(option) for option in known]
        self.wrong(key, f"one of {', '.join(names)}", value, _boolean_hint(value) or _near_choice(value, names))
        return known[0]

    def name_or_index(self, key: str, value: object) -> str | int | None:
        """A text, a whole number from 0, or None."""
        if value is None or (isinstance(value, str) and value):
            return value
        if is_int(value) and value >= 0:
            return int(value)
        self.wrong(key, "a name, an index from 0, or null", value, _boolean_hint(value))
        return None

    def path(self, key: str, value: object) -> str | None:
        """The path of a file, as a text or a Path, or None."""
        if value is None or (isinstance(value, str | os.PathLike) and os.fspath(value)):
            return None if value is None else str(os.fspath(value))
        self.wrong(key, "the path of a file, or null", value)
        return None

    def choices(self, key: str, value: object, known: Sequence[str]) -> tuple[str, ...]:
        """A list of known values, at least one, none of them twice."""
        entries = self.texts(key, value)
        for entry in entries:
            if entry not in known:
                self.wrong(key, f"any of {', '.join(known)}", entry, _near_choice(entry, known))
        self._no_duplicates(key, entries)
        return entries

    def texts(self, key: str, value: object) -> tuple[str, ...]:
        """A non-empty list of non-empty texts; a single text stands for a list of one."""
        entries = (value,) if isinstance(value, str) else value
        if not isinstance(entries, Sequence) or not entries:
            self.wrong(key, "a list with at least one entry", value)
            return ()
        for entry in entries:
            if not isinstance(entry, str) or not entry.strip():
                self.wrong(key, "a list of texts", entry, _boolean_hint(entry))
        return tuple(entry for entry in entries if isinstance(entry, str))

    def axes(self, key: str, value: object) -> tuple[int, ...]:
        """A list of axes, none of them twice; a single whole number stands for a list of one."""
        entries = (value,) if is_int(value) else value
        if isinstance(entries, str) or not isinstance(entries, Sequence) or not all(map(is_int, entries)):
            self.wrong(key, "a list of whole numbers", value)
            return ()
        axes = tuple(int(axis) for axis in entries)
        self._no_duplicates(key, axes)
        return axes

    def shapes(self, key: str, value: object) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """A list of sizes, or a mapping from names to such lists."""
        if not isinstance(value, Mapping):
            return self._sizes(key, value)
        if not value or not all(isinstance(name, str) and name for name in value):
            self.wrong(key, "a list of sizes, or a mapping from names of inputs to lists of sizes", dict(value))
            return ()
        return {name: self._sizes(f"{key}.{name}", sizes) for name, sizes in value.items()}

    def _sizes(self, key: str, value: object) -> tuple[int, ...]:
        """A list of sizes of axes, at least one; a single whole number stands for a list of one."""
        entries = (value,) if is_int(value) else value
        if isinstance(entries, str) or not isinstance(entries, Sequence) or not entries:
            self.wrong(key, "a list of sizes, at least one", value)
            return ()
        for entry in entries:
            if not is_int(entry) or not 1 <= entry <= _LARGEST_SIZE:
                self.wrong(key, f"sizes that are whole numbers from 1 to {_LARGEST_SIZE}", entry)
        return tuple(int(entry) for entry in entries if is_int(entry))

    def boolean(self, key: str, value: object) -> bool:
        """True or False, and no other value that counts as one of them."""
        if not isinstance(value, bool):
            self.wrong(key, "true or false", value)
        return bool(value)

    def integer(self, key: str, value: object, minimum: int) -> int:
        """A whole number that is at least `minimum`."""
        if not is_int(value) or value < minimum:
            self.wrong(key, f"a whole number, {minimum} or more", value)
            return minimum
        return int(value)

    def positive(self, key: str, value: object) -> float:
        """A finite number above zero."""
        number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
        if not 0 < number < math.inf:
            self.wrong(key, "a number above 0", value)
        return number

    def memory(self, key: str, value: object) -> int:
        """Bytes, at least one: a whole number, or a text with a unit, such as "512MiB" or "1.5 GB"."""
        size = int(value) if is_int(value) else bytes_of_text(value)
        if size is None or not 1 <= size < 1 << 63:
            self.wrong(key, "bytes as a whole number, or a text such as '512MiB', '1GiB' or '2GB', above 0", value)
            return 1
        return size

    def section_keys(self, mapping: Mapping[object, object], known: Sequence[str]) -> dict[str, object]:
        """Returns the entries of a section whose keys are known, and notes the others."""
        for key in mapping:
            if key not in known:
                self.note("", f"unknown key {key!r}{did_you_mean(key, known)}")
        return {str(key): value for key, value in mapping.items() if key in known}

    def _no_duplicates(self, key: str, entries: Sequence[object]) -> None:
        duplicates = sorted({str(entry) for entry in entries if entries.count(entry) > 1})
        if duplicates:
            self.note(key, f"expected each entry once, got {', '.join(duplicates)} more than once")


def _near_choice(value: object, names: Sequence[str]) -> str:
    others = [name for name in _OTHER_NAMES.get(str(value).lower(), ()) if name in names]
    return f"; did you mean {' or '.join(map(repr, others))}?" if others else did_you_mean(value, names)


def _boolean_hint(value: object) -> str:
    return (
        "; YAML reads on, off, yes and no as booleans, quote the word if it is a name"
        if isinstance(value, bool)
        else ""
    )

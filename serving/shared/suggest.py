"""Hints at the name that was probably meant, for error messages."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Returns "; did you mean 'x'?" for the known name nearest to `name`, or an empty text if none is near."""
    names = {str(candidate).lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(str(name).lower(), list(names), n=1, cutoff=0.6)
    return f"; did you mean {names[matches[0]]!r}?" if matches else ""

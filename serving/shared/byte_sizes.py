"""Sizes of memory as people write them."""

import re

_UNITS = {
    "": 1,
    "b": 1,
    **{prefix + "ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
    **{prefix + "b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
}


def bytes_of_text(text: object) -> int | None:
    """Bytes of a text with a unit, such as "512MiB" or "1.5 GB"; None for anything else."""
    match = re.fullmatch(r"\s*(\d+)(\.\d+)?\s*([a-zA-Z]*)\s*", text, re.ASCII) if isinstance(text, str) else None
    if match is None or match[3].lower() not in _UNITS:
        return None
    unit = _UNITS[match[3].lower()]
    return int(match[1]) * unit + int(float(match[2] or 0) * unit)

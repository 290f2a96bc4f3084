"""How long requests of many clients took, as a table."""

from collections.abc import Mapping, Sequence

import numpy as np


def show(seconds: Mapping[tuple[str, str], Sequence[float]]) -> None:
    """Prints the quantiles of the seconds of requests by (protocol, signature), and of all."""
    print(f"\n{'':<24}{'requests':>10}{'p50 ms':>10}{'p90 ms':>10}{'p99 ms':>10}")
    groups = {" ".join(key): values for key, values in sorted(seconds.items())}
    for name, values in {**groups, "all": [s for v in groups.values() for s in v]}.items():
        if values:
            p50, p90, p99 = 1e3 * np.percentile(values, [50, 90, 99])
            print(f"{name:<24}{len(values):>10,}{p50:>10.1f}{p90:>10.1f}{p99:>10.1f}")

"""Random inputs for measuring and checking a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exporter.functionalize import TensorSpec
from serving.shared import reference


def sample_inputs(inputs: Sequence[TensorSpec], n: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """n random examples of each input: those of `serving.shared.reference`, with which servers are checked too."""
    return reference.examples([(spec.shape, spec.dtype) for spec in inputs], n, seed)

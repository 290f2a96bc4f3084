"""Whether clients can read what a server answers, found out without asking for a text.

A server with --enable_serialization_as_tensor_content ends when it is asked for one over REST, and writes noise instead
of numbers there. Over gRPC its numbers are right, but written in another way.
"""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Iterator

import numpy as np

from serving.client import Client, ServingError, tensors
from serving.client.errors import TENSOR_CONTENT_CURE
from serving.client.model import ServedModel, SignatureSpec, TensorSpec
from serving.doctor.report import Check, bad, good, note
from serving.shared import reference

_COPIES = 4  # of one example, whose answers must be equal
_MOST = 3  # signatures that are asked
_TOLERANCE = 1e-2  # relative; rows of one request may be computed by different programs
_NAME = "answers"
# What models that take texts take: any text, or a file of an image, here of one pixel.
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP43+AAAARBAcAyLD49AAAAAElFTkSuQmCC"
)
_TEXTS = (b"", _PIXEL)


def check_answers(client: Client, served: ServedModel) -> Check:
    """Asks for numbers; texts may be asked for only if nothing is wrong."""
    seen = "there is no signature that answers numbers for examples"
    for name, signature, text in _questions(served):
        try:
            prediction = client.ask(name, {key: _copies(spec, text) for key, spec in signature.inputs.items()})
        except ServingError as error:
            seen = str(error)
            continue
        if prediction.as_content:
            return bad(_NAME, TENSOR_CONTENT_CURE)
        rows = [np.asarray(value, np.float64).reshape(_COPIES, -1) for value in prediction.outputs.values()]
        if prediction.as_content is False or all(map(_agree, rows)):
            return good(_NAME, "numbers are written as clients of both protocols read them")
        if any(np.any(row) for row in rows):
            return bad(_NAME, f"{name} differs for equal examples, as if noise were read. {TENSOR_CONTENT_CURE}")
        seen = f"{name} is 0 for every example, as if nothing were written. {TENSOR_CONTENT_CURE}"
    words = f"whether texts can be asked for could not be found out: {seen}"
    return bad(_NAME, words) if client.address.startswith("http") else note(_NAME, words)


def _questions(served: ServedModel) -> Iterator[tuple[str, SignatureSpec, bytes]]:
    """Signatures to ask, with what to give for a text."""
    for name, signature in itertools.islice(_numeric(served), _MOST):
        takes_texts = any(spec.dtype == "DT_STRING" for spec in signature.inputs.values())
        yield from ((name, signature, text) for text in (_TEXTS if takes_texts else _TEXTS[:1]))


def _numeric(served: ServedModel) -> Iterator[tuple[str, SignatureSpec]]:
    """The signatures that have numbers for each of any examples; first those with few inputs and few numbers."""
    for name, signature in sorted(served.signatures.items(), key=lambda item: _size(item[1])):
        tensors_of_it = (*signature.inputs.values(), *signature.outputs.values())
        batched = all(spec.shape and spec.shape[0] is None for spec in tensors_of_it)
        if batched and all(spec.dtype != "DT_STRING" for spec in signature.outputs.values()):
            yield name, signature


def _size(signature: SignatureSpec) -> tuple[int, int]:
    numbers = sum(math.prod(size or 1 for size in spec.shape or ()) for spec in signature.outputs.values())
    return len(signature.inputs), numbers


def _copies(spec: TensorSpec, text: bytes) -> np.ndarray:
    shape, dtype = spec.shape or (), tensors.numpy_dtype(spec.dtype)
    if dtype.kind == "O":
        return np.full((_COPIES, *(size or 1 for size in shape[1:])), text, object)
    (example,) = reference.examples([(shape, dtype.name)], 1)
    return np.repeat(example, _COPIES, axis=0)


def _agree(rows: np.ndarray) -> bool:
    """Whether rows are alike, and neither empty, nor zero, nor infinite."""
    largest = np.max(np.abs(rows), initial=0.0)
    return bool(np.isfinite(largest) and largest > 0 and np.all(np.abs(rows - rows[0]) <= _TOLERANCE * largest))

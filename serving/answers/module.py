"""The TensorFlow functions of answers: an export's own functions, and products with what was fitted."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from serving.answers.exported import Exported
from serving.answers.targets import Task

Inputs = Mapping[str, tf.Tensor]
_LEAST = 1e-30  # probability whose logarithm is taken
_ROWS, _PARTS = 8192, 64  # at least, and at most, of a table in half precision at work


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What answers are computed from, of the reference examples that are kept.

    Attributes:
      task: what is predicted.
      ridge, scale: of the kernel.
      ids: (N,) of the examples.
      norms: (N,) square roots of their kernel's diagonal.
      weights: (N, O): α.
      neighbors: that are answered.
    """

    task: Task
    ridge: float
    scale: float
    ids: np.ndarray
    norms: np.ndarray
    weights: np.ndarray
    neighbors: int


class Similarities(tf.Module, abc.ABC):
    """How an example's kernel with the reference examples is computed, and what follows from it."""

    @abc.abstractmethod
    def seen(self, inputs: Inputs) -> tf.Tensor:
        """What all that follows is computed from: of a batch its features (n, D), or its kernel (n, N)."""

    @abc.abstractmethod
    def kernel(self, seen: tf.Tensor) -> tf.Tensor:
        """(n, N) with the reference examples that are kept."""

    @abc.abstractmethod
    def prior(self, inputs: Inputs, seen: tf.Tensor) -> tf.Tensor:
        """(n,) kernel of each example with itself, in float64."""

    @abc.abstractmethod
    def added(self, seen: tf.Tensor) -> tf.Tensor:
        """(n, O) that regression of the residuals adds to the network's output."""

    @abc.abstractmethod
    def latent(self, seen: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
        """(n,) variance that the reference examples leave of the prior's."""


class ByFeatures(Similarities):
    """By the features of each example: products with (D, N), (D, O) and (D, r) matrices."""

    def __init__(
        self, call: Callable[[str, Inputs], tf.Tensor], table: Any, mean: np.ndarray, known: np.ndarray
    ) -> None:
        """Takes the export's signatures, the reference examples' features (N, D), and the other two matrices."""
        super().__init__()
        self._call = call
        self.table = tf.Variable(table, trainable=False, name="reference_features")
        self.mean = tf.Variable(mean.astype(np.float32), trainable=False, name="mean")
        self.known = tf.Variable(known, trainable=False, name="known")

    def seen(self, inputs: Inputs) -> tf.Tensor:
        """Features."""
        return tf.cast(self._call("ntk_features", inputs), tf.float32)

    def kernel(self, seen: tf.Tensor) -> tf.Tensor:
        """Of a table in half precision by parts: in single precision it may be too large."""
        table = self.table
        if table.dtype == tf.float32:
            return tf.matmul(seen, table, transpose_b=True)
        count, step = table.shape[0], max(_ROWS, math.ceil(table.shape[0] / _PARTS))
        rows = (tf.cast(table[start : start + step], tf.float32) for start in range(0, count, step))
        return tf.concat([tf.matmul(seen, part, transpose_b=True) for part in rows], 1)

    def prior(self, inputs: Inputs, seen: tf.Tensor) -> tf.Tensor:
        """Their squares, in float64: what the reference leaves of them may be little."""
        return tf.reduce_sum(tf.square(tf.cast(seen, tf.float64)), -1)

    def added(self, seen: tf.Tensor) -> tf.Tensor:
        """φ V (values + λ)⁻¹ Vᵀ FᵀR."""
        return tf.matmul(seen, self.mean)

    def latent(self, seen: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
        """φ φᵀ - φ V values (values + λ)⁻¹ Vᵀ φᵀ."""
        return _left(prior, tf.matmul(tf.cast(seen, tf.float64), self.known))


class Exact(Similarities):
    """By the kernel itself, in float64 from there on: what is left of the prior's variance may be little."""

    def __init__(
        self,
        call: Callable[[str, Inputs], tf.Tensor],
        kernel: Callable[[Inputs, list[tf.Tensor]], tf.Tensor],
        own: Sequence[tf.Tensor],
        weights: np.ndarray,
        inverse_root: np.ndarray,
    ) -> None:
        """Takes the export's signatures, the kernel with what is kept, α (N, O) and a root of (K + λ)⁻¹ (N, N)."""
        super().__init__()
        self._call, self._kernel = call, kernel
        self.own = [tf.Variable(value, trainable=False, name="kept") for value in own]
        self.weights = tf.Variable(weights, trainable=False, name="weights")
        self.inverse_root = tf.Variable(inverse_root, trainable=False, name="inverse_root")

    def seen(self, inputs: Inputs) -> tf.Tensor:
        """The kernel."""
        return tf.cast(self._kernel(inputs, [value.read_value() for value in self.own]), tf.float64)

    def kernel(self, seen: tf.Tensor) -> tf.Tensor:
        """What was seen."""
        return tf.cast(seen, tf.float32)

    def prior(self, inputs: Inputs, seen: tf.Tensor) -> tf.Tensor:
        """The diagonal."""
        return tf.cast(self._call("ntk_diagonal", inputs), tf.float64)

    def added(self, seen: tf.Tensor) -> tf.Tensor:
        """k α."""
        return tf.matmul(seen, self.weights)

    def latent(self, seen: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
        """k(x, x) - k (K + λ)⁻¹ kᵀ."""
        return _left(prior, tf.matmul(seen, self.inverse_root))


class AnswersModule(tf.Module):
    """What is saved.

    Attributes:
      params, frozen: the export's variables, by path.
      signatures_to_save: a function for each signature's name.
    """

    def __init__(self, exported: Exported, similarities: Similarities, fitted: Fitted) -> None:
        """Builds the functions."""
        super().__init__()
        self._exported, self._similarities, self._fitted = exported, similarities, fitted
        model = exported.model
        self.params, self.frozen = model.params, model.frozen
        self.similarities = similarities
        if getattr(model, "front", None) is not None:
            self.front = model.front  # with the tables that it reads
        self.ids = tf.Variable(_plain(fitted.ids), trainable=False, name="ids")
        self.norms = tf.Variable(fitted.norms.astype(np.float32), trainable=False, name="norms")
        self.weights = tf.Variable(fitted.weights.T.astype(np.float32), trainable=False, name="weights_by_output")
        functions: dict[str, Callable[[Inputs], dict[str, tf.Tensor]]] = {
            "predict": self._predict,
            "nearest": self._nearest,
            "support": self._support,
            **{
                name: self._passed_on(name, output)
                for name, output in (("ntk_features", "features"), ("forward", "output"))
                if exported.has(name)
            },
        }
        self.signatures_to_save = {name: self._signature(function) for name, function in functions.items()}
        for name, function in self.signatures_to_save.items():
            setattr(self, name, self._method(function))

    def _predict(self, inputs: Inputs) -> dict[str, tf.Tensor]:
        fitted, task = self._fitted, self._fitted.task
        output, seen = self._output(inputs), self._similarities.seen(inputs)
        prior = self._similarities.prior(inputs, seen)
        latent = self._similarities.latent(seen, prior)
        novelty = tf.where(prior > 0, tf.minimum(latent / tf.where(prior > 0, prior, 1), 1), 1)
        variance = tf.cast(fitted.scale * (latent if task.classes else latent + fitted.ridge), tf.float32)
        if task.classes:
            flat = self._logits(output) / tf.sqrt(1 + math.pi / 8 * variance)[:, None]
            mean = tf.sigmoid(flat) if task.outputs == 1 else tf.nn.softmax(flat)
        else:
            mean = output + tf.cast(self._similarities.added(seen), tf.float32)
        return {"mean": mean, "variance": variance, "novelty": tf.cast(novelty, tf.float32)}

    def _nearest(self, inputs: Inputs) -> dict[str, tf.Tensor]:
        seen = self._similarities.seen(inputs)
        norm = tf.cast(tf.sqrt(self._similarities.prior(inputs, seen)), tf.float32)
        norms = norm[:, None] * self.norms[None]
        cosines = tf.where(norms > 0, self._similarities.kernel(seen) / tf.where(norms > 0, norms, 1), 0)
        similarity, places = tf.math.top_k(cosines, self._fitted.neighbors)
        return {"id": tf.gather(self.ids, places), "similarity": similarity}

    def _support(self, inputs: Inputs) -> dict[str, tf.Tensor]:
        seen = self._similarities.seen(inputs)
        weights = self._similarities.kernel(seen) * tf.gather(self.weights, self._chosen(inputs, seen))
        _, places = tf.math.top_k(tf.abs(weights), self._fitted.neighbors)
        return {"id": tf.gather(self.ids, places), "weight": tf.gather(weights, places, batch_dims=1)}

    def _chosen(self, inputs: Inputs, seen: tf.Tensor) -> tf.Tensor:
        """(n,) the class that is predicted; of numbers the one to which most is added."""
        if self._fitted.task.classes:
            return tf.argmax(self._output(inputs), -1, tf.int32)
        return tf.argmax(tf.abs(self._similarities.added(seen)), -1, tf.int32)

    def _output(self, inputs: Inputs) -> tf.Tensor:
        output = tf.cast(self._exported.call("forward", inputs), tf.float32)
        return tf.reshape(output, [-1, self._fitted.task.outputs])

    def _logits(self, output: tf.Tensor) -> tf.Tensor:
        task = self._fitted.task
        if task.network != "probabilities":
            return output
        logarithms = tf.math.log(tf.maximum(output, _LEAST))
        return logarithms - tf.math.log(tf.maximum(1 - output, _LEAST)) if task.outputs == 1 else logarithms

    def _passed_on(self, name: str, output: str) -> Callable[[Inputs], dict[str, tf.Tensor]]:
        return lambda inputs: {output: self._exported.call(name, inputs)}

    def _signature(self, function: Callable[[Inputs], dict[str, tf.Tensor]]) -> Any:
        specs = {name: tf.TensorSpec(s.shape, s.dtype, name) for name, s in self._exported.specs.items()}
        return tf.function(lambda **inputs: function(inputs), autograph=False).get_concrete_function(**specs)

    def _method(self, signature: Any) -> Any:
        """For Python: examples are a tensor, or for several inputs a list, a tuple or a dict by the model's names."""
        specs = self._exported.specs
        names = [entry["name"] for entry in self._exported.manifest["inputs"]]

        def method(x: Any) -> dict[str, tf.Tensor]:
            values = [x[name] for name in names] if isinstance(x, Mapping) else x
            values = list(values) if isinstance(values, list | tuple) else [values]
            return signature(**dict(zip(specs, values, strict=True)))

        side = [tf.TensorSpec(s.shape, s.dtype) for s in specs.values()]
        if len(names) == 1:
            return tf.function(method, side, autograph=False)
        function = tf.function(method, autograph=False)
        for given in (side, tuple(side), dict(zip(names, side, strict=True))):
            function.get_concrete_function(given)
        return function


def _left(prior: tf.Tensor, known: tf.Tensor) -> tf.Tensor:
    """The prior's variance (n,) without that of what is known, (n, r) in standard deviations."""
    return tf.maximum(prior - tf.reduce_sum(tf.square(known), -1), 0)


def _plain(ids: np.ndarray) -> Any:
    return ids.tolist() if ids.dtype.hasobject else ids

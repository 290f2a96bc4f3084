"""Last layers of many traced outputs, replaced by narrower ones that have the same kernel.

Let y = z W + b be a model's outputs, of F inputs z and V columns that are traced, V larger than F. Of the parameters
before this layer they say no more than W Wᵀ does: with G = ∂z/∂θ, their kernel averaged over the columns w of W is

    1/V Σ_w <G₁ᵀ w, G₂ᵀ w> = 1/V <G₁, W Wᵀ G₂>

which is also the average over the F columns of R, if 1/F R Rᵀ = 1/V W Wᵀ. The layer's own part, <z₁, z₂> of W and 1 of
b, is the same for any number of columns. So a classifier of many classes, or a language model with its vocabulary,
needs F derivatives instead of V.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from exporter.compat.jax_names import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from exporter.ntk.equations import aval, bind, evaluate
from exporter.ntk.layerwise import uses

Array = Any

# So many outputs, and so many times more than inputs, are worth the factor of W Wᵀ and its compilation.
MANY = 64
WIDE = 1.25
# Primitives that leave the entries of their input as they are, and their order, if they leave their number.
_IN_ORDER = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "convert_element_type")


@dataclasses.dataclass(frozen=True)
class Narrowed:
    """A model with a narrower last layer.

    Attributes:
      closed: its jaxpr, of as many inputs.
      variables: its variables, of those of the model.
      replaced: the numbers of those that are others; they are made of each other.
    """

    closed: ClosedJaxpr
    variables: Callable[[Sequence[Array]], list[Array]]
    replaced: tuple[int, ...]


def narrowed(closed: ClosedJaxpr, trainable: int, frozen: int, traced: Collection[int]) -> Narrowed | None:
    """The model of a jaxpr with a narrower last layer; None if it has no layer that could be narrower.

    Args:
      closed: of so many trainable variables, so many frozen ones, and data, with one output.
      trainable: the number of those.
      frozen: the number of these.
      traced: axes of the output that the kernel is averaged over.
    """
    (output,) = closed.jaxpr.outvars
    axis = _last_axis(output)
    if axis not in traced or not _has_wide_product(closed.jaxpr, aval(output).shape[axis]):
        return None
    head = _find(_inlined(closed), trainable, trainable + frozen)
    if head is None:
        return None
    args = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in closed.in_avals]
    variables = jax.eval_shape(head.variables, args[: trainable + frozen])
    replaced = (head.kernel.leaf, *(bias.leaf for bias in head.biases))
    return Narrowed(jax.make_jaxpr(head.evaluate)(*variables, *args[trainable + frozen :]), head.variables, replaced)


def factor(m: Array) -> Array:
    """R (F, F) with R Rᵀ = m, which is symmetric and positive semidefinite.

    Cholesky's, with the largest pivot first so that a singular m does no harm (Higham, Accuracy and Stability of
    Numerical Algorithms, 10.3), and rows left in their order. JAX's own is a call of a library that TensorFlow lacks.
    """
    diagonal = jnp.diagonal(m)
    # The rounding of whatever dtype this is evaluated in, maybe a wider one than it is traced in (`in_float64`).
    four = 0 * diagonal[0] + 4
    least = jnp.abs(3 * (four / 3 - 1) - 1) * jnp.max(diagonal)

    def step(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        r, diagonal = state  # the columns so far, and the diagonal of m - r rᵀ
        pivot = jnp.argmax(diagonal)
        column = m[pivot] - jnp.matmul(r, r[pivot], precision="highest")
        column = jnp.where(diagonal[pivot] > least, column * lax.rsqrt(diagonal[pivot]), 0)
        diagonal = jnp.where(jnp.arange(len(m)) == pivot, 0, diagonal - column * column)
        return r.at[:, k].set(column), diagonal

    r, _ = lax.fori_loop(0, len(m), step, (jnp.zeros_like(m), diagonal))
    return r


@dataclasses.dataclass(frozen=True)
class _Reordered:
    """A variable, the `leaf`-th input of a jaxpr, that by these equations becomes an operand."""

    leaf: int
    eqns: tuple[JaxprEqn, ...]

    def value(self, leaves: Sequence[Array]) -> Array:
        """The operand."""
        value = leaves[self.leaf]
        for eqn in self.eqns:
            (value,) = bind(eqn, [value])
        return value


@dataclasses.dataclass(frozen=True)
class _Head:
    """The last layer of a jaxpr.

    Attributes:
      closed: the jaxpr, without calls.
      product: of the layer's inputs and W.
      kernel: of which W is made.
      biases: trainable ones.
      around: the equations that make W and biases of their variables, and those from the product to the output; they
        add biases and change shapes, nothing else, of the input whose number is given with each.
      axis: of the output's columns.
    """

    closed: ClosedJaxpr
    product: JaxprEqn
    kernel: _Reordered
    biases: Sequence[_Reordered]
    around: Sequence[tuple[JaxprEqn, int]]
    axis: int

    def variables(self, variables: Sequence[Array]) -> list[Array]:
        """Those of the narrower layer: R for W, and a bias of no consequence."""
        found = list(variables)
        found[self.kernel.leaf] = self._narrow(self.kernel.value(variables))
        for bias in self.biases:
            found[bias.leaf] = jnp.zeros(_rows_and_columns(self.product)[0], variables[bias.leaf].dtype)
        return found

    def evaluate(self, *args: Array) -> Array:
        """The output of the narrower model, of its variables and the data."""

        def narrow(eqn: JaxprEqn, values: Sequence[Array]) -> Sequence[Array]:
            passed_on = [values[k] for other, k in self.around if eqn is other]
            return passed_on or bind(eqn, values)

        (y,) = evaluate(self.closed.jaxpr, self.closed.consts, args, narrow)
        output = self.closed.out_avals[0]
        shape = [y.shape[-1] if axis == self.axis else size for axis, size in enumerate(output.shape)]
        y = y.reshape(shape).astype(output.dtype)
        for bias in self.biases:
            y = y + lax.broadcast_in_dim(args[bias.leaf].astype(y.dtype), shape, [self.axis])
        return y

    def _narrow(self, w: Array) -> Array:
        """R for W, its axes in the same order."""
        contracted = self.product.params["dimension_numbers"][0][1]
        free = next(axis for axis in range(w.ndim) if axis not in contracted)
        ordered = jnp.transpose(w, [*contracted, free])
        narrow, wide = _rows_and_columns(self.product)
        flat = ordered.reshape(narrow, wide).astype(jnp.promote_types(w.dtype, jnp.float32))
        r = factor(jnp.matmul(flat, flat.T, precision="highest") * (narrow / wide))
        r = r.astype(w.dtype).reshape(*ordered.shape[:-1], narrow)
        return jnp.transpose(r, [[*contracted, free].index(axis) for axis in range(w.ndim)])


def _find(closed: ClosedJaxpr, trainable: int, variables: int) -> _Head | None:
    """The last layer of a jaxpr without calls, whose inputs are so many variables, trainable ones first, and data."""
    jaxpr = closed.jaxpr
    makers = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    used = uses.counts(jaxpr)
    trained, data = _made_of(jaxpr, jaxpr.invars[:trainable]), _made_of(jaxpr, jaxpr.invars[variables:])

    def reordered(operand: Var) -> _Reordered | None:
        """The variable that is used for nothing but this operand, of as many entries."""
        eqns: list[JaxprEqn] = []
        v: Any = operand
        while v in makers and used[v] == 1 and makers[v].primitive.name in (*_IN_ORDER, "transpose"):
            eqns.insert(0, makers[v])
            v = eqns[0].invars[0]
            if isinstance(v, Literal):
                return None
        if used[v] > 1 or v not in jaxpr.invars[:variables] or aval(v).size != aval(operand).size:
            return None
        return _Reordered(jaxpr.invars.index(v), tuple(eqns))

    (v,) = jaxpr.outvars
    axis = _last_axis(v)
    columns = aval(v).shape[axis]
    around: list[tuple[JaxprEqn, int]] = []
    added: list[tuple[Var, int]] = []  # with the axis of the columns
    while used[v] == 1 and v in makers and makers[v].primitive.name in (*_IN_ORDER, "add", "add_any"):
        inputs = makers[v].invars
        of_data = [k for k, u in enumerate(inputs) if not isinstance(u, Literal) and u in data]
        if len(of_data) != 1 or aval(inputs[of_data[0]]).size != aval(v).size:
            return None
        around.append((makers[v], of_data[0]))
        others = [u for u in inputs if not isinstance(u, Literal) and u not in data]
        added += [(u, _last_axis(v)) for u in others if u in trained]
        v = inputs[of_data[0]]
    if used[v] != 1 or v not in makers or not _is_wide(makers[v], columns):
        return None
    product = makers[v]
    z, w = product.invars
    if z not in data or w in data or any(aval(b).size != columns or aval(b).shape[k] != columns for b, k in added):
        return None
    operands = [w, *(b for b, _ in added)]
    found = [variable for variable in map(reordered, operands) if variable is not None]
    if len(found) < len(operands):
        return None
    kernel, *biases = found
    around += [(eqn, 0) for variable in (kernel, *biases) for eqn in variable.eqns]
    return _Head(closed, product, kernel, biases, around, axis)


def _has_wide_product(jaxpr: Jaxpr, columns: int) -> bool:
    """Whether there is one in a jaxpr, or in those that it calls."""
    return any(
        _has_wide_product(uses.called(eqn)[0], columns) if eqn.primitive.name in uses.CALLS else _is_wide(eqn, columns)
        for eqn in jaxpr.eqns
    )


def _is_wide(eqn: JaxprEqn, columns: int) -> bool:
    """Whether an equation is a product with a W of so many columns, enough of them; they are its output's last axis."""
    if eqn.primitive.name != "dot_general":
        return False
    (_, contracted), batch = eqn.params["dimension_numbers"]
    if any(batch) or aval(eqn.invars[1]).ndim != len(contracted) + 1:
        return False
    rows, wide = _rows_and_columns(eqn)
    return wide == columns and wide >= max(MANY, WIDE * rows)


def _rows_and_columns(product: JaxprEqn) -> tuple[int, int]:
    """The numbers F of rows and V of columns of a product's W."""
    contracted = product.params["dimension_numbers"][0][1]
    w = aval(product.invars[1])
    rows = math.prod(w.shape[axis] for axis in contracted)
    return rows, w.size // rows


def _last_axis(v: Var) -> int:
    """The last axis that is not of size 1, of rows and columns in order that of the columns; 0 if there is none."""
    return max((axis for axis, size in enumerate(aval(v).shape) if size != 1), default=0)


def _made_of(jaxpr: Jaxpr, given: Sequence[Var]) -> set[Var]:
    """The variables of a jaxpr that depend on the given ones, with these."""
    found = set(given)
    for eqn in jaxpr.eqns:
        if any(v in found for v in eqn.invars if not isinstance(v, Literal)):
            found.update(eqn.outvars)
    return found


def _inlined(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same jaxpr with what it calls in the place of the calls."""

    def run(jaxpr: Jaxpr, consts: Sequence[Array], args: Sequence[Array]) -> list[Array]:
        return evaluate(jaxpr, consts, args, inline)

    def inline(eqn: JaxprEqn, values: Sequence[Array]) -> Sequence[Array]:
        return run(*uses.called(eqn), values) if eqn.primitive.name in uses.CALLS else bind(eqn, values)

    specs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in closed.in_avals]
    return jax.make_jaxpr(lambda *args: run(closed.jaxpr, closed.consts, args))(*specs)

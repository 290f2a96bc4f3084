"""What each site costs, by count: the table that people look at, and the work that a benchmark divides by its time."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from exporter.ntk.layerwise.features import Component, ExampleFeatures


@dataclasses.dataclass(frozen=True)
class SiteCost:
    """One site.

    Attributes:
      variables: paths of the variables that its parameter is made of.
      primitive: of its equation.
      rule: how its Jacobian is made.
      form: of the contraction; "pulled back" before it if the parameter is a function of its variables, "row of" if it
        is a bias that is done with the product it is added to.
      sizes: T, I and J of its factors (see `contract`), None if it has none.
      example_flops: floating point operations for each example: the site's part of the forward pass, of a backward pass
        for each output, and of making features.
      pair_flops: for each pair of examples; 0 if counted for another site.
      bytes: of the features of one example; 0 if counted for another site.
    """

    variables: tuple[str, ...]
    primitive: str
    rule: str
    form: str
    sizes: tuple[int, int, int] | None
    example_flops: float
    pair_flops: float
    bytes: int

    def flops(self, n1: int, n2: int) -> float:
        """Floating point operations for the kernel of so many examples."""
        return (n1 + n2) * self.example_flops + n1 * n2 * self.pair_flops


def site_costs(features: ExampleFeatures) -> list[SiteCost]:
    """The costs of all sites, in the model's order.

    Counted are products and sums of the sites themselves and of their features, not the elementwise operations between
    them, nor what is done once for all examples, where these share derivatives.
    """
    costs = {}
    for component in features.components:
        for group in component.groups:
            for k in group:
                costs[k] = _site_cost(features, component, k, group)
        if component.bias is not None:
            costs[component.bias] = _site_cost(features, component, component.bias, ())
    return [costs[k] for k in range(len(features.sites))]


def features_bytes(features: ExampleFeatures, outputs: int) -> int:
    """Bytes of the features of so many outputs of one example, counted from shapes."""
    numbers = sum(
        _numbers(features, component, group, outputs) for component in features.components for group in component.groups
    )
    return numbers * np.dtype(features.dtype).itemsize


def _site_cost(features: ExampleFeatures, component: Component, k: int, group: tuple[int, ...]) -> SiteCost:
    """Of site k, in a group of sites of one parameter; in none if it is the bias that became a row of one."""
    site, shape, axes = features.sites[k], features.shapes[k], features.axes
    form = {"joined": "explicit", "index": "gram"}.get(component.form, component.form)
    size = float(math.prod(site.steps + site.perturbed))
    passes = 1 + axes.count * (site.differentiated and not site.shared)
    example = passes * (2 * size if shape is None else shape.pass_flops())
    if form == "explicit" and group:
        example += axes.count * size if shape is None else shape.build_flops(axes)
    pair, numbers = 0.0, 0
    if group and k == group[0]:
        numbers = _numbers(features, component, group, axes.count)
        if form == "explicit":
            pair = 2.0 * axes.kept * numbers
        elif component.folded is not None:
            example += component.folded.shared_flops(axes)
            pair = component.folded.shared_pair_flops(axes)
        elif component.shape is not None:
            pair = component.shape.gram_flops(axes, index=component.form == "index")
    if component.pulled_back:
        form = f"pulled back, {form}"
    return SiteCost(
        variables=tuple(features.variables[leaf] for leaf in sorted(site.param.leaves)),
        primitive=site.eqn.primitive.name,
        rule=site.rule.name,
        form=form if group else f"row of {form}",
        sizes=None if shape is None else (shape.positions, shape.data, shape.derivative),
        example_flops=example,
        pair_flops=pair,
        bytes=numbers * np.dtype(features.dtype).itemsize,
    )


def _numbers(features: ExampleFeatures, component: Component, group: tuple[int, ...], outputs: int) -> int:
    """Of the features of so many outputs of one example that are of one group's parameter."""
    if component.folded is not None:
        return component.folded.shared_numbers(features.axes)
    if component.form in ("gram", "index") and (shape := component.shape) is not None:
        data = 1 if component.form == "index" else shape.data
        return shape.batch * shape.positions * (data + outputs * shape.derivative)
    sites = [group[0]] if component.bias is None else [group[0], component.bias]
    return outputs * sum(math.prod(features.sites[k].shape) for k in sites)

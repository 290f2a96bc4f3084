"""The two sections of a configuration: frozen dataclasses, checked once where they are made."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from exporter.config.checks import Checks, ConfigError

IMPLEMENTATIONS = ("auto", "layerwise", "structured_derivatives", "ntk_vector_products", "jacobian_contraction")
PRECISIONS = ("float32", "tensorfloat32", "bfloat16", "float64", "model")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
KERNEL_SIGNATURES = ("ntk", "ntk_symmetric", "ntk_diagonal", "ntk_with_params", "ntk_features")
SIGNATURES = (*KERNEL_SIGNATURES, "forward")

MOST_DIMENSIONS = 1 << 20  # of features: of a thousand examples 4 GiB

_KEPT_BATCH = (
    "axis 0 is the batch axis, which every signature keeps; for one value per example use the ntk_diagonal signature"
)


@dataclasses.dataclass(frozen=True)
class NtkConfig:
    """Which kernel: of which output, over which variables, with which axes, and how it is computed.

    Lists may be given as any sequence, a list of one entry as that entry; they are kept as tuples.

    Attributes:
      implementation: how the kernel is computed, one of `IMPLEMENTATIONS`; "auto" is "layerwise".
      trace_axes: axes of the output that the kernel is averaged over (`neural_tangents.empirical_ntk_fn`).
      diagonal_axes: axes of the output of which only the kernel's diagonal is computed.
      vmap_axes: 0 if no example's output depends on another example, None if some do, "auto" to find out: 0 if the
        model is shown to treat examples independently, otherwise an error.
      trainable: glob patterns on the paths of variables; the kernel is over the trainable variables that match.
        A pattern that begins with "!" excludes.
      output: name or index (from 0) of the output of a model with several.
      trace_samples: how many random ±1 combinations of the traced outputs the trace is estimated with; None for the
        exact trace.
      trace_seed: of their signs.
      precision: of the computation, one of `PRECISIONS`. With "model" values are rounded to half precision where the
        model does so, with the others nowhere; tensorfloat32 and bfloat16 are of the products of matrices alone.

    Raises:
      ConfigError: with all problems of the given values.
    """

    implementation: str = "auto"
    trace_axes: tuple[int, ...] = (-1,)
    diagonal_axes: tuple[int, ...] = ()
    vmap_axes: str | int | None = "auto"
    trainable: tuple[str, ...] = ("*",)
    output: str | int | None = None
    precision: str = "float32"
    trace_samples: int | None = None
    trace_seed: int = 0

    def __post_init__(self) -> None:
        """Checks all values and brings them into the types above."""
        checks = Checks("ntk")
        implementation = checks.choice("implementation", self.implementation, IMPLEMENTATIONS)
        trace_axes = checks.axes("trace_axes", self.trace_axes)
        diagonal_axes = checks.axes("diagonal_axes", self.diagonal_axes)
        _check_kept_axes(checks, trace_axes, diagonal_axes)
        vmap_axes = checks.choice("vmap_axes", self.vmap_axes, ("auto", 0, None))
        trainable = checks.texts("trainable", self.trainable)
        if any(pattern.strip() == "!" for pattern in trainable):
            checks.wrong("trainable", "a pattern after '!'", "!")
        output = checks.name_or_index("output", self.output)
        precision = checks.choice("precision", self.precision, PRECISIONS)
        trace_samples = self.trace_samples
        if trace_samples is not None:
            trace_samples = checks.integer("trace_samples", trace_samples, minimum=1)
            if not trace_axes:
                checks.wrong("trace_samples", "null, or axes to trace (ntk.trace_axes)", trace_samples)
        trace_seed = checks.integer("trace_seed", self.trace_seed, minimum=0)
        checks.finish()
        _keep(
            self,
            implementation=implementation,
            trace_axes=trace_axes,
            diagonal_axes=diagonal_axes,
            vmap_axes=vmap_axes,
            trainable=trainable,
            output=output,
            precision=precision,
            trace_samples=trace_samples,
            trace_seed=trace_seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the section `ntk` as JSON has it; `load_config` reads it back."""
        return _plain(self)


@dataclasses.dataclass(frozen=True)
class VerifyConfig:
    """How the written SavedModel is compared with a float64 Jacobian.

    Attributes:
      examples: number of examples that the kernels are computed on.
      rtol: largest allowed difference, relative to the largest entry of the kernel.
      seconds: that it should take at most, of two CPU cores: what there is no time for is left out, and said.

    Raises:
      ConfigError: with all problems of the given values.
    """

    examples: int = 8
    rtol: float = 1.0e-4
    seconds: float = 120.0

    def __post_init__(self) -> None:
        """Checks all values and brings them into the types above."""
        checks = Checks("export.verify")
        examples = checks.integer("examples", self.examples, minimum=1)
        rtol = checks.positive("rtol", self.rtol)
        seconds = checks.positive("seconds", self.seconds)
        checks.finish()
        _keep(self, examples=examples, rtol=rtol, seconds=seconds)


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """The random projection of each example's Jacobian that `ntk_features` returns.

    Attributes:
      dimensions: numbers of a projection; an entry of the kernel is off by about 1/√dimensions, relative to the
        diagonal. At most `MOST_DIMENSIONS`.
      seed: of the projection; features of different seeds cannot be compared.

    Raises:
      ConfigError: with all problems of the given values.
    """

    dimensions: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks all values and brings them into the types above."""
        checks = Checks("export.features")
        dimensions = checks.integer("dimensions", self.dimensions, minimum=1)
        if dimensions > MOST_DIMENSIONS:
            checks.wrong("dimensions", f"at most {MOST_DIMENSIONS}", dimensions)
        seed = checks.integer("seed", self.seed, minimum=0)
        checks.finish()
        _keep(self, dimensions=dimensions, seed=seed)


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What is written.

    Attributes:
      platforms: the platforms that the SavedModel runs on, any of `PLATFORMS`.
      signatures: any of `SIGNATURES`, at least one of them a kernel or its features. `serving_default` is the signature
        `ntk`, or the first of the list if `ntk` is not in it. All of them stand for those that the model can have:
        without `ntk_features` if its examples influence each other.
      features: the projection of `ntk_features`; also a mapping of its fields.
      memory_budget: bytes for the intermediate values of one request; also a text such as "512MiB" or "2GB".
      warmup: whether requests for TensorFlow Serving's warmup are written beside the SavedModel.
      verify: how the SavedModel is verified; also a mapping of its fields.
      input_shapes: sizes for the axes that the model leaves open besides the batch axis, in their order: (128,), or
        with several inputs by their names: {"tokens": (128,), "image": (64, 64)}.
      examples: path of a .npz or .zarr file with real inputs by name (`x` for a single one), with which the model is
        checked and the SavedModel verified; None to draw them, texts from the vocabularies in the model.

    Raises:
      ConfigError: with all problems of the given values.
    """

    platforms: tuple[str, ...] = ("cpu", "cuda")
    signatures: tuple[str, ...] = SIGNATURES
    memory_budget: int = 1024**3
    warmup: bool = True
    verify: VerifyConfig = dataclasses.field(default_factory=VerifyConfig)
    input_shapes: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = dataclasses.field(default=None, hash=False)
    examples: str | None = None
    features: FeaturesConfig = dataclasses.field(default_factory=FeaturesConfig)

    def __post_init__(self) -> None:
        """Checks all values and brings them into the types above."""
        checks = Checks("export")
        platforms = checks.choices("platforms", self.platforms, PLATFORMS)
        signatures = checks.choices("signatures", self.signatures, SIGNATURES)
        if signatures and all(signature == "forward" for signature in signatures):
            checks.wrong("signatures", f"at least one kernel ({', '.join(KERNEL_SIGNATURES)})", list(signatures))
        input_shapes = None if self.input_shapes is None else checks.shapes("input_shapes", self.input_shapes)
        memory_budget = checks.memory("memory_budget", self.memory_budget)
        warmup = checks.boolean("warmup", self.warmup)
        try:
            verify = _section("export.verify", VerifyConfig, self.verify)
        except ConfigError as error:
            checks.adopt(error)
        try:
            features = _section("export.features", FeaturesConfig, self.features)
        except ConfigError as error:
            checks.adopt(error)
        examples = checks.path("examples", self.examples)
        checks.finish()
        _keep(
            self,
            platforms=platforms,
            signatures=signatures,
            input_shapes=input_shapes,
            memory_budget=memory_budget,
            warmup=warmup,
            verify=verify,
            examples=examples,
            features=features,
        )

    @property
    def serving_default(self) -> str:
        """The signature that is also written as `serving_default`."""
        return "ntk" if "ntk" in self.signatures else self.signatures[0]

    def to_dict(self) -> dict[str, Any]:
        """Returns the section `export` as JSON has it; `load_config` reads it back."""
        return _plain(self)


def check_axes(config: NtkConfig, output_rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Checks the axes against the output that the kernel is of.

    Args:
      config: the configuration whose `trace_axes` and `diagonal_axes` are checked.
      output_rank: number of axes of the output, the batch axis 0 included: 2 for (n, classes).

    Returns:
      `trace_axes` and `diagonal_axes` counted from 0, in the order in which they were given.

    Raises:
      ConfigError: with every axis that is out of range, given twice, in both lists, or the batch axis.
    """
    checks = Checks("ntk")
    given = {"trace_axes": config.trace_axes, "diagonal_axes": config.diagonal_axes}
    for key, axes in given.items():
        for axis in axes:
            if not -output_rank <= axis < output_rank:
                known = f"an axis from {-output_rank} to {output_rank - 1} (the output has {output_rank} axes)"
                checks.wrong(key, known, axis)
            elif axis == -output_rank:
                empty = f"; write {key}: [] for none" if output_rank == 1 else ""
                checks.wrong(key, f"an axis of the output other than its batch axis ({_KEPT_BATCH})", axis, empty)
    trace_axes, diagonal_axes = (
        tuple(axis % output_rank for axis in axes if -output_rank <= axis < output_rank) for axes in given.values()
    )
    for key, positions in (("trace_axes", trace_axes), ("diagonal_axes", diagonal_axes)):
        twice = sorted({axis for axis in positions if positions.count(axis) > 1})
        if twice:
            checks.wrong(key, "each axis once", list(given[key]), f", in which axis {twice[0]} stands twice")
    _check_overlap(checks, trace_axes, diagonal_axes)
    checks.finish()
    return trace_axes, diagonal_axes


def check_together(ntk: NtkConfig, export: ExportConfig) -> None:
    """Raises ConfigError if the two sections, each right by itself, contradict each other."""
    if ntk.precision == "float64" and "tpu" in export.platforms:
        raise ConfigError(
            [
                "ntk.precision: tpu has no float64, got precision 'float64' with "
                f"export.platforms {list(export.platforms)}; take tpu off the platforms, or another precision"
            ]
        )


def _check_kept_axes(checks: Checks, trace_axes: Sequence[int], diagonal_axes: Sequence[int]) -> None:
    for key, axes in (("trace_axes", trace_axes), ("diagonal_axes", diagonal_axes)):
        if 0 in axes:
            checks.wrong(key, f"an axis of the output other than its batch axis ({_KEPT_BATCH})", 0)
    _check_overlap(checks, trace_axes, diagonal_axes)


def _check_overlap(checks: Checks, trace_axes: Sequence[int], diagonal_axes: Sequence[int]) -> None:
    both = sorted(set(trace_axes) & set(diagonal_axes))
    if both:
        shared = ", ".join(map(str, both))
        checks.note(
            "trace_axes", f"expected no axis that is in diagonal_axes too, got {shared} in both; take it off one"
        )


def make_section(name: str, section_type: type, value: object) -> Any:
    """Makes a section from a mapping, and reports unknown keys together with wrong values."""
    checks = Checks(name)
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        checks.wrong("", "a mapping", value)
        checks.finish()
        return None
    entries = checks.section_keys(value, field_names(section_type))
    try:
        section = section_type(**entries)
    except ConfigError as error:
        checks.adopt(error)
    checks.finish()
    return section


def _section(name: str, section_type: type, value: object) -> Any:
    return value if isinstance(value, section_type) else make_section(name, section_type, value)


def field_names(section_type: Any) -> list[str]:
    """The keys of a section."""
    return [field.name for field in dataclasses.fields(section_type)]


def _keep(config: object, **values: object) -> None:
    """Sets fields of a frozen dataclass while it is being made."""
    for name, value in values.items():
        object.__setattr__(config, name, value)


def _plain(value: Any) -> Any:
    """A dataclass, or a value in it, as JSON has it."""
    if dataclasses.is_dataclass(value):
        return {key: _plain(getattr(value, key)) for key in field_names(value)}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value

"""What cannot fit the budget is refused by shapes, before anything is compiled."""

import jax
import keras
import pytest
from keras import layers as L

from exporter.config import ExportConfig, NtkConfig
from exporter.errors import ExportError
from exporter.plan.limits import memory_errors, out_of_memory, size_text
from exporter.plan.planning import make_plan


@pytest.fixture(scope="module")
def dense_prediction():
    """A class for each of 24 × 24 pixels."""
    image = keras.Input((24, 24, 1))
    return keras.Model(image, L.Conv2D(2, 1, activation="softmax")(L.Conv2D(8, 3, padding="same")(image)))


@pytest.fixture
def nothing_compiles(caplog, monkeypatch):
    def compute(*args, **kwargs):
        raise AssertionError("examples were computed")

    monkeypatch.setattr("exporter.functionalize.examples.Examples.__call__", compute)
    with jax.log_compiles():
        yield
    said = [record.getMessage() for record in caplog.get_records("call")]
    assert any("tracing" in line for line in said), "JAX did not say what it does"
    assert not [line for line in said if "Compiling" in line]


def refusal(model, ntk, budget):
    with pytest.raises(ExportError) as error:
        make_plan(model, ntk, ExportConfig(memory_budget=budget))
    return str(error.value)


@pytest.mark.usefixtures("nothing_compiles")
def test_derivatives_of_kept_outputs(dense_prediction):
    message = refusal(dense_prediction, NtkConfig(), "8MiB")
    assert message.startswith(
        "The kernel of one pair of examples does not fit the memory budget: expected at most 8 MiB "
        "(export.memory_budget), received the kernel (1, 1, 24, 24, 24, 24) 1.266 MiB, derivatives and features of the "
    )
    assert message.endswith(
        "for each example. Average over axes of the output (n, 24, 24, 2) that the kernel has pairs of, for all of "
        "them ntk.trace_axes: [1, 2, 3], or keep only their diagonal, ntk.diagonal_axes: [1, 2], or raise the budget."
    )


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize("implementation", ["layerwise", "structured_derivatives"])
def test_the_kernel_itself(dense_prediction, implementation):
    message = refusal(dense_prediction, NtkConfig(implementation=implementation), "1MiB")
    assert "expected at most 1 MiB (export.memory_budget), received the kernel (1, 1, 24, 24, 24, 24)" in message


@pytest.mark.parametrize("axes", [{"trace_axes": (1, 2, 3)}, {"trace_axes": (3,), "diagonal_axes": (1, 2)}])
def test_axes_that_the_message_names(dense_prediction, axes):
    assert make_plan(dense_prediction, NtkConfig(**axes), ExportConfig(memory_budget="8MiB")).kernel_shape[:2] == (
        None,
        None,
    )


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1 GiB"), (1 << 52, "4096 TiB")]
)
def test_sizes_for_people(count, text):
    assert size_text(count) == text


def test_the_text_of_xla_is_not_shown():
    with pytest.raises(ExportError) as error, memory_errors():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 29064361760 bytes.")
    assert "received a request of 27.07 GiB at once. Average over more axes" in str(error.value)
    with pytest.raises(ExportError, match=r"received a request\. Average"), memory_errors():
        raise MemoryError
    with pytest.raises(jax.errors.JaxRuntimeError), memory_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
    assert out_of_memory("UNIMPLEMENTED") is None

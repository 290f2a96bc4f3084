"""Op converters and control flow: each against TensorFlow, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from exporter.compat.jax_names import ClosedJaxpr, enable_x64
from exporter.errors import ExportError
from exporter.functionalize.tf_ops import GraphFunction, Library, random_operations, unsupported_operations


def _convert(function, *arrays):
    """A TensorFlow function as a JAX function of arrays like these, and the library of its loops."""
    specs = [tf.TensorSpec([None, *np.shape(a)[1:]] if np.ndim(a) else [], np.asarray(a).dtype) for a in arrays]
    concrete = tf.function(function).get_concrete_function(*specs)
    assert not concrete.captured_inputs
    library = Library(concrete.graph.as_graph_def().library.function)
    converted = GraphFunction(concrete.function_def, library)
    return (lambda *args: converted(*map(jnp.asarray, args))), library


def _assert_equal(function, *arrays, gradient=True, rtol=2e-5):
    """Equal results, and equal gradients of a random combination of them with respect to the floating arrays."""
    converted, library = _convert(function, *arrays)
    tensors = [tf.convert_to_tensor(a) for a in arrays]
    floating = [i for i, tensor in enumerate(tensors) if tensor.dtype.is_floating]
    with tf.GradientTape() as tape:
        tape.watch([tensors[i] for i in floating])
        expected = tf.nest.flatten(function(*tensors))
        weights = [np.random.default_rng(i).normal(size=e.shape).astype(np.float32) for i, e in enumerate(expected)]
        total = tf.add_n([tf.reduce_sum(tf.cast(e, tf.float32) * w) for e, w in zip(expected, weights, strict=True)])

    @jax.jit
    def compute(*values):
        if not gradient:
            return converted(*values), ()

        def combine(*some):
            outputs = converted(*(dict(enumerate(values)) | dict(zip(floating, some, strict=True))).values())
            return sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)), outputs

        grads, outputs = jax.grad(combine, range(len(floating)), has_aux=True)(*(values[i] for i in floating))
        return outputs, grads

    actual, gradients = compute(*arrays)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol)
    if gradient:
        theirs = tape.gradient(total, [tensors[i] for i in floating], unconnected_gradients="zero")
        for ours, their in zip(gradients, theirs, strict=True):
            np.testing.assert_allclose(ours, tf.convert_to_tensor(their), rtol=1e-4, atol=1e-4)
    return library


def _random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


IMAGE = _random(2, 5, 6, 4)
VECTORS = _random(3, 4)

OPERATIONS = {
    "leaky_relu": lambda: (lambda x: tf.nn.leaky_relu(x, 0.3), VECTORS),
    "selu": lambda: (tf.nn.selu, VECTORS),
    "softsign": lambda: (tf.nn.softsign, VECTORS),
    "relu6": lambda: (lambda x: tf.nn.relu6(5 * x), VECTORS),
    "clip": lambda: (lambda x: tf.clip_by_value(x, -0.5, 0.5), VECTORS),
    "inverse_trigonometric": lambda: (lambda x: tf.asin(x) + tf.acos(x) + tf.atan(x), np.tanh(VECTORS)),
    "select_rows": lambda: (
        lambda x: tf.raw_ops.Select(condition=tf.reduce_sum(x, 1) > 0, x=x, y=x * x),
        VECTORS,
    ),
    "select_broadcast": lambda: (lambda x: tf.where(tf.constant([True, False, True, False]), x, 0.0), VECTORS),
    "mirror_pad": lambda: (lambda x: tf.pad(x, [[0, 0], [1, 2]], "REFLECT"), VECTORS),
    "symmetric_pad": lambda: (lambda x: tf.pad(x, [[1, 0], [1, 2]], "SYMMETRIC"), VECTORS),
    "cumsum": lambda: (lambda x: tf.cumsum(x, axis=-1, exclusive=True), VECTORS),
    "cumsum_reverse": lambda: (lambda x: tf.cumsum(x, axis=1, exclusive=True, reverse=True), VECTORS),
    "cumprod": lambda: (lambda x: tf.math.cumprod(x, axis=1, reverse=True), VECTORS),
    "cumulative_logsumexp": lambda: (lambda x: tf.math.cumulative_logsumexp(x, axis=1), VECTORS),
    "scatter_nd": lambda: (lambda x: tf.scatter_nd([[1], [1], [3]], x, [5, 4]), VECTORS),
    "tensor_scatter": lambda: (lambda x: tf.tensor_scatter_nd_add(x, [[1], [1]], x[:2]), VECTORS),
    "dynamic_stitch": lambda: (lambda x: tf.dynamic_stitch([[2, 0], [1, 3, 4]], [x[:2], 2 * x]), VECTORS),
    "reverse_sequence": lambda: (lambda x: tf.reverse_sequence(x, [1, 3, 4], seq_axis=1), VECTORS),
    "linspace": lambda: (lambda x: x * tf.linspace(0.0, 1.0, 4), VECTORS),
    "sizes": lambda: (lambda x: tf.reshape(x, [tf.size(x) // 2, 2]) * tf.cast(tf.rank(x), tf.float32), VECTORS),
    "batched_matmul": lambda: (lambda x: tf.matmul(x, x, transpose_b=True), IMAGE),
    "inverse": lambda: (lambda x: tf.linalg.inv(x @ tf.transpose(x) + tf.eye(3)), VECTORS),
    "solve": lambda: (lambda x: tf.linalg.solve(x @ tf.transpose(x) + tf.eye(3), x), VECTORS),
    "log_determinant": lambda: (lambda x: tf.linalg.slogdet(x @ tf.transpose(x) + tf.eye(3))[1], VECTORS),
    "diagonal": lambda: (tf.linalg.diag_part, IMAGE),
    "cross": lambda: (lambda x: tf.linalg.cross(x[:, :3], x[:, 1:]), VECTORS),
    "space_to_depth": lambda: (lambda x: tf.nn.space_to_depth(x[:, :4], 2), IMAGE),
    "depth_to_space": lambda: (lambda x: tf.nn.depth_to_space(x, 2), IMAGE),
    "patches": lambda: (
        lambda x: tf.image.extract_patches(x, [1, 2, 3, 1], [1, 2, 1, 1], [1, 1, 2, 1], "SAME"),
        IMAGE,
    ),
    "local_response_normalization": lambda: (lambda x: tf.nn.lrn(x, 1, 1.5, 0.7, 0.6), IMAGE),
    "explicit_padding": lambda: (
        lambda x, k: tf.nn.conv2d(x, k, 2, [[0, 0], [1, 2], [0, 1], [0, 0]]),
        IMAGE,
        _random(2, 3, 4, 3),
    ),
    "depthwise_explicit_padding": lambda: (
        lambda x, k: tf.raw_ops.DepthwiseConv2dNative(
            input=x, filter=k, strides=[1, 1, 1, 1], padding="EXPLICIT", explicit_paddings=[0, 0, 1, 0, 2, 1, 0, 0]
        ),
        IMAGE,
        _random(2, 2, 4, 2),
    ),
    "transposed_valid": lambda: (
        lambda y, k: tf.nn.conv2d_transpose(y, k, [2, 15, 13, 3], [3, 2], "VALID"),
        IMAGE,
        _random(2, 3, 3, 4),
    ),
    "transposed_same": lambda: (
        lambda y, k: tf.nn.conv2d_transpose(y, k, [2, 14, 11, 3], [3, 2], "SAME"),
        IMAGE,
        _random(4, 1, 3, 4),
    ),
    "transposed_3d": lambda: (
        lambda y, k: tf.nn.conv3d_transpose(y[..., None], k, [2, 9, 12, 8, 2], 2, "SAME"),
        IMAGE,
        _random(2, 3, 2, 2, 1),
    ),
    "average_pool_same": lambda: (lambda x: tf.nn.avg_pool2d(x, [3, 2], [2, 3], "SAME"), IMAGE),
    "max_pool_3d": lambda: (lambda x: tf.nn.max_pool3d(x[..., None], [2, 3, 2], 2, "SAME"), IMAGE),
    "bicubic": lambda: (lambda x: tf.image.resize(x, [7, 4], "bicubic"), IMAGE),
    "lanczos": lambda: (lambda x: tf.image.resize(x, [7, 4], "lanczos3"), IMAGE),
    "bilinear_antialias": lambda: (lambda x: tf.image.resize(x, [3, 4], "bilinear", antialias=True), IMAGE),
    "batch_norm_own_moments": lambda: (
        lambda x: tf.compat.v1.nn.fused_batch_norm(x, tf.ones(4) * 2, tf.ones(4), is_training=True)[0],
        IMAGE,
    ),
    "sparse_matmul": lambda: (lambda x: tf.raw_ops.SparseMatMul(a=x, b=x, transpose_b=True), VECTORS),
    "sparse_dense_matmul": lambda: (
        lambda x: tf.sparse.sparse_dense_matmul(tf.SparseTensor([[0, 1], [2, 0]], [2.0, 3.0], [3, 3]), x),
        VECTORS,
    ),
}


@pytest.mark.parametrize("case", OPERATIONS.values(), ids=OPERATIONS)
def test_operation(case):
    _assert_equal(*case())


NOT_DIFFERENTIABLE = {
    "bincount": lambda: (
        lambda x: tf.math.bincount(x, minlength=5, maxlength=5, axis=-1),
        np.array([[1, 1, 3], [0, 4, 4]]),
    ),
    "bincount_binary": lambda: (
        lambda x: tf.math.bincount(x, minlength=5, maxlength=5, axis=-1, binary_output=True),
        np.array([[1, 1, 3], [0, 4, 4]]),
    ),
    "bincount_weighted": lambda: (
        lambda x: tf.math.bincount(x, weights=tf.constant([[1.0, 2.0, 3.0]] * 2), minlength=5, maxlength=5, axis=-1),
        np.array([[1, 1, 3], [0, 4, 4]]),
    ),
    "one_hot_axis": lambda: (
        lambda x: tf.one_hot(x, 5, on_value=2.0, off_value=-1.0, axis=1),
        np.array([[1, 5], [0, -1]]),
    ),
    **{
        f"resize_bilinear {corners} {centres} {sizes}": lambda corners=corners, centres=centres, sizes=sizes: (
            lambda x: tf.raw_ops.ResizeBilinear(
                images=x, size=sizes, align_corners=corners, half_pixel_centers=centres
            ),
            IMAGE,
        )
        for corners, centres in ((False, False), (True, False), (False, True))
        for sizes in ([17, 23], [2, 3], [1, 1])
    },
    "resize_area": lambda: (lambda x: tf.image.resize(x, [2, 9], "area"), IMAGE),
    "bucketize": lambda: (lambda x: tf.raw_ops.Bucketize(input=x, boundaries=[-0.5, 0.0, 0.5]), VECTORS),
    "is_nan": lambda: (lambda x: tf.cast(tf.math.is_nan(x), tf.float32), np.float32([[1, np.nan]])),
    "truncated_modulo": lambda: (lambda x: tf.truncatemod(x, 3) + tf.truncatediv(x, 3), np.int32([[-7, 7, 2]])),
}


@pytest.mark.parametrize("case", NOT_DIFFERENTIABLE.values(), ids=NOT_DIFFERENTIABLE)
def test_operation_without_gradient(case):
    _assert_equal(*case(), gradient=False)


TIES = np.float32([[0.0, 0.0, 1.0, -1.0, 6.0]])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.maximum(x, 0.0),
        lambda x: tf.minimum(x, 1.0),
        lambda x: tf.maximum(0.0, x),
        tf.nn.relu6,
        tf.nn.selu,
        tf.nn.leaky_relu,
        lambda x: tf.nn.max_pool1d(x[..., None], 2, 1, "VALID"),
        lambda x: tf.reduce_max(x, axis=1),
        lambda x: tf.math.divide_no_nan(x, tf.constant([0.0, 2.0, 0.0, 1.0, 1.0])),
        lambda x: tf.math.multiply_no_nan(x, tf.constant([0.0, 2.0, 0.0, 1.0, 1.0])),
        lambda x: tf.math.xlogy(tf.constant([0.0, 2.0, 0.0, 1.0, 1.0]), x + 2),
        lambda x: tf.math.xdivy(tf.constant([0.0, 2.0, 0.0, 1.0, 1.0]), x + 2),
    ],
)
def test_gradient_at_ties_and_zeros(function):
    _assert_equal(function, TIES)


def test_nan_goes_through_maximum_and_minimum():
    converted, _ = _convert(lambda x: (tf.maximum(x, 0.0), tf.minimum(0.0, x)), np.float32([1.0]))
    assert np.isnan(converted(np.float32([np.nan]))).all()


# ---------------------------------------------------------------------------------------------------- control flow


def _primitives(function, *arrays):
    """The names of the primitives at the top of the function's trace, and within its calls."""
    names = set()

    def collect(jaxpr):
        for equation in jaxpr.eqns:
            names.add(equation.primitive.name)
            for value in equation.params.values():
                if isinstance(value, ClosedJaxpr):
                    collect(value.jaxpr)

    collect(jax.make_jaxpr(function)(*arrays).jaxpr)
    return names


def _power_iteration(x):
    state = tf.ones_like(x[:, 0])
    for _ in tf.range(tf.shape(x)[1]):
        state = tf.tanh(tf.linalg.matvec(x, state))
    return state


def _fibonacci(x):
    """Every variable of the body is passed on unchanged, but to another place."""
    return tf.while_loop(lambda i, a, b: i < 5, lambda i, a, b: (i + 1, b, tf.tanh(a) + b), (0, x, 2 * x))[1:]


def _nested(x):
    total = tf.zeros_like(x)
    for i in tf.range(3):
        for j in tf.range(2):
            total += tf.sin(x * tf.cast(i * 2 + j + 1, tf.float32))
    return total


def _growing_step(x):
    """The length depends upon two variables, one of which is not a counter by one."""
    return tf.while_loop(lambda i, j, y: i + j < 40, lambda i, j, y: (i + 1, j * 2, tf.sin(y)), (0, 1, x))[2]


def _array_written_and_read(x):
    steps = tf.TensorArray(tf.float32, size=4, clear_after_read=False)
    for i in tf.range(4):
        steps = steps.write(i, x * tf.cast(i, tf.float32))
    total = tf.zeros_like(x)
    for i in tf.range(4):
        total = tf.tanh(total + steps.read(3 - i))
    return total, steps.stack()


LOOPS = {
    "recurrence": (_power_iteration, _random(2, 3, 3)),
    "swapped": (_fibonacci, VECTORS),
    "nested": (_nested, VECTORS),
    "growing_step": (_growing_step, VECTORS),
    "tensor_array": (_array_written_and_read, VECTORS),
    "map_fn": (lambda x: tf.map_fn(lambda row: tf.tanh(row) * tf.reduce_sum(row), x), VECTORS),
    "scan": (lambda x: tf.scan(lambda a, row: tf.tanh(a + row), x), VECTORS),
    "fold": (lambda x: tf.foldl(lambda a, row: tf.tanh(a - row), x), VECTORS),
}


@pytest.mark.parametrize(("function", "x"), LOOPS.values(), ids=LOOPS)
def test_loop_of_known_length_is_a_scan(function, x):
    library = _assert_equal(function, x)
    assert not library.dynamic_loops
    converted, _ = _convert(function, x)
    assert "scan" in _primitives(converted, x)
    assert "while" not in _primitives(converted, x)


@pytest.mark.parametrize(("function", "x"), LOOPS.values(), ids=LOOPS)
def test_loop_in_float64(function, x):
    converted, _ = _convert(function, x)
    expected = converted(x)
    with enable_x64():
        for wide, narrow in zip(converted(x.astype(np.float64)), expected, strict=True):
            assert wide.dtype == np.float64
            np.testing.assert_allclose(wide, narrow, rtol=1e-5, atol=1e-6)


def test_loop_without_iterations():
    _assert_equal(lambda x: tf.while_loop(lambda i, y: i < 0, lambda i, y: (i + 1, tf.exp(y)), (0, x))[1], VECTORS)


def test_loop_whose_length_depends_on_data_stays_a_while_loop():
    def halve(x):
        return tf.while_loop(lambda y: tf.reduce_sum(tf.abs(y)) > 1.0, lambda y: (y / 2,), (x,))[0]

    library = _assert_equal(halve, VECTORS, gradient=False)
    converted, library = _convert(halve, VECTORS)
    assert "while" in _primitives(converted, VECTORS)
    assert library.dynamic_loops == {"while"}


def test_loop_variable_of_changing_shape():
    def grow(x):
        shapes = (tf.TensorShape([]), tf.TensorShape([None, 4]))
        return tf.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, tf.concat([y, y], 0)), (0, x), shapes)[1]

    converted, _ = _convert(grow, VECTORS)
    with pytest.raises(ExportError, match=r"loop variable changes its shape from \(3, 4\) to \(6, 4\)"):
        converted(VECTORS)


def test_array_of_dynamic_size():
    def collect(x):
        array = tf.TensorArray(tf.float32, size=0, dynamic_size=True)
        for i in tf.range(3):
            array = array.write(i, x)
        return array.stack()

    converted, _ = _convert(collect, VECTORS)
    with pytest.raises(ExportError, match="TensorArray has a dynamic size; give it a size"):
        converted(VECTORS)


@pytest.mark.parametrize("sign", [1, -1])
def test_branch_on_data(sign):
    def branch(x):
        return tf.cond(
            tf.reduce_sum(x) > 0, lambda: (tf.sin(x), tf.constant(2.0)), lambda: (tf.cos(x), tf.constant(3.0))
        )

    x = sign * np.abs(VECTORS)
    _assert_equal(branch, x)
    with enable_x64():
        converted, _ = _convert(branch, x)
        assert converted(x.astype(np.float64))[0].dtype == np.float64


@pytest.mark.parametrize("index", [-1, 0, 1, 2, 7])
def test_switch(index):
    def switch(i, x):
        return tf.switch_case(i, [lambda: x, lambda: x * x, lambda: tf.exp(x)])

    _assert_equal(switch, np.int32(index), VECTORS)


def test_branch_that_is_known_leaves_no_other():
    converted, _ = _convert(lambda x: tf.cond(tf.shape(x)[1] > 3, lambda: tf.sin(x), lambda: tf.cos(x)), VECTORS)
    primitives = _primitives(converted, VECTORS)
    assert "sin" in primitives
    assert not primitives & {"cos", "cond"}


# ------------------------------------------------------------------------------------------------- the interpreter


def test_shape_arithmetic_is_done_when_tracing():
    def flatten(x):
        shape = tf.shape(x)
        rows = tf.maximum(shape[0] // 2, 1)
        return tf.reshape(x, tf.stack([rows, tf.reduce_prod(shape) // rows]))

    converted, _ = _convert(flatten, VECTORS)
    assert _primitives(converted, VECTORS) == {"reshape"}


def test_error_names_the_operation_and_its_layer():
    def function(x):
        with tf.name_scope("encoder"), tf.name_scope("resize"):
            return tf.image.resize(x, [2, 2], "gaussian")

    converted, _ = _convert(function, IMAGE)
    with pytest.raises(
        ExportError, match=r"The ScaleAndTranslate operation of layer 'encoder/resize.*kernel 'gaussian'"
    ):
        converted(IMAGE)


def test_what_is_not_used_is_not_converted():
    def function(x):
        tf.print("unused", tf.strings.as_string(x))
        tf.debugging.assert_positive(tf.shape(x))
        return x + 1.0

    _assert_equal(function, VECTORS)


def _graph(function, *specs):
    concrete = tf.function(function).get_concrete_function(*specs)
    return GraphFunction(concrete.function_def, Library(concrete.graph.as_graph_def().library.function))


def test_operations_are_found_in_called_functions():
    def noisy(x):
        with tf.name_scope("noise"):
            return x + tf.random.uniform(tf.shape(x))

    @tf.function
    def inner(x):
        with tf.name_scope("hash"):
            return tf.strings.to_hash_bucket_fast(tf.strings.as_string(x), 3)

    def outer(x):
        with tf.name_scope("head"):
            return inner(tf.cond(tf.reduce_sum(x) > 0, lambda: noisy(x), lambda: x))

    graph = _graph(outer, tf.TensorSpec([None, 2]))
    assert set(unsupported_operations(graph)) == {"AsString", "StringToHashBucketFast"}
    (layer,) = unsupported_operations(graph)["AsString"]
    assert layer.startswith("head/")
    assert layer.endswith("/hash")
    (noise,) = random_operations(graph)["RandomUniform"]
    assert noise.startswith("head/cond")
    assert "noise" in noise


def test_a_supported_graph_has_nothing_to_report():
    graph = _graph(lambda x: tf.nn.conv2d(x, x[:, :1, :1], 1, "SAME"), tf.TensorSpec([2, 5, 6, 4]))
    assert not unsupported_operations(graph)
    assert not random_operations(graph)

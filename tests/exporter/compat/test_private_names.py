"""What is not public of JAX, TensorFlow, Keras and tf2jax is used in the modules below, and nowhere else."""

import ast
import importlib
import pathlib

import pytest

import exporter

ROOT = pathlib.Path(exporter.__file__).parents[1]

# Each module with the names and attributes that it has for all others. A new one is a decision: is there a public name?
NAMES = {
    "exporter/compat/jax_names.py": {
        "jax.api_util.shaped_abstractify",
        "jax.core.Tracer",
        "jax.core.eval_context",
        "jax.experimental.enable_x64",
        "jax.experimental.xla_metadata.set_xla_metadata",
        "jax.extend.core.ClosedJaxpr",
        "jax.extend.core.Jaxpr",
        "jax.extend.core.JaxprEqn",
        "jax.extend.core.Literal",
        "jax.extend.core.Primitive",
        "jax.extend.core.Var",
        "jax.extend.core.jaxpr_as_fun",
        "jax.extend.mlir.deserialize_portable_artifact",
        "jax.extend.mlir.serialize_portable_artifact",
        "jax.interpreters.batching",
        "jax.interpreters.mlir.make_ir_context",
        "jax.interpreters.partial_eval.dce_jaxpr",
        "jax.interpreters.partial_eval.dce_jaxpr_consts",
    },
    "exporter/compat/jax2tf_names.py": {"jax.experimental.jax2tf.convert"},
    "exporter/compat/tensorflow_names.py": {
        "._list_all_concrete_functions",
        "._set_attr",
        "tensorflow.__internal__.tracking.AutoTrackable",
        "tensorflow.core.framework.function_pb2",
        "tensorflow.core.framework.types_pb2",
        "tensorflow.python.framework.op_def_registry",
        "tensorflow.python.framework.ops.gradient_registry",
    },
    "exporter/compat/keras_names.py": {
        "._build_shapes_dict",
        "._flatten_layers",
        "._functional",
        "._inputs_struct",
        "._keras_history",
        "._layers",
        "._non_trainable_variables",
        "._trainable_variables",
        "tf_keras.src.saving.serialization_lib.SafeModeScope",
    },
    "exporter/compat/tf2jax_names.py": {
        "tf2jax._src.numpy_compat",
        "tf2jax._src.ops._HigherOrderFunction",
        "tf2jax._src.ops.get_parser",
        "tf2jax._src.ops.get_unsupported_operations",
    },
    "serving/shared/tensorflow_names.py": {
        "._make_callable_from_options",
        "tensorflow.core.framework.tensor_pb2",
        "tensorflow.core.framework.types_pb2",
        "tensorflow.core.protobuf.config_pb2.CallableOptions",
        "tensorflow.core.protobuf.meta_graph_pb2",
        "tensorflow.core.protobuf.saved_model_pb2",
        "tensorflow.python.framework.ops.dismantle_graph",
        "tensorflow.python.saved_model.loader_impl.SavedModelLoader",
    },
}
BRIDGE = "exporter/compat/neural_tangents_names.py"  # gives neural-tangents whole modules, so has no list

PACKAGES = ("jax", "jaxlib", "tensorflow", "keras", "tf_keras", "tf2jax", "neural_tangents")
NOT_PUBLIC = (
    *(f"jax.{name}" for name in ("api_util", "core", "experimental", "extend", "interpreters", "lib", "util")),
    *(f"tensorflow.{name}" for name in ("compiler", "core", "python", "tsl")),
    *("jaxlib", "keras.src", "tf_keras.src", "tf2jax"),
)
PUBLIC_ATTRIBUTES = {"_exit", "_fields", "_replace", "_asdict"}  # of os, and of named tuples


def is_private(dotted):
    """Whether a name with its module is not public, as far as its spelling tells."""
    parts = dotted.split(".")
    if parts[0] not in PACKAGES:
        return False
    listed = any(f"{dotted}.".startswith(f"{name}.") for name in NOT_PUBLIC)
    return listed or any(part.startswith("_") and part != "__version__" for part in parts[1:])


def private_names(source):
    """The names that are not public in a module's source, and (as ".name") attributes of others' objects."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    aliases, found = {}, set()
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                found.add(alias.name)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                found.add(f"{node.module}.{alias.name}")
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) and is_self(n.value)}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            dotted = dotted_name(node, aliases)
            if dotted:
                found.add(dotted)
            elif is_protected(node.attr) and not is_self(node.value) and node.attr not in own:
                found.add(f".{node.attr}")
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            name = getattr(node.args[1], "value", "")
            found |= {f".{name}"} if isinstance(name, str) and is_protected(name) else set()
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            name = getattr(node.args[0], "value", "")
            found |= {name} if isinstance(name, str) else set()
    private = {name for name in found if name.startswith(".") or is_private(name)}
    return {name for name in private if not any(other.startswith(f"{name}.") for other in private)}


def dotted_name(node, aliases):
    """What an attribute of an imported name is called in full; None of other objects."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id)
    above = dotted_name(node.value, aliases) if isinstance(node, ast.Attribute) else None
    return above and f"{above}.{node.attr}"


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def is_protected(name):
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC_ATTRIBUTES


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from jax._src import core", {"jax._src.core"}),
        ("import jax\njax.core.Tracer", {"jax.core.Tracer"}),
        ("import jax.experimental\nwith jax.experimental.enable_x64(): pass", {"jax.experimental.enable_x64"}),
        ("from jax import extend as e\ne.core.Var", {"jax.extend.core.Var"}),
        ("import tensorflow as tf\ntf.__internal__.tracking", {"tensorflow.__internal__.tracking"}),
        ("from tensorflow.python.framework import ops", {"tensorflow.python.framework.ops"}),
        ("import importlib\nimportlib.import_module('keras.src.backend')", {"keras.src.backend"}),
        ("def f(model): return model._functional", {"._functional"}),
        ("def f(model): return getattr(model, '_functional', None)", {"._functional"}),
        ("import jax\nimport jax.numpy as jnp\njax.jit(jnp.sum), jax.lax.add, jax.__version__", set()),
        ("class A:\n  def __init__(self): self._a = 1\n  def f(self, other): return other._a + self._a", set()),
        ("def f(pair, **k): return pair._replace(**k)", set()),
    ],
)
def test_private_names_are_found(source, expected):
    assert private_names(source) == expected


def test_no_module_but_these_uses_what_is_not_public():
    files = [p for part in ("exporter", "serving", "benchmarks", "examples") for p in (ROOT / part).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): private_names(path.read_text()) for path in files}
    elsewhere = {path: names for path, names in found.items() if names and path not in {*NAMES, BRIDGE}}
    assert not elsewhere
    assert {path: found[path] for path in NAMES} == NAMES


@pytest.mark.parametrize("path", NAMES)
def test_all_are_there_in_the_installed_versions(path):
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    public = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    assert public
    assert all(hasattr(module, name) for name in public)

import subprocess
import sys
import textwrap

import jax
import pytest


def run_python(code):
    """Runs code in a new process with warnings as errors, and returns what it printed."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_leaves_jax_and_scipy_untouched():
    run_python("""
        import builtins, sys, threading, types, warnings
        import jax, jax.export, jax.example_libraries.stax, jax.flatten_util
        import jax.extend, jax.interpreters.ad, jax.scipy, numpy, scipy.linalg, scipy.special
        import exporter.compat.neural_tangents_names as bridge

        def names(module):
            return {k: id(v) for k, v in vars(module).items() if k not in ("__warningregistry__", "__builtins__")}

        def snapshot():
            modules = {n: m for n, m in sys.modules.items() if n.split(".")[0] in ("jax", "scipy", "numpy")}
            machinery = (list(sys.meta_path), list(sys.path_hooks), list(warnings.filters), builtins.__import__)
            return {n: names(m) for n, m in modules.items()}, machinery

        modules, machinery = snapshot()
        nt = bridge.import_neural_tangents()
        modules_after, machinery_after = snapshot()
        assert machinery == machinery_after
        assert not hasattr(jax.core, "Jaxpr") and not hasattr(sys.modules.get("jax.util"), "safe_map")
        for name, before in modules.items():
            added = modules_after[name].keys() - before.keys()
            assert not {n for n in added if f"{name}.{n}" not in modules_after}, (name, added)
            assert before == {n: i for n, i in modules_after[name].items() if n in before}, name
        assert all(m.__spec__ is not None for n, m in sys.modules.items() if n.startswith("neural_tangents"))
        assert not any(isinstance(m, bridge._View) for m in sys.modules.values())
        assert "tensorflow" not in sys.modules
    """)


def test_plain_import_works_afterwards_with_all_its_parts():
    out = run_python("""
        import sys, warnings
        try:
            import neural_tangents
        except ImportError as error:
            print("before:", "jax.core" in str(error))
        from exporter.compat.neural_tangents_names import import_neural_tangents
        import_neural_tangents()
        import neural_tangents as nt
        import neural_tangents.stax
        from neural_tangents import predict, stax
        assert nt is sys.modules["neural_tangents"] and stax is nt.stax and predict is nt.predict
        try:
            nt.unknown
        except AttributeError as error:
            print(error)

        import tensorflow as tf

        class Scale(tf.Module):
            input_shape = (None, 2)
            def __init__(self):
                self.w = tf.Variable([[2.0], [3.0]])
            def __call__(self, x):
                return x @ self.w

        f = Scale()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ntk_fn = nt.experimental.empirical_ntk_fn_tf(f)
            _, params = nt.experimental.get_apply_fn_and_params(f)
            print(ntk_fn(tf.constant([[1.0, 2.0]]), None, params).numpy())
        import neural_tangents.experimental
        assert nt.experimental is sys.modules["neural_tangents.experimental"]
    """)
    assert out.splitlines() == ["before: True", "module 'neural_tangents' has no attribute 'unknown'", "[[5.]]"]


def test_threads_that_import_at_the_same_time_get_the_same_module():
    run_python("""
        from concurrent.futures import ThreadPoolExecutor
        from exporter.compat.neural_tangents_names import import_neural_tangents
        with ThreadPoolExecutor(8) as pool:
            modules = set(pool.map(lambda _: import_neural_tangents(), range(8)))
        assert len(modules) == 1
        assert callable(modules.pop().empirical_ntk_fn)
    """)


MISSING = {
    "not installed": ("sys.modules['neural_tangents'] = None", "ModuleNotFoundError"),
    "a JAX that has dropped a name": ("import jax.interpreters.ad as ad; del ad.UndefinedPrimal", "UndefinedPrimal"),
}


@pytest.mark.parametrize("case", MISSING)
def test_without_it_everything_else_works(case):
    statement, cause = MISSING[case]
    out = run_python(f"""
        import sys, warnings
        {statement}
        warnings.simplefilter("ignore")
        import numpy as np, tensorflow as tf
        from exporter import ExportError, empirical_ntk_fn_tf, get_apply_fn_and_params
        from exporter.ntk.kernel import kernel_fn

        class Scale(tf.Module):
            input_shape = (None, 2)
            def __init__(self):
                super().__init__()
                self.w = tf.Variable([[2.0], [3.0]])
            def __call__(self, x):
                return x @ self.w

        x = np.float32([[1.0, 2.0]])
        f, (apply_fn, params) = Scale(), get_apply_fn_and_params(Scale())
        for implementation in (0, "layerwise"):
            print(empirical_ntk_fn_tf(f, vmap_axes=0, implementation=implementation)(x, None, params).numpy())

        def kernel(implementation):
            of = lambda params, frozen, x: apply_fn(params, *x)
            settings = dict(implementation=implementation, trace_axes=(-1,), diagonal_axes=())
            return kernel_fn(of, **settings)(params, {{}}, (x,), (x,))

        print(kernel("layerwise"))
        for refused in (lambda: empirical_ntk_fn_tf(f), lambda: kernel("structured_derivatives")):
            try:
                refused()
            except ExportError as error:
                print(error)
    """)
    *kernels, refused, refused_too = out.splitlines()
    assert kernels == ["[[5.]]"] * 3
    for message in (refused, refused_too):
        assert message.startswith("Expected neural-tangents 0.6.5 and a JAX that it runs with")
        assert f"received JAX {jax.__version__} and " in message
        assert cause in message
        assert message.endswith("or choose the implementation 'layerwise', which does without.")

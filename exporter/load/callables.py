"""Models from Python code: `package.module:callable`."""

import functools
import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable
from typing import Any

from exporter.errors import ExportError
from serving.shared.suggest import did_you_mean

_RETURNS = "a Keras model, a tf.Module, a tf.function, or a pair (tf.function, parameters)"


def locate_callable(module_name: str, attribute: str) -> Callable[[], object]:
    """Checks that the module's package exists; returns the function that imports the module and calls the callable.

    The working directory is put in front of the path that modules are imported from, as `python -m` does.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    package = module_name.partition(".")[0]
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise ExportError(_no_such_module(module_name, package))
    return functools.partial(_load, module_name, attribute)


def _load(module_name: str, attribute: str) -> object:
    spec = f"{module_name}:{attribute}"
    target = _attribute(_import(module_name), attribute)
    if is_model(target):
        return target
    if not callable(target):
        raise ExportError(f"{spec} is not callable: expected a function that returns {_RETURNS}, got {target!r:.80}")
    try:
        inspect.signature(target).bind()
    except TypeError as error:
        raise ExportError(f"{spec} cannot be called without arguments: {error}; give its arguments defaults") from error
    except ValueError:  # A callable from C has no signature to check.
        pass
    try:
        model = target()
    except (Exception, SystemExit) as error:
        raise ExportError(f"{spec} failed: {_text(error)}{_place(error)}") from error
    if not is_model(model):
        raise ExportError(f"{spec} returned {_describe(model)}: expected {_RETURNS}")
    return model


def is_model(value: Any) -> bool:
    """True for what can be exported: see `exporter.load.load_model`."""
    import keras
    import tensorflow as tf
    import tf_keras

    from exporter.compat.tensorflow_names import AutoTrackable

    function = tf.types.experimental.Callable
    if isinstance(value, tuple):
        return len(value) == 2 and isinstance(value[0], function)
    if isinstance(value, AutoTrackable):  # A tf.Module, or from tf.saved_model.load.
        return True
    return isinstance(value, keras.layers.Layer | tf_keras.layers.Layer | function)


def _import(module_name: str) -> types.ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ExportError(_no_such_module(module_name, error.name)) from error
        raise ExportError(f"importing {module_name} failed: {_text(error)}{_place(error)}") from error
    except (Exception, SystemExit) as error:
        raise ExportError(f"importing {module_name} failed: {_text(error)}{_place(error)}") from error


def _attribute(module: types.ModuleType, attribute: str) -> Any:
    value: Any = module
    for name in attribute.split("."):
        if not hasattr(value, name):
            public = [known for known in dir(value) if not known.startswith("_")]
            owner = getattr(value, "__name__", attribute)
            raise ExportError(f"{owner} has no attribute {name!r}{did_you_mean(name, public)}")
        value = getattr(value, name)
    return value


def _no_such_module(module_name: str, missing: str) -> str:
    """The message for a module of which the package or module `missing` does not exist."""
    package, _, name = missing.rpartition(".")
    places = list(getattr(sys.modules.get(package), "__path__", ())) if package else [os.getcwd()]
    files = [entry for place in places if os.path.isdir(place) for entry in pathlib.Path(place).iterdir()]
    modules = [entry.stem for entry in files if entry.suffix == ".py" or (entry.is_dir() and entry.suffix == "")]
    searched = "" if package else f" in {os.getcwd()!r} or among the installed packages"
    part = "" if missing == module_name else f" (of {module_name})"
    return f"there is no module {missing!r}{part}{searched}{did_you_mean(name, modules)}"


def _describe(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}" if value is not None else "None"


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _place(error: BaseException) -> str:
    """Where in the user's code an exception came from: the last line that is in no installed package, nor here."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed = (*libraries, os.path.dirname(os.path.abspath(__file__)))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.isfile(frame.filename) and not frame.filename.startswith(installed)
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""

"""Tells by a name what kind of model it is of, and finds it."""

import functools
import os
import pathlib
import re
from collections.abc import Callable

from exporter.errors import ExportError
from exporter.load.callables import locate_callable
from exporter.load.keras_files import locate_h5, locate_keras_archive
from exporter.load.saved_models import load_saved_model
from serving.shared.suggest import did_you_mean

_KINDS = "a .keras file, an .h5 file, a SavedModel directory (DIR or DIR:function), or package.module:callable"
_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"


def load_model(spec: str, *, safe_mode: bool = True) -> object:
    """Loads a model.

    Args:
      spec: a `.keras` or `.h5` file, a SavedModel directory `DIR` or a function of it `DIR:function`, or
        `package.module:callable`, where the callable takes no arguments.
      safe_mode: whether to refuse a Keras file that holds Python code of its own (a Lambda layer).

    Returns:
      A Keras 3 or tf_keras model, a `tf.Module`, an object from `tf.saved_model.load`, a `tf.function`, or a pair of
      a `tf.function` and its parameters.

    Raises:
      ExportError: the model cannot be loaded.
    """
    return locate_model(spec, safe_mode=safe_mode)()


def locate_model(spec: str, *, safe_mode: bool = True) -> Callable[[], object]:
    """Finds and checks a model as far as that needs no TensorFlow; returns the function that loads it.

    Raises:
      ExportError: there is no such model, or it is known already that it cannot be loaded.
    """
    path = pathlib.Path(spec).expanduser()
    if path.is_file():
        return _locate_file(path, safe_mode)
    if path.is_dir():
        return _locate_saved_model(path, None)
    left, _, right = spec.rpartition(":")
    if left and pathlib.Path(left).expanduser().is_dir():
        return _locate_saved_model(pathlib.Path(left).expanduser(), right)
    if re.fullmatch(f"{_DOTTED}:{_DOTTED}", spec) and not left.endswith((".keras", ".h5", ".hdf5")):
        return locate_callable(left, right)
    raise ExportError(_no_such_model(spec, path))


def _locate_file(path: pathlib.Path, safe_mode: bool) -> Callable[[], object]:
    if not os.access(path, os.R_OK):
        raise ExportError(f"cannot read the model {str(path)!r}: no permission; make the file readable for this user")
    if path.suffix == ".keras":
        return locate_keras_archive(path, safe_mode)
    if path.suffix in (".h5", ".hdf5"):
        return locate_h5(path, safe_mode)
    cure = (
        f"name its directory, {str(path.parent)!r}"
        if path.name == "saved_model.pb"
        else "save the model as one of these"
    )
    raise ExportError(f"cannot load the file {str(path)!r}: expected {_KINDS}; {cure}")


def _locate_saved_model(path: pathlib.Path, function: str | None) -> Callable[[], object]:
    if not (path / "saved_model.pb").is_file():
        versions = sorted((entry for entry in path.iterdir() if (entry / "saved_model.pb").is_file()), key=_version)
        cure = f"; did you mean {str(versions[-1])!r}?" if versions else f"; a model is {_KINDS}"
        raise ExportError(f"the directory {str(path)!r} is no SavedModel: expected a file saved_model.pb in it{cure}")
    return functools.partial(load_saved_model, path, function)


def _version(path: pathlib.Path) -> tuple[int, str]:
    return (int(path.name) if path.name.isdecimal() else -1, path.name)


def _no_such_model(spec: str, path: pathlib.Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"there is no model {spec!r}: the directory {str(parent)!r} does not exist; expected {_KINDS}"
    hint = did_you_mean(spec, (str(parent / entry.name) for entry in parent.iterdir()))
    return f"there is no model {spec!r}{hint or f'; expected {_KINDS}'}"

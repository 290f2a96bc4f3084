"""Models from Keras files: `.keras` archives and HDF5, written by Keras 3 or by Keras 2 (tf_keras)."""

import functools
import json
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from exporter.errors import ExportError

_CUSTOM_OBJECT = re.compile(
    r"Could not locate (?:class|function) '(?P<a>[^']+)'"
    r"|Unknown [a-z ]+: '(?P<b>[^']+)'"
    r"|Cannot deserialize object of type `(?P<c>[^`]+)`"
)
_LONGEST_TEXT = 300  # characters of an error of Keras, which can hold the whole configuration of the model


def locate_keras_archive(path: pathlib.Path, safe_mode: bool) -> Callable[[], object]:
    """Checks a `.keras` archive; returns the function that loads it.

    Raises:
      ExportError: the file is no Keras archive, is damaged, or holds Python code in safe mode.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            missing = {"config.json", "metadata.json"} - set(archive.namelist())
            if missing:
                raise ExportError(
                    f"{str(path)!r} is a zip file, but no Keras archive: it has no {' and no '.join(sorted(missing))}; "
                    "save the model with model.save('NAME.keras')"
                )
            config = json.loads(archive.read("config.json"))
            version = _version(json.loads(archive.read("metadata.json"))["keras_version"])
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{str(path)!r} is truncated, damaged, or no Keras archive ({error}); copy or save the model again"
        ) from error
    if safe_mode:
        _refuse_code(path, config)
    return functools.partial(_load, path, version, safe_mode)


def locate_h5(path: pathlib.Path, safe_mode: bool) -> Callable[[], object]:
    """Checks an HDF5 file; returns the function that loads it.

    Raises:
      ExportError: the file is no HDF5 file, is damaged, holds weights only, or holds Python code in safe mode.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            config_text = file.attrs.get("model_config")
            version = _version(file.attrs.get("keras_version", "2"))
        config = None if config_text is None else json.loads(config_text)
    except (OSError, ValueError, KeyError) as error:
        raise ExportError(
            f"{str(path)!r} is truncated, damaged, or no HDF5 file ({error}); copy or save the model again"
        ) from error
    if config is None:
        raise ExportError(
            f"{str(path)!r} holds weights only: expected a whole model; save it with model.save('NAME.keras'), or name "
            "a callable (--model=package.module:callable) that builds the model and loads these weights"
        )
    if safe_mode:
        _refuse_code(path, config)
    return functools.partial(_load, path, version, safe_mode)


def _version(recorded: str | bytes) -> str:
    """The version of Keras that is recorded in a file; ValueError if it does not begin with a number."""
    version = recorded.decode() if isinstance(recorded, bytes) else str(recorded)
    _major(version)
    return version


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _load(path: pathlib.Path, version: str, safe_mode: bool) -> object:
    """Loads with the Keras that wrote the file; the compiled loss and optimizer are left out."""
    load = _load_with_keras_3 if _major(version) >= 3 else _load_with_keras_2
    try:
        return load(path, safe_mode)
    except Exception as error:
        raise ExportError(_explain(path, version, error)) from error


def _load_with_keras_3(path: pathlib.Path, safe_mode: bool) -> object:
    import keras

    return keras.saving.load_model(path, compile=False, safe_mode=safe_mode)


def _load_with_keras_2(path: pathlib.Path, safe_mode: bool) -> object:
    import tf_keras
    from tf_keras.src.saving.serialization_lib import SafeModeScope

    with SafeModeScope(safe_mode):  # tf_keras has an argument for archives, but none for HDF5.
        return tf_keras.saving.load_model(path, compile=False, safe_mode=safe_mode)


def _refuse_code(path: pathlib.Path, config: object) -> None:
    layers = list(dict.fromkeys(_layers_with_code(config, "model")))
    if layers:
        names = ", ".join(repr(layer) for layer in layers)
        raise ExportError(
            f"{str(path)!r} holds Python code in the Lambda layer{'s' if len(layers) > 1 else ''} {names}, which safe "
            "mode does not run; if you trust the file, add --nosafe_mode, otherwise put a registered layer in its place"
        )


def _layers_with_code(config: Any, layer: str) -> Iterator[str]:
    """Yields the name of the nearest named object around each piece of Python byte code in a model's configuration.

    Keras 3 marks it by the class name `__lambda__`, Keras 2 by a key such as `function_type` with the value "lambda".
    """
    if isinstance(config, list):
        for entry in config:
            yield from _layers_with_code(entry, layer)
    elif isinstance(config, dict):
        layer = config["name"] if isinstance(config.get("name"), str) else layer
        if config.get("class_name") == "__lambda__":
            yield layer
        for key, value in config.items():
            if key.endswith("_type") and value == "lambda":
                yield layer
            yield from _layers_with_code(value, layer)


def _explain(path: pathlib.Path, version: str, error: Exception) -> str:
    text = str(error)
    custom = _CUSTOM_OBJECT.search(text)
    if custom:
        name = next(group for group in custom.groups() if group)
        if name == "function":  # Keras names the kind; the function's own name is in the configuration.
            named = re.search(r"'class_name': 'function', 'config': '([^']+)'", text)
            name = named[1] if named else name
        return (
            f"{str(path)!r} needs the custom object {name!r}, which is not known here; name a callable "
            "(--model=package.module:callable) that defines it with @keras.saving.register_keras_serializable() and "
            "returns the loaded model"
        )
    cause = text.rpartition("Exception encountered: ")[2].strip().partition("\n")[0] or type(error).__name__
    cause = cause if len(cause) <= _LONGEST_TEXT else cause[:_LONGEST_TEXT] + "…"
    return (
        f"{str(path)!r}, written by Keras {version}, cannot be loaded: {type(error).__name__}: {cause}; the file may "
        "be damaged, or need another version of Keras"
    )

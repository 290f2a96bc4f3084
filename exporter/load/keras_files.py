"""Models from Keras files: `.keras` archives and HDF5, written by Keras 3 or by Keras 2 (tf_keras)."""

import dataclasses
import json
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from exporter.compat.keras_names import keras2_safe_mode
from exporter.errors import ExportError

_UNKNOWN_OBJECT = re.compile(
    r"Could not locate (?:class|function) '(?P<keras_3>[^']+)'"
    r"|Unknown [a-z ]+ '\{[^}]*'config': '(?P<function_of_archive>[^']+)'"
    r"|(?s:'config': '(?P<function_of_h5>[^']+)'.*)Unknown [a-z ]+: 'function'"
    r"|Unknown [a-z ]+: '(?P<h5>[^']+)'"
    r"|Cannot deserialize object of type `(?P<keras_2>[^`]+)`"
)
_LONGEST_CAUSE = 300  # characters of a text of Keras, which can hold the whole configuration of the model


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
            version = json.loads(archive.read("metadata.json"))["keras_version"]
        file = _KerasFile(path, version, _major(version), config, safe_mode)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(_damaged(path, "Keras archive", error)) from error
    file.refuse_code()
    return file.load


def locate_h5(path: pathlib.Path, safe_mode: bool) -> Callable[[], object]:
    """Checks an HDF5 file; returns the function that loads it.

    Raises:
      ExportError: the file is no HDF5 file, is damaged, holds weights only, or holds Python code in safe mode.
    """
    import h5py

    try:
        with h5py.File(path, "r") as archive:
            attributes = dict(archive.attrs)
        config = json.loads(attributes.get("model_config", "null"))
        version = attributes.get("keras_version", "2")
        version = version.decode() if isinstance(version, bytes) else version
        file = _KerasFile(path, version, _major(version), config, safe_mode)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ExportError(_damaged(path, "HDF5 file", error)) from error
    if config is None:
        raise ExportError(
            f"{str(path)!r} holds weights only: expected a whole model; save it with model.save('NAME.keras'), or name "
            "a callable (--model=package.module:callable) that builds the model and loads these weights"
        )
    file.refuse_code()
    return file.load


@dataclasses.dataclass(frozen=True)
class _KerasFile:
    """A file that looks right: the version of Keras that wrote it, and the configuration of its model."""

    path: pathlib.Path
    version: str
    major: int
    config: Any
    safe_mode: bool

    def refuse_code(self) -> None:
        """Raises in safe mode if the configuration holds Python code."""
        layers = list(dict.fromkeys(_layers_with_code(self.config, "model"))) if self.safe_mode else []
        if layers:
            raise ExportError(
                f"{str(self.path)!r} holds Python code in the Lambda layer{'s' if len(layers) > 1 else ''} "
                f"{', '.join(map(repr, layers))}, which safe mode does not run; if you trust the file, add "
                "--nosafe_mode, otherwise put a registered layer in its place"
            )

    def load(self) -> object:
        """Loads with the Keras that wrote the file; the compiled loss and optimizer are left out."""
        try:
            return self._load_with_keras_3() if self.major >= 3 else self._load_with_keras_2()
        except ExportError:
            raise
        except Exception as error:  # a damaged or foreign file may make Keras raise anything
            raise ExportError(self._explain(error)) from error

    def _load_with_keras_3(self) -> object:
        import keras

        return keras.saving.load_model(self.path, compile=False, safe_mode=self.safe_mode)

    def _load_with_keras_2(self) -> object:
        import tf_keras

        if self.safe_mode:  # tf_keras would import whatever module the file names; Keras 3 does not.
            for registered_name, name in _foreign_classes(self.config):
                if tf_keras.saving.get_registered_object(registered_name) is None:
                    raise ExportError(self._needs(name))
        with keras2_safe_mode(self.safe_mode):  # `safe_mode` itself is for archives only.
            return tf_keras.saving.load_model(self.path, compile=False, safe_mode=self.safe_mode)

    def _explain(self, error: Exception) -> str:
        text = str(error)
        unknown = _UNKNOWN_OBJECT.search(text)
        if unknown:
            return self._needs(next(name for name in unknown.groups() if name))
        cause = text.rpartition("Exception encountered: ")[2].strip().partition("\n")[0][:_LONGEST_CAUSE]
        return (
            f"{str(self.path)!r}, written by Keras {self.version}, cannot be loaded: {type(error).__name__}: {cause}; "
            "the file may be damaged, or need another version of Keras"
        )

    def _needs(self, name: str) -> str:
        return (
            f"{str(self.path)!r} needs the custom object {name!r}, which is not known here; name a callable "
            "(--model=package.module:callable) that defines it with @keras.saving.register_keras_serializable() and "
            "returns the loaded model"
        )


def _major(version: str) -> int:
    """The first number of a version; ValueError if it has none."""
    return int(version.partition(".")[0])


def _damaged(path: pathlib.Path, kind: str, error: Exception) -> str:
    cause = str(error).partition("\n")[0][:_LONGEST_CAUSE]
    return f"{str(path)!r} is truncated, damaged, or no {kind} ({cause}); copy or save the model again"


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


def _foreign_classes(config: Any) -> Iterator[tuple[str, str]]:
    """Yields the registered name and the name of each object in a configuration that is of no module of Keras."""
    if isinstance(config, list):
        for entry in config:
            yield from _foreign_classes(entry)
    elif isinstance(config, dict):
        module, name = config.get("module"), config.get("class_name")
        if isinstance(module, str) and name and module.partition(".")[0] not in ("keras", "tf_keras", "builtins"):
            name = config["config"] if name == "function" else name
            yield str(config.get("registered_name")), str(name)
        for value in config.values():
            yield from _foreign_classes(value)

"""Models from SavedModel directories."""

import pathlib
from typing import Any

from exporter.errors import ExportError
from serving.shared.suggest import did_you_mean

_CALLED = ("__call__", "call", "serve", "serving_default")  # The functions that a model is called by, the first first.


def load_saved_model(path: pathlib.Path, function_name: str | None) -> Any:
    """Loads a SavedModel.

    Args:
      path: its directory.
      function_name: an attribute or a signature that is to be called; None: the object's own choice (`_CALLED`), or
        its only function.

    Returns:
      The object from `tf.saved_model.load`. Its attribute `__call__` is the function of that name, if there is one.

    Raises:
      ExportError: the directory cannot be loaded, or has no such function.
    """
    import tensorflow as tf

    try:
        root = tf.saved_model.load(str(path))
    except Exception as error:  # a damaged directory may make TensorFlow raise anything
        text = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"the SavedModel {str(path)!r} cannot be loaded: {type(error).__name__}: {text}; copy or save it again"
        ) from error
    functions = _functions(root)
    if function_name is None:
        if any(name in functions for name in _CALLED):
            return root
        if len(functions) != 1:
            raise ExportError(
                f"the SavedModel {str(path)!r} cannot be called as it is: name one of its functions as DIR:function; "
                f"it has {_listed(functions)}"
            )
        (function_name,) = functions
    if function_name not in functions:
        hint = did_you_mean(function_name, functions) or f"; it has {_listed(functions)}"
        raise ExportError(f"the SavedModel {str(path)!r} has no function {function_name!r}{hint}")
    root.__call__ = functions[function_name]
    return root


def _functions(root: Any) -> dict[str, Any]:
    """Attributes and signatures that can be called, by name; an attribute hides a signature of the same name."""
    import tensorflow as tf

    names = [name for name in tf.train.TrackableView(root).children(root) if not name.startswith("_")]
    attributes = {name: getattr(root, name, None) for name in (*names, "__call__")}
    function = tf.types.experimental.Callable
    return {
        **getattr(root, "signatures", {}),
        **{name: attribute for name, attribute in attributes.items() if isinstance(attribute, function)},
    }


def _listed(functions: dict[str, Any]) -> str:
    return ", ".join(sorted(functions)) or "none"

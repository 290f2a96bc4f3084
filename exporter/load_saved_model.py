"""Models from SavedModel directories: the object itself, or one of its functions."""

import pathlib
from typing import Any

from exporter.errors import ExportError
from exporter.suggest import did_you_mean

_DEFAULTS = ("call", "serve", "serving_default")


def load_saved_model(path: pathlib.Path, function_name: str | None) -> object:
    """Loads a SavedModel.

    Returns:
      Without `function_name`: the loaded object, if it can be called; otherwise what its function `call`, `serve` or
      `serving_default`, or its only function, gives with `function_name`. With it: a `tf.Module` that calls the
      attribute or signature of that name, in inference mode if the function can tell, and has its variables.

    Raises:
      ExportError: the directory cannot be loaded, or has no such function.
    """
    import tensorflow as tf

    try:
        root = tf.saved_model.load(str(path))
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"the SavedModel {str(path)!r} cannot be loaded: {type(error).__name__}: {text}; copy or save it again"
        ) from error
    if function_name is None and callable(root):
        return root
    functions = _functions(root)
    listed = ", ".join(sorted(functions)) or "none"
    if function_name is None:
        names = [name for name in _DEFAULTS if name in functions] or list(functions)
        if len(names) != 1 and names[0] not in _DEFAULTS:
            raise ExportError(
                f"the SavedModel {str(path)!r} cannot be called as it is: name one of its functions as DIR:function; "
                f"it has {listed}"
            )
        function_name = names[0]
    if function_name not in functions:
        hint = did_you_mean(function_name, functions) or f"; it has {listed}"
        raise ExportError(f"the SavedModel {str(path)!r} has no function {function_name!r}{hint}")
    return _as_module(root, functions[function_name], function_name)


def _functions(root: Any) -> dict[str, Any]:
    """Attributes and signatures that can be called, by name; an attribute hides a signature of the same name."""
    import tensorflow as tf

    children = tf.train.TrackableView(root).children(root)
    attributes = {
        name: getattr(root, name, None) for name in children if not name.startswith("_") or name == "__call__"
    }
    functions = {name: child for name, child in attributes.items() if hasattr(child, "concrete_functions")}
    return {**getattr(root, "signatures", {}), **functions}


def _as_module(root: Any, function: Any, name: str) -> object:
    import tensorflow as tf

    concrete = _concrete(function)
    structure = concrete.structured_input_signature
    leaves = tf.nest.flatten(structure)
    specs = [leaf for leaf in leaves if isinstance(leaf, tf.TypeSpec)]

    class SavedModelFunction(tf.Module):
        """One function of a SavedModel. `root` owns the variables, which must live as long as the function."""

        def __init__(self) -> None:
            super().__init__(name="saved_model_function")
            self.root = root
            listed = getattr(root, "trainable_variables", None)  # Keras writes it; frozen layers are not in it.
            self._variables = tuple(concrete.variables)
            self._trainable = tuple(
                variable
                for variable in self._variables
                if (any(variable is other for other in listed) if isinstance(listed, list) else variable.trainable)
            )

        @property
        def variables(self) -> tuple[Any, ...]:
            """The variables that the function reads."""
            return self._variables

        @property
        def trainable_variables(self) -> tuple[Any, ...]:
            """Those of them that are trainable."""
            return self._trainable

        @tf.function(input_signature=specs, autograph=False)
        def __call__(self, *inputs: Any) -> Any:
            """Calls the function with the tensors in the places where it takes tensors."""
            remaining = iter(inputs)
            values = [next(remaining) if isinstance(leaf, tf.TypeSpec) else leaf for leaf in leaves]
            args, kwargs = tf.nest.pack_sequence_as(structure, values)
            return function(*args, **kwargs)

    return SavedModelFunction()


def _concrete(function: Any) -> Any:
    """The traced form of a function to use: not for training, and with the most open sizes."""
    import tensorflow as tf

    def rank(concrete: Any) -> tuple[bool, int]:
        leaves = tf.nest.flatten(concrete.structured_input_signature)
        shapes = [leaf.shape for leaf in leaves if isinstance(leaf, tf.TensorSpec)]
        open_sizes = sum(size is None for shape in shapes if shape.rank is not None for size in shape.as_list())
        return (not any(leaf is True for leaf in leaves), open_sizes)

    return max(getattr(function, "concrete_functions", [function]), key=rank)

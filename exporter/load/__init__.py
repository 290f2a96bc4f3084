"""The load stage: what `--model` names comes in, a Python object goes out: a Keras model, a module, a function.

It alone knows file formats, and Keras' safe mode. `locate_model` does all that can be done without TensorFlow, so that
a wrong name is reported at once.
"""

from exporter.load.locate import load_model, locate_model

__all__ = ["load_model", "locate_model"]

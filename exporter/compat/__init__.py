"""What is used of JAX, TensorFlow, Keras and tf2jax that is not their public API, or that has another name by version.

Each such name is imported here and nowhere else in `exporter`, with the reason for it, by functions and names that mean
the same in every version that `pyproject.toml` allows. So a new version is tried against this package first.

    jax_names                jaxprs, and what moved between JAX 0.7 and 0.10; imports no TensorFlow
    jax2tf_names             JAX programs as TensorFlow functions
    tensorflow_names         protocol messages, the attributes of operations
    keras_names              the layers in a layer, the inputs of a model
    tf2jax_names             converters of single operations
    neural_tangents_names    neural-tangents itself, whose last release is from 2023

What `serving` uses of TensorFlow is in `serving/shared/tensorflow_names.py`. `tests/exporter/compat` names them all,
and holds that there are none elsewhere.
"""

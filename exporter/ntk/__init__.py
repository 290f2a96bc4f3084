"""The kernel stage: a function of variables and inputs comes in, its neural tangent kernel goes out, in JAX alone.

`kernel` gives it by any of the implementations: our own engine `layerwise`, or neural-tangents' by its bridge;
`reference` is the float64 oracle, `measure` their times and memory. It alone knows how an NTK is computed; nothing here
imports TensorFlow.
"""

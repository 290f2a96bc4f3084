"""The product's own NTK engine: a sum over the places where a parameter meets data.

`analysis` finds these sites in the traced model, `rules` says what the Jacobian at each is made of, `contract` turns
that into kernels in the cheapest form, and `engine` puts them together.
"""

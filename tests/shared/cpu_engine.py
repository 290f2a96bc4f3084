"""The engine as CPUs compute it, on which tests run: traced for all platforms it takes twice the time."""

import functools

from exporter.ntk.layerwise import engine, projected

layerwise_kernel_fn = functools.partial(engine.layerwise_kernel_fn, platforms=("cpu",))
LayerwiseParts = functools.partial(engine.LayerwiseParts, platforms=("cpu",))
projected_features_fn = functools.partial(projected.projected_features_fn, platforms=("cpu",))

"""Kernels and features of whole data sets, tile by tile, on Dask into Zarr stores.

| module | in | out | alone knows |
| --- | --- | --- | --- |
| `main` | flags | a finished store, an exit code | the terminal |
| `export` | a base directory | the version that is asked, its manifest and digest | |
| `columns`, `records` | what `--data` names | arrays by name, of which any rows can be read | files, TFRecords |
| `data` | these, and a manifest | rows as the model takes them; digests | |
| `tiles` | a manifest, memory, workers | a grid of tiles | what a tile takes |
| `store` | a grid | a Zarr group: which tiles are there, and what they are of | Zarr |
| `jobs`, `model` | a tile | that tile in the store, on a worker | TensorFlow |
| `engine` | a job and its tiles | each done once, or a reason why not | Dask |

Needs the extra ntk-exporter[dataset]. Workers need neither JAX nor Keras.
"""

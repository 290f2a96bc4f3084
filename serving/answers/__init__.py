"""Answers of a reference set: an export's kernel and a data set in, a SavedModel that predicts with both out.

| module | in | out | alone knows |
| --- | --- | --- | --- |
| `main` | flags | a published version, its quality in a table | the terminal |
| `targets` | y, what the network gives | classes or numbers, logits, residuals | |
| `algebra` | coordinates, residuals | ridge by leave-one-out, weights, variances, in float64 | Gaussian processes |
| `reference` | export, data | what the algebra takes, by `exact` or `features` | kernels, stores |
| `sums` | a store of features | FᵀF, its eigenvectors and F V, by workers | |
| `exported` | a version, rows | an export's results | |
| `fit` | these | everything that answers are computed from | |
| `module` | that | the TensorFlow functions that are saved | TensorFlow's graph |
| `writing` | these | a verified version, its manifest and warmup | the files |
| `run` | options | the stages in their order | |
| `quality` | predictions, targets | what they are worth | |

Sources: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), equations 2.23 to 2.26, 5.10 to 5.12;
for networks Khan et al. 2019 (arXiv 1906.01930), Immer et al. 2021 (2008.08400), Daxberger et al. 2021 (2106.14806).
"""

"""Nearest training images by a few thousand numbers each, in NumPy and in FAISS, beside the exact kernel's.

    python -m examples.digits demo
    python -m examples.digits_neighbors demo

The first command trains a network on scikit-learn's digits and exports its kernel; the second asks the export.

The kernel of pairs is a product of Jacobians; the signature `ntk_features` is a random projection of each image's own,
so that similar images are found as in any vector database: the cosine of two images' features is about that of their
kernel, K12 / √(K11 K22). Shown is how many of the exact kernel's nearest are among those found (recall), and how well
regression on features does what regression on the kernel does.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import tensorflow as tf

from examples.digits_regression import newest

NEIGHBORS = 10
RIDGE = 1e-3  # added to the kernel's diagonal, relative to its mean


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Finds neighbours in three ways, and returns the figures that it shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", nargs="?", type=Path, default=Path("demo"), help="directory that examples.digits wrote")
    parser.add_argument("--examples", type=int, default=1297, help="training images to search")
    parser.add_argument("--queries", type=int, default=300, help="test images to search for")
    args = parser.parse_args(argv)

    with np.load(args.demo / "digits.npz") as data:
        x, y = data["x_train"][: args.examples], data["y_train"][: args.examples]
        queries, y_queries = data["x_test"][: args.queries], data["y_test"][: args.queries]
    kernels = tf.saved_model.load(str(newest(args.demo / "digits_ntk")))
    features, features_of_queries = (kernels.ntk_features(images).numpy() for images in (x, queries))
    exact, gram = kernels.ntk(queries, x).numpy(), kernels.ntk_symmetric(x).numpy()
    prior = kernels.ntk_diagonal(queries).numpy()
    dimensions = features.shape[1]
    scale = np.sqrt(np.outer(prior, np.diag(gram)))
    estimate = features_of_queries @ features.T

    right = nearest(exact / scale)
    in_numpy = nearest(normalized(features_of_queries) @ normalized(features).T)
    index = faiss.IndexFlatIP(dimensions)  # exact; others take less memory or time, and find a little less
    index.add(normalized(features))
    _, in_faiss = index.search(normalized(features_of_queries), NEIGHBORS)
    figures = {
        "error": float(np.sqrt(np.mean(((estimate - exact) / scale) ** 2))),
        "bound": float(np.sqrt(np.mean(1 + (exact / scale) ** 2) / dimensions)),
        "recall in NumPy": recall(in_numpy, right),
        "recall in FAISS": recall(in_faiss, right),
        "same digit, exact kernel": float(np.mean(y[right] == y_queries[:, None])),
        "same digit, features": float(np.mean(y[in_faiss] == y_queries[:, None])),
        "accuracy of regression, exact kernel": accuracy(gram, exact, y, y_queries),
        "accuracy of regression, features": accuracy(features @ features.T, estimate, y, y_queries),
    }
    print(f"\n{len(x)} images, {features.nbytes / len(x) / 1024:.0f} KiB of features each, {len(queries)} queries")
    print(
        f"error of an entry, of √(K11 K22)        {figures['error']:8.2%}   at most {figures['bound']:.2%} on average"
    )
    for name, value in list(figures.items())[2:]:
        print(f"{name.replace('recall', f'recall@{NEIGHBORS}'):<39} {value:8.1%}")
    sys.stdout.flush()
    return figures


def normalized(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def nearest(similarity: np.ndarray) -> np.ndarray:
    """The columns with the largest entries of each row (queries, neighbours), the largest first."""
    return np.argsort(-similarity, axis=1)[:, :NEIGHBORS]


def recall(found: np.ndarray, right: np.ndarray) -> float:
    """The share of the right ones that were found."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, right, strict=True)]))


def accuracy(gram: np.ndarray, cross: np.ndarray, y: np.ndarray, y_test: np.ndarray) -> float:
    """Of kernel regression on one-hot targets, from kernels (n, n) and (queries, n)."""
    ridge = RIDGE * np.mean(np.diag(gram)) * np.eye(len(gram))
    weights = np.linalg.solve((gram + ridge).astype(np.float64), np.eye(10)[y] - 0.1)
    return float(np.mean(np.argmax(cross @ weights, 1) == y_test))


if __name__ == "__main__":
    main()

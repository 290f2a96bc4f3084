"""Kernels with examples whose features are kept: those of the signature, by the same programs."""

import numpy as np
import pytest

KEPT = 70  # more than a block


@pytest.mark.parametrize("name", ["many_outputs", "two_inputs"])
def test_the_kernel_with_kept_examples_is_that_of_pairs(name, exported):
    export = exported(name)
    model, x2 = export.loaded, export.inputs(KEPT)
    kept = model.reference_features(list(x2))
    assert {len(a) for a in kept} == {KEPT}
    for n in (0, 1, 5, 66):
        x1 = export.inputs(n, seed=1)
        expected = np.asarray(model.ntk(export.argument(x1), export.argument(x2)))
        kernel = np.asarray(model.ntk_of_references(list(x1), kept))
        assert kernel.shape == expected.shape == (n, KEPT)
        np.testing.assert_allclose(kernel, expected, rtol=0, atol=1e-6 * np.abs(expected).max(initial=0))
    none = model.reference_features(list(export.inputs(0)))
    assert np.asarray(model.ntk_of_references(list(x2), none)).shape == (KEPT, 0)


def test_coupled_examples_are_not_kept(exported):
    assert not hasattr(exported("coupled").loaded, "ntk_of_references")


def test_wrong_examples_are_refused(exported):
    model = exported("many_outputs").loaded
    with pytest.raises(Exception, match=r"reference_features x: expected float32 \(n, 6\), received"):
        model.reference_features([np.zeros((2, 5), np.float32)])

import numpy as np

from exporter.monitor.events import heat_map, histogram, log10_eigenvalues


def test_colours_are_cosines():
    kernel = np.array([[4.0, 6.0, 0.0], [6.0, 9.0, -1.5], [0.0, -1.5, 1.0]])
    pixels = heat_map(kernel)
    assert pixels.shape == (258, 258, 3)
    assert pixels.dtype == np.uint8
    cells = pixels[43::86, 43::86]
    np.testing.assert_array_equal(cells[0, :2], [[103, 0, 31]] * 2)  # cosine 1
    np.testing.assert_array_equal(cells[0, 2], [247, 247, 247])  # 0
    np.testing.assert_array_equal(cells[1, 2], [67, 147, 195])  # -0.5
    np.testing.assert_array_equal(pixels, heat_map(7 * kernel))


def test_an_example_without_gradient_is_white():
    assert (heat_map(np.diag([1.0, 0.0]))[-1] == 247).all()


def test_histogram_counts_each_once():
    buckets = histogram(np.arange(100.0))
    assert buckets.shape == (30, 3)
    assert buckets[:, 2].sum() == 100
    assert buckets[0, 0] == 0
    assert buckets[-1, 1] == 99


def test_logarithms_of_what_rounding_does_not_tell_from_zero():
    np.testing.assert_allclose(
        log10_eigenvalues(np.array([100.0, 1.0, 0.0, -1e-7])), [2, 0, -4.92369, -4.92369], rtol=1e-6
    )
    assert np.isfinite(log10_eigenvalues(np.zeros(2))).all()

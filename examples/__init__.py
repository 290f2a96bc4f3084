"""Runnable examples, on scikit-learn's handwritten digits; the tests run every one of them."""

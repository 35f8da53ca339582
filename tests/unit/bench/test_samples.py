"""What is said of samples."""

import pytest

from bench.samples import result


def test_a_result_knows_its_figures():
    made = result("x", "ms", [float(n) for n in range(100, 0, -1)], pods_per_s=3.0)
    assert (made.minimum, made.median, made.p95) == (1, 50.5, 95)
    assert made.facts == {"pods_per_s": 3.0}


def test_with_few_values_the_largest_counts():
    assert result("x", "ms", [1, 9]).p95 == 9


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="nothing was measured"):
        result("x", "ms", [])

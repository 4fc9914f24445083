"""What an overtaken update counts: the published functions by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.errors import ConfigError
from fedray.staleness import CONSTANT, Staleness


@pytest.mark.parametrize(
    ("staleness", "expected"),
    [
        (CONSTANT, [1, 1, 1, 1]),
        (Staleness(name="polynomial"), [1, 2**-0.5, 0.5, 0.25]),
        (Staleness(name="polynomial", a=1.0), [1, 0.5, 0.25, 1 / 16]),
        (Staleness(name="hinge", a=0.5, b=1), [1, 1, 0.5, 1 / 8]),
    ],
)
def test_the_functions_are_those_of_fedasync(staleness, expected):
    # At 0, 1, 3 and 15 versions behind.
    assert [staleness.weight(behind) for behind in (0, 1, 3, 15)] == pytest.approx(expected)


@given(
    st.sampled_from(["constant", "polynomial", "hinge"]), st.floats(0.01, 10), st.integers(0, 9),
    st.integers(0, 99),
)  # fmt: skip
def test_an_update_counts_whole_at_first_and_never_more_later(name, a, b, behind):
    staleness = Staleness(name=name, a=a, b=b)
    assert staleness.weight(0) == 1
    assert 0 < staleness.weight(behind + 1) <= staleness.weight(behind)


@pytest.mark.parametrize(("a", "b"), [(0.0, 0), (-1.0, 0), (1.0, -1)])
def test_numbers_out_of_range_are_refused(a, b):
    with pytest.raises(ConfigError, match="an a above 0 and a b of 0 or more"):
        Staleness(name="hinge", a=a, b=b)

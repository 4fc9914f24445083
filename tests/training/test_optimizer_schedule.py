"""The learning rate over rounds."""

import pytest

from fedray.training.optimizer import Schedule, scheduled


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.8, 0.8, 0.8, 0.8]),
        ("linear", [0.8, 0.6, 0.4, 0.2]),
        ("cosine", [0.8, 0.4 * (1 + 0.5**0.5), 0.4, 0.4 * (1 - 0.5**0.5)]),
    ],
)
def test_a_schedule_falls_over_the_rounds_of_a_run(schedule: Schedule, rates: list[float]) -> None:
    assert [scheduled(0.8, schedule, number, 4) for number in (1, 2, 3, 4)] == pytest.approx(rates)

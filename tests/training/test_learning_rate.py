"""The learning rate over rounds."""

import pytest

from fedray.training.optimizer import LocalOptimizer, Schedule, schedule_scale


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.8, 0.8, 0.8, 0.8]),
        ("linear", [0.8, 0.6, 0.4, 0.2]),
        ("cosine", [0.8, 0.4 * (1 + 0.5**0.5), 0.4, 0.4 * (1 - 0.5**0.5)]),
    ],
)
def test_a_schedule_falls_over_the_rounds_of_a_run(schedule: Schedule, rates: list[float]) -> None:
    scales = [schedule_scale(schedule, number, 4) for number in (1, 2, 3, 4)]
    assert [0.8 * scale for scale in scales] == pytest.approx(rates)


def test_a_head_may_have_a_rate_of_its_own_and_a_schedule_moves_both() -> None:
    both = LocalOptimizer(learning_rate=0.2, head_learning_rate=0.8).scaled(0.5)
    assert (both.rate("encoder.layer.0.query.lora_A"), both.rate("head.weight")) == (0.1, 0.4)
    assert LocalOptimizer(learning_rate=0.2).scaled(0.5).rate("head.weight") == 0.1

"""Deadlines that take partial work: how many steps by hand, a law, and runs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.clock import close_round, steps_in_time
from fedray.errors import ConfigError
from fedray.policy import Pace
from test_clock import trips_of
from tiny_run import assert_same_adapter, merged, opened, played


def test_a_client_does_the_steps_that_leave_time_to_send():
    # Receiving takes 2 s and sending 2 s, so 9.5 s leave 5.5 for steps of 0.5, 1 and 3 s.
    steps = steps_in_time(trips_of([2, 8, 12]), np.array([4, 8, 4]), 9.5)
    assert steps.tolist() == [4, 5, 1]


def test_who_cannot_do_one_step_in_time_sets_out_to_do_all_and_is_late():
    assert steps_in_time(trips_of([12, 12]), np.array([1, 2]), 9.5).tolist() == [1, 2]
    assert steps_in_time(trips_of([12]), np.array([4]), 3.0).tolist() == [4]


@settings(deadline=None, max_examples=200)
@given(st.floats(0.01, 50), st.integers(1, 40), st.floats(4.01, 60))
def test_cut_work_is_in_time_and_a_step_more_would_not_be(compute, count, deadline):
    whole = trips_of([compute])
    steps = int(steps_in_time(whole, np.array([count]), deadline)[0])
    assert 1 <= steps <= count

    def closed(n):
        return close_round(trips_of([n * (compute / count)]), Pace(deadline_seconds=deadline))

    if steps < count:
        assert closed(steps).outcomes == ("ok",)
        spare = deadline - (4 + (steps + 1) * compute / count)
        assert spare < 1e-9 or closed(steps + 1).outcomes == ("late",)


PARTIAL = {"audit": {"share": 0.0}, "rounds": {"num_rounds": 2, "clients_per_round": 8}}


def test_a_deadline_that_everybody_meets_cuts_nothing(tiny):
    plain = played(merged(tiny, PARTIAL))
    loose = played(merged(tiny, {**PARTIAL, "pace": {"deadline_seconds": 100.0, "late": "partial"}}))
    assert [r.num_steps for r in loose.clients] == [r.num_steps for r in plain.clients]
    assert_same_adapter(plain.state.adapter, loose.state.adapter)


def test_who_would_be_late_sends_what_it_has_done_by_the_deadline(tiny):
    # The first step of each client's round is as long as any; slow ones have done some by then.
    changes = {**PARTIAL, "provision": "preinstalled", "training": {"max_steps": 40, "learning_rate": 1e-2}}
    plain = played(merged(tiny, changes))
    slowest = max(record.virtual_seconds for record in plain.clients if record.round == 1)
    deadline = {"deadline_seconds": 0.6 * slowest}
    dropped = played(merged(tiny, {**changes, "pace": deadline}))
    partial = played(merged(tiny, {**changes, "pace": {**deadline, "late": "partial"}}))
    late = {(r.round, r.client_id) for r in dropped.clients if r.outcome == "late"}
    assert late
    for record in partial.clients:
        assert record.outcome == "ok"
        assert record.virtual_seconds <= 0.6 * slowest
        assert np.isfinite(record.loss)
        whole = next(r for r in plain.clients if (r.round, r.client_id) == (record.round, record.client_id))
        if record.round == 1:
            assert (record.num_steps < whole.num_steps) == ((1, record.client_id) in late)
            assert (record.loss == whole.loss) == (record.num_steps == whole.num_steps)


def test_what_partial_work_needs_and_does_not_go_with_is_said(tiny):
    with pytest.raises(ConfigError, match=r"partial cuts work short at pace\.deadline_seconds; give that"):
        Pace(late="partial")
    with pytest.raises(ConfigError, match="partial lets every client stop when it has to, and under menu"):
        opened(merged(tiny, {"menu": {"cuts": [2]}, "pace": {"deadline_seconds": 1.0, "late": "partial"}}))

import warnings

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import DataError
from fedray.training.divisions import Dirichlet, Iid, NaturalId, Pathological
from fedray.training.partitions import HoldOut, Partitions, partition
from fedray.training.sources import Source, load_rows

NOTHING_HELD = HoldOut(test_share=0.0)


def rows_of(num_rows, num_labels=5, num_owners=7):
    numbers = np.arange(num_rows)
    return datasets.Dataset.from_dict(
        {
            "label": [f"label {n % num_labels}" for n in numbers],
            "owner": [f"owner {n * n % num_owners}" for n in numbers],
        }
    )


def everything(parts: Partitions):
    return np.concatenate([*parts.train, parts.test, parts.validation, *parts.unseen, parts.unused])


def same(left: Partitions, right: Partitions):
    return all(
        np.array_equal(a, b)
        for field in ("train", "unseen", "test_of")
        for a, b in zip(getattr(left, field), getattr(right, field), strict=True)
    ) and np.array_equal(left.test, right.test)


divisions = st.one_of(
    st.builds(Iid, num_clients=st.integers(2, 8)),
    st.builds(
        Dirichlet,
        num_clients=st.integers(2, 6),
        label_column=st.just("label"),
        alpha=st.floats(0.3, 10),
        min_partition_size=st.just(2),
    ),
    st.builds(
        NaturalId,
        column=st.just("owner"),
        min_rows=st.integers(1, 20),
        max_clients=st.sampled_from([None, 3]),
    ),
    st.builds(
        Pathological,
        num_clients=st.integers(4, 8),
        label_column=st.just("label"),
        num_classes_per_partition=st.integers(1, 3),
    ),
)
hold_outs = st.builds(
    HoldOut,
    test_share=st.sampled_from([0.0, 0.2, 0.45]),
    validation_share=st.sampled_from([0.0, 0.1]),
    per_client=st.booleans(),
    unseen_clients=st.sampled_from([0, 1, 0.3]),
)


@settings(max_examples=30, deadline=None)
@given(how=divisions, hold_out=hold_outs, seed=st.integers(0, 2**31))
def test_every_row_is_in_exactly_one_place_and_the_seed_says_which(how, hold_out, seed):
    rows = rows_of(200)
    parts = partition(rows, how, hold_out, seed=seed)
    np.testing.assert_array_equal(np.sort(everything(parts)), np.arange(200))
    assert min(parts.num_rows) >= 1
    assert same(parts, partition(rows, how, hold_out, seed=seed))
    if hold_out.per_client:
        np.testing.assert_array_equal(np.sort(np.concatenate(parts.test_of)), parts.test)
        np.testing.assert_array_equal(np.sort(np.concatenate(parts.validation_of)), parts.validation)
    if not isinstance(how, NaturalId):
        assert parts.num_clients + len(parts.unseen) == how.num_clients


def test_another_seed_divides_otherwise():
    rows, how = rows_of(200), Iid(num_clients=4)
    assert not same(partition(rows, how, HoldOut(), seed=1), partition(rows, how, HoldOut(), seed=2))


def test_iid_clients_are_equal_shares_of_shuffled_rows():
    parts = partition(rows_of(100), Iid(num_clients=4), NOTHING_HELD, seed=3)
    assert list(parts.num_rows) == [25] * 4
    for rows in parts.train:
        # 25 rows in a row would span 24; a random quarter of 100 spans nearly all.
        assert rows.max() - rows.min() > 60


def test_shares_are_of_all_rows_or_of_each_clients_own():
    rows = rows_of(100)
    of_all = partition(rows, Iid(num_clients=4), HoldOut(test_share=0.29), seed=0)
    assert len(of_all.test) == 29
    assert of_all.test_of == ()
    own = partition(
        rows, Iid(num_clients=4), HoldOut(test_share=0.2, validation_share=0.1, per_client=True), seed=0
    )
    assert [len(rows) for rows in own.test_of] == [5] * 4
    assert [len(rows) for rows in own.validation_of] == [2] * 4
    assert list(own.num_rows) == [18] * 4


def test_dirichlet_clients_grow_more_unlike_as_alpha_falls():
    rows = rows_of(1000)
    labels = np.arange(1000) % 5

    def largest_label_share(alpha):
        how = Dirichlet(num_clients=10, label_column="label", alpha=alpha)
        parts = partition(rows, how, NOTHING_HELD, seed=1)
        return np.mean([np.bincount(labels[own]).max() / len(own) for own in parts.train])

    shares = [largest_label_share(alpha) for alpha in (1000.0, 1.0, 0.1)]
    assert shares[0] < 0.25
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.6


def test_a_minimum_is_drawn_for_again_without_a_warning():
    how = Dirichlet(num_clients=8, label_column="label", alpha=0.3, min_partition_size=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = partition(rows_of(300), how, NOTHING_HELD, seed=0)
    assert min(parts.num_rows) >= 10


def test_pathological_clients_hold_as_many_labels_as_asked():
    labels = np.arange(200) % 5
    how = Pathological(num_clients=10, label_column="label", num_classes_per_partition=2)
    parts = partition(rows_of(200), how, NOTHING_HELD, seed=0)
    assert [len(set(labels[own])) for own in parts.train] == [2] * 10


def test_unseen_clients_keep_every_row_of_their_own(shared):
    turns = load_rows(Source(name=shared / "data" / "text" / "tinyshakespeare_turns.parquet"))
    parts = partition(
        turns, NaturalId(column="speaker", min_rows=20), HoldOut(test_share=0.2, unseen_clients=0.1), seed=0
    )
    speakers = np.array(turns["speaker"][:])
    sizes = {name: int(count) for name, count in zip(*np.unique(speakers, return_counts=True), strict=True)}
    large = {name for name, count in sizes.items() if count >= 20}
    assert len(parts.unseen) == round(0.1 * len(large))
    assert set(parts.names) | set(parts.unseen_names) == large
    for name, own in zip(parts.unseen_names, parts.unseen, strict=True):
        assert set(speakers[own]) == {name}
        assert len(own) == sizes[name]
    for name, own in zip(parts.names, parts.train, strict=True):
        assert set(speakers[own]) == {name}
    assert not set(speakers[parts.test]) & set(parts.unseen_names)


def test_at_most_max_clients_are_drawn_and_the_rest_is_unused():
    parts = partition(
        rows_of(200), NaturalId(column="owner", max_clients=3), HoldOut(unseen_clients=1), seed=0
    )
    assert (parts.num_clients, len(parts.unseen)) == (2, 1)
    assert len(parts.unused) > 0


def test_clients_that_rank_higher_in_size_hold_more_rows():
    rows, how = rows_of(500), Dirichlet(num_clients=6, label_column="label", alpha=0.5)
    rank = np.array([0.2, 0.9, 0.1, 0.5, 0.7, 0.3])
    plain, ranked = (partition(rows, how, HoldOut(), seed=4, size_rank=r) for r in (None, rank))
    assert sorted(plain.num_rows) == sorted(ranked.num_rows)
    assert list(ranked.num_rows[np.argsort(rank)]) == sorted(plain.num_rows)


def test_a_natural_clients_name_follows_its_rows_when_sizes_are_ranked():
    rows = rows_of(200)
    parts = partition(rows, NaturalId(column="owner"), HoldOut(), seed=0, size_rank=np.array([3, 1, 2, 0]))
    for name, own in zip(parts.names, parts.train, strict=True):
        assert set(np.array(rows["owner"][:])[own]) == {name}


@pytest.mark.parametrize(
    ("how", "hold_out", "sentence"),
    [
        (Iid(num_clients=50), HoldOut(), r"50 clients cannot share 32 rows"),
        (
            Iid(num_clients=4),
            HoldOut(unseen_clients=4),
            r"4 unseen clients were asked for, and there are 4 clients",
        ),
        (NaturalId(column="who"), HoldOut(), r"needs the column 'who', and the data has label, owner"),
        (NaturalId(column="owner", min_rows=99), HoldOut(), r"No value of 'owner' has 99 rows \(min_rows\)"),
        (
            Dirichlet(num_clients=10, label_column="label", alpha=0.01, min_partition_size=3),
            HoldOut(),
            r"alpha 0.01 gave all of 10 clients 3 rows in none of its draws of 32",
        ),
        (
            Dirichlet(num_clients=30, label_column="label", alpha=0.1, min_partition_size=0),
            HoldOut(),
            r"of 30 clients have no rows to train on, the first is client \d+ with 0 before the hold-out",
        ),
        (
            Pathological(num_clients=4, label_column="label", num_classes_per_partition=6),
            HoldOut(),
            r"4 clients cannot hold 6 labels: 32 rows have 5 labels",
        ),
        (
            Dirichlet(num_clients=4, label_column="label", alpha=0),
            HoldOut(),
            "alpha must be above 0, found 0",
        ),
    ],
)
def test_a_division_that_cannot_be_says_what_to_change(how, hold_out, sentence):
    with pytest.raises(DataError, match=sentence):
        partition(rows_of(40), how, hold_out, seed=0)


def test_a_column_with_holes_cannot_divide():
    rows = datasets.Dataset.from_dict({"owner": ["a", None, "b"]})
    with pytest.raises(DataError, match="must hold a string or a number in every row"):
        partition(rows, NaturalId(column="owner"), HoldOut(), seed=0)


def test_ranks_of_another_number_of_clients_are_refused():
    with pytest.raises(DataError, match="4 clients, 3 numbers"):
        partition(rows_of(40), Iid(num_clients=4), HoldOut(), seed=0, size_rank=np.arange(3))


@pytest.mark.parametrize("options", [{"test_share": 0.7, "validation_share": 0.3}, {"test_share": -0.1}])
def test_shares_must_leave_rows_to_train_on(options):
    with pytest.raises(DataError, match="make their sum less than 1"):
        HoldOut(**options)


def test_one_and_a_half_unseen_clients_are_refused():
    with pytest.raises(DataError, match=r"a whole number or a share below 1, found 1\.5"):
        HoldOut(unseen_clients=1.5)

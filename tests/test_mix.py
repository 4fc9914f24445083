import copy

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, spearmanr

from fedray.errors import ConfigError
from fedray.mix import QUANTITIES, draw, load_mix, mixing

ONE_CLASS = yaml.safe_load(
    """
about: one class, so that every pair of quantities shows its correlation undisturbed
memory_share: {value: 0.1, sigma: 0.3, source: made up}
correlation: {value: 0.5, source: made up}
classes:
  - name: board
    share: {value: 1, source: made up}
    ram: {values: {4 GiB: 1.0}, source: made up}
    storage_bytes: {value: 8 GB, source: made up}
    flops_per_s:
      fp32: {value: 10 GFLOP/s, sigma: 0.4, source: made up}
      bf16: {value: 20 GFLOP/s, sigma: 0.4, source: made up}
    memory_bytes_per_s: {value: 5 GB/s, source: made up}
    attention: eager
    availability: {value: 0.5, sigma: 1, source: made up}
    compute_watts: {value: 5, source: made up}
    idle_watts: {value: 1, source: made up}
    resources: {value: {num_gpus: 1}, source: made up}
links:
  - name: line
    share: {value: 1, source: made up}
    down_bps: {value: 50 Mbps, sigma: 0.5, source: made up}
    up_bps: {value: 10 Mbps, sigma: 0.5, source: made up}
    rtt_seconds: {value: 0.05, sigma: 0.2, source: made up}
    radio_joules_per_byte: {value: 1.0e-6, source: made up}
"""
)
# Which column shows each quantity.
SHOWN = dict(zip(QUANTITIES, ("memory_bytes", "flops_per_s_fp32", "down_bps", "data_size_rank"), strict=True))


def write(tmp_path, content):
    path = tmp_path / "mix.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def two_classes():
    content = copy.deepcopy(ONE_CLASS)
    slow = content["classes"][0]
    slow["share"]["value"] = 0.75
    slow["ram"]["values"] = {"1 GiB": 0.5, "2 GiB": 0.5}
    fast = copy.deepcopy(slow) | {"name": "server"}
    fast["share"]["value"] = 0.25
    fast["ram"]["values"] = {"8 GiB": 1.0}
    fast["flops_per_s"]["fp32"]["value"] = "10 TFLOP/s"
    content["classes"].append(fast)
    return content


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8, 1.0])
def test_rank_correlations_are_those_of_a_gaussian_copula(tmp_path, correlation):
    columns = draw(load_mix(write(tmp_path, ONE_CLASS)), 20_000, 7, correlation=correlation)
    found = spearmanr(np.stack([columns[name] for name in SHOWN.values()], axis=1)).statistic
    # Pearson (1907): Spearman's coefficient of a bivariate normal is 6 / pi * arcsin(r / 2).
    expected = 6 / np.pi * np.arcsin(correlation / 2)
    # Four standard errors of 20,000 draws are 0.03.
    assert found[np.triu_indices(4, 1)] == pytest.approx(np.full(6, expected), abs=0.03)


def test_a_full_matrix_sets_each_pair_by_itself(tmp_path):
    matrix = [[1, 0.6, 0, 0], [0.6, 1, 0, -0.5], [0, 0, 1, 0], [0, -0.5, 0, 1]]
    columns = draw(load_mix(write(tmp_path, ONE_CLASS)), 20_000, 7, correlation=matrix)
    found = spearmanr(np.stack([columns[name] for name in SHOWN.values()], axis=1)).statistic
    assert found == pytest.approx(6 / np.pi * np.arcsin(np.array(matrix) / 2), abs=0.03)


def test_across_classes_data_and_links_follow_compute_as_asked(tmp_path):
    mix = load_mix(write(tmp_path, two_classes()))
    for correlation in (0.0, 0.6, 1.0):
        columns = draw(mix, 20_000, 3, correlation=correlation)
        expected = 6 / np.pi * np.arcsin(correlation / 2)
        for name in ("down_bps", "data_size_rank"):
            assert spearmanr(columns["flops_per_s_fp32"], columns[name]).statistic == pytest.approx(
                expected, abs=0.03
            )


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_every_class_keeps_its_share_and_its_ram_whatever_the_correlation(tmp_path, correlation):
    columns = draw(load_mix(write(tmp_path, two_classes())), 20_000, 3, 1.0, correlation)
    slow = columns["device_class"] == "board"
    assert slow.mean() == pytest.approx(0.75, abs=0.015)
    assert set(columns["memory_bytes"][slow]) == {2**30, 2 * 2**30}
    assert (columns["memory_bytes"][slow] == 2**30).mean() == pytest.approx(0.5, abs=0.02)
    assert set(columns["memory_bytes"][~slow]) == {8 * 2**30}


def test_inside_a_class_memory_follows_compute_as_asked(tmp_path):
    columns = draw(load_mix(write(tmp_path, two_classes())), 20_000, 3, correlation=0.6)
    fast = columns["device_class"] == "server"
    found = spearmanr(columns["memory_bytes"][fast], columns["flops_per_s_fp32"][fast]).statistic
    assert found == pytest.approx(6 / np.pi * np.arcsin(0.3), abs=0.06)


def test_the_value_is_the_median_and_sigma_the_spread_of_the_logarithm(tmp_path):
    columns = draw(load_mix(write(tmp_path, ONE_CLASS)), 20_000, 1)
    logs = np.log(columns["flops_per_s_fp32"] / 1e10)
    assert kstest(logs / 0.4, "norm").pvalue > 0.01
    assert kstest(columns["data_size_rank"], "uniform").pvalue > 0.01
    assert np.median(columns["memory_bytes"]) == pytest.approx(0.1 * 2**32, rel=0.02)
    # Logit-normal around 0.5 with sigma 1: its upper quartile is 1 / (1 + exp(-0.6745)).
    assert np.quantile(columns["availability"], 0.75) == pytest.approx(0.6625, abs=0.01)
    # One dtype's rate is the other's twice, for every client: both share its place in the class.
    assert columns["flops_per_s_bf16"] == pytest.approx(2 * columns["flops_per_s_fp32"], rel=2e-5)


def test_every_figure_reaches_its_own_column(tmp_path):
    columns = draw(load_mix(write(tmp_path, ONE_CLASS)), 20_000, 1)
    medians = {
        "flops_per_s_bf16": 20e9,
        "memory_bytes_per_s": 5e9,
        "up_bps": 10e6,
        "down_bps": 50e6,
        "rtt_seconds": 0.05,
        "availability": 0.5,
        "storage_bytes": 8e9,
        "compute_watts": 5,
        "idle_watts": 1,
        "radio_joules_per_byte": 1e-6,
    }
    assert {name: np.median(columns[name]) for name in medians} == pytest.approx(medians, rel=0.02)
    assert set(columns["attention"]) == {"eager"}
    assert set(columns["resources"]) == {'{"num_gpus": 1.0}'}


def test_with_correlation_1_the_faster_half_of_a_class_has_the_larger_ram(tmp_path):
    columns = draw(load_mix(write(tmp_path, two_classes())), 2000, 3, 1.0, correlation=1.0)
    slow = columns["device_class"] == "board"
    # The class's median rate is 10 GFLOP/s and half of it has 2 GiB.
    assert ((columns["memory_bytes"] == 2**31) == (columns["flops_per_s_fp32"] > 1e10))[slow].all()


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 2**31))
def test_a_client_stays_the_same_when_the_fleet_grows(tmp_path_factory, few, more, seed):
    mix = load_mix(write(tmp_path_factory.mktemp("mix"), two_classes()))
    small, large = draw(mix, few, seed), draw(mix, few + more, seed)
    for name, column in small.items():
        np.testing.assert_array_equal(column, large[name][:few], err_msg=name)


def test_another_seed_draws_other_clients(tmp_path):
    mix = load_mix(write(tmp_path, ONE_CLASS))
    assert not np.array_equal(draw(mix, 5, 1)["memory_bytes"], draw(mix, 5, 2)["memory_bytes"])


def test_a_stated_memory_share_is_taken_exactly(tmp_path):
    columns = draw(load_mix(write(tmp_path, ONE_CLASS)), 50, 1, memory_share=0.25)
    assert set(columns["memory_bytes"]) == {2**30}


def change(path, value):
    """ONE_CLASS with one place changed: a dotted path, a number for a list's entry; None deletes."""
    content = copy.deepcopy(ONE_CLASS)
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place = content
    for step in steps:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("classes.0.colour", "red", r"wrong at classes.0.colour: Extra inputs are not permitted"),
        ("classes.0.compute_watts.sigma", 1, r"wrong at classes.0.compute_watts.sigma: Extra inputs"),
        ("classes.0.storage_bytes.source", None, r"wrong at classes.0.storage_bytes.source: Field required"),
        (
            "classes.0.storage_bytes.value",
            "8 apples",
            r"classes.0.storage_bytes.value: .*'8 apples' is not a q",
        ),
        (
            "classes.0.attention",
            "flash",
            r"classes.0.attention: Input should be 'eager' or 'memory_efficient'",
        ),
        ("classes.0.availability.value", 1.5, r"classes.0.availability.value: .* less than or equal to 1"),
        ("classes.0.share.value", 0.5, r"the shares of classes add up to 0.5; make it 1"),
        ("classes.0.ram.values", {"1 GiB": 0.5, "2 GiB": 0.2}, r"the RAM of board add up to 0.7; make it 1"),
        ("links.0.share.value", 0.9, r"the shares of links add up to 0.9; make it 1"),
        ("links", [], r"wrong at links: "),
    ],
)
def test_a_mistake_in_a_mix_is_named_by_its_place(tmp_path, path, value, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_mix(write(tmp_path, change(path, value)))


def test_classes_out_of_order_are_put_in_order_by_the_message(tmp_path):
    content = two_classes()
    content["classes"].reverse()
    with pytest.raises(ConfigError, match="list the classes from slow to fast: board, server"):
        load_mix(write(tmp_path, content))


def test_two_classes_of_one_name_are_refused(tmp_path):
    content = two_classes()
    content["classes"][1]["name"] = "board"
    with pytest.raises(ConfigError, match="two classes have one name among board, board"):
        load_mix(write(tmp_path, content))


@pytest.mark.parametrize("text", ["classes: [", "- just\n- a list", ""])
def test_a_file_that_is_no_mix_is_refused(tmp_path, text):
    path = tmp_path / "mix.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"The fleet .*mix.yaml is (not YAML|wrong at the whole file)"):
        load_mix(path)


@pytest.mark.parametrize(
    ("correlation", "sentence"),
    [
        (1.5, "a number from 0 to 1 or a matrix, found 1.5"),
        (-0.1, "a number from 0 to 1 or a matrix, found -0.1"),
        ([[1, 0], [0, 1]], "symmetric 4 x 4 matrix with ones on its diagonal, over memory, compute"),
        ((np.eye(4) * 2).tolist(), "ones on its diagonal"),
        (float("nan"), "a number from 0 to 1 or a matrix, found nan"),
        ([[1, 0, 0, 0], [0, 1], [0], []], "symmetric 4 x 4 matrix"),
        ([[1, 1, -1, 0], [1, 1, 1, 0], [-1, 1, 1, 0], [0, 0, 0, 1]], "least eigenvalue is -1, below 0"),
    ],
)
def test_what_no_quantities_can_have_is_no_correlation(correlation, sentence):
    with pytest.raises(ConfigError, match=sentence):
        mixing(correlation)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_memory_share_is_a_share(tmp_path, share):
    with pytest.raises(ConfigError, match="memory_share is above 0 and at most 1"):
        draw(load_mix(write(tmp_path, ONE_CLASS)), 3, 1, memory_share=share)

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import ConfigError
from fedray.units import (
    parse_bps,
    parse_bytes,
    parse_bytes_per_s,
    parse_flops_per_s,
    show_bytes,
    show_seconds,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4 GiB", 4_294_967_296),
        ("4GB", 4_000_000_000),
        ("512 mib", 536_870_912),
        ("1.5 kB", 1500),
        ("7", 7),
        (7, 7),
    ],
)
def test_a_gib_is_2_to_the_30_bytes_and_a_gb_is_10_to_the_9(text, count):
    assert parse_bytes(text) == count


def test_link_rates_are_bits_and_memory_rates_are_bytes():
    assert parse_bps("20 Mbps") == 2e7
    assert parse_bytes_per_s("20 MB/s") == 2e7
    assert parse_flops_per_s("30 GFLOP/s") == 3e10
    assert parse_flops_per_s("2.5e3 MFLOP/s") == 2.5e9


@pytest.mark.parametrize("text", ["", "4 apples", "GiB", "-3 GB", "4 GB 2 MB", "1.2.3 GB", "nan"])
def test_what_is_not_a_quantity_is_answered_with_an_example(text):
    with pytest.raises(ConfigError, match=r"is not a quantity; write .*4 GiB"):
        parse_bytes(text)


def test_a_bit_rate_is_no_count_of_bytes():
    with pytest.raises(ConfigError, match="'20 Mbps' is not a quantity"):
        parse_bytes("20 Mbps")
    with pytest.raises(ConfigError, match="'20 MB/s' is not a quantity"):
        parse_bps("20 MB/s")


@settings(deadline=None, max_examples=50)
@given(st.integers(min_value=0, max_value=2**50))
def test_shown_bytes_read_back_to_one_part_in_ten(count):
    assert parse_bytes(show_bytes(count)) == pytest.approx(count, rel=0.1, abs=1)


def test_sizes_and_durations_read_as_people_write_them():
    assert [show_bytes(n) for n in (0, 1023, 1024, 4 * 2**30, 2**41)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "4.0 GiB",
        "2.0 TiB",
    ]
    assert [show_seconds(s) for s in (0.26, 59.9, 93.4, 3599.7, 7384)] == [
        "0.3 s",
        "59.9 s",
        "1 min 33 s",
        "1 h 0 min",
        "2 h 3 min",
    ]

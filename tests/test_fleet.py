import json
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.cost import Roofline
from fedray.errors import ConfigError
from fedray.fleet import Fleet, Profile, load_fleet
from fedray.mix import load_mix
from fedray.profile import SCHEMA
from fedray.units import parse_flops_per_s

SHIPPED = ("phones", "edge", "silos")
MINIMAL = {
    "device_class": ["board", "laptop", "board"],
    "memory_bytes": [100_000_000, 1_000_000_000, 200_000_000],
    "flops_per_s_fp32": [1e9, 5e10, 2e9],
    "up_bps": [1e6, 1e7, 2e6],
    "down_bps": [4e6, 8e7, 5e6],
}


def table(**changed):
    """MINIMAL with columns changed or added; None takes one away."""
    columns = {**MINIMAL, **changed}
    return pa.table({name: values for name, values in columns.items() if values is not None})


# What comes out is what went in.


def test_a_device_is_the_chosen_rows_in_the_chosen_order():
    fleet = Fleet(table(rtt_seconds=[0.1, 0.2, 0.3], flops_per_s_bf16=[3e9, 9e10, 4e9]))
    device = fleet.device(np.array([2, 0]))
    assert device.memory_bytes.tolist() == [200_000_000, 100_000_000]
    assert device.memory_bytes.dtype == np.int64
    assert {name: rates.tolist() for name, rates in device.flops_per_s.items()} == {
        "fp32": [2e9, 1e9],
        "bf16": [4e9, 3e9],
    }
    assert device.rtt_seconds.tolist() == [0.3, 0.1]
    assert fleet.device_class(np.array([1, 2])).tolist() == ["laptop", "board"]
    assert fleet.attention(np.array([1])).tolist() == ["memory_efficient"]
    assert len(fleet) == 3


def test_a_profile_left_to_its_defaults_changes_no_price():
    profile = Fleet(table()).profile(0)
    assert profile == Profile(
        device_class="board",
        memory_bytes=100_000_000,
        flops_per_s_fp32=1e9,
        flops_per_s_bf16=1e9,
        up_bps=1e6,
        down_bps=4e6,
    )
    device = Fleet(table()).device(np.array([0]))
    # 3 GFLOP at 1 GFLOP/s, and memory that never makes an operation wait.
    seconds = Roofline([1e9, 2e9], [1e12, 1.0]).seconds(device.flops_per_s["bf16"], device.memory_bytes_per_s)
    assert seconds == pytest.approx([3.0])
    assert (
        device.compute_watts == device.idle_watts == device.radio_joules_per_byte == device.rtt_seconds == 0
    )


profiles = st.builds(
    Profile,
    device_class=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=5),
    memory_bytes=st.integers(1, 2**53),
    flops_per_s_fp32=st.floats(1, 1e18),
    flops_per_s_bf16=st.floats(1, 1e18),
    up_bps=st.floats(1, 1e12),
    down_bps=st.floats(1, 1e12),
    memory_bytes_per_s=st.floats(1, 1e13) | st.just(math.inf),
    rtt_seconds=st.floats(0, 10),
    attention=st.sampled_from(["eager", "memory_efficient"]),
    availability=st.floats(0, 1),
    resources=st.dictionaries(
        st.sampled_from(["num_gpus", "num_cpus", "site,a"]), st.floats(0, 8), max_size=2
    ),
)


@settings(deadline=None, max_examples=25)
@given(st.lists(profiles, min_size=1, max_size=4), st.sampled_from([".parquet", ".csv"]))
def test_a_saved_fleet_loads_as_the_same_profiles(tmp_path_factory, given_profiles, suffix):
    path = tmp_path_factory.mktemp("fleet") / f"fleet{suffix}"
    Fleet.from_profiles(given_profiles).save(path)
    loaded = load_fleet(path)
    assert [loaded.profile(i) for i in range(len(loaded))] == given_profiles
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_many_chunks_read_as_one_column(tmp_path):
    second = table(device_class=["phone"] * 3, client_id=[3, 4, 5])
    chunked = pa.concat_tables([table(client_id=[0, 1, 2]), second])
    path = tmp_path / "fleet.parquet"
    pq.write_table(chunked, path, row_group_size=2)
    for fleet in (Fleet(chunked), load_fleet(path)):
        assert fleet.device_class(np.array([5, 0, 1])).tolist() == ["phone", "board", "laptop"]
        assert fleet.device(np.array([4])).memory_bytes.tolist() == [1_000_000_000]
        assert fleet.profile(5).device_class == "phone"


def test_a_word_is_checked_in_every_chunk():
    kernels = [pa.array([word] * 3).dictionary_encode() for word in ("eager", "flash")]
    chunked = pa.concat_tables([table(), table()]).append_column("attention", pa.chunked_array(kernels))
    with pytest.raises(ConfigError, match="found 'flash'"):
        Fleet(chunked)


def test_a_table_gives_its_leading_rows_and_no_more_than_it_has(tmp_path):
    Fleet(table()).save(tmp_path / "fleet.csv")
    assert len(load_fleet(str(tmp_path / "fleet.csv"), 2)) == 2
    with pytest.raises(ConfigError, match=r"num_clients is 4, but .*fleet.csv has 3 clients"):
        load_fleet(tmp_path / "fleet.csv", 4)


def test_resources_are_kept_by_client():
    fleet = Fleet(table(resources=["{}", '{"num_gpus": 0.5, "site_a": 1}', "{}"]))
    assert fleet.resources(1) == {"num_gpus": 0.5, "site_a": 1}
    assert fleet.resources(2) == {}


def test_the_columns_are_the_fields_of_a_profile():
    assert SCHEMA.names == ["client_id", *Profile.__dataclass_fields__]


# Failures.


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"memory_bytes": None}, "lacks the column 'memory_bytes'; it needs device_class, memory_bytes,"),
        ({"memory": [1, 2, 3]}, "has an unknown column 'memory'; the columns are client_id, device_class,"),
        ({"memory_bytes": [1, 0, 0]}, "memory_bytes must be above 0 and finite, found 0 in row 1 (2 such"),
        ({"memory_bytes": [1.0, 2.5, 3.0]}, "memory_bytes must hold whole numbers, found double"),
        ({"memory_bytes": ["1 GB", "2 GB", "3 GB"]}, "memory_bytes must hold whole numbers, found string"),
        ({"up_bps": [1.0, None, 2.0]}, "up_bps is empty in 1 rows, first in row 1; fill it"),
        ({"up_bps": [1.0, math.inf, 2.0]}, "up_bps must be above 0 and finite, found inf in row 1"),
        ({"up_bps": [1.0, 2.0, math.nan]}, "up_bps must be above 0 and finite, found nan in row 2"),
        ({"rtt_seconds": [0, -1, 0]}, "rtt_seconds must be at least 0 and finite, found -1.0 in row 1"),
        ({"availability": [1, 1, 1.5]}, "availability must be from 0 to 1, found 1.5 in row 2"),
        ({"memory_bytes_per_s": [1, 0, 1]}, "memory_bytes_per_s must be above 0, found 0.0 in row 1"),
        (
            {"attention": ["eager", "flash", "eager"]},
            "attention is one of eager, memory_efficient, found 'fl",
        ),
        ({"resources": ["{}", "[1]", "{}"]}, "such as {\"num_gpus\": 1}, found '[1]'"),
        ({"resources": ["{}", '{"num_gpus": -1}', "{}"]}, "found '{\"num_gpus\": -1}'"),
        ({"resources": ["{}", "one gpu", "{}"]}, "found 'one gpu'"),
        ({"client_id": [0, 2, 1]}, "client_id counts the rows from 0; sort it so, or leave it out"),
        ({name: [] for name in MINIMAL}, "has no clients; give it at least one row"),
    ],
)
def test_a_wrong_column_is_named_with_its_first_wrong_row(changed, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        Fleet(table(**changed))


def test_a_column_given_twice_is_refused():
    twice = table().append_column("up_bps", pa.array([1.0, 1.0, 1.0]))
    with pytest.raises(ConfigError, match="repeats the column 'up_bps'"):
        Fleet(twice)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("phonse", "There is no fleet named 'phonse'; fedray brings edge, phones, silos"),
        ("nowhere/fleet.csv", "There is no fleet file nowhere/fleet.csv"),
        ("fleet.xlsx", "a .yaml, .csv or .parquet file, found 'fleet.xlsx'"),
    ],
)
def test_a_fleet_that_is_not_there_is_said_so(source, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        load_fleet(source, 3)


@pytest.mark.parametrize("name", ["fleet.csv", "fleet.parquet"])
def test_a_file_that_is_no_table_is_said_so(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b'a,b\n"1,2,3\n4\n')
    with pytest.raises(ConfigError, match=rf"The fleet .*{name} cannot be read: "):
        load_fleet(path)


def test_an_option_that_cannot_take_effect_is_refused(tmp_path):
    Fleet(table()).save(tmp_path / "fleet.parquet")
    with pytest.raises(ConfigError, match=r"memory_share shapes clients .*lists its own, so leave it out"):
        load_fleet(tmp_path / "fleet.parquet", memory_share=0.5)
    with pytest.raises(ConfigError, match=r"correlation shapes clients"):
        load_fleet(tmp_path / "fleet.parquet", correlation=0.0)
    with pytest.raises(ConfigError, match="say how many with num_clients"):
        load_fleet("phones")
    with pytest.raises(ConfigError, match="num_clients must be at least 1, found 0"):
        load_fleet("phones", 0)


def test_a_fleet_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    fleet = Fleet(table())
    with pytest.raises(ConfigError, match=r"saved as .parquet or .csv, found 'fleet.json'"):
        fleet.save(tmp_path / "fleet.json")
    (tmp_path / "fleet.csv").mkdir()
    with pytest.raises(ConfigError, match="The fleet cannot be written to"):
        fleet.save(tmp_path / "fleet.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["fleet.csv"]


def test_there_is_no_client_beyond_the_last():
    with pytest.raises(IndexError, match="client 3 of a fleet of 3"):
        Fleet(table()).profile(3)


# The fleets that fedray brings along.


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_class_and_link_is_drawn(repository, name):
    mix = load_mix(repository / "cluster_configs" / "fleets" / f"{name}.yaml")
    fleet = load_fleet(name, 1000, seed=1)
    assert set(fleet.device_class(np.arange(1000))) == {c.name for c in mix.classes}
    assert len(mix.classes) >= 4


@pytest.mark.parametrize("name", SHIPPED)
def test_every_number_of_a_shipped_fleet_stands_beside_its_source(repository, name):
    content = yaml.safe_load((repository / "cluster_configs" / "fleets" / f"{name}.yaml").read_text())

    def bare(node, place):
        if isinstance(node, dict):
            if "source" in node:
                return []
            return [p for key, value in node.items() for p in bare(value, f"{place}.{key}")]
        if isinstance(node, list):
            return [p for index, value in enumerate(node) for p in bare(value, f"{place}[{index}]")]
        return [place] if isinstance(node, int | float) else []

    assert bare(content, name) == []


def test_edge_budgets_straddle_what_the_demo_needs():
    # MiniLM with LoRA, batch 8 and 64 tokens peaks between 89 and 181 MB.
    budgets = load_fleet("edge", 5000, seed=1).table["memory_bytes"].to_numpy()
    assert np.mean(budgets < 1.02 * 89e6) < 0.005
    assert 0.3 < np.mean(budgets < 1.02 * 181e6) < 0.6
    assert 0.8e9 < np.quantile(budgets, 0.98) < 1.3e9


def test_silos_with_a_gpu_reserve_one():
    fleet = load_fleet("silos", 200, seed=1)
    classes = fleet.device_class(np.arange(200))
    for client_id in range(200):
        wanted = {} if classes[client_id] == "server_cpu" else {"num_gpus": 1}
        assert fleet.resources(client_id) == wanted


def ncnn_resnet50_gflops(shared):
    """GFLOP/s of ResNet-50 (8.18 GFLOP) on each device and unit that ncnn measured."""
    rows = pq.read_table(shared / "data" / "devices" / "ncnn_device_summary.parquet").to_pylist()
    return [(row["device"], row["unit"], 8180 / row["resnet50_ms"]) for row in rows if row["resnet50_ms"]]


@pytest.mark.parametrize(
    ("name", "device_class", "devices"),
    [
        ("phones", "phone_entry", "Snapdragon 410"),
        ("phones", "phone_mid", "Snapdragon (660|675)"),
        ("phones", "phone_upper", "Snapdragon (835|765G)"),
        ("phones", "phone_high", r"Snapdragon (855\+?|888) .*"),
        ("phones", "phone_flagship", "Snapdragon 8 Gen 2|Dimensity 9300"),
        ("edge", "pi_zero_2w", "Raspberry Pi Zero 2 W"),
        ("edge", "pi_3b_plus", r"Raspberry Pi 3 Model B\+"),
        ("edge", "pi_4", "Raspberry Pi 4 Model B"),
        ("edge", "phone_mid", "Snapdragon (660|675)"),
        ("edge", "pi_5", r"Raspberry Pi 5 Broadcom BCM2712, Cortex-A76"),
        ("edge", "laptop", r"MacBook Pro \(13-inch, M1, 2020\)"),
        ("silos", "server_cpu", "AMD EPYC 7742"),
    ],
)
def test_a_cpu_class_declares_a_quarter_of_what_ncnn_measured(
    shared, repository, name, device_class, devices
):
    mix = yaml.safe_load((repository / "cluster_configs" / "fleets" / f"{name}.yaml").read_text())
    declared = next(c for c in mix["classes"] if c["name"] == device_class)["flops_per_s"]["fp32"]["value"]
    measured = [
        gflops
        for device, unit, gflops in ncnn_resnet50_gflops(shared)
        if unit == "cpu" and re.search(devices, device)
    ]
    rate = 4 * parse_flops_per_s(declared) / 1e9
    assert 0.99 * min(measured) <= rate <= 1.01 * max(measured)


def test_a_transformer_reaches_a_quarter_of_the_convolution_rate_on_ncnn_cpus(shared):
    latencies = pq.read_table(shared / "data" / "devices" / "ncnn_device_latency.parquet").to_pylist()
    best = {}
    for row in latencies:
        if row["gpu"] == -1 and row["net"] in ("resnet50", "vision_transformer"):
            key = (row["device"], row["net"])
            best[key] = min(best.get(key, math.inf), row["avg_ms"])
    # ViT-B/32 at 384 x 384: 12 blocks of 145 tokens, 768 wide: 24 T D^2 + 4 T^2 D each, and the patches.
    vit_flop = 12 * (24 * 145 * 768**2 + 4 * 145**2 * 768) + 2 * 144 * 3072 * 768
    ratios = [
        vit_flop / best[device, "vision_transformer"] / (8.18e9 / milliseconds)
        for (device, net), milliseconds in best.items()
        if net == "resnet50" and (device, "vision_transformer") in best
    ]
    assert len(ratios) == 54
    assert np.median(ratios) == pytest.approx(0.246, abs=0.005)


def test_phone_ram_is_that_of_the_ai_benchmark_list(shared, repository):
    phones = pq.read_table(shared / "data" / "devices" / "ai_benchmark_phones.parquet").to_pylist()
    mix = load_mix(repository / "cluster_configs" / "fleets" / "phones.yaml")
    edges = [0, 1000, 1700, 2600, math.inf]
    recent = [p for p in phones if p["year"] >= 2017]
    for device_class, low, high in zip(mix.classes[:4], edges[:-1], edges[1:], strict=True):
        ram = [p["ram_gb"] for p in recent if low < p["cpu_float_score"] <= high]
        found = {size // 2**30: share for size, share in device_class.ram.values.items()}
        # Two decimals, and the last one takes what rounding leaves.
        assert found == pytest.approx({size: ram.count(size) / len(ram) for size in found}, abs=0.011)
        assert device_class.share.value == pytest.approx(0.9 * len(ram) / len(recent), abs=0.001)


def test_phones_are_ready_as_often_as_in_the_flash_trace(shared):
    rows = pq.read_table(shared / "data" / "devices" / "availability_intervals.parquet").to_pydict()
    policy, client = np.array(rows["policy"]), np.array(rows["client"])
    seconds = np.array(rows["end_s"]) - np.array(rows["start_s"])
    strict = policy == "strict"
    ready = np.bincount(client[strict], seconds[strict]) / 172_800
    drawn = load_fleet("phones", 20_000, seed=1).availability(np.arange(20_000))
    quartiles = [0.25, 0.5, 0.75]
    assert np.quantile(drawn, quartiles) == pytest.approx(np.quantile(ready[ready > 0], quartiles), rel=0.1)


def test_links_are_those_of_the_speed_and_country_tables(shared, repository):
    folder = shared / "data" / "devices"
    users = pq.read_table(folder / "network_speed_users.parquet").to_pydict()
    countries = pq.read_table(folder / "country_bandwidth.parquet").to_pydict()
    links = {link.name: link for link in load_mix(repository / "cluster_configs/fleets/edge.yaml").links}
    bits = 1024 * 8
    for declared, measured in (
        (links["wifi"].down_bps, np.array(users["down_mean_KBps"]) * bits),
        (links["wifi"].up_bps, np.array(users["up_mean_KBps"]) * bits),
        (links["wired_broadband"].down_bps, np.array(countries["download_mbps"]) * 1e6),
        (links["wired_broadband"].up_bps, np.array(countries["upload_mbps"]) * 1e6),
    ):
        assert declared.value == pytest.approx(np.median(measured), rel=0.02)
        assert declared.sigma == pytest.approx(np.std(np.log(measured), ddof=1), abs=0.01)


def test_saved_resources_are_json(tmp_path):
    load_fleet("silos", 20, seed=1).save(tmp_path / "silos.parquet")
    texts = pq.read_table(tmp_path / "silos.parquet")["resources"].to_pylist()
    assert {json.dumps(json.loads(text)) for text in texts} == {"{}", '{"num_gpus": 1.0}'}

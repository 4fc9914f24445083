"""DeepSpeed's settings: what each "auto" becomes, what is left alone, what is refused and how."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.errors import ConfigError
from fedray.server.settings import ServerFacts, what_stays_whole, zero_settings

# A backbone of 24 blocks of 7 million numbers and an embedding of 32 million.
FACTS = ServerFacts(
    num_params=200_000_000,
    block_params=7_000_000,
    largest_param=32_000_001,
    dtype="fp32",
    micro_batch=4,
    num_shards=2,
    has_libaio=True,
)
SHIPPED = ("zero3", "zero3_offload", "zero3_nvme")
# As in the documentation of transformers' Trainer, less what needs an optimizer.
HUGGING_FACE = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000},
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": "auto",
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}


def stage(number, **keys):
    return {"zero_optimization": {"stage": number, **keys}}


# What is filled.


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_is_found_by_name_and_nothing_in_it_stays_auto(name):
    settings = zero_settings(name, FACTS)
    assert '"auto"' not in json.dumps(settings)
    assert settings["zero_optimization"]["stage"] == 3
    assert what_stays_whole(settings, FACTS) == []


def test_zero3_is_filled_with_what_a_sweep_over_frozen_blocks_needs():
    assert zero_settings("zero3", FACTS) == {
        "bf16": {"enabled": False},
        "zero_optimization": {
            "stage": 3,
            "stage3_allgather_sequential": True,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
            "stage3_max_live_parameters": 14_000_000,
            "stage3_param_persistence_threshold": 0,
            "reduce_bucket_size": 7_000_000,
        },
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
    }


def test_offloaded_shards_lie_where_the_file_says_and_a_buffer_holds_a_shards_part_of_the_largest_tensor():
    assert zero_settings("zero3_offload", FACTS)["zero_optimization"]["offload_param"] == {
        "device": "cpu",
        "pin_memory": True,
    }
    offload = zero_settings("zero3_nvme", FACTS)["zero_optimization"]["offload_param"]
    assert (offload["device"], offload["buffer_size"]) == ("nvme", 16_000_001)


def test_bf16_is_on_for_a_backbone_in_bf16_and_fp16_never_is():
    settings = zero_settings(HUGGING_FACE, replace(FACTS, dtype="bf16"))
    assert settings["bf16"] == {"enabled": True}
    assert settings["fp16"] == {"enabled": False, "loss_scale": 0, "loss_scale_window": 1000}


def test_of_hugging_faces_own_file_only_auto_is_replaced():
    settings = zero_settings(HUGGING_FACE, FACTS)
    zero, theirs = settings["zero_optimization"], HUGGING_FACE["zero_optimization"]
    changed = {name for name, value in theirs.items() if zero[name] != value}
    assert changed == {name for name, value in theirs.items() if value == "auto"}
    assert zero.keys() - theirs.keys() == {"stage3_allgather_sequential"}
    assert (settings["steps_per_print"], settings["wall_clock_breakdown"]) == (2000, False)


def test_stage_3_alone_is_enough_since_deepspeeds_own_defaults_would_leave_everything_gathered():
    settings = zero_settings(stage(3), FACTS)
    assert what_stays_whole(settings, FACTS) == []
    assert settings["zero_optimization"] == {
        "stage": 3,
        "stage3_allgather_sequential": True,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_live_parameters": 14_000_000,
        "stage3_param_persistence_threshold": 0,
    }
    assert settings["bf16"] == {"enabled": False}


def test_the_batch_is_what_a_given_micro_batch_makes_of_it():
    given = {**stage(3), "train_micro_batch_size_per_gpu": 3, "train_batch_size": "auto"}
    assert zero_settings(given, FACTS)["train_batch_size"] == 6


def test_an_auto_that_deepspeed_fills_itself_stays():
    given = {**stage(3), "data_types": {"keep_in_fp32_modules": "auto"}}
    assert zero_settings(given, FACTS)["data_types"] == {"keep_in_fp32_modules": "auto"}


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5).filter(lambda text: text != "auto"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8).map("unknown_{}".format), plain, max_size=4))
def test_unknown_keys_stay_as_they_are_and_the_callers_own_mapping_too(unknown):
    source = {**copy.deepcopy(HUGGING_FACE), **unknown}
    before = copy.deepcopy(source)
    settings = zero_settings(source, FACTS)
    assert {name: settings[name] for name in unknown} == unknown
    assert source == before


@given(
    shards=st.integers(1, 64),
    micro=st.integers(1, 64),
    block=st.integers(1, 10**9),
    dtype=st.sampled_from(["fp32", "bf16"]),
    name=st.sampled_from(SHIPPED),
)
def test_filled_settings_are_filled_again_with_the_same(shards, micro, block, dtype, name):
    facts = replace(FACTS, num_shards=shards, micro_batch=micro, block_params=block, dtype=dtype)
    settings = zero_settings(name, facts)
    assert zero_settings(settings, facts) == settings


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the server extra")
@pytest.mark.parametrize("name", SHIPPED)
def test_deepspeed_itself_reads_them_so(name):
    # In a process of its own: importing deepspeed warns and starts its accelerator.
    settings = zero_settings(name, replace(FACTS, num_shards=1))
    code = (
        "import json, sys\n"
        "from deepspeed.runtime.config import DeepSpeedConfig\n"
        "config = DeepSpeedConfig(json.loads(sys.argv[1]))\n"
        "zero = config.zero_config\n"
        "print(json.dumps([int(zero.stage), zero.max_reuse_distance, zero.prefetch_bucket_size,\n"
        "    zero.max_live_parameters, zero.param_persistence_threshold, config.train_batch_size]))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, json.dumps(settings)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == [3, 0, 0, 14_000_000, 0, 4]


# What stays whole.


def test_stage_0_says_what_each_shard_then_holds():
    # 200 million numbers of 4 bytes are 762.9 MiB.
    assert what_stays_whole(zero_settings(stage(0), FACTS), FACTS) == [
        "ZeRO stage 0 shards nothing: each of 2 shards holds all 762.9 MiB of the frozen backbone; stage 3 "
        "would leave 381.5 MiB on each."
    ]


def test_a_file_without_a_stage_is_stage_0_as_for_deepspeed():
    settings = zero_settings({}, FACTS)
    assert what_stays_whole(settings, FACTS)[0].startswith("ZeRO stage 0 shards nothing")


@pytest.mark.parametrize(("number", "what"), [(1, "moments"), (2, "gradients and moments")])
def test_stages_1_and_2_are_accepted_where_something_is_trained_and_shard_only_that(number, what):
    facts = replace(FACTS, trained_params=1000, dtype="bf16")
    settings = zero_settings({**stage(number), "optimizer": {"type": "AdamW"}}, facts)
    (sentence,) = what_stays_whole(settings, facts)
    assert sentence.startswith(
        f"ZeRO stage {number} shards only the {what} of 1000 trained numbers: each of 2"
    )
    assert "holds all 381.5 MiB" in sentence


def test_values_of_training_that_keep_blocks_gathered_are_named_one_by_one():
    zero = {
        "stage3_max_reuse_distance": 1e9,
        "stage3_prefetch_bucket_size": 5e7,
        "stage3_param_persistence_threshold": 100_000,
    }
    sentences = what_stays_whole(zero_settings(stage(3, **zero), FACTS), FACTS)
    assert [sentence.split(" is ")[0] for sentence in sentences] == list(zero)
    assert sentences[0].startswith("stage3_max_reuse_distance is 1e+09 for a backbone of 200000000 numbers:")
    one_block = zero_settings(stage(3, stage3_prefetch_bucket_size=7_000_000), FACTS)
    assert what_stays_whole(one_block, FACTS) == []


# What is refused.


@pytest.mark.parametrize(
    ("given", "changes", "sentence"),
    [
        (stage(3, sub_group_size="auto"), {}, 'zero_optimization.sub_group_size is "auto", and fedray has'),
        (
            {**stage(3), "optimizer": {"params": {"betas": [0.9, "auto"]}}},
            {"trained_params": 10},
            r'optimizer.params.betas\[1\] is "auto"',
        ),
        (stage(1), {}, "stage 1 shards optimizer moments, and a frozen backbone has none"),
        (stage(2), {}, "stage 2 shards gradients and optimizer moments, and a frozen backbone has none"),
        (stage(2), {"trained_params": 10}, "stage 2 shards .* needs an optimizer section"),
        (stage(4), {}, "stage is 0, 1, 2 or 3, found 4"),
        (stage("3"), {}, "stage is 0, 1, 2 or 3, found '3'"),
        (stage(True), {}, "stage is 0, 1, 2 or 3, found True"),
        ({"zero_optimization": True}, {}, "zero_optimization is a group of keys, found True"),
        (stage(3, offload_param="cpu"), {}, "offload_param is a group of keys, found 'cpu'"),
        ({**stage(3), "optimizer": {"type": "AdamW"}}, {}, "optimizer has no effect"),
        ({**stage(3), "scheduler": {"type": "WarmupLR"}}, {}, "scheduler has no effect"),
        ({**stage(3), "gradient_clipping": 1.0}, {}, "gradient_clipping has no effect"),
        ({**stage(3), "gradient_accumulation_steps": 8}, {}, "gradient_accumulation_steps has no effect"),
        (stage(3, offload_optimizer={"device": "cpu"}), {}, "offload_optimizer has no effect"),
        (
            {**stage(3), "train_batch_size": 64},
            {},
            "train_batch_size is 64, and 4 rows x 1 accumulated x 2 shards are 8",
        ),
        (
            {**stage(3), "train_micro_batch_size_per_gpu": 0},
            {},
            "train_micro_batch_size_per_gpu is a whole number from 1 or",
        ),
        (
            {**stage(3), "bf16": {"enabled": True}},
            {},
            "bf16.enabled is true and the backbone is held in fp32",
        ),
        (
            {**stage(3), "bf16": {"enabled": False}},
            {"dtype": "bf16"},
            "bf16.enabled is false and the backbone is held in bf16",
        ),
        (
            {**stage(3), "fp16": {"enabled": True}},
            {},
            "fp16.enabled is true, and a backbone is held in fp32 or",
        ),
        (stage(3, offload_param={"device": "disk"}), {}, "device is none, cpu or nvme, found 'disk'"),
        (stage(0, offload_param={"device": "cpu"}), {}, "which stage 0 does not make"),
        (stage(3, offload_param={"device": "nvme"}), {}, "device is nvme without an nvme_path"),
        (
            stage(3, offload_param={"device": "nvme", "nvme_path": "/disk"}),
            {"has_libaio": False},
            r"through libaio, and that is not there; install it with its headers \(libaio-dev",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(given, changes, sentence):
    with pytest.raises(ConfigError, match=sentence) as refused:
        zero_settings(given, replace(FACTS, **changes))
    assert len(str(refused.value).splitlines()) == 1


def test_everything_that_is_wrong_is_said_at_once_and_the_file_is_named(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({**stage(2), "gradient_clipping": 1.0, "bf16": {"enabled": True}}))
    with pytest.raises(ConfigError) as refused:
        zero_settings(file, FACTS)
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{file}: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{\n"bf16": }', "not JSON at line 2"),
        ("[3]", r"are a group of keys, found \[3\]"),
        ('{"bf16": {}, "bf16": {}}', "the key 'bf16' is given twice"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path, text, sentence):
    file = tmp_path / "mine.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=sentence):
        zero_settings(str(file), FACTS)


def test_a_name_or_a_path_that_is_not_there_is_refused_with_what_there_is(tmp_path):
    with pytest.raises(
        ConfigError, match="named 'zero4'; fedray brings zero3, zero3_nvme, zero3_offload, or"
    ):
        zero_settings("zero4", FACTS)
    with pytest.raises(ConfigError, match=r"There is no DeepSpeed file .*mine\.json"):
        zero_settings(tmp_path / "mine.json", FACTS)

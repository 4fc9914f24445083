"""Wire bytes against safetensors itself."""

import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.model.wire import wire_bytes

DTYPES = (
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)
SHAPES = st.lists(st.integers(1, 40), max_size=3).map(tuple)
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)


@given(st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(DTYPES)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_size_is_that_of_what_safetensors_writes(layout):
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in layout.items()}
    assert wire_bytes(tensors) == len(safetensors.torch.save(tensors))
    assert wire_bytes({name: t.to("meta") for name, t in tensors.items()}) == wire_bytes(tensors)


def test_one_factor_of_rank_8_and_width_384_is_its_numbers_and_a_header():
    # 8 for the length field, a header padded to 8, 8 * 384 numbers of four bytes.
    header = b'{"q.lora_A":{"dtype":"F32","shape":[8,384],"data_offsets":[0,12288]}}'
    assert wire_bytes({"q.lora_A": torch.zeros(8, 384)}) == 8 + -(-len(header) // 8) * 8 + 12288


def test_nothing_is_no_message():
    assert wire_bytes({}) == 0

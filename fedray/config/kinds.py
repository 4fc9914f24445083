"""The kinds of value that a configuration's sections are made of."""

import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fedray.errors import ConfigError
from fedray.units import parse_bytes

# A text with one of these endings, or that starts like a path, names a file and not a known thing.
FILE_SUFFIXES = frozenset({".py", ".yaml", ".yml", ".csv", ".parquet", ".json", ".jsonl", ".txt"})

T = TypeVar("T")


class Section(BaseModel):
    """A group of keys: frozen, without unknown keys, and without silent conversions between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def looks_like_a_path(text: str) -> bool:
    """Whether a text means a file or folder rather than a name."""
    path = pathlib.Path(text)
    starts_like_one = text.startswith((".", "/", "~"))
    return starts_like_one or path.suffix.lower() in FILE_SUFFIXES or ("/" in text and path.exists())


def _existing_path(value: Any) -> Any:
    # Absolute, so that a resolved configuration means the same from every folder.
    if not isinstance(value, str) or not looks_like_a_path(value):
        return value
    path = pathlib.Path(value).expanduser().absolute()
    if not path.exists():
        raise ValueError(f"names a file that does not exist: {path}")
    return str(path)


def _as_tuple(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    repeated = next((v for i, v in enumerate(value) if v in value[:i]), None)
    if repeated is not None:
        raise ValueError(f"lists {repeated!r} twice")
    return tuple(value)


def _not_empty(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("needs at least one value, found an empty list")
    return values


def _not_dora(values: Any) -> Any:
    if isinstance(values, list | tuple) and "dora" in values:
        raise ValueError(
            "has no dora, whose weights are divided by the norm of W + s B A: means of its magnitudes and "
            "factors are not those of any mean of the clients' weights; name lora"
        )
    return values


def _as_bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except ConfigError as error:
        raise ValueError(f"must be a number of bytes: {error}".rstrip(".")) from error


def _name_alone(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


NameOrPath = Annotated[str, BeforeValidator(_existing_path)]
# YAML has lists; a value is a tuple, so that a configuration cannot change under a run.
Many = Annotated[tuple[T, ...], BeforeValidator(_as_tuple)]
AtLeastOne = Annotated[tuple[T, ...], AfterValidator(_not_empty), BeforeValidator(_as_tuple)]
OneOrMany = Annotated[
    tuple[T, ...], BeforeValidator(_as_tuple), BeforeValidator(lambda v: [v] if isinstance(v, str) else v)
]
Tunings = Annotated[
    AtLeastOne[Literal["lora", "full", "bitfit", "ia3", "prompt", "prefix"]], BeforeValidator(_not_dora)
]
Bytes = Annotated[int, Field(gt=0), BeforeValidator(_as_bytes)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PartShare = Annotated[float, Field(ge=0, lt=1)]
NameAlone = BeforeValidator(_name_alone)


class Named(Section):
    """Something found by name or by path, with options of its own; a plain text is its name."""

    name: NameOrPath = Field(description="A shipped one's name, or the path of your own file.")
    options: Mapping[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of what the name stands for."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return _name_alone(value)

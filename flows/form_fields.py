"""The fields of the forms in the Prefect UI: title, description, values to choose from and bounds, as JSON schema.

Prefect's UI shows a parameter by its JSON schema, and a value of an `enum` as it stands there. A choice is therefore
shown under a key of its own, the field's title, with readable values and one for "not changed"; under the field's name
its plain value is taken as well, which the API, schedules and `--set` give. A field that may be null is shown as a
field of its one kind, without a default: what nobody touches is not sent.
"""

import dataclasses
import re
import types
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from eval.suites.suites import SUITES
from flows.preset_files import Preset, read_preset
from model.parsing import Bounds, ConfigError, Dataclass, descriptions, field_types

Schema = dict[str, Any]
NOT_CHANGED = "(not changed)"
WORDS = {
    "adam": "Adam",
    "arc": "ARC",
    "dir": "folder",
    "eot": "end-of-text",
    "fp8": "FP8",
    "gpu": "GPU",
    "hellaswag": "HellaSwag",
    "id": "ID",
    "kv": "KV",
    "lr": "learning rate",
    "mlp": "MLP",
    "muon": "Muon",
    "ngram": "n-gram",
    "qk": "QK",
    "sha256": "SHA-256",
    "usd": "US dollars",
    "vocab": "vocabulary",
    "winogrande": "WinoGrande",
}
"""Parts of the names of fields that a title spells in another way."""
LABELS = {
    "adamw": "AdamW",
    "arc_challenge": "ARC-Challenge",
    "arc_easy": "ARC-Easy",
    "bf16": "BF16",
    "bias": "Bias",
    "cosine": "Cosine",
    "cpu": "CPU",
    "cuda": "GPU (CUDA)",
    "ddp": "DDP",
    "dense": "Dense",
    "documents": "Whole documents",
    "embedding": "Embedding",
    "file": "Loaded from a file",
    "filter": "Filter",
    "fp16": "FP16",
    "fp32": "FP32",
    "fp8": "FP8",
    "fsdp": "FSDP",
    "gelu": "GELU",
    "gpt2": "GPT-2's",
    "hellaswag": "HellaSwag",
    "hub": "Loaded from the Hugging Face hub",
    "key": "Key",
    "layer": "LayerNorm",
    "learned": "Learned",
    "loss": "Loss",
    "mha": "Multi-head (MHA)",
    "mla": "Latent (MLA)",
    "moe": "Mixture of experts",
    "muon": "Muon",
    "none": "None",
    "own": "Own document",
    "psgd": "PSGD",
    "refuse": "Refuse",
    "relu2": "Squared ReLU",
    "report": "Report",
    "rms": "RMSNorm",
    "rotary": "Rotary",
    "stream": "Token stream",
    "swiglu": "SwiGLU",
    "tensorboard": "TensorBoard",
    "tf32": "TF32",
    "train": "Trained on the documents",
    "truthfulqa": "TruthfulQA",
    "wandb": "Weights & Biases",
    "winogrande": "WinoGrande",
    "wsd": "Warm-up, stable, cooldown (WSD)",
}
"""What the form shows for a value; others stand for themselves."""
TITLES = {
    "flops": "Budget in FLOPs",
    "gpu_hours": "Budget in GPU hours",
    "num_fewshot": "Solved examples before each question",
    "rows": "Sequences",
    "tokens": "Budget in tokens",
    "usd": "Budget in US dollars",
}
"""Titles that do not follow from the name."""
SUITE_FIELDS = {"suites", "suite"}
"""Fields that take names of benchmark suites, which their types do not say."""
SMALLEST = 1e-12
"""What the browser asks for where a number must be over 0: it checks `minimum` alone."""


def title_of(name: str) -> str:
    """The title of a field: `qk_norm` is `QK norm`."""
    if name in TITLES:
        return TITLES[name]
    if between := re.fullmatch("(.+)_every_(steps|minutes)", name):
        return f"{between[2].capitalize()} between {between[1]}s"
    words = " ".join(WORDS.get(part, part) for part in name.split("_"))
    return words[0].upper() + words[1:]


def label_of(value: object) -> str:
    """One of a field's choices as the form shows it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return LABELS.get(str(value), str(value))


def words_of(name: str, kind: Any, value: object) -> str:
    """The value of a field as the form shows it: null as none, numbers with thousands separated."""
    if value is None or value is dataclasses.MISSING:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(words_of(name, str, each) for each in value) or "none"
    if choices_of(name, kind):
        return label_of(value)
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e15):
        return f"{value:g}"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.0f}"  # 1900 is a seed
    return str(value)


def choices_of(name: str, kind: Any) -> list[Any] | None:
    """The values that a field can have, where they are few and no texts of one's own."""
    kind = _without_null(kind)
    if name in SUITE_FIELDS and kind is str:
        return list(SUITES)
    if kind is bool:
        return [True, False]
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return [choice.value for choice in kind]
    return list(get_args(kind)) if get_origin(kind) is Literal else None


def options_of(kind: Any) -> dict[str, type[Dataclass]]:
    """The dataclasses that a field can be, by their titles, where there are several."""
    options = [option for option in get_args(kind) if isinstance(option, type) and dataclasses.is_dataclass(option)]
    return {option.form_title: option for option in options} if len(options) > 1 else {}  # type: ignore[attr-defined]


def shown_fields(config: type[Dataclass], value_words: Callable[[str], str], names: Iterable[str]) -> Schema:
    """The properties of some fields of a dataclass, by their keys in the form. `value_words` says which value a field
    has that is left empty."""
    shown: Schema = {}
    for name in names:
        kind = field_types(config)[name]
        about = _with_labels(descriptions(config).get(name, ""), choices_of(name, kind) or [])
        texts = {"title": title_of(name), "description": " ".join(filter(None, (about, value_words(name))))}
        if options := options_of(kind):
            for title, option in options.items():
                shown[title] = object_schema(option) | {"title": f"{title_of(name)}: {title}"}
        elif choices := choices_of(name, kind):
            if len(choices) > 1:  # `kind` of a source has one
                shown[title_of(name)] = {"type": "string", "enum": [*map(label_of, choices), NOT_CHANGED], **texts}
        else:
            shown[name] = _value_schema(name, kind) | texts
    return shown


def accepted_fields(config: type[Dataclass], shown: Schema) -> Schema:
    """The plain values of fields that are not shown under their own names, for `patternProperties`."""
    kinds = field_types(config)
    return {f"^{name}$": _plain_schema(name, kind) for name, kind in kinds.items() if name not in shown}


def plain_values(config: type[Dataclass], filled: object) -> Any:
    """What a filled form gives, by the names of the fields: choices as their plain values, nothing for what is not
    changed. What is shown in the form comes before the plain value of the same field, which a person does not see."""
    if not isinstance(filled, dict):
        return filled
    kinds = field_types(config)
    by_title = {title_of(name): name for name in kinds if choices_of(name, kinds[name])}
    by_option = {title: (name, option) for name in kinds for title, option in options_of(kinds[name]).items()}
    plain: dict[str, Any] = {key: value for key, value in filled.items() if key not in by_title | by_option}
    given: dict[str, str] = {}
    for key, value in filled.items():
        if key in by_title:
            if value != NOT_CHANGED:
                name = by_title[key]
                plain[name] = _chosen(value, choices_of(name, kinds[name]) or [])
        elif key in by_option and value:
            name, option = by_option[key]
            if name in given:
                raise ConfigError(f"{given[name]} and {key} are both filled in: expected one {title_of(name).lower()}")
            given[name] = key
            plain[name] = {"kind": get_args(field_types(option)["kind"])[0], **plain_values(option, value)}
    for name, kind in kinds.items():
        if name in plain and dataclasses.is_dataclass(kind):
            plain[name] = plain_values(kind, plain[name])  # type: ignore[arg-type]
    return plain


def object_schema(config: type[Dataclass], value_words: Callable[[str], str] | None = None) -> Schema:
    """All fields of a dataclass as one object; a field that has a default is left out where it is empty."""
    fields = dataclasses.fields(config)
    shown = shown_fields(config, value_words or default_words(config), [field.name for field in fields])
    needed = [field.name for field in fields if _needs_value(field)]
    described = {"required": [name for name in needed if name in shown]} if needed else {}
    return closed_object(shown, accepted_fields(config, shown)) | described


def closed_object(shown: Schema, accepted: Schema) -> Schema:
    """An object of fields in the order in which they stand, and of no others."""
    ordered = {key: field | {"position": place} for place, (key, field) in enumerate(shown.items())}
    return {
        "type": "object",
        "properties": ordered,
        "patternProperties": accepted,
        "additionalProperties": False,
    }


def default_words(config: type[Dataclass]) -> Callable[[str], str]:
    """Of settings that are in no preset: what an empty field stands for."""
    defaults, kinds = {field.name: field.default for field in dataclasses.fields(config)}, field_types(config)

    def words(name: str) -> str:
        value = defaults[name]
        unsaid = value is dataclasses.MISSING or value is None or dataclasses.is_dataclass(value)
        return "" if unsaid else f"Default: {words_of(name, kinds[name], value)}."

    return words


def preset_words(section: str, config: type[Dataclass], presets: tuple[str, ...]) -> Callable[[str], str]:
    """Of settings that presets have: the value in each of some presets, read from their files."""
    defaults, kinds = {field.name: field.default for field in dataclasses.fields(config)}, field_types(config)

    def words(name: str) -> str:
        values = {preset: _read(preset).get(section, {}).get(name, defaults[name]) for preset in presets}
        if any(isinstance(value, dict) or dataclasses.is_dataclass(value) for value in values.values()):
            return ""
        by_value: dict[str, list[str]] = {}
        for preset, value in values.items():
            by_value.setdefault(words_of(name, kinds[name], value), []).append(preset)
        if len(by_value) == 1:
            return f"Preset: {next(iter(by_value))}."
        return "Preset: " + " · ".join(f"{', '.join(names)} {value}" for value, names in by_value.items())

    return words


@cache
def sources_of_presets() -> dict[str, dict[str, Any]]:
    """What the presets read, by what the form shows for it: the text, and the first presets that read it."""
    readers: dict[str, list[str]] = {}
    sources: dict[str, dict[str, Any]] = {}
    for preset in Preset:
        source = _read(preset)["data"]["source"]
        named = ("requirement", "members", "id", "name", "path")
        text = " ".join(str(source[name]) for name in named if name in source)
        sources[text] = source
        readers.setdefault(text, []).append(preset.value)
    return {
        f"{text} ({', '.join(names[:2])}{', …' if len(names) > 2 else ''})": sources[text]
        for text, names in readers.items()
    }


@cache
def _read(preset: str) -> dict[str, Any]:
    return read_preset(preset)


def _needs_value(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _chosen(label: object, choices: list[Any]) -> Any:
    return next((choice for choice in choices if label == label_of(choice)), label)


def _without_null(kind: Any) -> Any:
    """The type of a field that is given: without its bounds and without None."""
    return next(_parts(kind))[0]


def _parts(kind: Any) -> Iterator[tuple[Any, tuple[Bounds, ...]]]:
    """The types that a field can have, but None, each with its bounds."""
    if get_origin(kind) is Annotated:
        inner, *bounds = get_args(kind)
        own = tuple(each for each in bounds if isinstance(each, Bounds))
        yield from ((part, own + others) for part, others in _parts(inner))
    elif get_origin(kind) in (types.UnionType, Union):
        yield from (part for option in get_args(kind) if option is not types.NoneType for part in _parts(option))
    else:
        yield kind, ()


def _plain_schema(name: str, kind: Any) -> Schema:
    """Of a field under its own name, whatever the form shows for it; null passes, whatever the field takes."""
    if options := options_of(kind):
        return {"anyOf": [*(_plain_object(option) for option in options.values()), {"type": "null"}]}
    if choices := choices_of(name, kind):
        return {"enum": [*choices, None]}
    schema = _value_schema(name, kind)
    return schema | {"type": [schema["type"], "null"]}


def _with_labels(about: str, choices: list[Any]) -> str:
    """A description that says what each value of a choice means, with the labels of the values."""
    for choice in choices:
        about = re.sub(rf"(?<![\w`]){re.escape(str(choice))}(?=: |, \w+: )", label_of(choice), about)
        about = about.replace(f"`{choice}`", label_of(choice))
    return about.replace("`", "")


def _plain_object(config: type[Dataclass]) -> Schema:
    return closed_object({}, accepted_fields(config, {}))


def _value_schema(name: str, kind: Any) -> Schema:
    """A number, a text, a list of them or an object of several."""
    [(kind, bounds)] = _parts(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return object_schema(kind)
    if get_origin(kind) in (tuple, list):
        items = (
            {"type": "string", "enum": list(SUITES)} if name in SUITE_FIELDS else _value_schema("", get_args(kind)[0])
        )
        return {"type": "array", "items": items}
    schema: Schema = {"type": {int: "integer", float: "number", str: "string", Path: "string"}[kind]}
    for each in bounds:
        schema |= _bounds(each, kind)
    return schema


def _bounds(bounds: Bounds, kind: type) -> Schema:
    """`minimum` and `maximum`, which the browser checks itself: it shows where a number is refused."""
    step: Callable[[float], float] = (lambda _: 1) if kind is int else (lambda bound: abs(bound) * 1e-9 or SMALLEST)
    least = bounds.ge if bounds.gt is None else bounds.gt + step(bounds.gt)
    most = bounds.le if bounds.lt is None else bounds.lt - step(bounds.lt)
    schema = {"minimum": least, "maximum": most, "pattern": bounds.pattern}
    return {name: bound for name, bound in schema.items() if bound is not None}

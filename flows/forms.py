"""The forms of the flows' parameters: what the Prefect UI shows of a section, and what a filled form says.

A flow's parameter is annotated with a form, which pydantic asks for the JSON schema (`flows/form_fields.py`) and for
the value that the flow gets. What a value may be, `model/parsing.py` decides here as everywhere.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from flows.form_fields import (
    NOT_CHANGED,
    Schema,
    accepted_fields,
    closed_object,
    default_words,
    plain_values,
    preset_words,
    shown_fields,
    sources_of_presets,
    title_of,
)
from flows.preset_files import Preset, what_stays
from model.errors import reason_of, shown_value
from model.parsing import ConfigError, Dataclass, field_types, parse, parse_changes

Fields = dict[str, Any]
"""Fields of a section that are given, and their values as in JSON. Null is a value like any other."""
NOTHING: Fields = {}
DATA, TEXTS = "Data", "texts"
"""Fields of the first group: a source that a preset reads, or a folder of one's own."""
JSON_OBJECT = r"^\s*(\{[\s\S]*\}\s*)?$"


def titled(title: str, **more: Any) -> FieldInfo:
    """A title for the form; Prefect replaces that of `Field(title=…)` by the parameter's name."""
    return FieldInfo(json_schema_extra={"title": title, **more})


class _Form:
    """In `Annotated`: the JSON schema of a parameter, and how its value is read."""

    def schema(self) -> Schema:
        raise NotImplementedError

    def read(self, filled: Any) -> Any:
        raise NotImplementedError

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        as_json = core_schema.plain_serializer_function_ser_schema(
            lambda value: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
        )
        return core_schema.no_info_plain_validator_function(self.read, serialization=as_json)

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: GetJsonSchemaHandler) -> Schema:
        return self.schema()


@dataclass(frozen=True)
class Section(_Form):
    """The form of changes to a section of a run: the flow gets the fields that are given."""

    name: str
    config: type[Dataclass]
    presets: tuple[str, ...]
    """Whose values the descriptions name."""
    hidden: frozenset[str] = frozenset()
    """Fields that are shown elsewhere, or have no effect in this flow. Their plain values are taken."""

    def schema(self) -> Schema:
        names = [name for name in field_types(self.config) if name not in self.hidden]
        shown = shown_fields(self.config, preset_words(self.name, self.config, self.presets), names)
        return closed_object(shown, accepted_fields(self.config, shown))

    def read(self, filled: Any) -> Fields:
        given = plain_values(self.config, filled)
        parse_changes(self.config, given, self.name)
        return dict(given)


@dataclass(frozen=True)
class Settings(_Form):
    """The form of settings that no preset has: the flow gets the dataclass; an empty field has its default."""

    name: str
    config: type[Dataclass]
    hidden: frozenset[str] = frozenset()

    def schema(self) -> Schema:
        names = [name for name in field_types(self.config) if name not in self.hidden]
        own = {name for part in self.config.__mro__[:1] for name in part.__annotations__}
        shown = shown_fields(self.config, default_words(self.config), sorted(names, key=lambda name: name not in own))
        return closed_object(shown, accepted_fields(self.config, shown))

    def read(self, filled: Any) -> Any:
        if isinstance(filled, self.config):
            return filled
        return parse(self.config, plain_values(self.config, filled), self.name)


@dataclass(frozen=True)
class First(_Form):
    """The form of what most people change first, taken from several sections: the flow gets fields by section."""

    sections: dict[str, type[Dataclass]]
    fields: tuple[str, ...]
    """Each as `section.field`; `data.source` is a choice of what the presets read, or a folder of one's own."""
    presets: tuple[str, ...]

    def _parts(self) -> Iterator[tuple[str, str, type[Dataclass]]]:
        for path in self.fields:
            section, _, name = path.partition(".")
            yield section, name, self.sections[section]

    def hidden(self, section: str) -> frozenset[str]:
        """Which fields of a section are shown here."""
        return frozenset(name for other, name, _ in self._parts() if other == section and name != "source")

    def schema(self) -> Schema:
        shown: Schema = {}
        for section, name, config in self._parts():
            if name == "source":
                shown |= _source_fields()
                continue
            words = default_words(config) if section == "execution" else preset_words(section, config, self.presets)
            shown |= shown_fields(config, words, [name])
        if "store" in shown:
            shown["store"]["description"] = (
                "Where results are kept: a folder, or s3://bucket/prefix. Empty: the store of this deployment."
            )
        return closed_object(shown, {})

    def read(self, filled: Any) -> dict[str, Fields]:
        if not isinstance(filled, dict):
            raise ConfigError(f"first must be an object, but it is {shown_value(filled)}")
        left = dict(filled)
        given: dict[str, Fields] = {name: left.pop(name) for name in self.sections if name in left}
        for section, name, config in self._parts():
            keys = (DATA, TEXTS) if name == "source" else (name, title_of(name))
            chosen = {key: left.pop(key) for key in keys if key in left}
            values = _source(chosen) if name == "source" else plain_values(config, chosen)
            parse_changes(config, values, section)
            given[section] = given.get(section, {}) | values
        if left:
            raise ConfigError(f"first has the unknown key {', '.join(map(shown_value, left))}")
        return {section: values for section, values in given.items() if values}


def _source_fields() -> Schema:
    return {
        DATA: {
            "type": "string",
            "title": DATA,
            "description": "What the model reads: the text of a preset. Other sources: Advanced: data.",
            "enum": [*sources_of_presets(), NOT_CHANGED],
        },
        TEXTS: {
            "type": "string",
            "title": "Texts of your own",
            "description": "In place of that: a file or folder on this machine, with Parquet, JSONL or text files.",
        },
    }


def _source(chosen: Fields) -> Fields:
    label, texts = chosen.get(DATA, NOT_CHANGED), chosen.get(TEXTS)
    if texts is not None:
        if label != NOT_CHANGED:
            raise ConfigError(f"Data {shown_value(label)} and texts of your own {shown_value(texts)}: expected one")
        return {"source": {"kind": "files", "path": texts}}
    if label == NOT_CHANGED:
        return {}
    if label not in sources_of_presets():
        known = ", ".join(sources_of_presets())
        raise ConfigError(f"Data {shown_value(label)} is no text of a preset; known are {known}")
    return {"source": sources_of_presets()[label]}


@dataclass(frozen=True)
class FurtherChanges(_Form):
    """A text of changes that the form has no field for, such as null: the flow gets fields by section."""

    sections: dict[str, type[Dataclass]]

    def schema(self) -> Schema:
        return {"type": "string", "format": "json-string", "pattern": JSON_OBJECT}

    def read(self, text: Any) -> dict[str, Fields]:
        try:
            values = json.loads(text.strip() or "{}") if isinstance(text, str) else text
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"further changes {shown_value(text)} are no JSON: {reason_of(error)}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"further changes must be a JSON object, but they are {shown_value(values)}")
        given: dict[str, Fields] = {}
        for key, value in values.items():
            section, dot, name = key.partition(".")
            if section not in self.sections:
                raise ConfigError(
                    f"further changes: unknown section {shown_value(section)}; known are {', '.join(self.sections)}"
                )
            fields = {name: value} if dot else value
            parse_changes(self.sections[section], fields, section)
            given[section] = given.get(section, {}) | fields
        return given


class PresetChoice(_Form):
    """The form of a preset."""

    def schema(self) -> Schema:
        return {"type": "string", "enum": [preset.value for preset in Preset]}

    def read(self, value: Any) -> Preset | None:
        if value not in list(Preset):
            raise ConfigError(f"unknown preset {shown_value(value)}; known are {', '.join(Preset)}")
        return Preset(value)


class OptionalPresetChoice(PresetChoice):
    """A preset that may be left out: one choice, where `Preset | None` would be two tabs."""

    def schema(self) -> Schema:
        return {"type": "string", "enum": [*(preset.value for preset in Preset), NOT_CHANGED]}

    def read(self, value: Any) -> Preset | None:
        return None if value in (None, NOT_CHANGED) else super().read(value)


def merged(first: dict[str, Fields], further: dict[str, Fields], sections: dict[str, Fields]) -> dict[str, Fields]:
    """Changes by section. What stands in the first group comes before the same field of a section, which is not shown
    there; what is in the text of further changes must be in no field."""
    for name, fields in further.items():
        given = sections.get(name, {}) | first.get(name, {})
        if twice := sorted(given.keys() & fields.keys()):
            raise ConfigError(f"{name}.{twice[0]} is given in a field and in the further changes: expected one")
    return {
        name: what_stays(fields, first.get(name, {})) | first.get(name, {}) | further.get(name, {})
        for name, fields in sections.items()
    }

"""A JSON schema -> the part of it that llama-cpp-python's converter holds to, or why it cannot be.

Its converter passes over what it does not know, so an answer would break a rule that somebody relies on: here
such a rule is refused. What only describes is dropped. Keywords: json-schema.org, draft 2020-12.
"""

import re
from typing import Any

from tinyllava_edge.errors import GrammarError

_DESCRIBES = {
    "$schema", "$id", "$comment", "title", "description", "default", "example", "examples", "deprecated",
    "readOnly", "writeOnly", "strict", "discriminator", "format",
}  # fmt: skip
_DEFINITIONS = ("$defs", "definitions")
_FORMATS = {"date", "time", "date-time", "uuid"}  # others say nothing that a grammar could hold to
_TYPES = ("object", "array", "string", "number", "boolean", "null")  # an integer is a number
_MOST = 500  # repetitions: the converter writes them out, and llama.cpp's parser goes down one level for each
# Characters by themselves, groups, and classes that are not negated: others let through what ends the string.
_PATTERN = re.compile(
    r"\^(?:[\w :,/@#%&=;!~<>'()|*+?{}-]|\[[\w +:,/@#%&=;!~<>'().*?-]+\]|\\[().*+?\[\]{}|])*\$"
)
_OWN_TYPES = {
    "minLength": "string", "maxLength": "string", "pattern": "string", "items": "array",
    "prefixItems": "array", "properties": "object", "additionalProperties": "object",
}  # fmt: skip
_LONE = ("$ref", "anyOf", "oneOf")
# The first that a schema has decides how it is read, and what may stand beside it.
_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("const", ()),
    ("enum", ()),
    ("properties", ("required", "additionalProperties")),
    ("additionalProperties", ("required",)),
    ("prefixItems", ()),
    ("items", ("minItems", "maxItems")),
    ("pattern", ()),
    ("minLength", ("maxLength",)),
    ("maxLength", ()),
)


def read_schema(schema: Any) -> dict[str, Any]:
    """The schema as the converter has to have it.

    Raises:
        GrammarError: it has something that the answer could not be held to; the message says what and where.
    """
    if not isinstance(schema, dict):
        raise GrammarError(f"the JSON schema must be an object, found {type(schema).__name__}.")
    named = [(part, name) for part in _DEFINITIONS for name in _mapping(schema.get(part, {}), part)]
    names = {f"#/{part}/{name}": f"schema-of-{number}" for number, (part, name) in enumerate(named)}
    read = _Reader(names)
    defined = {f"schema-of-{n}": read(schema[part][name], name) for n, (part, name) in enumerate(named)}
    return {**read(schema, "its top"), **({"$defs": defined} if defined else {})}


class _Reader:
    """Reads the schemas inside one: `names` has where each definition is now."""

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def __call__(self, schema: Any, where: str) -> dict[str, Any]:
        if schema is True:
            return {"type": list(_TYPES)}
        keys = {
            key: schema[key] for key in _mapping(schema, where) if key not in (*_DESCRIBES, *_DEFINITIONS)
        }
        lone = next((key for key in _LONE if key in keys), None)
        if lone is not None:
            self._refuse_others(keys, (lone,), where)
            return self._alternatives(keys, lone, where)
        kind, beside = next(((key, also) for key, also in _KINDS if key in keys), ("type", ()))
        self._refuse_others(keys, (kind, "type", *beside), where)
        if (
            kind == "type"
            and str(schema.get("format")) in _FORMATS
            and keys.get("type", "string") == "string"
        ):
            return {"type": "string", "format": schema["format"]}
        known = keys.get("type", list(_TYPES))
        for one in known if isinstance(known, list) else [known]:
            if one not in (*_TYPES, "integer"):
                raise GrammarError(
                    f"the JSON schema's type {one!r} at {where} is none. Known: {', '.join(_TYPES)}."
                )
        return {"type": list(_TYPES)} if not keys else self._inside(keys, kind, where)

    def _refuse_others(self, keys: dict[str, Any], known: tuple[str, ...], where: str) -> None:
        for key in keys:
            if key not in known:
                with_ = f" beside {known[0]!r}" if known[0] in keys else ""
                raise GrammarError(
                    f"the JSON schema's {key!r}{with_} at {where} cannot be held to. Leave it out."
                )

    def _alternatives(self, keys: dict[str, Any], lone: str, where: str) -> dict[str, Any]:
        if lone != "$ref":
            return {"anyOf": [self(one, where) for one in _list(keys[lone], where, lone)]}
        if keys[lone] not in self._names:
            raise GrammarError(
                f"the JSON schema's $ref {keys[lone]!r:.80} at {where} leads nowhere; give '#/$defs/NAME'."
            )
        return {"$ref": f"#/$defs/{self._names[keys[lone]]}"}

    def _inside(self, keys: dict[str, Any], kind: str, where: str) -> dict[str, Any]:
        """The keys of a schema without alternatives, and the schemas in them."""
        own = _OWN_TYPES.get(kind)
        if own is not None and keys.setdefault("type", own) != own:
            raise GrammarError(
                f"the JSON schema's {kind!r} at {where} is of the type {own}, not {keys['type']!r:.60}."
            )
        _check_values(keys, where)
        if "properties" in keys:
            inside = keys["properties"].items()
            keys["properties"] = {name: self(one, f"property {name!r:.60}") for name, one in inside}
        if "additionalProperties" in keys:
            others = keys["additionalProperties"]
            keys["additionalProperties"] = others and self(others, f"other properties of {where}")
        if "items" in keys:
            keys["items"] = self(keys["items"], f"items of {where}")
        if "prefixItems" in keys:
            keys["prefixItems"] = [self(one, f"items of {where}") for one in keys["prefixItems"]]
        return keys


def _check_values(keys: dict[str, Any], where: str) -> None:
    """Refuse values that the converter does not know, or would take long over."""
    for key in ("minItems", "maxItems", "minLength", "maxLength"):
        value = keys.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
            raise GrammarError(
                f"the JSON schema's {key} at {where} is {value!r:.40}; it must be 0 to {_MOST}."
            )
    for least, most in (("minItems", "maxItems"), ("minLength", "maxLength")):
        if keys.get(least, 0) > keys.get(most, _MOST):
            raise GrammarError(f"the JSON schema's {least} at {where} is over its {most}.")
    for key in {"prefixItems", "enum"} & set(keys):
        _list(keys[key], where, key)
    properties = _mapping(keys.get("properties", {}), where)
    for name in _list(keys.get("required", []), where, "required", empty=True):
        if not isinstance(name, str) or name not in properties:
            raise GrammarError(
                f"the JSON schema requires {name!r:.60} at {where}, which is none of its properties."
            )
    pattern = keys.get("pattern", "^$")
    if not isinstance(pattern, str) or not _is_plain(pattern):
        raise GrammarError(
            f"the JSON schema's pattern {pattern!r:.80} at {where} cannot be held to: it must go from ^ to "
            "$, without '.', negated classes and classes by name. Write [0-9] for a digit."
        )


def _is_plain(pattern: str) -> bool:
    """Whether the converter reads a pattern as it is meant."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return _PATTERN.fullmatch(pattern) is not None and not re.search(r"\{[^}]*\d{4}", pattern)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise GrammarError(f"the JSON schema at {where} must be an object, found {value!r:.60}.")
    return value


def _list(value: Any, where: str, key: str, *, empty: bool = False) -> list[Any]:
    if not isinstance(value, list) or not (value or empty):
        raise GrammarError(f"the JSON schema's {key} at {where} must be a list, found {value!r:.60}.")
    return value

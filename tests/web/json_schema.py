"""As much of JSON Schema as the OpenAPI document uses, read strictly: true is no integer, and 4.0 is none either."""

from typing import Any

KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
READ = {
    *("$ref", "type", "enum", "minimum", "maximum", "default", "description", "title"),
    *("pattern", "minLength", "maxLength", "minItems", "maxItems"),
    *("properties", "required", "additionalProperties", "items", "anyOf", "allOf"),
}


def misfits(document: dict[str, Any], schema: dict[str, Any], value: Any, place: str = "$") -> list[str]:
    """Where and how the value does not fit the schema; the schemas that it refers to are the document's."""
    assert set(schema) <= READ, f"{place}: {set(schema) - READ} is not read here"
    if "$ref" in schema:
        return misfits(document, resolved(document, schema), value, place)
    found = [fault for part in schema.get("allOf", ()) for fault in misfits(document, part, value, place)]
    choices = schema.get("anyOf", [])
    if choices and all(misfits(document, choice, value, place) for choice in choices):
        found.append(f"{place}: fits none of the choices")
    if "type" in schema and not _is_of(schema["type"], value):
        return [*found, f"{place}: {value!r} is no {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{place}: {value!r} is not one of {schema['enum']}")
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{place}: {value} is out of range")
    if isinstance(value, dict):
        found += _misfits_of_object(document, schema, value, place)
    if isinstance(value, list) and "items" in schema:
        for position, item in enumerate(value):
            found += misfits(document, schema["items"], item, f"{place}[{position}]")
    return found


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema that a reference refers to."""
    target: Any = document
    for step in schema["$ref"].removeprefix("#/").split("/"):
        target = target[step]
    assert isinstance(target, dict)
    return target


def _is_of(kinds: str | list[str], value: Any) -> bool:
    allowed = [kind for name in ([kinds] if isinstance(kinds, str) else kinds) for kind in KINDS[name]]
    return type(value) in allowed


def _misfits_of_object(document: dict[str, Any], schema: dict[str, Any], value: Any, place: str) -> list[str]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    found = [f"{place}: {name} is missing" for name in schema.get("required", ()) if name not in value]
    for name, item in value.items():
        if name in known:
            found += misfits(document, known[name], item, f"{place}.{name}")
        elif others is False:
            found.append(f"{place}: {name} is unknown")
        elif isinstance(others, dict):
            found += misfits(document, others, item, f"{place}.{name}")
    return found

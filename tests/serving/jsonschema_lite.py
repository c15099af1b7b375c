"""As much of JSON Schema as our schemas use, for tests."""

from __future__ import annotations

from typing import Any

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def errors_of(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, at: str = "") -> list[str]:
    """What is wrong with a value."""
    root = root or schema
    if "$ref" in schema:
        return errors_of(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, at)
    if "discriminator" in schema:
        names = schema["discriminator"]["mapping"]
        kind = value.get(schema["discriminator"]["propertyName"])
        return errors_of(value, {"$ref": names[kind]}, root, at) if kind in names else [f"{at}: unknown {kind}"]
    if "anyOf" in schema:
        tried = [errors_of(value, choice, root, at) for choice in schema["anyOf"]]
        return min(tried, key=len)
    found = []
    if "const" in schema and value != schema["const"]:
        found.append(f"{at}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: {value!r} is none of {schema['enum']}")
    kind = schema.get("type")
    if kind in ("integer", "number"):
        right = isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
    else:
        right = kind is None or isinstance(value, TYPES[kind])
    if not right:
        return [*found, f"{at}: {value!r} is no {kind}"]
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{at}: {value} is too small")
    if kind == "array":
        found += [error for i, item in enumerate(value) for error in errors_of(item, schema.get("items", {}), root, f"{at}[{i}]")]
    if kind == "object" and "properties" in schema:
        found += [f"{at}.{name} is missing" for name in schema.get("required", []) if name not in value]
        if schema.get("additionalProperties") is False:
            found += [f"{at}.{name} is unknown" for name in value if name not in schema["properties"]]
        for name, inner in schema["properties"].items():
            found += errors_of(value[name], inner, root, f"{at}.{name}") if name in value else []
    return found

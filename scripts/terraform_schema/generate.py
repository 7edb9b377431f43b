#!/usr/bin/env python3
"""Derives the schema of Terraform's AWS provider from the npm package @cdktn/provider-aws.

usage: generate.py PACKAGE_DIRECTORY OUT.json

The package's generated bindings keep, for every resource and data source, each attribute's name, type, nesting, and
whether it is required or computed. What comes out is near to what `terraform providers schema -json` prints: enough for
terraform validate, plan and test where the provider itself can't be had. It knows nothing of what the provider checks by
code: enumerations, patterns, conflicts between arguments. Prints the provider's version.
"""

import json
import re
import sys
from pathlib import Path

# One attribute or block in the object that a binding's synthesizeHclAttributes or …ToHclTerraform returns.
ENTRY = re.compile(
    r'^\s+(\w+): \{\s*\n\s*value: (.*),\s*\n\s*isBlock: (true|false),\s*\n\s*type: "(\w+)",\s*\n\s*storageClassType: "(\w+)",',
    re.MULTILINE,
)
# A property of a TypeScript interface; the comment above links to the argument of Terraform's own name.
PROPERTY = re.compile(r"#(\w+)\}(?:(?!\*/)[\s\S])*?\*/\s*readonly (\w+)(\?)?:")
# A computed attribute: the getter that follows the comment says its type.
COMPUTED = re.compile(
    r"// (\w+) - computed: true, optional: false, required: false\s*\n(?=([^\n]*(?:\n(?!\s*//)[^\n]*)?))"
)
CONVERTER = re.compile(r"(?<!cdktn\.)\b(\w+)ToHclTerraform")
PRIMITIVES = {"string": "string", "number": "number", "boolean": "bool", "any": "dynamic"}


def storage_type(name: str):
    """The type behind a storage class like `stringMap`; None where it is a structure."""
    if name in PRIMITIVES:
        return PRIMITIVES[name]
    for suffix, kind in (("List", "list"), ("Map", "map"), ("Set", "set")):
        if name.endswith(suffix) and (inner := storage_type(name.removesuffix(suffix))):
            return [kind, inner]
    return None


def capital(name: str) -> str:
    return name[0].upper() + name[1:]


class Module:
    """The bindings of one resource, data source, or of the provider."""

    def __init__(self, script: str, types: str):
        self.script = script
        self.converters = dict(re.findall(r"^function (\w+)ToHclTerraform\(struct\) \{([\s\S]*?)^\}", script, re.MULTILINE))
        self.classes = dict(re.findall(r"^(?:export )?class (\w+) extends [\w.]+ \{([\s\S]*?)^\}", script, re.MULTILINE))
        self.required = {
            name: {attribute: not optional for attribute, _, optional in PROPERTY.findall(body)}
            for name, body in re.findall(r"^export interface (\w+)[^{]*\{([\s\S]*?)^\}", types, re.MULTILINE)
        }

    def object_type(self, converter: str):
        members = {
            name: self.attribute_type(value, kind, storage)
            for name, value, _, kind, storage in ENTRY.findall(self.converters.get(converter, ""))
        }
        return ["object", self.computed(capital(converter) + "OutputReference") | members]

    def attribute_type(self, value: str, kind: str, storage: str):
        if (match := CONVERTER.search(value)) and match[1] in self.converters:
            inner = self.object_type(match[1])
            return inner if kind in ("struct", "simple") else [kind, inner]
        base = storage_type(storage) or "dynamic"
        if kind in ("list", "set", "map"):
            return [kind, base[1]] if isinstance(base, list) else [kind, base]
        return base

    def computed(self, class_name: str) -> dict:
        return {name: self.getter_type(body) for name, body in COMPUTED.findall(self.classes.get(class_name, ""))}

    def getter_type(self, body: str):
        if match := re.search(r"new (\w+)\(this, \"\w+\"(?:, (true|false))?", body):
            base = re.sub(r"(List|OutputReference|Map)$", "", match[1])
            if base + "OutputReference" in self.classes:
                inner = self.object_type(base[0].lower() + base[1:])
                if match[1].endswith("OutputReference"):
                    return inner
                return ["map" if match[1].endswith("Map") else "set" if match[2] == "true" else "list", inner]
        if match := re.search(r"new cdktn\.(String|Number|Boolean|Any)(Map|List|MapList)\(", body):
            item = PRIMITIVES[match[1].lower()]
            return {"Map": ["map", item], "List": ["list", item], "MapList": ["list", ["map", item]]}[match[2]]
        collection = "set" if "tolist" in body else "list"
        for getter, type_ in (
            ("getStringAttribute", "string"),
            ("getNumberListAttribute", [collection, "number"]),
            ("getNumberAttribute", "number"),
            ("getBooleanAttribute", "bool"),
            ("getListAttribute", [collection, "string"]),
        ):
            if getter in body:
                return type_
        return "dynamic"

    def block(self, text: str, interface: str, class_name: str) -> dict:
        attributes, blocks = {}, {}
        required = self.required.get(interface, {})
        for name, value, is_block, kind, storage in ENTRY.findall(text):
            if is_block == "true":
                converter = CONVERTER.search(value)[1]
                nested = {
                    "nesting_mode": "single" if kind == "struct" else kind,
                    "block": self.block(
                        self.converters.get(converter, ""), capital(converter), capital(converter) + "OutputReference"
                    ),
                }
                if nested["nesting_mode"] in ("list", "set"):
                    if "listMapperHcl" not in value:
                        nested["max_items"] = 1
                    if required.get(name):
                        nested["min_items"] = 1
                blocks[name] = nested
                continue
            attribute = {"type": self.attribute_type(value, kind, storage)}
            if required.get(name):
                attribute["required"] = True
            else:
                attribute["optional"] = True
                said = re.search(rf"// {name} - computed: (true|false), optional: true", self.classes.get(class_name, ""))
                attribute["computed"] = not said or said[1] == "true"
            attributes[name] = attribute
        for name, type_ in self.computed(class_name).items():
            if name not in attributes and name not in blocks:
                attributes[name] = {"type": type_, "computed": True}
        return {"attributes": attributes, "block_types": blocks}

    def schema(self) -> tuple[str, dict] | None:
        main = re.search(r"^(?:export )?class (\w+) extends cdktn\.Terraform(?:Resource|DataSource|Provider)", self.script, re.MULTILINE)
        if not main:
            return None
        body = re.search(r"^\s+synthesizeHclAttributes\(\) \{([\s\S]*?)^    \}", self.script, re.MULTILINE)
        block = self.block(body[1] if body else "", main[1] + "Config", main[1])
        plain(block)
        return re.search(r'\btfResourceType = "(\w+)"', self.script)[1], {"version": 0, "block": block}


def plain(block: dict, in_set: bool = False) -> None:
    """Terraform refuses attributes of unknown type inside sets: they become strings."""
    if in_set:
        for attribute in block["attributes"].values():
            attribute["type"] = json.loads(json.dumps(attribute["type"]).replace('"dynamic"', '"string"'))
    for nested in block["block_types"].values():
        plain(nested["block"], in_set or nested["nesting_mode"] == "set")


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    schema = {"version": None, "provider": None, "resource_schemas": {}, "data_source_schemas": {}}
    for script in sorted(Path(sys.argv[1]).glob("lib/*/index.js")):
        types = script.with_suffix(".d.ts").read_text()
        if not schema["version"] and (match := re.search(r"hashicorp/aws/([\d.]+)/docs", types)):
            schema["version"] = match[1]
        if not (found := Module(script.read_text(), types).schema()):
            continue
        folder = script.parent.name
        if folder == "provider":
            schema["provider"] = found[1]
        else:
            kind = "data_source_schemas" if folder.startswith("data-aws-") else "resource_schemas"
            schema[kind][found[0]] = found[1]
    if not schema["version"] or not schema["provider"] or len(schema["resource_schemas"]) < 1000:
        print("error: these are not the bindings this script knows how to read", file=sys.stderr)
        return 1
    Path(sys.argv[2]).write_text(json.dumps(schema))
    print(schema["version"])
    return 0


if __name__ == "__main__":
    sys.exit(main())

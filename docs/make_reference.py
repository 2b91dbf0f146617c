"""Write docs/recipe.md, the schema.json files and the table of verifiers: `make docs`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.recipe import FileKind, recipe_json_schema
from posttrain.recipe.trainer_blocks import SharedBlock
from posttrain.rewards import VERIFIERS
from posttrain.tables import write_json

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "recipe.md"
VERIFIER_PAGE = ROOT / "docs" / "verifiers.md"
VERIFIER_HEAD = "| `verifier` | what it decides | reference |\n| --- | --- | --- |\n"
BLOCKS = {block.__name__: block.config_class for block in SharedBlock.__subclasses__()}
"""Sections that TRL documents -> its config class."""
TRL_PAGES = {
    "SFTConfig": "https://huggingface.co/docs/trl/sft_trainer#trl.SFTConfig",
    "GRPOConfig": "https://huggingface.co/docs/trl/grpo_trainer#trl.GRPOConfig",
    "DPOConfig": "https://huggingface.co/docs/trl/dpo_trainer#trl.DPOConfig",
}
SCHEMAS: dict[FileKind, Path] = {
    "recipe": ROOT / "recipes" / "schema.json",
    "judge": ROOT / "judges" / "schema.json",
    "curriculum": ROOT / "curricula" / "schema.json",
}
Node = Mapping[str, Any]

HEAD = """# The recipe

<!-- Written by docs/make_reference.py (`make docs`) from the models in posttrain/recipe. -->

One YAML file describes a whole run. Unknown keys are errors. `check` lists all errors at once, each
with file, line and the nearest valid key:

```console
posttrain check recipes/starter.yaml
```

Any key can be set from the command line, list items by number:

```console
posttrain check recipes/starter.yaml --set sft.data.0.size=200 --set rl.trainer.max_steps=20
```

Relative paths start at the recipe's folder, then at the recipes, judges and curricula that come
with posttrain. A judge, a rubric or a curriculum is the name of a file, or the content of such a
file in its place.

The three `trainer` blocks take the keys of TRL's `SFTConfig`, `GRPOConfig` and `DPOConfig`, except
those that posttrain sets itself; what a recipe leaves out keeps TRL's default, but for `save_steps`
(0.2: five checkpoints per run), `save_total_limit` (2), `logging_steps` (1), `report_to` (none)
and, in DPO, `num_train_epochs` (1).

Editors complete and check a recipe while it is written if its first line names the schema, as in
the shipped ones; `posttrain schema` prints it.
"""


def page() -> str:
    """Return the page: the recipe's sections, then those of judge and curriculum files."""
    recipe = recipe_json_schema("recipe")
    lines = [HEAD, "## Top level", "", *_table(recipe, recipe["$defs"])]
    for name in _sections(recipe):
        lines += _section(name, recipe["$defs"])
    others: tuple[tuple[FileKind, str], ...] = (
        ("judge", "Judge files"),
        ("curriculum", "Curriculum files"),
    )
    for kind, title in others:
        schema = recipe_json_schema(kind)
        lines += [f"## {title}", "", "`kind` chooses one of these.", ""]
        for option in schema["oneOf"]:
            lines += _section(_target(option), schema["$defs"])
    return "\n".join(lines).rstrip() + "\n"


def verifier_page() -> str:
    """Return docs/verifiers.md with its table as the verifiers declare it."""
    before, head, after = VERIFIER_PAGE.read_text().partition(VERIFIER_HEAD)
    assert head, f"{VERIFIER_PAGE.name} has no table that begins with {VERIFIER_HEAD!r}"
    rows = [f"| `{one.name}` | {one.summary} | {one.takes} |\n" for one in VERIFIERS.values()]
    return f"{before}{head}{''.join(rows)}\n{after.partition(chr(10) * 2)[2]}"


def _sections(schema: Node) -> list[str]:
    """Return the definitions of the recipe file itself, in the order of its keys."""
    found: list[str] = []
    others = [recipe_json_schema("judge"), recipe_json_schema("curriculum")]
    left_out = {*BLOCKS, *(_target(option) for other in others for option in other["oneOf"])}

    def visit(node: Any) -> None:
        if isinstance(node, Mapping):
            if "$ref" in node and (name := _target(node)) not in (*found, *left_out):
                found.append(name)
                visit(schema["$defs"][name])
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    visit(schema["properties"])
    return [name for name in found if "properties" in schema["$defs"][name]]


def _section(name: str, definitions: Node) -> list[str]:
    node = definitions[name]
    return [f"### {name}", "", node.get("description", ""), "", *_table(node, definitions)]


def _table(node: Node, definitions: Node) -> list[str]:
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    required = node.get("required", [])
    for key, value in node["properties"].items():
        default = "**required**" if key in required else _default(value)
        told = value.get("description", "") or _described(value, definitions)
        meaning = " ".join(told.split())
        meaning = f"{meaning} {_limits(value)}".strip()
        cells = [f"`{key}`", _type(value, definitions), default, meaning]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*rows, ""]


def _described(value: Node, definitions: Node) -> str:
    """A section without words of its own at this key says what it is."""
    targets = [_target(node) for node in _alternatives(value) if "$ref" in node]
    return definitions[targets[0]].get("description", "") if targets else ""


def _type(value: Node, definitions: Node) -> str:
    return " or ".join(dict.fromkeys(_type_names(value, definitions)))


def _type_names(value: Node, definitions: Node) -> Iterator[str]:
    for node in _alternatives(value):
        if "$ref" in node:
            name = _target(node)
            if name in BLOCKS:
                yield f"[{BLOCKS[name]}]({TRL_PAGES[BLOCKS[name]]})"
                continue
            yield f"[{name}](#{name.lower()})" if "properties" in definitions[name] else name
        elif "const" in node:
            yield f"`{node['const']}`"
        elif "enum" in node:
            yield ", ".join(f"`{option}`" for option in node["enum"])
        elif node.get("type") == "array":
            yield f"list of {_type(node.get('items', {}), definitions)}"
        elif node.get("type") == "object":
            inner = node.get("additionalProperties")
            yield "mapping" + (
                f" to {_type(inner, definitions)}" if isinstance(inner, Mapping) else ""
            )
        else:
            yield {"null": "null", None: "any"}.get(node.get("type"), str(node.get("type")))


def _alternatives(value: Node) -> list[Node]:
    options = value.get("anyOf") or value.get("oneOf") or value.get("allOf")
    return [inner for option in options for inner in _alternatives(option)] if options else [value]


def _limits(value: Node) -> str:
    signs = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    said = [
        f"{words} {_number(node[key])}"
        for node in _alternatives(value)
        for key, words in signs.items()
        if key in node
    ]
    return f"({', '.join(said)})" if said else ""


def _default(value: Node) -> str:
    if "default" not in value:
        return "empty"
    default = value["default"]
    return "its defaults" if isinstance(default, Mapping) else f"`{json.dumps(default)}`"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:g}"


def _target(node: Node) -> str:
    return node["$ref"].rpartition("/")[2]


if __name__ == "__main__":
    for kind, file in SCHEMAS.items():
        write_json(file, recipe_json_schema(kind))
    PAGE.write_text(page())
    VERIFIER_PAGE.write_text(verifier_page())

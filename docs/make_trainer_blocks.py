"""Write posttrain/recipe/trainer_blocks.py from TRL's config classes: `make docs`."""

from __future__ import annotations

import enum
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import trl

from posttrain.recipe.trainer import DEFAULTS, TrainerBlock

FILE = Path(__file__).parent.parent / "posttrain" / "recipe" / "trainer_blocks.py"

CLASSES: Mapping[str, str] = {
    "SFTConfig": "SFTBlock",
    "GRPOConfig": "GRPOBlock",
    "DPOConfig": "DPOBlock",
}
"""TRL's class -> ours."""

TYPES: Mapping[str, str] = {
    # The trainer measures nothing that could be best.
    "save_strategy": 'Literal["no", "steps", "epoch"]',
    # TRL's annotations say less than its documentation, or allow None and fail later.
    "SFTConfig.loss_type": 'Literal["nll", "dft", "chunked_nll"]',
    "GRPOConfig.loss_type": 'Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", '
    '"vespo"]',
    "DPOConfig.loss_type": "DPOLoss | Annotated[list[DPOLoss], Field(min_length=1)]",
    "importance_sampling_level": 'Literal["token", "sequence"]',
    "scale_rewards": 'Literal["group", "batch", "none"] | bool',
    "num_generations": "int",
    "max_completion_length": "int",
}
"""Types that are not those of TRL's annotations."""

LIMITS: Mapping[str, str] = {
    "per_device_train_batch_size": "ge=1",
    "gradient_accumulation_steps": "ge=1",
    "learning_rate": "ge=0",
    "dataloader_num_workers": "ge=0",
    "max_length": "ge=2",
    "max_completion_length": "ge=1",
    "temperature": "gt=0",
    "top_p": "gt=0, le=1",
    "num_generations": "ge=2",
    "num_iterations": "ge=1",
    "generation_batch_size": "ge=1",
    "steps_per_generation": "ge=1",
    "DPOConfig.beta": "ge=0",
}
"""Numbers outside of these fail in training, hours later."""

DESCRIPTIONS: Mapping[str, str] = {
    "max_steps": "Number of optimizer steps; -1 leaves it to num_train_epochs.",
    "save_steps": "Steps between two checkpoints, or below 1 their share of the run.",
    "logging_steps": "Steps between two rows of metrics.jsonl, or below 1 their share of the run.",
    "report_to": "Services that the metrics are reported to besides metrics.jsonl.",
    "use_cache": "Whether the model keeps its key-value cache in training.",
    "pad_token": "Token used for padding.",
}
"""Where TRL's first sentence does not say enough."""

DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
    "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip

GREEK = {
    "\N{GREEK SMALL LETTER ALPHA}": "alpha",
    "\N{GREEK SMALL LETTER MU}": "mu",
    "\N{GREEK SMALL LETTER RHO}": "rho",
    "\N{GREEK SMALL LETTER TAU}": "tau",
}

HEAD = '''"""Keys of TRL's config classes; docs/make_trainer_blocks.py writes this (`make docs`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from posttrain.recipe.trainer import TrainerBlock

'''

Key = tuple[str, str, str, str]
"""Name, type, value and description, as they are written."""


def module() -> str:
    """Return the source of trainer_blocks.py, formatted."""
    literals = {"DPOLoss": _literal(DPO_LOSSES)}
    keys = {name: list(_keys(name, literals)) for name in CLASSES}
    shared = list(_shared(list(keys.values())))
    body = [_block("SharedBlock(TrainerBlock)", "The keys that all trainers share.", [], shared)]
    for name, block in CLASSES.items():
        doc = f"The keys of trl.{name}."
        config_class = f'config_class: ClassVar[str] = "{name}"'
        own = [key for key in keys[name] if key not in shared]
        body.append(_block(f"{block}(SharedBlock)", doc, [config_class, ""], own))
    named = [f"{name} = {text}" for name, text in literals.items()]
    return _formatted(HEAD + "\n".join(named) + "\n\n\n" + "\n\n\n".join(body))


def _keys(name: str, literals: dict[str, str]) -> Iterator[Key]:
    config = getattr(trl, name)
    hints = get_type_hints(config)
    block = type(name, (TrainerBlock,), {"config_class": name, "__annotations__": {}})
    for field in fields(config):
        if not field.init or block.reserved(field.name) is not None:
            continue
        full = f"{name}.{field.name}"
        kind = TYPES.get(full) or TYPES.get(field.name)
        kind = kind or " | ".join(_types(hints[field.name], field, literals))
        default = repr(_default(name, field))
        limits = LIMITS.get(full) or LIMITS.get(field.name)
        if limits or default.startswith("["):
            value = f"Field(default={default}, {limits})" if limits else f"Field(default={default})"
        else:
            value = default
        yield field.name, kind, value, _description(field)


def _shared(blocks: list[list[Key]]) -> Iterator[Key]:
    """Yield each key that all blocks have with one type, as most of them write it."""
    for name, *_ in blocks[0]:
        same = [key for block in blocks for key in block if key[0] == name]
        if len(same) == len(blocks) and len({key[1] for key in same}) == 1:
            yield max(same, key=same.count)


def _types(hint: Any, field: Field[Any], literals: dict[str, str]) -> list[str]:
    """Return the alternatives of an annotation that YAML can say, as source."""
    if choices := field.metadata.get("choices"):
        found = [_literal(choices)]
        return found + ["None"] * (type(None) in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        parts = [_types(part, field, literals) for part in get_args(hint)]
        flat = list(dict.fromkeys(kind for part in parts for kind in part))
        enums = [part for part in get_args(hint) if _is_enum(part)]
        # `SchedulerType | str` means: one of the scheduler's names, written as text.
        kinds = [kind for kind in flat if not (enums and kind == "str")]
        return sorted(kinds, key=lambda kind: kind == "None")
    if _is_enum(hint):
        literals[hint.__name__] = _literal([member.value for member in hint])
        return [hint.__name__]
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (int, float, str, bool):
        return [hint.__name__]
    if hint is type(None):
        return ["None"]
    if origin is Literal:
        return [_literal(inner)]
    if hint is dict or origin is dict:
        value = _types(inner[1], field, literals) if inner and inner[1] is not Any else ["Any"]
        return [f"dict[str, {' | '.join(value)}]"]
    if origin is list:
        return [f"list[{' | '.join(_types(inner[0], field, literals))}]"]
    raise TypeError(f"{field.name}: no YAML type for {hint}: add it to TYPES or MANAGED")


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _literal(values: Any) -> str:
    return f"Literal[{', '.join(map(repr, values))}]"


def _default(config: str, field: Field[Any]) -> Any:
    for name in (f"{config}.{field.name}", field.name):
        if name in DEFAULTS:
            return DEFAULTS[name]
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return value.value if isinstance(value, enum.Enum) else value


def _description(field: Field[Any]) -> str:
    """Return the first sentence of TRL's help text."""
    said = DESCRIPTIONS.get(field.name) or " ".join(field.metadata["help"].split())
    for letter, spelt in GREEK.items():
        said = said.replace(letter, spelt)
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z0-9`])", said)[0].replace("\\", "\\\\")
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", sentence).rstrip(".") + "."


def _block(head: str, doc: str, own: list[str], keys: list[Key]) -> str:
    lines = [f"class {head}:", f'    """{doc}"""', "", *(f"    {line}".rstrip() for line in own)]
    for name, kind, value, description in keys:
        lines.append(f"    {name}: {kind} = {value}")
        text = f'"""{description}"""'
        lines += textwrap.wrap(text, 100, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _formatted(source: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(FILE), "-"],
        input=source,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


if __name__ == "__main__":
    FILE.write_text(module())

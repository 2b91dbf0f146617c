"""The `trainer` blocks against TRL's own config classes, read from their source: no torch, no import.

TRL's and transformers' dataclasses are parsed with `ast`, so that `posttrain check` answers at once and still knows
the names and types of the very version that is installed.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Literal

from posttrain.errors import EnvironmentFault
from posttrain.recipe.check import Places, expected_instead, unknown_key
from posttrain.recipe.problems import Fault, nearest, show

Stage = Literal["sft", "rl", "dpo"]

CONFIG_CLASSES: Mapping[Stage, tuple[str, str]] = {
    "sft": ("trl/trainer/sft_config.py", "SFTConfig"),
    "rl": ("trl/trainer/grpo_config.py", "GRPOConfig"),
    "dpo": ("trl/trainer/dpo_config.py", "DPOConfig"),
}

ALSO_TAKEN = {
    # GRPOConfig and DPOConfig turn these into what they are annotated with.
    ("rl", "scale_rewards"): "bool",
    ("dpo", "loss_type"): "str",
}

RUN_DIRECTORY = "the run directory decides it"
MANAGED: dict[str, str] = {
    "output_dir": RUN_DIRECTORY,
    "logging_dir": RUN_DIRECTORY,
    "run_name": "set `name` at the top of the recipe",
    "seed": "set `seed` at the top of the recipe",
    "data_seed": "set `seed` at the top of the recipe",
    "bf16": "it follows model.dtype",
    "fp16": "set model.dtype",
    "bf16_full_eval": "it follows model.dtype",
    "fp16_full_eval": "set model.dtype",
    "model_init_kwargs": "the model section decides how the model is loaded",
    "trust_remote_code": "posttrain runs no code from checkpoints",
    "resume_from_checkpoint": "run the same command again to resume",
    "save_only_model": "a run could not be resumed",
    "load_best_model_at_end": "a stage ends with its last weights; the eval section measures them",
    "do_train": "the recipe's sections decide what runs",
    "do_eval": "the eval section decides what is measured",
    "do_predict": "the eval section decides what is measured",
    "eval_strategy": "the eval section decides what is measured",
    "eval_steps": "the eval section decides what is measured",
    "eval_on_start": "the eval section decides what is measured",
    "remove_unused_columns": "posttrain builds the trainer's data set",
    "dataset_text_field": "posttrain builds the trainer's data set: see data.columns",
    "dataset_kwargs": "posttrain builds the trainer's data set",
    "chat_template_path": "the model's own chat template is used",
    "completion_only_loss": "the loss is on the answers only",
    "assistant_only_loss": "the loss is on the answers only",
    "push_to_hub": "publish the final policy from the run directory",
    "hub_token": "no secret belongs in a recipe",
    "local_rank": "set launch.num_processes",
    "use_vllm": "set engine.kind",
    "vllm_mode": "set engine.kind",
    "vllm_gpu_memory_utilization": "set engine.gpu_memory_utilization",
    "vllm_max_model_length": "set engine.max_model_len",
}
"""Keys of TRL that posttrain sets itself -> where the wish belongs."""

MANAGED_RL: dict[str, str] = {
    "generation_kwargs": "the engine samples with temperature and top_p",
    "top_k": "the engine samples with temperature and top_p",
    "min_p": "the engine samples with temperature and top_p",
    "repetition_penalty": "the engine samples with temperature and top_p",
    "cache_implementation": "the engine generates, not the trainer",
    "use_transformers_continuous_batching": "the engine generates, not the trainer",
    "transformers_continuous_batching_config": "the engine generates, not the trainer",
    "use_transformers_paged": "the engine generates, not the trainer",
    "ds3_gather_for_generation": "the engine generates, not the trainer",
    "chat_template_kwargs": "the model's own chat template is used",
    "num_generations_eval": "set eval.num_generations",
    "shuffle_dataset": "the curriculum decides the order",
    "reward_weights": "the verifier is the only reward",
    "multi_objective_aggregation": "the verifier is the only reward",
    "auto_find_batch_size": "set per_device_train_batch_size",
    "log_completions_hub_repo": "rollouts stay in the run directory",
}

MANAGED_PREFIXES = {
    "hub_": "publish the final policy from the run directory",
    "vllm_": "set it in the engine section",
}
KEPT_PREFIX = "vllm_importance_sampling_"
"""Corrections of the loss, not settings of vLLM."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerField:
    """One key that a TRL config class takes."""

    name: str
    annotation: ast.expr
    choices: tuple[str, ...] | None
    default: Any
    """A constant default, or None where it is computed."""


def managed(stage: Stage, key: str) -> str | None:
    """Why a trainer key may not be set and where to say it instead, or None where it may."""
    if stage == "rl" and key in MANAGED_RL:
        return MANAGED_RL[key]
    if key in MANAGED:
        return MANAGED[key]
    if key.startswith(KEPT_PREFIX):
        return None
    return next(
        (where for prefix, where in MANAGED_PREFIXES.items() if key.startswith(prefix)), None
    )


@functools.cache
def trainer_fields(stage: Stage) -> dict[str, TrainerField]:
    """Every key of the stage's TRL config class, inherited ones included."""
    file, name = CONFIG_CLASSES[stage]
    return _class_fields(file, name)


def check_trainer(
    stage: Stage, block: Mapping[str, Any], places: Places
) -> tuple[dict[str, Any], list[Fault]]:
    """The block with whole numbers made floats where TRL wants floats, and what is wrong with it."""
    known = trainer_fields(stage)
    allowed = [key for key in known if managed(stage, key) is None]
    checked: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, value in block.items():
        path = (stage, "trainer", key)
        if key not in known:
            faults.append(unknown_key(path, allowed, places))
        elif (where := managed(stage, key)) is not None:
            faults.append(Fault(path=path, message=f"posttrain sets this itself: {where}"))
        else:
            found = _check_value(stage, known[key], value)
            if isinstance(found, Fault):
                faults.append(found)
            else:
                checked[key] = found[0]
    return checked, faults


def _check_value(stage: Stage, field: TrainerField, value: Any) -> tuple[Any] | Fault:
    path = (stage, "trainer", field.name)
    kinds = list(_kinds(field.annotation, CONFIG_CLASSES[stage][0]))
    if extra := ALSO_TAKEN.get((stage, field.name)):
        kinds.append(_Kind(name=extra))
    if isinstance(value, float) and not math.isfinite(value):
        return Fault(path=path, message=f"expected a finite number, found {show(value)}")
    if field.choices is not None and isinstance(value, str) and value not in field.choices:
        choices = ", ".join(repr(choice) for choice in field.choices)
        return Fault(path=path, message=f"expected one of {choices}, found {show(value)}",
                     suggestion=nearest(value, field.choices))  # fmt: skip
    fitting = [kind for kind in kinds if kind.takes(value)]
    if fitting:
        as_float = (
            isinstance(value, int)
            and not isinstance(value, bool)
            and not any(k.name == "int" for k in fitting)
        )
        return (float(value) if as_float and fitting[0].name == "float" else value,)
    enums = [kind for kind in kinds if kind.values is not None]
    if enums and isinstance(value, str):
        values = list(enums[0].values or ())
        return Fault(path=path, message=f"{show(value)} is not one of TRL's values: {', '.join(values)}",
                     suggestion=nearest(value, values))  # fmt: skip
    names = dict.fromkeys(kind.words for kind in kinds if kind.words)
    return Fault(
        path=path,
        message=expected_instead(" or ".join(names) or "nothing that YAML can say", value),
    )


WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "dict": "a section (key: value lines)",
    "list": "a list",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """One alternative of an annotation."""

    name: str
    items: tuple[_Kind, ...] = ()
    """What a list or the values of a mapping may be; empty = anything."""
    values: tuple[str, ...] | None = None
    """An enum's values."""

    @property
    def words(self) -> str:
        if self.name == "list" and self.items:
            inside = " or ".join(item.words.removeprefix("a ") for item in self.items)
            return f"a list of {inside}"
        return WORDS.get(self.name, "")

    def takes(self, value: Any) -> bool:
        match self.name:
            case "any":
                return True
            case "none":
                return value is None
            case "enum":
                return isinstance(value, str) and value in (self.values or ())
            case "int":
                return isinstance(value, int) and not isinstance(value, bool)
            case "float":
                return isinstance(value, int | float) and not isinstance(value, bool)
            case "str":
                return isinstance(value, str)
            case "bool":
                return isinstance(value, bool)
            case "false":
                return value is False
            case "list":
                return isinstance(value, list) and all(self._inside(item) for item in value)  # pyright: ignore[reportUnknownVariableType]
            case "dict":
                return isinstance(value, dict) and all(
                    self._inside(item) for item in value.values()
                )  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            case _:
                return False

    def _inside(self, item: Any) -> bool:
        return not self.items or any(kind.takes(item) for kind in self.items)


def _kinds(annotation: ast.expr, file: str) -> Iterator[_Kind]:
    found = list(_alternatives(annotation, file))
    # `SchedulerType | str` means: one of the scheduler's names, written as text.
    closed = any(kind.values is not None for kind in found)
    yield from (kind for kind in found if not (closed and kind.name == "str"))


def _alternatives(annotation: ast.expr, file: str) -> Iterator[_Kind]:
    match annotation:
        case ast.Constant(value=None):
            yield _Kind(name="none")
        case ast.Constant(value=str(text)):
            yield from _alternatives(ast.parse(text, mode="eval").body, file)
        case ast.BinOp(left=left, right=right, op=ast.BitOr()):
            yield from _alternatives(left, file)
            yield from _alternatives(right, file)
        case ast.Name(id="Any"):
            yield _Kind(name="any")
        case ast.Name(id=name) if name in WORDS:
            yield _Kind(name=name)
        case ast.Name(id=name):
            values = _enum_values(name)
            yield _Kind(name="other") if values is None else _Kind(name="enum", values=values)
        case ast.Subscript(value=ast.Name(id=("Optional" | "Union") as outer), slice=inner):
            for part in inner.elts if isinstance(inner, ast.Tuple) else [inner]:
                yield from _alternatives(part, file)
            if outer == "Optional":
                yield _Kind(name="none")
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            literals = [e.value for e in (inner.elts if isinstance(inner, ast.Tuple) else [inner])
                        if isinstance(e, ast.Constant)]  # fmt: skip
            if texts := tuple(value for value in literals if isinstance(value, str)):
                yield _Kind(name="enum", values=texts)
            if False in literals:
                yield _Kind(name="false")
        case ast.Subscript(value=ast.Name(id=("list" | "List")), slice=inner):
            yield _Kind(name="list", items=tuple(_alternatives(inner, file)))
        case ast.Subscript(value=ast.Name(id=("dict" | "Dict")), slice=ast.Tuple(elts=[_, inner])):
            yield _Kind(name="dict", items=tuple(_alternatives(inner, file)))
        case _:
            yield _Kind(name="other")


def _class_fields(file: str, name: str) -> dict[str, TrainerField]:
    tree = _tree(file)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    body = classes[name]
    fields: dict[str, TrainerField] = {}
    for base in body.bases:
        if isinstance(base, ast.Name):
            fields |= _class_fields(
                file if base.id in classes else _imported_from(tree, file, base.id), base.id
            )
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if "ClassVar" in ast.dump(node.annotation):
                continue
            fields[node.target.id] = TrainerField(
                name=node.target.id,
                annotation=node.annotation,
                choices=_choices(node.value),
                default=_default(node.value),
            )
    return fields


def _imported_from(tree: ast.Module, file: str, name: str) -> str:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            module = node.module or ""
            if node.level:
                return f"{file.rsplit('/', node.level)[0]}/{module.replace('.', '/')}.py"
            if module == "transformers":
                return "transformers/training_args.py"
            return f"{module.replace('.', '/')}.py"
    raise AssertionError(f"{name} is not imported in {file}")


def _field_keyword(value: ast.expr | None, keyword: str) -> ast.expr | None:
    if not (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id == "field"
    ):
        return None
    return next((k.value for k in value.keywords if k.arg == keyword), None)


def _choices(value: ast.expr | None) -> tuple[str, ...] | None:
    metadata = _field_keyword(value, "metadata")
    if not isinstance(metadata, ast.Dict):
        return None
    for key, listed in zip(metadata.keys, metadata.values, strict=True):
        if (
            isinstance(key, ast.Constant)
            and key.value == "choices"
            and isinstance(listed, ast.List)
        ):
            return tuple(str(e.value) for e in listed.elts if isinstance(e, ast.Constant))
    return None


def _default(value: ast.expr | None) -> Any:
    plain = value if not isinstance(value, ast.Call) else _field_keyword(value, "default")
    try:
        return None if plain is None else ast.literal_eval(plain)
    except ValueError:
        return None


@functools.cache
def _enum_values(name: str) -> tuple[str, ...] | None:
    for file in (
        "transformers/training_args.py",
        "transformers/trainer_utils.py",
        "transformers/debug_utils.py",
    ):
        for node in _tree(file).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                if not any("Enum" in ast.dump(base) for base in node.bases):
                    return None
                assigned = [item.value for item in node.body if isinstance(item, ast.Assign)]
                return tuple(str(v.value) for v in assigned if isinstance(v, ast.Constant))
    return None


@functools.cache
def _tree(file: str) -> ast.Module:
    package = file.split("/", 1)[0]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise EnvironmentFault(f"{package} is not installed", hint="make env")
    path = FilePath(spec.origin).parent.parent / file
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EnvironmentFault(
            f"the installed {package} has no {file}: posttrain does not know this version",
            hint="make env",
        ) from error

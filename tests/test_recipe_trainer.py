from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.recipe.check import validate
from posttrain.recipe.cross import check_sections
from posttrain.recipe.schema import Recipe, training_stages
from posttrain.recipe.trainer import MANAGED, MANAGED_IN_RL, MANAGED_PREFIXES, TrainerBlock
from posttrain.recipe.trainer_blocks import DPOBlock, GRPOBlock, SFTBlock, SharedBlock

DOCS = Path(__file__).parent.parent / "docs"
BLOCKS: dict[str, type[SharedBlock]] = {"sft": SFTBlock, "rl": GRPOBlock, "dpo": DPOBlock}


def mistakes_of(stage: str, **block: Any) -> list[str]:
    return [mistake.message for mistake in validate(BLOCKS[stage], block, {})[1]]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_trainer_blocks_are_those_of_the_installed_trl() -> None:
    script = load_script("make_trainer_blocks")
    assert script.FILE.read_text() == script.module(), "TRL moved: run make docs"


@pytest.mark.slow
def test_every_key_of_trl_is_in_its_block_or_reserved() -> None:
    import trl

    for block in BLOCKS.values():
        real = dataclasses.fields(getattr(trl, block.config_class))
        names = {field.name for field in real if field.init}
        assert {name for name in names if block.reserved(name) is None} == set(block.model_fields)


@pytest.mark.slow
def test_reserved_keys_are_keys_of_trl() -> None:
    import trl

    real = {
        field.name
        for block in BLOCKS.values()
        for field in dataclasses.fields(getattr(trl, block.config_class))
    }
    gone = {"logging_dir"}
    assert {*MANAGED, *MANAGED_IN_RL} - real == gone
    for prefix in MANAGED_PREFIXES:
        assert any(name.startswith(prefix) for name in real), prefix


@pytest.mark.slow
def test_families_are_those_of_the_installed_reasoning_gym() -> None:
    script = load_script("make_families")
    assert script.FILE.read_text() == script.text(), "reasoning-gym moved: run make docs"


def test_training_stages_are_found_in_the_schema() -> None:
    assert training_stages() == list(BLOCKS)


@pytest.mark.parametrize(
    ("stage", "key", "good", "bad"),
    [
        ("sft", "learning_rate", [1e-4, 1], ["1e-4", True, None, [1.0]]),
        ("sft", "max_steps", [5], [5.0, "5", True, None]),
        ("sft", "packing", [True, False], [0, "yes", None]),
        ("sft", "max_length", [5, None], [5.5, "None"]),
        ("sft", "report_to", ["none", ["none", "wandb"], None], [3, [3]]),
        ("sft", "optim", ["adamw_torch"], ["adamw_hf", 3]),
        ("sft", "lr_scheduler_type", ["cosine"], ["cosin", None]),
        ("sft", "lr_scheduler_kwargs", [{"num_cycles": 1}, None], [3]),
        ("sft", "save_strategy", ["steps", "epoch"], ["step", "best"]),
        ("rl", "scale_rewards", ["group", False], [3, "groups"]),
        ("dpo", "loss_type", ["sigmoid", ["sigmoid", "sft"]], [3, [3], [], "sigmoyd"]),
        ("dpo", "loss_weights", [[1.0, 2], None], [["a"], 1.0]),
    ],
)
def test_types(stage: str, key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert mistakes_of(stage, **{key: value}) == [], value
    for value in bad:
        assert len(mistakes_of(stage, **{key: value})) == 1, value


def test_many_choices_are_counted_and_the_nearest_is_named() -> None:
    (mistake,) = validate(SFTBlock, {"optim": "adamw_torc"}, {})[1]
    num = len(get_args(SFTBlock.model_fields["optim"].annotation))
    assert mistake.message == f"expected one of {num} names, found 'adamw_torc'"
    assert mistake.suggestion == "adamw_torch"


def test_beta_may_be_0_only_where_no_loss_takes_it() -> None:
    def keys(**block: Any) -> list[object]:
        recipe = recipe_with({}, 1).model_copy()
        data = {**recipe.model_dump(by_alias=True, exclude_unset=True), "dpo": {"trainer": block}}
        mistakes = check_sections(Recipe.model_validate(data), frozenset({"rl"}))
        return [mistake.path[-1] for mistake in mistakes]

    assert keys(beta=0, loss_type="sft") == []
    assert keys(beta=0, loss_type=["sft", "sigmoid"]) == ["beta"]
    assert keys(beta=0) == ["beta"]
    assert len(mistakes_of("dpo", beta=-0.1, loss_type="sft")) == 1


def test_whole_numbers_become_floats_only_where_trl_wants_floats() -> None:
    block, _ = validate(SFTBlock, {"learning_rate": 1, "max_steps": 3, "packing": True}, {})
    assert {key: type(value) for key, value in block.model_dump().items()} == {
        "learning_rate": float,
        "max_steps": int,
        "packing": bool,
    }


def test_a_block_dumps_what_is_set_and_trl_gets_our_defaults_besides() -> None:
    assert GRPOBlock(max_steps=3).model_dump() == {"max_steps": 3}
    assert GRPOBlock(max_steps=3).arguments() == {
        "max_steps": 3,
        "save_strategy": "steps",
        "save_steps": 0.2,
        "save_total_limit": 2,
        "logging_steps": 1.0,
        "report_to": "none",
    }
    assert DPOBlock().arguments()["num_train_epochs"] == 1
    assert DPOBlock(num_train_epochs=2).arguments()["num_train_epochs"] == 2


@pytest.mark.parametrize("stage", BLOCKS)
def test_secrets_and_our_own_keys_are_refused(stage: str) -> None:
    for key in ("hub_token", "output_dir", "seed", "bf16", "resume_from_checkpoint", "run_name"):
        (message,) = mistakes_of(stage, **{key: "x"})
        assert "posttrain sets this itself" in message


def test_no_reserved_key_is_in_a_block() -> None:
    for block in BLOCKS.values():
        assert issubclass(block, TrainerBlock)
        assert [key for key in block.model_fields if block.reserved(key) is not None] == []


@pytest.mark.parametrize(
    ("stage", "key", "value", "reason"),
    [
        ("sft", "truncation_mode", "keep_end", "left out whole"),
        ("dpo", "truncation_mode", "keep_start", "left out whole"),
        ("sft", "parallelism_config", None, "launch.num_processes"),
        ("sft", "use_cpu", True, "device"),
        ("rl", "logging_nan_inf_filter", True, "must stop the run"),
        ("rl", "sync_ref_model", True, "reference model is frozen"),
        ("dpo", "sync_ref_model", True, "reference model is frozen"),
        ("dpo", "ref_model_mixup_alpha", 0.5, "reference model is frozen"),
        ("dpo", "ref_model_sync_steps", 8, "reference model is frozen"),
        ("rl", "vllm_importance_sampling_correction", True, "epsilon, epsilon_high and delta"),
        ("rl", "vllm_importance_sampling_mode", "token_mask", "epsilon, epsilon_high and delta"),
        ("rl", "vllm_importance_sampling_clip_max", 2.0, "epsilon, epsilon_high and delta"),
        ("rl", "vllm_enable_sleep_mode", True, "engine section"),
    ],
)
def test_what_would_work_against_posttrain_is_refused_with_the_reason(
    stage: str, key: str, value: Any, reason: str
) -> None:
    (message,) = mistakes_of(stage, **{key: value})
    assert reason in message


def recipe_with(trainer: dict[str, Any], num_processes: int) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"base": "some/model"},
            "launch": {"num_processes": num_processes},
            "rl": {"data": [{"reasoning_gym": ["chain_sum"], "size": 4}], "trainer": trainer},
        }
    )


def generation_starts(accumulation: int, micro_steps: int, last: int) -> set[int]:
    """By simulation: after which optimizer steps the next micro step generates anew."""
    starts: set[int] = set()
    for micro in range(last * accumulation + 1):
        if micro % micro_steps == 0 and micro % accumulation == 0:
            starts.add(micro // accumulation)
    return starts


@given(
    device=st.integers(1, 6),
    accumulation=st.integers(1, 4),
    per_generation=st.none() | st.integers(1, 6),
    iterations=st.integers(1, 3),
    group=st.integers(2, 9),
    processes=st.integers(1, 3),
    save=st.integers(1, 24),
)
def test_generation_batches_are_whole_groups_and_checkpoints_fall_between_them(
    device: int,
    accumulation: int,
    per_generation: int | None,
    iterations: int,
    group: int,
    processes: int,
    save: int,
) -> None:
    trainer: dict[str, Any] = {
        "per_device_train_batch_size": device,
        "gradient_accumulation_steps": accumulation,
        "num_iterations": iterations,
        "num_generations": group,
        "save_steps": float(save),
    }
    if per_generation is not None:
        trainer["steps_per_generation"] = per_generation
    steps = per_generation or accumulation
    whole = device * steps * processes % group == 0
    between = save in generation_starts(accumulation, steps * iterations, 24)
    mistakes = check_sections(recipe_with(trainer, processes), frozenset())
    keys = {mistake.path[-1] for mistake in mistakes}
    assert keys == (
        set() if whole and between else {"save_steps"} if whole else {"num_generations"}
    )

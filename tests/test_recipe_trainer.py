from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.recipe.cross import cross_faults
from posttrain.recipe.schema import Recipe
from posttrain.recipe.tasks import families, family_fields
from posttrain.recipe.trainer import Stage, check_trainer, managed, trainer_fields


def faults_of(stage: Stage, **block: Any) -> list[str]:
    return [fault.message for fault in check_trainer(stage, block, {})[1]]


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
        ("sft", "save_strategy", ["steps", "epoch"], ["step"]),
        ("sft", "parallelism_config", [None], [{}]),
        ("rl", "scale_rewards", ["group", False], [3]),
        ("dpo", "loss_type", ["sigmoid", ["sigmoid", "sft"]], [3, [3]]),
        ("dpo", "loss_weights", [[1.0, 2], None], [["a"], 1.0]),
    ],
)
def test_types(stage: Stage, key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert faults_of(stage, **{key: value}) == [], value
    for value in bad:
        assert len(faults_of(stage, **{key: value})) == 1, value


def test_beta_may_be_0_only_where_no_loss_takes_it() -> None:
    assert faults_of("dpo", beta=0, loss_type="sft") == []
    assert len(faults_of("dpo", beta=0, loss_type=["sft", "sigmoid"])) == 1
    assert len(faults_of("dpo", beta=-0.1, loss_type="sft")) == 1


def test_whole_numbers_become_floats_only_where_trl_wants_floats() -> None:
    checked, _ = check_trainer("sft", {"learning_rate": 1, "max_steps": 3, "packing": True}, {})
    assert [(k, type(v)) for k, v in checked.items()] == [
        ("learning_rate", float),
        ("max_steps", int),
        ("packing", bool),
    ]


@pytest.mark.parametrize("stage", ["sft", "rl", "dpo"])
def test_secrets_and_our_own_keys_are_refused(stage: Stage) -> None:
    for key in ("hub_token", "output_dir", "seed", "bf16", "resume_from_checkpoint", "run_name"):
        assert managed(stage, key) is not None
        (message,) = faults_of(stage, **{key: "x"})
        assert "posttrain sets this itself" in message


@pytest.mark.parametrize(
    ("stage", "key", "value", "reason"),
    [
        ("sft", "truncation_mode", "keep_end", "left out whole"),
        ("dpo", "truncation_mode", "keep_start", "left out whole"),
        ("rl", "logging_nan_inf_filter", True, "must stop the run"),
        ("rl", "sync_ref_model", True, "no run could resume"),
        ("dpo", "sync_ref_model", True, "no run could resume"),
        ("dpo", "ref_model_mixup_alpha", 0.5, "no run could resume"),
        ("dpo", "ref_model_sync_steps", 8, "no run could resume"),
        ("rl", "vllm_importance_sampling_correction", True, "epsilon, epsilon_high and delta"),
        ("rl", "vllm_importance_sampling_mode", "token_mask", "epsilon, epsilon_high and delta"),
        ("rl", "vllm_importance_sampling_clip_max", 2.0, "epsilon, epsilon_high and delta"),
        ("rl", "vllm_enable_sleep_mode", True, "engine section"),
    ],
)
def test_what_would_work_against_posttrain_is_refused_with_the_reason(
    stage: Stage, key: str, value: Any, reason: str
) -> None:
    (message,) = faults_of(stage, **{key: value})
    assert reason in message


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rl", "dpo"])
def test_fields_read_from_source_are_those_of_the_real_classes(stage: Stage) -> None:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.sft_config import SFTConfig

    real = {"sft": SFTConfig, "rl": GRPOConfig, "dpo": DPOConfig}[stage]
    by_name = {field.name: field for field in dataclasses.fields(real) if field.init}
    read = trainer_fields(stage)
    assert set(read) == set(by_name)
    for name, field in read.items():
        if field.default is not None:
            assert by_name[name].default == field.default, name


@pytest.mark.slow
def test_families_read_from_source_are_those_that_reasoning_gym_registers() -> None:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    assert reasoning_gym.__name__
    assert set(families()) == set(DATASETS)
    for name, (_, config) in DATASETS.items():
        read = family_fields(name)
        assert read is None or set(read) == {f.name for f in dataclasses.fields(config)}, name
    assert family_fields("chain_sum") is not None
    assert sum(family_fields(name) is not None for name in DATASETS) > 0.9 * len(DATASETS)


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
    faults = cross_faults(recipe_with(trainer, processes), frozenset())
    keys = {fault.path[-1] for fault in faults}
    assert keys == (
        set() if whole and between else {"save_steps"} if whole else {"num_generations"}
    )

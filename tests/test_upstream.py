"""The private names of TRL, transformers, PEFT and vLLM that posttrain relies on.

An upgrade fails here first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import (
    Llama4ForCausalLM,
    Llama4ForConditionalGeneration,
    Llama4TextConfig,
    Trainer,
)
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts, Llama4TextMoe
from trl import DPOTrainer, GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer import grpo_trainer

from posttrain.models.policy import load_tokenizer
from posttrain.models.trl_shim import apply_trl_shim

PARAMETERS: dict[Callable[..., Any], list[str]] = {
    GRPOTrainer._generate_and_score_completions: ["self", "inputs"],
    GRPOTrainer._save_checkpoint: ["self", "model", "trial"],
    Llama4TextMoe.forward: ["self", "hidden_states"],
    Trainer._load_from_checkpoint: ["self", "resume_from_checkpoint", "model"],
}


@pytest.mark.parametrize("method", PARAMETERS, ids=lambda m: m.__qualname__)
def test_signatures_of_wrapped_methods(method: Callable[..., Any]) -> None:
    assert list(inspect.signature(method).parameters) == PARAMETERS[method]


def test_trl_still_has_the_rollout_seam() -> None:
    parameters = inspect.signature(GRPOTrainer.__init__).parameters
    assert {"rollout_func", "reward_funcs", "processing_class", "callbacks"} <= parameters.keys()
    source = inspect.getsource(GRPOTrainer._generate)
    assert 'required_keys = {"prompt_ids", "completion_ids", "logprobs"}' in source
    assert 'extra_fields.pop("env_mask"' in source
    scored = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert 'output["sampling_per_token_logps"]' in scored
    assert 'output["old_per_token_logps"]' in scored
    assert 'inputs.get("old_per_token_logps")' in inspect.getsource(GRPOTrainer._compute_loss)


def test_trl_copies_an_adapter_as_the_reference() -> None:
    assert '"ref"' in inspect.getsource(DPOTrainer.__init__)
    assert '"ref"' in inspect.getsource(grpo_trainer.GRPOTrainer.__init__)


def test_peft_still_tells_an_adapters_delta() -> None:
    assert hasattr(LoraLayer, "get_base_layer")
    from peft.tuners.lora.layer import Linear

    assert list(inspect.signature(Linear.get_delta_weight).parameters) == ["self", "adapter"]


def test_experts_keep_their_layout() -> None:
    config = Llama4TextConfig(hidden_size=8, intermediate_size=6, num_local_experts=2)
    experts = Llama4TextExperts(config)
    assert experts.gate_up_proj.shape == (2, 8, 12)
    assert experts.down_proj.shape == (2, 6, 8)
    moe = Llama4TextMoe(config)
    assert {"router", "experts", "shared_expert"} <= dict(moe.named_children()).keys()
    assert moe.top_k == 1


class TestShim:
    """The shim is there because of these; when one fails, upstream has moved and it may go."""

    def test_llama4_still_names_a_prefix_that_is_no_attribute(self, tiny_llama4: Path) -> None:
        model = Llama4ForCausalLM.from_pretrained(tiny_llama4)
        assert model.base_model_prefix == "language_model"
        assert not hasattr(model, "language_model")

    def test_llama4_still_counts_experts_under_another_name(self) -> None:
        assert "num_experts" not in Llama4TextConfig.__annotations__
        assert Llama4TextConfig(num_local_experts=7).num_local_experts == 7

    def test_with_it_the_names_mean_what_trl_expects(self, tiny_llama4: Path) -> None:
        apply_trl_shim()
        model = Llama4ForCausalLM.from_pretrained(tiny_llama4)
        assert model.base_model is model.model
        assert isinstance(Llama4ForConditionalGeneration.base_model, property)
        assert model.config.num_experts == model.config.num_local_experts

    @pytest.mark.slow
    def test_without_it_trl_cannot_train_llama4(
        self, tiny_llama4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers import PreTrainedModel

        monkeypatch.setattr(Llama4ForCausalLM, "base_model", PreTrainedModel.base_model)
        rows = [
            {
                "prompt": [{"role": "user", "content": "a"}],
                "completion": [{"role": "assistant", "content": "b"}],
            }
        ]
        from datasets import Dataset

        args = SFTConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, max_steps=1, report_to="none"
        )
        trainer = SFTTrainer(
            model=Llama4ForCausalLM.from_pretrained(tiny_llama4, dtype=torch.float32),
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=load_tokenizer(tiny_llama4),
        )
        with pytest.raises(AttributeError, match="last_hidden_state"):
            trainer.train()


@pytest.mark.slow
def test_vllm_still_has_what_the_engine_reaches_into() -> None:
    pytest.importorskip("vllm")
    from vllm import LLM, SamplingParams
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEKernel
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    import posttrain.engines.vllm  # noqa: F401  (sets the environment before vLLM is imported)

    assert "weights_iterator" in inspect.signature(GPUModelRunner.reload_weights).parameters
    assert list(
        inspect.signature(CPUUnquantizedExperts.process_weights_after_loading).parameters
    ) == ["self", "layer"]
    assert hasattr(FusedMoEKernel, "fused_experts")
    assert callable(LLM.collective_rpc)
    assert callable(LLM.reset_prefix_cache)
    assert "prompt_logprobs" in inspect.signature(SamplingParams).parameters

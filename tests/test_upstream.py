"""The private names of TRL, transformers, PEFT and vLLM that posttrain relies on.

An upgrade fails here first.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import fsdp_utils
from peft.tuners.lora import LoraLayer
from transformers import (
    Llama4ForCausalLM,
    Llama4ForConditionalGeneration,
    Llama4TextConfig,
    Trainer,
)
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts, Llama4TextMoe
from trl import DPOTrainer, GRPOTrainer, SFTConfig, SFTTrainer
from trl.kernels import chunked_logprob
from trl.trainer import grpo_trainer
from trl.trainer import utils as trl_utils

from posttrain.models.policy import load_tokenizer
from posttrain.models.trl_shim import apply_trl_shim, score_only_labels_on_cpu
from posttrain.recipe.trainer_blocks import DPOLoss, GRPOBlock, SFTBlock, SharedBlock
from posttrain.training import TOKENS

PARAMETERS: dict[Callable[..., Any], list[str]] = {
    GRPOTrainer._generate_and_score_completions: ["self", "inputs"],
    GRPOTrainer._save_checkpoint: ["self", "model", "trial"],
    Llama4TextMoe.forward: ["self", "hidden_states"],
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
    for kind in ("mean", "min", "max"):
        for name in ("", "_terminated"):
            assert f'self._metrics[mode]["completions/{kind}{name}_length"].append(' in source
    scored = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert 'output["sampling_per_token_logps"]' in scored
    assert 'output["old_per_token_logps"]' in scored
    loss = inspect.getsource(GRPOTrainer._compute_loss)
    assert 'inputs.get("old_per_token_logps")' in loss
    assert 'self.loss_type in ["cispo", "dapo", "vespo"]' in loss
    assert "self.aux_loss_enabled" in loss
    assert "gather(masked_seq_mean(" in loss, "rows may be left out with several processes now?"


def losses_of(block: type[SharedBlock]) -> set[str]:
    return set(get_args(block.model_fields["loss_type"].annotation))


def test_trl_knows_the_losses_that_a_recipe_may_name() -> None:
    said = re.findall(r"args\.loss_type not in \((.*?)\)", inspect.getsource(SFTTrainer.__init__))
    said += re.findall(r"self\.loss_type == (.*?):", inspect.getsource(SFTConfig.__post_init__))
    assert set(re.findall(r'"(\w+)"', " ".join(said))) == losses_of(SFTBlock)
    source = inspect.getsource(GRPOTrainer._compute_loss)
    losses = " ".join(re.findall(r"self\.loss_type (?:==|in) (.*?):", source))
    assert set(re.findall(r'"(\w+)"', losses)) == losses_of(GRPOBlock)
    source = inspect.getsource(DPOTrainer._compute_loss)
    assert set(re.findall(r'loss_type == "(\w+)"', source)) == set(get_args(DPOLoss))


def test_trl_copies_an_adapter_as_the_reference() -> None:
    assert '"ref"' in inspect.getsource(DPOTrainer.__init__)
    assert '"ref"' in inspect.getsource(grpo_trainer.GRPOTrainer.__init__)


def test_sft_and_dpo_still_count_tokens_outside_the_trainers_state() -> None:
    for trainer in (SFTTrainer, DPOTrainer):
        source = inspect.getsource(trainer)
        assert f"self.{TOKENS} = 0" in source
        assert f"self.{TOKENS} += " in source
        assert f'["num_tokens"] = [self.{TOKENS}]' in source
    assert "self.state.num_input_tokens_seen += " in inspect.getsource(GRPOTrainer)


def test_peft_still_has_what_an_adapters_delta_is_made_of() -> None:
    assert hasattr(LoraLayer, "get_base_layer")
    layer = LoraLayer(torch.nn.Linear(2, 2))
    for name in ("lora_A", "lora_B", "scaling", "lora_dropout", "r"):
        assert hasattr(layer, name), name


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

    def test_the_head_projects_labelled_positions_only_and_computes_the_same(
        self, tiny_llama4: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """TRL projects every position on the CPU; when it no longer does, the shim may go."""
        apply_trl_shim()
        monkeypatch.setattr(trl_utils, "_use_triton", chunked_logprob._use_triton)
        projected: list[int] = []

        def counting(hidden_NH: torch.Tensor, *args: Any) -> Any:
            projected.append(len(hidden_NH))
            return chunked_logprob.ChunkedLogProbFunction.apply(hidden_NH, *args)

        monkeypatch.setattr(
            trl_utils, "_ChunkedLogProbFunction", type("Counting", (), {"apply": counting})
        )
        ids_NT = torch.arange(2, 22).reshape(2, 10)
        labels_NT = ids_NT.clone()
        labels_NT[:, :7] = -100

        def losses_and_gradients() -> list[torch.Tensor]:
            model = Llama4ForCausalLM.from_pretrained(tiny_llama4, dtype=torch.float32)
            trl_utils.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
            out = model(input_ids=ids_NT, labels=labels_NT, fused_lm_head=True)
            (out.log_probs.sum() + out.entropy.sum()).backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            return [out.log_probs.detach(), out.entropy.detach(), *gradients]

        expected = losses_and_gradients()
        score_only_labels_on_cpu()
        found = losses_and_gradients()
        assert projected == [18, 6]
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

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


class TestSharding:
    """What posttrain.models.sharded relies on in accelerate and transformers."""

    def test_accelerate_still_does_not_shard_on_the_cpu_of_itself(self) -> None:
        source = inspect.getsource(AcceleratorState.__init__)
        assert "DistributedType.MULTI_GPU," in source
        assert "DistributedType.MULTI_CPU" not in source
        assert 'os.environ.get("ACCELERATE_USE_FSDP"' in source

    def test_it_still_numbers_cpus_and_torch_still_loads_to_none_of_them(
        self, tmp_path: Path
    ) -> None:
        assert "torch.device(device, device_index)" in inspect.getsource(PartialState.set_device)
        torch.save(torch.ones(2), tmp_path / "state.pt")
        code = f"import torch; torch.load({str(tmp_path / 'state.pt')!r}, map_location='cpu:1')"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert "don't know how to restore data location" in done.stderr

    def test_it_still_reads_for_all_in_the_first_process_where_told_to(self) -> None:
        source = inspect.getsource(fsdp_utils.fsdp2_prepare_model)
        assert "if fsdp2_plugin.cpu_ram_efficient_loading" in source
        assert "mp_policy" in source
        assert "if param.requires_grad and param.dtype != torch.float32" in source

    def test_the_same_setting_would_still_empty_every_model_transformers_loads(self) -> None:
        from transformers.distributed import fsdp

        assert "FSDP_CPU_RAM_EFFICIENT_LOADING" in inspect.getsource(fsdp.is_fsdp_enabled)

    def test_parameters_are_still_told_apart_by_address(self) -> None:
        source = inspect.getsource(fsdp_utils.fsdp2_switch_optimizer_parameters)
        assert "mapping[p.data_ptr]" in source

    def test_the_model_still_says_which_layers_are_not_to_be_split(self) -> None:
        assert set(Llama4ForCausalLM._no_split_modules or ()) == {"Llama4TextDecoderLayer"}

    def test_a_callback_is_still_told_of_the_start_once_weights_and_state_are_loaded(self) -> None:
        loop = inspect.getsource(Trainer._inner_training_loop)
        assert loop.index("_prepare_for_training(") < loop.index("on_train_begin(")
        assert loop.index("_init_training_state(") < loop.index("on_train_begin(")


@pytest.mark.slow
def test_vllm_still_has_what_the_engine_reaches_into() -> None:
    pytest.importorskip("vllm")
    from vllm import LLM, SamplingParams
    from vllm.config.lora import MaxLoRARanks
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEKernel
    from vllm.v1.engine.llm_engine import LLMEngine
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
    assert {"lora_request"} <= inspect.signature(LLM.generate).parameters.keys()
    assert {"lora_request", "use_tqdm"} <= inspect.signature(LLM.enqueue).parameters.keys()
    assert list(inspect.signature(LLMEngine.step).parameters) == ["self"]
    assert callable(LLMEngine.has_unfinished_requests)
    assert list(inspect.signature(LLMEngine.add_lora).parameters) == ["self", "lora_request"]
    assert list(inspect.signature(LLMEngine.remove_lora).parameters) == ["self", "lora_id"]
    assert "level" in inspect.signature(LLM.sleep).parameters
    assert callable(LLM.wake_up)
    names = {field.name for field in dataclasses.fields(EngineArgs)}
    assert names >= {
        *("enable_lora", "max_loras", "max_cpu_loras", "max_lora_rank", "lora_target_modules"),
        *("enable_sleep_mode", "tensor_parallel_size", "distributed_executor_backend"),
    }
    assert 16 in get_args(MaxLoRARanks)
    assert LoRARequest("a", 1, "b").lora_int_id == 1


def test_vllm_still_quantises_on_loading_under_this_name() -> None:
    pytest.importorskip("vllm")
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    from posttrain.engines.vllm import QUANTIZE_ON_LOAD

    assert set(QUANTIZE_ON_LOAD.values()) <= set(QUANTIZATION_METHODS)

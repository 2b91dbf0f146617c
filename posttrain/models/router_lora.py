"""LoRA on the router: a linear layer that answers with scores besides its logits."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from transformers.models.llama4.modeling_llama4 import Llama4Router


class LoraRouter(Linear):
    """`Llama4Router` with adapters on its logits; the router itself is still called."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return scores (N, E), zero where an expert was not chosen, and logits (N, E)."""
        router = cast(Llama4Router, self.get_base_layer())
        if self.disable_adapters and self.merged:
            self.unmerge()
        _, logits = router(x)
        if not self.disable_adapters and not self.merged:
            for name in self.active_adapters:
                if name in self.lora_A:
                    rows = self.lora_dropout[name](
                        x.to(cast(Tensor, self.lora_A[name].weight).dtype)
                    )
                    delta = self.lora_B[name](self.lora_A[name](rows)) * self.scaling[name]
                    logits = logits + delta.to(logits.dtype)
        top, chosen = logits.topk(router.top_k, dim=1)
        scores = torch.zeros_like(logits).scatter(1, chosen, top.float().sigmoid().to(top.dtype))
        return scores, logits

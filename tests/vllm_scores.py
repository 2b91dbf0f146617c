"""Scores sequences in a vLLM of its own: one process holds one engine of one kind.

Reads {base, max_lora_rank, rows, adapters} as JSON, writes the rows' log-probabilities under each
adapter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

# Sets what vLLM reads when it is imported.
import posttrain.engines.vllm  # noqa: F401  # isort: skip
import vllm
from vllm.lora.request import LoRARequest


def _logprobs(engine: vllm.LLM, ids: list[int], lora: LoRARequest) -> list[float]:
    """Of every token but the first.

    One sequence at a time: the CPU build's LoRA takes one adapter index a sequence where prompt
    log-probabilities give it one row a token, which fits for a single sequence alone.
    """
    (output,) = engine.generate(
        vllm.TokensPrompt(prompt_token_ids=ids),
        vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False),
        lora_request=lora,
        use_tqdm=False,
    )
    positions = output.prompt_logprobs
    assert positions is not None
    return [cast(Any, positions[i])[ids[i]].logprob for i in range(1, len(ids))]


def main() -> None:
    request = json.load(sys.stdin)
    engine = vllm.LLM(
        model=request["base"],
        dtype="float32",
        max_model_len=128,
        max_num_seqs=8,
        enforce_eager=True,
        gpu_memory_utilization=0.3,
        enable_lora=True,
        max_lora_rank=request["max_lora_rank"],
        max_loras=1,
    )
    rows = request["rows"]
    scores = []
    for number, adapter in enumerate(request["adapters"], start=1):
        lora = LoRARequest(Path(adapter).name, number, adapter)
        scores.append([_logprobs(engine, ids, lora) for ids in rows])
    Path(sys.argv[1]).write_text(json.dumps(scores))


if __name__ == "__main__":
    main()

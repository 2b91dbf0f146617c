"""Run by torchrun or alone: start an engine, sync changed weights, say what it answers."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import PartialState

from posttrain.engines import SamplingRequest, make_engine
from posttrain.models import PolicyPath, live_tensors
from posttrain.models.loading import load_base
from posttrain.models.scoring import sequence_logprobs
from posttrain.recipe.models import EngineSpec
from posttrain.tables import write_json

PROMPTS = [[1, 20, 30, 40], [1, 50, 60], [1, 70, 80, 90, 100, 110]]
CONTINUATIONS = [[5, 6, 7]] * 3


def main(base: Path, out: Path, size: int) -> None:
    """Write rank-N.json: completions, and scores before and after a sync beside the right ones."""
    state = PartialState(cpu=True)
    spec = EngineSpec(
        kind="vllm", max_model_len=128, max_num_seqs=8, kv_cache_gib=1, tensor_parallel_size=size
    )
    engine = make_engine(spec, PolicyPath(base=base), dtype="float32", seed=0)

    def sampled(seed: int) -> list[list[list[int]]]:
        request = SamplingRequest(num_generations=4, max_tokens=6, seed=seed)
        return [[c.token_ids for c in group] for group in engine.generate(PROMPTS, request)]

    model = load_base(base, dtype="float32")
    found = {
        "completions": sampled(11),
        "same_seed": sampled(11),
        "other_seed": sampled(12),
        "scores": engine.score(PROMPTS, CONTINUATIONS),
        "expected": sequence_logprobs(model, PROMPTS, CONTINUATIONS),
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name or "_proj" in name:
                parameter.mul_(-1.5)
    engine.sync_weights(live_tensors(model), policy_version=1)
    found["scores_after"] = engine.score(PROMPTS, CONTINUATIONS)
    found["expected_after"] = sequence_logprobs(model, PROMPTS, CONTINUATIONS)
    write_json(out / f"rank-{state.process_index}.json", found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))

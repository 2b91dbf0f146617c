"""`python -m benchmarks.gpu.sft_run BASE OUT FORMAT`: posttrain's SFT of a tiny model."""

from __future__ import annotations

import sys
from pathlib import Path

from posttrain import sft
from posttrain.models import PolicyPath
from posttrain.recipe.models import Frozen, Lora, Model
from posttrain.recipe.trainer_blocks import SFTBlock
from posttrain.records import Sample

STEPS = 8


def main(base: Path, out: Path, format: str) -> None:
    """Train on 64 short answers in bfloat16 and write the policy, metrics and the summary."""
    quantized = {"experts": format, "linears": format}
    frozen = None if format == "bf16" else Frozen.model_validate(quantized)
    samples = [
        Sample.make(
            messages=[
                {"role": "user", "content": f"say {i % 8}"},
                {"role": "assistant", "content": "abcdefgh"[i % 8] * (1 + i % 3)},
            ],
            capability="echo",
        )
        for i in range(64)
    ]
    sft.train(
        samples,
        policy=PolicyPath(base=base, frozen=frozen),
        model=Model(base=str(base), lora=Lora(rank=8), frozen=frozen),
        trainer=SFTBlock(max_steps=STEPS, per_device_train_batch_size=8, learning_rate=1e-2),
        seed=0,
        work_dir=out / "work",
        out_dir=out,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

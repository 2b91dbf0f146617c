"""Run by torchrun with FSDP's environment: train two steps, then say how each weight fared.

Arguments: the base, a folder, and one or more kinds of frozen weights, a folder each in there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from datasets import Dataset
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.models.llama4.modeling_llama4 import Llama4TextDecoderLayer
from trl import SFTTrainer

from posttrain.models import PolicyPath, live_tensors, load_policy, load_tokenizer
from posttrain.models.loading import load_base
from posttrain.models.sharded import full_tensor
from posttrain.recipe.models import Frozen, Lora, Model
from posttrain.recipe.trainer_blocks import SFTBlock
from posttrain.tables import write_json
from posttrain.training import run_trainer, trainer_arguments


def main(base: Path, out: Path, kind: str) -> None:
    """Train in bfloat16 on a base of the given kind; write rank-N.json."""
    frozen = None if kind == "none" else Frozen.model_validate({"experts": kind, "linears": kind})
    spec = Model(base=str(base), dtype="bfloat16", lora=Lora(rank=4), frozen=frozen)
    block = SFTBlock(max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2)
    args = trainer_arguments(block, stage="sft", dtype=spec.dtype, seed=1, work_dir=out / "work")
    tokenizer = load_tokenizer(base)
    model = load_policy(PolicyPath(base=base), spec, trainable=True)
    on_meta = any(p.is_meta for p in model.parameters())
    rows = [
        {
            "prompt": [{"role": "user", "content": f"say {i}"}],
            "completion": [{"role": "assistant", "content": "abcd"[i % 4]}],
        }
        for i in range(16)
    ]
    trainer = SFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    run_trainer(trainer, stage="sft", work_dir=out / "work", out_dir=out, tokenizer=tokenizer)
    expected = dict(load_base(base, dtype=spec.dtype, frozen=frozen).named_parameters())
    trained = trainer.model
    assert trained is not None
    sharded = dict(trained.named_parameters())
    changed: list[str] = []
    for name, parameter in sharded.items():
        if not parameter.requires_grad:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            full = full_tensor(parameter.detach())
            if full.dtype != expected[plain].dtype or not full.equal(expected[plain]):
                changed.append(name)
    local = sum(p.to_local().numel() for p in sharded.values() if isinstance(p, DTensor))
    layers = [m for m in trained.modules() if isinstance(m, Llama4TextDecoderLayer)]
    exported = list(live_tensors(trained))
    write_json(
        out / f"rank-{args.process_index}.json",
        {
            "changed": changed,
            "layers": sum(isinstance(layer, FSDPModule) for layer in layers),
            "share": local / sum(p.numel() for p in sharded.values()),
            "trained_dtypes": sorted({str(p.dtype) for p in sharded.values() if p.requires_grad}),
            "frozen_dtypes": sorted(
                {str(p.dtype) for p in sharded.values() if not p.requires_grad}
            ),
            "num_exported": len(exported),
            "exported_dtypes": sorted({str(tensor.dtype) for _, tensor in exported}),
            "on_meta": on_meta,
        },
    )


if __name__ == "__main__":
    for name in sys.argv[3:]:
        made = Path(sys.argv[2]) / name
        made.mkdir(exist_ok=True)
        main(Path(sys.argv[1]), made, name)

"""A policy in memory written as others load it: its adapter, or the whole model."""

from __future__ import annotations

from pathlib import Path

from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel

from posttrain.models.sharded import whole_state


def save_model(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Write the trained adapter (never a frozen reference beside it), or every weight, to `folder`.

    By the main process; every process must call it, as each may hold a part, and returns when all
    is written.
    """
    has_adapter = isinstance(model, PeftModel)
    state = whole_state(model, lambda name: ".default." in name or not has_adapter)
    if PartialState().is_main_process:
        if has_adapter:
            model.save_pretrained(str(folder), state_dict=state, selected_adapters=["default"])
        else:
            model.save_pretrained(folder, state_dict=state)
    PartialState().wait_for_everyone()

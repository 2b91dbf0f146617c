"""Forward passes that compute a prompt once for all answers to it.

A micro-batch of GRPO repeats each prompt for every answer. Here a row holds a prompt once, its
answers behind it, and a mask lets each answer see the prompt and itself alone. Everything but
attention works token by token, so log-probabilities and gradients are those of separate rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SHAREABLE = frozenset({"llama", "llama4_text", "mistral", "qwen2", "qwen3", "qwen3_moe"})
"""Model types whose attention takes a (B, 1, T, T) mask and positions from `position_ids`."""
MIN_ROW_TOKENS = 512
"""Rows are filled up to this, or to the longest prompt with its answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPrompts:
    """A micro-batch of R rows, each W tokens wide."""

    input_ids_RW: Tensor
    position_ids_RW: Tensor
    """Position of a token within its own prompt and answer."""
    mask_R1WW: Tensor
    """True where a token (third axis) sees another (fourth)."""
    targets_RW: Tensor
    """Token that each position predicts; -100 where no answer scores it."""
    row_N: Tensor
    """The row of the n-th token of an answer, and its place in the row; N tokens in all."""
    place_N: Tensor
    is_answer_BC: Tensor
    """True where an answer (B) has a token; the N of them in reading order."""

    def unpack(self, values_RW: Tensor) -> Tensor:
        """Return what was computed of each position as (B, C), zero where there is no token."""
        values_N = values_RW[self.row_N, self.place_N]
        return values_RW.new_zeros(self.is_answer_BC.shape).masked_scatter(
            self.is_answer_BC, values_N
        )


def share_prompts(input_ids_BT: Tensor, mask_BT: Tensor, answer_width: int) -> SharedPrompts:
    """Pack prompts, padded on the left, and answers, the last `answer_width` columns.

    An answer begins with the last token of its prompt, which predicts its first token, and ends
    before its own last, which predicts nothing.
    """
    split = input_ids_BT.size(1) - answer_width
    groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    is_real = mask_BT.bool()
    for b, (ids_T, real_T) in enumerate(zip(input_ids_BT, is_real, strict=True)):
        prompt = tuple(ids_T[:split][real_T[:split]].tolist())
        groups.setdefault(prompt, []).append((b, ids_T[split:][real_T[split:]].tolist()))
    segments = [
        _Segment(prompt=prompt, answers=[pair for pair in answers if pair[1]])
        for prompt, answers in groups.items()
    ]
    return _pack([s for s in segments if s.answers], is_real[:, split:])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Segment:
    """A prompt and its answers, none empty, each with its row in the micro-batch."""

    prompt: tuple[int, ...]
    answers: list[tuple[int, list[int]]]

    def __len__(self) -> int:
        return len(self.prompt) - 1 + sum(len(answer) for _, answer in self.answers)


def _pack(segments: Sequence[_Segment], is_answer_BC: Tensor) -> SharedPrompts:
    rows = _rows(segments)
    width = max((sum(map(len, row)) for row in rows), default=1)
    shape, device = (max(1, len(rows)), width), is_answer_BC.device
    input_ids_RW = torch.zeros(shape, dtype=torch.long)
    position_ids_RW = torch.zeros(shape, dtype=torch.long)
    targets_RW = torch.full(shape, -100)
    # A token of padding sees itself, as a softmax over nothing is not a number.
    mask_RWW = torch.eye(width, dtype=torch.bool).repeat(shape[0], 1, 1)
    places: dict[int, tuple[int, int, int]] = {}
    for r, row in enumerate(rows):
        start = 0
        for segment in row:
            shared = len(segment.prompt) - 1
            body = start + shared
            input_ids_RW[r, start:body] = torch.tensor(segment.prompt[:-1], dtype=torch.long)
            position_ids_RW[r, start:body] = torch.arange(shared)
            mask_RWW[r, start:body, start:body] = _causal(shared)
            for b, answer in segment.answers:
                end = body + len(answer)
                input_ids_RW[r, body:end] = torch.tensor([segment.prompt[-1], *answer[:-1]])
                position_ids_RW[r, body:end] = torch.arange(shared, shared + len(answer))
                targets_RW[r, body:end] = torch.tensor(answer)
                mask_RWW[r, body:end, start : start + shared] = True
                mask_RWW[r, body:end, body:end] = _causal(len(answer))
                places[b] = (r, body, end)
                body = end
            start = body
    ordered = [places[b] for b in sorted(places)]
    row_N = [r for r, body, end in ordered for _ in range(body, end)]
    place_N = [place for _, body, end in ordered for place in range(body, end)]
    return SharedPrompts(
        input_ids_RW=input_ids_RW.to(device),
        position_ids_RW=position_ids_RW.to(device),
        mask_R1WW=mask_RWW[:, None].to(device),
        targets_RW=targets_RW.to(device),
        row_N=torch.tensor(row_N, dtype=torch.long, device=device),
        place_N=torch.tensor(place_N, dtype=torch.long, device=device),
        is_answer_BC=is_answer_BC,
    )


def _rows(segments: Sequence[_Segment]) -> list[list[_Segment]]:
    """Put each segment into the first row that has room for it."""
    most = max([MIN_ROW_TOKENS, *map(len, segments)])
    rows: list[list[_Segment]] = []
    for segment in segments:
        for row in rows:
            if sum(map(len, row)) + len(segment) <= most:
                row.append(segment)
                break
        else:
            rows.append([segment])
    return rows


def _causal(size: int) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool).tril()


def is_exact(packed: SharedPrompts, model: nn.Module) -> bool:
    """Say whether the model computes of a packed row what it computes of separate ones.

    Not with dropout, which draws anew for every row; not where attention reaches less far than an
    answer's end, nor where it is scaled by the place in a row.
    """
    config: Any = model.config
    config = config.get_text_config()
    if config.model_type not in SHAREABLE or config._attn_implementation != "sdpa":
        return False
    if config.attention_dropout > 0 or any(
        isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()
    ):
        return False
    longest = int(packed.position_ids_RW.max()) + 1
    reaches = [getattr(config, name, None) for name in ("attention_chunk_size", "sliding_window")]
    if any(reach is not None and longest > reach for reach in reaches):
        return False
    # Llama 4 scales by log(1 + floor((place + 1) / floor_scale)): not at all up to there.
    is_scaled = getattr(config, "attn_temperature_tuning", False)
    return not is_scaled or packed.input_ids_RW.size(1) < config.floor_scale


def pays(packed: SharedPrompts, input_ids_BT: Tensor, hidden_size: int) -> bool:
    """Say whether the packed pass costs less than separate rows.

    Per token, a layer's products cost about 6 * hidden_size times what its attention costs for each
    token that it looks at, masked or not.
    """
    shared, separate = (
        ids.numel() * (6 * hidden_size + ids.size(1)) for ids in (packed.input_ids_RW, input_ids_BT)
    )
    return shared < separate

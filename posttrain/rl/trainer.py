"""`trl.GRPOTrainer` fed by a curriculum: thin wrappers around `super()`, and no copied method.

The data set TRL iterates is only a clock. When it asks for a generation batch, the batch comes from
a `BatchSource`: the wrapper swaps the rows, TRL's own `rollout_func` seam hands over the tokens,
and a pass-through reward the outcomes. The private names of TRL that this relies on are pinned by
tests/test_upstream.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any, Protocol

import torch
from trl import GRPOTrainer

from posttrain.records import Message, RolloutGroup
from posttrain.rl.shared_prompts import is_exact, pays, share_prompts

Row = dict[str, Any]

SUMMED_LOSSES = frozenset({"dapo", "cispo", "vespo", "bnpo"})
"""TRL's loss types that sum over the tokens that count; the others also divide by the rows."""


class BatchSource(Protocol):
    """Gives a step's groups to the trainer, and keeps its own state in the checkpoints."""

    def next_groups(self, trainer: GRPOTrainer) -> list[RolloutGroup]:
        """Return the groups of this step, for all ranks, those with signal first."""
        ...

    def messages(self, group: RolloutGroup) -> list[Message]:
        """Return the conversation that a group answers."""
        ...

    def prompt_ids(self, group: RolloutGroup) -> list[int]:
        """Return that conversation's tokens, as the engine saw them."""
        ...

    def rewards(self, group: RolloutGroup) -> list[float | None]:
        """Return (G,) rewards; None for an undecided answer."""
        ...

    def advantages(self, group: RolloutGroup, *, scale: bool) -> list[float] | None:
        """Return advantages in place of TRL's, normalised if `scale`; None keeps TRL's."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """Return the means of what the steps since the last call measured."""
        ...

    def save(self, checkpoint: str) -> None:
        """Write what a resumed run needs into a checkpoint folder."""
        ...


class CurriculumGRPOTrainer(GRPOTrainer):
    """GRPO on groups that a curriculum chose and an engine generated."""

    def __init__(self, *args: Any, source: BatchSource, **kwargs: Any) -> None:
        self._source = source
        self._rollouts: list[Row] = []
        super().__init__(*args, reward_funcs=[verified], rollout_func=_hand_over, **kwargs)

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        groups = self._source.next_groups(self)
        rows = [
            row for group in groups for row in self._rows(group, masked=_is_masked(group, groups))
        ]
        first = self.accelerator.process_index * len(inputs)
        self._rollouts = rows[first : first + len(inputs)]
        assert len(self._rollouts) == len(inputs), "a batch source must fill the generation batch"
        output = super()._generate_and_score_completions([dict(row) for row in self._rollouts])
        self._note_lengths(groups)
        # The policy that sampled is the engine's: its log-probabilities are the denominator of the
        # ratio, so that what numerics make different between engine and trainer is corrected, and
        # clipped where it is large.
        output["old_per_token_logps"] = output["sampling_per_token_logps"]
        if all(row["advantage"] is not None for row in self._rollouts):
            own = [row["advantage"] for row in self._rollouts]
            output["advantages"] = torch.tensor(own).to(output["advantages"])
        return output

    def _note_lengths(self, groups: list[RolloutGroup]) -> None:
        """Log the lengths of all answers: TRL counts those of groups without signal as empty."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        ended = [one for one in rollouts if one.finish_reason == "stop"]
        for name, some in (("", rollouts), ("_terminated", ended)):
            lengths = [len(one.completion_ids) for one in some] or [0]
            for kind, value in (
                ("mean", fmean(lengths)),
                ("min", min(lengths)),
                ("max", max(lengths)),
            ):
                self._metrics["train"][f"completions/{kind}{name}_length"][-1] = float(value)

    def _rows(self, group: RolloutGroup, *, masked: bool) -> list[Row]:
        rewards = self._source.rewards(group)
        scale = self.scale_rewards != "none"
        advantages = self._source.advantages(group, scale=scale)
        if advantages is None:
            advantages = [None] * len(rewards)
        else:
            masked = False  # against a belief even a group that all passed has a gradient
        return [
            {
                "prompt": self._source.messages(group),
                "prompt_ids": self._source.prompt_ids(group),
                "completion_ids": rollout.completion_ids,
                "logprobs": rollout.logprobs,
                "env_mask": [0 if masked else 1] * len(rollout.completion_ids),
                "reward": reward,
                "advantage": advantage,
            }
            for rollout, reward, advantage in zip(group.rollouts, rewards, advantages, strict=True)
        ]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Compute TRL's loss on the rows and columns that can move it."""
        # TRL gathers clip ratios by row, so that processes must have as many; a load-balancing loss
        # is of all tokens, whether the policy's loss counts them or not.
        drop_rows = (
            self.loss_type in SUMMED_LOSSES
            and not self.aux_loss_enabled
            and self.accelerator.num_processes == 1
        )
        return super().compute_loss(model, compact(inputs, drop_rows=drop_rows), *args, **kwargs)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **more_than_text: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Compute TRL's log-probabilities, each prompt once for its answers where that pays."""
        # A load-balancing loss is of all tokens, each as often as the rows repeat it.
        is_plain = not compute_aux_loss and all(v is None for v in more_than_text.values())
        if batch_size is None and is_plain:
            packed = share_prompts(input_ids, attention_mask, logits_to_keep)
            bare = self.accelerator.unwrap_model(model)
            width = bare.config.get_text_config().hidden_size
            if is_exact(packed, bare) and pays(packed, input_ids, width):
                with self.accelerator.autocast():
                    outputs = model(
                        input_ids=packed.input_ids_RW,
                        position_ids=packed.position_ids_RW,
                        attention_mask=packed.mask_R1WW,
                        shift_labels=packed.targets_RW,
                        fused_lm_head=True,
                    )
                entropies = packed.unpack(outputs.entropy) if compute_entropy else None
                return packed.unpack(outputs.log_probs), entropies, None
        return super()._get_per_token_logps_and_entropies(
            model,
            input_ids,
            attention_mask,
            logits_to_keep,
            batch_size=batch_size,
            compute_entropy=compute_entropy,
            compute_aux_loss=compute_aux_loss,
            **more_than_text,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the source's metrics beside TRL's own."""
        super().log({**logs, **self._source.take_metrics()}, start_time)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            self._source.save(
                f"{self._get_output_dir(trial=trial)}/checkpoint-{self.state.global_step}"
            )


def _is_masked(group: RolloutGroup, groups: list[RolloutGroup]) -> bool:
    """Return whether to leave a group out of the loss's token count: zero advantage beside others.

    Counted, its tokens would thin out the other groups' gradient. If no group has signal nothing is
    masked, since a count of zero would make the loss 0/0.
    """
    return not group.has_signal and any(g.has_signal for g in groups)


def _hand_over(prompts: list[Any], trainer: GRPOTrainer) -> dict[str, list[Any]]:
    """Return the tokens that were already generated, as TRL's rollout_func."""
    assert isinstance(trainer, CurriculumGRPOTrainer)
    rows = trainer._rollouts
    return {
        key: [row[key] for row in rows]
        for key in ("prompt_ids", "completion_ids", "logprobs", "env_mask")
    }


def verified(*, reward: list[float | None], **_: Any) -> list[float | None]:
    """Return the source's rewards, as TRL's reward function."""
    return reward


def compact(inputs: Mapping[str, Any], *, drop_rows: bool) -> dict[str, Any]:
    """Return TRL's inputs without columns of padding, and without rows in which no token counts.

    Prompts (B, P) are padded on the left, all else (B, C) on the right. Rows are dropped only with
    `drop_rows`, and one always stays. Inputs with more than text are returned as they
    are.
    """
    small = dict(inputs)
    if "token_type_ids" in small or "num_images" in small:
        return small
    if drop_rows:
        counts = small["completion_mask"] * small.get("tool_mask", 1)
        kept = counts.any(dim=1)
        kept[0] |= ~kept.any()
        small = {key: value[kept] if _has_rows(value) else value for key, value in small.items()}
    whole = small["completion_ids"].size(1)
    start = _first(small["prompt_mask"])
    end = whole - _first(small["completion_mask"].flip(1))
    for key, value in small.items():
        if _has_rows(value) and value.dim() == 2:
            if key.startswith("prompt_"):
                small[key] = value[:, start:]
            elif value.size(1) == whole:
                small[key] = value[:, :end]
    return small


def _has_rows(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _first(mask: torch.Tensor) -> int:
    """Return the first column that is not masked in all rows."""
    return int(mask.any(dim=0).int().argmax())

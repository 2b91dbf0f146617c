"""When a step's batch says that going on is no use."""

from __future__ import annotations

from posttrain.errors import HealthStop
from posttrain.progress import note
from posttrain.rl.collect import Batch

MAX_UNDECIDED = 0.05
"""Share of a step's rollouts that no verifier could decide, past which the run stops."""


def say_what_lacks(batch: Batch, step: int, *, steps_without_signal: int) -> None:
    """Tell once per dry spell; metrics.jsonl and curriculum.jsonl hold every step."""
    if steps_without_signal == 1:
        note(
            f"rl: step {step}: no group of {len(batch.groups)} had signal ({_counts(batch)}); "
            "trained on the best at hand"
        )


def check_health(
    batch: Batch, step: int, *, num_groups: int, steps_without_signal: int, most: int
) -> None:
    """Raise HealthStop for a batch that is too small or undecided, or for `most` steps without
    signal in a row.
    """
    outcomes = [r.outcome for g in batch.groups for r in g.rollouts]
    undecided = [o for o in outcomes if o.passed is None]
    if len(undecided) > MAX_UNDECIDED * len(outcomes):
        raise HealthStop(
            f"rl: verifiers could not decide {len(undecided)} of {len(outcomes)} answers "
            f"at step {step}; the first: {undecided[0].why}",
            hint="check the verifier and references of rl.data",
        )
    if steps_without_signal >= most:
        raise HealthStop(
            f"rl: no group had signal for {steps_without_signal} steps, up to step {step} "
            f"({_counts(batch)} at the last)",
            hint="give rl.data harder prompts where all pass, easier ones or a longer SFT where "
            "all fail; the curriculum's max_steps_without_signal says how long to go on",
        )
    if len(batch.training_groups) < num_groups:
        raise HealthStop(
            f"rl: the curriculum had {len(batch.groups)} prompts left for a batch of {num_groups}",
            hint="give rl.data more rows, or lower the batch (per_device_train_batch_size x "
            "gradient_accumulation_steps / num_generations)",
        )


def _counts(batch: Batch) -> str:
    """Groups without signal by what they lacked, in words."""
    solved = sum(g.num_passed == g.num_decided > 0 for g in batch.groups)
    failed = sum(g.num_passed == 0 < g.num_decided for g in batch.groups)
    undecided = sum(g.num_decided == 0 for g in batch.groups)
    said = f"{solved} all passed, {failed} all failed"
    return said + (f", {undecided} undecided" if undecided else "")

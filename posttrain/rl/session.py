"""The state of an RL run: it collects every step's batch for the trainer, and records it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer

from posttrain.curriculum import Proposal, build_curriculum
from posttrain.data import LevelledFamily, question_hashes
from posttrain.engines import Engine, SamplingRequest
from posttrain.engines.parity import ExpectedLogprobs
from posttrain.errors import SetupError
from posttrain.kill_points import kill_point
from posttrain.models import PolicyPath, prompt_ids
from posttrain.recipe.models import EngineSpec
from posttrain.recipe.schema import Rl
from posttrain.records import Message, Prompt, RolloutGroup, with_system
from posttrain.rewards.shaping import mean_terms, shaped_rewards
from posttrain.rl.collect import USES, Batch, check_health, collect_batch, warn_no_signal
from posttrain.rl.levels import LevelledPrompts
from posttrain.rl.likelihood import ScoredReferences, score_references
from posttrain.rl.sampling import EnginePlace, Sampling, engine_place
from posttrain.rl.step_tables import (
    archive_from,
    read_new_prompts,
    tokens_spent,
    write_new_prompts,
    write_step,
)
from posttrain.rl.variants import Variant, write_variants
from posttrain.rl.weight_sync import Continuation, WeightSync
from posttrain.tables import read_arrays, write_arrays

STATE_FILE = "curriculum.zip"
OLD_STATE_FILE = "curriculum.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RlInputs:
    """Inputs of RL from the stages before it."""

    prompts: Sequence[Prompt]
    policy: PolicyPath
    """The policy to train."""
    tags: Mapping[str, float] = field(default_factory=dict[str, float])
    """Prompt_id -> difficulty by a judge, in any unit."""
    families: Sequence[LevelledFamily] = ()
    """Sources that make more prompts as the run goes."""
    held_out: frozenset[str] = frozenset()
    """Hashes of questions that no new prompt may ask."""


class RolloutSession:
    """Feeds a trainer: syncs the engine, collects a batch by the curriculum, records the step."""

    def __init__(
        self,
        rl: Rl,
        inputs: RlInputs,
        *,
        engine: Engine,
        engine_spec: EngineSpec,
        tokenizer: PreTrainedTokenizerBase,
        request: SamplingRequest,
        num_groups: int,
        work_dir: Path,
    ) -> None:
        seed = request.seed
        self._rl = rl
        self._spec = rl.curriculum
        self.curriculum = build_curriculum(
            rl.curriculum, inputs.prompts, seed=seed, tags=inputs.tags
        )
        self._levels = LevelledPrompts(
            inputs.families, inputs.prompts, held_out=inputs.held_out, seed=seed
        )
        self._weights = WeightSync(
            engine,
            engine_spec,
            base=inputs.policy.base,
            offload_policy=rl.offload_policy,
            work_dir=work_dir,
        )
        self._engine, self._engine_spec = engine, engine_spec
        self._tokenizer = tokenizer
        self._request, self._num_groups = request, num_groups
        self._work_dir = work_dir

        self._prompts = {prompt.prompt_id: prompt for prompt in inputs.prompts}
        self._questions = set(inputs.held_out)
        if rl.variants is not None:
            self._questions.update(*map(question_hashes, inputs.prompts))
        self._num_written = 0
        self._ids: dict[tuple[str, str | None], list[int]] = {}
        self._drawn: dict[str, tuple[RolloutGroup, Proposal]] = {}
        self._steps_without_signal = 0
        self._metrics: list[Mapping[str, float]] = []

    # For the trainer, see trainer.BatchSource

    def next_groups(self, trainer: GRPOTrainer) -> list[RolloutGroup]:
        """Sync the engine to the trainer's weights, then collect this step's batch."""
        step = trainer.state.global_step
        accelerator = trainer.accelerator
        place = engine_place(
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            tensor_parallel_size=self._engine_spec.tensor_parallel_size,
        )
        levelled = self._levels.new(self._num_groups)
        self._add_prompts(levelled)
        with self._weights.engine_turn(trainer, self._parity_sequences()):
            started = time.monotonic()
            sampling = self._sampling(step, place)
            references = self._score_references(sampling)
            batch = self._collect(sampling)
            seconds = time.monotonic() - started
            variants, written = self._write_variants(batch, sampling)
        self._add_prompts(written)
        self._drawn = {
            group.prompt_id: (group, proposal)
            for group, proposal in zip(batch.groups, batch.proposals, strict=True)
        }
        self._levels.observe(batch.groups, self._prompts)
        has_signal = "trained" in batch.uses
        self._steps_without_signal = 0 if has_signal else self._steps_without_signal + 1
        self._note_metrics(batch, references, variants, seconds=seconds)
        if accelerator.is_main_process:
            write_step(self._work_dir, step, batch, references, self._prompts)
            write_new_prompts(self._work_dir, step, [*levelled, *written], variants)
            warn_no_signal(batch, step, steps_without_signal=self._steps_without_signal)
        kill_point("rl.after_rollouts")
        check_health(
            batch,
            step,
            num_groups=self._num_groups,
            steps_without_signal=self._steps_without_signal,
            most=self._spec.max_steps_without_signal,
        )
        return batch.training_groups

    def messages(self, group: RolloutGroup) -> list[Message]:
        """Return the conversation that a group answers."""
        return with_system(self._prompts[group.prompt_id].messages, group.system)

    def prompt_ids(self, group: RolloutGroup) -> list[int]:
        """Return that conversation's tokens."""
        return self._prompt_ids(group.prompt_id, group.system)

    def rewards(self, group: RolloutGroup) -> list[float | None]:
        """Return 1 for passed, 0 for failed, None for undecided, shaped as the recipe says."""
        return shaped_rewards(group, self._rl.shaping)

    def advantages(self, group: RolloutGroup, *, scale: bool) -> list[float] | None:
        """Return advantages against the curriculum's baseline; None keeps TRL's.

        A pilot that was repeated for the trainer repeats its advantages.
        """
        drawn, proposal = self._drawn[group.prompt_id]
        outcomes = [rollout.outcome.passed for rollout in drawn.rollouts]
        found = self.curriculum.advantages(proposal, outcomes, scale=scale)
        if found is None:
            return None
        return list(itertools.islice(itertools.cycle(found), len(group.rollouts)))

    def take_metrics(self) -> dict[str, float]:
        """Return the means of what the steps since the last call measured."""
        steps, self._metrics = self._metrics, []
        names = dict.fromkeys(name for metrics in steps for name in metrics)
        return {
            name: sum(found) / len(found)
            for name in names
            if (found := [metrics[name] for metrics in steps if name in metrics])
        }

    def save(self, checkpoint: str) -> None:
        """Write the curriculum and the session into a checkpoint folder."""
        state = {
            "curriculum": self.curriculum.state_dict(),
            "levels": self._levels.state_dict(),
            "steps_without_signal": self._steps_without_signal,
        }
        write_arrays(Path(checkpoint) / STATE_FILE, state)

    # For a run that begins, resumes or ends

    def restore(self, checkpoint: Path, step: int) -> None:
        """Continue from a checkpoint at `step`; later steps' tables, to be made again, go aside.

        Raise SetupError if the checkpoint is of a version that kept other state.
        """
        if not (checkpoint / STATE_FILE).exists() and (checkpoint / OLD_STATE_FILE).exists():
            raise SetupError(
                f"{checkpoint} was written by a version of posttrain whose curriculum state this "
                "one does not read",
                hint=f"remove {checkpoint.parent} to start the RL stage over, or finish it with "
                "the version that began it",
            )
        self.rewind(step)
        # Every process reads what the main one has just put in order.
        PartialState().wait_for_everyone()
        for prompts in read_new_prompts(self._work_dir):
            self._add_prompts(prompts)
            self._levels.note(prompts)
        state = read_arrays(checkpoint / STATE_FILE)
        self.curriculum.load_state_dict(state["curriculum"])
        self._levels.load_state_dict(state["levels"])
        self._steps_without_signal = state["steps_without_signal"]

    def rewind(self, step: int) -> None:
        """Forget what was recorded at `step` and later: the next batch is that step's."""
        if not PartialState().is_main_process:
            return
        self._weights.rewind(step)
        archive_from(self._work_dir, step)

    def expected_logprobs(self, trainer: GRPOTrainer) -> ExpectedLogprobs:
        """Return the trainer's log-probabilities of some prompts; every process must call it."""
        return self._weights.expected(trainer, self._split_prompts())

    # One step

    def _parity_sequences(self) -> list[Continuation]:
        """Return the last step's answers; before any, prompts."""
        groups = [group for group, _ in self._drawn.values()]
        if not groups:
            return self._split_prompts()
        return [(self.prompt_ids(group), group.rollouts[0].completion_ids) for group in groups]

    def _split_prompts(self) -> list[Continuation]:
        """Return a few prompts, each split in the middle.

        They fit the engine, which a reference (the tests of a program, say) need not.
        """
        ids = [self._prompt_ids(prompt_id, None) for prompt_id in sorted(self._prompts)[:4]]
        return [(i[: len(i) // 2], i[len(i) // 2 :]) for i in ids]

    def _sampling(self, step: int, place: EnginePlace) -> Sampling:
        return Sampling(
            engine=self._engine,
            tokenizer=self._tokenizer,
            request=self._request,
            prompts=self._prompts,
            step=step,
            systems=self._rl.system_prompts,
            place=place,
        )

    def _score_references(self, sampling: Sampling) -> ScoredReferences:
        """Give the curriculum the likelihoods that it asks for."""
        found = score_references(
            self.curriculum.prompts_to_score(self._num_groups),
            sampling,
            max_model_len=self._engine_spec.max_model_len,
        )
        self.curriculum.observe_likelihood(found.logprobs, step=sampling.step)
        return found

    def _collect(self, sampling: Sampling) -> Batch:
        at_first = self._rl.pilot_prompts / self._num_groups if sampling.step == 0 else 0.0
        return collect_batch(
            self.curriculum,
            sampling,
            num_groups=self._num_groups,
            max_refills=self._spec.max_refills,
            refill_below=self._spec.refill_below,
            max_rollouts=self._spec.max_rollouts,
            oversample=max(self._spec.oversample, at_first),
        )

    def _write_variants(
        self, batch: Batch, sampling: Sampling
    ) -> tuple[list[Variant], list[Prompt]]:
        """Let the policy write prompts, up to the recipe's share of the pool."""
        spec = self._rl.variants
        if spec is None:
            return [], []
        room = int(spec.max_share * len(self._prompts)) - self._num_written
        return write_variants(
            batch.groups, spec, sampling, known=self._questions, room=max(room, 0)
        )

    def _add_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Put new prompts into the pool."""
        if not prompts:
            return
        self.curriculum.add(prompts)
        self._prompts.update({prompt.prompt_id: prompt for prompt in prompts})
        if self._rl.variants is not None:
            self._questions.update(*map(question_hashes, prompts))
        self._num_written += sum(prompt.origin != "dataset" for prompt in prompts)

    def _note_metrics(
        self,
        batch: Batch,
        references: ScoredReferences,
        variants: Sequence[Variant],
        *,
        seconds: float,
    ) -> None:
        tokens = tokens_spent(batch) | {
            "probe": references.num_tokens,
            "variants": sum(one.num_tokens for one in variants),
        }
        shaping = self._rl.shaping
        terms = {} if shaping is None else mean_terms(batch.training_groups, shaping)
        self._metrics.append(
            {
                **{f"tokens/{name}": float(num) for name, num in tokens.items()},
                **{f"groups/{use}": float(batch.uses.count(use)) for use in USES},
                "groups/refill_cap_bound": float(batch.is_capped),
                "groups/steps_without_signal": float(self._steps_without_signal),
                **{f"shaping/{name}": value for name, value in terms.items()},
                "seconds/rollouts": seconds - references.seconds,
                "seconds/probe": references.seconds,
                **self._levels.metrics(),
                **self.curriculum.metrics(),
            }
        )

    def _prompt_ids(self, prompt_id: str, system: str | None) -> list[int]:
        key = (prompt_id, system)
        if key not in self._ids:
            messages = with_system(self._prompts[prompt_id].messages, system)
            self._ids[key] = prompt_ids(self._tokenizer, messages)
        return self._ids[key]

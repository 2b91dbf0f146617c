"""The state of an RL run: curriculum, engine, weight syncs, and the tables that record a step."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer

from posttrain.curriculum import Curriculum, CurriculumSpec, Proposal
from posttrain.data import question_hashes
from posttrain.engines import Engine, SamplingRequest
from posttrain.engines.parity import ExpectedLogprobs, check_parity, expected_logprobs
from posttrain.engines.sync import sync_policy
from posttrain.errors import SetupError
from posttrain.kill_points import kill_point
from posttrain.models import prompt_ids
from posttrain.recipe.models import EngineSpec
from posttrain.recipe.schema import Variants
from posttrain.records import Message, Prompt, RolloutGroup, with_system
from posttrain.rewards.shaping import Shaping, mean_terms, shaped_rewards
from posttrain.rl.accounting import tokens_spent
from posttrain.rl.collect import USES, Batch, collect_batch
from posttrain.rl.health import check_health, say_what_lacks
from posttrain.rl.levels import LevelledPrompts
from posttrain.rl.likelihood import LikelihoodProbe, score_references
from posttrain.rl.places import EnginePlace, engine_place
from posttrain.rl.sampling import Sampling
from posttrain.rl.step_tables import read_added, set_aside, write_made, write_step
from posttrain.rl.turns import engines_turn
from posttrain.rl.variants import Variant, write_variants
from posttrain.tables import MetricsLog, read_arrays, write_arrays

STATE_FILE = "curriculum.zip"
OLD_STATE_FILE = "curriculum.json"


class RolloutSession:
    """Feeds a trainer: brings its weights to the engine, collects a batch, records the step."""

    def __init__(
        self,
        *,
        curriculum: Curriculum,
        spec: CurriculumSpec,
        pilot_prompts: int,
        systems: Sequence[str | None],
        variants: Variants | None,
        held: frozenset[str],
        shaping: Shaping | None,
        levels: LevelledPrompts,
        prompts: Mapping[str, Prompt],
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        request: SamplingRequest,
        num_groups: int,
        engine_spec: EngineSpec,
        base: Path,
        offload_policy: bool,
        work_dir: Path,
    ) -> None:
        self._curriculum = curriculum
        self._spec = spec
        self._pilot_prompts = pilot_prompts
        self._systems = systems
        self._variants = variants
        self._questions = set(held)
        if variants is not None:
            self._questions.update(*map(question_hashes, prompts.values()))
        self._num_written = 0
        self._shaping = shaping
        self._levels = levels
        self._prompts = dict(prompts)
        self._engine = engine
        self._tokenizer = tokenizer
        self._request = request
        self._num_groups = num_groups
        self._engine_spec = engine_spec
        self._base = base
        self._offload_policy = offload_policy
        self._work_dir = work_dir
        self._ids: dict[tuple[str, str | None], list[int]] = {}
        self._last_groups: list[RolloutGroup] = []
        self._drawn: dict[str, tuple[RolloutGroup, Proposal]] = {}
        self._steps_without_signal = 0
        self._parity = MetricsLog(work_dir / "parity.jsonl")
        self._metrics: list[Mapping[str, float]] = []

    def next_groups(self, trainer: GRPOTrainer) -> list[RolloutGroup]:
        """Sync the engine to the trainer's weights, then collect the batch of the step at hand."""
        step = trainer.state.global_step
        accelerator = trainer.accelerator
        place = engine_place(
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            tensor_parallel_size=self._engine_spec.tensor_parallel_size,
        )
        expected = self._expected(trainer) if step != self._engine.policy_version else None
        added = self._levels.new(self._num_groups)
        self._add_prompts(added)
        with engines_turn(self._engine, trainer, offload_policy=self._offload_policy):
            if expected is not None:
                self._sync(trainer, expected)
            started = time.monotonic()
            sampling = self._sampling(step, place)
            likelihoods = self._score_references(sampling)
            at_first = self._pilot_prompts / self._num_groups if step == 0 else 0.0
            batch = collect_batch(
                self._curriculum,
                sampling,
                num_groups=self._num_groups,
                max_refills=self._spec.max_refills,
                refill_below=self._spec.refill_below,
                max_rollouts=self._spec.max_rollouts,
                oversample=max(self._spec.oversample, at_first),
            )
            seconds = time.monotonic() - started
            variants, written = self._write_variants(batch, sampling)
        self._add_prompts(written)
        self._last_groups = batch.groups
        self._drawn = {
            group.prompt_id: (group, proposal)
            for group, proposal in zip(batch.groups, batch.proposals, strict=True)
        }
        self._levels.observe(batch.groups, self._prompts)
        self._steps_without_signal = (
            0 if "trained" in batch.uses else self._steps_without_signal + 1
        )
        self._note_metrics(batch, likelihoods, variants, seconds=seconds)
        if trainer.accelerator.is_main_process:
            write_step(self._work_dir, step, batch, likelihoods, self._prompts)
            write_made(self._work_dir, step, [*added, *written], variants)
            say_what_lacks(batch, step, steps_without_signal=self._steps_without_signal)
        kill_point("rl.after_rollouts")
        check_health(
            batch,
            step,
            num_groups=self._num_groups,
            steps_without_signal=self._steps_without_signal,
            most=self._spec.max_steps_without_signal,
        )
        return batch.training_groups

    def advantages(self, group: RolloutGroup, *, scale: bool) -> list[float] | None:
        """Of the curriculum's baseline, in place of the group's own; None where that one serves.

        A pilot that was repeated for the trainer repeats its advantages.
        """
        drawn, proposal = self._drawn[group.prompt_id]
        outcomes = [rollout.outcome.passed for rollout in drawn.rollouts]
        found = self._curriculum.advantages(proposal, outcomes, scale=scale)
        if found is None:
            return None
        return list(itertools.islice(itertools.cycle(found), len(group.rollouts)))

    def take_metrics(self) -> dict[str, float]:
        """What the steps since the last call measured, as means over them."""
        steps, self._metrics = self._metrics, []
        names = dict.fromkeys(name for metrics in steps for name in metrics)
        return {
            name: sum(found) / len(found)
            for name in names
            if (found := [metrics[name] for metrics in steps if name in metrics])
        }

    def _add_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Put new prompts into the pool."""
        if prompts:
            self._curriculum.add(prompts)
            self._note_added(prompts)

    def _note_added(self, prompts: Sequence[Prompt]) -> None:
        self._prompts.update({prompt.prompt_id: prompt for prompt in prompts})
        if self._variants is not None:
            self._questions.update(*map(question_hashes, prompts))
        self._num_written += sum(prompt.origin != "dataset" for prompt in prompts)

    def _write_variants(
        self, batch: Batch, sampling: Sampling
    ) -> tuple[list[Variant], list[Prompt]]:
        """New prompts by the policy, as far as the recipe wants and the pool has room for them."""
        if self._variants is None:
            return [], []
        room = int(self._variants.max_share * len(self._prompts)) - self._num_written
        return write_variants(
            batch.groups, self._variants, sampling, known=self._questions, room=max(room, 0)
        )

    def _sampling(self, step: int, place: EnginePlace) -> Sampling:
        return Sampling(
            engine=self._engine,
            tokenizer=self._tokenizer,
            request=self._request,
            prompts=self._prompts,
            step=step,
            systems=self._systems,
            place=place,
        )

    def _score_references(self, sampling: Sampling) -> LikelihoodProbe:
        """Tell the curriculum how likely the policy finds the answers that it asks about."""
        asked = self._curriculum.prompts_to_score(self._num_groups)
        found = score_references(asked, sampling, max_model_len=self._engine_spec.max_model_len)
        logprobs = {
            one.prompt_id: None if math.isnan(one.logprob) else one.logprob for one in found.scored
        }
        self._curriculum.observe_likelihood(logprobs, step=sampling.step)
        return found

    def _note_metrics(
        self,
        batch: Batch,
        likelihoods: LikelihoodProbe,
        variants: Sequence[Variant],
        *,
        seconds: float,
    ) -> None:
        tokens = tokens_spent(batch) | {
            "probe": sum(one.num_tokens for one in likelihoods.scored),
            "variants": sum(one.num_tokens for one in variants),
        }
        self._metrics.append(
            {
                **{f"tokens/{name}": float(num) for name, num in tokens.items()},
                **{f"groups/{use}": float(batch.uses.count(use)) for use in USES},
                "groups/refill_cap_bound": float(batch.is_capped),
                "groups/steps_without_signal": float(self._steps_without_signal),
                **self._shaping_metrics(batch),
                "seconds/rollouts": seconds - likelihoods.seconds,
                "seconds/probe": likelihoods.seconds,
                **self._levels.metrics(),
                **self._curriculum.metrics(),
            }
        )

    def _shaping_metrics(self, batch: Batch) -> dict[str, float]:
        if self._shaping is None:
            return {}
        terms = mean_terms(batch.training_groups, self._shaping)
        return {f"shaping/{name}": value for name, value in terms.items()}

    def _expected(self, trainer: GRPOTrainer) -> ExpectedLogprobs:
        """What the engine must answer once it has the trainer's weights."""
        groups = self._last_groups
        if not groups:  # the first sync of a resumed run
            return self.expected_of_prompts(trainer)
        model = trainer.accelerator.unwrap_model(trainer.model)
        return expected_logprobs(
            model,
            [self.prompt_ids(group) for group in groups],
            [group.rollouts[0].completion_ids for group in groups],
        )

    def expected_of_prompts(self, trainer: GRPOTrainer) -> ExpectedLogprobs:
        """What an engine must answer that holds these weights, whatever was generated before.

        Over a few prompts, each split in the middle: they fit the engine, which a reference (the
        tests of a program, say) need not.
        """
        ids = [self._prompt_ids(prompt_id, None) for prompt_id in sorted(self._prompts)[:4]]
        model = trainer.accelerator.unwrap_model(trainer.model)
        return expected_logprobs(
            model, [i[: len(i) // 2] for i in ids], [i[len(i) // 2 :] for i in ids]
        )

    def _sync(self, trainer: GRPOTrainer, expected: ExpectedLogprobs) -> None:
        """Give the engine the trainer's weights and prove that it took them."""
        started = time.monotonic()
        sync_policy(
            self._engine,
            trainer.accelerator.unwrap_model(trainer.model),
            sync=self._engine_spec.sync,
            base=self._base,
            scratch=self._work_dir / "synced",
            policy_version=trainer.state.global_step,
        )
        seconds = time.monotonic() - started
        parity = check_parity(self._engine, expected, tolerance=self._engine_spec.parity_tolerance)
        if trainer.accelerator.is_main_process:
            self._parity.append(
                trainer.state.global_step,
                {
                    "parity/mean": parity.mean,
                    "parity/max": parity.max,
                    "parity/num_tokens": parity.num_tokens,
                    "parity/sync_seconds": seconds,
                },
            )
        kill_point("rl.after_sync")

    def rewards(self, group: RolloutGroup) -> list[float | None]:
        """1 for passed, 0 for failed, None for undecided, shaped where the recipe says so."""
        return shaped_rewards(group, self._shaping)

    def messages(self, group: RolloutGroup) -> list[Message]:
        """The conversation that a group answers."""
        return with_system(self._prompts[group.prompt_id].messages, group.system)

    def prompt_ids(self, group: RolloutGroup) -> list[int]:
        """That conversation's tokens."""
        return self._prompt_ids(group.prompt_id, group.system)

    def _prompt_ids(self, prompt_id: str, system: str | None) -> list[int]:
        key = (prompt_id, system)
        if key not in self._ids:
            messages = with_system(self._prompts[prompt_id].messages, system)
            self._ids[key] = prompt_ids(self._tokenizer, messages)
        return self._ids[key]

    def save(self, checkpoint: str) -> None:
        """Write the curriculum and the session into a checkpoint folder."""
        state = {
            "curriculum": self._curriculum.state_dict(),
            "levels": self._levels.state_dict(),
            "steps_without_signal": self._steps_without_signal,
        }
        write_arrays(Path(checkpoint) / STATE_FILE, state)

    def restore(self, checkpoint: Path, step: int) -> None:
        """Go on from a checkpoint at `step`; later steps' tables, to be made again, go aside.

        Raises SetupError where the checkpoint is of a version that kept other state.
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
        for added in read_added(self._work_dir):
            self._add_prompts(added)
            self._levels.note(added)
        state = read_arrays(checkpoint / STATE_FILE)
        self._curriculum.load_state_dict(state["curriculum"])
        self._levels.load_state_dict(state["levels"])
        self._steps_without_signal = state["steps_without_signal"]

    def rewind(self, step: int) -> None:
        """Forget what was recorded at `step` and later: the next batch is that step's."""
        if not PartialState().is_main_process:
            return
        self._parity.rewind(step - 1)
        set_aside(self._work_dir, step)

"""The state of an RL run: curriculum, engine, weight syncs, and the tables that record a step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer

from posttrain.curriculum import Curriculum
from posttrain.engines import Engine, SamplingRequest
from posttrain.engines.adapters import sync_policy
from posttrain.engines.parity import Probe, check_parity, take_probe
from posttrain.errors import HealthStop
from posttrain.faults import fault_point
from posttrain.models import prompt_ids
from posttrain.recipe.schema import EngineSpec
from posttrain.records import Message, Prompt, RolloutGroup
from posttrain.rl.collect import Batch, collect_batch
from posttrain.rl.places import engine_place
from posttrain.rl.turns import engines_turn
from posttrain.tables import MetricsLog, read_json, write_groups, write_json

CURRICULUM_FILE = "curriculum.json"
MAX_UNDECIDED = 0.05
"""Share of a step's rollouts that no verifier could decide, past which the run stops."""


class RolloutSession:
    """Feeds a trainer: brings its weights to the engine, collects a batch, records the step."""

    def __init__(
        self,
        *,
        curriculum: Curriculum,
        max_refills: int,
        prompts: Mapping[str, Prompt],
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        request: SamplingRequest,
        num_groups: int,
        spec: EngineSpec,
        base: Path,
        offload_policy: bool,
        work_dir: Path,
    ) -> None:
        self._curriculum = curriculum
        self._max_refills = max_refills
        self._prompts = prompts
        self._engine = engine
        self._tokenizer = tokenizer
        self._request = request
        self._num_groups = num_groups
        self._spec = spec
        self._base = base
        self._offload_policy = offload_policy
        self._work_dir = work_dir
        self._ids: dict[str, list[int]] = {}
        self._last_groups: list[RolloutGroup] = []
        self._parity = MetricsLog(work_dir / "parity.jsonl")

    def next_groups(self, trainer: GRPOTrainer) -> list[RolloutGroup]:
        """Sync the engine to the trainer's weights, then collect the batch of the step at hand."""
        step = trainer.state.global_step
        accelerator = trainer.accelerator
        place = engine_place(
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            tensor_parallel_size=self._spec.tensor_parallel_size,
        )
        probe = self._probe(trainer) if step != self._engine.policy_version else None
        with engines_turn(self._engine, trainer, offload_policy=self._offload_policy):
            if probe is not None:
                self._sync(trainer, probe)
            batch = collect_batch(
                curriculum=self._curriculum,
                prompts=self._prompts,
                engine=self._engine,
                tokenizer=self._tokenizer,
                request=self._request,
                num_groups=self._num_groups,
                max_refills=self._max_refills,
                step=step,
                place=place,
            )
        self._last_groups = batch.groups
        if trainer.accelerator.is_main_process:
            self._record(batch, step)
        fault_point("rl.after_rollouts")
        self._stop_if_unhealthy(batch, step)
        groups = batch.training_groups
        if len(groups) < self._num_groups:
            raise HealthStop(
                f"rl: the curriculum had {len(groups)} prompts left "
                f"for a batch of {self._num_groups}",
                hint="give rl.data more rows, or lower the batch (per_device_train_batch_size x "
                "gradient_accumulation_steps / num_generations)",
            )
        return groups

    def _probe(self, trainer: GRPOTrainer) -> Probe:
        """What the engine must answer once it has the trainer's weights."""
        groups = self._last_groups
        if not groups:
            # The first sync of a resumed run: any prompt will do, split in the middle.
            ids = [self.prompt_ids(prompt_id) for prompt_id in sorted(self._prompts)[:4]]
            prefixes = [i[: len(i) // 2] for i in ids]
            continuations = [i[len(i) // 2 :] for i in ids]
        else:
            prefixes = [self.prompt_ids(g.prompt_id) for g in groups]
            continuations = [g.rollouts[0].completion_ids for g in groups]
        model = trainer.accelerator.unwrap_model(trainer.model)
        return take_probe(model, prefixes, continuations)

    def _sync(self, trainer: GRPOTrainer, probe: Probe) -> None:
        """Give the engine the trainer's weights and prove that it took them."""
        started = time.monotonic()
        sync_policy(
            self._engine,
            trainer.accelerator.unwrap_model(trainer.model),
            sync=self._spec.sync,
            base=self._base,
            scratch=self._work_dir / "synced",
            policy_version=trainer.state.global_step,
        )
        seconds = time.monotonic() - started
        parity = check_parity(self._engine, probe, tolerance=self._spec.parity_tolerance)
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
        fault_point("rl.after_sync")

    def messages(self, prompt_id: str) -> list[Message]:
        """The prompt's conversation."""
        return self._prompts[prompt_id].messages

    def prompt_ids(self, prompt_id: str) -> list[int]:
        """The prompt's tokens."""
        if prompt_id not in self._ids:
            self._ids[prompt_id] = prompt_ids(self._tokenizer, self._prompts[prompt_id].messages)
        return self._ids[prompt_id]

    def save(self, checkpoint: str) -> None:
        """Write the curriculum into a checkpoint folder."""
        write_json(Path(checkpoint) / CURRICULUM_FILE, self._curriculum.state_dict())

    def restore(self, checkpoint: Path, step: int) -> None:
        """Go on from a checkpoint at `step`; later steps' tables, to be made again, go aside."""
        self._curriculum.load_state_dict(read_json(checkpoint / CURRICULUM_FILE))
        self.rewind(step)

    def rewind(self, step: int) -> None:
        """Forget what was recorded at `step` and later: the next batch is that step's."""
        if not PartialState().is_main_process:
            return
        self._parity.rewind(step - 1)
        aside = self._work_dir / "superseded" / str(time.time_ns())
        for table in sorted((self._work_dir / "rollouts").glob("step-*.parquet")):
            if int(table.stem.split("-")[1]) >= step:
                aside.mkdir(parents=True, exist_ok=True)
                table.rename(aside / table.name)

    def _record(self, batch: Batch, step: int) -> None:
        """Write the step's rollout table, once and for good, with what became of each group."""
        columns = [
            {"use": use, "refill": n}
            for use, n in zip(batch.uses, batch.refill_rounds, strict=True)
        ]
        path = self._work_dir / "rollouts" / f"step-{step:06d}.parquet"
        write_groups(path, batch.groups, self._prompts, columns=columns)

    def _stop_if_unhealthy(self, batch: Batch, step: int) -> None:
        outcomes = [r.outcome for g in batch.groups for r in g.rollouts]
        undecided = [o for o in outcomes if o.passed is None]
        if len(undecided) > MAX_UNDECIDED * len(outcomes):
            raise HealthStop(
                f"rl: verifiers could not decide {len(undecided)} of {len(outcomes)} answers "
                f"at step {step}; the first: {undecided[0].why}",
                hint="check the verifier and references of rl.data",
            )

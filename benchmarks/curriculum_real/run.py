"""One run of the real bed: an arm on a pool with a seed, trained by the RL stage's own parts.

The parts are those of `posttrain.rl`, without its tables' summary and its checkpoints: a run
is short, and starts over where it was cut off.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from trl import GRPOConfig

from benchmarks.curriculum_real.pools import GROUP_SIZE, RealPool
from benchmarks.curriculum_real.start import Exam, exam, model_spec, pass_rates
from benchmarks.curriculum_real.tasks import MAX_ANSWER_TOKENS
from benchmarks.curriculum_rows import COSTS, Trace
from posttrain.curriculum import CurriculumSpec
from posttrain.engines import Completion, Engine, SamplingRequest, make_engine
from posttrain.engines.engine import OnDone
from posttrain.errors import HealthStop
from posttrain.models import PolicyPath, load_policy, load_tokenizer
from posttrain.progress import Bar, progress
from posttrain.recipe.models import EngineSpec
from posttrain.recipe.rows import DataSource
from posttrain.recipe.schema import Rl
from posttrain.recipe.trainer_blocks import GRPOBlock
from posttrain.records import Prompt
from posttrain.rl import RlInputs
from posttrain.rl.session import RolloutSession
from posttrain.rl.step_tables import FATES, PURPOSES
from posttrain.rl.trainer import CurriculumGRPOTrainer
from posttrain.training import trainer_arguments

BATCH = 32
WARMUP_STEPS = 10
ENGINE = EngineSpec(kind="transformers", max_num_seqs=512, max_model_len=64)


class Metered:
    """An engine that counts the rollouts and tokens it generates."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.policy_version = engine.policy_version
        self.num_rollouts = 0
        self.num_tokens = 0

    def generate(
        self,
        prompts_P: Sequence[list[int]],
        request: SamplingRequest,
        *,
        on_done: OnDone | None = None,
    ) -> list[list[Completion]]:
        """Generate as the engine does, and count."""
        completions_P_G = self._engine.generate(prompts_P, request, on_done=on_done)
        self.num_rollouts += sum(map(len, completions_P_G))
        self.num_tokens += sum(len(c.token_ids) for of_one in completions_P_G for c in of_one)
        return completions_P_G

    def score(
        self, prefixes_N: Sequence[list[int]], continuations_N: Sequence[list[int]]
    ) -> list[list[float]]:
        """Score as the engine does."""
        return self._engine.score(prefixes_N, continuations_N)

    def sync_weights(
        self, tensors: Iterable[tuple[str, torch.Tensor]], policy_version: int
    ) -> None:
        """Sync weights as the engine does."""
        self._engine.sync_weights(tensors, policy_version)
        self.policy_version = policy_version

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


class Watch(TrainerCallback):
    """Callback that adds up each step's costs, measures held-out pass@1 and ends the run."""

    def __init__(
        self,
        *,
        engine: Metered,
        bar: Bar,
        held_out: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        every: int,
        max_tokens: int | None,
        stop_at: float | None,
    ) -> None:
        self._engine, self._bar = engine, bar
        self._exam = exam(tokenizer, held_out)
        self._capabilities = [prompt.capability for prompt in held_out]
        self._every = every
        self._max_tokens, self._stop_at = max_tokens, stop_at
        self._reached = 0
        self._next = every
        self._clock = 0.0
        self._spent = dict.fromkeys(COSTS, 0.0)
        self.points: list[dict[str, float]] = []
        self.purposes: Counter[str] = Counter()
        self.fates: Counter[str] = Counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure held-out pass@1 at the start."""
        self.measure(kwargs["model"])
        self._clock = time.process_time()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the step's costs; measure and stop when due."""
        logs = logs or {}
        if "tokens/generated" not in logs:
            return  # TRL's summary at the end
        spent = self._spent
        spent["tokens"] += logs["tokens/generated"]
        spent["scored_tokens"] += logs["tokens/probe"]
        spent["rollouts"] = float(self._engine.num_rollouts)
        spent["steps"] = float(state.global_step)
        spent["seconds"] += time.process_time() - self._clock
        assert spent["tokens"] == self._engine.num_tokens, "every generated token is accounted for"
        self.purposes.update({name: int(logs[f"tokens/{name}"]) for name in PURPOSES})
        self.fates.update({name: int(logs[f"tokens/{name}"]) for name in FATES})
        is_over = state.global_step >= state.max_steps or (
            self._max_tokens is not None and spent["tokens"] >= self._max_tokens
        )
        if is_over or spent["tokens"] >= self._next:
            self.measure(kwargs["model"])
            while self._next <= spent["tokens"]:
                self._next += self._every
        self._bar.advance(1, held_out=round(self.points[-1]["held_out"], 3))
        control.should_training_stop = is_over or self._reached >= 2
        self._clock = time.process_time()

    def measure(self, model: torch.nn.Module) -> None:
        """Append a point: held-out pass@1 of the policy now, and the costs so far."""
        was_training = model.training
        model.eval()
        value = held_out_pass_rate(model, self._exam, self._capabilities)
        model.train(was_training)
        self.points.append({"held_out": value, **self._spent})
        is_there = self._stop_at is not None and value >= self._stop_at
        self._reached = self._reached + 1 if is_there else 0


def held_out_pass_rate(
    model: torch.nn.Module, exam_P: Exam, capabilities_P: Sequence[str]
) -> float:
    """Return exact pass@1 at temperature 1, averaged over capabilities."""
    rates = pass_rates(model, exam_P)
    of = np.array(capabilities_P)
    return float(np.mean([rates[of == c].mean() for c in sorted(set(capabilities_P))]))


def train_arm(
    spec: CurriculumSpec,
    pool: RealPool,
    policy: PolicyPath,
    *,
    seed: int,
    max_steps: int,
    learning_rate: float,
    eval_every: int,
    max_tokens: int | None = None,
    stop_at: float | None = None,
    label: str = "rl",
) -> Trace:
    """Train until `max_steps`, `max_tokens`, or until two measurements in a row reach `stop_at`.

    Held-out pass@1 is measured every `eval_every` generated tokens. HealthStop ends the run, whose
    costs up to then count.
    """
    started = time.perf_counter()
    tokenizer = load_tokenizer(policy.base)
    engine = Metered(make_engine(ENGINE, policy, dtype="float32", seed=seed))
    metrics: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        progress(label, total=max_steps) as bar,
    ):
        watch = Watch(
            engine=engine,
            bar=bar,
            held_out=pool.held_out,
            tokenizer=tokenizer,
            every=eval_every,
            max_tokens=max_tokens,
            stop_at=stop_at,
        )
        args = _arguments(
            seed=seed,
            max_steps=max_steps,
            learning_rate=learning_rate,
            work_dir=Path(folder),
        )
        session = RolloutSession(
            # The prompts are drawn already; a section needs a source.
            Rl(data=[DataSource(path="pool.jsonl", capability="strings")], curriculum=spec),
            RlInputs(prompts=pool.prompts, policy=policy, tags=pool.tags),
            engine=engine,
            engine_spec=ENGINE,
            tokenizer=tokenizer,
            request=SamplingRequest(
                num_generations=GROUP_SIZE, max_tokens=MAX_ANSWER_TOKENS, seed=seed
            ),
            num_groups=BATCH,
            work_dir=Path(folder),
        )
        set_seed(seed)
        grpo = CurriculumGRPOTrainer(
            model=load_policy(policy, model_spec(policy.base), trainable=True),
            args=args,
            train_dataset=Dataset.from_list([{"prompt": p.messages} for p in pool.prompts]),
            processing_class=tokenizer,
            source=session,
        )
        grpo.remove_callback(PrinterCallback)
        grpo.add_callback(watch)
        try:
            grpo.train()
        except HealthStop:
            metrics["stopped_for_health"] = 1.0
            watch.measure(grpo.accelerator.unwrap_model(grpo.model))
    engine.close()
    curriculum = session.curriculum
    return Trace(
        points=watch.points,
        purposes=dict(watch.fates),
        reliability=curriculum.reliability(),
        metrics=metrics
        | {f"tokens/{name}": float(num) for name, num in watch.purposes.items()}
        | {name: value for name, value in curriculum.metrics().items() if math.isfinite(value)},
        wall_seconds=time.perf_counter() - started,
    )


def _arguments(*, seed: int, max_steps: int, learning_rate: float, work_dir: Path) -> GRPOConfig:
    trainer = GRPOBlock(
        learning_rate=learning_rate,
        lr_scheduler_type="constant_with_warmup",  # no decay: arms end at different steps
        warmup_steps=WARMUP_STEPS,
        max_steps=max_steps,
        num_generations=GROUP_SIZE,
        per_device_train_batch_size=BATCH * GROUP_SIZE,
        max_completion_length=MAX_ANSWER_TOKENS,
        temperature=1.0,
        beta=0.0,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
    )
    return trainer_arguments(trainer, stage="rl", dtype="float32", seed=seed, work_dir=work_dir)

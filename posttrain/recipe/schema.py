"""The YAML schema of recipes, as pydantic models; judges and curricula are files of their own."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from posttrain.recipe.deciding import AnswerJudge
from posttrain.recipe.models import EngineSpec, Model
from posttrain.recipe.rows import DataSource
from posttrain.rewards.shaping import Shaping
from posttrain.sandbox import SandboxSpec
from posttrain.spec import Share, Spec, wrong

CornerCase = Literal[
    "wrong_answer",
    "truncation",
    "format",
    "repetition",
    "empty",
    "refusal",
    "wrong_language",
    "leak",
]
EvalPoint = Literal["base", "sft", "rl", "dpo"]


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names that become files and folders."""


class Launch(Spec):
    """How the training stages are started."""

    num_processes: int = Field(default=1, ge=1)
    """Of `accelerate launch`: one per device."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every device holds the whole model. fsdp: FSDP2, each layer sharded over all."""


class Pilot(Spec):
    """Samples whose difficulty is measured with the base model, to check the judge against."""

    num_samples: int = Field(default=128, ge=0)
    """0 leaves the check out."""
    num_generations: int = Field(default=8, ge=1)
    """Attempts per sample."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest answer, in tokens."""


class Prune(Spec):
    """What the judge's scores decide."""

    drop_easiest: Share = 0.5
    """Share of each capability's scored samples that is dropped, easiest first."""


class Sft(Spec):
    """Stage 1: judge, prune, supervised fine-tuning."""

    data: list[DataSource] = Field(min_length=1)
    """Where its rows come from."""
    judge: str | None = None
    """A judge YAML; without one nothing is pruned."""
    judge_engine: EngineSpec | None = None
    """Where the judge runs; left out, the base model itself judges on the recipe's engine."""
    pilot: Pilot = Pilot()
    prune: Prune = Prune()
    trainer: dict[str, Any] = Field(default_factory=dict[str, Any])
    """trl.SFTConfig's own names."""


class Variants(Spec):
    """New prompts from the policy itself: harder variants of prompts that it passes at times.

    Their answers are what most of its rollouts agree on, and may be wrong: where the truth is known
    the share of wrong ones is told.
    """

    per_step: int = Field(default=4, ge=1)
    """Variants asked for per step."""
    max_share: Share = 0.1
    """Of the pool that may be written by the policy."""
    low: Share = 0.25
    """Least pass rate of a prompt to vary."""
    high: Share = 0.75
    """Greatest pass rate of a prompt to vary."""
    num_answers: int = Field(default=16, ge=2)
    """Rollouts that vote on a variant's answer."""
    agreement: Share = 0.5
    """Share of them that must agree."""
    high_agreement: Share = 0.9
    """Share past which a variant counts as solved and is left out."""
    max_tokens: int = Field(default=128, ge=1)
    """Longest question, in tokens."""
    instruction: str = (
        "Write one new problem of the same kind as the one below, a little harder. Write the "
        "problem only, in the same form, without its answer.\n\n{question}"
    )
    """What the policy is asked; {question} is the prompt to vary."""

    @model_validator(mode="after")
    def _sound(self) -> Variants:
        if self.low > self.high:
            raise wrong(f"must not be above high ({self.high:g})", "low")
        if self.agreement > self.high_agreement:
            message = f"must not be above high_agreement ({self.high_agreement:g})"
            raise wrong(message, "agreement")
        if "{question}" not in self.instruction:
            raise wrong("must hold {question}", "instruction")
        return self


class Rl(Spec):
    """Stage 2: online RL on a moving curriculum."""

    data: list[DataSource] = Field(min_length=1)
    """Where its rows come from."""
    curriculum: str = "curricula/adaptive.yaml"
    """A curriculum YAML."""
    judge_prompts: bool = True
    """With sft.judge: judge these prompts too, for curricula that start from how hard they are."""
    pilot_prompts: int = Field(default=0, ge=0)
    """Prompts rolled out at the first step at least, for the curriculum to measure: a few hundred
    show what the judge's tags are worth. The best of them are trained on."""
    system_prompts: list[str | None] = Field(default_factory=list[str | None])
    """System instructions: one is drawn for every group and put in place of the prompt's own; null
    leaves that one. Evaluation goes without."""
    variants: Variants | None = None
    """Let the policy write new prompts; null does not."""
    shaping: Shaping | None = None
    """Terms added to the reward of passed answers, for length, form and language."""
    offload_policy: bool = False
    """Keep the policy in host memory while the engine generates; with engine.enable_sleep_mode the
    two take turns on one device. One process only."""
    trainer: dict[str, Any] = Field(default_factory=dict[str, Any])
    """trl.GRPOConfig's own names."""


class Pairs(Spec):
    """Which pairs DPO learns from."""

    max_pairs: int = Field(default=2000, ge=1)
    """At most so many, newest first."""
    max_length_ratio: float = Field(default=2.0, ge=1.0)
    """Longer completion over shorter, in tokens."""
    max_pairs_per_prompt: int = Field(default=1, ge=1)
    """So that no prompt is learned by heart."""
    last_steps: int | None = Field(default=None, ge=1)
    """Only rollouts of the last n RL steps; null takes them all, newest first."""
    corner_cases: list[CornerCase] = Field(default=list(get_args(CornerCase)), min_length=1)
    """What the rejected completion may have done wrong."""


class Dpo(Spec):
    """Stage 3: a light DPO on corner cases."""

    pairs: Pairs = Pairs()
    trainer: dict[str, Any] = Field(default_factory=dict[str, Any])
    """trl.DPOConfig's own names."""


class Suite(Spec):
    """A named held-out set besides the built-in one."""

    name: str = Field(pattern=NAME, max_length=100)
    """What tables call it, and the file that holds its prompts."""
    data: list[DataSource] = Field(min_length=1)
    """Where its rows come from."""


class Eval(Spec):
    """What is measured, and after which stages."""

    suites: list[Literal["heldout"] | Suite] = Field(default=["heldout"])
    """`heldout` sets prompts of rl.data aside before anything is trained."""
    after: list[EvalPoint] = Field(default=["base", "sft", "rl", "dpo"])
    """base = before anything is trained."""
    heldout_size: int = Field(default=64, ge=1)
    """Prompts per capability in the built-in suite."""
    num_generations: int = Field(default=4, ge=1)
    """Attempts per prompt."""
    temperature: float = Field(default=1.0, ge=0.0)
    """0 = greedy."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens."""
    pass_at: list[int] = Field(default=[4])
    """k of pass@k, each at most num_generations."""

    @model_validator(mode="after")
    def _k_fits(self) -> Eval:
        if too_big := [k for k in self.pass_at if not 1 <= k <= self.num_generations]:
            raise wrong(
                f"{too_big} must lie in 1..num_generations ({self.num_generations})", "pass_at"
            )
        return self


class Recipe(Spec):
    """One file = all three stages."""

    name: str | None = Field(default=None, pattern=NAME, max_length=100)
    """The run's name, also of its folder under runs/; the file's stem where left out."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Decides every draw of the run."""
    model: Model
    engine: EngineSpec = EngineSpec()
    launch: Launch = Launch()
    sandbox: SandboxSpec = SandboxSpec()
    max_bad_rows: Share = 0.01
    """Share of unusable rows past which the run stops."""
    sft: Sft | None = None
    """Left out or null, the stage is not run."""
    rl: Rl | None = None
    """Left out or null, the stage is not run."""
    dpo: Dpo | None = None
    """Left out or null, the stage is not run."""
    answer_judge: AnswerJudge | None = None
    """Needed where data has `verifier: judge`."""
    eval: Eval = Eval()


def training_stages() -> list[str]:
    """Return the names of all training stages, in running order."""
    return [point for point in get_args(EvalPoint) if point != "base"]

"""The YAML schema of recipes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, model_validator

from posttrain.curriculum import AnyCurriculumSpec, CurriculumSpec
from posttrain.recipe.check import children
from posttrain.recipe.document import read_file
from posttrain.recipe.files import FileOrSection, shipped_root
from posttrain.recipe.judges import AnswerJudgeSpec, JudgeSpec
from posttrain.recipe.models import EngineSpec, Model
from posttrain.recipe.problems import KeyPath
from posttrain.recipe.rows import DataSource
from posttrain.recipe.trainer_blocks import DPOBlock, GRPOBlock, SFTBlock, SharedBlock
from posttrain.rewards import VERIFIERS, UserFunction
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
DEFAULT_CURRICULUM = "curricula/adaptive.yaml"
CurriculumSection = Annotated[AnyCurriculumSpec, FileOrSection("curricula", DEFAULT_CURRICULUM)]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Pattern of names that become files and folders."""


class Launch(Spec):
    """Processes of the training stages."""

    num_processes: int = Field(default=1, ge=1)
    """Training processes, one per device."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp keeps the whole model on every device, fsdp (FSDP2) shards each layer over all."""


MIN_MEASURED = 10
"""Fewest measured samples of one capability that can decide about a judge."""


class JudgeCheck(Spec):
    """Samples whose difficulty is measured with the base model, to check the judge against."""

    num_samples: int = Field(default=128, ge=0)
    """Number of samples; 0 skips the check."""
    num_generations: int = Field(default=8, ge=1)
    """Answers per sample."""
    max_tokens: int = Field(default=64, ge=1)
    """Maximum length of an answer, in tokens."""


class Prune(Spec):
    """Which samples SFT leaves out."""

    drop_easiest: Share = 0.5
    """Share of each capability's scored samples to drop, easiest first."""
    require_check: bool = True
    """Drop samples only if the judge passes its check on the pilot."""


class TrainingSection(Spec):
    """A stage that trains the policy with one of TRL's trainers."""

    trainer: SharedBlock
    """Keys of the config class of that trainer."""


class Sft(TrainingSection):
    """Stage 1: judge, prune, supervised fine-tuning."""

    data: list[DataSource] = Field(min_length=1)
    """Sources of its rows."""
    judge: Annotated[JudgeSpec | None, FileOrSection("judges")] = None
    """Judge of how hard a sample is, as a file or its content; without one nothing is pruned."""
    judge_engine: EngineSpec | None = None
    """Engine of the judge; left out, the base model judges on the recipe's engine."""
    pilot: JudgeCheck = JudgeCheck()
    prune: Prune = Prune()
    trainer: SFTBlock = SFTBlock()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Keys of trl.SFTConfig."""


class Variants(Spec):
    """New prompts that the policy writes: harder variants of prompts that it sometimes passes.

    The reference answer of a variant is the majority answer of its rollouts, and may be wrong.
    """

    per_step: int = Field(default=4, ge=1)
    """Variants that the policy is asked for per step."""
    max_share: Share = 0.1
    """Largest share of variants in the pool of prompts."""
    low: Share = 0.25
    """Lowest pass rate of a prompt to vary."""
    high: Share = 0.75
    """Highest pass rate of a prompt to vary."""
    num_answers: int = Field(default=16, ge=2)
    """Rollouts that vote on a variant's answer."""
    agreement: Share = 0.5
    """Share of these rollouts that must agree."""
    high_agreement: Share = 0.9
    """Share above which a variant counts as solved and is left out."""
    max_tokens: int = Field(default=128, ge=1)
    """Maximum length of a variant's question, in tokens."""
    instruction: str = (
        "Write one new problem of the same kind as the one below, a little harder. Write the "
        "problem only, in the same form, without its answer.\n\n{question}"
    )
    """Request to the policy; {question} stands for the prompt to vary."""

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


def _default_curriculum() -> CurriculumSpec:
    document, _ = read_file(shipped_root() / DEFAULT_CURRICULUM, DEFAULT_CURRICULUM)
    return TypeAdapter[CurriculumSpec](AnyCurriculumSpec).validate_python(document.data)


class Rl(TrainingSection):
    """Stage 2: online RL on a moving curriculum."""

    data: list[DataSource] = Field(min_length=1)
    """Sources of its rows."""
    curriculum: CurriculumSection = Field(default_factory=_default_curriculum)
    """Choice of the next prompts: a curriculum file, or its content."""
    judge_prompts: bool = True
    """Whether sft.judge tags these prompts, too, for curricula that start from difficulty tags."""
    pilot_prompts: int = Field(default=0, ge=0)
    """Least number of prompts rolled out at the first step. A few hundred show the curriculum how
    well the judge's tags predict pass rates; the most useful of them are trained on."""
    system_prompts: list[str | None] = Field(default_factory=list[str | None])
    """System prompts, one drawn for every group in place of the prompt's own; null keeps that one.
    Evaluation does not use them."""
    variants: Variants | None = None
    """Let the policy write new prompts; null adds none."""
    shaping: Shaping | None = None
    """Terms added to the reward of passed answers, for length, format and language."""
    offload_policy: bool = False
    """Keep the policy in host memory while the engine generates. With engine.enable_sleep_mode the
    two take turns on one device. Needs launch.num_processes: 1."""
    trainer: GRPOBlock = GRPOBlock()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Keys of trl.GRPOConfig."""


class Pairs(Spec):
    """Which pairs DPO learns from."""

    max_pairs: int = Field(default=2000, ge=1)
    """Maximum number of pairs; the newest are kept."""
    max_length_ratio: float = Field(default=2.0, ge=1.0)
    """Largest ratio of the longer completion to the shorter, in tokens."""
    max_pairs_per_prompt: int = Field(default=1, ge=1)
    """Maximum number of pairs of one prompt."""
    last_steps: int | None = Field(default=None, ge=1)
    """Number of RL steps, counted from the last, whose rollouts are used; null uses all."""
    corner_cases: list[CornerCase | UserFunction] = Field(
        default=list(get_args(CornerCase)), min_length=1
    )
    """Faults of rejected completions to take pairs from. `{python: my_rewards.py:too_polite}` is a
    detector of your own, asked before the others."""

    @model_validator(mode="after")
    def _named_apart(self) -> Pairs:
        taken: set[str] = set(get_args(CornerCase))
        for number, case in enumerate(self.corner_cases):
            if isinstance(case, UserFunction):
                if case.bare_name in taken:
                    message = f"a second corner case called {case.bare_name}: rename the function"
                    raise wrong(message, "corner_cases", number)
                taken.add(case.bare_name)
        return self


class Dpo(TrainingSection):
    """Stage 3: a light DPO on corner cases."""

    pairs: Pairs = Pairs()
    trainer: DPOBlock = DPOBlock()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Keys of trl.DPOConfig."""


class Suite(Spec):
    """A held-out set of your own."""

    name: str = Field(pattern=NAME, max_length=100)
    """Name of the suite in tables and files."""
    data: list[DataSource] = Field(min_length=1)
    """Sources of its rows."""


def _describe_eval_points(schema: dict[str, Any]) -> None:
    points = ["base", *training_stages()]
    schema.update(items={"enum": points, "type": "string"}, default=points)


class Eval(Spec):
    """Held-out evaluation, and the stages after which it runs."""

    suites: list[Literal["heldout"] | Suite] = Field(default=["heldout"])
    """Held-out sets; `heldout` sets prompts of rl.data aside before any training."""
    after: list[str] = Field(
        default_factory=lambda: ["base", *training_stages()],
        json_schema_extra=_describe_eval_points,
    )
    """Stages whose policy is measured; base is the model before any training."""
    heldout_size: int = Field(default=64, ge=1)
    """Prompts per capability in the suite `heldout`."""
    num_generations: int = Field(default=4, ge=1)
    """Answers per prompt."""
    temperature: float = Field(default=1.0, ge=0.0)
    """Sampling temperature; 0 is greedy."""
    max_tokens: int = Field(default=256, ge=1)
    """Maximum length of an answer, in tokens."""
    pass_at: list[int] = Field(default=[4])
    """Values of k for pass@k, each at most num_generations."""

    @model_validator(mode="after")
    def _k_fits(self) -> Eval:
        if too_big := [k for k in self.pass_at if not 1 <= k <= self.num_generations]:
            raise wrong(
                f"{too_big} must lie in 1..num_generations ({self.num_generations})", "pass_at"
            )
        return self


class Recipe(Spec):
    """One file that describes a whole run."""

    name: str | None = Field(default=None, pattern=NAME, max_length=100)
    """Name of the run and of its folder under runs/; left out, the file's name without suffix."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of every random number in the run."""
    model: Model
    engine: EngineSpec = EngineSpec()
    launch: Launch = Launch()
    sandbox: SandboxSpec = SandboxSpec()
    max_bad_rows: Share = 0.01
    """Share of unusable data rows above which the run stops."""
    sft: Sft | None = None
    """Left out or null, the stage does not run."""
    rl: Rl | None = None
    """Left out or null, the stage does not run."""
    dpo: Dpo | None = None
    """Left out or null, the stage does not run."""
    answer_judge: AnswerJudgeSpec | None = None
    """Model that decides answers of data with `verifier: judge`."""
    eval: Eval = Field(default_factory=Eval)

    @property
    def training(self) -> dict[str, TrainingSection]:
        """Return the training stages' sections that the recipe has, by stage, in running order."""
        sections = {name: getattr(self, name) for name in training_stages()}
        return {name: section for name, section in sections.items() if section is not None}


def training_stages() -> list[str]:
    """Return the names of all training stages, in running order."""
    return [
        name
        for name, info in Recipe.model_fields.items()
        if any(issubclass(section, TrainingSection) for section in children(info.annotation))
    ]


def every_source(recipe: Recipe) -> Iterator[tuple[KeyPath, DataSource]]:
    """Yield the data sources of sft, rl and the suites of eval, with their keys."""
    lists: list[tuple[KeyPath, list[DataSource]]] = []
    if recipe.sft is not None:
        lists.append((("sft", "data"), recipe.sft.data))
    if recipe.rl is not None:
        lists.append((("rl", "data"), recipe.rl.data))
    for number, suite in enumerate(recipe.eval.suites):
        if not isinstance(suite, str):
            lists.append((("eval", "suites", number, "data"), suite.data))
    for path, sources in lists:
        for number, source in enumerate(sources):
            yield (*path, number), source


DETECTORS = ("dpo", "pairs", "corner_cases")
"""Key of the list that may name the user's own detectors."""


def user_functions(recipe: Recipe) -> Iterator[tuple[KeyPath, UserFunction]]:
    """Yield the user's own functions with their keys: verifiers, then detectors."""
    for path, source in every_source(recipe):
        if isinstance(source.verifier, UserFunction):
            yield (*path, "verifier"), source.verifier
    for number, case in enumerate(recipe.dpo.pairs.corner_cases if recipe.dpo else ()):
        if isinstance(case, UserFunction):
            yield (*DETECTORS, number), case


def needs(recipe: Recipe, section: Literal["sandbox", "answer_judge"]) -> bool:
    """Return whether a verifier of the recipe's rows uses this section."""
    names = {name for _, source in every_source(recipe) for name in source.verifiers}
    return any(VERIFIERS[name].uses == section for name in names & set(VERIFIERS))

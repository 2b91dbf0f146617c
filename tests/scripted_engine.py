"""An engine that answers as a script says, and processes that run side by side as threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from posttrain.engines import Completion, SamplingRequest
from posttrain.engines.base import OnDone
from posttrain.records import Prompt, with_system
from posttrain.rl import likelihood, sampling
from posttrain.rl.sampling import Sampling
from tests.conftest import make_prompt


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


def pool(num: int) -> list[Prompt]:
    """`num` prompts each of the capabilities a and b; the reference tells them apart."""
    return [
        make_prompt(f"what is {c}{i}", f"{c}{i}", capability=c) for c in "ab" for i in range(num)
    ]


def sampling_of(
    tokenizer: Any, engine: ScriptedEngine, prompts: Mapping[str, Prompt], **fields: Any
) -> Sampling:
    """Groups of four, eight tokens at most."""
    request = SamplingRequest(num_generations=4, max_tokens=8, seed=1)
    given = {"step": 0, "request": request, **fields}
    return Sampling(engine=engine, tokenizer=tokenizer, prompts=prompts, **given)


def side_by_side(monkeypatch: Any, places: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
    """What `work` returns for each place, all at once, exchanging objects as processes do."""
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

    for module in (sampling, likelihood):
        monkeypatch.setattr(module, "gather_object", gather)

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

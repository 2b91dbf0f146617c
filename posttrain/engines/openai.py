"""An OpenAI-compatible endpoint as an Engine, for judging: it cannot take new weights.

Token ids go out and come back, so the server must understand vLLM's additions to /v1/completions:
prompts as token ids, `return_token_ids` and `prompt_logprobs`.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import openai
import tenacity
import torch
from openai.types import Completion as Reply
from openai.types import CompletionChoice
from transformers import PreTrainedTokenizerBase

from posttrain.engines.base import Completion, OnDone, SamplingRequest
from posttrain.errors import EnvironmentFault
from posttrain.recipe.models import EngineSpec

_MAX_RETRY_AFTER_SECONDS = 120.0

# A reply that is no JSON surfaces as ValueError from the client's decoder.
_PASSING = (
    openai.APIConnectionError,
    openai.RateLimitError,
    openai.InternalServerError,
    ValueError,
)

T = TypeVar("T")


class OpenAIEngine:
    """Generates and scores through /v1/completions, `spec.concurrency` requests at a time.

    Log-probabilities are the server's: at temperature 1, whatever temperature was asked for, unless
    it was started with --logprobs-mode processed_logprobs. Raises EnvironmentFault where the server
    cannot be reached after `max_attempts`, refuses, or lacks vLLM's additions.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        max_attempts: int = 6,
        first_wait_seconds: float = 0.5,
        timeout_seconds: float = 600.0,
    ) -> None:
        assert spec.base_url is not None
        assert spec.model is not None
        self._spec = spec
        self._model = spec.model
        self._max_attempts = max_attempts
        self._first_wait_seconds = first_wait_seconds
        self._runner = asyncio.Runner()
        # tenacity retries, so the client must not. A local server wants no key, the client some
        # text.
        self._client = openai.AsyncOpenAI(
            base_url=spec.base_url,
            api_key=os.environ.get(spec.api_key_env) or "none",
            max_retries=0,
            timeout=timeout_seconds,
        )
        self.policy_version = 0

    def generate(
        self,
        prompts_P: Sequence[list[int]],
        request: SamplingRequest,
        *,
        on_done: OnDone | None = None,
    ) -> list[list[Completion]]:
        """One request per prompt, each with a seed of its own made from the request's."""

        async def one(index: int, prompt: list[int]) -> list[Completion]:
            reply = await self._ask(
                prompt,
                n=request.num_generations,
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed + index * request.num_generations,
                logprobs=0,
                extra_body={"return_token_ids": True},
            )
            if len(reply.choices) != request.num_generations:
                raise self._fault(
                    f"answered {len(reply.choices)} of {request.num_generations} completions"
                )
            choices = sorted(reply.choices, key=lambda choice: choice.index)
            completions = [self._completion(choice) for choice in choices]
            if on_done is not None:
                on_done(index, completions)
            return completions

        return self._runner.run(self._all([one(i, p) for i, p in enumerate(prompts_P)]))

    def score(
        self, prefixes_N: Sequence[list[int]], continuations_N: Sequence[list[int]]
    ) -> list[list[float]]:
        """Log-probabilities from the server's prefill; it generates one token, which is thrown
        away.
        """

        async def one(prefix: list[int], continuation: list[int]) -> list[float]:
            ids = prefix + continuation
            reply = await self._ask(
                ids, max_tokens=1, temperature=0.0, extra_body={"prompt_logprobs": 0}
            )
            return self._prompt_logprobs(reply, ids)[len(prefix) :]

        pairs = zip(prefixes_N, continuations_N, strict=True)
        return self._runner.run(self._all([one(p, c) for p, c in pairs]))

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise EnvironmentFault where the served model reads token ids in another way."""
        ids = tokenizer.encode(_PROBE_TEXT, add_special_tokens=False)
        reply = self._runner.run(
            self._ask(ids, max_tokens=1, temperature=0.0, extra_body={"prompt_logprobs": 0})
        )
        self._prompt_logprobs(reply, ids)
        rows = (reply.choices[0].model_extra or {})["prompt_logprobs"]
        # Nothing precedes the first token, so the server says nothing of it.
        pairs = zip(rows[1:], ids[1:], strict=True)
        read = "".join(row[str(token)].get("decoded_token") or "" for row, token in pairs)
        if read != tokenizer.decode(ids[1:]):
            raise self._fault(
                f"has another tokenizer: it reads {tokenizer.decode(ids[1:])!r} as {read[:80]!r}",
                "the judge is sent token ids of the recipe's model: serve one of the same family, "
                "or leave sft.judge_engine out",
            )

    def sync_weights(
        self, tensors: Iterable[tuple[str, torch.Tensor]], policy_version: int
    ) -> None:
        """Always raises: an endpoint keeps the weights it was started with."""
        raise EnvironmentFault(
            f"{self._spec.base_url} serves judging only: it cannot take new weights",
            hint="use engine.kind vllm or transformers for training and evaluation",
        )

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._client.close())
        self._runner.close()

    async def _all(self, work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """Results in order; the first failure cancels the rest."""
        limit = asyncio.Semaphore(self._spec.concurrency)

        async def bounded(one: Coroutine[Any, Any, T]) -> T:
            async with limit:
                return await one

        tasks: list[asyncio.Task[T]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(bounded(one)) for one in work]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            for one in work:
                one.close()
        return [task.result() for task in tasks]

    async def _ask(self, prompt: list[int], **parameters: Any) -> Reply:
        """One completion request, tried again while the trouble may pass."""

        async def attempt() -> Reply:
            reply = await self._client.completions.create(
                model=self._model, prompt=prompt, **parameters
            )
            # The client hands over text as it is where the server did not say that it is JSON.
            if not isinstance(reply, Reply) or not reply.choices:
                raise ValueError(f"the reply is no completion: {str(reply)[:200]!r}")
            return reply

        return await self._with_retries(attempt)

    async def _with_retries(self, attempt: Callable[[], Awaitable[Reply]]) -> Reply:
        patiently = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_PASSING),
            stop=tenacity.stop_after_attempt(self._max_attempts),
            wait=self._wait_seconds,
            reraise=True,
        )
        try:
            return await patiently(attempt)
        except openai.APIStatusError as refusal:
            said = f"answered {refusal.status_code}: {_short(refusal.message)}"
            raise self._fault(said, _hint(refusal.status_code, self._spec)) from refusal
        except openai.APIConnectionError as failure:
            said = f"cannot be reached: {_short(str(failure.__cause__ or failure))}"
            raise self._fault(said, "start the server, or mend base_url") from failure
        except ValueError as malformed:
            raise self._fault(f"sent a broken reply: {_short(str(malformed))}") from malformed

    def _wait_seconds(self, state: tenacity.RetryCallState) -> float:
        """What the server asked for, else a random time that doubles."""
        failure = state.outcome.exception() if state.outcome else None
        if isinstance(failure, openai.APIStatusError):
            asked = retry_after_seconds(failure.response.headers.get("retry-after"), time.time())
            if asked is not None:
                return min(asked, _MAX_RETRY_AFTER_SECONDS)
        backoff = tenacity.wait_random_exponential(multiplier=self._first_wait_seconds, max=30.0)
        return backoff(state)

    def _completion(self, choice: CompletionChoice) -> Completion:
        extra = choice.model_extra or {}
        token_ids = extra.get("token_ids")
        logprobs = choice.logprobs.token_logprobs if choice.logprobs else None
        if token_ids is None or logprobs is None or len(token_ids) != len(logprobs):
            raise self._fault("gives no token ids with log-probabilities", _NEEDS_VLLM)
        if choice.finish_reason not in ("stop", "length"):
            raise self._fault(f"ended a completion for the reason {choice.finish_reason}")
        return Completion(
            token_ids=list(token_ids),
            logprobs=[float(value) for value in logprobs],
            finish_reason=choice.finish_reason,
        )

    def _prompt_logprobs(self, reply: Reply, ids: Sequence[int]) -> list[float]:
        """(T,) per prompt token; NaN for the first, which nothing precedes."""
        rows = (reply.choices[0].model_extra or {}).get("prompt_logprobs")
        if not isinstance(rows, list) or len(rows) != len(ids):
            raise self._fault("gives no log-probabilities of the prompt", _NEEDS_VLLM)
        try:
            return [
                float("nan") if row is None else float(row[str(token)]["logprob"])
                for row, token in zip(rows, ids, strict=True)
            ]
        except (KeyError, TypeError) as missing:
            said = "gives log-probabilities of other tokens than were sent"
            raise self._fault(said, _NEEDS_VLLM) from missing

    def _fault(self, said: str, hint: str = "") -> EnvironmentFault:
        message = f"judge endpoint {self._spec.base_url} (model {self._model}) {said}"
        return EnvironmentFault(message, hint=hint)


_PROBE_TEXT = "How hard is it to add 12 and 30? The answer is 42."
_NEEDS_VLLM = "serve the judge with vLLM: `vllm serve MODEL`"


def retry_after_seconds(header: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or a date; None without one."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        parsed = email.utils.parsedate_tz(header)
        return None if parsed is None else max(0.0, email.utils.mktime_tz(parsed) - now)


def _hint(status: int, spec: EngineSpec) -> str:
    if status in (401, 403):
        return f"put a valid key into the environment variable {spec.api_key_env}"
    if status == 404:
        return "check engine model and base_url (it usually ends in /v1)"
    if status == 400:
        return "check that the model fits max_model_len and that the server is vLLM"
    return "the server is overloaded or broken: look at its log, or lower concurrency"


def _short(text: str) -> str:
    return " ".join(text.split())[:300]

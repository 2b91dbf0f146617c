"""An OpenAI-compatible endpoint as an Engine, for judging only: its weights cannot be changed.

Requests and replies hold token ids, so the server must support vLLM's extensions of
/v1/completions: prompts as token ids, `return_token_ids` and `prompt_logprobs`.
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

from posttrain.engines.engine import Completion, OnDone, SamplingRequest
from posttrain.errors import SetupError
from posttrain.recipe.models import EngineSpec

_MAX_RETRY_AFTER_SECONDS = 120.0

# The client's decoder raises ValueError for a reply that is not JSON.
_RETRIED = (
    openai.APIConnectionError,
    openai.RateLimitError,
    openai.InternalServerError,
    ValueError,
)

T = TypeVar("T")


class OpenAIEngine:
    """Generates and scores through /v1/completions, `spec.concurrency` requests at a time.

    Log-probabilities are the server's: at temperature 1 whatever the request's temperature, unless
    it was started with --logprobs-mode processed_logprobs. Raises SetupError if the server cannot
    be reached in `max_attempts`, refuses a request, or lacks vLLM's extensions.
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
        # tenacity retries, so the client must not. The client needs a key even if the server does
        # not.
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
        """Send one request per prompt, each with its own seed derived from the request's."""

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
                raise self._error(
                    f"returned {len(reply.choices)} of {request.num_generations} completions"
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
        """Return log-probabilities from the server's prefill, ignoring the token it samples."""

        async def one(prefix: list[int], continuation: list[int]) -> list[float]:
            ids = prefix + continuation
            reply = await self._ask(
                ids, max_tokens=1, temperature=0.0, extra_body={"prompt_logprobs": 0}
            )
            return self._prompt_logprobs(reply, ids)[len(prefix) :]

        pairs = zip(prefixes_N, continuations_N, strict=True)
        return self._runner.run(self._all([one(p, c) for p, c in pairs]))

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise SetupError if the server's tokenizer differs from `tokenizer`."""
        ids = tokenizer.encode(_TOKENIZER_TEXT, add_special_tokens=False)
        reply = self._runner.run(
            self._ask(ids, max_tokens=1, temperature=0.0, extra_body={"prompt_logprobs": 0})
        )
        self._prompt_logprobs(reply, ids)
        rows = (reply.choices[0].model_extra or {})["prompt_logprobs"]
        # The server returns nothing for the first token, which has no context.
        pairs = zip(rows[1:], ids[1:], strict=True)
        read = "".join(row[str(token)].get("decoded_token") or "" for row, token in pairs)
        if read != tokenizer.decode(ids[1:]):
            raise self._error(
                f"has another tokenizer: it reads {tokenizer.decode(ids[1:])!r} as {read[:80]!r}",
                "the judge gets token ids of the recipe's model: serve a model with the same "
                "tokenizer, or remove sft.judge_engine",
            )

    def sync_weights(
        self, tensors: Iterable[tuple[str, torch.Tensor]], policy_version: int
    ) -> None:
        """Raise SetupError: an endpoint keeps the weights it was started with."""
        raise SetupError(
            f"{self._spec.base_url} can be used for judging only: its weights cannot be changed",
            hint="use engine.kind vllm or transformers for training and evaluation",
        )

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._client.close())
        self._runner.close()

    async def _all(self, work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """Return the results in order; the first failure cancels the rest."""
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
        """Request one completion, with retries for errors that may pass."""

        async def attempt() -> Reply:
            reply = await self._client.completions.create(
                model=self._model, prompt=prompt, **parameters
            )
            # The client returns plain text if the server did not declare the reply as JSON.
            if not isinstance(reply, Reply) or not reply.choices:
                raise ValueError(f"not a completion: {str(reply)[:200]!r}")
            return reply

        return await self._with_retries(attempt)

    async def _with_retries(self, attempt: Callable[[], Awaitable[Reply]]) -> Reply:
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_RETRIED),
            stop=tenacity.stop_after_attempt(self._max_attempts),
            wait=self._wait_seconds,
            reraise=True,
        )
        try:
            return await retrying(attempt)
        except openai.APIStatusError as refusal:
            said = f"returned status {refusal.status_code}: {_short(refusal.message)}"
            raise self._error(said, _hint(refusal.status_code, self._spec)) from refusal
        except openai.APIConnectionError as failure:
            said = f"cannot be reached: {_short(str(failure.__cause__ or failure))}"
            raise self._error(said, "start the server, or correct base_url") from failure
        except ValueError as malformed:
            raise self._error(f"sent a broken reply: {_short(str(malformed))}") from malformed

    def _wait_seconds(self, state: tenacity.RetryCallState) -> float:
        """Return the server's Retry-After, else a random exponential backoff."""
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
            raise self._error("returned no token ids with log-probabilities", _NEEDS_VLLM)
        if choice.finish_reason not in ("stop", "length"):
            raise self._error(f"returned the finish_reason {choice.finish_reason!r}")
        return Completion(
            token_ids=list(token_ids),
            logprobs=[float(value) for value in logprobs],
            finish_reason=choice.finish_reason,
        )

    def _prompt_logprobs(self, reply: Reply, ids: Sequence[int]) -> list[float]:
        """Return log-probabilities (T,) of the prompt tokens; NaN for the first."""
        rows = (reply.choices[0].model_extra or {}).get("prompt_logprobs")
        if not isinstance(rows, list) or len(rows) != len(ids):
            raise self._error("returned no log-probabilities of the prompt", _NEEDS_VLLM)
        try:
            return [
                float("nan") if row is None else float(row[str(token)]["logprob"])
                for row, token in zip(rows, ids, strict=True)
            ]
        except (KeyError, TypeError) as missing:
            said = "returned log-probabilities of other tokens than it was sent"
            raise self._error(said, _NEEDS_VLLM) from missing

    def _error(self, said: str, hint: str = "") -> SetupError:
        message = f"judge endpoint {self._spec.base_url} (model {self._model}) {said}"
        return SetupError(message, hint=hint)


_TOKENIZER_TEXT = "How hard is it to add 12 and 30? The answer is 42."
_NEEDS_VLLM = "serve the judge with vLLM: `vllm serve MODEL`"


def retry_after_seconds(header: str | None, now: float) -> float | None:
    """Parse a Retry-After header, a number or a date, into seconds; None without one."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        parsed = email.utils.parsedate_tz(header)
        return None if parsed is None else max(0.0, email.utils.mktime_tz(parsed) - now)


def _hint(status: int, spec: EngineSpec) -> str:
    if status in (401, 403):
        return f"set the environment variable {spec.api_key_env} to a valid key"
    if status == 404:
        return "check the engine's model and base_url (it usually ends in /v1)"
    if status == 400:
        return "check that max_model_len is not above the server's, and that the server is vLLM"
    return "the server is overloaded or broken: look at its log, or lower engine.concurrency"


def _short(text: str) -> str:
    return " ".join(text.split())[:300]

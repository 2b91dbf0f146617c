"""transformers' own `generate`, for machines without vLLM: slower, but equivalent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedModel

from posttrain.engines.engine import Completion, OnDone, SamplingRequest
from posttrain.models.scoring import sequence_logprobs
from posttrain.recipe.models import EngineSpec


class TransformersEngine:
    """An Engine on `PreTrainedModel.generate`, with its own copy of the weights."""

    def __init__(self, model: PreTrainedModel, spec: EngineSpec) -> None:
        self._model = model.eval()
        self._max_num_seqs = spec.max_num_seqs
        self._max_model_len = spec.max_model_len
        self.policy_version = 0
        end = model.generation_config.eos_token_id
        self._end_ids: list[int] = (
            [] if end is None else [end] if isinstance(end, int) else list(end)
        )
        if not self._end_ids:
            raise ValueError(
                "the model's generation_config has no eos_token_id, so no completion would end"
            )

    @torch.no_grad()
    def generate(
        self,
        prompts_P: Sequence[list[int]],
        request: SamplingRequest,
        *,
        on_done: OnDone | None = None,
    ) -> list[list[Completion]]:
        """Sample in left-padded batches of at most `max_num_seqs` sequences."""
        prompts_per_batch = max(1, self._max_num_seqs // request.num_generations)
        completions_P_G: list[list[Completion]] = []
        with torch.random.fork_rng():
            torch.manual_seed(request.seed)
            for start in range(0, len(prompts_P), prompts_per_batch):
                batch_P_G = self._generate_batch(
                    prompts_P[start : start + prompts_per_batch], request
                )
                if on_done is not None:
                    for index, completions_G in enumerate(batch_P_G, start):
                        on_done(index, completions_G)
                completions_P_G += batch_P_G
        return completions_P_G

    def _generate_batch(
        self, prompts_P: Sequence[list[int]], request: SamplingRequest
    ) -> list[list[Completion]]:
        width = max(map(len, prompts_P))
        # Per row: a long prompt in the batch must not shorten the other rows' completions.
        limit_P = [min(request.max_tokens, self._max_model_len - len(p)) for p in prompts_P]
        pad = self._end_ids[0]
        ids_PT = torch.tensor(
            [[pad] * (width - len(p)) + p for p in prompts_P], device=self._model.device
        )
        mask_PT = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts_P], device=self._model.device
        )
        sampling = {"do_sample": False}
        if request.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": request.temperature,
                "top_p": request.top_p,
                "top_k": 0,
            }
        output = self._model.generate(  # pyright: ignore[reportCallIssue] from a mixin it is not typed with
            ids_PT,
            attention_mask=mask_PT,
            num_return_sequences=request.num_generations,
            max_new_tokens=max(limit_P),
            eos_token_id=self._end_ids,
            pad_token_id=pad,
            output_logits=True,
            return_dict_in_generate=True,
            **sampling,
        )
        temperature = request.temperature or 1.0
        tokens_NT = output.sequences[:, width:]
        logprobs_NT = torch.stack(
            [
                (logits_NV.float() / temperature)
                .log_softmax(-1)
                .gather(1, tokens_NT[:, t : t + 1])[:, 0]
                for t, logits_NV in enumerate(output.logits)
            ],
            dim=1,
        )
        size = request.num_generations
        limit_N = [limit for limit in limit_P for _ in range(size)]
        completions = [
            self._cut(ids[:limit], logps[:limit])
            for ids, logps, limit in zip(
                tokens_NT.tolist(), logprobs_NT.tolist(), limit_N, strict=True
            )
        ]
        return [completions[i : i + size] for i in range(0, len(completions), size)]

    def _cut(self, ids: list[int], logprobs: list[float]) -> Completion:
        """Cut a padded row after its end token."""
        ended = [t for t, token in enumerate(ids) if token in self._end_ids]
        length = ended[0] + 1 if ended else len(ids)
        return Completion(
            token_ids=ids[:length],
            logprobs=logprobs[:length],
            finish_reason="stop" if ended else "length",
        )

    @torch.no_grad()
    def score(
        self, prefixes_N: Sequence[list[int]], continuations_N: Sequence[list[int]]
    ) -> list[list[float]]:
        """Return log-probabilities from right-padded forward passes."""
        scores: list[list[float]] = []
        for start in range(0, len(prefixes_N), self._max_num_seqs):
            chunk = slice(start, start + self._max_num_seqs)
            scores += sequence_logprobs(self._model, prefixes_N[chunk], continuations_N[chunk])
        return scores

    def sync_weights(
        self, tensors: Iterable[tuple[str, torch.Tensor]], policy_version: int
    ) -> None:
        """Copy the tensors into the model."""
        own = self._model.state_dict()
        for name, tensor in tensors:
            own[name].copy_(tensor)
        self.policy_version = policy_version

    def close(self) -> None:
        """Free the model."""
        del self._model

"""Difficulty as a grade: the expected score over a rubric's labels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from posttrain.engines import Engine
from posttrain.errors import RecipeError
from posttrain.judge.opinion import Opinion, too_long
from posttrain.models import prompt_ids
from posttrain.recipe.judges import RubricJudge
from posttrain.records import Message, Sample


def ask_rubric(
    samples: Sequence[Sample],
    spec: RubricJudge,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_model_len: int | None,
) -> list[Opinion]:
    """Return the expected label score of each sample, in order.

    With p the probability of each label's token as the first of the reply, and m their sum, the
    score is sum(p * score) / m; there is none if m < min_label_mass. The parts of an opinion: p / m
    by label, and `label_mass`. Raises RecipeError if a label is not one token.
    """
    opinions: dict[int, Opinion] = {}
    prefixes: dict[int, list[int]] = {}
    for i, sample in enumerate(samples):
        prefix = prompt_ids(tokenizer, conversation(sample, spec))
        unfit = too_long(len(prefix) + 1, max_model_len)
        if unfit is not None:
            opinions[i] = unfit
        else:
            prefixes[i] = prefix
    if prefixes:
        label_ids = label_tokens(spec, tokenizer, conversation(samples[0], spec))
        # All labels of one sample side by side: an engine with a prefix cache reads it once.
        asked = [(prefix, [label]) for prefix in prefixes.values() for label in label_ids.values()]
        scored = engine.score([p for p, _ in asked], [c for _, c in asked])
        for row, i in enumerate(prefixes):
            start = row * len(label_ids)
            logprobs = [one for (one,) in scored[start : start + len(label_ids)]]
            opinions[i] = _opinion(spec, dict(zip(label_ids, logprobs, strict=True)))
    return [opinions[i] for i in range(len(samples))]


def conversation(sample: Sample, spec: RubricJudge) -> list[Message]:
    """Return the messages that ask the judge about one sample."""
    values = {"question": _question(sample), "answer": sample.messages[-1]["content"]}
    return [
        {"role": "system", "content": spec.system},
        {"role": "user", "content": fill(spec.template, values)},
    ]


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace each `{name}` by its value, in one pass: placeholders inside values stay as they are.

    >>> fill("Q: {question} A: {answer} {other}", {"question": "what is {answer}?", "answer": "4"})
    'Q: what is {answer}? A: 4 {other}'
    """
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda match: values[match.group(1)], template)


def label_tokens(
    spec: RubricJudge, tokenizer: PreTrainedTokenizerBase, messages: list[Message]
) -> dict[str, int]:
    """Return each label's token after the chat prompt; RecipeError if it is not exactly one."""
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert isinstance(prompt, str)
    prompt_only = tokenizer.encode(prompt, add_special_tokens=False)
    found: dict[str, int] = {}
    wrong: list[str] = []
    for label in spec.labels:
        # Encoded together with the prompt: a label may merge with what stands before it.
        ids = tokenizer.encode(prompt + label, add_special_tokens=False)
        if ids[:-1] == prompt_only:
            found[label] = ids[-1]
        else:
            alone = tokenizer.encode(label, add_special_tokens=False)
            wrong.append(f"{label!r} ({len(alone)} on its own)")
    if wrong:
        raise RecipeError(
            f"judge labels must be one token each after the chat prompt: {', '.join(wrong)}",
            hint="use short labels, such as single digits, and change the template to match",
        )
    if len(set(found.values())) < len(found):
        raise RecipeError(
            f"judge labels {', '.join(map(repr, found))} share a token",
            hint="labels must differ in the model's own tokens",
        )
    return found


def _opinion(spec: RubricJudge, logprobs: Mapping[str, float]) -> Opinion:
    if not all(logprob <= 1e-3 for logprob in logprobs.values()):  # NaN too
        return Opinion(score=None, reason="the engine gave something that is no log-probability")
    probability = {label: math.exp(logprob) for label, logprob in logprobs.items()}
    mass = math.fsum(probability.values())
    if mass <= 0.0 or mass < spec.min_label_mass:
        reason = f"the labels have probability {mass:.3g}, below {spec.min_label_mass:g}"
        return Opinion(score=None, reason=reason, parts={"label_mass": mass})
    share = {label: p / mass for label, p in probability.items()}
    score = math.fsum(share[label] * value for label, value in spec.labels.items())
    likeliest = max(share, key=lambda label: share[label])
    return Opinion(
        score=min(1.0, max(0.0, score)),
        reason=f"label {likeliest} with {share[likeliest]:.2f}, labels together {mass:.2f}",
        parts={**share, "label_mass": mass},
    )


def _question(sample: Sample) -> str:
    """Return the turns before the answer, without system turns; with roles if there are several."""
    turns = [turn for turn in sample.messages[:-1] if turn["role"] != "system"]
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)

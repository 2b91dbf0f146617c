"""Variants: the policy writes harder prompts, answered by the majority of its rollouts.

Off by default. It is for questions without verified data, and there the majority's answer may be
wrong: for a question of plain arithmetic the true answer is computed, so that the rate of wrong
references is measured, not guessed.
"""

from __future__ import annotations

import ast
import dataclasses
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from posttrain.data import question_hashes
from posttrain.recipe.schema import Variants
from posttrain.records import Message, Prompt, RolloutGroup, content_hash
from posttrain.rewards import check_reference, find_verifier
from posttrain.rewards.answers import tidy
from posttrain.rewards.places import final_answer
from posttrain.rl.sampling import Sampling, draw_completions

_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_EXPRESSION = re.compile(r"\d{1,9}(?:\s*[-+*]\s*\d{1,9})+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One question that the policy wrote, and whether it became a prompt."""

    parent_id: str
    capability: str
    question: str
    answer: str
    """Answer of most rollouts; empty if none were drawn."""
    agreement: float
    """Share of rollouts with that answer."""
    truth: str | None
    """The true answer if it is known; it decides nothing."""
    why: str
    """`accepted`, or the reason why not."""
    num_tokens: int
    """Tokens generated for it."""
    prompt_id: str | None = None
    """Id of the prompt that it became."""


def write_variants(
    groups: Sequence[RolloutGroup],
    spec: Variants,
    sampling: Sampling,
    *,
    known: Set[str],
    room: int,
) -> tuple[list[Variant], list[Prompt]]:
    """Let the policy write harder variants of prompts; return all, and those that became prompts.

    Parents are this step's groups with a pass rate within `spec`'s band, none of them written by
    the policy itself. A variant becomes a prompt if it ended, its question is not among `known`
    (hashes), and the share of answers that agree is within `spec`'s bounds: not too few, nor so
    many that it is solved. At most `room` are asked for.
    """
    parents = _parents(groups, spec, sampling)[: min(spec.per_step, room)]
    if not parents:
        return [], []
    asked = [[_instruction(parent, spec)] for parent in parents]
    written = draw_completions(
        asked, sampling, num=1, max_tokens=spec.max_tokens, stream="variants"
    )
    drafts: list[Variant] = []
    prompts: dict[int, Prompt] = {}
    seen = set(known)
    for n, (parent, (one,)) in enumerate(zip(parents, written, strict=True)):
        text = sampling.tokenizer.decode(one.token_ids, skip_special_tokens=True)
        assert isinstance(text, str)
        prompt = _unanswered(parent, text.strip())
        hashes = question_hashes(prompt)
        why = "to be answered"
        if one.finish_reason == "length":
            why = "cut off"
        elif not text.strip():
            why = "empty"
        elif hashes & seen:
            why = "known"
        else:
            prompts[n] = prompt
            seen |= hashes
        drafts.append(
            Variant(
                parent_id=parent.prompt_id,
                capability=parent.capability,
                question=text.strip(),
                answer="",
                agreement=0.0,
                truth=arithmetic_truth(text),
                why=why,
                num_tokens=len(one.token_ids),
            )
        )
    accepted: list[Prompt] = []
    answers = draw_completions(
        [prompt.messages for prompt in prompts.values()],
        sampling,
        num=spec.num_answers,
        max_tokens=sampling.request.max_tokens,
        stream="answers to variants",
    )
    for (n, prompt), completions in zip(prompts.items(), answers, strict=True):
        texts = [
            sampling.tokenizer.decode(c.token_ids, skip_special_tokens=True)
            for c in completions
            if c.finish_reason == "stop"
        ]
        answer, votes = _majority([str(text) for text in texts])
        agreement = votes / spec.num_answers
        finished = _answered(prompt, answer, agreement, sampling.step)
        why = _verdict(finished, agreement, spec)
        if why == "accepted":
            accepted.append(finished)
        drafts[n] = dataclasses.replace(
            drafts[n],
            answer=answer,
            agreement=agreement,
            why=why,
            num_tokens=drafts[n].num_tokens + sum(len(c.token_ids) for c in completions),
            prompt_id=finished.prompt_id if why == "accepted" else None,
        )
    return drafts, accepted


def arithmetic_truth(question: str) -> str | None:
    """Return the value of the one arithmetic expression in a question; None if there is not one.

    >>> arithmetic_truth("What is 12 + 3 * 2?"), arithmetic_truth("How many r are in 3 words?")
    ('18', None)
    """
    found = _EXPRESSION.findall(question)
    if len(found) != 1 or len(re.findall(r"\d+", question)) != len(re.findall(r"\d+", found[0])):
        return None
    # Leading zeros are no Python numbers.
    tree = ast.parse(re.sub(r"\b0+(?=\d)", "", found[0]), mode="eval").body
    return str(_value(tree))


def false_positives(variants: Sequence[Mapping[str, object]]) -> tuple[int, int]:
    """Return how many accepted variants have a known truth, and how many of these are wrong."""
    known = [v for v in variants if v["why"] == "accepted" and v["truth"] is not None]
    return len(known), sum(v["truth"] != v["answer"] for v in known)


def _parents(groups: Sequence[RolloutGroup], spec: Variants, sampling: Sampling) -> list[Prompt]:
    """Return the prompts in the band in random order, so that no capability comes first."""
    found = [
        sampling.prompts[g.prompt_id]
        for g in groups
        if len(g.rollouts) == sampling.request.num_generations
        and g.num_decided
        and spec.low <= g.num_passed / g.num_decided <= spec.high
        and sampling.prompts[g.prompt_id].origin == "dataset"
        and sampling.prompts[g.prompt_id].messages[-1]["role"] == "user"
    ]
    return sorted(found, key=lambda p: content_hash("variant", sampling.step, p.prompt_id))


def _instruction(parent: Prompt, spec: Variants) -> Message:
    question = parent.messages[-1]["content"]
    return Message(role="user", content=spec.instruction.replace("{question}", question))


def _unanswered(parent: Prompt, question: str) -> Prompt:
    # The answer that most rollouts agree on becomes the reference, which few verifiers can use.
    own = find_verifier(parent.verifier)
    takes_answer = own.reference_from == "answer" and not own.own_data_only
    return Prompt.make(
        messages=[*parent.messages[:-1], Message(role="user", content=question)],
        reference="",
        verifier=parent.verifier if takes_answer else "exact",
        capability=parent.capability,
        level=parent.level,
        origin=parent.prompt_id,
    )


def _answered(prompt: Prompt, answer: str, agreement: float, step: int) -> Prompt:
    return Prompt.make(
        messages=prompt.messages,
        reference=answer,
        verifier=prompt.verifier,
        capability=prompt.capability,
        level=prompt.level,
        origin=prompt.origin,
        meta={"agreement": agreement, "written_at_step": step},
    )


def _verdict(prompt: Prompt, agreement: float, spec: Variants) -> str:
    if agreement < spec.agreement:
        return "answers differ"
    if agreement > spec.high_agreement:
        return "solved"
    why = check_reference(prompt)
    return "accepted" if why is None else f"unfit: {why}"


def _majority(texts: Sequence[str]) -> tuple[str, int]:
    """Return the commonest final answer and its votes; the first given of equals."""
    votes = Counter(answer for text in texts if (answer := tidy(final_answer(text))))
    return votes.most_common(1)[0] if votes else ("", 0)


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    assert isinstance(node, ast.BinOp), "the pattern lets nothing else through"
    return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))

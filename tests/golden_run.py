"""What the stages of the tiny run leave, as facts that hold on any machine: `--store` keeps them.

A stage's version is in its key. Whoever changes what a stage writes must raise it, or finished
stages of older runs would be taken for new ones; tests/test_golden_run.py compares the facts.

Compared exactly: names of files, columns, metrics and summary keys; the rows of the data stage;
which prompts are asked, in which order; counts of rows; shapes of adapters. Compared with a
tolerance: the judge's scores, losses, learning rates, gradient norms, entropies, mean
log-probabilities and lengths of answers, the size of the adapter. Not compared: sampled answers and
what follows from them (pass rates, refills, RL's gradients, which pairs), because rounding differs
between processors and now and then changes a sampled token; times; paths.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.torch import load_file
from tiny_run import RunServer, make_tiny_run

from posttrain.artefacts import (
    DROPPED,
    KEPT,
    METRICS,
    PAIRS,
    PILOT,
    POLICY,
    PROMPT_VERDICTS,
    UNSCORED,
    VERDICTS,
    outcome_tables,
    rollout_tables,
)
from posttrain.pipeline import STAGES
from posttrain.records import RolloutGroup, content_hash
from posttrain.run_directory import SUMMARY, FinishedStage, RunDirectory
from posttrain.tables import read_groups, read_metrics, read_table

STORED = Path(__file__).with_name("golden_run.json")
COMMAND = "python tests/golden_run.py --store"
FIXED_COUNTS = {
    *("parameters", "samples", "held_out", "quarantined", "judged", "scored", "unscored", "pilot"),
    *("scored_prompts", "kept", "dropped", "steps", "too_long"),
}
"""Counts that no sampled answer changes."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is compared of one stage."""

    exact: dict[str, Any] = field(default_factory=dict[str, Any])
    near: dict[str, tuple[list[float], float]] = field(
        default_factory=dict[str, tuple[list[float], float]]
    )
    """Name -> numbers, and the largest difference that is allowed."""

    def __or__(self, other: Facts) -> Facts:
        return Facts(exact=self.exact | other.exact, near=self.near | other.near)


def facts_of(stage: FinishedStage) -> Facts:
    """Return the facts of a finished stage."""
    kind = "eval" if stage.name.startswith("eval-") else stage.name
    return _form(stage) | _CONTENT[kind](stage.path)


def _form(stage: FinishedStage) -> Facts:
    """Names of files, columns, metrics and keys."""
    names = {re.sub(r"step-\d+", "step", name): name for name in stage.manifest.files}
    columns = {
        name: [f"{f.name}: {f.type}" for f in pq.read_schema(stage.path / file)]
        for name, file in names.items()
        if name.endswith(".parquet")
    }
    logged = read_metrics(stage.path / METRICS)
    return Facts(
        exact={
            "files": sorted(names),
            "columns": columns,
            "metrics": sorted({key for row in logged for key in row}),
            "summary": _keys(stage.summary()),
            "counts": {
                name: value if name in FIXED_COUNTS else None
                for name, value in stage.manifest.counts.items()
            },
        }
    )


def _keys(value: Any) -> Any:
    """Return the keys of nested objects; those of corner_cases were sampled."""
    if not isinstance(value, Mapping):
        return None
    return {key: key == "corner_cases" or _keys(inner) for key, inner in value.items()}


def _model(folder: Path) -> Facts:
    found = json.loads((folder / "model.json").read_text())
    return Facts(exact={"keys": sorted(found), "num_parameters": found["num_parameters"]})


def _data(folder: Path) -> Facts:
    tables = sorted(folder.rglob("*.parquet"))
    return Facts(
        exact={t.relative_to(folder).as_posix(): content_hash(read_table(t)) for t in tables}
    )


def _judge(folder: Path) -> Facts:
    verdicts, tags = VERDICTS.read(folder), PROMPT_VERDICTS.read(folder)
    groups = read_groups(folder / PILOT)
    return Facts(
        exact={
            "judged": [v.sample_id for v in verdicts],
            "tagged": content_hash([v.sample_id for v in tags]),
            "reasons": sorted({re.sub(r"[\d.]+", "#", v.reason) for v in verdicts}),
            "attempted": [group.prompt_id for group in groups],
        },
        near={
            "scores": ([v.score if v.score is not None else -1.0 for v in verdicts], 0.0005),
            "tags": ([v.score if v.score is not None else -1.0 for v in tags], 0.0005),
        }
        | _sampled(groups),
    )


def _prune(folder: Path) -> Facts:
    tables = {"kept": KEPT.read(folder), "dropped": DROPPED.read(folder)}
    scores = {name: [d.score or 0.0 for d in rows] for name, rows in tables.items()}
    return Facts(
        exact={
            **{name: Counter(d.capability for d in rows) for name, rows in tables.items()},
            "unscored": len(UNSCORED.read(folder)),
            "reasons": sorted({re.sub(r"[\d.]+", "#", d.reason) for d in tables["dropped"]}),
        },
        near={f"mean score, {name}": ([_mean(found)], 0.0005) for name, found in scores.items()},
    )


def _sft(folder: Path) -> Facts:
    summary = json.loads((folder / SUMMARY).read_text())
    return (
        _trained(folder, "sft")
        | _logged(folder, "sft", loss=0.05, grad_norm=1.0)
        | Facts(exact={"tokens": summary["tokens"]})
    )


def _rl(folder: Path) -> Facts:
    tables = [read_groups(path) for path in rollout_tables(folder)]
    flow = read_table(folder / "curriculum.jsonl")
    parity = read_table(folder / "parity.jsonl")
    return (
        _trained(folder, "rl")
        | _logged(folder, "rl", entropy=0.3)
        | Facts(
            exact={
                "flow": sorted({key for row in flow for key in row}),
                "parity": sorted({key for row in parity for key in row}),
            },
            near={
                "groups": ([float(len(groups)) for groups in tables], 4.0),
                "parity": ([row["parity/mean"] for row in parity], 1e-3),
            }
            | _sampled(tables[0]),
        )
    )


def _pairs(folder: Path) -> Facts:
    pairs = PAIRS.read(folder)
    return Facts(
        exact={
            "turns": sorted({message["role"] for pair in pairs for message in pair.prompt}),
            "origin": sorted({key for pair in pairs for key in pair.origin}),
            "same": sum(pair.chosen == pair.rejected for pair in pairs),
        },
        near={"pairs": ([float(len(pairs))], 2.0)},
    )


def _dpo(folder: Path) -> Facts:
    margins = [row["dpo/rewards/margins"] for row in _rows(folder, "dpo", "rewards/margins")]
    return (
        _trained(folder, "dpo")
        | _logged(folder, "dpo", loss=0.1)
        | Facts(exact={"prefers the chosen": margins[-1] > 0})
    )


def _evaluation(folder: Path) -> Facts:
    (table,) = outcome_tables(folder)
    groups = read_groups(table)
    return Facts(
        exact={
            "asked": [group.prompt_id for group in groups],
            "answers": [len(group.rollouts) for group in groups],
        },
        near=_sampled(groups),
    )


def _report(folder: Path) -> Facts:
    page = (folder / "report.html").read_text()
    card = (folder / POLICY / "README.md").read_text()
    return Facts(
        exact={
            "sections": re.findall(r'<section id="([^"]+)"', page),
            "headings": re.findall(r"^#+ (.*)$", card, flags=re.M),
        }
    )


_CONTENT: Mapping[str, Callable[[Path], Facts]] = {
    "model": _model,
    "data": _data,
    "judge": _judge,
    "prune": _prune,
    "sft": _sft,
    "rl": _rl,
    "pairs": _pairs,
    "dpo": _dpo,
    "eval": _evaluation,
    "report": _report,
}


def _trained(folder: Path, stage: str) -> Facts:
    """Learning rates, and the adapter's shapes and size."""
    weights = load_file(folder / POLICY / "adapter_model.safetensors")
    shapes = [f"{name} {tuple(weight.shape)}" for name, weight in sorted(weights.items())]
    size = math.sqrt(sum(float((weight.float() ** 2).sum()) for weight in weights.values()))
    rates = [row[f"{stage}/learning_rate"] for row in _rows(folder, stage, "learning_rate")]
    return Facts(
        exact={"adapter": content_hash(shapes)},
        near={"learning rates": (rates, 1e-9), "adapter's norm": ([size], 0.02 * size)},
    )


def _logged(folder: Path, stage: str, **tolerances: float) -> Facts:
    """Metrics of every step, each with its tolerance."""
    return Facts(
        near={
            name: ([row[f"{stage}/{name}"] for row in _rows(folder, stage, name)], tolerance)
            for name, tolerance in tolerances.items()
        }
    )


def _rows(folder: Path, stage: str, name: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder / METRICS) if f"{stage}/{name}" in row]


def _sampled(groups: list[RolloutGroup]) -> dict[str, tuple[list[float], float]]:
    """Means over sampled answers, which a few other tokens hardly move."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    logprobs = [value for rollout in rollouts for value in rollout.logprobs or ()]
    return {
        "mean log-probability": ([_mean(logprobs)], 0.3),
        "mean length": ([_mean([len(r.completion_ids) for r in rollouts])], 0.5),
    }


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values) if values else 0.0


def differences(stored: Mapping[str, Any], found: Facts) -> list[str]:
    """Return what differs between stored and found facts of a stage, in words."""
    exact = json.loads(json.dumps(found.exact))
    said = [
        f"{name}: {_short(stored['exact'].get(name))} -> {_short(exact.get(name))}"
        for name in {**stored["exact"], **exact}
        if stored["exact"].get(name) != exact.get(name)
    ]
    near = {name: values for name, (values, _) in found.near.items()}
    for name in {**stored["near"], **near}:
        before, now = stored["near"].get(name, []), near.get(name, [])
        tolerance = found.near[name][1] if name in found.near else 0.0
        off = [abs(a - b) for a, b in zip(before, now, strict=False)]
        if len(before) != len(now) or max(off, default=0.0) > tolerance:
            said.append(f"{name}: {_short(before)} -> {_short(now)}, tolerance {tolerance:g}")
    return said


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def complaint(stage: str, stored: Mapping[str, Any] | None, found: Facts) -> str:
    """Return what is wrong with a stage's facts and what to do; empty where nothing is."""
    if stored is None or stored["versions"] != versions_of(stage):
        return f"stage {stage} or one that it reads has a new version: run `{COMMAND}`"
    if said := differences(stored, found):
        lines = "\n".join(f"  {line}" for line in said)
        return (
            f"stage {stage}'s artefacts changed: raise its version and run `{COMMAND}` to store "
            f"the new ones\n{lines}"
        )
    return ""


def complaints(run_dir: Path) -> dict[str, str]:
    """Return the complaint of every stage, empty where all is as stored.

    A stage that reads a changed one is left out: its own artefacts may change with it.
    """
    stored, found = read_stored(), RunDirectory(path=run_dir).finished_stages()
    said: dict[str, str] = {}
    for stage in STAGES:
        if not any(said.get(name, "left out") for name in stage.reads):
            facts = facts_of(found[stage.name])
            said[stage.name] = complaint(stage.name, stored.get(stage.name), facts)
    return said


def versions_of(name: str) -> dict[str, int]:
    """Return the versions of a stage and of all that it reads, directly or not."""
    stage = next(stage for stage in STAGES if stage.name == name)
    found = {name: stage.version}
    for other in stage.reads:
        found |= versions_of(other)
    return found


def read_stored() -> dict[str, Any]:
    """Read the stored facts by stage."""
    return json.loads(STORED.read_text()) if STORED.exists() else {}


def store(run_dir: Path) -> None:
    """Write the facts of a run; refuse where facts changed and no version did."""
    stored = read_stored()
    kept: dict[str, Any] = {}
    for name, stage in RunDirectory(path=run_dir).finished_stages().items():
        found, before = facts_of(stage), stored.get(name)
        if before is not None and before["versions"] == versions_of(name):
            if said := complaint(name, before, found):
                sys.exit(said)
            kept[name] = before
            continue
        near = {key: [round(v, 9) for v in values] for key, (values, _) in found.near.items()}
        kept[name] = {"versions": versions_of(name), "exact": found.exact, "near": near}
    lines = [f"{json.dumps(n)}: {json.dumps(facts, sort_keys=True)}" for n, facts in kept.items()]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    """Run the tiny recipe and store or show its facts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", action="store_true", help=f"write {STORED.name}")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = RunServer(Path(folder))
        try:
            run_dir = make_tiny_run(server, Path(folder)) / "run"
        finally:
            server.close()
        if asked.store:
            store(run_dir)
            return
        for name, said in complaints(run_dir).items():
            print(said or f"{name}: as stored")


if __name__ == "__main__":
    main()

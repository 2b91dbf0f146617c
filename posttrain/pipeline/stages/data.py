"""data: rows of the recipe's sources as samples, prompts and held-out suites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.artefacts import PROMPTS, QUARANTINE, SAMPLES, suite_table
from posttrain.pipeline.stage import Counts, Stage, StageContext
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.schema import Recipe, user_functions
from posttrain.records import Prompt, Sample
from posttrain.rewards import UserFunction
from posttrain.rewards.python_source import columns_read
from posttrain.run_directory import SUMMARY
from posttrain.tables import write_json


def run(context: StageContext, section: Recipe) -> Counts:
    """Read, tag, deduplicate and split the data; what is left out goes to quarantine.parquet."""
    from posttrain.data import assert_disjoint, load_data, write_quarantine
    from posttrain.recipe import find

    def beside_recipe(name: str) -> Path:
        return find(name, "data", folder=context.recipe_path.parent)

    # In the work folder, for a failed stage's out_dir is deleted.
    bundle = load_data(
        section,
        find=beside_recipe,
        seed=context.seed,
        quarantine_path=context.work_dir / QUARANTINE,
    )
    assert_disjoint(bundle)
    out = context.out_dir
    SAMPLES.write(out, bundle.samples)
    PROMPTS.write(out, bundle.prompts)
    for name, held_out in bundle.suites.items():
        suite_table(name).write(out, held_out)
    write_quarantine(out / QUARANTINE, bundle.quarantine)
    counts = {
        "samples": len(bundle.samples),
        "prompts": len(bundle.prompts),
        "held_out": sum(len(held_out) for held_out in bundle.suites.values()),
        "quarantined": len(bundle.quarantine),
    }
    write_json(
        out / SUMMARY,
        {
            **counts,
            "redrawn": bundle.num_redrawn,
            "samples_by_capability": _by_capability(bundle.samples),
            "prompts_by_capability": _by_capability(bundle.prompts),
            "suites": {name: _by_capability(rows) for name, rows in bundle.suites.items()},
            "quarantined_by_reason": dict(Counter(str(r["reason"]) for r in bundle.quarantine)),
        },
    )
    return counts


def depends_on(loaded: LoadedRecipe, section: Recipe) -> Mapping[str, Any]:
    """Return the sources of rows and the number of held-out prompts."""
    written = loaded.written
    part: dict[str, Any] = {"max_bad_rows": written["max_bad_rows"]}
    for name in ("sft", "rl"):
        if written[name] is not None:
            part[name] = {"data": [_rows_of(source) for source in written[name]["data"]]}
    suites: list[Any] = written["eval"]["suites"]
    held_out: dict[str, Any] = {
        "suites": [
            suite
            if isinstance(suite, str)
            else {**suite, "data": [_rows_of(source) for source in suite["data"]]}
            for suite in suites
        ]
    }
    if "heldout" in section.eval.suites:
        held_out["heldout_size"] = section.eval.heldout_size
    part["eval"] = held_out
    columns = {
        function.name: columns_read(function.python)
        for path, function in user_functions(section)
        if path[-1] == "verifier"
    }
    return {**part, "columns": columns} if columns else part


def _rows_of(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what decides a source's rows: of a user's own function its name alone."""
    verifier = source["verifier"]
    if not isinstance(verifier, Mapping):
        return source
    return {**source, "verifier": UserFunction.model_validate(verifier).name}


def files(loaded: LoadedRecipe) -> Mapping[str, Path]:
    """Return the data files that the recipe names by path."""
    found = loaded.files.items()
    return {key: path for key, path in found if ".data." in key and key.endswith(".path")}


def samples(context: StageContext) -> list[Sample]:
    """Return every SFT sample."""
    return SAMPLES.read(context.inputs["data"])


def prompts(context: StageContext) -> list[Prompt]:
    """Return the RL prompts."""
    return PROMPTS.read(context.inputs["data"])


def suites(context: StageContext) -> dict[str, list[Prompt]]:
    """Return the held-out prompts by suite, in the recipe's order."""
    names = [s if isinstance(s, str) else s.name for s in context.recipe.eval.suites]
    return {name: suite_table(name).read(context.inputs["data"]) for name in names}


def _by_capability(rows: list[Sample] | list[Prompt]) -> dict[str, int]:
    return dict(Counter(row.capability for row in rows))


STAGE = Stage(
    name="data",
    version=3,
    section=lambda recipe: recipe,
    run=run,
    depends_on=depends_on,
    files=files,
)

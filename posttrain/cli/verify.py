"""`posttrain verify`: the outcome of an answer, or of a table of answers, and why."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain.cli.options import AsJson, print_json
from posttrain.errors import RecipeError

if TYPE_CHECKING:
    from posttrain.data.answers import Answer
    from posttrain.records import Outcome
    from posttrain.rewards import UserFunction


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(verify)


def verify(
    table: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TABLE]",
            help="Answers as JSONL or Parquet, or a rollout table of a run; without it, one answer "
            "given by the options.",
        ),
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option(
            "--verifier",
            help="Which one decides: a name, or a function of yours as my_rewards.py:score; also "
            "'my_rewards.py:score >= 0.5'.",
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="What it compares with; @FILE reads a file.")
    ] = None,
    answer: Annotated[
        str | None, typer.Option("--answer", help="The text; @FILE reads a file, - the input.")
    ] = None,
    question: Annotated[str, typer.Option("--question", help="What was asked.")] = "",
    meta: Annotated[
        str,
        typer.Option(
            "--meta", help="What else it needs, as JSON; for a function of yours, the columns."
        ),
    ] = "{}",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Also write a row per answer: JSONL, Parquet."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify answers; show the outcomes, and why."""
    from posttrain.data.answers import Answer, read_answers, task
    from posttrain.rewards import close_workers, use_functions
    from posttrain.rewards.python import COLUMNS

    if out is not None and out.suffix not in (".jsonl", ".parquet"):
        raise RecipeError(
            f"--out {out}: a table's name ends in .jsonl or .parquet",
            hint=f"write --out {out.with_suffix('.jsonl')}",
        )
    if verifier is not None and (":" in verifier or verifier.endswith(".py")):
        function = _user_function(verifier)
        use_functions([function])
        verifier = function.name
    if table is not None:
        answers = read_answers(table, verifier=verifier, reference=_text(reference))
    elif verifier is None or answer is None:
        raise RecipeError(
            "nothing to verify: give a TABLE, or --verifier and --answer",
            hint="posttrain verify --verifier math --reference 0.5 --answer '\\boxed{1/2}'",
        )
    else:
        values = {COLUMNS: _object(meta)} if ":" in verifier else _object(meta)
        prompt = task(verifier, reference=_text(reference) or "", question=question, meta=values)
        answers = [Answer(prompt=prompt, text=_text(answer) or "")]
    _refuse_unfit(answers, verifier)
    try:
        outcomes = _decide(answers)
    finally:
        close_workers()
    rows = [_row(one, outcome) for one, outcome in zip(answers, outcomes, strict=True)]
    if out is not None:
        from posttrain.tables import write_table

        write_table(out, rows)
    if as_json:
        print_json(rows[0] if table is None else {**_summary(answers, outcomes), "rows": rows})
    elif table is None:
        _show_one(outcomes[0])
    else:
        _show_summary(_summary(answers, outcomes), rows)


def _user_function(text: str) -> UserFunction:
    from posttrain.rewards import UserFunction
    from posttrain.rewards.python_source import BadFunction, find_function

    try:
        function = UserFunction.from_name(text)
        find_function(function.python, Path.cwd())
    except BadFunction as error:
        meant = f"did you mean {error.suggestion}?" if error.suggestion else "see docs/verifiers.md"
        raise RecipeError(f"--verifier {text}: {error.message}", hint=meant) from error
    except ValueError as error:
        hint = "write --verifier my_rewards.py:score, or 'my_rewards.py:score >= 0.5'"
        raise RecipeError(f"--verifier {text} names no function", hint=hint) from error
    return function


def _text(value: str | None) -> str | None:
    if value == "-":
        return sys.stdin.read()
    if value is not None and value.startswith("@"):
        try:
            return Path(value[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{value[1:]}: {error}", hint="give a text file after @") from error
    return value


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RecipeError(f"--meta is no JSON: {error}", hint="write --meta '{...}'") from error
    if not isinstance(value, dict):
        raise RecipeError("--meta is no JSON object", hint="write --meta '{...}'")
    return value


def _refuse_unfit(answers: Sequence[Answer], declared: str | None) -> None:
    """Check each different task once: a reference that its verifier cannot use decides nothing."""
    from posttrain.rewards import check_reference, find_verifier

    seen: set[str] = set()
    for number, one in enumerate(answers, 1):
        if one.prompt.prompt_id in seen:
            continue
        seen.add(one.prompt.prompt_id)
        name = one.prompt.verifier
        why = check_reference(one.prompt)
        if why is None and find_verifier(name).uses == "answer_judge":
            raise RecipeError(
                f"answer {number}: verifier {name} asks the answer_judge of a running recipe",
                hint="verify answers of other verifiers, or read the run's rollout tables",
            )
        if why is not None:
            hint = "correct verifier or reference; docs/verifiers.md lists what each one takes"
            if ":" in name and name != declared:
                hint = f"no table makes code run by itself: --verifier 'path/to/{name}'"
            raise RecipeError(f"answer {number}: verifier {name}: {why}", hint=hint)


def _decide(answers: Sequence[Answer]) -> list[Outcome]:
    from posttrain.progress import progress
    from posttrain.rewards import submit

    futures = [submit(one.prompt, one.text, truncated=one.truncated) for one in answers]
    outcomes: list[Outcome] = []
    with progress("verify", total=len(futures)) as bar:
        for future in futures:
            outcomes.append(future.result())
            bar.advance(1)
    return outcomes


def _row(one: Answer, outcome: Outcome) -> dict[str, Any]:
    return {
        "verifier": one.prompt.verifier,
        "passed": outcome.passed,
        "score": outcome.score,
        "kind": outcome.kind,
        "why": outcome.why,
        "extracted": outcome.extracted,
        "parts": dict(outcome.parts),
        "reward_hack_flags": list(outcome.reward_hack_flags),
        "seconds": outcome.seconds,
        **({} if one.before is None else {"passed_before": one.before}),
    }


def _summary(answers: Sequence[Answer], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    counts: dict[str, Counter[str]] = {}
    for one, outcome in zip(answers, outcomes, strict=True):
        counts.setdefault(one.prompt.verifier, Counter())[outcome.label] += 1
    changed = [
        number
        for number, (one, outcome) in enumerate(zip(answers, outcomes, strict=True), 1)
        if one.before is not None and one.before != outcome.passed
    ]
    return {
        "answers": len(answers),
        "passed": sum(outcome.passed is True for outcome in outcomes),
        "undecided": sum(outcome.passed is None for outcome in outcomes),
        "kinds": {name: dict(found.most_common()) for name, found in counts.items()},
        "changed": changed,
    }


def _show_one(outcome: Outcome) -> None:
    from posttrain.cli.tables import make_facts, wide_console

    state = {True: "passed", False: "failed", None: "undecided"}[outcome.passed]
    facts = [("outcome", state), ("why", outcome.why), ("read as", outcome.extracted)]
    facts += [(name, f"{value:g}") for name, value in outcome.parts.items()]
    facts += [("score", f"{outcome.score:g}"), ("flags", ", ".join(outcome.reward_hack_flags))]
    facts += [("took", f"{1000 * outcome.seconds:.0f} ms")]
    wide_console().print(make_facts((name, value) for name, value in facts if value))


def _show_summary(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.text import Text

    from posttrain.cli.tables import make_table, wide_console

    console = wide_console()
    counted = [
        (verifier, kind, f"{count:,}", f"{100 * count / sum(kinds.values()):.1f} %")
        for verifier, kinds in summary["kinds"].items()
        for kind, count in kinds.items()
    ]
    columns = ("verifier", "outcome", "answers", "share")
    console.print(make_table("outcomes", columns, counted, left=["outcome"]))
    undecided = [row for row in rows if row["passed"] is None]
    if undecided:
        console.print(Text(f"the first undecided answer: {undecided[0]['why']}"))
    if summary["changed"]:
        shown = ", ".join(map(str, summary["changed"][:10]))
        said = f"{len(summary['changed'])} outcomes differ from the table's, in rows {shown}"
        console.print(Text(said))

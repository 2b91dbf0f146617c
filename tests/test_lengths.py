from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from posttrain import dpo, sft
from posttrain.errors import RecipeError
from posttrain.lengths import TooLong, count_tokens, leave_out_too_long
from posttrain.models import PolicyPath, load_policy, load_tokenizer
from posttrain.recipe.models import Lora, Model
from posttrain.recipe.trainer_blocks import DPOBlock, SFTBlock
from posttrain.records import Message, PreferencePair, Sample
from posttrain.tables import read_records
from tests.builders import make_sample

KEY = "sft.trainer.max_length"
ANSWERS = ("4", "four", "It is four, since two and two are. " * 3, "四つ \n", "2 + 2 = 4\n" * 9)
SAMPLES = [
    *(make_sample(f"what is 2+2 {'please ' * n}", answer) for n, answer in enumerate(ANSWERS)),
    make_sample("a long question " * 30, "4"),
    Sample.make(
        messages=[
            Message(role="system", content="be brief"),
            Message(role="user", content="2+2"),
            Message(role="assistant", content="4"),
            Message(role="user", content="and 3+3"),
            Message(role="assistant", content="6"),
        ],
        capability="math",
    ),
]
PAIRS = [
    PreferencePair(
        prompt_id=f"p{number}",
        prompt=[{"role": "user", "content": question}],
        chosen=chosen,
        rejected=rejected,
        corner_case="wrong_answer",
        origin={},
    )
    for number, (question, chosen, rejected) in enumerate(
        [
            ("2+2", "4", "5"),
            ("2+2", "4", "It is five, I am sure of that. " * 4),
            ("2+2", "It is four, since two and two are. " * 4, ""),
            ("a long question " * 30, "4", "5"),
            ("3+3", "6", "seven"),
        ]
    )
]


def spec(base: Path) -> Model:
    return Model(base=str(base), dtype="float32", lora=Lora(rank=2, targets=["attention"]))


def split(
    tokenizer: PreTrainedTokenizerBase, samples: list[Sample], max_length: int | None
) -> tuple[list[Sample], list[TooLong]]:
    return leave_out_too_long(
        samples,
        lambda sample: [sample.messages],
        row_id=lambda sample: sample.sample_id,
        tokenizer=tokenizer,
        max_length=max_length,
        key=KEY,
    )


def of_trl(base: Path, folder: Path, stage: str, max_length: int | None) -> list[dict[str, Any]]:
    """The rows that TRL itself makes of SAMPLES or PAIRS under a limit."""
    shared: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "max_length": max_length,
    }
    model = load_policy(PolicyPath(base=base), spec(base), trainable=True)
    if stage == "sft":
        rows = [{"prompt": s.messages[:-1], "completion": s.messages[-1:]} for s in SAMPLES]
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**shared),
            train_dataset=Dataset.from_list(rows),
            processing_class=load_tokenizer(base),
        )
    else:
        rows = [
            {
                "prompt": pair.prompt,
                "chosen": [{"role": "assistant", "content": pair.chosen}],
                "rejected": [{"role": "assistant", "content": pair.rejected}],
            }
            for pair in PAIRS
        ]
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(**shared),
            train_dataset=Dataset.from_list(rows),
            processing_class=load_tokenizer(base),
        )
    assert isinstance(trainer.train_dataset, Dataset)
    return cast("list[dict[str, Any]]", trainer.train_dataset.to_list())


def test_count_tokens_counts_as_trl(tiny_llama4: Path, tmp_path: Path) -> None:
    made = of_trl(tiny_llama4, tmp_path, "sft", None)
    counted = count_tokens(load_tokenizer(tiny_llama4), [s.messages for s in SAMPLES])
    assert counted == [len(row["input_ids"]) for row in made]


def test_kept_rows_are_those_trl_neither_truncates_nor_drops(
    tiny_llama4: Path, tmp_path: Path
) -> None:
    whole = [row["input_ids"] for row in of_trl(tiny_llama4, tmp_path, "sft", None)]
    for limit in sorted({len(ids) for ids in whole})[1:-1]:
        cut = [row["input_ids"] for row in of_trl(tiny_llama4, tmp_path, "sft", limit)]
        kept, left = split(load_tokenizer(tiny_llama4), SAMPLES, limit)
        untouched = [s for s, ids in zip(SAMPLES, whole, strict=True) if ids in cut]
        assert kept == untouched
        assert [SAMPLES[row.position] for row in left] == [s for s in SAMPLES if s not in kept]
        assert [row.num_tokens for row in left] == [len(whole[row.position]) for row in left]


def test_a_pair_is_kept_if_both_answers_fit(
    tiny_llama4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = of_trl(tiny_llama4, tmp_path, "dpo", None)
    lengths = [
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for row in whole
    ]
    limit = max(lengths[0], lengths[4])
    assert [n <= limit for n in lengths] == [True, False, False, False, True]
    out = tmp_path / "out"
    out.mkdir()
    summary = dpo.train(
        PAIRS,
        policy=PolicyPath(base=tiny_llama4),
        model=spec(tiny_llama4),
        trainer=DPOBlock(max_length=limit, per_device_train_batch_size=1),
        seed=0,
        work_dir=tmp_path / "work",
        out_dir=out,
    )
    assert (summary["pairs"], summary["too_long"], summary["steps"]) == (2, 3, 2)
    prompt, chosen, rejected = (
        sum(len(whole[i][f"{part}_ids"]) for i in (0, 4))
        for part in ("prompt", "chosen", "rejected")
    )
    assert summary["tokens"] == 2 * prompt + chosen + rejected
    left = read_records(out / "too_long.parquet", TooLong)
    assert [(row.row_id, row.num_tokens) for row in left] == [
        (f"p{i}", lengths[i]) for i in (1, 2, 3)
    ]
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(said) == 1
    assert "3 of 5 rows" in said[0]
    assert "dpo.trainer.max_length" in said[0]


@pytest.mark.parametrize(
    ("block", "num_left"),
    [
        ({"max_length": 128}, 2),
        ({"max_length": 128, "packing": True}, 2),
        # The rest of a long row goes on in the next sequence: nothing is lost.
        ({"max_length": 128, "packing": True, "packing_strategy": "bfd_split"}, 0),
        ({"max_length": 128, "packing": True, "packing_strategy": "wrapped"}, 0),
        ({"max_length": None}, 0),
    ],
)
def test_sft_trains_on_whole_rows_and_writes_those_left_out(
    tiny_llama4: Path, tmp_path: Path, block: dict[str, Any], num_left: int
) -> None:
    counted = count_tokens(load_tokenizer(tiny_llama4), [s.messages for s in SAMPLES])
    long = [n for n in counted if n > 128]
    assert len(long) == 2
    out = tmp_path / "out"
    out.mkdir()
    summary = sft.train(
        SAMPLES,
        policy=PolicyPath(base=tiny_llama4),
        model=spec(tiny_llama4),
        trainer=SFTBlock(num_train_epochs=1, per_device_train_batch_size=1, **block),
        seed=0,
        work_dir=tmp_path / "work",
        out_dir=out,
    )
    left = read_records(out / "too_long.parquet", TooLong)
    assert len(left) == num_left
    assert all(row.num_tokens in long and f"{KEY} is 128" in row.reason for row in left)
    assert (summary["samples"], summary["too_long"]) == (len(SAMPLES) - num_left, num_left)
    # No token of the others is lost.
    assert summary["tokens"] == sum(counted) - (sum(long) if num_left else 0)


def test_leave_out_too_long_raises_if_no_row_fits(tiny_llama4: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama4)
    longest = max(count_tokens(tokenizer, [s.messages for s in SAMPLES]))
    with pytest.raises(RecipeError, match=f"all {len(SAMPLES)} rows are longer than {KEY}") as stop:
        split(tokenizer, SAMPLES, 3)
    assert f"{KEY}: {longest}" in stop.value.hint
    assert split(tokenizer, SAMPLES, longest) == (SAMPLES, [])


def test_leave_out_too_long_keeps_positions_over_batches(
    tiny_llama4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(tiny_llama4)
    whole = split(tokenizer, SAMPLES, 64)
    monkeypatch.setattr("posttrain.lengths.BATCH_SIZE", 2)
    assert split(tokenizer, SAMPLES, 64) == whole

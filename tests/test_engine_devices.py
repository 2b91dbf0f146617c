"""Engines that span processes, and policies that reach them as adapters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.engines import Engine, make_engine
from posttrain.engines import sync as sync_module
from posttrain.engines.engine import ServesAdapters, Sleeps
from posttrain.engines.parity import ExpectedLogprobs, check_parity, expected_logprobs
from posttrain.engines.sync import has_experts, max_lora_rank, sync_policy
from posttrain.errors import HealthStop, RecipeError, SetupError
from posttrain.models import PolicyPath, load_policy, save_policy
from posttrain.models.tiny import write_tiny_llama4
from posttrain.recipe.models import EngineSpec, Lora, Model
from posttrain.rl.sampling import engine_place
from posttrain.tables import read_json

PROMPTS = [[1, 20, 30, 40], [1, 50, 60], [1, 70, 80, 90, 100, 110]]
SPEC = EngineSpec(kind="vllm", max_model_len=128, max_num_seqs=8, sync="adapter")


def worst(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    return max(abs(x - y) for xs, ys in zip(a, b, strict=True) for x, y in zip(xs, ys, strict=True))


def write_dense_llama(tokenizer_of: Path, folder: Path) -> Path:
    """A tiny random dense Llama with grouped keys and values."""
    shutil.copytree(tokenizer_of, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, initializer_range=0.1,
        bos_token_id=0, eos_token_id=4, pad_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def adapted(base: Path, rank: int = 4) -> PeftModel:
    spec = Model(
        base=str(base), dtype="float32", lora=Lora(rank=rank, targets=["attention", "mlp"])
    )
    model = load_policy(PolicyPath(base=base), spec, trainable=True)
    assert isinstance(model, PeftModel)
    return model


def disturb(model: PeftModel, seed: int) -> ExpectedLogprobs:
    """Give the adapter values that matter; what the trainer then answers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return expected_logprobs(model, PROMPTS, [[5, 6, 7]] * 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"sync": "weights", "quantization": "fp8"}, r"engine\.quantization"),
        ({"sync": "weights", "checkpoint": "some/quantised"}, r"engine\.checkpoint"),
        ({"sync": "adapter", "kind": "transformers"}, "only vLLM serves adapters"),
    ],
)
def test_check_sync_refuses_settings_that_do_not_fit(
    tiny_llama4: Path, spec: dict[str, Any], message: str
) -> None:
    pytest.importorskip("vllm")
    wrong = EngineSpec.model_validate({"kind": "vllm", **spec})
    with pytest.raises(RecipeError, match=message) as error:
        make_engine(wrong, PolicyPath(base=tiny_llama4), dtype="float32", seed=0)
    assert "set engine." in error.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="on CUDA vLLM can")
def test_check_sync_refuses_adapters_for_moe_without_cuda(tiny_llama4: Path) -> None:
    pytest.importorskip("vllm")
    with pytest.raises(SetupError, match="on CUDA only") as error:
        make_engine(SPEC, PolicyPath(base=tiny_llama4), dtype="float32", seed=0)
    assert error.value.hint == "set engine.sync: weights on this machine"


def test_has_experts_reads_the_configuration(tiny_llama4: Path, tmp_path: Path) -> None:
    assert has_experts(tiny_llama4)
    assert not has_experts(write_tiny_llama4(tmp_path / "a", interleave_moe_layer_step=5))
    assert not has_experts(write_dense_llama(tiny_llama4, tmp_path / "b"))


def test_max_lora_rank_is_the_larger_of_both(tiny_llama4: Path, tmp_path: Path) -> None:
    save_policy(adapted(tiny_llama4, rank=8), tmp_path)
    fresh, old = PolicyPath(base=tiny_llama4), PolicyPath(base=tiny_llama4, adapter=tmp_path)
    assert max_lora_rank(SPEC, fresh, None) is None
    assert max_lora_rank(SPEC, fresh, 16) == 16
    assert max_lora_rank(SPEC, old, None) == 8
    assert max_lora_rank(SPEC, old, 16) == 16
    assert max_lora_rank(SPEC.model_copy(update={"sync": "weights"}), old, 16) is None


def test_consecutive_processes_share_an_engine_and_one_of_them_speaks() -> None:
    places = [engine_place(rank=r, world_size=6, tensor_parallel_size=2) for r in range(6)]
    assert [p.engine for p in places] == [0, 0, 1, 1, 2, 2]
    assert {p.num_engines for p in places} == {3}
    assert [p.is_engine_leader for p in places] == [True, False] * 3


@pytest.fixture(scope="module", params=["llama", "llama4"])
def base(request: pytest.FixtureRequest, tiny_llama4: Path, tmp_path_factory: Any) -> Path:
    pytest.importorskip("vllm")
    folder = tmp_path_factory.mktemp("base") / "model"
    if request.param == "llama":
        return write_dense_llama(tiny_llama4, folder)
    return write_tiny_llama4(folder, interleave_moe_layer_step=5)


@pytest.fixture(scope="module")
def engine(base: Path) -> Any:
    running = make_engine(SPEC, PolicyPath(base=base), dtype="float32", seed=0, lora_rank=4)
    yield running
    running.close()


@pytest.mark.slow
class TestAdapterSync:
    """The real vLLM; its CPU build serves adapters where no layer is a mixture."""

    def sync(self, engine: Engine, model: PeftModel, base: Path, scratch: Path, n: int) -> None:
        sync_policy(engine, model, sync="adapter", base=base, scratch=scratch, policy_version=n)
        assert engine.policy_version == n

    def test_sync_adapter_serves_the_newest_adapter(
        self, engine: Engine, base: Path, tmp_path: Path
    ) -> None:
        model = adapted(base)
        before = expected_logprobs(model, PROMPTS, [[5, 6, 7]] * 3)
        expectations = []
        for version in (1, 2, 3):
            expectations.append(disturb(model, version))
            self.sync(engine, model, base, tmp_path, version)
            assert check_parity(engine, expectations[-1], tolerance=1e-4).num_tokens == 9
        for other in (before, *expectations[:-1]):
            with pytest.raises(HealthStop):
                check_parity(engine, other, tolerance=1e-2)

    def test_parity_is_lost_without_permuting_the_adapter(
        self, engine: Engine, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What PEFT writes, given to vLLM as it is: right for Llama, silently wrong for Llama 4."""
        assert isinstance(engine, ServesAdapters)
        model = adapted(base)
        expected = disturb(model, 9)
        save_policy(model, tmp_path)
        engine.sync_adapter(tmp_path, policy_version=8)
        if "llama4" in (base / "config.json").read_text():
            with pytest.raises(HealthStop):
                check_parity(engine, expected, tolerance=1e-2)
        else:
            check_parity(engine, expected, tolerance=1e-4)
        called: list[str] = []
        real = sync_module.export_adapter
        monkeypatch.setattr(
            sync_module,
            "export_adapter",
            lambda *a, reader, **k: (called.append(reader), real(*a, reader=reader, **k))[1],
        )
        self.sync(engine, model, base, tmp_path, 9)
        assert called == ["vllm"]
        check_parity(engine, expected, tolerance=1e-4)

    def test_sleep_and_wake_do_nothing_on_the_cpu(
        self, engine: Engine, base: Path, tmp_path: Path
    ) -> None:
        assert isinstance(engine, Sleeps)
        model = adapted(base)
        expected = disturb(model, 11)
        self.sync(engine, model, base, tmp_path, 10)
        engine.sleep()
        engine.wake()
        check_parity(engine, expected, tolerance=1e-4)

    def test_make_engine_serves_a_saved_adapter(self, base: Path, tmp_path: Path) -> None:
        """Last, as a second engine in the process takes the first one down when it goes."""
        model = adapted(base)
        expected = disturb(model, 7)
        save_policy(model, tmp_path)
        policy = PolicyPath(base=base, adapter=tmp_path)
        engine = make_engine(SPEC, policy, dtype="float32", seed=0)
        check_parity(engine, expected, tolerance=1e-4)
        engine.close()


@pytest.mark.slow
@pytest.mark.usefixtures("spanning_engine")
@pytest.mark.parametrize(
    ("num_processes", "size"),
    [
        pytest.param(2, 1, id="an engine each"),
        pytest.param(2, 2, id="one between them"),
        pytest.param(1, 2, id="workers of vLLM's own"),
    ],
)
def test_engines_of_one_and_two_processes_give_the_same_results(
    tiny_llama4: Path, tmp_path: Path, num_processes: int, size: int
) -> None:
    """Same answers everywhere, seeds that decide, syncs that take."""
    pytest.importorskip("vllm")
    script = str(Path(__file__).parent / "distributed_engine.py")
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    done = subprocess.run(
        [
            *(sys.executable, *(several if num_processes > 1 else []), script),
            *(str(tiny_llama4), str(tmp_path), str(size)),
        ],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    everywhere = [read_json(tmp_path / f"rank-{rank}.json") for rank in range(num_processes)]
    for found in everywhere:
        assert [len(group) for group in found["completions"]] == [4, 4, 4]
        assert found["completions"] == everywhere[0]["completions"]
        assert found["completions"] == found["same_seed"] != found["other_seed"]
        assert worst(found["scores"], found["expected"]) < 1e-4
        assert worst(found["scores_after"], found["expected_after"]) < 1e-4
        assert worst(found["expected_after"], found["expected"]) > 0.1


@pytest.mark.gpu
def test_a_quantised_engine_serves_an_adapter_for_moe(tiny_llama4: Path, tmp_path: Path) -> None:
    """fp8 weights answer within what eight bits can tell apart, and not as the base alone."""
    pytest.importorskip("vllm")
    spec = SPEC.model_copy(update={"quantization": "fp8"})
    model = load_policy(
        PolicyPath(base=tiny_llama4), Model(base="x", lora=Lora(rank=8)), trainable=True
    )
    assert isinstance(model, PeftModel)
    expected = disturb(model, 3)
    save_policy(model, tmp_path)
    policy = PolicyPath(base=tiny_llama4, adapter=tmp_path)
    engine = make_engine(spec, policy, dtype="bfloat16", seed=0)
    check_parity(engine, expected, tolerance=spec.parity_tolerance)
    engine.close()

"""`python -m benchmarks.gpu`: eight points about the CUDA path, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer

from benchmarks.command import check_names, run_bed
from posttrain.bench.measure import Result, describe_circumstances, markdown
from posttrain.cli.bench import OutFolder
from posttrain.cli.options import AsJson
from posttrain.pipeline.environment import has_cuda
from posttrain.tables import write_bytes, write_json

Shapes = Literal["scout", "tiny"]
Device = Literal["cuda", "cpu"]
NO_DEVICE = "no CUDA device"
NO_TIME = "no time was left"
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One question, measured by the module of the same name."""

    title: str
    seconds: float
    """Longest time for all of its cases."""


POINTS: Mapping[str, Point] = {
    "start": Point(title="CUDA after a fork", seconds=110),
    "quantizing": Point(title="quantizing and dequantizing", seconds=60),
    "layer": Point(title="a layer of Scout's shape in training", seconds=90),
    "grouped": Point(title="grouped products", seconds=75),
    "training": Point(title="FSDP2 and a whole run, tiny", seconds=170),
    "head": Point(title="the fused head, vocabulary 202,048", seconds=50),
    "offload": Point(title="policy to the host and back", seconds=90),
}
"""In the order in which they are run; what decides most comes first."""


def bench(
    out: OutFolder = None,
    shapes: Annotated[
        Shapes, typer.Option(help="Scout's shapes, or tiny ones that only try out the code.")
    ] = "scout",
    device: Annotated[Device, typer.Option(help="Device; cpu only tries out the code.")] = "cuda",
    only: Annotated[
        list[str] | None, typer.Option(help="Measure only this point; may be repeated.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=10, help="Longest time in all; points past it are left out.")
    ] = 460,
    commit: Annotated[
        str | None, typer.Option(help="Commit of the code, where it is a copy without .git.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the CUDA path on one GPU; needs no network and no vLLM."""
    check_names("--only", only or [], POINTS)
    deadline = time.monotonic() + seconds
    outcomes: dict[str, list[dict[str, Any]]] = {}
    page, found = "", {}
    for name in only or POINTS:
        began = time.monotonic()
        limit = min(POINTS[name].seconds, deadline - began)
        outcomes[name] = measure(name, device=device, shapes=shapes, seconds=limit)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        page, found = described(result_of(outcomes, device=device, shapes=shapes), commit, out)
    print(json.dumps(found) if as_json else page)


def measure(name: str, *, device: Device, shapes: Shapes, seconds: float) -> list[dict[str, Any]]:
    """Run one point in a process group of its own and return its cases' outcomes."""
    if device == "cuda" and not has_cuda():
        return [{"case": "", "not_measured": NO_DEVICE}]
    if seconds < 5:
        return [{"case": "", "not_measured": NO_TIME}]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes.jsonl"
        command = [sys.executable, "-m", "benchmarks.gpu.point", name, device, shapes, str(file)]
        log = Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            ending = ""
            try:
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                ending = f"stopped after {seconds:.0f} s"
            else:
                if code != 0:
                    said = log.read_text(errors="replace").strip().splitlines()
                    ending = f"the process ended with exit code {code}: {(said or [''])[-1][:300]}"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        sys.stderr.write(log.read_text(errors="replace")[-6000:])
        lines = file.read_text().splitlines() if file.exists() else []
        return list(settled([json.loads(line) for line in lines], ending))


def settled(lines: list[dict[str, Any]], ending: str) -> Iterator[dict[str, Any]]:
    """Yield each case's outcome; a case that was begun and not ended is not measured."""
    for begun, after in zip(lines, [*lines[1:], {}], strict=False):
        if len(begun) > 1:
            yield begun
        elif after.get("case") != begun["case"]:
            yield {**begun, "not_measured": ending or "its process said nothing more"}
    if ending and (not lines or len(lines[-1]) > 1):
        yield {"case": "the cases after", "not_measured": ending}


def result_of(
    outcomes: Mapping[str, list[dict[str, Any]]], *, device: Device, shapes: Shapes
) -> Result:
    """Build the table of all points measured so far."""
    rows = [
        [
            POINTS[name].title,
            outcome["case"],
            outcome["text"] if "text" in outcome else f"not measured: {outcome['not_measured']}",
        ]
        for name, found in outcomes.items()
        for outcome in found
    ]
    notes = [gpu_name()] if device == "cuda" and has_cuda() else []
    if device == "cpu":
        notes.append("On the CPU, to try out the code: no figure here says anything of a GPU.")
    if shapes == "tiny":
        notes.append("Tiny shapes, to try out the code.")
    notes.append(
        "Errors are relative norms against fp32. Seconds are medians after warm-up, between CUDA "
        "events; moves are on the host's clock. MFU counts a frozen base's forward and backward "
        "pass and the adapters, over the data sheet's bf16 peak."
    )
    return Result(
        name="gpu" if (device, shapes) == ("cuda", "scout") else f"gpu-{device}-{shapes}",
        title="The CUDA path on one GPU",
        columns=["point", "case", "found"],
        rows=rows,
        figures=dict(outcomes),
        notes=notes,
    )


def gpu_name() -> str:
    """Return what nvidia-smi says of the device: name, memory, driver."""
    if shutil.which("nvidia-smi") is None:
        return "GPU: unknown, there is no nvidia-smi"
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    return f"GPU: {said.stdout.strip() or said.stderr.strip()}"


def described(
    result: Result, commit: str | None, folder: Path | None
) -> tuple[str, Mapping[str, Any]]:
    """Return the page and the figures, and write both; `commit` names the code where git cannot."""
    context = describe_circumstances()
    if context["commit"] is None:
        context["commit"] = commit
    page = markdown(result, context)
    figures = {"benchmark": result.name, **context, "figures": dict(result.figures)}
    if folder is not None:
        write_json(folder / f"{result.name}.json", figures)
        write_bytes(folder / f"{result.name}.md", page.encode())
    return page, figures


if __name__ == "__main__":
    run_bed(bench)

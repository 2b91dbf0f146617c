"""`python -m benchmarks.gpu.point NAME DEVICE SHAPES FILE`: one point's cases, a line each."""

from __future__ import annotations

import gc
import importlib
import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import Case, NotMeasured, Setting

LONGEST_REASON = 300


def main(name: str, device: str, shapes: str, file: Path) -> None:
    """Run the cases of `benchmarks.gpu.NAME` one after the other and append each outcome to FILE.

    A case is announced before it runs, so that one which ends the process is known.
    """
    setting = Setting(device=device, is_tiny=shapes == "tiny")
    cases: Mapping[str, Case] = importlib.import_module(f"benchmarks.gpu.{name}").cases(setting)
    for case, measure in cases.items():
        append(file, {"case": case})
        try:
            found = measure()
        except NotMeasured as reason:
            append(file, {"case": case, "not_measured": str(reason)})
        except Exception as error:
            traceback.print_exc()
            append(file, {"case": case, "not_measured": in_short(error)})
        else:
            append(file, {"case": case, "text": found.text, "figures": dict(found.figures)})
        gc.collect()
        if setting.is_cuda:
            torch.cuda.empty_cache()


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Write a line at once, so that it outlives the process."""
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")


def in_short(error: BaseException) -> str:
    """Return an exception as one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}"[:LONGEST_REASON]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))

"""Run the plans in docs/memory.md again and put in what they print: `make docs`.

A `text` block after a `posttrain plan` command holds its output, from the parameters on. The heads
of the recipes tell the totals by stage.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from posttrain.memory import GB, parse_devices, plan_memory, published_shapes
from posttrain.recipe import load_recipe

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "memory.md"
BLOCK = re.compile(
    r"(^```console\n(posttrain plan [^\n]*)\n```\n\n```text\n)(.*?)(^```$)", re.M | re.S
)
PLACED = sorted((ROOT / "recipes").glob("*_lora_*x*gb.yaml"))
"""Recipes for certain devices, which their names tell."""


def printed(command: str) -> str:
    """What a plan prints, from the parameters on, and how it ends."""
    code = "from posttrain.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *shlex.split(command)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    shown = lines[lines.index("parameters") :] if "parameters" in lines else lines
    return "\n".join([*shown, *done.stderr.splitlines()]) + "\n"


def page(text: str) -> str:
    """The page with every block renewed."""
    return BLOCK.sub(lambda found: found[1] + printed(found[2]) + found[4], text)


def head(recipe: Path) -> str:
    """The lines of a recipe's head comment that tell its memory."""
    devices = parse_devices(recipe.stem.rpartition("_")[2])
    loaded = load_recipe(recipe).recipe
    assert isinstance(loaded.model.base, str)
    shapes = published_shapes(loaded.model.base)
    assert shapes is not None
    phases = plan_memory(shapes, loaded, devices)
    totals = ", ".join(f"{phase.name} {phase.total / GB:.1f}" for phase in phases)
    host = max(phase.host for phase in phases) / GB
    return (
        f"# GB on each device, as `posttrain plan` counts them, of {devices.capacity / GB:g}:\n"
        f"# {totals}.\n"
        f"# GB of host memory, during RL: {host:.1f}. Nothing of this was measured on a GPU.\n"
    )


def with_head(recipe: Path) -> str:
    """A recipe with the memory in its head renewed."""
    text = recipe.read_text(encoding="utf-8")
    known = re.compile(r"^# (?:\{memory\}\n|GB on each device.*?on a GPU\.\n)", re.M | re.S)
    assert known.search(text), recipe
    return known.sub(lambda _: head(recipe), text, count=1)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for recipe in PLACED:
        recipe.write_text(with_head(recipe), encoding="utf-8")

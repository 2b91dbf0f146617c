"""Diagnosis of this machine: can it run recipes, and with what."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from rich.text import Text

from posttrain.cli.tables import make_facts, make_table, wide_console
from posttrain.errors import SetupError
from posttrain.pipeline.environment import describe_environment, has_package, version_of
from posttrain.progress import note
from posttrain.sandbox import examine
from posttrain.sandbox.attacks import ATTACKS
from posttrain.sandbox.landlock import Landlock
from posttrain.sandbox.self_test import SelfTest, kept_self_test
from posttrain.sandbox.wasm import Wasm

GIB = 2**30


def diagnose(*, test_sandboxes: bool = False) -> dict[str, Any]:
    """Return packages against requirements, optional parts, sandboxes, devices, memory and disk.

    Sandboxes show an earlier self-test. Landlock, which takes seconds, is tested if there is none;
    `test_sandboxes` tests every installed one again.
    """
    packages = [
        _package(Requirement(text)) for text in importlib.metadata.requires("posttrain") or []
    ]
    required = [p for p in packages if p["extra"] is None]
    return {
        **describe_environment(),
        "required": required,
        "optional": [p for p in packages if p["extra"] not in (None, "dev")],
        "missing": [p["name"] for p in required if not p["fits"]],
        "engine": "vllm" if has_package("vllm") else "transformers",
        "sandboxes": [_sandbox(made, fresh=test_sandboxes) for made in (Landlock(), Wasm())],
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
    }


def show_diagnosis(found: Mapping[str, Any]) -> None:
    """Print the diagnosis."""
    console = wide_console()
    columns = ("package", "required", "installed", "extra", "")
    packages = [_package_cells(package) for package in (*found["required"], *found["optional"])]
    console.print(make_table("packages", columns, packages, left=columns))
    columns = ("sandbox", "package", "installed", "attacks held", "")
    sandboxes = [_sandbox_cells(sandbox) for sandbox in found["sandboxes"]]
    console.print(make_table("sandboxes", columns, sandboxes, left=columns))
    facts = [
        ("python", f"{found['python']} on {found['platform']}"),
        ("cpu cores", str(found["num_cpus"])),
        ("memory", f"{found['memory_bytes'] / GIB:.1f} GiB"),
        ("free disk here", f"{found['free_disk_bytes'] / GIB:.1f} GiB"),
        ("cuda", "yes" if found["cuda"] else "no"),
        ("engine: auto is", found["engine"]),
    ]
    console.print(make_facts(facts))


def try_everything() -> None:
    """Run every stage of the tiny recipe on a random checkpoint, in a folder that is deleted."""
    import tempfile

    from posttrain.models.tiny import write_tiny_llama4
    from posttrain.pipeline import run
    from posttrain.recipe import load_recipe

    with tempfile.TemporaryDirectory(prefix="posttrain-doctor-") as folder:
        base = write_tiny_llama4(Path(folder) / "model")
        loaded = load_recipe(Path("tiny.yaml"), [f"model.base={base}", "engine.kind=auto"])
        done = run(loaded, Path(folder) / "run")
    wide_console().print(Text(f"all {len(done.ran)} stages work: {done.seconds:.0f} s"))


def _sandbox(made: Landlock | Wasm, *, fresh: bool) -> dict[str, Any]:
    installed = version_of(made.package)
    found: dict[str, Any] = {"kind": made.kind, "package": made.package, "installed": installed}
    result: SelfTest | None = None
    why = "" if installed else f"pip install 'posttrain[{made.extra}]'"
    if installed:
        try:
            quick = made.kind == "landlock"
            result = examine(made, fresh=fresh, note=note) if fresh or quick else None
            result = result or kept_self_test(made)
            why = result.why_not if result else "not tested yet: posttrain doctor --sandbox"
        except SetupError as error:
            why = f"{error.message} ({error.hint})"
        finally:
            made.close()
    return {
        **found,
        "holds": result.holds if result else None,
        "attacks_held": result.held if result else None,
        "attacks": len(ATTACKS),
        "kept": bool(result and result.kept),
        "breaches": dict(result.breaches) if result else {},
        "why_not": why,
    }


def _sandbox_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    held = "" if row["attacks_held"] is None else f"{row['attacks_held']} of {row['attacks']}"
    state = row["why_not"] or ("holds, tested earlier" if row["kept"] else "holds")
    return row["kind"], row["package"], row["installed"] or "", held, state


def _package_cells(package: Mapping[str, Any]) -> tuple[str, ...]:
    installed = package["installed"]
    state = "ok" if package["fits"] else "does not fit" if installed else "not installed"
    return package["name"], package["asked"], installed or "", package["extra"] or "", state


def _package(requirement: Requirement) -> dict[str, Any]:
    installed = version_of(requirement.name)
    marker = str(requirement.marker) if requirement.marker else ""
    extra = marker.partition("extra == ")[2].strip("\"' ") or None
    fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
    return {
        "name": requirement.name,
        "asked": str(requirement.specifier),
        "installed": installed,
        "extra": extra,
        "fits": fits,
    }

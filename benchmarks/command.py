"""The command line that all beds share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import typer

from posttrain.cli import main
from posttrain.errors import RecipeError


def run_bed(command: Callable[..., None]) -> None:
    """Run a bed as a command with the function's options; report errors as `posttrain` does."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.command()(command)
    main(app)


def check_names(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise RecipeError where an option names something that does not exist."""
    names = list(known)
    if unknown := [name for name in given if name not in names]:
        raise RecipeError(
            f"{option}: there is no {unknown[0]!r}",
            hint="one of: " + "; ".join(f"'{name}'" for name in names),
        )

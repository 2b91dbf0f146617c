"""The command line: `posttrain ...`."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

import posttrain
from posttrain.cli import bench, machine, recipes, runs, verify
from posttrain.errors import Interrupted, PosttrainError

# Everything heavier is imported inside the commands: `--help` answers in a tenth of a second.


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("stopped", hint="run the same command again") from None


app = typer.Typer(
    cls=_Commands,
    name="posttrain",
    help="One recipe takes a Llama-family model through judged SFT, online RL and a light DPO.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
recipes.add_to(app)
runs.add_to(app)
machine.add_to(app)
verify.add_to(app)
bench.add_to(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(posttrain.__version__)
        raise typer.Exit()


@app.callback()
def _everything(  # pyright: ignore[reportUnusedFunction]
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main(command: typer.Typer = app) -> None:
    """Run a command line; every failure ends with a line that says what to type next."""
    try:
        command()
    except PosttrainError as error:
        sys.exit(say_failure(error.message, error.hint, error.exit_code))
    except Exception as error:
        sys.exit(say_bug(error))


def say_failure(message: str, hint: str, code: int) -> int:
    """Print the error and, as the last line, what to type next; return the exit code."""
    print(f"error: {message}", file=sys.stderr)
    print(f"next: {hint or 'run the same command again'}", file=sys.stderr)
    return code


def say_bug(error: Exception) -> int:
    """Write a bug's traceback to a file and print where it is."""
    import tempfile
    from pathlib import Path

    from posttrain.pipeline.failure import bug_message, write_crash

    crash = write_crash(Path(tempfile.gettempdir()), "posttrain", error)
    message, hint = bug_message("posttrain", error, crash)
    return say_failure(message, hint, 1)

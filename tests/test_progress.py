from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from posttrain import progress as module
from posttrain.progress import note, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_prints_a_first_and_last_line_and_one_per_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with progress("rl", total=10, stream=out) as bar:
        for _ in range(10):
            clock[0] += 25.0
            bar.advance(1, reward=0.5)
    lines = out.getvalue().splitlines()
    assert lines[0] == "rl: 0/10"
    assert lines[-1] == "rl: 10/10, reward 0.5, 4 min 10 s so far (done)"
    # 250 s of work: lines at 75, 150 and 225 s
    assert [line.split(",")[0] for line in lines[1:-1]] == ["rl: 3/10", "rl: 6/10", "rl: 9/10"]
    assert "about 2 min 55 s left" in lines[1]


def test_progress_says_stopped_on_an_error_and_raises_it() -> None:
    out = io.StringIO()

    def work() -> None:
        with progress("sft", total=2, stream=out) as bar:
            bar.advance()
            raise KeyError("x")

    with pytest.raises(KeyError):
        work()
    assert out.getvalue().splitlines()[-1].startswith("sft: 1/2")
    assert out.getvalue().rstrip().endswith("(stopped)")


def test_progress_on_a_terminal_shows_text_without_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with progress("judge [bold]x[/bold]", total=3, stream=out) as bar:
        bar.advance(3, answer="[red]4[/red]")
        note("[link=evil]text[/link]")
        with progress("inner", total=1, stream=out) as inner:
            inner.advance()
    text = out.getvalue()
    assert "[bold]x[/bold]" in text
    assert "[red]4[/red]" in text
    assert "[link=evil]text[/link]" in text
    assert not module._live


def test_progress_shows_only_on_rank_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with progress("sft", total=1) as bar:
        bar.advance()
    note("hello")
    assert capsys.readouterr() == ("", "")


def test_the_progress_file_holds_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "progress.json"
    monkeypatch.setenv(module.PROGRESS_FILE_VARIABLE, str(target))
    with progress("dpo", total=7, stream=io.StringIO()) as bar:
        bar.advance(3, loss=0.25)
    row = json.loads(target.read_text())
    assert (row["label"], row["done"], row["total"], row["fields"]) == ("dpo", 3, 7, {"loss": 0.25})
    assert list(tmp_path.iterdir()) == [target]


def test_a_progress_file_that_cannot_be_written_does_not_stop_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(module.PROGRESS_FILE_VARIABLE, "/nonexistent/folder/progress.json")
    with progress("dpo", total=1, stream=io.StringIO()) as bar:
        bar.advance()
    assert bar.done == 1

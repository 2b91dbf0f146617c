"""Docker and SandboxFusion: what is asked of them and how their answers are read.

Neither runs here: a stand-in for the docker command, and a server that answers as SandboxFusion
does, are on the other side.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import SetupError
from posttrain.sandbox import SandboxSpec, choose, landlock_main, try_out
from posttrain.sandbox.base import Limits, SandboxFailure
from posttrain.sandbox.remote import Docker, Http

SHORT = Limits(wall_seconds=1.0)

# ---- docker


@pytest.fixture
def docker(tmp_path: Path) -> Docker:
    """A docker command that notes how it was called and runs the rest of the line here."""
    command = tmp_path / "docker"
    command.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        f"open({str(tmp_path / 'calls')!r}, 'a').write(repr(sys.argv[1:]) + '\\n')\n"
        "if sys.argv[1] == 'run':\n"
        "    at = sys.argv.index('IMAGE')\n"
        "    os.execv(sys.executable, [sys.executable, *sys.argv[at + 1:]])\n"
    )
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return Docker(image="IMAGE", program=str(command))


def test_docker_runs_a_program_with_its_input(docker: Docker) -> None:
    run = docker.run("import sys\nprint(sys.stdin.read()[::-1], __name__)", "aé".encode(), Limits())
    assert (run.stdout.decode(), run.exit, run.reason) == ("éa __main__\n", 0, "exit")
    assert docker.run("raise SystemExit(3)", b"", SHORT).exit == 3
    assert docker.run("1 / 0", b"", SHORT).stderr.rstrip().endswith("division by zero")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import time; time.sleep(60)", "timeout"),
        ("import os; os.close(0); os.close(1); os.close(2)\nwhile 1: pass", "timeout"),
        ("while True: print('x' * 1000)", "output"),
        ("raise MemoryError", "memory"),
        ("raise SystemExit(137)", "memory"),
    ],
)
def test_docker_ends_what_goes_too_far(
    docker: Docker, tmp_path: Path, program: str, reason: str
) -> None:
    run = docker.run(program, b"", SHORT)
    assert run.reason == reason
    assert len(run.stdout) <= SHORT.output_bytes
    if reason in ("timeout", "output"):
        # The container is ended by name: it would outlive the command.
        calls = (tmp_path / "calls").read_text().splitlines()
        name = calls[0].split("'--name', '")[1].split("'")[0]
        assert calls[1] == f"['kill', '{name}']"


def test_docker_takes_long_input_that_nobody_reads(docker: Docker) -> None:
    assert docker.run("print('done')", b"x" * 2**21, Limits()).stdout == b"done\n"


def test_what_docker_is_asked_for() -> None:
    limits = Limits(memory_bytes=2**28, files=10)
    command = Docker(image="IMAGE").command("NAME", limits)
    line = " ".join(command[: command.index("IMAGE")])
    for asked in (
        "--network none",
        "--read-only",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--user 65534:65534",
        "--pids-limit 16",
        f"--memory {2**28}b --memory-swap {2**28}b",
        "--ulimit fsize=1048576",
        "nr_inodes=12",
        "--ipc none",
        "--rm",
    ):
        assert asked in line
    assert "--privileged" not in line
    assert "--volume" not in line
    assert command[command.index("IMAGE") + 1] == "-I"


def test_docker_that_fails_of_itself_is_no_verdict(tmp_path: Path) -> None:
    command = tmp_path / "docker"
    command.write_text("#!/bin/sh\necho 'docker: Cannot connect to the daemon.' >&2\nexit 125\n")
    command.chmod(0o755)
    made = Docker(image="IMAGE", program=str(command))
    with pytest.raises(SandboxFailure, match="Cannot connect"):
        made.run("print(1)", b"", SHORT)
    assert "Cannot connect" in try_out(made)


def test_docker_that_is_not_there() -> None:
    made = Docker(image="IMAGE", program="docker-that-is-not-there")
    with pytest.raises(SetupError, match="needs the docker command"):
        made.run("print(1)", b"", SHORT)


# ---- SandboxFusion

Answer = Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes]]


class Fusion:
    """A server on the loopback that answers as it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answer: Answer = fusion_runs_it
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.path, body))
                status, headers, content = outer.answer(body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def says(run_result: Any = None, status: str = "Success", **more: Any) -> Answer:
    value = {"status": status, "message": "", "compile_result": None, "run_result": run_result}
    return lambda _: (200, {}, json.dumps({**value, **more}).encode())


def fusion_runs_it(asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """What SandboxFusion's run_code does, without its isolation."""
    folder = tempfile.mkdtemp()
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", asked["code"]],
            input=asked["stdin"],
            capture_output=True,
            text=True,
            errors="replace",
            cwd=folder,
            check=False,
            timeout=20,
        )
    finally:
        landlock_main.remove(folder)
    return says(
        {
            "status": "Finished",
            "execution_time": 0.01,
            "return_code": done.returncode,
            "stdout": done.stdout,
            "stderr": done.stderr,
        },
        "Success" if done.returncode == 0 else "Failed",
    )(asked)


@pytest.fixture
def fusion() -> Iterator[Fusion]:
    made = Fusion()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_what_is_sent_and_what_comes_back(fusion: Fusion) -> None:
    run = Http(url=fusion.url).run("print(input())", "é\n".encode(), SHORT)
    assert (run.stdout.decode(), run.exit, run.reason, run.seconds) == ("é\n", 0, "exit", 0.01)
    ((path, asked),) = fusion.asked
    assert path == "/run_code"
    assert (asked["language"], asked["stdin"], asked["run_timeout"]) == ("python", "é\n", 1.0)
    assert Http(url=fusion.url).run("raise SystemExit(3)", b"", SHORT).exit == 3


def test_what_fusion_reports_of_limits(fusion: Fusion) -> None:
    made = Http(url=fusion.url)
    fusion.answer = says({"status": "TimeLimitExceeded", "stdout": "x"}, "Failed")
    assert made.run("x", b"", SHORT).reason == "timeout"
    said = {"status": "Finished", "return_code": 0, "stdout": "x" * 100_000, "stderr": ""}
    fusion.answer = says(said)
    run = made.run("x", b"", SHORT)
    assert (run.reason, len(run.stdout)) == ("output", SHORT.output_bytes)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (says(None, "SandboxError", message="no more pods"), "no more pods"),
        (says(None), "no run_result"),
        (says({"status": "Error", "stderr": "exec failed"}), "exec failed"),
        (says({"status": "Dreaming"}), "not known"),
        (says({"status": "Finished", "return_code": None}), "could not run"),
        (lambda _: (200, {}, b"<html>"), "not answer in JSON"),
        (lambda _: (200, {}, b"[1]"), "no object"),
        (lambda _: (500, {}, b"{}"), "500"),
        (lambda _: (302, {"Location": "http://127.0.0.1:1/"}, b""), "redirect"),
        (lambda _: (307, {"Location": "http://127.0.0.1:1/"}, b""), "redirect|307"),
    ],
)
def test_answers_that_decide_nothing(fusion: Fusion, answer: Answer, why: str) -> None:
    fusion.answer = answer
    with pytest.raises(SandboxFailure, match=why):
        Http(url=fusion.url).run("print(1)", b"", SHORT)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(SandboxFailure, match="refused"):
        Http(url="http://127.0.0.1:1").run("print(1)", b"", SHORT)


@pytest.mark.parametrize("url", ["", "file:///etc/passwd", "ftp://host", "http://me:pw@host", "x"])
def test_urls_that_are_not_asked(url: str) -> None:
    with pytest.raises(SetupError, match=r"sandbox\.url must be"):
        Http(url=url)
    with pytest.raises(ValueError, match="kind"):
        SandboxSpec.model_validate({"kind": "http"})


def test_proxies_of_the_environment_are_not_used(
    fusion: Fusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert Http(url=fusion.url).run("print(1)", b"", SHORT).stdout == b"1\n"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the attacks are for POSIX")
def test_a_server_without_isolation_is_refused(fusion: Fusion) -> None:
    """Its self-test is the same battery."""
    spec = SandboxSpec(kind="http", url=fusion.url)
    with pytest.raises(SetupError, match=r"http: \d+ of \d+ attacks held; through: files"):
        choose(spec)

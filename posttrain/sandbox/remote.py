"""Sandboxes that something else provides: Docker containers, and a SandboxFusion server.

`docker` starts a container for each candidate, without network, rights or a writable root; each run
takes a few hundred milliseconds. `http` speaks the JSON of SandboxFusion's `POST /run_code`: the
server's own isolation is what holds. Only the recipe's URL is asked; redirects are refused, and
proxies of the environment are not used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import secrets
import selectors
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from posttrain.errors import SetupError
from posttrain.sandbox.base import Limits, Reason, Run, SandboxFailure, reason_of

# Reads the length of the program and the program from stdin, and leaves the rest to the program.
_BOOTSTRAP = (
    "import os,sys\n"
    "def take(n):\n"
    "    data = b''\n"
    "    while len(data) < n:\n"
    "        more = os.read(0, n - len(data))\n"
    "        if not more: sys.exit('the program was cut')\n"
    "        data += more\n"
    "    return data\n"
    "text = take(int(take(12))).decode('utf-8', 'surrogatepass')\n"
    "sys.argv[:] = ['program.py']\n"
    "exec(compile(text, 'program.py', 'exec'), {'__name__': '__main__'})\n"
)
_FOLDER_BYTES = 16 * 2**20
_GRACE_SECONDS = 30.0
_LONGEST_ANSWER = 16 * 2**20


class Docker:
    """See `Sandbox`."""

    kind = "docker"
    slow_start = ""

    def __init__(self, *, image: str, program: str = "docker") -> None:
        self.image = image
        self._program = program

    @property
    def fingerprint(self) -> str:
        """Return the image and a hash of the command line."""
        command = " ".join(self.command("NAME", Limits())) + _BOOTSTRAP
        return f"docker {self.image} {hashlib.sha256(command.encode()).hexdigest()[:16]}"

    def command(self, name: str, limits: Limits) -> list[str]:
        """Return the command line of one run."""
        memory = f"{limits.memory_bytes}b"
        return [
            self._program,
            *("run", "--rm", "--interactive", "--name", name),
            *("--network", "none", "--read-only", "--cap-drop", "ALL"),
            *("--security-opt", "no-new-privileges", "--user", "65534:65534"),
            *("--pids-limit", "16", "--memory", memory, "--memory-swap", memory, "--cpus", "1"),
            *("--ulimit", f"fsize={limits.file_bytes}", "--ulimit", "core=0"),
            *("--ulimit", "nofile=64:64", "--ipc", "none", "--log-driver", "none"),
            # The home of the run; noexec, of a size, and with so many inodes at most.
            "--tmpfs",
            f"/home:rw,noexec,nosuid,nodev,size={_FOLDER_BYTES},nr_inodes={limits.files + 2},"
            "mode=1777",
            *("--workdir", "/home", "--entrypoint", "python3"),
            *(self.image, "-I", "-c", _BOOTSTRAP),
        ]

    def run(self, program: str, stdin: bytes, limits: Limits) -> Run:
        """See `Sandbox.run`."""
        if _find(self._program) is None:
            raise SetupError(
                "the docker sandbox needs the docker command", hint="install Docker, or take auto"
            )
        text = program.encode("utf-8", "surrogatepass")
        name = f"posttrain-{secrets.token_hex(8)}"
        # Our own process waits longer than the program may take: a container has to start first.
        started = time.monotonic()
        process = subprocess.Popen(
            self.command(name, limits),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            sent = f"{len(text):012d}".encode() + text + stdin
            stdout, stderr, why = _exchange(process, sent, limits)
        finally:
            if process.poll() is None:
                self._kill(name)
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        said = stderr.decode(errors="replace")
        status = process.returncode
        # 125 to 127 are docker's own; a program can end with them too, but says nothing of docker.
        if not why and status in (125, 126, 127) and said.startswith("docker:"):
            raise SandboxFailure(said.strip()[:300])
        seconds = time.monotonic() - started
        if not why and status == 137:
            return Run(stdout=stdout, stderr=said, exit=-9, reason="memory", seconds=seconds)
        return Run(
            stdout=stdout,
            stderr=said,
            exit=None if why else status,
            reason="timeout" if why == "timeout" else "output" if why else reason_of(status, said),
            seconds=seconds,
        )

    def close(self) -> None:
        """See `Sandbox.close`: nothing is kept."""

    def _kill(self, name: str) -> None:
        subprocess.run([self._program, "kill", name], capture_output=True, check=False, timeout=30)


def _exchange(
    process: subprocess.Popen[bytes], sent: bytes, limits: Limits
) -> tuple[bytes, bytes, str]:
    """Feed and read a process; return what it said, and which limit ended it, if one did."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = bytearray(), bytearray()
    view = memoryview(sent)
    deadline = time.monotonic() + limits.wall_seconds + 1.0
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdin, selectors.EVENT_WRITE)
        ready.register(process.stdout, selectors.EVENT_READ)
        ready.register(process.stderr, selectors.EVENT_READ)
        while len(ready.get_map()) > (1 if not view.nbytes else 0) or view.nbytes:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return bytes(out), bytes(err), "timeout"
            for key, _ in ready.select(remaining):
                if key.fileobj is process.stdin:
                    try:
                        view = view[os.write(key.fd, view[: 1 << 16]) :]
                    except BrokenPipeError:
                        view = view[:0]
                    if not view.nbytes:
                        ready.unregister(process.stdin)
                        process.stdin.close()
                    continue
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    ready.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    out += chunk
                    if len(out) > limits.output_bytes:
                        return bytes(out[: limits.output_bytes]), bytes(err), "output"
                else:
                    err = (err + chunk)[-limits.output_bytes :]
            if not any(key.fileobj is not process.stdin for key in ready.get_map().values()):
                break
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return bytes(out), bytes(err), "timeout"
    return bytes(out), bytes(err), ""


@functools.cache
def _find(program: str) -> str | None:
    return shutil.which(program)


# ---- SandboxFusion


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str):
        raise SandboxFailure(f"the sandbox server redirects to {newurl}, which is not followed")


class Http:
    """See `Sandbox`."""

    kind = "http"
    slow_start = ""

    def __init__(self, *, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise SetupError(
                f"sandbox.url must be http://HOST:PORT, not {url!r}",
                hint="--set sandbox.url=http://localhost:8080",
            )
        self._url = url.rstrip("/") + "/run_code"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())

    @property
    def fingerprint(self) -> str:
        """Return a hash of the URL: what runs behind it is not known."""
        return f"http {hashlib.sha256(self._url.encode()).hexdigest()[:16]}"

    def run(self, program: str, stdin: bytes, limits: Limits) -> Run:
        """See `Sandbox.run`."""
        asked: dict[str, Any] = {
            "code": program,
            "language": "python",
            "stdin": stdin.decode("utf-8", "surrogateescape"),
            "run_timeout": limits.wall_seconds,
            "compile_timeout": limits.wall_seconds,
            "memory_limit_MB": limits.memory_bytes >> 20,
            "files": {},
            "fetch_files": [],
        }
        request = urllib.request.Request(
            self._url,
            data=json.dumps(asked).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=limits.wall_seconds + _GRACE_SECONDS) as answer:
                body = answer.read(_LONGEST_ANSWER + 1)
        except OSError as error:
            raise SandboxFailure(f"{self._url}: {error}"[:300]) from error
        if len(body) > _LONGEST_ANSWER:
            raise SandboxFailure("the sandbox server's answer is too long")
        try:
            found = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise SandboxFailure(f"the sandbox server does not answer in JSON: {error}") from error
        return _read(found, limits)

    def close(self) -> None:
        """See `Sandbox.close`: nothing is kept."""


def _read(found: Any, limits: Limits) -> Run:
    """Return the run in SandboxFusion's answer: status Success, Failed or SandboxError."""
    if not isinstance(found, dict):
        raise SandboxFailure("the sandbox server's answer is no object")
    answer = cast(Mapping[str, Any], found)
    result = cast(Mapping[str, Any] | None, answer.get("run_result"))
    if answer.get("status") == "SandboxError" or not isinstance(result, dict):
        message = str(answer.get("message") or "no run_result")
        raise SandboxFailure(f"the sandbox server failed: {message}"[:300])
    status, code = result.get("status"), result.get("return_code")
    if status not in ("Finished", "Error", "TimeLimitExceeded"):
        raise SandboxFailure(f"the sandbox server says {status!r}, which is not known")
    stdout = str(result.get("stdout") or "").encode("utf-8", "surrogatepass")
    stderr = str(result.get("stderr") or "")
    reason: Reason
    if status == "TimeLimitExceeded":
        reason, code = "timeout", None
    elif status == "Error" or type(code) is not int:
        raise SandboxFailure(f"the sandbox server could not run it: {stderr}"[:300])
    elif len(stdout) > limits.output_bytes:
        reason = "output"
    else:
        reason = reason_of(code, stderr)
    return Run(
        stdout=stdout[: limits.output_bytes],
        stderr=stderr[-limits.output_bytes :],
        exit=code,
        reason=reason,
        seconds=float(result.get("execution_time") or 0.0),
    )

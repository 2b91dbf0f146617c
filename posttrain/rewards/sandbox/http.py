"""Sandbox `http`: a SandboxFusion server runs the programs; its own isolation is what holds.

Speaks the JSON of SandboxFusion's `POST /run_code`. Only the recipe's URL is asked; redirects are
refused, and proxies of the environment are not used.
"""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from posttrain.errors import EnvironmentFault
from posttrain.rewards.sandbox.base import Limits, Reason, Run, SandboxFailure, reason_of

_GRACE_SECONDS = 30.0
_LONGEST_ANSWER = 16 * 2**20


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str):
        raise SandboxFailure(f"the sandbox server redirects to {newurl}, which is not followed")


class Http:
    """See `Sandbox`."""

    kind = "http"

    def __init__(self, *, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise EnvironmentFault(
                f"sandbox.url must be http://HOST:PORT, not {url!r}",
                hint="--set sandbox.url=http://localhost:8080",
            )
        self._url = url.rstrip("/") + "/run_code"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())

    @property
    def fingerprint(self) -> str:
        """The URL: what runs behind it is not known."""
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
    """A Run from SandboxFusion's answer: status Success, Failed or SandboxError."""
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

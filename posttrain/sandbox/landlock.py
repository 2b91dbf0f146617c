"""Sandbox `landlock`: sandlock's Landlock rules and seccomp filters, on Linux, without root.

Inside one sandlock sandbox a warmed-up Python forks a fresh process for each candidate, and that
process enters a further Landlock domain with only its own folder in it. Where posttrain runs as
root, all of it, sandlock's supervisor included, runs as a user that nobody else is.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.sandbox.base import Limits, Run, SandboxFailure, reason_of
from posttrain.sandbox.helpers import Helper, Helpers, num_helpers
from posttrain.sandbox.places import check_installed, scratch_dir, unused_id, version_of
from posttrain.sandbox.runtime import runtime

PACKAGE = "sandlock"
_PROGRAMS = ("landlock_main.py", "landlock_zygote.py")
_START_SECONDS = 60.0
_NO_LIMIT = 10**9

# What Landlock does not cover and sandlock leaves open: owner, mode, times and attributes of any
# file of the same user, and the limits and priority of other processes of the same user.
_DENIED_SYSCALLS = (
    *("listen", "accept", "accept4"),
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("utime", "utimes", "futimesat", "utimensat"),
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
    *("prlimit64", "setrlimit", "setpriority", "ioprio_set"),
    *("sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"),
    *("add_key", "request_key", "keyctl", "mq_open", "mq_unlink"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Restrictions on a candidate; when tests weaken one, the self-test must notice."""

    readable: tuple[str, ...] = ("/dev/null", "/dev/urandom")
    """Besides the runtime."""
    writable: tuple[str, ...] = ()
    """Besides the candidate's own folder."""
    nested: bool = True
    """True if each candidate enters a domain of its own."""
    sockets: bool = False
    """True if sockets can be made; not by a filter of sandlock's: see landlock_zygote."""
    net_allow: tuple[str, ...] = ()
    net_allow_bind: tuple[str, ...] = ()
    processes: int | None = 1
    """At once, the candidate included."""
    denied_syscalls: tuple[str, ...] = _DENIED_SYSCALLS
    disabled: tuple[str, ...] = ()
    """Names of sandlock.Protection."""
    no_coredump: bool = True
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    limited: tuple[str, ...] = (
        "memory",
        "cpu",
        "file_size",
        "core",
        "open_files",
        "files",
        "wall",
        "output",
    )
    """Limits that are held."""
    drop_root: bool = True


class Landlock:
    """See `Sandbox`."""

    kind = "landlock"
    slow_start = ""
    package = "sandlock"
    extra = "sandbox"

    def __init__(self, profile: Profile | None = None, *, most: int | None = None) -> None:
        self._profile = profile or Profile()
        self._helpers = Helpers(self._start, most=most or num_helpers())

    @property
    def fingerprint(self) -> str:
        """Return the package's version and a hash of the profile and its programs."""
        parts = [json.dumps(dataclasses.asdict(self._profile), sort_keys=True)]
        parts += [Path(__file__).with_name(name).read_text() for name in _PROGRAMS]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        return f"sandlock {version_of(self.package)} {digest}"

    def run(self, program: str, stdin: bytes, limits: Limits) -> Run:
        """See `Sandbox.run`."""
        held = self._profile.limited
        request = {
            "program": program,
            "stdin": base64.b64encode(stdin).decode(),
            "wall_seconds": limits.wall_seconds if "wall" in held else _NO_LIMIT,
            "output_bytes": limits.output_bytes if "output" in held else _NO_LIMIT,
        }
        # Set from outside for each run, so any helper will do for it.
        with self._helpers.one(dataclasses.replace(limits, output_bytes=0)) as helper:
            # The helper gives a zygote that does not answer some seconds, and starts another.
            answer = helper.ask(request, limits.wall_seconds + _START_SECONDS)
        if "failure" in answer:
            raise SandboxFailure(str(answer["failure"])[:300])
        exit_status, why, stderr = answer["exit"], answer["why"], answer["stderr"]
        return Run(
            stdout=base64.b64decode(answer["stdout"]),
            stderr=stderr,
            exit=exit_status,
            reason=reason_of(exit_status, stderr) if why == "exit" else why,
            seconds=answer["seconds"],
        )

    def close(self) -> None:
        """See `Sandbox.close`."""
        self._helpers.close()

    def _start(self, limits: Limits) -> Helper:
        check_installed(PACKAGE, kind=self.kind, distribution=self.package, extra=self.extra)
        profile = self._profile
        spec = importlib.util.find_spec(PACKAGE)
        assert spec is not None
        assert spec.origin is not None
        copy = runtime(os.path.dirname(spec.origin))
        scratch = scratch_dir()
        user = unused_id() if profile.drop_root else None
        if user is not None:
            os.chown(scratch, user, user)
        settings = {
            "user": user,
            "scratch": str(scratch),
            "runtime": str(copy.folder),
            "loader": str(copy.loader),
            "zygote": Path(__file__).with_name("landlock_zygote.py").read_text(),
            "profile": {
                **dataclasses.asdict(profile),
                "rlimits": _rlimits(profile, limits, user),
                "files": limits.files if "files" in profile.limited else _NO_LIMIT,
            },
        }
        program = Path(__file__).with_name("landlock_main.py")
        try:
            return Helper(program, settings, start_seconds=_START_SECONDS, scratch=scratch)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def _rlimits(profile: Profile, limits: Limits, user: int | None) -> dict[str, int]:
    """Return the limits that the kernel itself holds, by `resource`'s names."""
    found = {
        "memory": {"RLIMIT_AS": limits.memory_bytes},
        # Of one process: a guard for candidates that outlive whoever would end them.
        "cpu": {"RLIMIT_CPU": int(limits.wall_seconds) + 2},
        "file_size": {"RLIMIT_FSIZE": limits.file_bytes},
        "core": {"RLIMIT_CORE": 0},
        "open_files": {"RLIMIT_NOFILE": 64},
    }
    held = {key: most for name in profile.limited for key, most in found.get(name, {}).items()}
    if user is not None:
        # Threads too; by user, so only where the user is nobody else's.
        held["RLIMIT_NPROC"] = 64
    return held

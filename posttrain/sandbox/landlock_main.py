"""The helper process of the landlock sandbox; started by path, imports nothing of posttrain.

One line of JSON in, one out. The first line holds the settings. As root it becomes a user that
nobody is before any sandbox is made, so that sandlock's own supervisor is not root either. Then
each line is a run: `{program, stdin, wall_seconds, output_bytes}`.
"""

# sandlock ships no types.
# pyright: basic

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import sys
import time

PR_SET_DUMPABLE = 4
# A zygote is given up before its own CPU time, mostly forks, comes near a candidate's limit.
CPU_SHARE_OF_A_ZYGOTE = 0.5
SECONDS_OF_GRACE = 3.0


class Zygote:
    """One sandbox with a process inside that forks candidates."""

    def __init__(self, sandlock, settings: dict, folder: str) -> None:
        self.folder = folder
        os.mkdir(folder)
        runtime = settings["runtime"]
        profile = settings["profile"]
        sandbox = sandlock.Sandbox(
            fs_readable=[runtime, settings["loader"], *profile["readable"]],
            fs_writable=[folder, *profile["writable"]],
            net_allow=profile["net_allow"],
            net_allow_bind=profile["net_allow_bind"],
            max_processes=profile["processes"] and profile["processes"] + 1,
            extra_deny_syscalls=profile["denied_syscalls"],
            disable=[getattr(sandlock.Protection, name) for name in profile["disabled"]],
            no_coredump=profile["no_coredump"],
            clean_env=True,
            env={
                # -P -s -S stand for -I, which would ignore this: outcomes must not hang on the
                # order of a set.
                "PYTHONHASHSEED": "0",
                "LD_LIBRARY_PATH": os.path.join(runtime, "lib"),
                "HOME": folder,
                "LC_ALL": "C.UTF-8",
                **profile["environment"],
            },
            cwd=folder,
        )
        # Not the guard packages and not the other runs.
        folders = [os.path.join(runtime, "bin"), os.path.join(runtime, "lib")]
        zygote = {
            "runs": folder,
            "guard": os.path.join(runtime, "guard"),
            "readable": [*folders, settings["loader"], *profile["readable"]],
            **{name: profile[name] for name in ("files", "sockets", "nested", "writable")},
        }
        modes = sandlock.sandbox.StdioMode
        command = [
            os.path.join(runtime, "bin", "python3"),
            *("-P", "-s", "-S", "-B"),
            "-c",
            settings["zygote"],
            json.dumps(zygote),
        ]
        self.process = sandbox.popen(command, modes.PIPED, modes.PIPED, modes.PIPED)
        self.cpu_seconds = 0.0
        self.buffer = b""
        for name, most in profile["rlimits"].items():
            resource.prlimit(self.process.pid, getattr(resource, name), (most, most))
        line = self.read_line(time.monotonic() + 20.0)
        if line != "ready":
            said = self.process.stderr.read(4000).decode(errors="replace") if line == "" else ""
            self.close()
            raise RuntimeError(f"Python does not start in the sandbox: {said.strip()[-300:]}")

    def read_line(self, deadline: float) -> str | None:
        """The next line; None past the deadline, empty when the process is gone."""
        while b"\n" not in self.buffer:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([self.process.stdout], [], [], remaining)[0]:
                return None
            chunk = os.read(self.process.stdout.fileno(), 4096)
            if not chunk:
                return ""
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.decode()

    def run(self, name: str, wall_seconds: float) -> str | None:
        """The zygote's line about one run; None or empty when it is of no more use."""
        try:
            self.process.stdin.write(f"{name} {wall_seconds}\n".encode())
        except OSError:
            return ""
        return self.read_line(time.monotonic() + wall_seconds + SECONDS_OF_GRACE)

    def close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self.process.kill()
            self.process.wait(5.0)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()
        # What is left goes with the scratch folder.
        with contextlib.suppress(OSError):
            remove(self.folder)


def become(user: int | None) -> None:
    """Give up root for good."""
    if user is None:
        return
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    # A process that changed its user cannot be looked at by its own children's supervisor.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    if os.getresuid() != (user,) * 3 or os.getresgid() != (user,) * 3 or os.getgroups():
        raise RuntimeError("could not give up root")


def remove(folder: str) -> None:
    """Delete a folder however deep it is nested: what is below is first moved up."""
    try:
        shutil.rmtree(folder)
        return
    except FileNotFoundError:
        return
    except (OSError, RecursionError):
        pass
    for number in range(1_000_000):
        deeper = [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        if not deeper:
            break
        for path in deeper:
            os.chmod(path, 0o700)
            for count, entry in enumerate(list(os.scandir(path))):
                if entry.is_dir(follow_symlinks=False):
                    # A folder that is moved must be writable.
                    os.chmod(entry.path, 0o700)
                    os.rename(entry.path, os.path.join(folder, f"up-{number}-{count}"))
                else:
                    os.unlink(entry.path)
            os.rmdir(path)
    shutil.rmtree(folder, ignore_errors=True)


def excerpt(path: str, most: int, *, end: bool) -> tuple[bytes, bool]:
    """At most so many bytes of a file, from its start or its end, and whether it had more."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if end and size > most:
            file.seek(size - most)
        return file.read(most), size > most


def serve(zygote: Zygote, name: str, request: dict) -> tuple[dict, bool]:
    """One run; the answer, and whether the zygote can serve another."""
    folder = os.path.join(zygote.folder, name)
    os.makedirs(os.path.join(folder, "home"))
    program = request["program"].encode("utf-8", "surrogatepass")
    stdin = base64.b64decode(request["stdin"])
    for file_name, data in (
        ("program", program),
        ("stdin", stdin),
        ("stdout", b""),
        ("stderr", b""),
    ):
        with open(os.path.join(folder, file_name), "wb") as file:
            file.write(data)
    line = zygote.run(name, request["wall_seconds"])
    if not line:
        return {"failure": "the sandbox was lost during the run"}, False
    why, status, seconds, cpu_seconds = line.split()
    most = request["output_bytes"]
    stdout, more_out = excerpt(os.path.join(folder, "stdout"), most, end=False)
    stderr, _ = excerpt(os.path.join(folder, "stderr"), most, end=True)
    remove(folder)
    answer = {
        "why": "output" if more_out and why == "exit" else why,
        "exit": int(status),
        "seconds": float(seconds),
        "stdout": base64.b64encode(stdout).decode(),
        "stderr": stderr.decode(errors="replace"),
    }
    return answer, float(cpu_seconds) < CPU_SHARE_OF_A_ZYGOTE


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def answer(message: dict) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    settings = json.loads(sys.stdin.readline())
    try:
        import sandlock
        import sandlock.sandbox

        become(settings["user"])
        os.umask(0o077)
        number = 0
        zygote = Zygote(sandlock, settings, os.path.join(settings["scratch"], "z0"))
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": True})
    for line in sys.stdin:
        # One line, one answer, whatever happens.
        request = json.loads(line)
        number += 1
        try:
            if zygote is None:
                folder = os.path.join(settings["scratch"], f"z{number}")
                zygote = Zygote(sandlock, settings, folder)
            reply, good = serve(zygote, f"r{number}", request)
        except Exception as error:
            reply, good = {"failure": f"{type(error).__name__}: {error}"}, False
        if not good and zygote is not None:
            zygote.close()
            zygote = None
        answer(reply)
    if zygote is not None:
        zygote.close()
    remove(settings["scratch"])


if __name__ == "__main__":
    main()

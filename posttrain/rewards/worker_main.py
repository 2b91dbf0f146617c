"""The program of a warm process: one JSON request a line in, one JSON answer a line out.

argv: the module that answers, its memory limit in bytes, and the descriptor of the socket on which
the parent asks for workers.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Load the module, then fork a worker for every connection that the parent hands over."""
    name, memory_limit, descriptor = sys.argv[-3:]
    control = socket.socket(fileno=int(descriptor))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Children that end are reaped by the system.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    try:
        module = importlib.import_module(name)
        module.load_worker()
    except Exception as error:
        _say(control, {"error": f"{type(error).__name__}: {error}"})
        return
    gc.freeze()
    _say(control, {"ready": name})
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            try:
                pid = os.fork()
            except OSError as error:
                _say(control, {"error": str(error)})
                continue
            if pid == 0:
                control.close()
                _serve(connection, module.answer_request, int(memory_limit))
                os._exit(0)
        _say(control, {"pid": pid})


def _serve(
    connection: socket.socket, answer: Callable[[dict[str, Any]], Any], memory_limit: int
) -> None:
    """Answer requests until the connection ends."""
    for what, most in (
        (resource.RLIMIT_AS, memory_limit),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        # Some systems refuse a limit; the wall limit still holds.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (most, resource.getrlimit(what)[1]))
    for line in connection.makefile("rb"):
        request = json.loads(line)
        # Should the parent be gone, a hanging request still ends, with the process.
        signal.alarm(int(request["seconds"]) + 2)
        try:
            reply = {"value": answer(request)}
        except (Exception, SystemExit) as error:
            kind = "out_of_memory" if isinstance(error, MemoryError) else "verifier_failed"
            reply = {"error": f"{type(error).__name__}: {error}", "kind": kind}
        signal.alarm(0)
        _say(connection, reply)


def _say(connection: socket.socket, reply: dict[str, Any]) -> None:
    connection.sendall(json.dumps(reply).encode() + b"\n")

"""Runs inside the sandbox and forks a fresh process for each candidate; started by landlock_main.

argv: JSON `{runs, guard, files, sockets, nested, readable, writable}`: the folder of runs, that of
the guard packages, the most files in a candidate's folder, whether sockets may be made, whether
candidates enter a domain of their own, and what they may read and write there besides their folder.
stdin: one run a line, `NAME WALL_SECONDS`. stdout, a line for each: `WHY STATUS SECONDS
CPU_SECONDS`, where CPU_SECONDS is this process's own so far.

What a candidate says and is told goes through files that only the candidate's process opens, so
that this process, whose memory later candidates get a copy of, never sees it. A candidate enters a
further Landlock domain of its own: from there it can neither signal nor trace this process.
"""

# pyright: basic

from __future__ import annotations

import json
import os
import signal
import sys
import time

# What most candidates import: loaded once here instead of once in each.
WARM = "typing re math collections json itertools functools heapq string random bisect operator"
TICK_SECONDS = 0.02


def main() -> None:
    """Serve runs until the input ends."""
    settings = json.loads(sys.argv[1])
    sys.path.append(settings["guard"])
    import sandlock

    for name in WARM.split():
        __import__(name)
    sys.path.remove(settings["guard"])
    if not settings["sockets"]:
        deny_sockets()
    for name in (
        "PYTHONHASHSEED",
        "LD_LIBRARY_PATH",
        "HOME",
        "LC_ALL",
        "PATH",
        "USER",
        "TERM",
        "LANG",
    ):
        os.environ.pop(name, None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while line := sys.stdin.readline():
        name, wall_seconds = line.split()
        started = time.monotonic()
        child = fork(started + 5.0)
        if child == 0:
            try:
                become_candidate(sandlock, os.path.join(settings["runs"], name), settings)
            finally:
                os._exit(86)
        home = os.path.join(settings["runs"], name, "home")
        why, status = watch(child, started + float(wall_seconds), home, settings["files"])
        cpu = time.process_time()
        sys.stdout.write(f"{why} {status} {time.monotonic() - started:.6f} {cpu:.3f}\n")
        sys.stdout.flush()


def deny_sockets() -> None:
    """Make socket() fail here and in every candidate; socketpair() stays.

    sandlock mediates connect, sendto and the like, but a stream socket that connects by sending
    with MSG_FASTOPEN passes its rules and those of Landlock. A filter of its own for socket cannot
    be had, so this is one, in classic BPF: seccomp(2), `struct sock_filter`.
    """
    import ctypes
    import platform
    import struct

    # AUDIT_ARCH_* of linux/audit.h and __NR_socket.
    architecture, number = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}[
        platform.machine()
    ]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    kill, refuse, allow = 0x80000000, 0x00050000 | 1, 0x7FFF0000
    instructions = [
        (load, 0, 0, 4),
        (equal, 1, 0, architecture),
        (give, 0, 0, kill),
        (load, 0, 0, 0),
        # Numbers of the x32 ABI, which would be others for the same calls.
        (at_least, 1, 0, 0x40000000),
        (equal, 0, 1, number),
        (give, 0, 0, refuse),
        (give, 0, 0, allow),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in instructions))
    program = ctypes.create_string_buffer(
        struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(code))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    # PR_SET_NO_NEW_PRIVS, then PR_SET_SECCOMP with SECCOMP_MODE_FILTER.
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "sockets could not be denied")


def fork(deadline: float) -> int:
    """Fork; the candidate before may not have been taken off the sandbox's count yet."""
    while True:
        try:
            return os.fork()
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)


def watch(child: int, deadline: float, home: str, most_files: int) -> tuple[str, int]:
    """Wait for the end of a candidate; end it when it takes too long or makes too many files."""
    while True:
        remaining = deadline - time.monotonic()
        signal.sigtimedwait({signal.SIGCHLD}, max(0.0, min(TICK_SECONDS, remaining)))
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            why = "files" if too_many(home, most_files) else "exit"
            return why, os.waitstatus_to_exitcode(status)
        why = "timeout" if remaining <= 0 else "files" if too_many(home, most_files) else ""
        if why:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            return why, os.waitstatus_to_exitcode(status)


def too_many(folder: str, most: int) -> bool:
    """Whether more than the allowed number of files and folders lie in a folder."""
    count, folders = 0, [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    count += 1
                    if count > most:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except FileNotFoundError:
            continue
        except PermissionError:
            # chmod is denied, but a folder can be made closed; count it and leave it.
            continue
        except OSError:
            # A path too long to list.
            return True
    return False


def become_candidate(sandlock, folder: str, settings: dict) -> None:
    """Turn this process into the candidate of a run and run it; does not return."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    opened = os.open(folder + "/program", os.O_RDONLY)
    with os.fdopen(opened, encoding="utf-8", errors="surrogatepass") as file:
        program = file.read()
    for name, descriptor, flags in (
        ("stdin", 0, os.O_RDONLY),
        ("stdout", 1, os.O_WRONLY | os.O_APPEND),
        ("stderr", 2, os.O_WRONLY | os.O_APPEND),
    ):
        os.dup2(os.open(f"{folder}/{name}", flags), descriptor)
    os.closerange(3, 4096)
    os.chdir(folder + "/home")
    if settings["nested"]:
        writable = [folder + "/home", *settings["writable"]]
        sandlock.confine(
            sandlock.Sandbox(fs_readable=settings["readable"], fs_writable=writable),
        )
    for name in [name for name in sys.modules if name.partition(".")[0] in ("sandlock", "ctypes")]:
        del sys.modules[name]
    run_as_main(program)


def run_as_main(program: str) -> None:
    """Run a program's text as `python program.py` would, and end the process with its status."""
    import types

    main = types.ModuleType("__main__")
    builtins = sys.modules["builtins"]
    main.__dict__["__builtins__"] = builtins
    # What `site` adds for people, programs use too.
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    sys.modules["__main__"] = main
    sys.argv[:] = ["program.py"]
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    status = 0
    try:
        exec(compile(program, "program.py", "exec", dont_inherit=True), main.__dict__)
    except SystemExit as end:
        status = leave(end)
    except BaseException:
        import traceback

        status = 1
        try:
            traceback.print_exc()
        except BaseException:
            status = 1
    finish(status)


def leave(end: SystemExit) -> int:
    """Exit status that Python would end with."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    sys.stderr.write(f"{end.code}\n")
    return 1


def finish(status: int) -> None:
    """Flush, run what the candidate left for the end, and end."""
    import atexit
    import threading

    try:
        # Waits for threads, as Python's own end does.
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
    except BaseException:
        status = status or 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            status = status or 120
    os._exit(status)


if __name__ == "__main__":
    main()

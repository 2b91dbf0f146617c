"""Attacks with and on processes: starting some, and touching those that are there."""

from __future__ import annotations

from posttrain.rewards.sandbox.attacks.attack import Attack, attacks

PROCESSES: tuple[Attack, ...] = attacks(
    "processes",
    {
        "fork": """
pid = os.fork()
if pid == 0: os._exit(0)
os.waitpid(pid, 0)
breach()
""",
        "fork_raw": """
pid = syscall("clone", 17, 0, 0, 0, 0)
if pid == 0: os._exit(0)
breach()
""",
        "fork_bomb": """
import time
children = []
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        time.sleep(0.2)
        os._exit(0)
    children.append(pid)
breach(len(children))
""",
        "daemon": """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        breach()
    os._exit(0)
""",
        "shell": """
import subprocess
if subprocess.run("echo through", shell=True, capture_output=True).stdout: breach()
""",
        "spawn": """
os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {}), 0)
breach()
""",
        "exec_shell": "os.execv('/bin/sh', ['sh', '-c', 'echo BREACH'])",
        "exec_memfd": """
fd = os.memfd_create("x")
os.write(fd, b"#!/bin/sh\\necho BREACH\\n")
os.execve(fd, ["x"], {})
""",
        "system": """
if os.system("true") == 0: breach()
""",
        "multiprocessing": """
import multiprocessing
process = multiprocessing.get_context("fork").Process(target=print)
process.start()
process.join()
breach()
""",
        "thread_flood": """
import threading
threading.stack_size(65536)
stop, started = threading.Event(), 0
try:
    for _ in range(3000):
        threading.Thread(target=stop.wait, daemon=True).start()
        started += 1
        if started == 2500: breach()
finally:
    stop.set()
""",
        "signal_victim": "os.kill(site['victim'], 0); breach()",
        "signal_parent": "os.kill(os.getppid(), 0); breach()",
        "signal_group": """
import signal
os.killpg(os.getpgid(os.getppid()), 0)
breach()
""",
        "signal_pidfd": """
import signal
signal.pidfd_send_signal(os.pidfd_open(site["victim"]), 0)
breach()
""",
        "ptrace_victim": """
syscall("ptrace", 0x4206, site["victim"], 0, 0)
breach()
""",
        "ptrace_parent": """
syscall("ptrace", 0x4206, os.getppid(), 0, 0)
breach()
""",
        "read_parent_memory": """
import ctypes
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
here = ctypes.create_string_buffer(8)
# A forked process has its parent's addresses; elsewhere there is nothing at this one.
there = Vector(id(None), 8)
mine = Vector(ctypes.addressof(here), 8)
syscall("process_vm_readv", os.getppid(), ctypes.byref(mine), 1, ctypes.byref(there), 1, 0)
breach()
""",
        "take_parent_descriptor": """
syscall("pidfd_getfd", os.pidfd_open(os.getppid()), 1, 0)
breach()
""",
        "limits_of_parent": """
import resource
now = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, now)
breach()
""",
        "priority_of_parent": """
os.setpriority(os.PRIO_PROCESS, os.getppid(), os.getpriority(os.PRIO_PROCESS, os.getppid()))
breach()
""",
        "affinity_of_parent": """
os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0))
breach()
""",
        "inherited_descriptors": """
for fd in range(3, 256):
    for use in (lambda: os.write(fd, b"x"), lambda: os.pread(fd, 1, 0)):
        try:
            use()
        except OSError:
            continue
        breach(fd)
""",
        "environment": "if any(CANARY in value for value in os.environ.values()): breach()",
    },
)

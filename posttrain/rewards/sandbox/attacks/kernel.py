"""Attacks on the kernel's own interfaces, and on what later candidates get."""

from __future__ import annotations

from posttrain.rewards.sandbox.attacks.attack import Attack, attacks

_PRIVILEGED = {
    "mount": """
import ctypes
here = os.getcwd().encode()
syscall("mount", b"none", here, b"tmpfs", 0, 0)
ctypes.CDLL(None).umount2(here, 2)
breach()
""",
    "chroot": "os.chroot('.'); breach()",
    "become_root": """
was = os.getuid()
os.setuid(0)
if was != 0: breach()
""",
    "become_other": "os.setresuid(65533, 65533, 65533); breach()",
    "bpf": """
import ctypes, struct
# An array map of one entry.
asked = ctypes.create_string_buffer(struct.pack("IIII", 2, 4, 4, 1) + bytes(56))
syscall("bpf", 0, asked, 72)
breach()
""",
    "hostname": """
import socket
socket.sethostname(socket.gethostname())
breach()
""",
    "niceness": "os.nice(-5); breach()",
    "clock": "import time; time.clock_settime(time.CLOCK_REALTIME, time.time()); breach()",
}

KERNEL: tuple[Attack, ...] = (
    *attacks(
        "kernel",
        {
            "user_namespace": 'syscall("unshare", 0x10000000); breach()',
            "io_uring": """
import ctypes
syscall("io_uring_setup", 4, ctypes.create_string_buffer(120))
breach()
""",
            "userfaultfd": 'syscall("userfaultfd", 1); breach()',
            "perf": """
import ctypes, struct
attribute = ctypes.create_string_buffer(struct.pack("IIQ", 1, 112, 0) + bytes(96))
ctypes.memmove(ctypes.addressof(attribute) + 40, struct.pack("Q", 0x60), 8)
syscall("perf_event_open", attribute, 0, -1, -1, 0)
breach()
""",
            "keyring": 'syscall("keyctl", 0, -3, 1); breach()',
            "add_key": 'syscall("add_key", b"user", b"posttrain", b"x", 1, -3); breach()',
            "shared_memory": """
syscall("shmctl", syscall("shmget", 0, 4096, 0o1600), 0, 0)
breach()
""",
            "message_queue": """
syscall("msgctl", syscall("msgget", 0, 0o1600), 0, 0)
breach()
""",
            "semaphores": """
syscall("semctl", syscall("semget", 0, 1, 0o1600), 0, 0)
breach()
""",
            "personality": 'syscall("personality", 0x0040000); breach()',
        },
    ),
    *(
        Attack(name=name, family="kernel", body=body, privileged=True)
        for name, body in _PRIVILEGED.items()
    ),
)

TRACES: tuple[Attack, ...] = (
    Attack(
        name="file_left",
        family="traces",
        first="open('left', 'w').write('x')",
        body="if os.path.exists('left') or os.listdir('.'): breach()",
    ),
    Attack(
        name="module_left",
        family="traces",
        first="import json; json.loads = lambda text: {}; import builtins; builtins.left = 1",
        body="import builtins\nif hasattr(builtins, 'left') or not site: breach()",
    ),
    Attack(
        name="neighbour_read",
        family="traces",
        first="open('left', 'w').write(CANARY)",
        body="""
# The folders beside its own: those of other runs.
for folder, _, names in os.walk(os.path.dirname(os.path.dirname(os.getcwd()))):
    for name in names:
        path = os.path.join(folder, name)
        if not path.startswith(os.getcwd()) and open(path, "rb") is not None: breach(path)
""",
    ),
)

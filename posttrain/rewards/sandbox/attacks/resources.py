"""Attacks on memory, time, disk and output; each stops by itself well before it hurts."""

from __future__ import annotations

from posttrain.rewards.sandbox.attacks.attack import Attack, attacks

RESOURCES: tuple[Attack, ...] = attacks(
    "resources",
    {
        "memory": """
held = []
for _ in range(12):
    held.append(bytearray(64 * 2**20))
breach()
""",
        "memory_mmap": """
import mmap
held = [mmap.mmap(-1, 64 * 2**20) for _ in range(12)]
breach()
""",
        "memory_raised": """
import resource
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
held = [bytearray(64 * 2**20) for _ in range(12)]
breach()
""",
        "memory_files": """
held = [os.memfd_create(str(n)) for n in range(12)]
for fd in held:
    for _ in range(64):
        if os.write(fd, bytes(2**20)) < 2**20: raise SystemExit
breach()
""",
        "spin": """
import time
end = time.monotonic() + site["wall_seconds"] + 4
while time.monotonic() < end: pass
breach()
""",
        "sleep": "import time; time.sleep(site['wall_seconds'] + 4); breach()",
        "deaf": """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
time.sleep(site["wall_seconds"] + 4)
breach()
""",
        "spin_in_c": """
import time
end = time.monotonic() + site["wall_seconds"] + 4
while time.monotonic() < end: sum(range(10**7))
breach()
""",
        "stdout_flood": """
for _ in range(64):
    os.write(1, b"x" * 2**17)
""",
        "stderr_flood": """
for _ in range(64):
    os.write(2, b"x" * 2**17)
""",
        "big_file": """
with open("big", "wb", buffering=0) as file:
    for _ in range(32): assert file.write(bytes(2**20)) == 2**20
if os.path.getsize("big") >= 32 * 2**20: breach()
""",
        "sparse_file": """
with open("sparse", "wb") as file: file.truncate(2**33)
breach()
""",
        "fallocate": """
with open("reserved", "wb") as file: os.posix_fallocate(file.fileno(), 0, 32 * 2**20)
breach()
""",
        "many_files": """
for number in range(4000): os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY))
breach()
""",
        "many_folders": """
for number in range(4000): os.mkdir(str(number))
breach()
""",
        "many_links": """
for number in range(4000): os.symlink("x", str(number))
breach()
""",
        "deep_folders": """
for number in range(4000):
    os.mkdir("d")
    os.chdir("d")
breach()
""",
        "closed_folders": """
os.mkdir("closed")
for number in range(4000): os.mkdir(f"closed/{number}", 0)
breach()
""",
        "many_descriptors": """
held = []
for _ in range(2000): held.append(os.open("/dev/null", os.O_RDONLY))
breach()
""",
        "many_pipes": """
held = [os.pipe() for _ in range(1000)]
breach()
""",
    },
)

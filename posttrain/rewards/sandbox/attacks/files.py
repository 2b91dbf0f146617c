"""Attacks on files outside the candidate's folder, and on /proc, /sys and /dev."""

from __future__ import annotations

from posttrain.rewards.sandbox.attacks.attack import Attack, attacks

FILES: tuple[Attack, ...] = attacks(
    "files",
    {
        "read": "if CANARY in open(site['secret']).read(): breach()",
        "read_raw": """
import ctypes
fd = syscall("openat", -100, site["secret"].encode(), 0)
if CANARY.encode() in os.read(fd, 100): breach()
""",
        "read_openat2": """
import ctypes, struct
how = ctypes.create_string_buffer(struct.pack("QQQ", 0, 0, 0))
fd = syscall("openat2", -100, site["secret"].encode(), how, ctypes.c_size_t(24))
if CANARY.encode() in os.read(fd, 100): breach()
""",
        "read_dotdot": "if CANARY in open('../' * 40 + site['secret']).read(): breach()",
        "read_symlink": """
os.symlink(site["secret"], "link")
if CANARY in open("link").read(): breach()
""",
        "read_hardlink": """
os.link(site["own_file"], "hard")
if CANARY in open("hard").read(): breach()
""",
        "read_chdir": """
os.chdir(site["outside"])
if CANARY in open("secret").read(): breach()
""",
        "read_dir_fd": """
fd = os.open("/", os.O_PATH)
inner = os.open(site["secret"].lstrip("/"), os.O_RDONLY, dir_fd=fd)
if CANARY.encode() in os.read(inner, 100): breach()
""",
        "read_mmap": """
import mmap
with open(site["secret"], "rb") as file:
    if CANARY.encode() in mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[:]: breach()
""",
        "read_sendfile": """
fd, own = os.open(site["secret"], os.O_RDONLY), os.open("own", os.O_RDWR | os.O_CREAT)
os.sendfile(own, fd, 0, 100)
if CANARY.encode() in os.pread(own, 100, 0): breach()
""",
        "list_outside": "if os.listdir(site['outside']): breach()",
        "list_home": "if os.listdir(site['home']): breach()",
        "read_etc": "if open('/etc/passwd').read(): breach()",
        "read_packages": "if open(site['package_file'], 'rb').read(1): breach()",
        "write": "open(site['outside'] + '/new', 'w').write('x'); breach()",
        "overwrite": "open(site['victim_file'], 'w').write('x'); breach()",
        "append": "open(site['victim_file'], 'a').write('x'); breach()",
        "truncate": "os.truncate(site['victim_file'], 0); breach()",
        "delete": "os.unlink(site['outside'] + '/deletable'); breach()",
        "rename_out": """
open("own", "w").write("x")
os.rename("own", site["outside"] + "/renamed")
breach()
""",
        "rename_in": "os.rename(site['outside'] + '/movable', 'mine'); breach()",
        "make_folder": "os.mkdir(site['outside'] + '/folder'); breach()",
        "symlink_out": "os.symlink('/etc', site['outside'] + '/link'); breach()",
        "mkfifo_out": "os.mkfifo(site['outside'] + '/fifo'); breach()",
        "chmod": """
os.chmod(site["own_file"], 0o640)
# WebAssembly's chmod does nothing and says that it did.
if os.stat(site["own_file"]).st_mode & 0o777 == 0o640: breach()
""",
        "utime": "os.utime(site['own_file'], (1, 1)); breach()",
        "xattr": "os.setxattr(site['own_file'], b'user.posttrain', b'x'); breach()",
        "write_tmp": "open(site['tmp_marker'], 'w').write('x'); breach()",
        "write_shm": "open(site['shm_marker'], 'w').write('x'); breach()",
        "write_package": """
import json as package
open(os.path.dirname(package.__file__) + "/posttrain_marker.py", "w").write("x")
os.unlink(os.path.dirname(package.__file__) + "/posttrain_marker.py")
breach()
""",
    },
)

PROC: tuple[Attack, ...] = attacks(
    "proc",
    {
        "self_status": "if 'Uid' in open('/proc/self/status').read(): breach()",
        "self_environ": "if open('/proc/self/environ', 'rb') is not None: breach()",
        "self_maps": "if '[stack]' in open('/proc/self/maps').read(): breach()",
        "self_mem": "open('/proc/self/mem', 'r+b'); breach()",
        "self_fd": "if os.listdir('/proc/self/fd'): breach()",
        "self_root": "if CANARY in open('/proc/self/root' + site['secret']).read(): breach()",
        "self_cwd": """
if CANARY in open('/proc/self/cwd/' + '../' * 40 + site['secret']).read(): breach()
""",
        "parent_cmdline": "if open(f'/proc/{os.getppid()}/cmdline', 'rb').read(): breach()",
        "victim_environ": "if open(f'/proc/{site[\"victim\"]}/environ', 'rb').read(): breach()",
        "list_processes": "if any(n.isdigit() for n in os.listdir('/proc')): breach()",
        "write_oom": "open('/proc/self/oom_score_adj', 'w').write('500'); breach()",
        "sysfs": "if os.listdir('/sys'): breach()",
        "devices": "if len(os.listdir('/dev')) > 5: breach()",
        "tty": "os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY); breach()",
    },
)

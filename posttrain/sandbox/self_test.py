"""Does a sandbox hold on this machine? The whole battery decides; the answer is kept on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from posttrain.sandbox.attacks import ATTACKS, CANARY, Attack
from posttrain.sandbox.base import Limits, Run, Sandbox, SandboxFailure
from posttrain.sandbox.places import kept_dir

LIMITS = Limits(wall_seconds=1.0, memory_bytes=256 * 2**20)
_ORDINARY = "import json, sys; print(json.dumps([sum(map(int, sys.stdin.read().split()))]))"
_PARALLEL = 4
_SECRET_VARIABLE = "POSTTRAIN_SELF_TEST_SECRET"


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTest:
    """Result of the attacks."""

    kind: str
    fingerprint: str
    total: int
    breaches: Mapping[str, str] = field(default_factory=dict[str, str])
    """Attack -> how it got through."""
    broken: str = ""
    """Reason why nothing runs in it at all; empty where an ordinary program does."""
    seconds: float = 0.0
    kept: bool = False
    """True if this was read back instead of found out now."""

    @property
    def holds(self) -> bool:
        return not self.broken and not self.breaches

    @property
    def held(self) -> int:
        return 0 if self.broken else self.total - len(self.breaches)

    @property
    def why_not(self) -> str:
        """Return one line on what is wrong; empty where it holds."""
        if self.broken:
            return self.broken
        names = ", ".join(list(self.breaches)[:5])
        more = f" and {len(self.breaches) - 5} more" if len(self.breaches) > 5 else ""
        return f"{self.held} of {self.total} attacks held; through: {names}{more}" if names else ""


def self_test(sandbox: Sandbox, battery: Sequence[Attack] = ATTACKS) -> SelfTest:
    """Run an ordinary program, then every attack; kept on disk where the whole battery holds."""
    started = time.monotonic()
    broken = _ordinary(sandbox)
    breaches: dict[str, str] = {}
    if not broken:
        with site() as outside, ThreadPoolExecutor(_PARALLEL) as pool:
            one = functools.partial(attempt, sandbox, site=outside.described)
            found = pool.map(one, battery)
            for attack, breach in zip(battery, found, strict=True):
                if breach:
                    breaches[f"{attack.family}.{attack.name}"] = breach
            breaches |= outside.traces()
        # After all of them: whoever broke it for later candidates is caught here.
        broken = _ordinary(sandbox)
    result = SelfTest(
        kind=sandbox.kind,
        fingerprint=sandbox.fingerprint,
        total=len(battery),
        breaches=breaches,
        broken=broken,
        seconds=time.monotonic() - started,
    )
    if result.holds and battery == ATTACKS:
        _file(sandbox).write_text(json.dumps(asdict(result)))
    return result


def kept_self_test(sandbox: Sandbox) -> SelfTest | None:
    """Return an earlier result of the same machine, packages, profile, battery and user."""
    try:
        found: dict[str, Any] = json.loads(_file(sandbox).read_text())
        found["kept"] = True
        return SelfTest(**found)
    except (OSError, ValueError, TypeError):
        return None


def attempt(sandbox: Sandbox, attack: Attack, site: Mapping[str, Any]) -> str:
    """Return how an attack got through; empty where it did not."""
    stdin = json.dumps(site).encode()
    try:
        if attack.first:
            sandbox.run(f"CANARY = {CANARY!r}\n{attack.first}", stdin, LIMITS)
        return judge(sandbox.run(attack.program, stdin, LIMITS))
    except SandboxFailure as failure:
        return f"the sandbox broke: {failure.why}"


def judge(run: Run) -> str:
    """Return what a run shows of an attack that got through."""
    for text in (run.stdout.decode(errors="replace"), run.stderr):
        for line in text.splitlines():
            if line.startswith("BREACH"):
                return f"it said so{line[6:].rstrip()}"
    for stream, size in (("stdout", len(run.stdout)), ("stderr", len(run.stderr))):
        if size > LIMITS.output_bytes:
            return f"{size} bytes of {stream} came back"
    if run.seconds > LIMITS.wall_seconds + 2:
        return f"it ran for {run.seconds:.1f} s"
    return ""


class Site:
    """The outside world as the attacks know it, and what they left there."""

    def __init__(self, folder: Path, described: dict[str, Any]) -> None:
        self.described = described
        self._folder = folder
        self._before = self._state()
        self.visits: list[str] = []

    def _state(self) -> dict[str, tuple[int, int, bytes]]:
        found: dict[str, tuple[int, int, bytes]] = {}
        for path in self._folder.rglob("*"):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[path.name] = (status.st_mode, status.st_uid, content)
        return found

    def traces(self) -> dict[str, str]:
        """Return what changed outside or was reached, whatever the attacks themselves said."""
        found: dict[str, str] = {}
        after = self._state()
        changed = sorted(n for n in self._before | after if self._before.get(n) != after.get(n))
        if changed:
            found["outside.files"] = f"changed: {', '.join(changed)}"
        if self.visits:
            found["outside.network"] = f"reached: {', '.join(sorted(set(self.visits)))}"
        for key in ("tmp_marker", "shm_marker"):
            marker = Path(self.described[key])
            if marker.exists():
                found[f"outside.{key}"] = f"{marker} was written"
                marker.unlink()
        return found


@contextlib.contextmanager
def site() -> Generator[Site]:
    """Make up an outside with a secret, a victim and open doors; gone at the end."""
    token = secrets.token_hex(6)
    # Open to everybody, so that a sandbox is not spared by the rights of files.
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="posttrain-site-")))
        folder.chmod(0o777)
        for name in ("secret", "victim_file", "own_file", "deletable", "movable"):
            (folder / name).write_text(CANARY)
            (folder / name).chmod(0o666)
        os.environ[_SECRET_VARIABLE] = CANARY
        stack.callback(os.environ.pop, _SECRET_VARIABLE, None)
        victim = subprocess.Popen(
            [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
        )
        stack.callback(_end, victim)
        doors = {
            "tcp": _listen(stack, socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "udp": _listen(stack, socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            "unix": _listen(stack, socket.AF_UNIX, socket.SOCK_STREAM, f"{folder}/stream"),
            "unix_datagram": _listen(stack, socket.AF_UNIX, socket.SOCK_DGRAM, f"{folder}/gram"),
        }
        if sys.platform == "linux":
            name = f"\0posttrain-{token}"
            doors["abstract"] = _listen(stack, socket.AF_UNIX, socket.SOCK_STREAM, name)
        for name in ("stream", "gram"):
            (folder / name).chmod(0o777)
        described = {
            "outside": str(folder),
            "secret": str(folder / "secret"),
            "victim_file": str(folder / "victim_file"),
            "own_file": str(folder / "own_file"),
            "package_file": str(Path(__file__)),
            "home": str(Path.home()),
            "tmp_marker": str(Path(tempfile.gettempdir()) / f"posttrain-marker-{token}"),
            "shm_marker": f"/dev/shm/posttrain-marker-{token}",
            "victim": victim.pid,
            "wall_seconds": LIMITS.wall_seconds,
            "tcp": doors["tcp"].getsockname()[1],
            "udp": doors["udp"].getsockname()[1],
            "unix": f"{folder}/stream",
            "unix_datagram": f"{folder}/gram",
            "abstract": f"posttrain-{token}",
            "interfaces": [name for _, name in socket.if_nameindex() if name != "lo"],
        }
        found = Site(folder, described)
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(doors, found.visits, stop), daemon=True)
        watcher.start()
        try:
            yield found
        finally:
            stop.set()
            watcher.join()


def _listen(stack: contextlib.ExitStack, family: int, kind: int, address: Any) -> socket.socket:
    door = stack.enter_context(socket.socket(family, kind))
    door.bind(address)
    if kind == socket.SOCK_STREAM:
        door.listen()
    door.setblocking(False)
    return door


def _watch(doors: Mapping[str, socket.socket], visits: list[str], stop: threading.Event) -> None:
    """Record who comes, and let them in: an attack must not fail because nobody answers."""
    while not stop.wait(0.02):
        for name, door in doors.items():
            with contextlib.suppress(BlockingIOError):
                if door.type == socket.SOCK_STREAM:
                    visitor, _ = door.accept()
                    with visitor, contextlib.suppress(OSError):
                        visitor.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
                else:
                    door.recv(100)
                visits.append(name)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _ordinary(sandbox: Sandbox) -> str:
    """Return why an ordinary program does not run; empty where it does."""
    try:
        run = sandbox.run(_ORDINARY, b"20\n22\n", Limits())
    except SandboxFailure as failure:
        return failure.why
    if not run.ok or run.stdout != b"[42]\n":
        last = run.stderr.strip().rpartition("\n")[2]
        return f"an ordinary program does not run: {run.reason} {run.exit} {last}"[:300]
    return ""


def _file(sandbox: Sandbox) -> Path:
    battery = hashlib.sha256("".join(a.first + a.program for a in ATTACKS).encode()).hexdigest()
    described = [
        sandbox.kind,
        sandbox.fingerprint,
        battery,
        list(platform.uname()),
        sys.version,
        sys.executable,
        os.geteuid(),
        _confinement(),
    ]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    return kept_dir() / f"self-test-{sandbox.kind}-{key}.json"


def _confinement() -> list[str]:
    """Return what already confines this process, a container for example."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return []
    return [line for line in lines if line.startswith(("Cap", "NoNewPrivs", "Seccomp"))]

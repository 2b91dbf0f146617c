"""A sandbox with a protection off: its self-test notices, and `auto` refuses it."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from posttrain.errors import SetupError
from posttrain.sandbox import SandboxSpec, choose, self_test, try_out
from posttrain.sandbox.attacks import ATTACKS, Attack
from posttrain.sandbox.base import Limits, Run, Sandbox
from posttrain.sandbox.landlock import Landlock, Profile
from posttrain.sandbox.wasm import Wasm, WasmProfile

BY_NAME = {f"{a.family}.{a.name}": a for a in ATTACKS}

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="Landlock is part of Linux")


def without(*limits: str) -> Profile:
    return Profile(limited=tuple(name for name in Profile().limited if name not in limits))


LANDLOCK_OFF: dict[str, tuple[Profile, list[str]]] = {
    "reading": (Profile(readable=("/",)), ["files.read", "files.read_etc", "proc.self_status"]),
    "writing": (Profile(readable=("/",), writable=("/",)), ["files.write_tmp"]),
    "own domain": (Profile(nested=False), ["traces.neighbour_read", "processes.signal_parent"]),
    "network": (Profile(sockets=True, net_allow=("*:*",)), ["network.tcp_connect", "network.http"]),
    "udp": (Profile(sockets=True, net_allow=("udp://*:*",)), ["network.udp_send"]),
    "sockets": (Profile(sockets=True), ["network.tcp_fast_open"]),
    "processes": (Profile(processes=None), ["processes.fork", "processes.fork_raw"]),
    "system calls": (Profile(denied_syscalls=()), ["processes.priority_of_parent"]),
    "environment": (
        Profile(environment={"TOKEN": "posttrain-canary-7f3a"}),
        ["processes.environment"],
    ),
    "memory": (without("memory"), ["resources.memory", "resources.memory_mmap"]),
    "wall": (without("wall"), ["resources.sleep"]),
    "output": (without("output"), ["resources.stdout_flood"]),
    "file size": (without("file_size"), ["resources.big_file", "resources.sparse_file"]),
    "files": (without("files"), ["resources.many_links"]),
    "open files": (without("open_files"), ["resources.many_pipes"]),
}


@needs_linux
@pytest.mark.parametrize("protection", LANDLOCK_OFF)
def test_landlock_with_a_protection_off_is_refused(protection: str, landlock: Landlock) -> None:
    profile, attacks = LANDLOCK_OFF[protection]
    battery = [BY_NAME[name] for name in attacks]
    check_is_noticed(Landlock(profile, most=1), battery, protection)
    assert self_test.self_test(landlock, battery).why_not == "", "the whole profile holds them"


WASM_OFF: dict[str, tuple[WasmProfile, list[str]]] = {
    "reading": (WasmProfile(grants=(("/etc", "/etc"),)), ["files.read_etc"]),
    "environment": (
        WasmProfile(environment={"TOKEN": "posttrain-canary-7f3a"}),
        ["processes.environment"],
    ),
    "memory": (WasmProfile(memory=False), ["resources.memory"]),
    "wall": (WasmProfile(wall=False), ["resources.sleep"]),
    "output": (WasmProfile(output=False), ["resources.stdout_flood"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("protection", WASM_OFF)
def test_wasm_with_a_protection_off_is_refused(protection: str) -> None:
    profile, attacks = WASM_OFF[protection]
    check_is_noticed(Wasm(profile, most=1), [BY_NAME[name] for name in attacks], protection)


def check_is_noticed(made: Sandbox, battery: list[Attack], protection: str) -> None:
    # A busy machine must not end an attack before it is through; the wall's own is about time.
    seconds = self_test.LIMITS.wall_seconds if protection == "wall" else 20.0
    limits = dataclasses.replace(self_test.LIMITS, wall_seconds=seconds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_test, "LIMITS", limits)
        try:
            found = self_test.self_test(made, battery)
        finally:
            made.close()
    assert not found.holds
    assert {f"{a.family}.{a.name}" for a in battery} <= set(found.breaches), protection


@needs_linux
def test_auto_goes_on_to_the_next_and_refuses_when_none_is_left(landlock: Landlock) -> None:
    def open_door() -> Landlock:
        return Landlock(Profile(readable=("/",)), most=4)

    with pytest.raises(SetupError, match=r"no sandbox holds here.*landlock: \d+ of") as told:
        choose(SandboxSpec(), auto=(open_door,))
    assert "pip install 'posttrain[sandbox]'" in told.value.hint
    assert told.value.exit_code == 3
    said: list[str] = []
    chosen = choose(SandboxSpec(), auto=(open_door, lambda: landlock), note=said.append)
    assert chosen is landlock
    with pytest.raises(SetupError, match="no sandbox holds here"):
        choose(SandboxSpec(), auto=())


def test_there_is_no_way_without_a_sandbox() -> None:
    with pytest.raises(ValueError, match="kind"):
        SandboxSpec.model_validate({"kind": "subprocess"})


class Absent(Landlock):
    """As on a machine whose kernel has no Landlock."""

    @property
    def fingerprint(self) -> str:
        return "absent"

    def run(self, program: str, stdin: bytes, limits: Limits) -> Run:
        raise SetupError("the landlock sandbox needs sandlock", hint="pip install it")


def test_a_sandbox_that_cannot_be_had_says_why() -> None:
    assert try_out(Absent()) == "the landlock sandbox needs sandlock (pip install it)"
    with pytest.raises(SetupError, match="needs sandlock"):
        choose(SandboxSpec(), auto=(Absent,))

"""What only Linux has is used only where it is: a stand-in for macOS, which cannot be tried here."""

import ctypes
import os
import re
import resource
import sys
from pathlib import Path

import pytest
import torch

from lib.base import machine
from lib.base.params import ROOT
from lib.kernels import native
from lib.report import resolve

CPU = torch.device("cpu")
LINUX_ONLY = re.compile(r"/proc/|/sys/|sched_getaffinity|ru_maxrss|mallopt|os\.fork|[\"']fork[\"']|prctl|epoll|memfd")
GUARDED = {"lib/base/machine.py", "lib/kernels/native.py"}  # each use is held below


@pytest.fixture
def macos(monkeypatch, tmp_path):
    """A machine without /proc, /sys, mallopt and affinity, whose g++ is a clang without OpenMP."""
    exists = Path.exists
    monkeypatch.setattr(
        "pathlib.Path.exists", lambda self, **options: self.parts[1:2] not in (("proc",), ("sys",)) and exists(self)
    )
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.processor", lambda: "arm")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    load = ctypes.CDLL
    monkeypatch.setattr("ctypes.CDLL", lambda name, *given: object() if name is None else load(name, *given))
    compiler = tmp_path / "clang"
    compiler.write_text("#!/bin/sh\necho \"clang: error: unsupported option '-fopenmp'\" >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(native, "COMPILER", str(compiler))
    caches = (native._loaded, native.libraries, native.function, native.keep_freed_memory)
    for one in caches:
        one.cache_clear()
    yield
    for one in caches:
        one.cache_clear()


def test_a_machine_without_what_linux_has(macos, monkeypatch, tmp_path, capsys):
    assert 0 < machine.free_memory(CPU) < 2**50
    assert machine.device_name(CPU) == f"arm, {torch.get_num_threads()} threads"
    before, peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, machine.peak_memory()
    assert before <= peak < 2 * before
    native.keep_freed_memory()
    assert native.libraries() == () and "could not compile native.cpp, forward.cpp" in native.why_slower()
    monkeypatch.setattr("lib.base.params.OUTPUTS", tmp_path)
    params = resolve.resolve(ROOT / "params" / "smoke.yaml", "smoke")
    assert "GB of memory" in resolve.announcement(params)
    assert "so torch does the work of compiled loops" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS counts bytes")
def test_memory_is_counted_in_bytes_on_linux():
    before, peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, machine.peak_memory()
    assert before <= peak < 2 * before


def test_only_guarded_modules_use_what_linux_alone_has():
    modules = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("lib/**/*.py")}
    assert {name for name, code in modules.items() if LINUX_ONLY.search(code)} == GUARDED

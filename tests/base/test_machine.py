"""What only Linux has is used only where it is: a stand-in for macOS, which cannot be tried here."""

import ctypes
import importlib
import os
import re
import resource
import sys
from pathlib import Path

import pytest
import torch

import lib
from lib.base import machine
from lib.base.params import ROOT, read_params
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


@pytest.mark.parametrize(("rank", "expected"), [(None, 0), ("1", 1), ("5", 1)])
def test_each_process_has_a_gpu_or_shares_one_and_keeps_its_scratch_there(monkeypatch, rank, expected):
    chosen = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    params = read_params(ROOT / "params" / "smoke.yaml")
    assert machine.device_of(params) == torch.device("cuda", expected) and chosen == [torch.device("cuda", expected)]
    assert machine.device_of(params.model_copy(update={"device": "cpu"})) == CPU and len(chosen) == 1


@pytest.mark.parametrize("given", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_gpus_memory_grows_in_segments_unless_its_user_says_otherwise(monkeypatch, given):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv(given, "max_split_size_mb:64")
    importlib.reload(lib)
    expected = {given: "max_split_size_mb:64"} if given else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert {name: value for name, value in os.environ.items() if name.endswith("ALLOC_CONF")} == expected

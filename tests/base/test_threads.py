"""Every entry lets OpenMP's waiting threads soon sleep, and says so before torch loads OpenMP."""

import os
import subprocess
import sys

import pytest

from lib.base.params import ROOT

WATCHED = """
import os, runpy, sys

class Torch:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            sys.exit(f"torch with {os.environ.get('OMP_WAIT_POLICY')}, {os.environ.get('GOMP_SPINCOUNT')}")

sys.meta_path.insert(0, Torch)
runpy.run_module(sys.argv[1])
"""
ENTRIES = ["lib.collect.passes", "lib.chapters.universality.tables", "bench.machine", "conftest"]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("given, found", [(None, "passive, 2000"), ("active", "active, None")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(entry, given, found):
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    command = [sys.executable, "-c", WATCHED, entry]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.stderr.strip() == f"torch with {found}"

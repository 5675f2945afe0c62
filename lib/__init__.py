"""Kernels and statistics behind the report on universal neurons; the notebooks call these modules."""

import os
import warnings

# Threads that wait sleep, so that two runs share the cores. OpenMP reads this when torch loads it; it also means
# GOMP_SPINCOUNT=0 and KMP_BLOCKTIME=0.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm falls back to plain text, which is wanted

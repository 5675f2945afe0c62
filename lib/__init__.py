"""Kernels and statistics behind the report on universal neurons; the notebooks call these modules."""

import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm falls back to plain text, which is wanted

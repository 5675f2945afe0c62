"""Kernels and statistics behind the report on universal neurons; the notebooks call these modules."""

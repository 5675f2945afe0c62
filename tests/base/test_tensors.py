"""Tensors that are written one at a time are the file that safetensors writes at once."""

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lib.base.tensors import NAMES, read_tensors, write_tensors


def test_the_file_is_that_of_safetensors(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"of {kind}": (torch.rand(3, 5, generator=generator) * 9).to(kind) for kind in NAMES}
    tensors |= {"number": torch.tensor(7), "none": torch.zeros(0, 4), "turned": torch.rand(4, 3).T}
    write_tensors(tmp_path / "own", tensors, {"names": "über"})
    save_file({name: one.contiguous() for name, one in tensors.items()}, tmp_path / "theirs", {"names": "über"})
    found = read_tensors(tmp_path / "own")
    torch.testing.assert_close(found, read_tensors(tmp_path / "theirs"), rtol=0, atol=0)
    assert {name: one.dtype for name, one in found.items()} == {name: one.dtype for name, one in tensors.items()}
    with safe_open(tmp_path / "own", "pt") as file:
        assert file.metadata() == {"names": "über"}
    assert (tmp_path / "own").read_bytes() == (tmp_path / "theirs").read_bytes()

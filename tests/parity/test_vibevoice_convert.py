"""`latentlm convert --from vibevoice`: what loads afterwards is what the importer reads."""

import pytest
import torch
from tiny_vibevoice import build, save

import latentlm
from latentlm.interop import vibevoice
from latentlm.interop.convert import Conversion, convert


@pytest.mark.parametrize("tied", [False, True])
def test_converted_equals_imported(tmp_path, tied):
    folder = save(build(tied=tied), tmp_path / "theirs")
    expected = vibevoice.load(folder)
    convert(Conversion(str(folder)), tmp_path / "ours", "vibevoice")
    found = latentlm.load(tmp_path / "ours")
    assert found.tokenizers.keys() == expected.tokenizers.keys()
    pairs = [(found.tokenizers[name], expected.tokenizers[name]) for name in ("speech", "semantic")]
    for ours, theirs in ((found.model, expected.model), *pairs):
        tensors = ours.state_dict()
        assert all(torch.equal(tensors[name], value) for name, value in theirs.state_dict().items())
    assert found.model.config == expected.model.config

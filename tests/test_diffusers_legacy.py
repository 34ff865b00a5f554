"""Folders of DiTs as they were released, under the name of a class that diffusers has split since."""

from __future__ import annotations

import json

import pytest
import torch

import featlens
from featlens.errors import UsageError

diffusers = pytest.importorskip("diffusers")

SIZE = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 2,
    "out_channels": 4,
    "num_layers": 1,
    "sample_size": 4,
    "num_embeds_ada_norm": 5,
}
ONCE = {"norm_type": "ada_norm_zero", "double_self_attention": False, "num_vector_embeds": None}


@pytest.fixture
def folder(tmp_path):
    diffusers.DiTTransformer2DModel(**SIZE).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ONCE | {"_class_name": "Transformer2DModel"}))
    return tmp_path


def test_a_released_dit_is_loaded_as_what_it_is(folder):
    model = featlens.load(folder)
    assert type(model.network).__name__ == "DiTTransformer2DModel"
    assert model.num_labels == 5
    labels = torch.tensor([0, 4])
    assert model(torch.zeros(2, 2, 4, 4), torch.ones(2), labels).shape == (2, 2, 4, 4)


def test_another_transformer_of_that_name_is_not(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_type": "layer_norm"}))
    with pytest.raises(UsageError, match="Transformer2DModel is not among the networks"):
        featlens.load(folder)

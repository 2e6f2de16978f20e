# SPDX-License-Identifier: Apache-2.0
"""The MLP against layers written out, and its options against the schema."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tzgen.config.options import fields_match, options
from tzgen.modules.mlp import MLP, MLPOptions, xavier_init
from tzgen.protos import module_pb2


def test_is_linear_norm_activation_dropout() -> None:
    mlp = MLP(3, hidden_units=[4, 2], dropout_ratio=[0.5], activation="nn.Tanh", use_ln=True)
    kinds = [type(layer).__name__ for layer in mlp.layers]
    assert kinds == ["Linear", "LayerNorm", "Tanh", "Dropout"] * 2
    assert mlp.output_dim == 2
    mlp.eval()
    x = torch.randn(5, 3)
    want = x
    for at in (0, 4):
        linear = mlp.layers[at]
        want = F.linear(want, linear.weight, linear.bias)
        want = torch.tanh(F.layer_norm(want, (linear.out_features,)))
    torch.testing.assert_close(mlp(x), want)


def test_batch_norm_takes_any_leading_shape_and_drops_the_bias() -> None:
    mlp = MLP(3, hidden_units=[4], use_bn=True, activation="")
    assert mlp.layers[0].bias is None
    x = torch.randn(2, 5, 3)
    flat = F.linear(x.view(10, 3), mlp.layers[0].weight)
    want = F.batch_norm(flat, None, None, training=True)
    torch.testing.assert_close(mlp(x).view(10, 4), want)


@pytest.mark.parametrize(
    ("ratios", "want"), [((), []), ((0.3,), [0.3, 0.3]), ((0.1, 0.2), [0.1, 0.2])]
)
def test_dropout_for_none_all_or_each(ratios: tuple[float, ...], want: list[float]) -> None:
    mlp = MLP(3, hidden_units=[4, 5], dropout_ratio=ratios)
    assert [layer.p for layer in mlp.layers if isinstance(layer, nn.Dropout)] == want


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_units": []}, "hidden_units is empty"),
        ({"dropout_ratio": [0.1, 0.2, 0.3]}, "3 dropout ratios for 2"),
        ({"use_bn": True, "use_ln": True}, "one norm"),
    ],
)
def test_refuses(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(3, **{"hidden_units": [4, 5], **change})


def test_options_are_the_schema() -> None:
    assert fields_match(MLPOptions, module_pb2.MLP.DESCRIPTOR) == []
    message = module_pb2.MLP(hidden_units=[6, 5], bias=False)
    mlp = MLP.from_options(3, options(MLPOptions, message))
    assert [type(layer).__name__ for layer in mlp.layers] == ["Linear", "ReLU"] * 2
    assert mlp.layers[0].bias is None


def test_xavier_init() -> None:
    layer = nn.Linear(200, 100)
    layer.apply(xavier_init)
    bound = (6 / 300) ** 0.5
    assert not layer.bias.any()
    assert 0.95 * bound < layer.weight.abs().max() <= bound

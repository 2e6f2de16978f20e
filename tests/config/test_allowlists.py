# SPDX-License-Identifier: Apache-2.0
"""Names that a config may call: read by a parser, never evaluated, and all of them torch's."""

from __future__ import annotations

import inspect

import pytest
import torch

from tzgen.config.allowlists import (
    ACTIVATIONS,
    CHOICES,
    INITIALIZERS,
    Call,
    choices_for,
    parse_activation,
    parse_init_fn,
)
from tzgen.errors import UserError


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("nn.ReLU", Call("ReLU", {})),
        ("ReLU", Call("ReLU", {})),
        ("torch.nn.SiLU", Call("SiLU", {})),
        ("Dice", Call("Dice", {})),
        (" nn.LeakyReLU(0.1) ", Call("LeakyReLU", {"negative_slope": 0.1})),
        ("nn.LeakyReLU,negative_slope=0.2", Call("LeakyReLU", {"negative_slope": 0.2})),
        ("nn.GELU()", Call("GELU", {})),
    ],
)
def test_activations(text: str, call: Call) -> None:
    assert parse_activation(text) == call


def test_no_activation() -> None:
    assert parse_activation("") is None


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("nn.init.uniform_,a=-0.01,b=0.01", Call("uniform_", {"a": -0.01, "b": 0.01})),
        ("nn.init.uniform_, a=-1e-2, b=.01", Call("uniform_", {"a": -0.01, "b": 0.01})),
        ("normal_(0, 0.02)", Call("normal_", {"mean": 0.0, "std": 0.02})),
        ("torch.nn.init.xavier_uniform_", Call("xavier_uniform_", {})),
        ("nn.init.constant_,val=3", Call("constant_", {"val": 3.0})),
    ],
)
def test_initializers(text: str, call: Call) -> None:
    assert parse_init_fn(text) == call


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nn.Relu", "did you mean 'ReLU'"),
        ("nn.Linear", "unknown name"),
        ("__import__('os').system('x')", "unknown name"),
        ("nn.LeakyReLU(slope=1)", "no argument 'slope'"),
        ("nn.ReLU(1)", "at most 0 arguments"),
        ("nn.LeakyReLU(open)", "expected a number"),
        ("nn.LeakyReLU(1,negative_slope=2)", "given twice"),
        ("nn.ReLU x", "cannot read"),
        ("3", "expected a name"),
    ],
)
def test_activation_refusals(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_activation(text)
    assert said.lower() in str(caught.value).lower()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nn.init.unifrm_", "'uniform_'"),
        ("nn.init.uniform_,c=1", "no argument 'c'"),
        ("nn.init.constant_", "val is missing"),
        ("nn.init.uniform_,a=x", "expected a number"),
        ("lambda t: t", "unknown name"),
        ("", "expected a name"),
    ],
)
def test_initializer_refusals(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_init_fn(text)
    assert said in str(caught.value)


def test_names_and_parameters_are_torchs() -> None:
    for name, arity in ACTIVATIONS.items():
        if name != "Dice":
            known = list(inspect.signature(getattr(torch.nn, name)).parameters)
            assert set(arity.names) <= set(known), name
            getattr(torch.nn, name)()  # every parameter has a default
    for name, arity in INITIALIZERS.items():
        known = list(inspect.signature(getattr(torch.nn.init, name)).parameters)
        assert tuple(known[1 : 1 + len(arity.names)]) == arity.names, name


def test_choices_name_fields_of_the_schema() -> None:
    from tzgen.config.schema import messages_of

    known = messages_of()
    for key in CHOICES:
        message, field = key.split(".")
        owners = known.values() if message == "*" else [known[message]]
        assert any(field in owner.fields_by_name for owner in owners), key
    assert choices_for("IdFeature", "pooling") == ("sum", "mean")
    assert choices_for("IdFeature", "feature_name") is None

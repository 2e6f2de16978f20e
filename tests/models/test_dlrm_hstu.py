# SPDX-License-Identifier: Apache-2.0
"""DlrmHSTU: values against loops over users, groups as they arrive, invariances, config checks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from dense_hstu import User, dense_transducer
from google.protobuf import text_format
from hstu_configs import INTERLEAVE, PARAMETERIZED, VARIANTS, WATCHTIME, hstu, preprocessor
from hstu_model import SIZES, WIDTHS, config, groups, logits, model, people

from tzgen.embeddings import Groups, Ragged
from tzgen.errors import UserError
from tzgen.models.dlrm_hstu import DlrmHSTU
from tzgen.models.hstu_options import hstu_options
from tzgen.protos import model_pb2


@pytest.mark.parametrize("name", ["production", "interleaved", "mtgr", "paper", "watch times"])
def test_matches_the_loop_over_users(name: str) -> None:
    built = model(config(VARIANTS[name]))
    users = people()
    options = hstu_options(VARIANTS[name])
    out = built(groups(users))
    parts = []
    for user in users:
        state = dense_transducer(built.transducer, options, user)
        parts.append(built.tower(state, built.item_mlp(user.candidates)))
    for task in ("click", "kind"):
        want = torch.cat([part[task] for part in parts])
        torch.testing.assert_close(out.logits[task], want, rtol=1e-9, atol=1e-9)
    assert out.repeat.tolist() == [count for _, count in SIZES]
    assert out.logits["click"].shape == (10,) and out.logits["kind"].shape == (10, 3)


@pytest.mark.parametrize("name", ["production", "interleaved", "parameterized", "mtgr", "paper"])
def test_every_parameter_learns(name: str) -> None:
    built = model(config(VARIANTS[name]))
    out = logits(built, people())
    (out * torch.randn_like(out)).sum().backward()
    for which, parameter in built.named_parameters():
        assert parameter.grad is not None, which
        assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), which


@pytest.mark.parametrize("name", ["production", "interleaved", "mtgr"])
def test_candidates_and_rows_are_independent(name: str) -> None:
    built = model(config(VARIANTS[name]))
    users = people()
    before = logits(built, users)
    order = [4, 2, 0, 1, 3]
    parts = before.split([count for _, count in SIZES])
    shuffled = logits(built, [users[index] for index in order])
    torch.testing.assert_close(
        shuffled, torch.cat([parts[index] for index in order]), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(logits(built, users[:1]), parts[0], rtol=0, atol=1e-12)
    users[0].candidates[1] += 5.0
    changed = ~torch.isclose(before, logits(built, users), rtol=0, atol=1e-12).all(1)
    assert changed.nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("name", ["production", "interleaved", "parameterized", "mtgr", "paper"])
def test_a_batch_without_rows_or_without_candidates_trains(name: str) -> None:
    """A rank may get no rows at all; its gradients are zeros, so that ranks stay in step."""
    built = model(config(VARIANTS[name]))
    for users in (people([(0, 0)]), people([(3, 0), (0, 0)])):
        given = groups(users)
        if len(users) == 1:  # cut the only row off: nothing is left
            given["contextual"] = given["contextual"][:0]
            for key, value in given.items():
                if isinstance(value, Ragged):
                    given[key] = Ragged(value.values, value.lengths[:0], 0)
        built.zero_grad()
        out = built(given)
        assert out.logits["click"].shape == (0,) and out.logits["kind"].shape == (0, 3)
        sum(logit.sum() for logit in out.logits.values()).backward()
        for which, parameter in built.named_parameters():
            assert parameter.grad is not None and not parameter.grad.any(), which


def test_newest_first_histories_are_turned_around() -> None:
    """The same numbers from flipped columns; candidates keep their order, newest request first."""
    users = people()
    straight = model(config())
    turned = model(config(extra="sequence_timestamp_is_ascending: false"))
    want = straight(groups(users)).logits["click"]
    flipped = []
    for user in users:
        flipped.append(
            User(
                uih=user.uih.flip(0),
                times=user.times[::-1],
                candidates=user.candidates.flip(0),
                candidate_times=user.candidate_times[::-1],
                contextual=user.contextual,
                actions=user.actions[::-1],
                watchtimes=user.watchtimes[::-1],
            )
        )
    got = turned(groups(flipped)).logits["click"].split([count for _, count in SIZES])
    torch.testing.assert_close(torch.cat([part.flip(0) for part in got]), want)


def test_concatenated_contextual_features_are_one_token() -> None:
    widths = {**WIDTHS, "contextual": (5, 3)}
    built = model(config(extra="concat_contextual_features: true"), widths)
    assert built.transducer.preprocessor.contextual_weight.shape == (1, 8, 8)
    assert logits(built, people()).shape == (10, 4)


def test_without_contextual_group() -> None:
    widths = {name: width for name, width in WIDTHS.items() if name != "contextual"}
    built = model(config(), widths)
    assert built.transducer.preprocessor.contextual_len == 0
    users = people()
    want = logits(built, users)
    for user in users:
        user.contextual = torch.zeros(2, 4)
    assert torch.equal(logits(built, users), want)


EXPERTS = {
    "mmoe": "mmoe { num_expert: 2 expert_mlp { hidden_units: 5 } }",
    "ple": """ple { extraction_networks { network_name: "a" expert_num_per_task: 1 share_num: 1
                task_expert_net { hidden_units: 5 } share_expert_net { hidden_units: 5 } } }""",
}


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_between_the_fused_vector_and_the_tasks(name: str) -> None:
    made = config()
    text_format.Merge(EXPERTS[name], made.dlrm_hstu.fusion_mtl_tower)
    assert problems(made, WIDTHS) == ""
    built = model(made)
    users = people()
    out = built(groups(users))
    fused = built.transducer(built.events(groups(users))) * built.item_mlp(
        torch.cat([user.candidates for user in users])
    )
    first, second = built.tower.experts(fused)
    torch.testing.assert_close(out.logits["click"], built.tower.heads[0](first)[:, 0])
    torch.testing.assert_close(out.logits["kind"], built.tower.heads[1](second))


def test_channel_name_replaces_uih() -> None:
    message = hstu(extra='name: "click"')
    built = model(config(message), {"contextual": (4, 4), "click": (4, 2), "candidate": (8,)})
    given = groups(people())
    renamed = {name.replace("uih", "click"): value for name, value in given.items()}
    torch.testing.assert_close(
        built(renamed).logits["click"], model(config())(given).logits["click"]
    )


def test_times_are_read_only_where_something_uses_them() -> None:
    built = model(config(hstu(positions="")))
    given = {k: v for k, v in groups(people()).items() if not k.endswith("timestamp")}
    assert built(given).logits["click"].shape == (10,)
    with pytest.raises(UserError, match=r"uih_timestamp.*expected a JAGGED_SEQUENCE"):
        model(config())(given)


def test_raw_integer_features_beside_nothing_else() -> None:
    built = model(config()).float()
    given = groups(people())
    given["contextual"] = torch.ones(5, 8, dtype=torch.int64)
    for name in ("uih", "candidate"):
        given[name] = given[name].with_values(given[name].values.long())
    assert built(given).logits["click"].dtype == torch.float32


BAD_GROUPS: dict[str, tuple[Callable[[Groups], object], str]] = {
    "float times": (
        lambda g: g.update(uih_timestamp=g["uih_timestamp"].with_values(torch.ones(19, 1))),
        r"'uih_timestamp': found torch.float32.*expected one int64 feature",
    ),
    "two features": (
        lambda g: g.update(
            uih_action=g["uih_action"].with_values(torch.ones(19, 2, dtype=torch.int64))
        ),
        r"'uih_action': found torch.int64 of shape \(19, 2\)",
    ),
    "other length": (
        lambda g: g.update(
            uih_action=g["uih_action"].with_values(torch.ones(18, 1, dtype=torch.int64))
        ),
        r"'uih_action' has 18 steps and 'uih' 19",
    ),
    "dense": (lambda g: g.update(candidate=torch.ones(5, 8)), "'candidate': found Tensor"),
    "missing": (lambda g: g.pop("contextual"), "'contextual': found NoneType"),
}


@pytest.mark.parametrize("name", BAD_GROUPS)
def test_groups_that_do_not_fit_are_named(name: str) -> None:
    change, message = BAD_GROUPS[name]
    given = groups(people())
    change(given)
    with pytest.raises(UserError, match=message):
        model(config())(given)


def problems(made: model_pb2.ModelConfig, widths: dict[str, tuple[int, ...]] | None = None) -> str:
    return "\n".join(str(problem) for problem in DlrmHSTU.check(made, widths))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_good_config_has_no_problems(name: str) -> None:
    assert problems(config(VARIANTS[name]), WIDTHS) == ""


def test_groups_follow_the_config() -> None:
    required = {rule.name for rule in DlrmHSTU.required_groups(config().dlrm_hstu) if rule.required}
    assert required == {"uih", "candidate", "uih_action", "uih_timestamp", "candidate_timestamp"}
    bare = config(hstu(positions="", inputs=preprocessor(actions="")))
    required = {rule.name for rule in DlrmHSTU.required_groups(bare.dlrm_hstu) if rule.required}
    assert required == {"uih", "candidate"}
    watch = config(hstu(inputs=preprocessor(actions=WATCHTIME)))
    rules = {rule.name: rule for rule in DlrmHSTU.required_groups(watch.dlrm_hstu)}
    assert rules["uih_watchtime"].required


def test_group_problems() -> None:
    made = config()
    del made.feature_groups[2]
    made.feature_groups[0].group_type = model_pb2.JAGGED_SEQUENCE
    made.feature_groups.add(group_name="extra")
    text = problems(made)
    assert "no group 'candidate'" in text
    assert "feature_groups[0].group_type: found JAGGED_SEQUENCE; expected DEEP or SEQUENCE" in text
    assert "'extra'; expected a group that dlrm_hstu reads: contextual, uih" in text


WRONG = {
    "interleaved mtgr": (hstu(inputs=preprocessor(INTERLEAVE), extra="mtgr {}"), "interleaved"),
    "two norms": (hstu("use_group_norm: true", extra="mtgr {}"), "one norm"),
    "static without mask": (
        hstu(extra="mtgr { timestamp_mask: false realtime_len: 3 }"),
        "realtime_len",
    ),
    "static and stable": (
        hstu("append_stable: true", extra="mtgr { realtime_len: 3 }"),
        "append_stable",
    ),
    "interleaving nothing": (
        hstu(inputs=preprocessor(INTERLEAVE, actions="")),
        "no action_encoder",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_contradictions(name: str) -> None:
    message, text = WRONG[name]
    assert text in problems(config(message))


def test_width_problems() -> None:
    made = config()
    assert "one width" in problems(made, {**WIDTHS, "contextual": (4, 5)})
    assert "width 3 after a history of width 6" in problems(made, {**WIDTHS, "candidate": (3,)})
    made.dlrm_hstu.hstu.CopyFrom(hstu(inputs=preprocessor(mlp=PARAMETERIZED)))
    without = {name: width for name, width in WIDTHS.items() if name != "contextual"}
    assert "content_mlp.parameterized_mlp" in problems(made, without)

# SPDX-License-Identifier: Apache-2.0
"""A config with one broken field is refused by name, or parses; nothing else happens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tzgen.config import parse_pipeline, set_field, validate
from tzgen.config.schema import is_message, join, walk
from tzgen.errors import ConfigError

from .mutations import check_mutations, mutations, problems_of
from .sample import DLRM_HSTU, MMOE

TEXTS = pytest.mark.parametrize("text", [DLRM_HSTU, MMOE], ids=["dlrm_hstu", "mmoe"])


@TEXTS
def test_every_field_deleted_renamed_retyped(text: str) -> None:
    assert check_mutations(text) > 150


def test_the_helper_notices_a_silent_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__package__}.mutations.problems_of", lambda text: [])
    with pytest.raises(AssertionError, match="renamed line"):
        check_mutations(MMOE)


def test_deleting_what_has_no_default_is_said() -> None:
    needed = (
        "num_heads",
        "task_name",
        "max_seq_len",
        "embedding_dim",
        "hidden_units",
        "model_dir",
    )
    for mutation in mutations(DLRM_HSTU):
        if mutation.kind == "deleted" and mutation.before.split(":")[0] in needed:
            assert problems_of(mutation.text), mutation.before


@TEXTS
def test_strange_values_are_problems_not_crashes(text: str) -> None:
    base = parse_pipeline(text)
    for path, message in walk(base):
        for field, value in message.ListFields():
            if is_message(field) or field.is_repeated or field.enum_type is not None:
                continue
            strange = ["0", "1"] if not isinstance(value, str) else ["", "no_such", "[", "é\n"]
            for wrong in strange:
                config = parse_pipeline(text)
                set_field(config, join(path, field.name), wrong)
                for problem in validate(config):
                    assert problem.path and problem.remedy


@settings(max_examples=300, deadline=None)
@given(
    at=st.integers(0, len(MMOE) - 1),
    drop=st.integers(0, 6),
    insert=st.text(alphabet="{}[]<>:;,\"'\\#-+.x1é\n\0 ", max_size=3),
)
def test_broken_text_never_escapes_as_another_error(at: int, drop: int, insert: str) -> None:
    text = MMOE[:at] + insert + MMOE[at + drop :]
    try:
        parse_pipeline(text, "fuzz.config")
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.path.startswith("line ")

# SPDX-License-Identifier: Apache-2.0
"""docs/config_reference.md is what the schema says, and --check notices when it is not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tzgen.config.schema import messages_of

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "gen_config_reference", ROOT / "tools" / "gen_config_reference.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(tool: ModuleType) -> str:
    return str(tool.render(tool.load_files()))


def test_every_message_and_field_has_a_row(page: str) -> None:
    sections = dict(part.split("\n", 1) for part in page.split("\n### ")[1:])
    for name, descriptor in messages_of().items():
        if descriptor.full_name.startswith("google."):
            continue
        for field in descriptor.fields:
            assert f"| `{field.name}`" in sections[name], (name, field.name)


def test_comments_defaults_types_and_status(page: str) -> None:
    rows = {
        line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| `")
    }
    assert "| uint32 | `1024` | Rows for each rank and step" in rows["`batch_size`"]
    assert '`"\\x03"`' in rows["`fg_encoded_multival_sep`"]
    assert "map&lt;string, uint64&gt;" in page
    assert "repeated [FeatureConfig](#featureconfig)" in rows["`feature_configs`"]
    assert "*refused*" in rows["`grad_scaler`"]
    assert "`KafkaDataset` *refused*" in rows["`dataset_type`"]
    assert "*refused*: it cannot be trained yet." in rows["`deepfm`"]
    assert "refused" not in rows["`dlrm_hstu`"]
    assert "`shuffle_window` +" in rows
    assert "Next id" not in page


def test_links_lead_to_headings(page: str) -> None:
    import re

    heads = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in page.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(#([^)]+)\)", page):
        assert target in heads, target


def test_check(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "reference.md"
    assert tool.main(["--check", "--output", str(target)]) == 1
    assert "run python tools/gen_config_reference.py" in capsys.readouterr().err
    assert tool.main(["--output", str(target)]) == 0
    assert tool.main(["--check", "--output", str(target)]) == 0
    target.write_text(target.read_text().replace("1024", "1025"))
    assert tool.main(["--check", "--output", str(target)]) == 1


def test_the_committed_page_is_current(tool: ModuleType) -> None:
    assert tool.main(["--check"]) == 0

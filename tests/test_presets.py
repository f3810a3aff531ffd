"""Every preset goes over params.yaml and is a valid configuration of known methods."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from expunge.config import load_config
from expunge.data.readers.named import NAMED, PREFIX, WITHOUT_DOWNLOAD
from expunge.workspaces.workspace import params_with

ROOT = Path(__file__).parent.parent
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_a_preset_is_a_configuration(preset: Path, tmp_path: Path) -> None:
    changes = yaml.safe_load(preset.read_text())
    params = params_with(ROOT / "params.yaml", changes)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    config = load_config(tmp_path / "params.yaml")
    assert config.data.source.removeprefix(PREFIX) in (*NAMED, *WITHOUT_DOWNLOAD)
    assert set(config.methods) <= set(config.fit)
    plain = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in changes.items():
        assert values != plain[section], f"{preset.name}: {section} says what params.yaml says"


def test_there_are_presets() -> None:
    assert len(PRESETS) == 9

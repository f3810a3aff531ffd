"""Tests that optional vision packages can be imported beside the installed torch, or are named if missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from expunge.system.errors import ConfigError
from expunge.system.vision_imports import import_vision

FRESH = """
from expunge.system.vision_imports import import_vision
import torch
timm, models = import_vision("timm"), import_vision("torchvision.models")
assert import_vision("timm") is timm
assert timm.create_model("resnet10t", num_classes=2).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
import torchvision.transforms.v2
"""


@pytest.mark.slow
def test_timm_and_torchvision_import_in_a_fresh_process_beside_this_torch() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_not_installed_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm is not installed; run pip install 'expunge\[models\]'"):
        import_vision("timm")

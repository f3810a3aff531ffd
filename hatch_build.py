"""Packs files of this repository into the wheel, as `expunge/template/`: there is no copy of them in git to go stale.

A source tree, and an editable install of it, read them where they are kept: `expunge.workspaces.template`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKED = (
    "dvc.yaml",
    ".dvcignore",
    "params.yaml",
    "params.demo.yaml",
    "params.text.yaml",
    "params.people.yaml",
    "prefect.yaml",
    "data/source/README.md",
    "data/requests/README.md",
    "flows/*.py",
    "docs/*.md",
    "presets/*.yaml",
    "presets/base/*.yaml",
    "docs/decisions/*.md",
)


class Pack(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        for pattern in PACKED:
            found = sorted(root.glob(pattern))
            if not found:
                raise FileNotFoundError(f"{pattern}: hatch_build.py packs it, and it is not here")
            for path in found:
                name = path.relative_to(root).as_posix()
                build_data["force_include"][str(path)] = f"expunge/template/{name}"

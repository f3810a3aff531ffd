"""Find results of another version of a plug-in.

DVC cannot find them, because it tracks params, not the code of other packages.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from expunge.config import Config
from expunge.system import plugins
from expunge.system.errors import ExpungeError
from expunge.system.files import MANIFEST, read_json
from expunge.system.paths import DATASET, METRICS, MODELS, ORIGINAL, REFERENCES, UNLEARNED


def outdated(config: Config, root: Path = Path()) -> list[str]:
    """Return one sentence for each plug-in of which another version made a result, with the command to repeat it."""
    found = []
    for stages, kind, name, made_by in _recorded(config, root):
        here = plugins.package_of(kind, name) if name in plugins.names(kind) else None
        if made_by is not None and here is not None and made_by != here:
            found.append(
                f"{stages}: made by {made_by}, but {here} is installed, which DVC does not notice; run "
                f"`dvc repro --force --single-item {stages}`, then `dvc repro`"
            )
    return found


def _recorded(config: Config, root: Path) -> Iterator[tuple[str, str, str, str | None]]:
    """Yield stages, kind and name of each plug-in that `config` names, and the package recorded in their result."""
    yield "prepare", "readers", config.data.source, _json(root / DATASET / MANIFEST).get("package")
    family = config.model.name.partition(":")[0]
    yield "train", "models", family, _json(root / MODELS / ORIGINAL / "model.json").get("package")
    for name in config.methods:
        method = config.fit.get(name, {}).get("method", name)
        yield f"fit@{name}", "methods", str(method), _json(root / UNLEARNED / name / "fit.json").get("package")
    described = _json(root / METRICS / f"{REFERENCES}.json").get("metrics", {})
    stages = " ".join(["evaluate-references", *(f"evaluate@{method}" for method in config.methods)])
    for name in config.evaluate.metrics:
        yield stages, "metrics", name, described.get(name, {}).get("package")


def _json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file; empty if the file is missing, unreadable or no mapping."""
    try:
        found = read_json(path)
    except (ExpungeError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

"""Request and methods of a run, as Prefect's form of the deployment `pipeline` asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from expunge.system.errors import ConfigError
from expunge.system.files import write_text
from expunge.workspaces.init.editing import PARAMS, with_values
from flows.stages import PreflightError, check

Classes = Annotated[list[str] | None, Field(title="Classes to forget", examples=[["sandal"]])]
Methods = Annotated[list[str] | None, Field(title="Methods", examples=[["logit-mask", "loft", "teacher-map"]])]


def set_params(root: Path, classes: list[str] | None, methods: list[str] | None, push: bool) -> None:
    """Write the classes to forget and the methods into params.yaml, with its comments kept, and check it.

    Without either nothing is written. Raises PreflightError, and leaves params.yaml as it was, if the check finds a
    conflict, or in a clone (`push`), whose params.yaml is that of its repository.
    """
    changes: dict[str, Any] = {}
    if classes:
        changes["split"] = {"selector": "classes", "classes": classes}
    if methods:
        changes["methods"] = methods
    if not changes:
        return
    if push:
        raise PreflightError(
            "classes and methods cannot be set for a run in a clone; commit them to params.yaml of its repository"
        )
    file = root / PARAMS
    before = file.read_text(encoding="utf-8")
    try:
        write_text(file, with_values(before, changes))
        check(root)
    except (ConfigError, PreflightError) as e:
        write_text(file, before)
        raise PreflightError(str(e)) from None

"""Write the metadata of packages that declare plug-ins, as pip would leave it."""

from __future__ import annotations

from pathlib import Path


def write_package(folder: Path, package: str, entries: dict[str, dict[str, str]], version: str = "0.1.0") -> None:
    """Write the metadata of `package` below `folder`. `entries` maps a kind to names, and names to `module:object`."""
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    groups = [f"[expunge.{kind}]\n" + "".join(f"{n} = {v}\n" for n, v in of.items()) for kind, of in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(groups))

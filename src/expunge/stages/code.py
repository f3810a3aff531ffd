"""code: write one digest of the code that each stage imports.

Every other stage depends on its own digest, so it is stale when code changes that it imports, and only then.
"""

from __future__ import annotations

import json

from expunge.stages import run
from expunge.system.files import write_text
from expunge.system.installed import stage_digests
from expunge.system.paths import CODE
from expunge.system.progress import log_message


def main() -> None:
    """Run the stage `code`."""
    digests = stage_digests()
    write_text(CODE, json.dumps(digests, indent=2) + "\n")
    log_message(f"code: digests for {len(digests)} stages")


if __name__ == "__main__":
    run(main)

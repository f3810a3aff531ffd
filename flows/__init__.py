"""Prefect flows: one task per DVC stage, and the decisions around them. No mathematics here."""

import os
import sys
from pathlib import Path

# If flows and library are in one repository, flows of a clone use the clone's library, not the installed one.
_LIBRARY = Path(__file__).absolute().parents[1] / "src"
if (_LIBRARY / "expunge").is_dir() and str(_LIBRARY) not in sys.path:
    sys.path.insert(0, str(_LIBRARY))

# Prefect reads these variables when it is imported.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "true")
# A cold start of the temporary server takes longer than Prefect's 20 seconds on a small machine.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

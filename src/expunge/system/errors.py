"""Errors a user can act on. Each message names the file, row or key and the way out.

A stage prints the message and exits with status 2; anything else is a bug and keeps its traceback.
"""


class ExpungeError(Exception):
    """Base of everything raised on purpose."""


class ConfigError(ExpungeError):
    """params.yaml has an unknown, missing or impossible key."""


class DataError(ExpungeError):
    """A dataset, a request or a row cannot be used as it is."""


class TooFewRowsError(DataError):
    """A method needs more rows than the request names."""


class ManifestError(ExpungeError):
    """A directory has no manifest.json, or its files disagree with it."""


class CheckpointError(ExpungeError):
    """A checkpoint cannot be read safely or does not fit the architecture."""


class CollapseError(ExpungeError):
    """A fitted map would ruin the model; it is refused instead of returned."""


class QualityError(ExpungeError):
    """A quality gate said no."""


# Results about one method of a run, which goes on with the others.
REFUSALS = (CollapseError, QualityError, TooFewRowsError)


class TrackingError(ExpungeError):
    """The tracking server or the model registry is away, or refused what it was given."""


class LedgerError(ExpungeError):
    """The ledger was changed, cut or cannot be written."""


class PromotionError(ExpungeError):
    """A version may not be served: a gate said no, or it remembers what was to be forgotten."""


class RequestError(ExpungeError):
    """An erasure request cannot be taken in, found, or moved on as asked."""


class KeyFileError(ExpungeError):
    """A key cannot be read, or others can read it."""


class CertificateError(ExpungeError):
    """A certificate was changed, or was signed by another key."""


class CloneError(ExpungeError):
    """A workspace cannot be brought from git and its DVC remote, or its results cannot be pushed there."""

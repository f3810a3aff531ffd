"""Errors that a user can act on. Each message names the file, row or key and the way out.

A stage prints the message and exits with status 2. Any other exception is a bug and keeps its traceback.
"""


class ExpungeError(Exception):
    """Base class of all errors that Expunge raises on purpose."""


class ConfigError(ExpungeError):
    """params.yaml has an unknown, missing or impossible key."""


class DataError(ExpungeError):
    """A dataset, a request or a row cannot be used as it is."""


class TooFewRowsError(DataError):
    """A method needs more rows than the request names."""


class ManifestError(ExpungeError):
    """A directory has no manifest.json, or its files disagree with it."""


class StorageError(ExpungeError):
    """A disk is full, or a file or folder cannot be written."""


class CheckpointError(ExpungeError):
    """A checkpoint cannot be read safely or does not fit the architecture."""


class CollapseError(ExpungeError):
    """A fitted map would ruin the model, so it is refused instead of returned."""


class NoEffectError(ExpungeError):
    """A method would change nothing with its settings, so nothing would be forgotten."""


class QualityError(ExpungeError):
    """A quality gate failed."""


# Errors that count as a result about one method. The run continues with the other methods.
REFUSALS = (CollapseError, NoEffectError, QualityError, TooFewRowsError)


class TrackingError(ExpungeError):
    """The tracking server or the model registry cannot be reached, or refused a request."""


class LedgerError(ExpungeError):
    """The ledger was changed or truncated, or cannot be written."""


class PromotionError(ExpungeError):
    """A version may not be served: a gate failed, or the model was trained on rows that must stay forgotten."""


class RequestError(ExpungeError):
    """An erasure request cannot be accepted, found, or moved to the state that was asked for."""


class KeyFileError(ExpungeError):
    """A key file cannot be read, or other users can read it."""


class CertificateError(ExpungeError):
    """A certificate was changed, or was signed by another key."""


class CloneError(ExpungeError):
    """A workspace cannot be fetched from git and its DVC remote, or its results cannot be pushed there."""

"""Tokenise texts for a backbone; extraction and serving use the same code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.models.preprocess import Inputs
from expunge.system.errors import CheckpointError, ConfigError, DataError
from expunge.system.files import write_text

TOKENIZER = "tokenizer.json"  # stored with the model; the description has only its digest
ENDED = -1  # the id of positions after the end of a text


@dataclass(frozen=True)
class Tokens:
    """A tokenizer, given as its JSON, that truncates texts to `max_length` tokens."""

    tokenizer: str
    max_length: int

    @cached_property
    def _encoder(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError:
            raise ConfigError("tokenizers is not installed; run pip install 'expunge[models]'") from None
        encoder = Tokenizer.from_str(self.tokenizer)
        encoder.no_padding()
        encoder.enable_truncation(self.max_length)
        return encoder

    def __call__(self, texts: Inputs) -> Tensor:
        """Return token ids, int64 `(n, t)`, with ENDED after the end of a text; t is the length of the longest one.

        Token ids, as a tensor or an integer array, are returned unchanged. Raises DataError for anything else but a
        list of texts.
        """
        if isinstance(texts, Tensor):
            return texts
        if isinstance(texts, np.ndarray) and texts.dtype.kind == "i":
            return torch.from_numpy(texts)
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if isinstance(texts, str) or wrong is not None:
            kind = "one text" if isinstance(texts, str) else f"a {type(texts[wrong or 0]).__name__} at {wrong}"
            raise DataError(f"expected a list of texts, got {kind}")
        rows = [encoding.ids for encoding in self._encoder.encode_batch(list(texts))]
        ids = torch.full((len(rows), max((len(r) for r in rows), default=1) or 1), ENDED)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return ids

    def to_json(self) -> dict[str, Any]:
        """Describe the tokenizer by its digest; `save` writes the tokenizer itself."""
        return {"max_length": self.max_length, "tokenizer": self.digest}

    @cached_property
    def digest(self) -> str:
        """The sha256 of the tokenizer's JSON."""
        return "sha256:" + hashlib.sha256(self.tokenizer.encode()).hexdigest()

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` into an existing directory."""
        write_text(directory / TOKENIZER, self.tokenizer)

    @classmethod
    def load(cls, directory: Path, value: Mapping[str, Any]) -> Tokens:
        """Load the tokenizer that `save` wrote. Raises CheckpointError unless it has the digest in `value`."""
        tokens = cls((directory / TOKENIZER).read_text(encoding="utf-8"), value["max_length"])
        if tokens.digest != value["tokenizer"]:
            raise CheckpointError(
                f"{directory / TOKENIZER}: is not the tokenizer that the model was made with; restore it, or train "
                "again"
            )
        return tokens

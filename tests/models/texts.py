"""Write a tiny text transformer with random weights and its WordPiece vocabulary as a transformers directory."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from expunge.system.vision_imports import import_vision

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "moon", "stock", "rose", "fell", "bank", "rate", "to"]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_encoder(directory: Path, longest: int = 12) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS, "##s", "##ing", "!", "?"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=longest)  # many published tokenizers do so, and Expunge must ignore it
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest, "pad_token": "[PAD]"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    transformers = import_vision("transformers")
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config)
    with torch.no_grad():  # with the usual small initial weights all texts would get nearly equal features
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    model.save_pretrained(directory)
    return directory

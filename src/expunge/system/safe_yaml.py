"""YAML of bounded size: mistaken or hostile input becomes plain Python values or one ConfigError of one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from expunge.system.errors import ConfigError

MAX_BYTES = 2**20
MAX_NODES = 100_000  # values after every alias is expanded
MAX_DEPTH = 50
SHOWN = 80  # characters of a value in an error


def read_mapping(path: Path) -> dict[Any, Any]:
    """Return the mapping in the YAML file `path`, read with `yaml.SafeLoader`.

    Raises ConfigError for a file that is missing, unreadable, larger than MAX_BYTES, not YAML or not a mapping, and for
    a key that occurs twice in one mapping, nesting deeper than MAX_DEPTH, and aliases that expand to more than
    MAX_NODES values or to themselves.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; run this from the root of a workspace, or make one with `expunge init`"
        ) from None
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror or e}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"{path}: larger than {MAX_BYTES} bytes, but params of a pipeline are a few pages; check that this "
            "is the right file"
        )
    try:
        loader = yaml.SafeLoader(data.decode("utf-8"))
        node = loader.get_single_node()
        if node is not None:
            _size(node, path, {}, 0)
        value = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: not valid YAML: {_one_line(str(e))}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested deeper than {MAX_DEPTH} levels") from None
    except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as e:
        # PyYAML raises these if a value does not fit its tag: `!!int x`, the date 2026-99-99, bytes that are not UTF-8.
        raise ConfigError(f"{path}: not valid YAML: a value does not fit its tag: {shown(str(e))}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: the file must be a mapping, got {shown(value)}")
    return value


def _size(node: yaml.Node, path: Path, sizes: dict[int, int], depth: int) -> int:
    """Return how many values `node` expands to.

    `sizes` caches counts by `id(node)`; the count is 0 while a node is being counted.
    """
    line = node.start_mark.line + 1
    if depth > MAX_DEPTH:
        raise ConfigError(f"{path}: line {line} is nested deeper than {MAX_DEPTH} levels")
    if (known := sizes.get(id(node))) == 0:
        raise ConfigError(f"{path}: line {line} holds an alias of itself")
    if known is not None:
        return known
    sizes[id(node)], total = 0, 1
    if isinstance(node, yaml.MappingNode):
        _refuse_duplicates(node, path)
        for key, value in node.value:
            total += _size(key, path, sizes, depth + 1) + _size(value, path, sizes, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_size(item, path, sizes, depth + 1) for item in node.value)
    if total > MAX_NODES:
        raise ConfigError(f"{path}: line {line} expands to more than {MAX_NODES} values")
    sizes[id(node)] = total
    return total


def _refuse_duplicates(node: yaml.MappingNode, path: Path) -> None:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{path}: line {line} has the key {shown(key.value)} a second time; remove one")
            seen.add((key.tag, key.value))


def _one_line(text: str) -> str:
    """Return `text` without line breaks and with every unprintable character escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def shown(value: Any) -> str:
    """Return `repr(value)` on one line of at most SHOWN characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python refuses to print an int of more than 4,300 digits
        text = "a number too long to print" if isinstance(value, int) else "a value too long to print"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."

"""Edit params.yaml as text: replace values and add missing keys, without changing comments and layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from expunge.system.errors import ConfigError
from expunge.system.safe_yaml import shown

PARAMS = "params.yaml"


def with_values(text: str, changes: Mapping[str, Any]) -> str:
    """Return `text` with the values of `changes`, section by section; comments and layout stay.

    Raises ConfigError for a key that `text` lacks. An empty section of settings, such as `train.head`, takes any key.
    """
    spans: list[tuple[int, int, str]] = []
    _collect(mapping_of(text), changes, "", spans)
    for begin, end, new in sorted(spans, reverse=True):
        text = _replaced(text, begin, end, new)
    return text


def _collect(
    node: yaml.MappingNode, changes: Mapping[str, Any], prefix: str, spans: list[tuple[int, int, str]]
) -> None:
    values = {key.value: value for key, value in node.value}
    for key, new in changes.items():
        name = f"{prefix}{key}"
        if key not in values:
            raise ConfigError(f"{PARAMS}: has no key {name}, which was to be set; the keys are {', '.join(values)}")
        old = values[key]
        if isinstance(new, Mapping) and isinstance(old, yaml.MappingNode) and old.value:
            _collect(old, new, f"{name}.", spans)
        elif isinstance(old, yaml.CollectionNode) and not old.flow_style:
            raise ConfigError(f"{PARAMS}: {name} is a section; set one of its keys")
        else:
            spans.append((old.start_mark.index, old.end_mark.index, in_line(new)))


def in_line(value: Any) -> str:
    """Return `value` as one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()


def _replaced(text: str, begin: int, end: int, new: str) -> str:
    """Replace `text[begin:end]`; a comment behind it keeps its column if the new value leaves room."""
    rest = text[end:].partition("\n")[0]
    gap = len(rest) - len(rest.lstrip(" "))
    if rest[gap:].startswith("#"):
        room = max(gap + (end - begin) - len(new), 1)
        return f"{text[:begin]}{new}{' ' * room}{text[end + gap :]}"
    return text[:begin] + new + text[end:]


@dataclass(frozen=True)
class _Block:
    """A key and its value with the comments directly above: lines `[first, last)` of a text."""

    key: str
    node: yaml.Node
    first: int
    last: int


def with_missing(own: str, template: str) -> tuple[str, list[str]]:
    """Return `own` with the sections and keys of sections that only `template` has, and the names of these.

    Everything in `own` stays as it is, including the settings of entries of `fit`. Raises ConfigError if keys are
    missing from a section that is written on one line.
    """
    added: list[str] = []
    lines, wanted = own.splitlines(), template.splitlines()
    inserts: list[tuple[int, list[str]]] = []
    mine, theirs = blocks_of(mapping_of(own), lines), blocks_of(mapping_of(template), wanted)
    _insert(mine, theirs, wanted, "", added, inserts)
    have = {block.key: block for block in mine}
    for block in theirs:
        section = have.get(block.key)
        if section is None or not isinstance(block.node, yaml.MappingNode):
            continue
        keys = blocks_of(block.node, wanted)
        if not isinstance(section.node, yaml.MappingNode):
            raise ConfigError(f"{PARAMS}: {block.key} must be a section of keys, not {shown(section.node.value)}")
        if section.node.flow_style:
            absent = [k.key for k in keys if k.key not in {key.value for key, _ in section.node.value}]
            if absent:
                raise ConfigError(f"{PARAMS}: {block.key} lacks {absent[0]}; write the section with one key per line")
            continue
        _insert(blocks_of(section.node, lines), keys, wanted, f"{block.key}.", added, inserts)
    for at, new in sorted(inserts, key=lambda item: item[0], reverse=True):
        lines[at:at] = new
    return "\n".join(lines) + "\n", added


def _insert(
    mine: list[_Block],
    theirs: list[_Block],
    wanted: list[str],
    prefix: str,
    added: list[str],
    inserts: list[tuple[int, list[str]]],
) -> None:
    """Insert each missing block after the block that it follows in the template."""
    have = {block.key: block for block in mine}
    at = mine[0].first if mine else 0
    for block in theirs:
        if block.key in have:
            at = have[block.key].last
            continue
        added.append(prefix + block.key)
        new = wanted[block.first : block.last]
        inserts.append((at, ["", *new] if not prefix else new))


def blocks_of(node: yaml.MappingNode, lines: list[str]) -> list[_Block]:
    """Return the lines of each key of a mapping, with the comments that belong to the key."""
    found = []
    for i, (key, value) in enumerate(node.value):
        indent = key.start_mark.column
        first = _above(lines, key.start_mark.line, indent)
        following = node.value[i + 1][0].start_mark.line if i + 1 < len(node.value) else node.end_mark.line
        if i + 1 == len(node.value) and node.end_mark.column and following < len(lines):
            following += 1
        last = _above(lines, following, indent) if i + 1 < len(node.value) else _comments_end(lines, following)
        while last > key.start_mark.line + 1 and not lines[last - 1].strip():
            last -= 1
        found.append(_Block(str(key.value), value, first, last))
    return found


def _above(lines: list[str], line: int, indent: int) -> int:
    """Return the first of the comment lines directly above `line` that have the indent `indent`."""
    while line > 0 and lines[line - 1].startswith(" " * indent + "#"):
        line -= 1
    return line


def _comments_end(lines: list[str], line: int) -> int:
    """Return the end of a node without the comments and blank lines before the next node, where PyYAML ends it."""
    line = min(line, len(lines))
    while line > 0 and (not lines[line - 1].strip() or lines[line - 1].startswith("#")):
        line -= 1
    return line


def mapping_of(text: str) -> yaml.MappingNode:
    """Parse a YAML text whose top level is a mapping. Raises ConfigError for any other text."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as e:
        raise ConfigError(f"{PARAMS}: not valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{PARAMS}: the file must be a mapping")
    return node

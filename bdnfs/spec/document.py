"""Reading a YAML or JSON file of ours into plain dicts, lists, texts, numbers and None.

YAML is built from parser events here instead of with a loader: libyaml's composer overflows the
C stack on deep nesting, and YAML's timestamps, octals, tags and merge keys have no use in our files.
"""

import os
import re
import stat
from typing import Any

from bdnfs.core.errors import SpecError
from bdnfs.core.units import MIB, format_size

DOCUMENT_BYTES_MAX = MIB
DEPTH_MAX = 32

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,30}", re.ASCII)
_FLOAT = re.compile(r"[-+]?[0-9]{1,30}\.[0-9]{0,30}", re.ASCII)
_STR_TAG = "tag:yaml.org,2002:str"


def read_document(path: str, what: str) -> object:
    """Return what the file at path holds; `what` names its role in errors ("the spec").

    A `.json` file is JSON, every other one YAML. Raises SpecError if it is missing, not a plain
    file, over 1 MiB, not UTF-8, or not well-formed.
    """
    content = _read(path, what)
    return parse_json(content, path) if path.endswith(".json") else parse_yaml(content, path)


def parse_json(content: str, where: str) -> object:
    """Return the JSON document in content; raise SpecError naming where and why it is none."""
    import json

    try:
        return json.loads(content, object_pairs_hook=lambda pairs: _unique(pairs, where))
    except json.JSONDecodeError as error:
        raise SpecError(f"{where}:{error.lineno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        raise SpecError(f"{where}: not a usable JSON document: {reason}") from None


def parse_yaml(content: str, where: str) -> object:
    """Return the YAML document in content (None if it is empty); raise SpecError if it is none.

    Plain scalars are null, true, false, decimal numbers or text; keys are unique; one document only.
    """
    import yaml

    try:
        # types-PyYAML doesn't know the C parser as a loader argument of parse.
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return _Builder(where).build(yaml.parse(content, Loader=loader))
    except UnicodeEncodeError:
        raise SpecError(f"{where}: not valid YAML: it holds half of a surrogate pair") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise SpecError(f"{where}{line}: not valid YAML: {problem}") from None


class _Builder:
    """Turns parser events into data: no recursion, no object but plain ones."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.anchors: dict[str, object] = {}
        self.pending: set[str] = set()

    def build(self, events: Any) -> object:
        import yaml

        result: object = None
        documents = 0
        # One (container, its anchor, key waiting for its value) for each open list or mapping.
        stack: list[tuple[Any, str | None, list[object]]] = []
        for event in events:
            match event:
                case yaml.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        raise self._error(event, "holds more than one document; keep one")
                    continue
                case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                    if len(stack) >= DEPTH_MAX:
                        raise self._error(event, f"nested more than {DEPTH_MAX} deep")
                    if event.tag is not None:
                        raise self._error(event, f"the tag {event.tag[:40]!r} is not supported; leave it out")
                    stack.append(([] if isinstance(event, yaml.SequenceStartEvent) else {}, event.anchor, []))
                    self.pending.update([event.anchor] if event.anchor else [])
                    continue
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    value, anchor, _ = stack.pop()
                case yaml.ScalarEvent():
                    value, anchor = self._scalar(event), event.anchor
                case yaml.AliasEvent():
                    value, anchor = self._alias(event), None
                case _:
                    continue
            if anchor:
                self.anchors[anchor] = value
                self.pending.discard(anchor)
            if stack:
                self._put(event, stack[-1][0], stack[-1][2], value)
            else:
                result = value
        return result

    def _put(self, event: Any, container: Any, waiting: list[object], value: object) -> None:
        if isinstance(container, list):
            container.append(value)
        elif waiting:
            container[waiting.pop()] = value
        elif isinstance(value, list | dict):
            raise self._error(event, "a key is a list or a mapping; keys are plain words")
        elif value in container:
            raise self._error(event, f"the key {str(value)[:60]!r} is there twice; keep one")
        else:
            waiting.append(value)

    def _scalar(self, event: Any) -> object:
        text: str = event.value
        if event.tag not in (None, "!", _STR_TAG):
            raise self._error(event, f"the tag {event.tag[:40]!r} is not supported; leave it out")
        if event.tag is not None or not event.implicit[0]:
            return text
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        if _INT.fullmatch(text):
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text

    def _alias(self, event: Any) -> object:
        if event.anchor in self.pending:
            raise self._error(event, f"*{event.anchor[:40]} refers to what it is part of")
        if event.anchor not in self.anchors:
            raise self._error(event, f"*{event.anchor[:40]} refers to nothing; no such anchor above")
        return self.anchors[event.anchor]

    def _error(self, event: Any, problem: str) -> SpecError:
        return SpecError(f"{self.where}:{event.start_mark.line + 1}: {problem}")


def _unique(pairs: list[tuple[str, object]], where: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise SpecError(f"{where}: the key {key[:60]!r} is there twice; keep one")
        found[key] = value
    return found


def _read(path: str, what: str) -> str:
    try:
        # A FIFO must not make us wait for whoever might write to it.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a path"
        raise SpecError(f"can't read {what} {path!r}: {reason}") from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        found = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise SpecError(f"can't read {what} {path!r}: it is {found}; name a file")
    with open(fd, "rb") as file:
        try:
            content = file.read(DOCUMENT_BYTES_MAX + 1)
        except OSError as error:
            raise SpecError(f"can't read {what} {path!r}: {error.strerror}") from None
    if len(content) > DOCUMENT_BYTES_MAX:
        raise SpecError(
            f"can't read {what} {path!r}: it is over {format_size(DOCUMENT_BYTES_MAX)}; is it the right file?"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(
            f"can't read {what} {path!r}: byte {error.start} is not UTF-8; save it as UTF-8"
        ) from None

"""Which files of a source are wanted: allow and ignore patterns.

`*`, `?` and `[…]` stay within one path component, so `*.json` matches the top level only;
`**` is any number of components, so `**/*.json` matches at every depth; `dir/` and `dir/**` are
everything below dir. No escapes: `[*]` is a star. What is ignored stays out whatever allows it.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol, TypeVar

import msgspec

from bdnfs.core.errors import SpecError
from bdnfs.spec.fields import shown, unprintable

PATTERN_CHARS_MAX = 1024
PATTERNS_MAX = 256
_SHOWN_MAX = 3
# What from_pretrained reads beside the weights (transformers: configuration and tokenizer files).
_LOADING_FILES = (
    r"config\.json|generation_config\.json|tokenizer[^/]*|special_tokens_map\.json|vocab\.[^/]*|merges\.txt"
)


class HasPath(Protocol):
    @property
    def path(self) -> str: ...


T = TypeVar("T", bound=HasPath)


class Patterns(msgspec.Struct, frozen=True):
    """The patterns of one source; with no allow pattern everything is allowed.

    Raises SpecError on construction for a pattern that can't match any path.
    """

    allow: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, patterns in (("allow_patterns", self.allow), ("ignore_patterns", self.ignore)):
            if len(patterns) > PATTERNS_MAX:
                raise SpecError(f"{field} holds {len(patterns)} patterns; at most {PATTERNS_MAX} are taken")
            for pattern in patterns:
                reason = _objection(pattern)
                if reason:
                    raise SpecError(f"{field}: the pattern {shown(pattern)} {reason}")

    @property
    def key(self) -> str:
        """Equal for patterns that are the same set: stable text for hashing."""
        return msgspec.json.encode([sorted(set(self.allow)), sorted(set(self.ignore))]).decode()

    def match(self, path: str) -> bool:
        """Return whether path, relative and `/`-separated, is wanted."""
        if self.allow and not _compiled(self.allow).fullmatch(path):
            return False
        return not (self.ignore and _compiled(self.ignore).fullmatch(path))

    def select(self, entries: Iterable[T]) -> list[T]:
        """Return the entries whose `path` is wanted, in their order."""
        return [entry for entry in entries if self.match(entry.path)]


def warnings(patterns: Patterns, all_paths: Iterable[str], kept_paths: Iterable[str]) -> list[str]:
    """Return what the user most likely did not mean to leave out, one sentence each.

    all_paths: what upstream lists; kept_paths: what the patterns keep of it.
    """
    kept = set(kept_paths)
    dropped = [path for path in all_paths if path not in kept]
    found: list[str] = []
    for pattern in dict.fromkeys(patterns.allow):
        if "/" in pattern or pattern == "**" or not _has_wildcard(pattern):
            continue
        deep = Patterns((f"**/{pattern}",), patterns.ignore)
        lost = [path for path in dropped if "/" in path and deep.match(path)]
        if lost:
            found.append(
                f"allow pattern {pattern!r} matches the top level only and leaves out {_files(lost)} in "
                f"subdirectories; write '**/{pattern}' to keep them"
            )
    directories = {path.rpartition("/")[0] for path in kept}
    named = set(patterns.ignore)
    lost = [
        path
        for path in dropped
        if path not in named
        and path.rpartition("/")[0] in directories
        and re.fullmatch(_LOADING_FILES, path.rpartition("/")[2])
    ]
    if lost:
        found.append(
            f"the patterns leave out {_files(lost)} that loading a model usually needs; "
            "add them to allow_patterns, or name them in ignore_patterns if that is meant"
        )
    return found


def no_match_message(where: str, patterns: Patterns, listed_count: int, sample: Iterable[str]) -> str:
    """Return the text of the error for patterns that keep nothing of listed_count listed files."""
    if not listed_count:
        return f"{where}: upstream lists no files at all; check the name, the prefix and the revision"
    names = [shown(path) for _, path in zip(range(_SHOWN_MAX), sample, strict=False)]
    such = f" (such as {', '.join(names)})" if names else ""
    rules = [
        f"{field} {_listed(items)}"
        for field, items in (("allow_patterns", patterns.allow), ("ignore_patterns", patterns.ignore))
        if items
    ]
    return (
        f"{where}: {' with '.join(rules)} keep none of the {listed_count} files listed upstream{such}; "
        "'*' stays within one directory: write '**/*.json' for every depth, 'dir/' for all below dir"
    )


def _listed(items: tuple[str, ...]) -> str:
    more = f", … {len(items) - 8} more" if len(items) > 8 else ""
    return f"[{', '.join(shown(item) for item in items[:8])}{more}]"


def _files(paths: list[str]) -> str:
    names = ", ".join(shown(path) for path in paths[:_SHOWN_MAX])
    more = ", …" if len(paths) > _SHOWN_MAX else ""
    return f"{len(paths)} file{'s' if len(paths) > 1 else ''} ({names}{more})"


def _has_wildcard(pattern: str) -> bool:
    return any(char in pattern for char in "*?[")


def _objection(pattern: str) -> str | None:
    if not pattern.strip():
        return "is empty; leave it out"
    if len(pattern) > PATTERN_CHARS_MAX:
        return f"is longer than {PATTERN_CHARS_MAX} characters"
    reason = unprintable(pattern)
    if reason:
        return reason
    if pattern.startswith("/"):
        return "starts with '/'; patterns are relative to the top of the source"
    if pattern.startswith("!"):
        return "starts with '!'; nothing is negated here: write it without '!' in ignore_patterns"
    if "{" in pattern and "}" in pattern and "," in pattern:
        return "holds {…,…}, which is not expanded here; write one pattern for each"
    for part in pattern.removesuffix("/").split("/"):
        if part in ("", ".", ".."):
            return f"has {part!r} as a component, which no path has; write it without"
    return None


@lru_cache(maxsize=64)
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{_regex(pattern)})" for pattern in patterns), re.DOTALL)


def _regex(pattern: str) -> str:
    """Return a regex that matches in time linear in path × pattern, however hostile the pattern.

    Between two wildcards stands something of fixed length, so that its first match is as good as
    any later one: each is an atomic group, never tried again.
    """
    parts = pattern.split("/")
    if not parts[-1]:
        parts[-1] = "**"
    groups: list[list[str]] = [[]]  # runs of components between `**`
    for part in parts:
        if part == "**":
            groups.append([])
        else:
            groups[-1].append(_component(part))
    first, *middle = groups
    if not middle:
        return "/".join(first)
    last = middle.pop()
    head = "".join(part + "/" for part in first)
    inner = "".join(f"(?>(?:[^/]*/)*?{'/'.join(group)}/)" for group in middle if group)
    # A trailing `**` stands for at least one component.
    return head + inner + ("(?:[^/]*/)*" + "/".join(last) if last else ".*")


def _component(glob: str) -> str:
    runs = [""]  # regexes of fixed length between stars
    index = 0
    while index < len(glob):
        char = glob[index]
        index += 1
        if char == "*":
            runs.append("")
        elif char == "?":
            runs[-1] += "[^/]"
        elif char == "[" and (end := glob.find("]", index + 1 + (glob[index : index + 1] == "!"))) > 0:
            runs[-1] += _character_class(glob[index:end])
            index = end + 1
        else:
            runs[-1] += re.escape(char)
    first, *rest = runs
    if not rest:
        return first
    last = rest.pop()
    return first + "".join(f"(?>[^/]*?{run})" for run in rest if run) + "[^/]*" + last


def _character_class(body: str) -> str:
    negated = body.startswith("!")
    chars = body.removeprefix("!")
    items = ""
    index = 0
    while index < len(chars):
        low = high = chars[index]
        if chars[index + 1 : index + 2] == "-" and index + 2 < len(chars):
            high = chars[index + 2]
            index += 2
        index += 1
        if low <= high:
            items += f"{re.escape(low)}-{re.escape(high)}"
    if not items:
        return "[^/]" if negated else "(?!)"
    return f"(?!/)[{'^' if negated else ''}{items}]"

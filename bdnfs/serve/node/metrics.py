"""What a node counts, for `bdnfs status` and for Prometheus (text format 0.0.4)."""

from collections import Counter
from collections.abc import Iterable, Mapping

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Served:
    """Counters since the node began. Of one thread.

    chunks, bytes:  sent, by the tier they came from here
    refused:        requests that got no chunk, by why
    filled:         bytes that this machine's own fills brought, by tier
    """

    def __init__(self) -> None:
        self.chunks: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.filled: Counter[str] = Counter()

    def sent(self, tier: str, size_bytes: int) -> None:
        self.chunks[tier] += 1
        self.bytes[tier] += size_bytes

    @property
    def hit_rate(self) -> float | None:
        """Of the chunks that were sent, which part was here already; None where none was."""
        total = self.chunks.total()
        return None if total == 0 else 1 - self.chunks["mirror"] / total


class Metric:
    """One metric of a page. kind: counter or gauge."""

    def __init__(self, name: str, kind: str, says: str) -> None:
        self._name = name
        self._lines = [f"# HELP {name} {says}", f"# TYPE {name} {kind}"]

    def add(self, value: float, **labels: str) -> "Metric":
        pairs = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        self._lines.append(f"{self._name}{f'{{{pairs}}}' if pairs else ''} {value}")
        return self

    def by(self, label: str, values: Mapping[str, float]) -> "Metric":
        for name, value in sorted(values.items()):
            self.add(value, **{label: name})
        return self

    def __str__(self) -> str:
        return "\n".join(self._lines)


def page(metrics: Iterable[Metric]) -> bytes:
    return ("\n".join(map(str, metrics)) + "\n").encode()


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

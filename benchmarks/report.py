"""What people read of a run: a Markdown table, and a plot of every single measurement."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What is to be reached: (name, section and key, whether it must be at least or at most this, as shown).
_GOALS = (
    ("hit reads over native", ("ratio", "hit_read_over_native"), ">=", 0.97),
    ("hit load over native", ("ratio", "hit_load_over_native"), "<=", 1.05),
    ("locked hit over imports", ("ratio", "hit_ready_over_imports"), "<=", 2.5),
    ("peak memory of a miss, MB", ("miss", "peak_rss_bytes"), "<=", 400e6),
    ("upstream bytes of a hit", ("hit", "upstream_bytes"), "<=", 0),
)


def write_report(found: dict[str, Any], output: Path, name: str, table: str) -> None:
    """Write NAME.json and NAME.md to the directory output."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (output / f"{name}.md").write_text(table)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of them the head, as a table whose columns also line up as text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def hit_miss_table(found: dict[str, Any]) -> str:
    """Return the figures of `hit-miss` as Markdown."""
    miss, hit, native, machine = found["miss"], found["hit"], found["native"], found["machine"]
    size = found["bytes"]
    figures = [
        ("", "miss", "hit", "native"),
        ("whole process until whole", _s(miss["ready_s"]), _s(hit["ready_s"]), ""),
        ("  asking upstream for the branch", "", _s(hit["branch_ready_s"]), ""),
        ("  one pinned source, no spec", "", _s(hit["pinned_ready_s"]), ""),
        ("  `import click, lmdb, msgspec, yaml`", "", "", _s(found["imports"]["ready_s"])),
        ("bytes from upstream", f"{miss['upstream_bytes']:,}", f"{hit['upstream_bytes']:,}", ""),
        ("  of the model's", f"{miss['upstream_bytes'] / size:.2f} ×", f"{hit['upstream_bytes'] / size:.2f} ×", ""),
        ("fetching", _rate(miss["bytes_per_s"]), "", ""),
        ("peak memory", f"{miss['peak_rss_bytes'] / 1e6:.0f} MB", "", ""),
        ("reads, page cache hot", "", _rate(hit["read_bytes_per_s"]), _rate(native["read_bytes_per_s"])),
        ("reads, cold", "", _rate(hit["cold_read_bytes_per_s"]), _rate(native["cold_read_bytes_per_s"])),
        ("from_pretrained", "", _s(hit["load_s"]), _s(native["load_s"])),
    ]  # fmt: skip
    goals = [("goal", "", "found", "reached")]
    for name, (section, key), sign, bound in _GOALS:
        value = found[section][key]
        reached = value >= bound if sign == ">=" else value <= bound
        scale = 1e6 if bound > 1e6 else 1
        goals.append((name, f"{sign} {bound / scale:g}", f"{value / scale:.4g}", "yes" if reached else "no"))
    times = miss["upstream_bytes"] / size
    goals.append(("upstream bytes of a miss", "= 1.00 ×", f"{times:.2f} ×", "yes" if times == 1 else "no"))
    fsync, packages = machine["fsync"], machine["packages"]
    said = (
        f"{size:,} bytes; {found['pairs']} alternating pairs, {found['misses']} misses, medians. {machine['cpu']}, "
        f"{machine['cpus']} CPUs, {machine['memory_bytes'] / 1e9:.0f} GB, Linux {machine['kernel']}, "
        f"{machine['filesystem']}, fsync {fsync['median_s'] * 1e3:.2f} ms (p99 {fsync['p99_s'] * 1e3:.2f}), "
        f"load average {machine['load_average']:.1f}; Python {machine['python']}, torch "
        f"{packages.get('torch', '–')}, bdnfs at {machine['commit']}, {machine['date']}.\n"
    )
    return "\n".join(("# Miss, hit and a plain directory\n", said, markdown(figures), markdown(goals)))


def hit_miss_plot(found: dict[str, Any], path: Path) -> None:
    """Draw every measurement as a dot and the medians as lines; write a PNG to path."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    raw, small = found["raw"], found["bytes"] < 1e9
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    imports_s = found["imports"]["ready_s"]
    _strips(
        axes[0][0],
        "mounting what is whole, whole process, ms",
        {
            "imports": [1e3 * value for value in raw["imports_s"]],
            "locked": [1e3 * value for value in raw["locked_ready_s"]],
            "pinned": [1e3 * value for value in raw["pinned_ready_s"]],
            "branch": [1e3 * value for value in raw["branch_ready_s"]],
        },
        (2.5e3 * imports_s, "2.5 × imports"),
    )
    _strips(
        axes[0][1],
        "sequential 1 MiB reads, page cache hot, GB/s",
        {name: [value / 1e9 for value in raw[f"{name}_read_bytes_per_s"]] for name in ("native", "hit")},
        (0.97 * found["native"]["read_bytes_per_s"] / 1e9, "0.97 × native"),
    )
    _strips(
        axes[1][0],
        "from_pretrained, page cache hot, s",
        {name: raw[f"{name}_load_s"] for name in ("native", "hit")},
        (1.05 * found["native"]["load_s"], "1.05 × native"),
    )
    _strips(
        axes[1][1],
        "until everything is whole, s",
        {"miss": raw["miss_ready_s"], "hit, locked": raw["locked_ready_s"]},
        None,
    )
    size = f"{found['bytes'] / (1e6 if small else 1e9):.2f} {'MB' if small else 'GB'}"
    figure.suptitle(
        f"{size}, {found['pairs']} pairs; {found['machine']['cpus']} CPUs, {found['machine']['filesystem']}"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _strips(axis: Any, title: str, columns: dict[str, list[float]], goal: tuple[float, str] | None) -> None:
    for place, values in enumerate(columns.values()):
        spread = [place + 0.24 * ((index + 0.5) / len(values) - 0.5) for index in range(len(values))]
        axis.plot(spread, values, "o", markersize=4, alpha=0.6)
        axis.hlines(statistics.median(values), place - 0.25, place + 0.25, color="black")
        axis.annotate(
            f"{statistics.median(values):.3g}", (place + 0.28, statistics.median(values)), va="center"
        )
    if goal is not None:
        axis.axhline(goal[0], linestyle="--", linewidth=1, color="gray")
        axis.annotate(goal[1], (-0.48, goal[0]), va="bottom", fontsize=8, color="gray")
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(bottom=0)
    axis.set_xticks(range(len(columns)), list(columns))
    axis.set_title(title, fontsize=10)


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.2f} GB/s"

"""check."""

import os
from typing import Any

import click

from trainer.cli.options import override_options, take_overrides


@click.command(short_help="Validate a config and print the resolved job; submit nothing.")
@click.argument("config")
@override_options
def check(config: str, no_gpu_check: bool, **options: Any) -> None:
    """Validate CONFIG (a config.py) and print the resolved job as JSON. Submits and fetches nothing.

    Missing secrets, weights that can't be delivered, and GPUs that are not there are errors; what
    this machine does differently is in `notes`.
    """
    import json
    from dataclasses import replace

    from trainer.config import load_config as load_own_config
    from trainer.loading import load_config, overridden, preflight, secrets_of

    own = load_own_config(os.environ)
    loaded = load_config(config)
    loaded = replace(loaded, project=overridden(loaded.project, take_overrides(options)))
    bdnfs_config = None if own.bdnfs_config is None else str(own.bdnfs_config)
    notes = preflight(loaded, environment=os.environ, bdnfs_config=bdnfs_config)
    gpus = _gpus(loaded.project.job.compute, own.gpus, checked=not no_gpu_check)
    for line in loaded.warnings:
        click.echo(f"trainer: warning: {line}", err=True)
    resolved = {
        "config": str(loaded.path),
        "project": loaded.project.name,
        "team": loaded.project.team_name,
        "job": loaded.project.job.model_dump(mode="json"),
        "secrets": [{"name": name, "for": place} for name, place in secrets_of(loaded.project).items()],
        "gpus": gpus,
        "notes": list(notes),
        "warnings": list(loaded.warnings),
    }
    print(json.dumps(resolved, indent=2))


def _gpus(compute: Any, limit: int | None, *, checked: bool) -> dict[str, Any]:
    from trainer.scheduling.gpus import check_gpus, machine_gpus

    spec = compute.accelerator
    count, kind = (
        (0, "") if spec is None else (spec.count, spec.accelerator.value if spec.accelerator else "")
    )
    found = machine_gpus(limit)
    if checked:
        check_gpus(found, count, kind)
    return {"wanted": count, "kind": kind or None, "here": [gpu.name for gpu in found], "checked": checked}

"""doctor."""

import click

from bdnfs.cli.arguments import config_option, json_option, read_config


@click.command(short_help="Say what this machine can do, and what to install.")
@json_option
@config_option
def doctor(as_json: bool, config: str | None) -> int:
    """Say what this machine can do: FUSE, mounting, hand-off, namespaces, read-ahead, disk, its cluster."""
    import json

    from bdnfs.fs.machine import findings as examine

    loaded = read_config(config)
    findings = list(examine(loaded.cache.directory))
    if loaded.cluster is not None:
        from bdnfs.session.cluster_status import findings as examine_cluster

        findings += examine_cluster(loaded.cluster)
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings]))
    else:
        for finding in findings:
            print(f"{'ok ' if finding.ok else 'NO '} {finding.name}: {finding.detail}")
            if not finding.ok and finding.remedy:
                print(f"      {finding.remedy}")
    return 0

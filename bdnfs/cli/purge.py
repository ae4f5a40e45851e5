"""purge: everything of a tenant."""

import os
import sys

import click

from bdnfs.cli.arguments import config_option, node_cache, read_config
from bdnfs.core.errors import SpecError
from bdnfs.core.units import format_size


@click.command(short_help="Delete everything of a tenant: in the mirror and on this node.")
@click.option("--tenant", required=True, help="Whose; `default` where configs name none.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@config_option
def purge(tenant: str, yes: bool, config: str | None) -> None:
    """Delete everything of a tenant, in the mirror and in this node's cache.

    Other nodes' caches are purged where they are. Nothing brings it back but its upstreams.
    """
    import msgspec

    from bdnfs.session.mirror import open_mirror
    from bdnfs.session.mirror_upkeep import evict_tenant, purge_mirror
    from bdnfs.session.parts import read_secrets
    from bdnfs.spec.config import check_tenant

    check_tenant(tenant, "--tenant")
    loaded = msgspec.structs.replace(read_config(config), tenant=tenant)
    opened = open_mirror(loaded, read_secrets((), loaded, os.environ))
    try:
        where = f"{opened.versions.store.name} and " if opened else ""
        asked = f"Delete everything of the tenant {tenant} in {where}{loaded.cache.directory}?"
        if not yes and not sys.stdin.isatty():
            raise SpecError("purge asks before it deletes, and there is no terminal here; give --yes")
        if not yes and not click.confirm(asked, err=True):
            raise SpecError("nothing was purged")
        freed_bytes = 0
        if os.path.exists(os.path.join(loaded.cache.directory, "index.lmdb")):
            with node_cache(loaded) as cache:
                freed_bytes = evict_tenant(cache, tenant)
        objects = purge_mirror(opened, tenant) if opened else 0
    finally:
        if opened is not None:
            opened.close()
    print(f"{format_size(freed_bytes)} freed on this node, {objects} objects deleted in the mirror")

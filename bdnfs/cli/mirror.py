"""mirror: a spec's sources into the mirror; and what is in it."""

import json
import os
import time
from typing import TYPE_CHECKING, Any

import click

from bdnfs.cli.arguments import Duration, config_option, json_option, read_call, read_config, resolve_options
from bdnfs.cli.progress import MODES, Shower
from bdnfs.core.errors import SpecError
from bdnfs.core.units import format_duration, format_size
from bdnfs.spec.config import Config

if TYPE_CHECKING:
    from bdnfs.session.mirror import Mirror

_SPEC = ""  # what nobody can type: `bdnfs mirror SPEC` has no word before its spec


class _Mirror(click.Group):
    """A group that takes a spec where the first word is none of its commands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_SPEC, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Mirror, short_help="Bring a spec's sources into the mirror; look after it.")
def mirror() -> None:
    """Bring what a spec declares into the mirror, once; look after the mirror.

    \b
        bdnfs mirror SPEC        upstream to mirror: only what it lacks moves
        bdnfs mirror ls          its versions
        bdnfs mirror verify      whether every object is what its name says
    """


@mirror.command(_SPEC, hidden=True, short_help="Bring a spec's sources into the mirror.")
@click.argument("spec_file", metavar="SPEC")
@json_option
@resolve_options
def spec(spec_file: str, as_json: bool, **options: Any) -> None:
    """Bring every source of SPEC, at its revision now (or in spec.lock), into the mirror."""
    from bdnfs.session.mirror import open_mirror
    from bdnfs.session.mirroring import mirror_source

    call = read_call(spec_file, None, unplaced=True, **options)
    opened = open_mirror(call.config, call.secrets)
    if opened is None:
        raise _none()
    results = []
    try:
        for item in call.placed:
            call.shower.restart("mirror")
            result = mirror_source(
                opened,
                call.config,
                item.weights,
                call.options,
                call.secrets,
                call.shower.show,
                call.shower.warn,
            )
            results.append(result)
            if not as_json:
                moved = f"{format_size(result.moved_bytes)} moved" if result.moved_bytes else "nothing moved"
                print(f"{item.weights.source.text} is {result.row.ref}")
                size = format_size(result.row.size)
                print(f"    {result.row.revision}, {result.row.files} files, {size}, {moved}")
    finally:
        call.shower.close()
        opened.close()
    if as_json:
        print(
            json.dumps({"sources": [shown(each.row) | {"moved_bytes": each.moved_bytes} for each in results]})
        )


def shown(row: Any) -> dict[str, Any]:
    """Return what JSON says of a version."""
    return {
        "ref": str(row.ref),
        "source": row.source,
        "revision": row.revision,
        "branch": row.branch,
        "patterns": row.patterns,
        "digest": row.digest,
        "sequence": row.sequence,
        "created_s": row.created_s,
        "files": row.files,
        "bytes": row.size,
    }


def _none() -> SpecError:
    return SpecError("the config names no mirror; write mirror: s3://bucket/prefix, or a directory, into it")


def _open(config: Config) -> "Mirror":
    from bdnfs.session.mirror import open_mirror
    from bdnfs.session.parts import read_secrets

    opened = open_mirror(config, read_secrets((), config, os.environ))
    if opened is None:
        raise _none()
    return opened


@mirror.command()
@click.argument("refs", nargs=-1, metavar="[REF]...")
@json_option
@config_option
def ls(refs: tuple[str, ...], as_json: bool, config: str | None) -> None:
    """List the versions in the mirror (of the volumes REF): oldest first."""
    from bdnfs.session.mirror_upkeep import chosen

    opened = _open(read_config(config))
    try:
        rows = chosen(opened, refs)
        volumes = {row.ref._replace(digest=None) for row in rows}
        tags = {volume: opened.versions.tags(volume) for volume in volumes}
    finally:
        opened.close()

    def names(row: Any) -> list[str]:
        own = tags[row.ref._replace(digest=None)]
        return [tag for tag, digest in own.items() if digest == row.digest]

    if as_json:
        print(json.dumps({"versions": [shown(row) | {"tags": names(row)} for row in rows]}))
        return
    for row in rows:
        named = f" :{' :'.join(names(row))}" if names(row) else ""
        age = format_duration(max(0.0, time.time() - row.created_s))
        print(f"{row.ref._replace(digest=row.digest[3:15])}{named}")
        print(f"    {row.source} at {row.revision}, {row.files} files, {format_size(row.size)}, {age} old")
    if not rows:
        print("the mirror holds nothing yet; `bdnfs mirror SPEC` brings a spec's sources into it")


@mirror.command()
@click.argument("refs", nargs=-1, metavar="[REF]...")
@click.option("--repair", is_flag=True, help="Bring what is damaged from upstream again.")
@click.option("--spec", metavar="SPEC", help="Whose auth is used to ask upstream.")
@click.option("--progress", type=click.Choice(MODES), help="bar, plain or json lines, on standard error.")
@json_option
@config_option
def verify(
    refs: tuple[str, ...],
    repair: bool,
    spec: str | None,
    progress: str | None,
    as_json: bool,
    config: str | None,
) -> None:
    """Read every object that versions (REF, or all) name; say which are not what they should be."""
    from bdnfs.session.mirror_upkeep import chosen, damaged_error, mend, repaired, torn
    from bdnfs.session.mirror_upkeep import verify as check
    from bdnfs.session.parts import as_written, read_secrets
    from bdnfs.spec.load import load_spec

    loaded = read_config(config)
    placed = as_written(load_spec(spec, None, cwd=os.getcwd())) if spec else ()
    secrets = read_secrets(placed, loaded, os.environ)
    opened = _open(loaded)
    shower = Shower(progress, doing="check")
    try:
        names = torn(opened.versions)
        for name in names:
            shower.warn(f"{opened.versions.store.name}: {name.key} {name.why}")
        if repair and names:
            mend(opened.versions, names)
        rows = chosen(opened, refs)
        found = check(opened, rows, shower.show)
        left = found
        if repair and found:
            weights = [item.weights for item in placed]
            left = repaired(opened, loaded, found, weights, secrets, shower.warn)
            again = check(opened, [damage.row for damage in found if damage not in left], shower.show)
            left = [*left, *again]
    finally:
        shower.close()
        opened.close()
    if as_json:
        damaged = [
            {"ref": str(each.row.ref), "said": each.said, "repaired": each not in left} for each in found
        ]
        told = [{"key": name.key, "said": name.why, "repaired": repair} for name in names]
        print(json.dumps({"versions": len(rows), "damaged": damaged, "names": told}))
    else:
        for name in names:
            print(f"{name.key}: {'repaired' if repair else 'damaged'}")
        for damage in found:
            print(f"{damage.row.ref}: {'damaged' if damage in left else 'repaired'}")
        print(f"{len(rows)} versions checked, {len(found)} damaged, {len(found) - len(left)} repaired")
    if left or (names and not repair):
        raise damaged_error(opened, left, [] if repair else names, len(rows))


@mirror.command()
@click.argument("ref")
@click.option("--all", "every", is_flag=True, help="Every version of the volume.")
@config_option
def rm(ref: str, every: bool, config: str | None) -> None:
    """Remove a version (REF with its :tag or @digest); `gc` takes what only it named."""
    from bdnfs.session.mirror_upkeep import chosen, remove
    from bdnfs.spec.volume import parse_ref

    named = parse_ref(ref)
    if not (named.tag or named.digest or every):
        raise SpecError(
            f"{ref}: names a volume; give a version's :tag or @digest, or --all for every version"
        )
    opened = _open(read_config(config))
    try:
        rows = chosen(opened, [ref])
        remove(opened, rows)
    finally:
        opened.close()
    for row in rows:
        print(f"{row.ref} is removed; `bdnfs mirror gc` frees its room")


@mirror.command()
@click.option(
    "--grace", type=Duration(), default=86400.0, metavar="DURATION", help="Younger objects stay (1d)."
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--timeout", type=Duration(), default=600.0, metavar="DURATION", help="The longest wait (10m).")
@json_option
@config_option
def gc(grace: float, dry_run: bool, timeout: float, as_json: bool, config: str | None) -> None:
    """Delete objects that no version names and that are older than the grace period."""
    from bdnfs.session.mirror_upkeep import gc as collect

    opened = _open(read_config(config))
    try:
        done = collect(opened, grace, dry_run=dry_run, deadline_s=time.monotonic() + timeout)
    finally:
        opened.close()
    if as_json:
        print(json.dumps({"objects": done.objects, "bytes": done.size_bytes, "kept": done.kept}))
        return
    kept = f"; {done.kept} younger ones stay for now" if done.kept else ""
    would = "would be " if dry_run else ""
    print(f"{done.objects} objects, {format_size(done.size_bytes)}, {would}deleted{kept}")

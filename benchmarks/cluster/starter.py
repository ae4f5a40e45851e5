"""A `bdnfs` command that has imported what it needs and waits: python -m benchmarks.cluster.starter WORD...

It says `ready`, and begins at a line on its input. What an interpreter's start costs is a hit's matter; here, with
little data on little links and N of them on one machine, it would be a large part of what is measured.
"""

import sys


def main() -> None:
    import bdnfs.cli.mount
    import bdnfs.cluster.client
    import bdnfs.mirror.opening
    import bdnfs.origins.hub
    import bdnfs.session.filling
    import bdnfs.tiers.peer  # noqa: F401
    from bdnfs.cli import main as command

    print("ready", flush=True)
    if sys.stdin.readline():
        command(sys.argv[1:])


if __name__ == "__main__":
    main()

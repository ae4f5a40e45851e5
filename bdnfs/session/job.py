"""What a daemon is started with: JSON on its stdin, secrets included, so never in argv."""

import msgspec

from bdnfs.session.options import Options
from bdnfs.spec.config import Config
from bdnfs.spec.load import Placed
from bdnfs.spec.secret import Secrets


class Job(msgspec.Struct, frozen=True):
    """What a daemon is to do.

    placed, revisions, selections: one for each source, in order; a revision may be None
    direct: the FUSE session itself sits at this mountpoint (no right to bind), sources below it
    starter: the pid of the command that started it
    """

    config: Config
    options: Options
    secrets: Secrets
    placed: tuple[Placed, ...]
    revisions: tuple[str | None, ...]
    selections: tuple[str, ...]
    direct: str | None = None
    starter: int = 0

"""Interactive sessions: an editor or a shell in the job."""

from enum import StrEnum

from trainer.definitions.base import Exact


class InteractiveSessionTrigger(StrEnum):
    """When a session opens."""

    ON_DEMAND = "on_demand"
    ON_STARTUP = "on_startup"
    ON_FAILURE = "on_failure"


class InteractiveSessionProvider(StrEnum):
    """What a session is for."""

    VS_CODE = "vs_code"
    CURSOR = "cursor"
    SSH = "ssh"


class InteractiveSessionAuthProvider(StrEnum):
    """Who vouches for whoever connects."""

    MICROSOFT = "microsoft"
    GITHUB = "github"


class InteractiveSession(Exact):
    """On one's own machine a session is a shell: the trainer takes this and says that it opens none."""

    trigger: InteractiveSessionTrigger = InteractiveSessionTrigger.ON_DEMAND
    timeout_minutes: int = 480
    session_provider: InteractiveSessionProvider = InteractiveSessionProvider.VS_CODE
    auth_provider: InteractiveSessionAuthProvider = InteractiveSessionAuthProvider.MICROSOFT

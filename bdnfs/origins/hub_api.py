"""The Hub's HTTP API as far as both the origin and the hit path speak it: URLs, refusals, commits."""

import re
from typing import Any
from urllib.parse import quote

from bdnfs.core.errors import BdnfsError, CredentialsError, NotFoundError, UpstreamError
from bdnfs.origins.answers import Headers, status_error

DEFAULT_REVISION = "main"
# The refusals that are told apart; whatever else a server says is not passed on.
_CODES = ("GatedRepo", "DisabledRepo", "RepoNotFound")
_COMMIT = re.compile("[0-9a-f]{40}", re.ASCII)


class HubRepository:
    """One repository at one endpoint. kind: "model" or "dataset"; endpoint: without a slash at its end."""

    def __init__(self, endpoint: str, repo: str, kind: str) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._api = f"{self.endpoint}/api/{kind}s/{quote(repo)}"
        self.page = f"{self.endpoint}/{'datasets/' if kind == 'dataset' else ''}{quote(repo)}"
        self.name = f"hf://{'datasets/' if kind == 'dataset' else ''}{repo}"

    def revision_url(self, revision: str) -> str:
        return f"{self._api}/revision/{quote(revision, safe='')}?expand=sha"

    def tree_url(self, commit: str) -> str:
        return f"{self._api}/tree/{commit}?recursive=true"

    def file_url(self, commit: str, path: str) -> str:
        return f"{self.page}/resolve/{commit}/{quote(path)}"

    def commit_in(self, info: Any, revision: str) -> str:
        """Return the commit that the revision API's answer names; UpstreamError if it names none."""
        commit = info.get("sha") if isinstance(info, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise UpstreamError(
                f"resolving {self.name}@{revision}: {self.endpoint} named no commit in its answer; "
                "check that HF_ENDPOINT is a Hub"
            )
        return commit

    def refusal(
        self, doing: str, url: str, status: int, headers: Headers, revision: str, *, with_token: bool
    ) -> BdnfsError:
        """Return the error for an answer of the Hub that is no success."""
        code, said = headers.get("X-Error-Code"), (headers.get("X-Error-Message") or "").lower()
        answered = f"{doing}: {self.endpoint} answered {status}{f' {code}' if code in _CODES else ''}"
        if code == "GatedRepo" and with_token:
            return CredentialsError(
                f"{answered}: {self.name} is gated, and the account of the token given was not granted access; "
                f"accept its licence at {self.page} with that account, or give the token of one that did"
            )
        if code == "GatedRepo":
            return CredentialsError(
                f"{answered}: {self.name} is gated and no token was given; accept its licence at {self.page}, "
                "then set HF_TOKEN or auth_secret_name"
            )
        if code == "DisabledRepo":
            return CredentialsError(f"{answered}: the Hub has disabled {self.name}; see {self.page}")
        if code == "RevisionNotFound":
            return NotFoundError(
                f"{doing}: {self.name} has no branch, tag or commit {revision!r}; "
                f"{self.page}/tree/main lists them"
            )
        if code == "EntryNotFound":
            return NotFoundError(
                f"{doing}: no such file in {self.name}@{revision}; check its name at {self.page}"
            )
        if status == 401 and with_token and "invalid credentials" in said:
            return CredentialsError(
                f"{answered}: it does not know the token that was given; make a new one in the Hub's "
                "settings and set HF_TOKEN or auth_secret_name"
            )
        if code == "RepoNotFound" or (status == 404 and not code):
            private = "its token may not read it" if with_token else "it needs HF_TOKEN or auth_secret_name"
            return NotFoundError(
                f"{doing}: {self.endpoint} has no {self.name}, or it is private and {private}; "
                "check its spelling"
            )
        if status in (401, 403):
            given = "the token given does not open it" if with_token else "set HF_TOKEN or auth_secret_name"
            return CredentialsError(
                f"{answered}: it refuses access to {self.name}; {given}, or it does not exist"
            )
        return status_error(doing, url, status, headers)

"""The rules of the state machine that call commands, or kill what they started."""

import hashlib
import os
import signal
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.commands.node import Done, until
from tests.model.oracle import CONTENTS, Files, Mounted
from tests.model.standing import Standing

# What a number chooses from depends on what is there; the number itself must not.
numbers = st.integers(0, 1 << 40)
places = st.sampled_from(("a", "deep/b", "c"))
hows = st.sampled_from(("filling", "whole", "window"))
SPACE, UPSTREAM, INTEGRITY, REFUSED = 4, 5, 6, 8


class Commanding(Standing):
    """What a user does."""

    def failed_rightly(self, done: Done, revisions: set[str], *, pinned: bool, hit: bool) -> None:
        """Check that a command that wants one of revisions failed for a reason there is."""
        oracle = self.oracle
        if done.code == SPACE:
            assert any(map(oracle.may_not_fit, revisions)), done.error
        elif done.code == UPSTREAM:
            assert not oracle.fetched, done.error
            # What is here needs no upstream; a branch needs to have been seen.
            sure = hit and revisions <= oracle.whole and (pinned or oracle.listed or None not in oracle.seen)
            assert not sure, done.error
        else:
            raise AssertionError(f"ended with {done.code}: {done.error}")

    def wanted(self, which: int, branch: bool) -> tuple[str, set[str]]:
        """Return a source, and the revisions it may mean now."""
        if not branch:
            revision = self.chosen(which)
            return f"hf://{self.repo}@{revision}", {revision}
        meant = {self.oracle.newest} if self.oracle.listed else {each for each in self.oracle.seen if each}
        return f"hf://{self.repo}", meant

    def asked(self, branch: bool, done: Done) -> None:
        """Remember where the branch may have been seen."""
        if branch and self.oracle.listed:
            newest: set[str | None] = {self.oracle.newest}
            self.oracle.seen = newest if done.code == 0 else self.oracle.seen | newest

    @rule(place=places, which=numbers, branch=st.booleans())
    def mount_whole(self, place: str, which: int, branch: bool) -> None:
        self.mount(place, which, branch, "whole")

    @rule(place=places, which=numbers, branch=st.booleans())
    def mount_lazily(self, place: str, which: int, branch: bool) -> None:
        self.mount(place, which, branch, "filling")

    @rule(place=places, which=numbers, branch=st.booleans())
    def mount_a_window(self, place: str, which: int, branch: bool) -> None:
        self.mount(place, which, branch, "window")

    @rule(which=numbers, other=numbers, how=hows)
    def mount_another(self, which: int, other: int, how: str) -> None:
        """In the place of one that is there."""
        if self.oracle.mounts:
            location = sorted(self.oracle.mounts)[which % len(self.oracle.mounts)]
            place = os.path.relpath(location, self.node.m)
            self.unmount(place, False)
            self.mount(place, other, False, how)

    def mount(self, place: str, which: int, branch: bool, how: str) -> None:
        oracle, location = self.oracle, self.location(place)
        there = oracle.mounts.get(location)
        if there and there.state == "filling" and how == "whole" and (there.troubled or not oracle.fetched):
            return  # it would wait for the fill's next try, or for ever
        source, meant = self.wanted(which, branch)
        options = {"whole": [], "filling": ["--lazy"], "window": ["--lazy", "--no-fill"]}[how]
        dead = there is not None and self.is_dead(location)
        done = self.command("mount", *options, source, location)
        if dead and done.code == 0:
            del oracle.mounts[location]
        self.asked(branch, done)
        for revision in meant:
            oracle.asked_for(revision)
        self.look_at_the_dead()
        there = oracle.mounts.get(location)
        if done.code == REFUSED and there:
            assert there.revision not in meant or len(meant) > 1 or there.state == "window", done.error
        elif done.code:
            self.failed_rightly(done, meant, pinned=not branch, hit=True)
            assert there or not self.node.shown(Path(location)), "failed, and left a mount"
        else:
            self.mounted(location, meant, how)

    def mounted(self, location: str, meant: set[str], how: str) -> None:
        """Take a mount that succeeded into the dicts, and look at it."""
        oracle, shown = self.oracle, self.node.shown(Path(location))
        (revision,) = {self.revision_at(location)} & meant
        there = oracle.mounts.get(location)
        if there:
            assert there.revision == revision
        else:
            assert how == "window" or not oracle.can_not_fit(revision), "more than the capacity"
            oracle.mounts[location] = Mounted(revision, how, not oracle.fetched)
        there = oracle.mounts[location]
        assert how != "whole" or shown == "native", f"mounted {how}, and is {shown}"
        if shown == "native":
            self.is_whole_now(there)

    @rule(place=places)
    def wait(self, place: str) -> None:
        there = self.oracle.mounts.get(self.location(place))
        if there and there.state != "dead" and not (there.troubled or not self.oracle.fetched):
            done = self.command("wait", self.location(place))
            assert done.code == (REFUSED if there.state == "window" else 0), done.error
            if done.code == 0:
                assert self.node.shown(Path(self.location(place))) == "native"
                self.is_whole_now(there)

    @rule(what=st.sampled_from(("run", "prefetch", "pin")), which=numbers, branch=st.booleans())
    def have(self, what: str, which: int, branch: bool) -> None:
        {"run": self.run, "prefetch": self.prefetch, "pin": self.pin}[what](which, branch)

    def prefetch(self, which: int, branch: bool) -> None:
        source, meant = self.wanted(which, branch)
        done = self.command("prefetch", source)
        self.fetched(done, branch, meant)

    def fetched(self, done: Done, branch: bool, meant: set[str]) -> None:
        self.asked(branch, done)
        for revision in meant:
            self.oracle.asked_for(revision)
        if done.code:
            self.failed_rightly(done, meant, pinned=not branch, hit=True)
        elif len(meant) == 1:
            (revision,) = meant
            assert not self.oracle.can_not_fit(revision), "more than the capacity"
            self.oracle.now_whole(revision)

    def run(self, which: int, branch: bool) -> None:
        """A command sees all of it, right."""
        source, meant = self.wanted(which, branch)
        script = 'cd "$0" && find . -type f | sort | xargs sha256sum'
        location = self.node.m / "run"
        done = self.command("run", source, location, "--", "sh", "-c", script, location)
        if done.code == 0:
            lines = (line.split("  ./") for line in done.out.splitlines())
            seen = {path: digest for digest, path in lines}
            assert any(seen == _sums(self.oracle.files[revision]) for revision in meant), seen
        self.fetched(done, branch, meant)

    def pin(self, which: int, branch: bool) -> None:
        source, meant = self.wanted(which, False)
        done = self.command("pin", source, "--until", "1d")
        self.fetched(done, False, meant)
        if done.code == 0:
            self.oracle.dates |= meant

    @rule(what=st.sampled_from(("evict", "verify", "status", "unpin")))
    def look_after_it(self, what: str) -> None:
        {"evict": self.evict, "verify": self.verify, "status": self.status, "unpin": self.unpin}[what]()

    def unpin(self) -> None:
        assert self.command("pin", f"hf://{self.repo}", "--off").code == 0
        self.oracle.dates.clear()

    def evict(self) -> None:
        oracle = self.oracle
        lingering = oracle.closed if self.node.daemons() else set()
        assert self.command("cache", "evict").code == 0
        oracle.whole &= oracle.surely_kept()
        present = self.node.run("cache", "du", "--json").json["present_bytes"]
        most = oracle.bytes_of(oracle.perhaps_kept() | lingering) + oracle.window_bytes()
        assert present <= most, f"{present} bytes are left of at most {most}"

    @rule(place=places, force=st.booleans())
    def unmount(self, place: str, force: bool) -> None:
        oracle, location = self.oracle, self.location(place)
        there = oracle.mounts.get(location)
        done = self.command("unmount", location, *(["--force"] if force else []))
        using = [each for each in oracle.handles.values() if each.location == location and not each.lost]
        if there is None or (done.code == REFUSED and using and not force):
            assert done.code == REFUSED, done.error
            return
        assert done.code == 0, done.error
        assert force or there.state == "dead" or not using, "unmounted what is in use"
        assert not self.node.shown(Path(location))
        del oracle.mounts[location]
        for handle in using:
            handle.location, handle.lost = None, not handle.native
        self.look_at_the_dead()

    @rule(which=numbers)
    def crash(self, which: int) -> None:
        """kill -9 of a daemon."""
        daemons = sorted(self.node.daemons())
        if daemons:
            pid = daemons[which % len(daemons)]
            self.log.append(f"kill -9 {pid} of {len(daemons)}")
            os.kill(pid, signal.SIGKILL)
            until(lambda: _has_ended(pid), "the daemon's end")
            for handle in self.oracle.handles.values():
                handle.lost = not handle.native
            self.oracle.whole &= self.oracle.surely_kept()

    def status(self) -> None:
        """Tells what is mounted; clears what the dead left."""
        done = self.command("status", "--json")
        assert done.code == 0
        self.look_at_the_dead()
        told = {each["location"] for each in done.json["mounts"]}
        assert told == set(self.oracle.mounts), (told, self.oracle.mounts)

    def verify(self) -> None:
        done = self.command("cache", "verify")
        assert done.code == 0, done.out

    @rule(which=numbers, at=numbers)
    def damage_and_verify(self, which: int, at: int) -> None:
        """A bit flips, under nobody's mount; its time does not tell."""
        used = {
            data
            for revision in self.oracle.perhaps_kept() | {m.revision for m in self.oracle.mounts.values()}
            for data in self.oracle.files[revision].values()
        }
        sizes = {len(data) for data in CONTENTS.values() if data and data not in used}
        blobs = [
            path for path in sorted((self.node.cache / "blobs").glob("*/*")) if path.stat().st_size in sizes
        ]
        blobs = [path for path in blobs if path.read_bytes() in CONTENTS.values()]
        if blobs:
            path = blobs[which % len(blobs)]
            before = path.stat()
            path.chmod(0o600)
            with path.open("r+b") as file:
                file.seek(at % before.st_size)
                byte = file.read(1)[0]
                file.seek(at % before.st_size)
                file.write(bytes([byte ^ 1 << which % 8]))
            path.chmod(before.st_mode & 0o777)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            done = self.command("cache", "verify")
            assert done.code == INTEGRITY, done.out
            assert ", 1 bad" in done.out
            self.oracle.whole &= self.oracle.surely_kept()


def _has_ended(pid: int) -> bool:
    """Whether the process holds nothing any more: its locks go after its name, and with its last thread."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state in "ZX" and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except (FileNotFoundError, ProcessLookupError):
        return True


def _sums(files: Files) -> dict[str, str]:
    return {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}

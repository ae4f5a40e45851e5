"""`writable`: what a job changes in place is its own, counts against its scratch, and goes with it."""

import os
from pathlib import Path

from tests.trainer.confined import confined, needs_root
from trainer.storage.scratch import clear_scratch, make_scratch

CAP = 24 << 20
CHANGE = """
import os, sys
from pathlib import Path
from trainer.storage.mounting import mount
from trainer.storage.overlay import mount_overlay
from trainer.storage.scratch import Scratch
job_dir, source, location, at = map(Path, sys.argv[2:6])
# As bdnfs shows a source: a read-only bind of a tree.
mount(str(source), location, "", flags=4096)
mount("", location, "", flags=4096 | 32 | 1)
try:
    (location / "model").write_text("changed")
except OSError as error:
    print(error.strerror)
place = Scratch(kind="image", cap_bytes=int(sys.argv[1]), job_dir=job_dir).mount(at)
mount_overlay(location, place, "0")
(location / "model").write_text("changed")
(location / "below" / "config").unlink()
(location / "new").write_text("new")
print(sorted(str(path.relative_to(location)) for path in location.rglob("*")))
try:
    (location / "big").write_bytes(bytes(int(sys.argv[1]) * 2))
except OSError as error:
    print(error.strerror)
print((location / "model").read_text())
"""


@needs_root
def test_changes_are_the_jobs_alone(tmp_path: Path) -> None:
    job_dir, source, at = tmp_path / "job", tmp_path / "so:urce,with\\odd name", tmp_path / "at"
    location = tmp_path / "lo:ca,tion"
    for each in (job_dir, source / "below", at, location):
        each.mkdir(parents=True)
    (source / "model").write_text("as it was")
    (source / "below" / "config").write_text("{}")
    for path in (source / "model", source / "below" / "config"):
        path.chmod(0o444)
    make_scratch(job_dir, CAP)
    for _ in range(2):  # the second job begins with the source as it is
        said = confined(CHANGE, CAP, job_dir, source, location, at).splitlines()
        assert said == [
            os.strerror(30),
            "['below', 'model', 'new']",
            os.strerror(28),
            "changed",
        ]
        clear_scratch(job_dir)
        make_scratch(job_dir, CAP)
    clear_scratch(job_dir)
    assert (source / "model").read_text() == "as it was"
    assert (source / "below" / "config").read_text() == "{}"
    assert sorted(os.listdir(source)) == ["below", "model"]
    assert not list(job_dir.iterdir())

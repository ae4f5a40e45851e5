"""docs/semantics.md, "Names and attributes"."""

import os

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, TINY
from tests.commands.node import Node, until
from tests.semantics.talker import Talker

EPOCH_S = 315_532_800  # 1980-01-01T00:00:00Z
NESTED = {"config.json": b"{}", "sub/deep/a.bin": b"a" * 5000, "sub/b.txt": b"", "other/c.txt": b"c"}


def slowly(hub: HubServer) -> None:
    """Keep a lazy mount FUSE until the faults are cleared."""
    hub.faults.add(match="/cdn/", times=None, stall=True)


def test_read_only(node: Node, hub: HubServer) -> None:
    slowly(hub)
    node.configure(upstream={"stall": "1m"})
    for view in ("fuse", "native"):
        words = ["--lazy"] if view == "fuse" else []
        node.run("mount", *words, "hf://acme/tiny", node.m)
        assert node.shown() == view
        (mount,) = [mount for mount in node.mounts() if mount.mountpoint == str(node.m)]
        assert {"ro", "nosuid", "nodev"} <= set(mount.options.split(","))
        file, new = str(node.m / "model.safetensors"), str(node.m / "new")
        with Talker(node) as reader:
            assert reader.ask(f"os.stat({file!r}).st_mode") == 0o100444
            assert reader.ask(f"os.stat({str(node.m)!r}).st_mode") == 0o40555
            for wanted in (
                f"os.open({file!r}, os.O_WRONLY)",
                f"os.open({file!r}, os.O_RDWR)",
                f"os.open({new!r}, os.O_WRONLY | os.O_CREAT)",
                f"os.mkdir({new!r})",
                f"os.unlink({file!r})",
                f"os.rename({file!r}, {new!r})",
                f"os.chmod({file!r}, 0o777)",
                f"os.utime({file!r})",
                f"os.symlink('/', {new!r})",
                f"os.truncate({file!r}, 0)",
            ):
                assert reader.ask(wanted) == "EROFS", (view, wanted)
        node.run("unmount", "--force", node.m)
        hub.faults.clear()
    node.clean()


def test_attributes_are_fixed_and_equal_in_both_views(node: Node, hub: HubServer) -> None:
    hub.commit("acme/nested", {**NESTED, "model.safetensors": BIG["model.safetensors"]})
    slowly(hub)
    node.configure(upstream={"stall": "1m"})
    look = (
        f"[(os.path.relpath(os.path.join(d, n), {str(node.m)!r}), s.st_mode, s.st_size * (n in f), s.st_mtime_ns, "
        f"s.st_uid, s.st_gid) for d, _, f in os.walk({str(node.m)!r}) for n in ['.', *f] "
        "for s in [os.stat(os.path.join(d, n))]]"
    )
    inodes = f"[os.stat(os.path.join(d, n)).st_ino for d, _, f in sorted(os.walk({str(node.m)!r})) for n in sorted(f)]"
    node.run("mount", "--lazy", "hf://acme/nested", node.m)
    with Talker(node) as reader:
        assert node.shown() == "fuse"
        fuse, numbers = reader.ask(look), reader.ask(inodes)
        assert reader.ask(inodes) == numbers
    hub.faults.clear()
    node.run("unmount", node.m)
    node.run("mount", "hf://acme/nested", node.m)
    with Talker(node) as reader:
        assert node.shown() == "native"
        native, others = reader.ask(look), reader.ask(inodes)
        assert reader.ask(inodes) == others
    assert sorted(fuse) == sorted(native)
    sizes = {path: size for path, _, size, _, _, _ in fuse if size}
    assert sizes == {path: len(data) for path, data in (BIG | NESTED).items() if data}
    assert {entry[3] for entry in fuse} == {EPOCH_S * 10**9}
    assert {(entry[4], entry[5]) for entry in fuse} == {(os.geteuid(), os.getegid())}
    node.run("unmount", node.m)
    node.clean()


def test_only_what_was_selected_is_there(node: Node, hub: HubServer) -> None:
    hub.commit("acme/nested", {**NESTED, "model.safetensors": TINY["model.safetensors"]})
    spec = node.spec(
        {
            "source": "hf://acme/nested",
            "mount_location": str(node.m),
            "allow_patterns": ["*.json", "*.safetensors", "sub/**"],
            "ignore_patterns": ["**/*.txt"],
        }
    )
    here = (
        f"sorted(os.path.relpath(os.path.join(d, n), {str(node.m)!r}) for d, s, f in os.walk({str(node.m)!r}) "
        "for n in s + f)"
    )
    kept = ["config.json", "model.safetensors", "sub", "sub/deep", "sub/deep/a.bin"]
    slowly(hub)
    node.configure(upstream={"stall": "1m"})
    for view in ("fuse", "native"):
        node.run("mount", *(["--lazy"] if view == "fuse" else []), spec)
        assert node.shown() == view
        with Talker(node) as reader:
            assert reader.ask(here) == kept
            assert reader.ask(f"os.stat({str(node.m / 'other')!r})") == "ENOENT"
            assert reader.ask(f"os.listxattr({str(node.m / 'config.json')!r})") in (
                [],
                "ENOTSUP",
                "EOPNOTSUPP",
            )
            assert reader.ask(f"os.readlink({str(node.m / 'config.json')!r})") == "EINVAL"
        hub.faults.clear()
        node.run("unmount", "--force", node.m)
    node.clean()


def test_names_are_upstreams_checked(node: Node, hub: HubServer) -> None:
    for name in (
        "/etc/passwd",
        "../up",
        "a/../../up",
        "a/./b",
        "a//b",
        "tab\tor",
        "new\nline",
        "x" * 256,
        "config.json/below",
    ):
        hub.commit("acme/hostile", {**TINY, name: b"hostile"})
        hub.reset()
        for words in (["mount", "--lazy"], ["mount"]):
            said = node.run(*words, "hf://acme/hostile", node.m, code=5)
            assert "\t" not in said.error
            assert hub.bytes_sent == 0, name
            assert not node.shown()
    until(lambda: not node.daemons(), "the lazy mounts' daemons to end")
    # 255 bytes are a name; so is one in any script, and with a space.
    odd = {"y" * 255: b"1", "中文 模型.bin": b"2", "-rf": b"3", "a b'c\"d": b"4"}
    hub.commit("acme/odd", odd)
    node.run("mount", "hf://acme/odd", node.m)
    node.holds(odd)
    node.run("unmount", node.m)
    node.clean()

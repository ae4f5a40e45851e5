"""One node of the libtorrent baseline: python -m benchmarks.cluster.torrent TORRENT DIRECTORY ADDRESS PEER...

It says `ready`, begins at a line on its input, says `whole`, and goes on sending to the others until it is ended.
"""

import sys
import time
from pathlib import Path
from typing import Any

PORT = 6881
_LOOK_S = 0.05
# Nobody outside is to be found, and what is for the Internet (uTP gives way to everything else) is left out.
_SETTINGS = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "out_enc_policy": 2,
    "in_enc_policy": 2,
    "connection_speed": 500,
    "unchoke_slots_limit": 64,
}


def main() -> None:
    import libtorrent

    torrent, directory, address, *peers = sys.argv[1:]
    session: Any = libtorrent.session({**_SETTINGS, "listen_interfaces": f"{address}:{PORT}"})
    wanted: Any = libtorrent.add_torrent_params()
    wanted.ti, wanted.save_path = libtorrent.torrent_info(torrent), directory
    print("ready", flush=True)
    sys.stdin.readline()
    handle = session.add_torrent(wanted)
    for peer in peers:
        handle.connect_peer((peer, PORT))
    while not handle.status().is_seeding:
        time.sleep(_LOOK_S)
    print("whole", flush=True)
    sys.stdin.readline()


def write_torrent(model: Path, piece_bytes: int, web_seed: str, to: Path) -> None:
    """Describe the files in the directory model; web_seed: URL below which that directory is."""
    import libtorrent

    storage: Any = libtorrent.file_storage()
    libtorrent.add_files(storage, str(model))
    created: Any = libtorrent.create_torrent(storage, piece_bytes, libtorrent.create_torrent.v1_only)
    created.add_url_seed(web_seed)
    libtorrent.set_piece_hashes(created, str(model.parent))
    to.write_bytes(libtorrent.bencode(created.generate()))


if __name__ == "__main__":
    main()

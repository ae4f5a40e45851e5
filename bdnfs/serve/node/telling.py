"""What a node tells of itself: to fills and `bdnfs status` as JSON, to Prometheus as a page."""

from typing import Any

from bdnfs.cache.share import Share
from bdnfs.cluster.membership import Member, Membership
from bdnfs.serve.node.metrics import Metric, Served, page
from bdnfs.serve.node.nginx import Nginx
from bdnfs.serve.node.owning import Owning
from bdnfs.serve.node.yielding import Yielding

VERSION = 1


class Telling:
    """nginx: what sends the chunks, None: we do."""

    def __init__(
        self,
        me: Member,
        cluster: str,
        membership: Membership,
        share: Share,
        served: Served,
        owning: Owning,
        yielding: Yielding,
        nginx: Nginx | None,
    ) -> None:
        self._me, self._cluster, self._membership = me, cluster, membership
        self._share, self._served, self._owning, self._yielding = share, served, owning, yielding
        self._nginx = nginx

    def facts(self) -> dict[str, Any]:
        """Return what GET /v1/node says."""
        served, share, rate = self._served, self._share, self._yielding.rate
        members = sorted(self._membership.members(), key=lambda member: member.name)
        return {
            "name": self._me.name,
            "cluster": self._cluster,
            "incarnation": self._me.incarnation,
            "version": VERSION,
            "members": [
                {"name": each.name, "address": each.address, "share_bytes": each.share_bytes}
                for each in members
            ],
            "share": {"cap_bytes": share.cap_bytes, "used_bytes": share.used_bytes, "chunks": len(share)},
            "serving": {
                "state": self._yielding.state,
                "rate_bytes_s": rate.bytes_s,
                "nginx": self._nginx is not None,
                "chunks": dict(served.chunks),
                "bytes": dict(served.bytes),
                "refused": dict(served.refused),
                "hit_rate": served.hit_rate,
                "flights": self._owning.flights,
            },
            "tiers": dict(served.filled),
        }

    def page(self) -> bytes:
        """Return what GET /metrics says."""
        served, share = self._served, self._share
        state = self._yielding.state
        members = self._membership.members()
        return page(
            [
                Metric("bdnfs_chunks_sent_total", "counter", "Chunks sent, by where they came from here.").by(
                    "tier", served.chunks
                ),
                Metric("bdnfs_sent_bytes_total", "counter", "Bytes of chunks sent, by tier.").by(
                    "tier", served.bytes
                ),
                Metric("bdnfs_refused_total", "counter", "Requests that got no chunk, by why.").by(
                    "why", served.refused
                ),
                Metric("bdnfs_filled_bytes_total", "counter", "Bytes this node's own fills got, by tier.").by(
                    "tier", served.filled
                ),
                Metric("bdnfs_share_bytes", "gauge", "Bytes of the share in use.").add(share.used_bytes),
                Metric("bdnfs_share_cap_bytes", "gauge", "Bytes that the share may use.").add(
                    share.cap_bytes
                ),
                Metric("bdnfs_share_chunks", "gauge", "Chunks in the share.").add(len(share)),
                Metric("bdnfs_flights", "gauge", "Chunks on their way here from the mirror or a peer.").add(
                    self._owning.flights
                ),
                Metric("bdnfs_members", "gauge", "Members of the cluster that this node knows.").add(
                    len(members)
                ),
                Metric("bdnfs_serving", "gauge", "1 for what serving does now.").by(
                    "state", {each: int(each == state) for each in ("open", "throttled", "paused")}
                ),
                Metric(
                    "bdnfs_nginx_restarts_total", "counter", "How often nginx had to be started again."
                ).add(self._nginx.restarts if self._nginx else 0),
            ]
        )

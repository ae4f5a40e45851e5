"""What a fill has done so far: plain counters that whoever shows them reads."""

from bdnfs.core.progress import Counters
from bdnfs.delivery.files import OpenFile


class Progress(Counters):
    """Counters of one delivery."""

    def fetched(self, tier: str, size_bytes: int) -> None:
        self.tier_bytes[tier] = self.tier_bytes.get(tier, 0) + size_bytes

    def has(self, file: OpenFile, present_bytes: int) -> None:
        """Note that so many bytes of file are on this node now."""
        self.present_bytes += present_bytes - file.counted_bytes
        file.counted_bytes = present_bytes

    def whole(self, file: OpenFile) -> None:
        """Note that file is whole; once, however often it is said."""
        self.has(file, file.entry.size)
        if not file.counted:
            file.counted = True
            self.files_whole += 1

    @property
    def upstream_bytes(self) -> int:
        return self.tier_bytes.get("origin", 0)

"""Sizes from upstream are hostile until they have passed here."""

from bdnfs.core.errors import UpstreamError

# No store takes a larger file (S3: 50 TB, https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html), and
# what is kept for each chunk of one would no longer fit into memory.
FILE_BYTES_MAX = 1 << 46


def check_size(size: int, path: str, doing: str) -> int:
    """Return size if a file may have it; raise UpstreamError naming the file if not."""
    if 0 <= size <= FILE_BYTES_MAX:
        return size
    raise UpstreamError(
        f"{doing}: upstream lists {path[:120]!r} with {size} bytes, which no file has; nothing was fetched. "
        "Have it mended upstream"
    )

"""What the kernel sees: mounts, the FUSE view, the hand-off to the native tree."""

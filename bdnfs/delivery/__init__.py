"""Getting a snapshot here: resolve, fetch (single-flight, demand first), verify, seal."""

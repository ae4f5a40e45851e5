"""A snapshot's immutable listing, and the rules a name from upstream must pass."""

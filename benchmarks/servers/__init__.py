"""Upstreams on loopback, real enough for real clients, with faults on demand."""

"""The BDN volume format: what a mirror stores, and what its official client reads. Pure; no I/O."""

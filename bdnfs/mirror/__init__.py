"""The mirror: our durable copy, in object storage or a directory, content-addressed by BLAKE3."""

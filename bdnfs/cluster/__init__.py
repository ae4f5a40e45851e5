"""The nodes of a cluster: who is a member now, and which of them owns a chunk."""

"""Jobs as they are recorded: their states, the legal transitions, and a durable store of both."""

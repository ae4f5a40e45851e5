"""Where a chunk can come from: each tier answers with verified bytes, a miss, or an error."""

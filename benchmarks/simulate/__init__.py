"""Clusters that don't fit on one machine: the ring's own code and the scheduler's rules, links and clock modelled."""

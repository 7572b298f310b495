"""Coherence between the clients of one MRC: leases, their recall, and locks, as machines without I/O (docs/protocols/leases.md)."""

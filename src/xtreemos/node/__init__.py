"""Composes everything into the daemons of one node; the only place that wires."""

"""Fakes, simulators and conformance kits; ships with the product."""

"""The grid in a box."""

"""Doors for other people's programs: interfaces that they know already, over ours. Optional packages are imported here and nowhere else."""

"""XtreemOS: a grid operating system for today's Linux."""

__version__ = "0.1.0"

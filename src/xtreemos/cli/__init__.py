"""The xos command, one file per command."""

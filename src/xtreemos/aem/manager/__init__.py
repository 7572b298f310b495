"""Detached jobs of a VO: a replicated manager decides where they run, nodes keep and report them, nothing acknowledged is lost."""

"""The session's agent: holds keys and warm connections, and is the manager of the session's foreground jobs."""

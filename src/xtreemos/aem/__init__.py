"""Application execution management: jobs, sessions, the agent, ghosts."""

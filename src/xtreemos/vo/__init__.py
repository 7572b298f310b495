"""Virtual organisations: life cycle, credentials, policy, audit."""

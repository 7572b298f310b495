"""A POSIX conformance suite for any folder: tables of calls, states, callers and what must come of them."""

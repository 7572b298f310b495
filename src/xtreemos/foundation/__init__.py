"""One Linux node: sandbox, jobs' parent, accounts, facts, keyring, paths. Knows no network and no VO protocol."""

"""Transport: NATS servers and connections, RPC, JWTs."""

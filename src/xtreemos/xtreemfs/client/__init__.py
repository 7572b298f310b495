"""The client: the process that mounts a VO's files on one node. See docs/protocols/xtreemfs-client.md."""

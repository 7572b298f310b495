"""The kernel's FUSE protocol spoken directly on /dev/fuse: codec, asyncio driver, mounting. Knows no grid and no XtreemFS.

`docs/protocols/fuse.md` is the contract. The way in: `handlers.Handlers` (what a file system implements), `mount.mount` (mounts it).
"""

"""The metadata server (MRC): names, attributes, rights and leases of volumes; see docs/protocols/mrc.md."""

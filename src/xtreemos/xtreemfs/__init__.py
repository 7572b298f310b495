"""XtreemFS: one file tree on every node of a grid."""

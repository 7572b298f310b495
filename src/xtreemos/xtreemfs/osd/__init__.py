"""The object server (OSD): keeps columns of files on the disks of one node, with sums, and lets in who shows an MRC's capability."""

"""jobd: parent of the jobs' processes on one node. Small, long-lived, knows streams and exits; no VO, no network, no policy."""

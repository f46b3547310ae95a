"""The chunk server: it keeps replicas of chunks on local disks and moves their bytes."""

"""What happens when a machine fails: kills, full disks, two runs at once, NaN."""

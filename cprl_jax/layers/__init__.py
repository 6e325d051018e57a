"""Network layers that make a score harder to move: each a drop-in for a standard layer, one file each."""

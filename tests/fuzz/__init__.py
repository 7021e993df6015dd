"""Generated input: every case is valid, or refused as documented."""

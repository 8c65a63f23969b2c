"""The store over two tiers: the hot memory in front, the archive behind it or none."""

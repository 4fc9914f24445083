"""Tasks that come with fedray, one file each."""

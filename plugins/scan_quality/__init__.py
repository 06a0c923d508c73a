"""What a scan suffers from and what the corrections do about it, as a picture beside the scan."""

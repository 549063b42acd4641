"""What a choice means: adding, listing, exporting and importing annotations."""

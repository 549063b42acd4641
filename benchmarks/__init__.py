"""Claims about prefanno, one script each, with its peer in the same run."""

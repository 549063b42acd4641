"""Tables and queries. One writer, many readers."""

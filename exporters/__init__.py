"""File formats, one module each, registered under the entry point group `prefanno.exporters`."""

"""The real server, the real model, over HTTP and WebSocket only."""

"""HTTP and WebSocket: parse, one call, one reply. No rules, no SQL, no torch."""

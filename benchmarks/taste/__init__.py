"""Does taste arrive? Forty hand-written pairs, twenty other questions, and the measure of the replies."""

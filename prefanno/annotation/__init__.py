"""What a choice means: adding, choosing, editing, history, conversations, erasing, exporting and importing."""

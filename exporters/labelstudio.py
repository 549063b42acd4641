"""Label Studio's pairwise and ranker exports."""

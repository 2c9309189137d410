"""What a run did, for people to read: the closing text, a table and plots."""

SAMPLE_PLOTS = {"lengths": "Protein lengths", "map": "Map of the embeddings"}
CALL_PLOTS = {
    "call_tracks": "Scores along the strongest contigs",
    "call_scores": "Distribution of scores",
    "call_counts": "Contigs by call",
}
RUN_PLOTS = {"throughput": "Throughput by chunk and device", "packing": "Padding avoided"}
"""The plots of a sample, of its calls and of the run: names of files without their endings, and what they show."""

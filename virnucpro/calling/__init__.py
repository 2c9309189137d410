"""VirNucPro's last step: features of frames to scores, scores to calls of windows and contigs."""

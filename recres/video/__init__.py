"""From video files to batches of frames: decode, sample, augment, keep, prefetch."""

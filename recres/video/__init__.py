"""From video files to batches of frames: decode, sample, augment, keep, prefetch.

The modules are imported by name (`from recres.video.decode import read_frames`): what stands
here must happen before any of them imports cv2.
"""

import os

# A damaged file makes FFmpeg and OpenCV write lines of their own on stderr. What went wrong is
# said once, by VideoError. Both variables are read when the libraries load, hence here; one that
# is already set is left alone.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

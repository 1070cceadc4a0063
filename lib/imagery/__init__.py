"""Pictures and scenes in and out: files and arrays as RGB, layers and outlines of masks. It knows no network."""

"""Pictures in and out: files and arrays as RGB, georeferences, outlines of masks, drawings. It knows no network."""

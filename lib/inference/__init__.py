"""What demo_inference.py does beside the network: lists of pairs in, and the files of each image out."""

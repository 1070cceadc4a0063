"""The tests. Hugging Face's hub is not asked: the network is not needed, and waiting for it takes minutes."""
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

"""The report: its page, gallery, pictures and attention maps."""

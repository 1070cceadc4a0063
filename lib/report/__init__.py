"""The report of an evaluation: its page, gallery and attention maps, and the model card."""

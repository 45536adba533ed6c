"""One run: its plan, its images, its measurements, its record."""

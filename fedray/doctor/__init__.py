"""What this machine has and lacks, and how fast and how large training really is on it."""

from fedray.doctor.examination import Examination, examine
from fedray.doctor.words import show

__all__ = ["Examination", "examine", "show"]

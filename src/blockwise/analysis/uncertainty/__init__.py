"""How sure are a choice and a gain? From the predictions for every validation and test image."""

from blockwise.analysis.uncertainty.confidence import Confidence, confidence
from blockwise.analysis.uncertainty.gains import Gain, gain

__all__ = ["Confidence", "Gain", "confidence", "gain"]

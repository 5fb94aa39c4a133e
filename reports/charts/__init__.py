"""The pictures of a study: training curves, accuracies with their intervals, gradient noise."""

from reports.charts.accuracies import accuracy_pictures
from reports.charts.curves import curve_pictures
from reports.charts.noise import noise_pictures

__all__ = ["accuracy_pictures", "curve_pictures", "noise_pictures"]

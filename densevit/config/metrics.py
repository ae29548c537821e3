"""The metrics of results.json: how tables and figures call and rank them."""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST_EFFECT = 1.0  # percentage points: the default of the smallest difference that matters


@dataclass(frozen=True)
class Metric:
    """A metric: its key in results.json, its label and unit, its decimals and its direction."""

    name: str
    label: str
    unit: str = "%"
    decimals: int = 1
    lower_is_better: bool = False

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float, least_decimals: int = 0) -> str:
        """Return the label and a value: `top-1 accuracy 71.2 %`."""
        decimals = max(self.decimals, least_decimals)
        return f"{self.label} {value:.{decimals}f} {self.unit}".rstrip()


# Of a class per image, and of a class per pixel. The first one is the main metric.
CLASSIFICATION = (
    Metric("top1", "top-1 accuracy"),
    Metric("top5", "top-5 accuracy"),
    Metric("nll", "NLL", unit="", decimals=3, lower_is_better=True),
    Metric("matched_clean", "clean top-1 accuracy in the same mix of classes"),
    Metric("ece", "calibration error", lower_is_better=True),
    Metric("top1_all", "top-1 accuracy among all classes"),
)
# Of images that may show several classes.
MULTILABEL = (Metric("map", "mAP"),)
SEGMENTATION = (Metric("miou", "mIoU"), Metric("pixel_accuracy", "pixel accuracy"))

PERCENTAGES = tuple(
    metric.name for metric in (*CLASSIFICATION, *MULTILABEL, *SEGMENTATION) if metric.unit == "%"
)

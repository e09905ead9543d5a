"""Which files are the images and the labels of which case: one layout a file, recognised by themselves."""

from HybridMIMLib.data.layouts.cases import Case, Dataset
from HybridMIMLib.data.layouts.names import classes_from_labels, named_for_labels
from HybridMIMLib.data.layouts.recognition import dataset_of, open_dataset

__all__ = ["Case", "Dataset", "classes_from_labels", "dataset_of", "named_for_labels", "open_dataset"]

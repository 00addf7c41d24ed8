"""Oxford Flowers 102 with its official split (Nilsback & Zisserman, 2008)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from scipy.io import loadmat

from blockwise.data.samples import Sample, Source, Splits, cap, fingerprint
from blockwise.data.sources.whole import check_whole, mark_whole
from blockwise.errors import InputError
from blockwise.io.download import DownloadError, download, making_folder, unpack
from blockwise.io.files import read_regular, replacing

URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
ARCHIVE, ARCHIVE_MD5 = "102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"
IMAGES = 8189
LABELS, SPLIT = "imagelabels.mat", "setid.mat"
# MD5 sums, as in torchvision
MD5 = {LABELS: "e0620be6f572b9609742df49c70aed4d", SPLIT: "a5357ecc9cb78c4bef273ce3793fc85c"}
IDS = {"train": "trnid", "val": "valid", "test": "tstid"}
CLASSES = 102


class Flowers102(Source):
    """102 classes; 1,020 training, 1,020 validation and 6,149 test images; `*_per_class` caps a split."""

    name = "flowers102"

    def __init__(
        self,
        root: str | Path,
        *,
        train_per_class: int | None = None,
        val_per_class: int | None = None,
        test_per_class: int | None = None,
        seed: int = 0,
        download: bool = True,
    ) -> None:
        self.folder = Path(root).expanduser() / "flowers-102"
        self.sizes = {"train": train_per_class, "val": val_per_class, "test": test_per_class}
        self.seed = seed
        self.download = download

    def splits(self) -> Splits:
        """Return the official splits; download what is missing first.

        Raises:
            InputError: The data is missing or damaged.
        """
        self._fetch()
        check_whole(self.folder / "jpg", self.name, IMAGES)
        for name, expected in MD5.items():
            if hashlib.md5(read_regular(self.folder / name), usedforsecurity=False).hexdigest() != expected:
                raise InputError(f"{self.folder / name} is damaged: remove it, and it is downloaded again")
        labels = loadmat(self.folder / LABELS, squeeze_me=True)["labels"] - 1
        ids = loadmat(self.folder / SPLIT, squeeze_me=True)
        official = {
            split: [self._sample(int(number), int(labels[number - 1])) for number in ids[key]]
            for split, key in IDS.items()
        }
        train, val, test = (cap(official[split], size, self.seed) for split, size in self.sizes.items())
        everything = [sample for part in official.values() for sample in part]
        return Splits(tuple(str(label) for label in range(CLASSES)), train, val, test, fingerprint(everything))

    def _sample(self, number: int, label: int) -> Sample:
        file = self.folder / "jpg" / f"image_{number:05d}.jpg"
        return Sample(file.name, label, file)

    def _fetch(self) -> None:
        missing = [name for name in (*MD5, "jpg") if not (self.folder / name).exists()]
        reason = "data.download=false"
        if missing and self.download:
            try:
                self._download(missing)
                return
            except (DownloadError, OSError) as error:
                reason = str(error)
        if missing:
            raise InputError(
                f"Oxford Flowers 102 is not complete in {self.folder}, {' and '.join(missing)} missing ({reason}): "
                f"download {ARCHIVE}, {LABELS} and {SPLIT} from {URL} to that folder and unpack the archive there "
                "(to jpg/), or set data.root=<folder that contains flowers-102>"
            )

    def _download(self, missing: list[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (name for name in missing if name in MD5):
            with replacing(self.folder / name) as temporary:
                download(URL + name, temporary, f"md5:{MD5[name]}")
        with making_folder(self.folder / "jpg") as made:
            if made is not None:
                archive = made.with_name(ARCHIVE)
                download(URL + ARCHIVE, archive, f"md5:{ARCHIVE_MD5}")
                unpack(archive, made.with_name("content"))
                (made.with_name("content") / "jpg").rename(made)
                mark_whole(made, IMAGES)

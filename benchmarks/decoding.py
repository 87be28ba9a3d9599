"""JPEG files to crops of 224 pixels: ours beside PIL, in as many worker processes of a DataLoader.

python benchmarks/decoding.py [--images 64] [--repeats 5] [--quick]

Files of 500 x 375 and 1600 x 1200 pixels are made from the photographs of scikit-learn, mirrored and tiled, so that
they have a photograph's detail at every size. The ways to read them take turns; medians of images a second are printed
and saved to runs/bench/decoding.json. Of files whose shorter side has more than 512 pixels, so are those of the shards
that ``longtail data pack --shorter-side 512`` makes of them once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional as vision

from longtail.data.files import list_files
from longtail.data.packing import pack
from longtail.data.reading import cutting, jpeg
from longtail.data.reading.members import Member, Place, bytes_of
from longtail.data.settings import DataSettings
from longtail.data.views import View
from longtail.data.views.color import ColorJitter
from longtail.data.views.geometry import Flip, ResizedCrop
from longtail.rng import generator, numpy_generator

OUT = Path("runs/bench/decoding.json")
SIZES = ((500, 375), (1600, 1200))
SIZE, SCALE, BATCH, PACKED = 224, (0.08, 1.0), 32, 512
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DEFINITIONS = {
    "ours": "longtail.data.reading.jpeg.read_windows with simplejpeg: data.decoding=scaled",
    "program, whole": "data.decoding=whole, the default: Pillow decodes the whole file and resizes the crop",
    "ours, pillow": "the same with Pillow's decoder",
    "pil": "PIL decodes the whole file; torchvision's RandomResizedCrop on the PIL image",
    "pil, draft": "the crop is drawn first, PIL drafts the file to the least size that serves it and resizes by box",
    "packed": "ours, of the shards of data pack --shorter-side 512",
    "pil, packed": "pil, draft, of the files that those shards hold",
    "crop": "work: uint8 crops (B, 3, 224, 224) in the main process",
    "view": "work: flip, jitter of brightness, contrast and saturation by 0.4, normalized floats; ours on the batch in "
    "the main process, PIL's in the workers by torchvision's transforms of PIL images",
    "images_per_s": "median over the repeats, which take turns; the workers start anew, and their start does not count",
    "ratio": "ours over the faster of the two ways of PIL",
    "packed_ratio": "packed over the faster of the two ways of PIL on the files as they were",
}


def write_files(folder: Path, width: int, height: int, count: int) -> list[Path]:
    """JPEG files of quality 87, each another part of a tiled photograph with a little noise."""
    folder.mkdir(parents=True)
    paths = []
    for number in range(count):
        draw = numpy_generator("bench", "decoding", width, number)
        photo = load_sample_image(("china.jpg", "flower.jpg")[number % 2])
        tile = np.concatenate([photo, photo[:, ::-1]], axis=1)
        tile = np.concatenate([tile, tile[::-1]], axis=0)
        row, column = draw.integers(0, 854), draw.integers(0, 1280)
        wide = np.tile(tile, (3, 3, 1))[row : row + height, column : column + width].astype(np.int16)
        pixels = np.clip(wide + draw.normal(0, 4, wide.shape[:2])[..., None], 0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=87)
    return paths


def pack_smaller(files: Path, out: Path, count: int) -> tuple[list[Member], list[Path]]:
    """What ``longtail data pack`` makes of a folder of ``count`` files, and the same as files of their own."""
    asked = DataSettings(name="folder", path=str(files), size=SIZE)
    if pack(asked, out, shorter_side=PACKED).shrunk != count:
        raise SystemExit("Some files were not shrunk: they would be compared with themselves.")
    members = [entry.path for entry in list_files(asked.model_copy(update={"path": str(out)})).splits["train"]]
    paths = [out / f"{number}.jpg" for number in range(count)]
    assert all(isinstance(member, Member) for member in members)
    for member, path in zip(members, paths, strict=True):
        path.write_bytes(bytes_of(member))
    return members, paths


def draw_window(number: int, height: int, width: int) -> jpeg.Window:
    """The same window for every way of ours and for the draft, keyed by the image."""
    params = ResizedCrop(SIZE, SCALE).draw(torch.tensor([[height, width]]), generator("bench", "window", number))
    return jpeg.windows_of(params, SIZE)[0]


def ours(decoder: str) -> Callable[[Any, int], Tensor]:
    """Crops by ``read_windows``."""

    def read(path: Place | Path, number: int) -> Tensor:
        return jpeg.read_windows(path, lambda *sides: [draw_window(number, *sides)], decoder=decoder)[0]

    return read


def pil_crop(path: Path, number: int) -> Image.Image:
    """The usual way: everything is decoded, then cropped."""
    with Image.open(path) as image:
        cropped: Image.Image = transforms.RandomResizedCrop(SIZE, SCALE)(image.convert("RGB"))
    return cropped


def pil_draft(path: Path, number: int) -> Image.Image:
    """What PIL can do where the crop is known before: decode at 1/2, 1/4, 1/8, resize the part."""
    with Image.open(path) as image:
        width, height = image.size
        window = draw_window(number, height, width)
        reduction = max(1, min(window.height, window.width) // SIZE)
        image.draft("RGB", (width // reduction, height // reduction))
        by = max(n for n in (1, 2, 4, 8) if n <= reduction)
        box = (window.left, window.top, window.left + window.width, window.top + window.height)
        return image.convert("RGB").resize(
            (SIZE, SIZE), Image.Resampling.BILINEAR, box=tuple(edge / by for edge in box)
        )


PER_IMAGE = transforms.Compose(
    [
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.4, 0.4, 0.4),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)
ON_BATCH = View("bench", (Flip(), ColorJitter(0.4, 0.4, 0.4, 0.0)), SIZE, MEAN, STD)


class Files(Dataset[Tensor]):
    """The files, each read by ``read`` and then, if an image, turned into a tensor by ``finish``."""

    def __init__(self, paths: Sequence[Any], read: Callable[[Any, int], Any], finish: Callable[[Any], Tensor]):
        self.paths, self.read, self.finish = paths, read, finish

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        return self.finish(self.read(self.paths[number], number))


def program(path: Path, number: int) -> Tensor:
    """What the program does by itself (data.decoding=whole): everything is decoded, the crop resized by Pillow."""
    with Image.open(path) as image:
        width, height = image.size
    return cutting.tensor(cutting.read_squares(str(path), [draw_window(number, height, width)])[0])


WAYS: dict[str, Callable[[Any, int], Any]] = {
    "program, whole": program,
    "ours": ours("simplejpeg"),
    "ours, pillow": ours("pillow"),
    "pil": pil_crop,
    "pil, draft": pil_draft,
}
OF_PACKED: dict[str, Callable[[Any, int], Any]] = {"packed": ours("simplejpeg"), "pil, packed": pil_draft}


def seconds(way: str, work: str, paths: Sequence[Any], workers: int) -> float:
    """Seconds for all files but those of the first batch of each worker."""
    mine = not way.startswith("pil")
    finish = (lambda x: x) if mine else (vision.pil_to_tensor if work == "crop" else PER_IMAGE)
    loader = DataLoader(Files(paths, (WAYS | OF_PACKED)[way], finish), BATCH, num_workers=workers)
    batches, began = iter(loader), 0.0
    for number, batch in enumerate(batches):
        if mine and work == "view":
            batch = ON_BATCH(batch, generator("bench", "color", number))
        assert batch.shape[1:] == (3, SIZE, SIZE)
        if number + 1 == workers:
            began = time.perf_counter()
    return (time.perf_counter() - began) / (len(paths) - workers * BATCH)


def main() -> None:
    """Print a line for each size and work and save all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="of each size, in batches of 32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few images, to see that it works")
    arguments = parser.parse_args()
    if jpeg.simplejpeg is None:
        raise SystemExit("simplejpeg is not installed: pip install 'longtail[jpeg]'.")
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    images = BATCH * (workers + 2) if arguments.quick else arguments.images
    repeats = 1 if arguments.quick else arguments.repeats
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIZES:
            files = Path(folder) / str(width)
            paths = write_files(files / "train" / "photographs", width, height, images)
            bits = 8 * sum(path.stat().st_size for path in paths) / (images * width * height)
            of: dict[str, Sequence[Any]] = dict.fromkeys(WAYS, paths)
            if height > PACKED:
                of |= zip(OF_PACKED, pack_smaller(files, Path(folder) / "packed", images), strict=True)
            for work in ("crop", "view"):
                took: dict[str, list[float]] = {way: [] for way in of}
                for _ in range(repeats):
                    for way, sources in of.items():
                        took[way].append(seconds(way, work, sources, workers))
                rate = {way: round(1 / statistics.median(values), 1) for way, values in took.items()}
                ratio = round(rate["ours"] / max(rate["pil"], rate["pil, draft"]), 3)
                plain = round(rate["ours"] / rate["pil"], 3)
                rows.append(
                    {"width": width, "height": height, "bits_per_pixel": round(bits, 2), "work": work}
                    | {"images_per_s": rate, "ratio": ratio, "ratio_to_pil_without_draft": plain}
                )
                packed = ""
                if "packed" in rate:
                    rows[-1]["packed_ratio"] = round(rate["packed"] / max(rate["pil"], rate["pil, draft"]), 3)
                    packed = f", packed over PIL {rows[-1]['packed_ratio']}"
                shown = ", ".join(f"{way} {value}" for way, value in rate.items())
                ratios = f"ours over PIL {ratio}, without draft {plain}{packed}"
                print(f"{width} x {height}, {work}: {shown} images/s; {ratios}")
    machine = {"cores": os.cpu_count(), "workers": workers, "simplejpeg": jpeg.simplejpeg.__version__}
    machine |= {"pillow": Image.__version__, "torch": torch.__version__}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"definitions": DEFINITIONS, "machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"saved {OUT}")


if __name__ == "__main__":
    main()

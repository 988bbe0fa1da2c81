"""The data sets a network is trained, searched and tested on.

>>> load_dataset("digits").shape
(1, 32, 32)
"""

from __future__ import annotations

from pathlib import Path

from hwgen.errors import BadDataset, BadInput
from quant.data import cifar10, mnist
from quant.data.dataset import Dataset
from quant.data.digits import load_digits
from quant.data.fetch import Remote, default_cache, fetch

__all__ = ["DATASETS", "Dataset", "load_dataset"]

DATASETS = ("digits", "mnist", "cifar10")

# The addresses and checksums are those the authors and torchvision publish.
_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist"
MNIST_REMOTES = tuple(
    Remote(url=f"{_MNIST_URL}/{name}.gz", size=size, sha256=sha256)
    for name, size, sha256 in zip(
        mnist.FILES,
        (9912422, 28881, 1648877, 4542),
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        strict=True,
    )
)
CIFAR10_REMOTE = Remote(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size=170052171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)


def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    download: bool = True,
) -> Dataset:
    """Return a data set of 32x32 images: from a folder, else the cache, else its official address.

    Parameters
    ----------
    name : str
        ``digits`` (1 channel, comes with scikit-learn; the folders are not looked at), ``mnist``
        (1 channel, 28x28 with a border of 2 zeros) or ``cifar10`` (3 channels R, G, B).
    data_dir : Path, optional
        Folder with the official files: the four idx files, plain or ``.gz``, of MNIST; or
        ``cifar-10-batches-bin/`` (or that folder itself). Then nothing is downloaded.
    cache_dir : Path, optional
        Where downloads are kept; default ``~/.cache/hwgen``.
    download : bool
        Whether missing files may be downloaded.

    Raises
    ------
    BadInput
        If there is no such data set, or the cache cannot be written.
    BadDataset
        If files are missing, truncated, corrupt or of another kind, or cannot be downloaded.
    """
    if name not in DATASETS:
        raise BadInput(f"the data set must be one of {', '.join(DATASETS)}, not {name!r}")
    if name == "digits":
        return load_digits()
    cache = (default_cache() if cache_dir is None else cache_dir) / name
    try:
        if name == "mnist":
            return mnist.load_mnist(
                _mnist_cache(cache, download) if data_dir is None else _mnist_folder(data_dir)
            )
        return cifar10.load_cifar10(
            _cifar10_cache(cache, download) if data_dir is None else _cifar10_folder(data_dir)
        )
    except OSError as error:  # a folder that may not be searched, a path that is too long
        raise BadDataset(f"{name}: {error.filename}: {error.strerror}") from error


def _need(name: str) -> str:
    if name == "mnist":
        return f"a folder with the files {', '.join(mnist.FILES)} (plain or .gz)"
    return f"a folder with {cifar10.FOLDER}/ of {', '.join(cifar10.FILES)}"


def _check_folder(name: str, folder: Path) -> None:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise BadDataset(f"--data-dir {folder} {what}; for {name} give {_need(name)}")


def _mnist_folder(data_dir: Path) -> Path:
    _check_folder("mnist", data_dir)
    found = mnist.find_idx_folder(data_dir)
    if found is None:
        raise BadDataset(f"--data-dir {data_dir} holds no MNIST file; give {_need('mnist')}")
    return found


def _cifar10_folder(data_dir: Path) -> Path:
    _check_folder("cifar10", data_dir)
    found = cifar10.find_batches_folder(data_dir)
    if found is None:
        python = (data_dir / "cifar-10-batches-py").is_dir()
        hint = " (its Python version is pickles, which are never read)" if python else ""
        raise BadDataset(
            f"--data-dir {data_dir} holds no CIFAR-10 binary file{hint}; give {_need('cifar10')}, "
            "the contents of the official cifar-10-binary.tar.gz"
        )
    return found


def _absent(name: str, cache: Path, reason: str) -> BadDataset:
    return BadDataset(
        f"the {name} images are not here: {reason}. Either give --data-dir FOLDER "
        f"(data_dir= in Python), {_need(name)}; or run once with a network connection, after "
        f"which they stay in {cache}"
    )


def _mnist_cache(cache: Path, download: bool) -> Path:
    if all(mnist.find_file(cache, name) for name in mnist.FILES):
        return cache
    if not download:
        raise _absent("mnist", cache, "they are not cached, and downloading is switched off")
    try:
        for remote in MNIST_REMOTES:
            fetch(remote, cache)
    except BadDataset as error:
        raise _absent("mnist", cache, str(error)) from error
    return cache


def _cifar10_cache(cache: Path, download: bool) -> Path:
    folder = cache / cifar10.FOLDER
    if all((folder / name).is_file() for name in cifar10.FILES):
        return folder
    if not download:
        raise _absent("cifar10", cache, "they are not cached, and downloading is switched off")
    try:
        archive = fetch(CIFAR10_REMOTE, cache)
    except BadDataset as error:
        raise _absent("cifar10", cache, str(error)) from error
    folder = cifar10.unpack_archive(archive, cache)
    archive.unlink()
    return folder
